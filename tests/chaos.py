"""Long trials of what must not break, by `make chaos`; the short ones are tests.

python -m tests.chaos kills --trials 50        runs are killed at random moments, and go on
python -m tests.chaos full_disk --trials 8     a disk is full while a checkpoint is saved; as root, it mounts small ones
python -m tests.chaos long_run --trials 3000   memory and open files of a run of so many steps; or long_run_streamed
python -m tests.chaos ground_by_ray --trials 9 drivers, actors and raylets of ground-dataset are killed, and go on
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil

from tests.helpers.evaluation import (
    files,
    ground_arguments,
    records_with_everything,
    run_ground,
    save_checkpoint,
    write_files,
)  # fmt: skip
from tests.helpers.runs import everything, finish, kill, prepare, start
from trainer.checkpoints import all_checkpoints, checkpoints

STEPS, SAVE_STEPS = 40, 3
SETTINGS = {"max_steps": STEPS, "save_steps": SAVE_STEPS}
STREAMED = {"streaming": "true", "shuffle_buffer": 5}
KILLED = {  # processes, and settings
    "one process": (1, {"dataloader_num_workers": 1}),
    "accumulation, bfloat16": (1, {"gradient_accumulation_steps": 2, "bf16": "true", "phrases_per_image": 2}),
    "streamed, two workers": (1, STREAMED | {"dataloader_num_workers": 2}),
    "two processes": (2, {}),
    "two processes, streamed": (2, STREAMED | {"dataloader_num_workers": 1}),
}
MOST_MIB = 5.0  # a thousand steps; batches that are kept would be ten times as much


def kills(folder: Path, trials: int) -> bool:
    """Whether each kind of run ends as an undisturbed one, and loses no more than what was not saved."""
    rng, good = random.Random(0), True
    for number, (kind, (processes, settings)) in enumerate(KILLED.items()):
        settings = SETTINGS | settings | {"save_total_limit": 2}
        run, last = f"run-{number}", f"checkpoint-{STEPS}"
        begin = time.monotonic()
        finish(folder, f"{run}-straight", processes, **settings)
        length, expected = time.monotonic() - begin, everything(folder / f"{run}-straight" / last)
        problems, killed, while_saving, most_lost = set(), 0, 0, 0
        of_kind = len(range(number, trials, len(KILLED)))
        while killed < of_kind:
            steps = disturb(folder, run, processes, settings, rng.uniform(0, length))
            killed += steps is not None
            if steps is not None:
                saved = last_step(folder / run)
                most_lost = max(most_lost, steps - saved)
                while_saving += len(all_checkpoints(folder / run)) > len(checkpoints(folder / run))
                whole = (len(everything(path)) == len(expected) for path in checkpoints(folder / run))
                problems |= set() if all(whole) else {"half a checkpoint counted"}
            elif everything(folder / run / last) != expected:
                problems.add("a resumed run ended otherwise")
            else:
                run = f"{run}+"
        good &= not problems and most_lost <= SAVE_STEPS
        found = f"at most {most_lost} steps lost of {SAVE_STEPS}; {while_saving} kills while saving"
        print(
            f"| kill -9 at a random moment, then resume: {kind} | {killed} | {'; '.join(problems) or found} |",
            flush=True,
        )
    return good


def disturb(folder: Path, run: str, processes: int, settings: dict, seconds: float) -> int | None:
    """Lets a run go on for so long; the steps that it had trained when it was killed, None if it came to its end."""
    log, begun = folder / f"{run}.log", last_step(folder / run)
    log.write_text("")
    process = start(folder, run, processes, **settings, resume_from_checkpoint="auto")
    try:
        if process.wait(timeout=seconds):
            raise RuntimeError(f"a resumed run failed: {log.read_text()[-1000:]}")
        return None
    except subprocess.TimeoutExpired:
        kill(process)
        return begun + log.read_text().count("{'loss'")


def last_step(run: Path) -> int:
    found = checkpoints(run)
    return int(found[-1].name.rpartition("-")[2]) if found else 0


def full_disk(folder: Path, trials: int) -> bool:
    """Whether the checkpoint before is complete and named, and the run goes on when there is room again."""
    finish(folder, "straight", **SETTINGS)
    whole = folder / "straight" / f"checkpoint-{STEPS}"
    size, problems = sum(file.stat().st_size for file in whole.iterdir()), set()
    for trial in range(trials):
        # Room for one checkpoint and a part of the next, or for several: it is full at another file every time.
        disk, log = folder / f"disk-{trial}", folder / f"disk-{trial}.log"
        disk.mkdir()
        room = int(size * (1.1 + 6 * trial / trials))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)], check=True)
        try:
            if start(folder, disk.name, **SETTINGS).wait() == 0:
                problems.add("a run ended well on a full disk")
            found, said = checkpoints(disk), log.read_text()
            if "could not be saved" not in said or (found and f"{found[-1]} is complete" not in said):
                problems.add(f"the error does not say what is complete: {said[-300:]}")
            subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
            finish(folder, disk.name, **SETTINGS, resume_from_checkpoint="auto")
            if everything(disk / whole.name) != everything(whole):
                problems.add("a run that went on ended otherwise")
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    found = "; ".join(problems) or "the checkpoint before is complete and named; with room again, the end is bit-equal"
    print(f"| the disk is full while a checkpoint is saved | {trials} | {found} |")
    return not problems


def long_run(folder: Path, steps: int, **more) -> bool:
    """Whether memory and open files of a run stay what they are."""
    settings = {"eval_strategy": "steps", "eval_steps": 100, "save_steps": 100, "save_total_limit": 2}
    run, samples = start(folder, "long", max_steps=steps, **settings, **more), []
    while run.poll() is None:
        try:
            pages = int(Path(f"/proc/{run.pid}/statm").read_text().split()[1])
            files = len(list(Path(f"/proc/{run.pid}/fd").iterdir()))
            samples.append((pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files))
        except FileNotFoundError:  # it has just ended
            break
        time.sleep(1)
    settled = np.array(samples)[len(samples) // 3 :]  # caches and workers are there by then
    at_step = np.linspace(1 / 3, 1, len(settled)) * steps
    slope = np.polyfit(at_step, settled[:, 0], deg=1)[0] * 1000
    found = f"{slope:+.2f} MiB a thousand steps, {settled[:, 1].min():.0f} to {settled[:, 1].max():.0f} open files"
    print(f"| {steps:,} steps with evaluation and saving every 100 | 1 | {found} |")
    files = settled[:, 1]
    return run.wait() == 0 and slope <= MOST_MIB and np.median(files[-10:]) <= np.median(files[:10])


def long_run_streamed(folder: Path, steps: int) -> bool:
    return long_run(folder, steps, **STREAMED)


def ground_by_ray(folder: Path, trials: int) -> bool:
    """Whether runs that are killed at random moments end with the rows of the plain loop, each file written once."""
    rng, problems = random.Random(0), set()
    checkpoint, data = save_checkpoint(folder / "tiny"), folder / "data"
    write_files(data, "test", records_with_everything(6000))
    run_ground(checkpoint, data, folder / "plain")
    for trial, (part, mark) in zip(range(trials), cycle(PARTS.items())):
        output = folder / f"trial-{trial}"
        words = ["ground-dataset", *ground_arguments(checkpoint, data, output, "--num_actors", "2"), "--quiet"]
        command = [sys.executable, "-m", "trainer.commands", *words]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        enough = rng.randint(1, 900)  # of 1000 files
        while len(list(output.glob("data/*"))) < enough:
            time.sleep(0.01)
        lines = {each: " ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])}
        driver.kill() if part == "driver" else rng.choice([each for each in lines if mark in lines[each]]).kill()
        driver.wait()
        made = {path.name: path.stat().st_mtime_ns for path in output.glob("data/*")}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        now = {path.name: path.stat().st_mtime_ns for path in output.glob("data/*")}
        problems |= set() if made.items() <= now.items() else {f"{part}: a finished file was written again"}
        problems |= set() if files(output) == files(folder / "plain") else {f"{part}: other rows"}
    found = "; ".join(sorted(problems)) or "the rows of the plain loop, no file written twice"
    print(f"| ground-dataset by Ray: driver, actor or raylet killed, then started again | {trials} | {found} |")
    return not problems


# What the command lines of Ray's processes have in them.
PARTS = {"driver": "", "actor": "ray::MapWorker", "raylet": "raylet/raylet"}
TRIALS = {trial.__name__: trial for trial in (kills, full_disk, long_run, long_run_streamed, ground_by_ray)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=TRIALS)
    parser.add_argument("--trials", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        sys.exit(not TRIALS[options.trial](Path(name), options.trials))
