"""A tiny checkpoint and records to evaluate it on, and the commands that do."""

from pathlib import Path

import datasets
import pyarrow.parquet as pq
import torch

from dataset_scripts.features import FEATURES
from tests.helpers.data import tiny_albef, tiny_processor, tiny_records
from trainer import evaluate_grounding, ground_dataset

NUM_RECORDS = 23
# Runs a command's module in one of two processes, and sees to it that there are two.
IN_TWO_PROCESSES = """
import importlib, sys
from pathlib import Path
from torch import distributed
from trainer.process_group import end_process_group
importlib.import_module(sys.argv[1]).main(sys.argv[2:])
assert distributed.is_initialized() and distributed.get_world_size() == 2, "one process only"
Path(f"rank{distributed.get_rank()}").write_text(distributed.get_backend())
end_process_group()
"""


def save_checkpoint(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tiny_albef().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def records_with_everything(count: int = NUM_RECORDS) -> list[dict]:
    """Three phrases an image, one or two boxes or none, kinds of phrases, a detector's proposals."""
    records = tiny_records(count, without_region=(4, 9), phrases_per_image=3)
    for row, record in enumerate(records):
        x, y = 13 * (row % 3), 12 * (row // 3 % 3)
        record["boxes"] = [[x, y, x + 14, y + 12], *record["boxes"][1:]] if record["boxes"] else []
        record["categories"] = [["people"], ["clothing", "other"], []][row % 3]
        record["proposals"] = [[x, y, x + 13, y + 12], [0, 0, 9, 9], [20, 5, 39, 30]] if row % 7 else []
    return records


def write_files(folder: Path, split: str, *parts: list[dict]) -> None:
    """A split in several files, named so that splits may have any name."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        columns = {name: [record[name] for record in part] for name in FEATURES}
        path = folder / "data" / f"{split}-{number:05d}-of-{len(parts):05d}.parquet"
        datasets.Dataset.from_dict(columns, features=FEATURES).to_parquet(path)


def evaluate(checkpoint: Path, data: Path, output: Path, *more: str) -> dict:
    command = ["--models", f"tiny={checkpoint}", "--dataset", str(data), "--output", str(output), "--cpu"]
    return evaluate_grounding.main([*command, "--num_pictured", "0", "--batch_size", "4", *more])


def ground_arguments(checkpoint: Path, data: Path, output: Path, *more: str) -> list[str]:
    command = ["--model", str(checkpoint), "--dataset", str(data), "--split", "test", "--output", str(output), "--cpu"]
    return [*command, "--block_size", "6", "--batch_size", "4", *more]


def run_ground(checkpoint: Path, data: Path, output: Path, *more: str) -> None:
    ground_dataset.main(ground_arguments(checkpoint, data, output, *more))


def files(folder: Path) -> dict[str, bytes]:
    """Name → content of every Parquet file of records, of either command."""
    found = sorted([*folder.glob("data/*"), *folder.glob("records/*/*")])
    assert found
    return {path.name: path.read_bytes() for path in found}


def rows(folder: Path) -> list[dict]:
    """All records of an output folder, of either command."""
    found = sorted([*folder.glob("data/*.parquet"), *folder.glob("records/*/*.parquet")])
    return [row for path in found for row in pq.ParquetFile(path).read().to_pylist()]
