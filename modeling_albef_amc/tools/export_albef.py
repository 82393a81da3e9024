"""ALBEF for serving: two programs that need torch alone, or ONNX Runtime alone, and give heatmaps without autograd.

`albef-amc export` writes them. The image encoder runs once an image; what it returns goes into the phrase grounder,
together with any number of phrases.
"""

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, normalizers
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from transformers import AutoProcessor, ProcessorMixin
from transformers.utils import logging

from ..attention_albef import additive_mask
from ..families.auto import base_of, load_model, read_config
from ..gradcam import average_tokens, gradcam
from ..modeling_albef import AlbefModel, match_attention
from ..tokenization_albef import DROPPED_CHARACTERS

# The largest difference allowed between a program and the model: of a heatmap relative to its maximum, else absolute.
TOLERANCE = 1e-4
IMAGE_ENCODER, PHRASE_GROUNDER, DESCRIPTION = "image_encoder", "phrase_grounder", "programs.json"
# Format → ending of its programs' files.
FORMATS = {"torch": ".pt2", "onnx": ".onnx", "onnx-int8": ".onnx"}
Program = Callable[..., dict[str, Any]]


class ImageEncoder(nn.Module):
    """Pixels → all that phrases need of an image, so that the image is encoded and projected once."""

    def __init__(self, model: AlbefModel):
        super().__init__()
        text = model.config.text_config
        layers = [layer.cross_attention for layer in model.text_model.layers[text.fusion_layer :]]
        # Only what is used: a program keeps all parameters of its module.
        self.vision_model, self.vision_projection = model.vision_model, model.vision_projection
        self.keys = nn.ModuleList([layer.key for layer in layers])
        self.values = nn.ModuleList([layer.value for layer in layers])
        self.num_heads, self.patch_size = text.num_attention_heads, model.config.vision_config.patch_size

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor | int]:
        """(num_images, num_channels, height, width), sides a multiple of the patch size →

        `image_keys`, `image_values` (num_images, num_fusion_layers, num_heads, 1 + rows * columns, head_dim),
        `image_features` (num_images, projection_dim), unit length, and the patch grid, `rows` and `columns`.
        """
        for side in pixel_values.shape[2:]:
            torch._check(side % self.patch_size == 0)  # the program refuses other sizes
        rows, columns = (side // self.patch_size for side in pixel_values.shape[2:])
        states = self.vision_model(pixel_values).last_hidden_state
        keys, values = (torch.stack([project(states) for project in side], 1) for side in (self.keys, self.values))
        return {
            "image_keys": keys.unflatten(-1, (self.num_heads, -1)).transpose(2, 3),
            "image_values": values.unflatten(-1, (self.num_heads, -1)).transpose(2, 3),
            "image_features": F.normalize(self.vision_projection(states[:, 0]), dim=-1),
            "rows": rows,
            "columns": columns,
        }


class PhraseScorer(nn.Module):
    """Phrases and encoded images → scores, and their gradient with respect to one cross-attention by autograd."""

    def __init__(self, model: AlbefModel, grounding_layer: int):
        super().__init__()
        self.model, self.grounding_layer = model, grounding_layer
        self.num_fusion_layers = model.config.text_config.num_hidden_layers - model.config.text_config.fusion_layer

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, image_index: Tensor, image_keys: Tensor, image_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns: `itm_logits`, `text_features` and the tokens' maps (num_phrases, num_tokens, num_patches)."""
        # A mask that is additive already is taken as it is.
        mask = additive_mask(attention_mask, image_keys.dtype)
        key_values = [(image_keys[:, layer], image_values[:, layer]) for layer in range(self.num_fusion_layers)]
        encoded, itm_logits = self.model.match(input_ids, mask, key_values, image_index, self.grounding_layer)
        explanation = match_attention(itm_logits, encoded, attention_mask, grid=(1, image_keys.shape[3] - 1))
        text_features = self.model.itc_text_features(encoded.text_hidden_state, attention_mask)
        return itm_logits.detach(), text_features, gradcam(explanation, per_token=True).flatten(2)


class PhraseProgram(nn.Module):
    """Names and shapes around a `PhraseScorer` whose backward pass has become part of an ordinary graph."""

    def __init__(self, traced_scorer: nn.Module, temperature: Tensor):
        super().__init__()
        self.traced_scorer, self.temperature = traced_scorer, temperature

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor,
        image_keys: Tensor,
        image_values: Tensor,
        image_features: Tensor,
        rows: int,
        columns: int,
    ) -> dict[str, Tensor]:
        """
        Args:
            input_ids, attention_mask: (num_phrases, num_tokens). image_index: (num_phrases,), each phrase's image.
            The others: what `ImageEncoder` returned.

        Returns: as in `AlbefOutput`, and `itc_logits` (num_phrases,), the scaled similarity of image and text features.
        """
        # What was traced holds for contiguous tensors, and is silently wrong for other strides.
        images = image_keys.contiguous(), image_values.contiguous()
        itm_logits, text_features, maps = self.traced_scorer(input_ids, attention_mask, image_index, *images)
        maps = maps.unflatten(-1, (rows, columns))
        return {
            "itm_logits": itm_logits,
            "itc_logits": (image_features[image_index] * text_features).sum(dim=-1) / self.temperature,
            "heatmaps": average_tokens(maps, attention_mask),
            "token_heatmaps": maps,
            "text_features": text_features,
        }


def export_image_encoder(model: AlbefModel) -> ExportedProgram:
    """`ImageEncoder` as a program: any number of images of any size, from two by two patches on."""
    size = model.config.vision_config.patch_size
    pixel_values, _ = random_inputs(model)
    dims = {0: Dim("num_images"), 2: size * Dim("rows", min=2), 3: size * Dim("columns", min=2)}
    with torch.no_grad():
        return torch.export.export(ImageEncoder(model), (), {"pixel_values": pixel_values}, dynamic_shapes=[dims])


def export_phrase_grounder(model: AlbefModel, grounding_layer: int) -> ExportedProgram:
    """`PhraseProgram` as a program: any number of phrases, tokens and images.

    `torch.export` records no backward pass. So `make_fx` runs scorer and backward pass on tensors without data, writes
    down every operation of both, and the graph that comes of it is exported.

    `grounding_layer` is the fusion layer whose cross-attention is explained, counted from the first text layer.
    """
    pixel_values, phrases = random_inputs(model)
    with torch.no_grad():
        inputs = phrases | ImageEncoder(model)(pixel_values)
        scored = [inputs[name].contiguous() for name in (*phrases, "image_keys", "image_values")]
        # Sizes that happen to be equal must not count as one size. The weights become constants of the graph.
        with symbolic_shapes.patch(use_duck_shape=False):
            trace = make_fx(PhraseScorer(model, grounding_layer), tracing_mode="symbolic", _allow_non_fake_inputs=True)
            grounder = PhraseProgram(trace(*scored), model.temperature)
        num_phrases, num_images = Dim("num_phrases"), Dim("num_images")
        tokens = {0: num_phrases, 1: Dim("num_tokens", max=model.config.text_config.max_position_embeddings)}
        keys = {0: num_images, 3: Dim("num_keys", min=5)}
        dims = tokens, tokens, {0: num_phrases}, keys, keys, {0: num_images}, Dim.DYNAMIC, Dim.DYNAMIC
        return torch.export.export(grounder, (), inputs, dynamic_shapes=dict(zip(inputs, dims, strict=True)))


def random_inputs(
    model: AlbefModel, num_images: int = 2, num_phrases: int = 3, num_tokens: int = 4, grid: tuple[int, int] = (5, 7)
) -> tuple[Tensor, dict[str, Tensor]]:
    """`pixel_values` of `grid` patches, and phrases of any lengths up to `num_tokens`, padded on either side."""
    vision = model.config.vision_config
    pixel_values = torch.randn(num_images, vision.num_channels, *(side * vision.patch_size for side in grid))
    lengths = torch.randint(1, num_tokens + 1, (num_phrases, 1))
    lengths[-1] = num_tokens
    mask = (torch.arange(num_tokens) < lengths).long()
    shifts = ((num_tokens - lengths) * (torch.arange(num_phrases)[:, None] % 2)).flatten().tolist()
    return pixel_values, {
        "input_ids": torch.randint(model.config.text_config.vocab_size, (num_phrases, num_tokens)),
        "attention_mask": torch.stack([row.roll(shift) for row, shift in zip(mask, shifts)]),
        "image_index": torch.randint(num_images, (num_phrases,)),
    }


@torch.inference_mode()
def largest_differences(folder: Path, model: AlbefModel, grounding_layer: int) -> dict[str, float]:
    """Runs the programs of `folder` beside the model, with several numbers of everything and three grids.

    Returns: of each output the largest difference: of maps relative to the phrase's maximum, else absolute.
    """
    encode_images, ground = load_programs(folder)
    own_grid, longest = model.config.vision_config.grid, min(9, model.config.text_config.max_position_embeddings)
    differences = defaultdict(list)
    for sizes in ((1, 1, longest, own_grid), (1, 5, longest, own_grid), (3, 4, longest, (3, 2)), (2, 1, 1, (2, 5))):
        pixel_values, phrases = random_inputs(model, *sizes)
        images = encode_images(pixel_values=pixel_values)
        found = ground(**phrases, **images) | {"image_features": images["image_features"]}
        expected = dict(model(pixel_values, **phrases, output_token_heatmaps=True, grounding_layer=grounding_layer))
        own_image = expected["image_features"][phrases["image_index"]]
        expected["itc_logits"] = (own_image * expected["text_features"]).sum(dim=-1) / model.temperature
        for name, tensor in found.items():
            difference = (tensor - expected[name]).abs()
            if "heatmaps" in name:
                maximum = expected[name].flatten(1).amax(dim=1).clamp(min=torch.finfo(tensor.dtype).tiny)
                difference = difference.flatten(1).amax(dim=1) / maximum
            differences[name].append(difference.max())
    # torch's maximum, unlike Python's, does not overlook a NaN.
    return {name: torch.stack(values).max().item() for name, values in differences.items()}


def check(folder: Path, model: AlbefModel, grounding_layer: int, tolerance: float) -> dict[str, float]:
    """`largest_differences`; ArithmeticError: one is larger, or no number."""
    differences = largest_differences(folder, model, grounding_layer)
    if not all(difference <= tolerance for difference in differences.values()):
        raise ArithmeticError(f"The programs differ from the model by more than {tolerance}: {differences}.")
    return differences


def load_programs(folder: Path) -> tuple[Program, Program]:
    """Image encoder and phrase grounder, of tensors by name, on as many threads of the CPU as torch's."""
    if (folder / f"{IMAGE_ENCODER}.onnx").exists():
        from .onnx_albef import load_onnx

        return load_onnx(folder / f"{IMAGE_ENCODER}.onnx"), load_onnx(folder / f"{PHRASE_GROUNDER}.onnx")
    encode_images, ground = (torch.export.load(folder / f"{name}.pt2") for name in (IMAGE_ENCODER, PHRASE_GROUNDER))
    return encode_images.module(), ground.module()


def save_cleaning(file: Path) -> None:
    """Puts ALBEF's cleaning of phrases into a tokenizer's file, for those who have the file alone; cleaned phrases stay
    as they are.
    """
    tokenizer = Tokenizer.from_file(str(file))
    cleaning = [
        normalizers.Lowercase(),
        normalizers.Replace(Regex(f"[{DROPPED_CHARACTERS}]"), ""),
        normalizers.Replace(Regex("[-/]"), " "),
        normalizers.Replace("<person>", "person"),
    ]
    own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([*cleaning, *own])
    tokenizer.save(str(file))


def description(
    model: AlbefModel, processor: ProcessorMixin, grounding_layer: int, format: str = "torch"
) -> dict[str, Any]:
    """What a server must know: dtype and shape of inputs and outputs, where a name stands for any number."""
    vision, text, features = model.config.vision_config, model.config.text_config, model.config.projection_dim
    num_layers, num_heads = text.num_hidden_layers - text.fusion_layer, text.num_attention_heads
    sides = f"{vision.patch_size} * rows, {vision.patch_size} * columns"
    pixels = {"pixel_values": f"float32 (num_images, {vision.num_channels}, {sides})"}
    keys = f"float32 (num_images, {num_layers}, {num_heads}, 1 + rows * columns, {text.hidden_size // num_heads})"
    images = {"image_keys": keys, "image_values": keys, "image_features": f"float32 (num_images, {features})"}
    images |= {"rows": "int", "columns": "int"}
    tokens = "int64 (num_phrases, num_tokens)"
    phrases = {"input_ids": tokens, "attention_mask": tokens, "image_index": "int64 (num_phrases)"}
    outputs = {
        "itm_logits": "float32 (num_phrases, 2)",
        "itc_logits": "float32 (num_phrases)",
        "heatmaps": "float32 (num_phrases, rows, columns)",
        "token_heatmaps": "float32 (num_phrases, num_tokens, rows, columns)",
        "text_features": f"float32 (num_phrases, {features})",
    }
    return {
        IMAGE_ENCODER + FORMATS[format]: {"inputs": pixels, "outputs": images},
        PHRASE_GROUNDER + FORMATS[format]: {"inputs": phrases | images, "outputs": outputs},
        "format": format,
        "image_size": [processor.image_processor.size[side] for side in ("height", "width")],
        "max_num_tokens": text.max_position_embeddings,
        "grounding_layer": grounding_layer,
    }


def load_for_export(checkpoint: str, **hub: Any) -> AlbefModel:
    """The model of a checkpoint, frozen, in float32. ValueError: it is of another family, or lacks weights."""
    if base_of(checkpoint, **hub)[0] != checkpoint:
        raise ValueError(f"{checkpoint} has LoRA adapters alone: albef-amc merge {checkpoint} --output FOLDER first.")
    family = read_config(checkpoint, **hub).get("model_type")
    if family != AlbefModel.config_class.model_type:
        raise ValueError(f"{checkpoint} holds a model of type {family!r}: only 'albef' can be exported.")
    # A traced SDPA is the kernel of one device: phrases, which are short, do without it.
    attention = {"vision_config": "sdpa", "text_config": "eager"}
    return load_model(checkpoint, dtype=torch.float32, attn_implementation=attention, **hub).requires_grad_(False)


def export(
    checkpoint: str, output: str | Path, grounding_layer: int | None = None, format: str = "torch", **hub: Any
) -> dict[str, float]:
    """Writes programs, their description and the processor; the folder appears when all is there and checked.

    Args:
        checkpoint: folder or Hub name. output: a new or empty folder. grounding_layer: default: the checkpoint's.
        format: of `FORMATS`; "onnx-int8" is "onnx", checked, with the weights of its matrix products in eight bits.
        hub: of `hub_options`.

    Returns: `largest_differences`.

    Raises:
        ValueError: `output` is not empty, the checkpoint is not ALBEF's or lacks weights, the layer is no fusion layer,
            the format is unknown.
        ArithmeticError: a program, before it is made int8, differs from the model by more than `TOLERANCE`.
        ImportError: a package that the format needs is missing.
    """
    output = Path(output)
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown: choose one of {', '.join(FORMATS)}.")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} exists and is not an empty folder: choose another.")
    if format != "torch":
        from . import onnx_albef
    model = load_for_export(checkpoint, **hub)
    layer = model.config.grounding_layer if grounding_layer is None else grounding_layer
    first, last = model.config.text_config.fusion_layer, model.config.text_config.num_hidden_layers - 1
    if not first <= layer <= last:
        raise ValueError(f"grounding_layer {layer} is no fusion layer: choose one of {first}..{last}.")
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False, **hub)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        folder = Path(scratch) / output.name
        processor.save_pretrained(folder)
        save_cleaning(folder / "tokenizer.json")
        facts = description(model, processor, layer, format)
        programs = {
            IMAGE_ENCODER: partial(export_image_encoder, model),
            PHRASE_GROUNDER: partial(export_phrase_grounder, model, layer),
        }
        for name, program in logging.tqdm(programs.items(), desc="Exporting", unit=" programs"):
            path = folder / (name + FORMATS[format])
            if format == "torch":
                torch.export.save(program(), path)
            else:
                onnx_albef.save_onnx(program(), path, facts[path.name])
                facts["opset"] = onnx_albef.OPSET
        facts["largest_differences"] = differences = check(folder, model, layer, TOLERANCE)
        if format == "onnx-int8":
            for name in programs:
                onnx_albef.make_int8(folder / f"{name}.onnx")
            facts["largest_differences"] = differences = check(folder, model, layer, math.inf)
        (folder / DESCRIPTION).write_text(json.dumps(facts, indent=2) + "\n")
        folder.rename(output)
    return differences


__all__ = ["export", "load_for_export"]
