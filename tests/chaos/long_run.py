"""A long run with evaluation and saving: does its memory, or its number of open files, grow?

python -m tests.chaos.long_run --steps 3000
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.tiny_data import tiny_albef, tiny_processor, tiny_records, write_folder

ROOT = Path(__file__).parents[2]
MOST_MIB = 5.0  # a thousand steps; batches that are kept would be ten times as much


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--streaming", action="store_true", help="train on a streamed data set")
    options = parser.parse_args(arguments)
    steps = options.steps
    with tempfile.TemporaryDirectory() as folder:
        samples = watch(Path(folder), steps, options.streaming)
    settled = samples[len(samples) // 3 :]  # caches and workers are there by then
    at_step = np.linspace(len(samples) // 3 / len(samples), 1, len(settled)) * steps
    slope = np.polyfit(at_step, settled[:, 0], deg=1)[0] * 1000
    fewest, most = settled[:, 1].min(), settled[:, 1].max()
    command = f"python -m tests.chaos.long_run --steps {steps}" + " --streaming" * options.streaming
    memory = f"resident memory {settled[0, 0]:.0f} → {settled[-1, 0]:.0f} MiB, {slope:+.2f} MiB a thousand steps"
    files = f"open files {fewest:.0f} to {most:.0f}"
    print(f"| {steps:,} steps with evaluation and saving every 100 | `{command}` | 1 | {memory}; {files} |")
    sys.exit(bool(slope > MOST_MIB or np.median(settled[-10:, 1]) > np.median(settled[:10, 1])))


def watch(folder: Path, steps: int, streaming: bool) -> np.ndarray:
    """(num_samples, 2): resident memory in MiB and open files of a run, once a second."""
    data = write_folder(folder / "data", rows_per_group=4, train=tiny_records(64), validation=tiny_records(12))
    tiny_albef().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    settings = {
        "model": folder / "model",
        "dataset": data,
        "output_dir": folder / "run",
        "max_steps": steps,
        "streaming": str(streaming).lower(),
        "per_device_train_batch_size": 4,
        "mask_size": 16,
        "eval_strategy": "steps",
        "eval_steps": 100,
        "save_steps": 100,
        "save_total_limit": 2,
        "logging_steps": 20,
        "use_cpu": "true",
        "disable_tqdm": "true",
    }
    options = (text for name, value in settings.items() for text in (f"--{name}", str(value)))
    command = [sys.executable, "train.py", *options]
    samples = []
    with open(folder / "log.txt", "w") as log:
        run = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        while run.poll() is None:
            status = Path(f"/proc/{run.pid}")
            try:
                pages = int((status / "statm").read_text().split()[1])
                samples.append((pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(list((status / "fd").iterdir()))))
            except FileNotFoundError:  # it has just ended
                break
            time.sleep(1)
    if run.wait():
        sys.exit(f"The run failed: {(folder / 'log.txt').read_text()[-2000:]}")
    return np.array(samples)


if __name__ == "__main__":
    main()
