"""Fills the disk that checkpoints go to, makes room, and lets the run go on: the end must be as if nothing had been.

python -m tests.chaos.full_disk --trials 8        (as root: each trial mounts a small file system in memory)
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.runs import everything, finish, prepare, start
from trainer.checkpoints import checkpoints

STEPS, CHECKPOINTS = 24, 8
SETTINGS = {"max_steps": STEPS, "save_steps": STEPS // CHECKPOINTS}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=8)
    trials = parser.parse_args(arguments).trials
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        finish(folder, "straight", **SETTINGS)
        whole = folder / "straight" / f"checkpoint-{STEPS}"
        size = sum(file.stat().st_size for file in whole.iterdir())
        for trial in range(trials):
            # Room for one checkpoint and a part of the next, or for several: it is full at another file every time.
            room = int(size * (1.1 + (CHECKPOINTS - 2) * trial / trials))
            problems += fill(folder, f"disk-{trial}", room, whole)
    outcome = "; ".join(dict.fromkeys(problems)) or (
        "the steps since the checkpoint before, which is whole and named by the error; with room again, the end is "
        "bit-equal to that of an undisturbed run"
    )
    command = f"python -m tests.chaos.full_disk --trials {trials}"
    print(f"| the disk is full while a checkpoint is saved | `{command}` | {trials} | {outcome} |")
    sys.exit(bool(problems))


def fill(folder: Path, run: str, room: int, whole: Path) -> list[str]:
    """One trial; what went wrong."""
    disk, log, files = folder / run, folder / f"{run}.log", {file.name for file in whole.iterdir()}
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)], check=True)
    problems = []
    try:
        if start(folder, run, **SETTINGS).wait() == 0:
            problems.append("a run ended well on a full disk")
        found, said = checkpoints(disk), log.read_text()
        if "could not be saved" not in said or (found and f"{found[-1]} is whole" not in said):
            problems.append(f"the error does not say what is whole: {said[-300:]}")
        if not found or not all(files <= {file.name for file in path.iterdir()} for path in found):
            problems.append("there is no checkpoint that is whole, or half a one")
        subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        finish(folder, run, **SETTINGS, resume_from_checkpoint="true")
        if everything(disk / whole.name) != everything(whole):
            problems.append("a run that went on ended otherwise")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return problems


if __name__ == "__main__":
    main()
