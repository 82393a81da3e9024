"""Peak memory of training steps, in a process of its own: what `benchmarks.bench` starts for each variant.

    python -m benchmarks.training_memory ours

Prints JSON: bytes at the peak of two steps (the second one has the optimizer's state), and before the first. On a CPU
it is the largest resident set of the whole process, libraries included; on a GPU what torch had allocated.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.workloads import BaselineStep, TrainingStep, pretraining_model, scale_of, training_batch

VARIANTS = "baseline", "ours", "checkpointing", "bf16"


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":
        # Not ru_maxrss: a process begins with the peak of the one that started it.
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(variant: str, device: torch.device, quick: bool) -> dict[str, int]:
    """`{"peak", "before"}` of this process: call it once a process."""
    scale = scale_of(device, quick)
    model, batch = pretraining_model(scale, device), training_batch(scale, device)
    if variant == "checkpointing":
        model.gradient_checkpointing_enable()
    step = BaselineStep(model, batch) if variant == "baseline" else TrainingStep(model, batch, bf16=variant == "bf16")
    before = peak_bytes(device)
    for _ in range(2):
        step()
    return {"peak": peak_bytes(device), "before": before}


def measure_apart(variant: str, device: torch.device, quick: bool) -> dict[str, int]:
    """The same in a fresh process, with as many threads as this one.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.training_memory", variant, "--device", device.type]
    command += ["--threads", str(torch.get_num_threads()), *(["--quick"] if quick else [])]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr}")
    return json.loads(process.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(measure(options.variant, torch.device(options.device), options.quick)))


if __name__ == "__main__":
    main()
