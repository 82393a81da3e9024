"""What moves in a step before the optimizer does: queues, random numbers, the teacher.

A checkpoint in the middle of a step has them as they were after the last whole one. Of the teacher, which is large, no
copy is kept: it is saved as it has moved for that step, and a run that goes on does not move it again.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

# Of a checkpoint's `TrainerState.stateful_callbacks`: there, if its teacher has moved for the step to come.
TEACHER_HAS_MOVED = "teacher_has_moved"


def random_state() -> tuple[Any, ...]:
    on_accelerator = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), on_accelerator


def set_random_state(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state(state[3])


def kept_buffers(model: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


@torch.no_grad()
def restore_buffers(model: nn.Module, kept: list[torch.Tensor]) -> None:
    for buffer, values in zip(model.buffers(), kept, strict=True):
        buffer.copy_(values)


@contextmanager
def teacher_stands(model: nn.Module) -> Iterator[None]:
    """In here `momentum_step` moves no teacher."""
    momentum, model.config.momentum = model.config.momentum, 1.0
    try:
        yield
    finally:
        model.config.momentum = momentum
