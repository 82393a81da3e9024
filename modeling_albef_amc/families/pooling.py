"""Image encoders that end in a pooling head, SigLIP, SigLIP 2 and AIMv2: the head written out, images of any one size.

The head has one query, learned, which stands for the image and takes up what the patches hold.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..gradcam import at_least_float32
from .hooks import replaced_forward


class PoolingAttention(nn.Module):
    """Attention without weights, by matrix products and softmax: unlike SDPA it can be differentiated twice."""

    dropout = 0.0

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(num_images, num_heads, num_tokens, head_width) each → the same of the query, and probabilities."""
        probabilities = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)
        return probabilities @ value, probabilities


@contextmanager
def eager_pooling(vision: nn.Module) -> Iterator[nn.Module]:
    """The pooling head computes by the `PoolingAttention` that is yielded; its own way tells no probabilities."""
    attention = PoolingAttention()
    if not vision.use_head:
        yield attention
        return
    head, num_heads = vision.head, vision.config.num_attention_heads

    def pooled(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """(num_images, num_tokens, width) each"""
        of_heads = (states.unflatten(-1, (num_heads, -1)).transpose(1, 2) for states in (query, key, value))
        return attention(*of_heads)[0].transpose(1, 2).flatten(2)

    def of_siglip(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: None = None) -> tuple:
        own = head.attention
        weights, biases = own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3)
        return own.out_proj(pooled(*map(F.linear, (query, key, value), weights, biases))), None

    def of_aimv2(states: torch.Tensor) -> torch.Tensor:
        query = head.cls_token.expand(len(states), -1, -1)
        return head.output_proj(pooled(query, head.k_proj(states), head.v_proj(states))[:, 0])

    is_aimv2 = vision.config.model_type == "aimv2_vision_model"
    with replaced_forward(*((head, of_aimv2) if is_aimv2 else (head.attention, of_siglip))):
        yield attention


@contextmanager
def image_inputs(model: PreTrainedModel, pixel_values: torch.Tensor) -> Iterator[dict[str, Any]]:
    """Arguments of a dual encoder's `get_image_features`, in here, for images (num_images, 3, height, width)."""
    embeddings, model_type = model.vision_model.embeddings, model.config.model_type
    pixel_values = pixel_values.to(model.dtype)  # AIMv2 leaves that to the caller

    def of_naflex(pixel_values: torch.Tensor, spatial_shapes: None) -> torch.Tensor:
        """Images have one size here: none is padded, and they share their positions."""
        patches = embeddings.patch_embedding(patches_of(pixel_values, embeddings.patch_size))
        ids = torch.arange(embeddings.num_patches, device=patches.device)
        positions = stretched(embeddings.position_embedding(ids), patches.shape[1:3], mode="bilinear", antialias=True)
        return patches.flatten(1, 2) + positions

    table = getattr(embeddings, "position_embedding", None)  # AIMv2's, where they are learned
    # Its own, which may have adapters, inside accelerate's hooks.
    positions_of = None if table is None else getattr(table, "_old_forward", table.forward)

    def of_aimv2(ids: torch.Tensor) -> torch.Tensor:
        """transformers has the positions of one size; to others they are stretched as it stretches CLIP's."""
        grid = [length // embeddings.patch_size for length in pixel_values.shape[2:]]
        return stretched(positions_of(ids)[0], grid, mode="bicubic")[None]

    if model_type == "siglip2":
        with replaced_forward(embeddings, of_naflex):
            yield dict(pixel_values=pixel_values, pixel_attention_mask=None, spatial_shapes=None)
    elif model_type == "aimv2":
        with nullcontext() if table is None else replaced_forward(table, of_aimv2):
            yield dict(pixel_values=pixel_values)
    else:
        yield dict(pixel_values=pixel_values, interpolate_pos_encoding=True)


def patches_of(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """(num_images, 3, height, width) → (num_images, rows, columns, patch_size · patch_size · 3), as SigLIP 2 takes it.

    Raises ValueError: the size is no whole number of patches.
    """
    height, width = pixel_values.shape[2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"Images of {height} x {width} pixels are not a whole number of patches of {patch_size}.")
    patches = pixel_values.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3)


def stretched(positions: torch.Tensor, grid: Sequence[int], **how: Any) -> torch.Tensor:
    """Positions (num_positions, width) of a square → of a grid (rows, columns), row by row; `how`: of `interpolate`."""
    side = math.isqrt(len(positions))
    table = at_least_float32(positions).T.unflatten(-1, (side, side))[None]
    return F.interpolate(table, tuple(grid), align_corners=False, **how)[0].flatten(1).T.to(positions.dtype)
