"""Attention of ALBEF's encoders: eager where it is explained, grouped by image on a CPU; activation checkpointing."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    starts_graph: bool = False,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention that can be differentiated twice; the probabilities returned are before dropout. `attention_mask` is of
    bool, True where to look, or added to scores; `starts_graph`: nothing below the probabilities has a gradient."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not starts_graph):
        scores = query @ key.transpose(-2, -1) * scaling
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        elif attention_mask is not None:
            scores = scores + attention_mask
        probabilities = scores.softmax(dim=-1)
    if starts_graph:
        probabilities.requires_grad_()
    output = dropped(probabilities, dropout, module.training) @ value
    return output.transpose(1, 2), probabilities


leaf_attention_forward = partial(eager_attention_forward, starts_graph=True)


def dropped(states: Tensor, p: float, training: bool) -> Tensor:
    """Dropout, `p` to the nearest 1/65536 on a CPU: four elements share a random number, at a fifth of the time."""
    if not training or p in (0, 1) or states.device.type != "cpu":
        return F.dropout(states, p, training)
    num_dropped = round(p * 2**16)
    random = torch.empty(-(-states.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    is_kept = random[: states.numel()].view(states.shape) >= num_dropped - 2**15
    return states * is_kept.to(states.dtype).mul_(2**16 / (2**16 - num_dropped))


def explained_interface(layer: int, explained_layer: int | None, create_graph: bool) -> Callable | None:
    """The attention that layer `layer` runs when `explained_layer` is explained; None: the configured one.

    SDPA and flash attention hand out no probabilities and have no second derivative: the explained layer is always
    eager, the layers above it only if the heatmap is to be differentiated, the layers below never."""
    if explained_layer is None or layer < explained_layer:
        return None
    if create_graph:
        return eager_attention_forward
    return leaf_attention_forward if layer == explained_layer else None


def additive_mask(attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(batch_size, length) of 1 and 0 → (batch_size, 1, 1, length) to add to attention scores."""
    if attention_mask is None:
        return None
    return (1 - attention_mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min


class ImageGroups(NamedTuple):
    """Phrases in places by image: as many places for every image as the one with the most phrases has.

    - `phrases` (num_images * num_places,): the phrase in each place; places left over repeat phrase 0, unread.
    - `places` (num_phrases,): where each phrase is among them.
    """

    phrases: Tensor
    places: Tensor
    num_images: int

    def join(self, query: Tensor) -> Tensor:
        """(num_phrases, num_heads, num_tokens, size) → (num_images, num_heads, num_places * num_tokens, size)"""
        placed = query.index_select(0, self.phrases).unflatten(0, (self.num_images, -1))
        return placed.transpose(1, 2).flatten(2, 3)

    def part(self, context: Tensor, probabilities: Tensor | None, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Context (num_images, num_places * num_tokens, num_heads, size) and probabilities (num_images, num_heads,
        num_places * num_tokens, num_keys) or None → the same of every phrase, of num_tokens rows."""
        context = context.unflatten(1, (-1, num_tokens)).flatten(0, 1).index_select(0, self.places)
        if probabilities is not None:
            probabilities = probabilities.unflatten(2, (-1, num_tokens)).transpose(1, 2).flatten(0, 1)
            probabilities = probabilities.index_select(0, self.places)
        return context, probabilities


def group_by_image(image_index: Tensor | None, num_images: int) -> ImageGroups | None:
    """Groups phrases by image on a CPU, where copying an image's keys takes longer than their use.

    A GPU copies in no time, but would have to be waited for to learn how many phrases an image has; nor is that known
    while a model is exported or compiled."""
    if image_index is None or image_index.device.type != "cpu" or torch.compiler.is_compiling() or get_proxy_mode():
        return None
    image_index = image_index.long()
    order = image_index.argsort(stable=True)
    counts = image_index.bincount(minlength=num_images)
    num_places = int(counts.max())
    in_group = torch.arange(len(image_index)) - (counts.cumsum(0) - counts)[image_index[order]]
    places = torch.empty_like(image_index)
    places[order] = image_index[order] * num_places + in_group
    phrases = torch.zeros(num_images * num_places, dtype=torch.long)
    phrases[places] = torch.arange(len(image_index))
    return ImageGroups(phrases, places, num_images)


def checkpointed(function: Callable, *inputs: Tensor | None, training: bool, is_random: bool = False) -> Any:
    """`function(*inputs)` by activation checkpointing: in training only `inputs` are kept for the backward pass.

    A compiler decides for itself what to keep. `is_random`: `function` has dropout, which must drop the same again."""
    if not training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=is_random)
