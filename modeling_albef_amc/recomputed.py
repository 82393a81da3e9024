"""Saves memory in training: cheap intermediate results are computed again in the backward pass, not kept for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable, *inputs: torch.Tensor | None, training: bool, is_random: bool = False) -> Any:
    """`function(*inputs)`; in training only `inputs` are kept for the backward pass, and all else is computed again.

    The recomputation stops as soon as it has what was not kept: of a function that ends in a linear layer all but that
    last product. A compiler decides for itself what to keep.

    Args:
        is_random: `function` has dropout, which must drop the same again.
    """
    if not training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=is_random)
