"""Time and peak memory of converting ALBEF base: 2 × 209 M parameters and two queues of 65,536 features, float32.

    python -m benchmarks.conversion --output conversion.json

A file of random weights in the original layout is written and converted there and back by the command that users call,
each step in a process of its own. Peak memory is the largest resident set of that process, mapped files included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-m", "modeling_albef_amc.tools.convert_albef_checkpoint"]
BUILD = [sys.executable, "-c", "import sys; from benchmarks.conversion import build; build(sys.argv[1], sys.argv[2])"]
MEMORY_LIMIT, TIME_LIMIT = 1.3, 60  # times the size of the file; seconds


def build(checkpoint: str, vocabulary: str) -> None:
    """Writes a checkpoint of AMC with random weights, which takes its size in memory, and a vocabulary for it."""
    import torch

    from modeling_albef_amc import AlbefConfig, AlbefForPreTraining
    from modeling_albef_amc.tools.albef_checkpoint_layout import QUEUES, original_names, rename

    config = AlbefConfig()
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AlbefForPreTraining(config).state_dict().items()}
    state, tensors = {}, {}
    for name in original_names(config, "amc"):
        # Tied tensors share their memory, and so their place in the file.
        key = rename(name).replace("mlm_head.decoder.weight", "text_model.embeddings.word_embeddings.weight")
        key = key if key in shapes else f"albef.{key}"
        if name.endswith("position_ids"):
            tensors[key] = torch.arange(config.text_config.max_position_embeddings)[None]
        elif key == "queue_pointer":
            tensors[key] = torch.zeros(1, dtype=torch.long)
        elif key not in tensors:
            shape = shapes[key][::-1] if name in QUEUES else shapes[key]
            tensors[key] = torch.empty(shape).normal_(std=0.02)
        state[name] = tensors[key]
    torch.save({"model": state}, checkpoint)
    words = ["[PAD]", *(f"[unused{index}]" for index in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"word{index}" for index in range(config.text_config.vocab_size - len(words))]
    Path(vocabulary).write_text("\n".join(words) + "\n")


def measure(arguments: list[str]) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a command.

    Raises:
        SystemExit: it failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with process.stderr:
        errors = process.stderr.read()
    # Of this child alone; getrusage(RUSAGE_CHILDREN) would give the largest of all so far.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{errors}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the numbers to this JSON file as well")
    parser.add_argument("--folder", type=Path, help="where the files are written (6 GB, removed at the end)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        checkpoint, converted, back = (f"{folder}/{name}" for name in ("albef.pth", "albef", "back.pth"))
        (Path(folder) / "tokenizer").mkdir()
        measure([*BUILD, checkpoint, f"{folder}/tokenizer/vocab.txt"])
        size = os.path.getsize(checkpoint)
        to_folder = [*COMMAND, checkpoint, converted, "--tokenizer", f"{folder}/tokenizer", "--overwrite"]
        steps = {
            "import only": [sys.executable, "-c", "import modeling_albef_amc.tools.convert_albef_checkpoint"],
            "to a folder": to_folder,
            "to a folder, 384 pixels": [*to_folder, "--image-size", "384"],
            "to the original": [*COMMAND, "--to-original", converted, back],
        }
        rows = {}
        print(f"{'':<26}{'seconds':>10}{'peak MB':>10}{'x file':>10}   file: {size / 1e6:,.0f} MB")
        for step, command in steps.items():
            seconds, peak = measure(command)
            rows[step] = {"seconds": round(seconds, 2), "peak_bytes": peak, "peak_over_file": round(peak / size, 3)}
            print(f"{step:<26}{seconds:>10.1f}{peak / 1e6:>10,.0f}{peak / size:>10.2f}")
    if arguments.output:
        limits = {"seconds": TIME_LIMIT, "peak_over_file": MEMORY_LIMIT}
        arguments.output.write_text(json.dumps({"file_bytes": size, "limits": limits, "steps": rows}, indent=2) + "\n")
    if any(row["seconds"] > TIME_LIMIT or row["peak_over_file"] > MEMORY_LIMIT for row in rows.values()):
        sys.exit(f"Over the limit: {TIME_LIMIT} seconds and {MEMORY_LIMIT} times the file.")


if __name__ == "__main__":
    main()
