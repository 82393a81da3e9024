"""Records, one a phrase, as Parquet files; a file has its name when it is whole.

An evaluation has one file a split, with the settings that its records were made with. `ground_dataset` has one a block,
which a killed run leaves whole and a restart goes on from:

    FOLDER/test.json                           the settings
    FOLDER/data/test-00003-of-00012.parquet    the records of block 3, in the order of the data set
    FOLDER/partial-test-00004.parquet          a block that is being written

`datasets.load_dataset(FOLDER)` reads the finished folder.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

OF_REGIONS = {"size": pa.string(), "energy": pa.float32()}
OF_HEATMAPS = {"deletion": pa.float32(), "insertion": pa.float32()}
HEATMAP_TYPES = {"float16": pa.float16(), "float32": pa.float32()}
# Rows that a file is written by; memory stays bounded however long a block is.
ROWS_AT_ONCE = 1024
SETTINGS = b"settings"


def record_schema(metrics: tuple[str, ...], heatmaps: str | None = None, faithfulness: bool = False) -> pa.Schema:
    """Columns of the records.

    `score` is the probability that the phrase fits its image, or the caption that it was grounded in. `point` (x, y)
    and `box` (x1, y1, x2, y2; half-open) are in pixels of the image, `heatmap` is the map over the grid of patches.
    Every metric has a column that says whether the answer is right, null where there is nothing to compare it with;
    beside them are the `size` of what is to be found and the share of the heat inside it, `energy`, see `scoring`. A
    record that could not be used has the reason in `error` and no answer.

    Args:
        heatmaps: "float16" or "float32"; None for no such column.
        faithfulness: with columns `deletion` and `insertion`, see `faithfulness.deletion_and_insertion`.
    """
    fields = [
        ("image_id", pa.string()),
        ("phrase", pa.string()),
        ("score", pa.float32()),
        ("point", pa.list_(pa.int32())),
        ("box", pa.list_(pa.int32())),
        *((metric, pa.bool_()) for metric in metrics),
        *(OF_REGIONS.items() if metrics else ()),
        *(OF_HEATMAPS.items() if faithfulness else ()),
        ("categories", pa.list_(pa.string())),
        ("absent", pa.bool_()),
        ("error", pa.string()),
    ]
    if heatmaps is not None:
        fields.append(("heatmap", pa.list_(pa.list_(HEATMAP_TYPES[heatmaps]))))
    return pa.schema(fields)


def check_split(split: str) -> None:
    """ValueError: the name of a split cannot be that of a file."""
    if not re.fullmatch(r"\w+", split):
        raise ValueError(f"{split!r} cannot name files: take a whole split, or its beginning with --max_examples")


def check_settings(found: dict[str, Any], settings: dict[str, Any], place: Path) -> None:
    """ValueError: the records at `place` were made with other settings."""
    differing = sorted(key for key in found.keys() | settings.keys() if found.get(key) != settings.get(key))
    if differing:
        changes = "; ".join(f"{key}: {found.get(key)!r}, now {settings.get(key)!r}" for key in differing)
        raise ValueError(
            f"The records in {place} were made with other settings ({changes}). Go on with the same ones, choose "
            "another folder, or start anew with --overwrite."
        )


def write_records(path: Path, records: pa.Table, settings: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    pq.write_table(records.replace_schema_metadata({SETTINGS: json.dumps(settings)}), partial)
    os.replace(partial, path)


def read_records(path: Path, settings: dict[str, Any]) -> pa.Table | None:
    """What `write_records` has written; None where there is no such file.

    Raises ValueError: the file is damaged, or its records were made with other settings.
    """
    if not path.is_file():
        return None
    records = open_parquet(path).read()
    check_settings(json.loads((records.schema.metadata or {}).get(SETTINGS, "{}")), settings, path)
    return records


def open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is damaged: delete it and start again. {error}") from error


class RecordStore:
    """The records of one split, block by block.

    Args:
        folder: shared by all processes; by the machines of a sharded run, or their folders are merged afterwards.
        num_blocks: into how many files the records go.
    """

    def __init__(self, folder: Path, split: str, num_blocks: int, schema: pa.Schema):
        check_split(split)
        if num_blocks > 99_999:
            raise ValueError(f"{num_blocks:,} blocks are more than file names count: choose larger ones (--block_size)")
        self.folder, self.split, self.num_blocks, self.schema = folder, split, num_blocks, schema
        self.settings_path = folder / f"{split}.json"

    def path(self, block: int) -> Path:
        return self.folder / "data" / f"{self.split}-{block:05d}-of-{self.num_blocks:05d}.parquet"

    def prepare(self, settings: dict[str, Any], overwrite: bool = False) -> None:
        """Makes the folder ready for records made with these settings; for one process, before all others go on.

        Raises ValueError: it has records that were made with other settings, and may not be overwritten; or files of
        others, which never are.
        """
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        if overwrite and self.settings_path.is_file():
            for path in data.glob(f"{self.split}-*-of-*.parquet"):
                path.unlink()
            self.settings_path.unlink()  # last: without it they would be files of others
        if self.settings_path.is_file():
            check_settings(self.settings(), settings, self.folder)
        elif any(data.glob(f"{self.split}-*.parquet")):
            raise ValueError(
                f"{data} has files of {self.split!r}, but no {self.settings_path.name} to say how they were made: "
                "choose another folder, or delete these files if they are no longer needed."
            )
        else:
            partial = self.settings_path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(settings, indent=2) + "\n")
            os.replace(partial, self.settings_path)

    def settings(self) -> dict[str, Any]:
        """What the records were made with; ValueError: it cannot be read."""
        try:
            found = json.loads(self.settings_path.read_text())
            if not isinstance(found, dict):
                raise ValueError("no settings")
            return found
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.settings_path} is damaged ({error}): start anew with --overwrite.") from error

    def missing(self) -> list[int]:
        """Numbers of the blocks that are not there yet."""
        return [block for block in range(self.num_blocks) if not self.path(block).is_file()]

    def write(self, block: int, batches: Iterable[list[dict[str, Any]]]) -> None:
        """Writes a block's records; the file has its name when it is whole."""
        partial = self.folder / f"partial-{self.split}-{block:05d}.parquet"
        with pq.ParquetWriter(partial, self.schema) as writer:
            rows: list[dict[str, Any]] = []
            for batch in batches:
                rows += batch
                if len(rows) >= ROWS_AT_ONCE:
                    writer.write_table(pa.Table.from_pylist(rows, self.schema))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, self.schema))
        os.replace(partial, self.path(block))

    def count(self) -> tuple[int, list[str]]:
        """The number of all records, and the errors of those that could not be used."""
        errors = [open_parquet(self.path(block)).read(["error"])["error"] for block in range(self.num_blocks)]
        return sum(map(len, errors)), [error for column in errors for error in column.drop_null().to_pylist()]
