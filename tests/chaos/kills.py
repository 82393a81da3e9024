"""Kills runs at random moments, again and again, and lets them go on: the end must be that of an undisturbed run.

python -m tests.chaos.kills --trials 50
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.resume_runs import everything, finish, kill, prepare, start
from trainer.checkpoints import UNFINISHED, checkpoints

STEPS, SAVE_STEPS = 40, 3
SETTINGS = {"max_steps": STEPS, "save_steps": SAVE_STEPS, "save_total_limit": 2, "dataloader_num_workers": 1}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50, help="kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    problems: list[str] = []
    kills = runs = while_saving = most_lost = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        begin = time.monotonic()
        finish(folder, "straight", **SETTINGS)
        length = time.monotonic() - begin
        expected = everything(folder / "straight" / f"checkpoint-{STEPS}")
        files = {file.name for file in (folder / "straight" / f"checkpoint-{STEPS}").iterdir()}
        while kills < options.trials:
            runs += 1
            shutil.rmtree(folder / "killed", ignore_errors=True)
            done = False
            while not done and kills < options.trials:
                begun, log = last_step(folder / "killed"), folder / "killed.log"
                log.write_text("")
                process = start(folder, "killed", **SETTINGS, resume_from_checkpoint="auto")
                try:
                    process.wait(timeout=rng.uniform(0.4, 1.0) * length)
                    done = True
                    if process.returncode:
                        problems.append(f"a resumed run failed: {log.read_text()[-500:]}")
                except subprocess.TimeoutExpired:
                    kill(process)
                    kills += 1
                    while_saving += (folder / "killed" / UNFINISHED).exists()
                    trained = begun + log.read_text().count("{'loss'")
                    most_lost = max(most_lost, trained - last_step(folder / "killed"))
                    for path in checkpoints(folder / "killed"):
                        if not files <= {file.name for file in path.iterdir()} or len(everything(path)) != len(
                            expected
                        ):
                            problems.append(f"{path.name} is not whole")
            if done and everything(folder / "killed" / f"checkpoint-{STEPS}") != expected:
                problems.append("a resumed run ended otherwise")
    command = f"python -m tests.chaos.kills --trials {options.trials}"
    outcome = "; ".join(dict.fromkeys(problems)) or (
        f"at most {most_lost} steps at a time, of {SAVE_STEPS} between checkpoints; no half checkpoint ({while_saving} "
        f"kills while saving); of {runs} runs those that ended are bit-equal to an undisturbed one"
    )
    print(f"| kill -9 at a random moment, then resume | `{command}` | {kills} | {outcome} |")
    sys.exit(bool(problems) or most_lost > SAVE_STEPS)


def last_step(run: Path) -> int:
    """Of the newest checkpoint of a run."""
    found = checkpoints(run)
    return int(found[-1].name.rpartition("-")[2]) if found else 0


if __name__ == "__main__":
    main()
