"""Kills runs at random moments, again and again, and lets them go on: the end must be that of an undisturbed run.

python -m tests.chaos.kills --trials 50
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.runs import everything, kill, prepare, start
from trainer.checkpoints import UNFINISHED, checkpoints

STEPS, SAVE_STEPS = 40, 3
SETTINGS = {"max_steps": STEPS, "save_steps": SAVE_STEPS, "save_total_limit": 2}
# What is run: processes, and settings.
RUNS = {
    "one process": (1, {"dataloader_num_workers": 1}),
    "accumulation, bfloat16": (1, {"gradient_accumulation_steps": 2, "bf16": "true", "phrases_per_image": 2}),
    "streamed, two workers": (1, {"streaming": "true", "shuffle_buffer": 5, "dataloader_num_workers": 2}),
    "two processes": (2, {}),
    "two processes, streamed": (2, {"streaming": "true", "shuffle_buffer": 5, "dataloader_num_workers": 1}),
}


@dataclass
class Outcome:
    """Of the kills of one kind of run."""

    kills: int = 0
    while_saving: int = 0
    ended: int = 0
    most_lost: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "; ".join(dict.fromkeys(self.problems)) or (
            f"at most {self.most_lost} steps at a time, of {SAVE_STEPS} between checkpoints; no half checkpoint "
            f"({self.while_saving} kills while saving); {self.ended} runs ended, bit-equal to an undisturbed one"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50, help="kills, of all kinds of runs together")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    rng, failed = random.Random(options.seed), False
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for number, (kind, (processes, settings)) in enumerate(RUNS.items()):
            kills = len(range(number, options.trials, len(RUNS)))
            outcome = disturb(Path(name), f"run-{number}", processes, SETTINGS | settings, kills, rng)
            failed |= bool(outcome.problems) or outcome.most_lost > SAVE_STEPS
            command = f"python -m tests.chaos.kills --trials {options.trials}"
            print(
                f"| kill -9 at a random moment, then resume: {kind} | `{command}` | {outcome.kills} | {outcome} |",
                flush=True,
            )
    sys.exit(failed)


def disturb(folder: Path, name: str, processes: int, settings: dict, kills: int, rng: random.Random) -> Outcome:
    """Kills runs of one kind, until that many kills are done and the last run has come to its end."""
    outcome, last = Outcome(), f"checkpoint-{STEPS}"
    straight = start(folder, f"{name}-straight", processes, **settings)
    wait_for_a_step(straight, folder / f"{name}-straight.log")
    begin = time.monotonic()
    if straight.wait():
        return Outcome(problems=["a run without a kill failed"])
    length = time.monotonic() - begin
    whole = folder / f"{name}-straight" / last
    expected, files = everything(whole), {file.name for file in whole.iterdir()}
    while outcome.kills < kills:
        run = f"{name}-killed-{outcome.ended}"
        while True:
            begun, log = last_step(folder / run), folder / f"{run}.log"
            log.write_text("")
            process = start(folder, run, processes, **settings, resume_from_checkpoint="auto")
            if rng.random() < 0.9:  # else at any moment, starting included
                wait_for_a_step(process, log)
            try:
                process.wait(timeout=rng.uniform(0, length) if outcome.kills < kills else None)
                break
            except subprocess.TimeoutExpired:
                kill(process)
                outcome.kills += 1
            outcome.while_saving += any((folder / run / UNFINISHED).glob("*"))
            trained = begun + log.read_text().count("{'loss'")
            outcome.most_lost = max(outcome.most_lost, trained - last_step(folder / run))
            for path in checkpoints(folder / run):
                if not files <= {file.name for file in path.iterdir()} or len(everything(path)) != len(expected):
                    outcome.problems.append(f"{path.name} is not whole")
        outcome.ended += 1
        if process.returncode:
            outcome.problems.append(f"a resumed run failed: {log.read_text()[-500:]}")
        elif everything(folder / run / last) != expected:
            outcome.problems.append("a resumed run ended otherwise")
    return outcome


def wait_for_a_step(process: subprocess.Popen, log: Path) -> None:
    """Until the first line about a step, or the end of the run."""
    while process.poll() is None and "{'loss'" not in log.read_text():
        time.sleep(0.01)


def last_step(run: Path) -> int:
    """Of the newest checkpoint of a run."""
    found = checkpoints(run)
    return int(found[-1].name.rpartition("-")[2]) if found else 0


if __name__ == "__main__":
    main()
