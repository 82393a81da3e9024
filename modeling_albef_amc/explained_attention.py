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
    """Attention written out, so that it can be differentiated twice. The probabilities returned are before dropout.

    Args:
        attention_mask: of bool, True where to look, or to add to the scores.
    """
    scores = query @ key.transpose(-2, -1) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(dim=-1)
    output = dropped(probabilities, dropout, module.training) @ value
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
    output = dropped(probabilities, dropout, module.training) @ value
    return output.transpose(1, 2), probabilities


def dropped(states: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Dropout, `p` to the nearest 1/65536 on a CPU: four elements share a random number, at a fifth of the time."""
    if not training or p in (0, 1) or states.device.type != "cpu":
        return F.dropout(states, p, training)
    num_dropped = round(p * 2**16)
    random = torch.empty(-(-states.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    is_kept = random[: states.numel()].view(states.shape) >= num_dropped - 2**15
    return states * is_kept.to(states.dtype).mul_(2**16 / (2**16 - num_dropped))


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
