"""How attention is computed in a pass that is explained: its probabilities recorded, its second derivative there."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, so that it can be differentiated twice. The probabilities returned are before dropout."""
    scores = query @ key.transpose(-2, -1) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(dim=-1)
    output = F.dropout(probabilities, p=dropout, training=module.training) @ value
    return output.transpose(1, 2), probabilities


def leaf_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, its probabilities the start of a new graph: what lies below them is never differentiated."""
    with torch.no_grad():
        _, probabilities = eager_attention_forward(module, query, key, value, attention_mask, scaling)
    probabilities.requires_grad_()
    output = F.dropout(probabilities, p=dropout, training=module.training) @ value
    return output.transpose(1, 2), probabilities


def explained_interface(layer: int, explained_layer: int, create_graph: bool, default: Callable) -> Callable:
    """The attention that layer `layer` runs when `explained_layer` is explained.

    SDPA and flash attention hand out no probabilities and have no second derivative: the explained layer is always
    written out, the layers above it only if the heatmap is to be differentiated, the layers below never.
    """
    if layer == explained_layer and not create_graph:
        return leaf_attention_forward
    if layer == explained_layer or (layer > explained_layer and create_graph):
        return eager_attention_forward
    return default


def additive_mask(attention_mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """(batch_size, length) of 1 and 0 → (batch_size, 1, 1, length) to add to attention scores."""
    if attention_mask is None:
        return None
    return (1 - attention_mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
