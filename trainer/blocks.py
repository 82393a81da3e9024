"""A data set in blocks of whole images: what one process grounds at a time, and one file of records holds.

Blocks depend on the data alone, never on the number of processes, and so do the batches made of them: the same records
come out however many processes there are.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset, load_dataset_builder

from .phrase_rows import check_same_image, records_of
from .splits import IMAGES, open_split


class Blocks:
    """Blocks of a data set that is on disk: about `block_size` rows each, cut between images."""

    def __init__(self, dataset: Dataset, block_size: int = 1024):
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        self.dataset = dataset
        self.bounds = _bounds(dataset, block_size)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, block: int) -> Iterator[list[dict[str, Any]]]:
        """Records of the block, image by image, one record a phrase; pictures are not decoded."""
        return by_image(self.dataset.select(range(self.bounds[block], self.bounds[block + 1])))

    def num_rows(self, blocks: Iterable[int]) -> int | None:
        """Rows in these blocks; None where that shows only when they are read."""
        return sum(self.bounds[block + 1] - self.bounds[block] for block in blocks)

    def fingerprint(self) -> str:
        """A hash of everything but the pictures: phrases, boxes and so on, their order, and the cuts between blocks."""
        digest = hashlib.blake2b(repr(self.bounds).encode(), digest_size=16)
        names = [name for name in self.dataset.column_names if name not in IMAGES]
        for table in self.dataset.select_columns(names).with_format("arrow").iter(batch_size=10_000):
            sink = pa.BufferOutputStream()
            # Metadata of the schema differs between versions of datasets; chunks are an accident of reading.
            table = table.replace_schema_metadata(None).combine_chunks()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            digest.update(sink.getvalue())
        return digest.hexdigest()


class FileBlocks:
    """Blocks of a streamed data set: one file each, as its builder wrote them."""

    def __init__(self, dataset: IterableDataset, files: list[str]):
        self.dataset, self.files = dataset, files

    def __len__(self) -> int:
        return self.dataset.num_shards

    def __getitem__(self, block: int) -> Iterator[list[dict[str, Any]]]:
        """As of `Blocks`."""
        return by_image(self.dataset.shard(num_shards=len(self), index=block))

    def num_rows(self, blocks: Iterable[int]) -> int | None:
        """As of `Blocks`."""
        return None

    def fingerprint(self) -> str:
        """A hash of the files' names, and of the sizes of those that are on disk."""
        named = [(os.path.basename(f), os.path.getsize(f)) if os.path.exists(f) else f for f in self.files]
        return hashlib.blake2b(repr(named).encode(), digest_size=16).hexdigest()


def open_blocks(
    path: str,
    config: str | None,
    split: str,
    limit: int | None = None,
    streaming: bool = False,
    block_size: int = 1024,
    renamed: dict[str, str] | None = None,
) -> Blocks | FileBlocks:
    """One split of a data set in blocks.

    Args:
        path: folder, or Hub id.
        limit: take this many rows only; not when streaming.
        streaming: read files as they come instead of preparing the data set on disk first.
        block_size: about how many rows a block; not when streaming.
        renamed: the data set's column → ours, where they differ.

    Raises:
        ValueError: as `open_split`, or it has no row.
    """
    if streaming and limit is not None:
        raise ValueError("A streamed data set is taken whole: leave out streaming to take a part of it.")
    dataset = open_split(path, config, split, streaming, renamed)
    if streaming:
        files = load_dataset_builder(path, config).config.data_files or {}
        return FileBlocks(dataset, files.get(split, []))
    dataset = dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
    if len(dataset) == 0:
        raise ValueError(f"Split {split} of {path} is empty.")
    return Blocks(dataset, block_size)


def by_image(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Records of rows that follow each other and have the same `image_id`, together.

    Raises:
        ValueError: as `records_of` and `check_same_image`.
    """
    group: list[dict[str, Any]] = []
    for row in rows:
        records = records_of(row)
        if group and row.get("image_id") is not None and row["image_id"] == group[0]["image_id"]:
            check_same_image(group[0], row)
            group += records
            continue
        if group:
            yield group
        group = records
    if group:
        yield group


def record_at(blocks: Blocks | FileBlocks, counts: list[int], position: int) -> dict[str, Any]:
    """The record at a position among all records.

    Args:
        counts: number of records in every block.
    """
    for block, count in enumerate(counts):
        if position < count:
            return next(islice((record for group in blocks[block] for record in group), position, None))
        position -= count
    raise IndexError(f"there are {sum(counts)} records only")


def _bounds(dataset: Dataset, block_size: int) -> list[int]:
    """First row of every block, and the number of rows."""
    bounds = [0]
    ids = dataset["image_id"] if "image_id" in dataset.column_names else None
    while bounds[-1] < len(dataset):
        cut = min(bounds[-1] + block_size, len(dataset))
        while ids is not None and cut < len(dataset) and ids[cut] is not None and ids[cut] == ids[cut - 1]:
            cut += 1
        bounds.append(cut)
    return bounds
