"""Names and layouts of the original ALBEF and AMC checkpoints, turned into those of `AlbefForPreTraining`."""

import re

import torch

# Applied in order, each to the outcome of the one before.
RENAMES = [
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
# Fixed tables that the model builds itself.
DROPPED = re.compile(r"position_ids$|^idx_queue$|^queue_ptr_txt$")


def convert_state_dict(original: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dictionary of an original checkpoint → one of `AlbefForPreTraining`.

    Queues are transposed to (queue_size, projection_dim); the two equal queue pointers of AMC become one.
    """
    converted = {}
    for name, tensor in original.items():
        if DROPPED.search(name):
            continue
        if name in ("image_queue", "text_queue"):
            tensor = tensor.T.contiguous()
        converted[rename(name)] = tensor
    return converted


def rename(name: str) -> str:
    """The name of an original parameter or buffer in `AlbefForPreTraining`."""
    if name in ("queue_ptr", "queue_ptr_img"):
        return "queue_pointer"
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
