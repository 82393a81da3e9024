"""Original ALBEF and AMC checkpoints to folders of `save_pretrained`, and back: `albef-amc convert`."""

import os
import re
from collections import Counter
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, BertTokenizer

from ..configuration_albef import AlbefConfig
from ..image_processing_pil_albef import AlbefImageProcessorPil
from ..modeling_albef import AlbefModel, AlbefVisionEmbeddings
from ..modeling_albef_pretraining import AlbefForPreTraining
from ..processing_albef import AlbefProcessor
from .albef_checkpoint_files import appearing, check_output, load_folder, load_original, weight_files
from .albef_checkpoint_layout import (
    QUEUES,
    ConversionError,
    Weights,
    check_copy,
    convert_state_dict,
    infer_config,
    listing,
    original_names,
    rename,
    sort_out,
)

# What either side may lack, each part as a whole: its names here, and what becomes of it.
OPTIONAL = {
    "MLM head": (
        r"^mlm_head\.",
        "not needed to ground; AlbefForPreTraining.from_pretrained starts it at random, and says so",
    ),
    "momentum MLM head": (r"^momentum_encoder\.mlm_head\.", "training starts it as a copy of the MLM head"),
    "momentum encoders": (r"^momentum_encoder\.(?!mlm_head\.)", "training starts them as copies of the encoders"),
    "queues": (r"^(image_queue|text_queue|queue_pointer)$", "training starts with empty ones"),
}
# Of these the original has none: fingerprints of the pairs in the queues.
ID_QUEUES = "image_id_queue", "text_id_queue"
FLOATS = torch.float32, torch.float16, torch.bfloat16, torch.float64
INTEGERS = torch.int64, torch.int32


def convert_checkpoint(
    source: str | os.PathLike,
    output: str | os.PathLike,
    image_size: int | None = None,
    tokenizer: str | os.PathLike = "bert-base-uncased",
    vision_heads: int | None = None,
    text_heads: int | None = None,
    grounding_layer: int | None = None,
    overwrite: bool = False,
) -> str:
    """An original checkpoint to a folder for `AutoModel.from_pretrained` and `AutoProcessor.from_pretrained`.

    Args:
        source: a file of `torch.save` or safetensors of ALBEF or AMC, pre-trained, or fine-tuned for retrieval or
            grounding; or the index of its shards, or their folder. See `load_original`.
        image_size: side in pixels that the learned positions are interpolated to; None: the one they were learned for.
        tokenizer: name on the Hub or folder (with vocab.txt or tokenizer.json) of the BERT tokenizer.
        vision_heads, text_heads: heads of the encoders' attention; None: 12, as in ALBEF base.
        grounding_layer: the text-encoder layer that heatmaps explain; None: 8, as in ALBEF base.
        overwrite: replace the output if it holds a model; otherwise it must not exist, or be empty.

    Returns: a report for people to read.

    Raises:
        ConversionError: the source, an option or the output is not right. Nothing has changed then.
    """
    source, output = Path(source).resolve(), Path(output).resolve()
    original, left_aside = load_original(source)
    check_output(source, output, overwrite, is_folder=True)
    weights, origin, dropped = sort_out(original)
    config = infer_config(weights, vision_heads, text_heads, grounding_layer)
    model = empty_model(AlbefForPreTraining, config)
    labels = {rename(name): name for name in original_names(config, "amc")} | origin
    absent = check_weights(weights, model, labels)
    for copy, kept in model._tied_weights_keys.items():
        if copy in weights:
            check_copy(origin[copy], weights.pop(copy), origin[kept], weights[kept])
            dropped[origin[copy]] = f"equal to {origin[kept]}, to which it is tied"
    processor = load_processor(tokenizer, config)
    config.text_config.pad_token_id = processor.tokenizer.pad_token_id
    learned_size = config.vision_config.image_size
    if image_size is not None:
        interpolate_positions(weights, config, image_size)
        processor.image_processor.size = {"height": image_size, "width": image_size}

    separate(weights)
    report = [f"{source.name}: {megabytes(*weight_files(source))}, {len(original)} tensors of {dtypes(weights)}"]
    report += [f"Converted: {len(weights)} tensors"]
    report += [f"Dropped: {len(dropped)} tensors", *(f"  {name}: {reason}" for name, reason in dropped.items())]
    if prefix := origin["albef.temperature"].removesuffix("temp"):
        report.append(f"Names without their prefix: {prefix}")
    report += left_aside
    report += ["Not in the file:", *(f"  {part}: {OPTIONAL[part][1]}" for part in absent)] if absent else []
    report += config_lines(config, learned_size)
    model_class = AlbefModel if len(absent) == len(OPTIONAL) else AlbefForPreTraining
    if model_class is AlbefModel:
        weights = {name.removeprefix("albef."): tensor for name, tensor in weights.items()}
    model = empty_model(model_class, config)
    model.to(reduce(torch.promote_types, {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}))
    with appearing(output) as folder:
        folder.mkdir()
        model.save_pretrained(folder, state_dict=weights)
        processor.save_pretrained(folder)
    return "\n".join([*report, f"Written: {output}, of {model_class.__name__}", *next_lines(output)])


def write_original(
    source: str | os.PathLike,
    output: str | os.PathLike,
    layout: str = "amc",
    momentum_copies: bool = False,
    overwrite: bool = False,
) -> str:
    """A folder of `AlbefModel` or `AlbefForPreTraining` to a `.pth` file for the released code.

    Args:
        layout: "amc", "albef" or "retrieval": see `original_names`.
        momentum_copies: where the folder has no momentum encoders, write copies of the encoders. The released scripts
            look for them, even to evaluate.
        overwrite: replace the file where it exists.

    Returns: a report for people to read. ConversionError: as of `convert_checkpoint`.
    """
    source, output = Path(source).resolve(), Path(output).resolve()
    config, weights = load_folder(source)
    check_output(source, output, overwrite, is_folder=False)
    model = empty_model(AlbefForPreTraining, config)
    absent = check_weights(weights, model, {})
    report = [f"{source.name}: {len(weights)} tensors of {dtypes(weights)}"]
    if momentum_copies:
        copies = {f"momentum_encoder.{name.removeprefix('albef.')}": weights[name] for name in weights}
        weights = {name: copies[name] for name in model.state_dict() if name in copies} | weights
    for copy, kept in model._tied_weights_keys.items():
        if copy.replace("decoder.weight", "decoder.bias") in weights:
            weights.setdefault(copy, weights[kept])

    state = original_state(weights, config, layout)
    with appearing(output) as file, file.open("wb") as stream:
        torch.save({"model": state}, stream)
    written = set(map(rename, state))
    if left_out := [name for name in weights if name not in written]:
        report += ["Left out, as the original has no place for it:", f"  {listing(left_out)}"]
    if momentum_copies:
        report += [f"Written as copies: {part}" for part in absent if "momentum" in part]
        absent = [part for part in absent if "momentum" not in part]
    report += ["Not in the folder, nor in the file:", *(f"  {part}" for part in absent)] if absent else []
    if "momentum encoders" in absent:
        report.append("  The released scripts look for momentum encoders: --momentum_copies writes copies.")
    return "\n".join([*report, f"Written: {output}, {megabytes(output)}, {len(state)} tensors"])


def original_state(weights: Weights, config: AlbefConfig, layout: str) -> Weights:
    """The original's state dictionary of these weights."""
    state = {}
    for name in original_names(config, layout):
        new_name = rename(name)
        if new_name in weights:
            state[name] = weights[new_name].T.contiguous() if new_name in QUEUES else weights[new_name]
        elif name.endswith("position_ids") and new_name.replace("position_ids", "word_embeddings.weight") in weights:
            state[name] = torch.arange(config.text_config.max_position_embeddings)[None]
        elif name == "idx_queue" and "image_queue" in weights:
            state[name] = torch.full((1, config.queue_size), -100)  # of no image
    return state


def empty_model(model_class: type[AlbefModel | AlbefForPreTraining], config: AlbefConfig):
    """A model without memory for its weights."""
    with torch.device("meta"):
        return model_class(config)


def check_weights(weights: Weights, model: AlbefForPreTraining, labels: dict[str, str]) -> list[str]:
    """The parts of `OPTIONAL` that are absent; `labels`: how errors call a tensor, if not by its own name."""
    expected = model.state_dict()
    required = [name for name in expected if name not in (*model._tied_weights_keys, *ID_QUEUES)]
    missing, absent = [name for name in required if name not in weights], []
    for part, (pattern, _) in OPTIONAL.items():
        if all(name in missing for name in required if re.search(pattern, name)):
            missing = [name for name in missing if not re.search(pattern, name)]
            absent.append(part)
    unknown = [name for name in weights if name not in expected]
    problems = [
        f"{len(names)} {what}: {listing([labels.get(name, name) for name in names])}"
        for what, names in (("missing", missing), ("too many", unknown))
        if names
    ]
    for name, wanted in expected.items():
        if (tensor := weights.get(name)) is None:
            continue
        if tensor.shape != wanted.shape:
            problems.append(f"{labels.get(name, name)} has the shape {tuple(tensor.shape)}, not {tuple(wanted.shape)}")
        elif tensor.dtype not in (FLOATS if wanted.is_floating_point() else INTEGERS):
            problems.append(f"{labels.get(name, name)} is of {tensor.dtype}, unlike {wanted.dtype}")
    if problems:
        raise ConversionError(f"its tensors are not those of the model that it seems to be; {listing(problems)}.")
    return absent


def load_processor(tokenizer: str | os.PathLike, config: AlbefConfig) -> AlbefProcessor:
    """The processor of the model, with the BERT tokenizer of that name or folder, whose vocabulary the weights have."""
    folder = Path(tokenizer)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise ConversionError(f"--tokenizer: the folder {tokenizer} has neither vocab.txt nor tokenizer.json.")
    # For a folder the class is named, since a vocab.txt alone does not tell it. A name that is not found must not come
    # to BertTokenizer: it would return one without a vocabulary.
    tokenizer_class = BertTokenizer if folder.is_dir() else AutoTokenizer
    try:
        bert_tokenizer = tokenizer_class.from_pretrained(tokenizer, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConversionError(
            f"no tokenizer {str(tokenizer)!r} here or on the Hub: pass --tokenizer a folder with its vocab.txt or "
            f"tokenizer.json. ({reason})"
        ) from error
    if len(bert_tokenizer) != (vocab_size := config.text_config.vocab_size):
        raise ConversionError(
            f"the tokenizer {str(tokenizer)!r} has {len(bert_tokenizer)} tokens, the weights {vocab_size}: pass the "
            "one they were trained with by --tokenizer."
        )
    size = config.vision_config.image_size
    return AlbefProcessor(AlbefImageProcessorPil(size={"height": size, "width": size}), bert_tokenizer)


def separate(weights: Weights) -> None:
    """Gives each tensor a memory of its own, as safetensors asks: copies of the momentum encoders may share theirs."""
    seen = set()
    for name, tensor in weights.items():
        memory = tensor.untyped_storage().data_ptr()
        weights[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)


def interpolate_positions(weights: Weights, config: AlbefConfig, image_size: int) -> None:
    """Learned positions, and the configuration, for images of another size in pixels. Changes both arguments."""
    patch_size = config.vision_config.patch_size
    if image_size < patch_size or image_size % patch_size:
        raise ConversionError(f"--image_size {image_size} is no multiple of the patches' {patch_size} pixels.")
    with torch.device("meta"):
        embeddings = AlbefVisionEmbeddings(config.vision_config)
    for name in [name for name in weights if name.endswith("vision_model.embeddings.position_embeddings")]:
        embeddings.position_embeddings = nn.Parameter(weights[name], requires_grad=False)
        weights[name] = embeddings.interpolated_positions((image_size // patch_size, image_size // patch_size))
    config.vision_config.image_size = image_size


def megabytes(*paths: Path) -> str:
    return f"{sum(path.stat().st_size for path in paths) / 1e6:,.1f} MB"


def dtypes(weights: Weights) -> str:
    counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in weights.values())
    return ", ".join(name for name, _ in counts.most_common() if not name.startswith("int"))


def config_lines(config: AlbefConfig, learned_size: Any) -> list[str]:
    vision, text = config.vision_config, config.text_config
    positions = "" if learned_size == vision.image_size else f", interpolated from {learned_size} × {learned_size}"
    return [
        "Configuration, from the tensors:",
        f"  images of {vision.image_size} × {vision.image_size} pixels{positions}, in patches of {vision.patch_size}",
        f"  image encoder of {vision.num_hidden_layers} layers, width {vision.hidden_size}",
        f"  text encoder of {text.fusion_layer} layers, fusion encoder of "
        f"{text.num_hidden_layers - text.fusion_layer}, width {text.hidden_size}, {text.vocab_size:,} word pieces",
        f"  features of {config.projection_dim}, queues of {config.queue_size:,}, temperature {config.temperature:g}",
        "Configuration, which they do not tell (ALBEF base's, if not given):",
        f"  --vision_heads {vision.num_attention_heads} --text_heads {text.num_attention_heads} "
        f"--grounding_layer {config.grounding_layer}",
    ]


def next_lines(output: Path) -> list[str]:
    return [
        "Next:",
        f'  albef-amc ground photo.jpg "a black cat" --model {output} --output heatmap.png',
        f'  or AutoModel.from_pretrained("{output}", trust_remote_code=True), and AutoProcessor in the same way',
    ]


__all__ = ["ConversionError", "convert_checkpoint", "convert_state_dict", "rename", "write_original"]
