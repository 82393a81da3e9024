"""How everything here is timed: in turns, with the rate of plain matrix products measured among the rest."""

import statistics
import time
from collections.abc import Callable

import torch


def synchronize() -> None:
    """Waits for the GPU, where there is one at work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds_of(function: Callable) -> float:
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def median_seconds(repeats: int, *functions: Callable) -> list[float]:
    """Of `repeats` calls of each, in turn, so that other load meets all alike; the first is not counted."""
    seconds = [[seconds_of(function) for function in functions] for _ in range(repeats + 1)]
    return [statistics.median(column) for column in zip(*seconds[1:])]


def matrix_products(device: torch.device, dtype: torch.dtype, size: int, count: int = 8) -> tuple[Callable, float]:
    """`count` products of two square matrices to time among other things, and their GFLOP together."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(count):
            left @ right

    return multiply, count * 2 * size**3 / 1e9
