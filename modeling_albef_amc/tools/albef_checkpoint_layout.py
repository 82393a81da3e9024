"""Names and layouts of the original ALBEF and AMC checkpoints, and those of `AlbefForPreTraining` for them."""

import math
import re
from collections import Counter
from functools import partial

import torch

from ..configuration_albef import AlbefConfig

Weights = dict[str, torch.Tensor]

# Applied in order, each to the outcome of the one before.
RENAMES = [
    (r"^queue_ptr(_img|_txt)?$", "queue_pointer"),
    (r"^(text_encoder(_m)?)\.(?=embeddings|encoder)", r"\1.bert."),  # fine-tuned files have a BERT without MLM head
    (r"^(visual_encoder|text_encoder|vision_proj|text_proj)_m\.", r"momentum_encoder.\1."),
    (r"^(visual_encoder|text_encoder\.bert|vision_proj|text_proj|itm_head)\.", r"albef.\1."),
    (r"^temp$", "albef.temperature"),
    (r"\bvisual_encoder\b", "vision_model"),
    (r"\bvision_proj\b", "vision_projection"),
    (r"\btext_proj\b", "text_projection"),
    (r"vision_model\.(cls_token|pos_embed|patch_embed\.proj)\b", r"vision_model.embeddings.\1"),
    (r"\bpos_embed\b", "position_embeddings"),
    (r"\bpatch_embed\.proj\b", "patch_embedding"),
    (r"\bblocks\.(\d+)\.norm1\b", r"layers.\1.layernorm_before"),
    (r"\bblocks\.(\d+)\.norm2\b", r"layers.\1.layernorm_after"),
    (r"\bblocks\.(\d+)\.attn\.proj\b", r"layers.\1.attention.projection"),
    (r"\bblocks\.(\d+)\.attn\.qkv\b", r"layers.\1.attention.qkv"),
    (r"\bblocks\.(\d+)\.mlp\.fc1\b", r"layers.\1.intermediate"),
    (r"\bblocks\.(\d+)\.mlp\.fc2\b", r"layers.\1.output"),
    (r"vision_model\.norm\b", "vision_model.layernorm"),
    (r"\btext_encoder\.cls\.predictions\.(transform\.)?", "mlm_head."),
    (r"mlm_head\.bias$", "mlm_head.decoder.bias"),
    (r"\btext_encoder\.bert\b", "text_model"),
    (r"\bencoder\.layer\.", "layers."),
    (r"\bcrossattention\.(self|output)\b", "cross_attention"),
    (r"(?<!cross_)\battention\.(self|output)\.", "self_attention."),
    (r"\.(intermediate|output)\.dense\.", r".\1."),
    (r"(layers\.\d+)\.output\.LayerNorm\b", r"\1.layernorm"),
    (r"\bLayerNorm\b", "layernorm"),
]
# What comes before the first component that an original name can begin with, such as "module._orig_mod.".
PREFIX = re.compile(
    r"(.*?\.)?(?=(temp|idx_queue|queue_ptr\w*|(image|text)_queue|itm_head|((visual|text)_encoder|(vision|text)_proj)(_m)?)"
    r"(\.|$))"
)
# Of a part that was compiled, distributed or checkpointed on its own.
WRAPPER = re.compile(r"(?<=\.)(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
QUEUES = "image_queue", "text_queue"
LAYOUTS = "amc", "albef", "retrieval"
# What original files hold and the models here do not.
DROPPED = {
    r"\.embeddings\.position_ids$": "only counts 0, 1, 2, …: so does the model itself",
    r"^n_averaged$": "how many models were averaged",
    r"^idx_queue$": "image numbers of the data set it was fine-tuned on; new ones are filled in by training",
}


class ConversionError(ValueError):
    """A file or folder cannot be converted. The message names what is wrong with it and what to do."""


def rename(name: str) -> str:
    """The name of an original parameter or buffer in `AlbefForPreTraining`."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def plain_names(names: list[str]) -> dict[str, str]:
    """The name that each has without what DDP, FSDP, `torch.compile`, Lightning or weight averaging put before it."""
    if "albef.temperature" in names or "temperature" in names:
        raise ConversionError(
            "its names are not the original's, but of a converted model: pass --to_original its folder."
        )
    prefixes = Counter(found[1] or "" for name in names if (found := PREFIX.match(name)))
    prefix = max(prefixes, key=prefixes.get, default="")
    odd = [name for name in names if not name.startswith(prefix) and name != "n_averaged"]
    if not prefix:
        odd = [name for name in names if (found := PREFIX.match(name)) and found[1]]
    if odd:
        others = f"begin with {prefix[:80]!r}" if prefix else "have no prefix"
        raise ConversionError(f"its names {others}, but not {listing(odd)}: save the model's own state dictionary.")
    return {name: WRAPPER.sub("", name.removeprefix(prefix)) for name in names}


def convert_state_dict(original: Weights) -> Weights:
    """The state dictionary of an original checkpoint → one of `AlbefForPreTraining`, without its id queues.

    Prefixes of wrappers, such as "module.", go. Queues become (queue_size, projection_dim). Of what the
    original keeps twice, such as AMC's two queue pointers, one copy is left.

    Raises:
        ConversionError: two copies differ, or only some names have a prefix.
    """
    return sort_out(original)[0]


def sort_out(original: Weights) -> tuple[Weights, dict[str, str], dict[str, str]]:
    """The converted state dictionary, the original name of each of its tensors, and why each other one was dropped."""
    converted, origin, dropped = {}, {}, {}
    plain = plain_names(list(original))
    for name, tensor in original.items():
        reason = next((reason for pattern, reason in DROPPED.items() if re.search(pattern, plain[name])), None)
        new_name = rename(plain[name])
        if reason is None and new_name in converted:
            check_copy(name, tensor, origin[new_name], converted[new_name])
            reason = f"equal to {origin[new_name]}"
        if reason is not None:
            dropped[name] = reason
            continue
        converted[new_name] = tensor.transpose(0, -1).contiguous() if new_name in QUEUES else tensor
        origin[new_name] = name
    return converted, origin, dropped


def check_copy(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if tensor.shape != other.shape or tensor.dtype != other.dtype or not torch.equal(tensor, other):
        raise ConversionError(f"{name} and {other_name} should be equal copies, and differ: is the file damaged?")


def original_names(config: AlbefConfig, layout: str) -> list[str]:
    """All names of an original state dictionary, in its order.

    Args:
        layout: "amc" (pre-training, with two queue pointers), "albef" (pre-training, with one), or "retrieval" (ALBEF
            fine-tuned for retrieval or grounding: no MLM head, image numbers in a queue).
    """

    def with_bias(*names: str) -> list[str]:
        return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]

    vision = ["cls_token", "pos_embed", *with_bias("patch_embed.proj")]
    for index in range(config.vision_config.num_hidden_layers):
        block = with_bias("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        vision += [f"blocks.{index}.{name}" for name in block]
    vision += with_bias("norm")
    tables = ["position_ids", *(f"{table}_embeddings.weight" for table in ("word", "position", "token_type"))]
    text = [f"embeddings.{name}" for name in (*tables, *with_bias("LayerNorm"))]
    attention = with_bias("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
    for index in range(config.text_config.num_hidden_layers):
        blocks = ["attention"] if index < config.text_config.fusion_layer else ["attention", "crossattention"]
        layer = [f"{block}.{name}" for block in blocks for name in attention]
        layer += with_bias("intermediate.dense", "output.dense", "output.LayerNorm")
        text += [f"encoder.layer.{index}.{name}" for name in layer]
    if layout != "retrieval":
        head = ["bias", *with_bias("transform.dense", "transform.LayerNorm", "decoder")]
        text = [f"bert.{name}" for name in text] + [f"cls.predictions.{name}" for name in head]
    pointers = ["queue_ptr_img", "queue_ptr_txt"] if layout == "amc" else ["queue_ptr"]
    names = ["temp", *QUEUES, *(["idx_queue"] if layout == "retrieval" else []), *pointers]
    names += [f"visual_encoder.{name}" for name in vision] + [f"text_encoder.{name}" for name in text]
    names += with_bias("vision_proj", "text_proj", "itm_head")
    names += [f"visual_encoder_m.{name}" for name in vision] + with_bias("vision_proj_m")
    return names + [f"text_encoder_m.{name}" for name in text] + with_bias("text_proj_m")


def listing(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def infer_config(
    weights: Weights, vision_heads: int | None, text_heads: int | None, grounding_layer: int | None
) -> AlbefConfig:
    """The configuration that these converted weights have; what they cannot tell is ALBEF base's unless it is given."""
    shape = partial(shape_of, weights)
    shape("temp", 0)
    temperature = weights["albef.temperature"]
    if not temperature.is_floating_point():
        raise ConversionError(f"temp is of {temperature.dtype}, not of floating point numbers.")
    vision_width, channels, patch_size, _ = shape("visual_encoder.patch_embed.proj.weight", 4)
    num_patches = shape("visual_encoder.pos_embed", 3)[1] - 1
    if num_patches < 1 or math.isqrt(num_patches) ** 2 != num_patches:
        raise ConversionError(f"visual_encoder.pos_embed has {num_patches} patch positions: not a square grid.")
    vocab_size, text_width = shape("text_encoder.bert.embeddings.word_embeddings.weight", 2)
    fusion_layers = layer_numbers(weights, r"albef\.text_model\.layers\.(\d{1,9})\.cross_attention\.")
    if not fusion_layers:
        raise ConversionError("no ALBEF or AMC checkpoint: no layer of text_encoder has a crossattention.")
    last_layer = max(layer_numbers(weights, r"albef\.text_model\.layers\.(\d{1,9})\."))
    grounding_layer = 8 if grounding_layer is None else grounding_layer
    if not fusion_layers[0] <= grounding_layer <= last_layer:
        raise ConversionError(
            f"layer {grounding_layer} has no cross-attention to explain: choose one of {fusion_layers[0]}.."
            f"{last_layer} with --grounding_layer."
        )
    fields = dict(
        vision_config=dict(
            hidden_size=vision_width,
            intermediate_size=shape("visual_encoder.blocks.0.mlp.fc1.weight", 2)[0],
            num_hidden_layers=1 + max(layer_numbers(weights, r"albef\.vision_model\.layers\.(\d{1,9})\.")),
            num_attention_heads=num_heads("--vision_heads", vision_heads, vision_width),
            num_channels=channels,
            image_size=math.isqrt(num_patches) * patch_size,
            patch_size=patch_size,
        ),
        text_config=dict(
            vocab_size=vocab_size,
            hidden_size=text_width,
            intermediate_size=shape("text_encoder.bert.encoder.layer.0.intermediate.dense.weight", 2)[0],
            num_hidden_layers=1 + last_layer,
            num_attention_heads=num_heads("--text_heads", text_heads, text_width),
            fusion_layer=fusion_layers[0],
            max_position_embeddings=shape("text_encoder.bert.embeddings.position_embeddings.weight", 2)[0],
            type_vocab_size=shape("text_encoder.bert.embeddings.token_type_embeddings.weight", 2)[0],
        ),
        projection_dim=shape("vision_proj.weight", 2)[0],
        temperature=round(temperature.item(), 6),
        grounding_layer=grounding_layer,
        queue_size=shape("image_queue", 2)[0] if "image_queue" in weights else AlbefConfig.queue_size,
    )
    try:
        return AlbefConfig(**fields)
    except ValueError as error:  # of a size of 0, say
        raise ConversionError(f"its tensors are of no model: {error}") from error


def shape_of(weights: Weights, name: str, ndim: int) -> torch.Size:
    """Of the converted tensor that is called `name` in the original."""
    if (tensor := weights.get(rename(name))) is None:
        raise ConversionError(f"no ALBEF or AMC checkpoint: it has no {name}.")
    if tensor.ndim != ndim:
        raise ConversionError(f"{name} has the shape {tuple(tensor.shape)}: expected {ndim} axes.")
    return tensor.shape


def layer_numbers(weights: Weights, pattern: str) -> list[int]:
    numbers = sorted({int(found[1]) for name in weights if (found := re.match(pattern, name))})
    if numbers and numbers[-1] >= len(weights):
        raise ConversionError(f"it counts {numbers[-1] + 1:,} layers, and has {len(weights)} tensors in all.")
    return numbers


def num_heads(option: str, given: int | None, width: int) -> int:
    if width % (given or 12):
        raise ConversionError(f"width {width} is no multiple of {given or 12} heads: say how many with {option}.")
    return given or 12
