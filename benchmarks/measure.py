"""How everything here is measured: times in turns, memory in a process of its own, work by torch's count of FLOPs."""

import inspect
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


def median_seconds(repeats: int, functions: dict[str, Callable]) -> dict[str, float]:
    """By name, of `repeats` calls of each, in turn, so that other load meets all alike; the first is not counted."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None

    def seconds_of(function: Callable) -> float:
        wait()
        start = time.perf_counter()
        function()
        wait()
        return time.perf_counter() - start

    runs = [{name: seconds_of(function) for name, function in functions.items()} for _ in range(repeats + 1)]
    return medians(runs[1:])


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


class CountFlops(TorchDispatchMode):
    """Those of matrix products, at 2 a multiply-add, by torch's own formulas; it has none for SDPA on a CPU.

    Not `FlopCounterMode`: its hooks break `torch.autograd.grad`.
    """

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function._overloadpacket in flop_registry:
            self.total += flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def gigaflops(function: Callable) -> float:
    with CountFlops() as counted:
        function()
    return counted.total / 1e9


def matrix_products(device: torch.device, dtype: torch.dtype, size: int, count: int = 8) -> tuple[Callable, float]:
    """`count` products of two square matrices to time among other things, and their GFLOP together."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: [left @ right for _ in range(count)], count * 2 * size**3 / 1e9


def peak_bytes(device: torch.device | None = None) -> int:
    """The largest resident set of this process, libraries and mapped files included; on a GPU what torch allocated."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        # Not ru_maxrss: a process begins with the peak of the one that started it.
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_a_process(function: Callable, *arguments: Any, environment: dict[str, str] | None = None) -> Any:
    """What a function of a module returns in a fresh process with as many threads; all of it can be written as JSON."""
    module = ".".join(Path(inspect.getfile(function)).relative_to(ROOT).with_suffix("").parts)  # also of a script
    call = f"{module}.{function.__name__}(*json.loads(sys.argv[1]))"
    code = f"import json, sys, torch, {module}; torch.set_num_threads({torch.get_num_threads()})"
    command = [sys.executable, "-c", f"{code}; print(); print(json.dumps({call}))", json.dumps(arguments)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if process.returncode:
        raise RuntimeError(f"{call} failed:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def report(title: str, rows: list[Row], output: Path | None = None) -> None:
    """Prints rows as a Markdown table and, with `output`, puts them under their title into that JSON file."""

    def cell(value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(map(cell, value))
        return "" if value is None else f"{value:,.3g}" if isinstance(value, float) else str(value)

    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(cell, row.values()) for row in rows)]
    print(f"\n{title}\n", *(f"| {' | '.join(line)} |" for line in lines), sep="\n", flush=True)
    if output is not None:
        results = json.loads(output.read_text()) if output.exists() else {}
        output.write_text(json.dumps(results | {title: rows}, indent=2) + "\n")
