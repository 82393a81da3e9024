"""Saves memory in training: cheap intermediate results are computed again in the backward pass, not kept for it."""

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor, training: bool) -> torch.Tensor:
    """`function(states)`, which ends in a linear layer; in training only `states` is kept for the backward pass.

    All but that last product is computed again there: the recomputation stops as soon as it has what the linear layer
    was given. A compiler decides for itself what to keep.

    Args:
        function: without randomness.
    """
    if not training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(states)
    return checkpoint(function, states, use_reentrant=False, preserve_rng_state=False)
