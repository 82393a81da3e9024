"""Fuzzes the parsers, guided by which code an input reaches, and prints a table.

    python -m tests.fuzz.run --seconds 600            all targets, one after the other
    python -m tests.fuzz.run flickr_xml --seconds 60  one of them

Needs atheris, which exists for Linux alone (the extra `fuzz`). An input that breaks a target is written to the folder
--found, and belongs into tests/fuzz/corpus/<target> once the parser is mended.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
# Whose code guides the fuzzer: ours, and what is Python of what we read with.
INSTRUMENTED = ["dataset_scripts", "modeling_albef_amc", "trainer", "pickle", "yaml", "json", "PIL"]
SECONDS_AN_INPUT, MEGABYTES = 25, 2048
COLUMNS = "target", "seconds", "executions", "edges", "features", "peak MiB", "crashes", "timeouts"


def fuzz(name: str, seconds: int, folder: Path, found: Path) -> None:
    """Fuzzes one target in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from .targets import TARGETS

    target = TARGETS[name]
    work, inputs, words = folder / "work", folder / "inputs", folder / "words"
    work.mkdir()
    inputs.mkdir()
    for number, seed in enumerate(target.seeds()):
        (inputs / f"seed-{number}").write_bytes(seed)
    escaped = ["".join(f"\\x{byte:02x}" for byte in word.encode()) for word in target.words or (" ",)]
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    run = target.open(work)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if target.mutate is None or draw.random() < 0.25:
            return atheris.Mutate(data, max_size)
        mutated = target.mutate(data, draw, lambda part: atheris.Mutate(part, max_size))
        return mutated if len(mutated) <= max_size else atheris.Mutate(data, max_size)

    options = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEGABYTES}", f"-timeout={SECONDS_AN_INPUT}"]
    options += [f"-max_len={target.max_len}", f"-dict={words}", "-print_final_stats=1", f"-artifact_prefix={found}/"]
    given = CORPUS / name
    folders = [str(inputs), *([str(given)] if given.is_dir() else [])]
    atheris.Setup([sys.argv[0], *options, *folders], run, **({"custom_mutator": mutate} if target.mutate else {}))
    atheris.Fuzz()


def row(name: str, seconds: int, found: Path) -> list[str]:
    """Fuzzes one target in a process of its own; returns its line of the table."""
    found.mkdir(parents=True, exist_ok=True)
    before = set(found.iterdir())
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix=f"fuzz-{name}-") as folder:
        command = [sys.executable, "-m", "tests.fuzz.run", name, "--seconds", str(seconds), "--in", folder]
        log = found / f"{name}.log"
        with log.open("w") as output:
            quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
            environment = {**os.environ, **quiet, "OMP_NUM_THREADS": "1"}
            ended = subprocess.run([*command, "--found", str(found)], stdout=output, stderr=output, env=environment)
    text = log.read_text(errors="replace")
    statistics = dict(re.findall(r"stat::(\w+):\s+(\d+)", text))
    reached = re.findall(r"cov: (\d+) ft: (\d+)", text) or [("?", "?")]
    spent = (re.findall(r"Done \d+ runs in (\d+) second", text) or ["stopped"])[0]
    kinds = [path.name.partition("-")[0] for path in set(found.iterdir()) - before]  # crash, oom, timeout, leak; slow
    artifacts = [kind for kind in kinds if kind in ("crash", "leak", "oom", "timeout")]
    timeouts = artifacts.count("timeout")
    crashes = max(len(artifacts) - timeouts, int(ended.returncode != 0 and not artifacts))
    numbers = statistics.get("number_of_executed_units", "?"), *reached[-1], statistics.get("peak_rss_mb", "?")
    return [name, spent, *numbers, str(crashes), str(timeouts)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--found", type=Path, default=Path("outputs/fuzz"), help="folder for logs and broken inputs")
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.folder is not None:
        fuzz(args.targets[0], args.seconds, args.folder, args.found)
        return
    from .targets import TARGETS

    print("|", " | ".join(COLUMNS), "|\n|---|", "---:|" * (len(COLUMNS) - 1), sep="")
    rows = []
    for name in args.targets or TARGETS:
        rows.append(row(name, args.seconds, args.found.absolute()))
        print("|", " | ".join(rows[-1]), "|", flush=True)
    if any(line[-2:] != ["0", "0"] for line in rows):
        sys.exit(f"Inputs that broke a target are in {args.found}.")


if __name__ == "__main__":
    main()
