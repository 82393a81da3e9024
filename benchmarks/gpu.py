"""What has to be measured on a GPU, in one command: speed against the baseline and the chip, AMC's double backward.

    python -m benchmarks.gpu

Prints the tables of `benchmarks.bench` for evaluation, the training step (256 pixels, batches of 64, float32 and
bfloat16) and its peak memory, and writes them to `results_gpu.json`; the profile of a bfloat16 step, and of the
backward pass of AMC's losses alone, goes to `profile_gpu.txt`. Without a CUDA device it says so and fails.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import bench
from benchmarks.timing import synchronize
from benchmarks.workloads import TrainingStep, pretraining_model, scale_of, total_loss, training_batch

PARTS = ["evaluation", "training", "memory"]


def profiles(device: torch.device, quick: bool = False) -> str:
    """Tables of the operators of a training step in bfloat16, and of the backward pass of AMC's two losses alone.

    The latter runs through the gradient that makes the heatmap: it is the double backward, and what it reaches below.
    """
    scale = scale_of(device, quick)
    step = TrainingStep(pretraining_model(scale, device), training_batch(scale, device), bf16=True)
    for _ in range(2):
        step()
    losses = step.losses(step.momentum())
    amc = total_loss({name: loss for name, loss in losses.items() if name.startswith("loss_amc")})
    return f"A whole step\n{profile_of(step, device)}\n\nBackward of AMC alone\n{profile_of(amc.backward, device)}\n"


def profile_of(function: Callable, device: torch.device) -> str:
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as recorded:
        function()
        synchronize()
    order = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=order, row_limit=40)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", default="10", help="runs that a median is of (default: 10)")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where both files are written")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here: nothing was measured.")
    output = options.folder / "results_gpu.json"
    bench.main(["--device", "cuda", "--repeats", options.repeats, "--only", *PARTS, "--output", str(output)])
    file = options.folder / "profile_gpu.txt"
    file.write_text(profiles(torch.device("cuda")))
    print(f"{file} written.")


if __name__ == "__main__":
    main()
