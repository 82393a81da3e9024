"""A data set in blocks of whole images: what one process grounds at a time, and one file of `ground_dataset` holds.

Blocks depend on the data alone, never on the number of processes, and so do the batches made of them: the same records
come out however many processes there are.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import pyarrow as pa
from datasets import Dataset, IterableDataset, Value

from .columns import Columns
from .phrase_rows import PhraseRows, Record, check_same_image, records_of
from .splits import IMAGES, TEXT_FILES, data_files, named_shards, open_split, reading


class Blocks:
    """Blocks of a data set that is on disk: as many whole images as have `block_size` rows together, or one image."""

    def __init__(self, dataset: Dataset, block_size: int = 1024):
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        self.dataset = dataset
        self.bounds = [0]
        for start, end in pairwise([*first_rows(dataset), len(dataset)]):
            if end - self.bounds[-1] > block_size and start > self.bounds[-1]:
                self.bounds.append(start)
        self.bounds.append(len(dataset))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, block: int) -> Iterator[list[Record]]:
        """Records of the block, image by image, one record a phrase; images are not decoded."""
        return by_image(self.dataset.select(range(self.bounds[block], self.bounds[block + 1])))

    def num_rows(self, blocks: Iterable[int]) -> int | None:
        """Rows in these blocks; None where that shows only when they are read."""
        return sum(self.bounds[block + 1] - self.bounds[block] for block in blocks)

    def records_at(self, positions: Iterable[int]) -> list[Record]:
        """The records at these positions among all records."""
        is_single = isinstance(self.dataset.features["phrase"], Value)
        records = self.dataset if is_single else PhraseRows(self.dataset)
        return [records[position] for position in positions]

    def fingerprint(self) -> str:
        """A hash of all columns and the order of rows; of images in files, of their paths, sizes and times."""
        digest, stamp_of_file = hashlib.blake2b(digest_size=16), cache(file_stamp)
        for table in self.dataset.with_format("arrow").iter(batch_size=1000):
            for name in set(IMAGES) & set(table.column_names):
                stamps = pa.array([repr(stamp(image.as_py(), stamp_of_file)) for image in table[name]])
                table = table.set_column(table.column_names.index(name), name, stamps)
            sink = pa.BufferOutputStream()
            # Metadata of the schema differs between versions of datasets; chunks are an accident of reading.
            table = table.replace_schema_metadata(None).combine_chunks()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            digest.update(sink.getvalue())
        return digest.hexdigest()


class FileBlocks:
    """Blocks of a streamed data set: one file each, as its builder wrote them. Methods: as of `Blocks`.

    Args: columns: what the data were read by.
    """

    def __init__(self, dataset: IterableDataset, files: list[str], columns: Columns):
        self.dataset, self.files, self.names = dataset, files, named_shards(dataset, files)
        self.columns = columns

    def __len__(self) -> int:
        return self.dataset.num_shards

    def __getitem__(self, block: int) -> Iterator[list[Record]]:
        return by_image(reading(self.dataset.shard(num_shards=len(self), index=block), self.names[block]))

    def num_rows(self, blocks: Iterable[int]) -> int | None:
        return None

    def records_at(self, positions: Iterable[int]) -> list[Record]:
        positions = list(positions)
        records = enumerate(record for block in range(len(self)) for group in self[block] for record in group)
        found = {position: record for position, record in records if position in positions}
        return [found[position] for position in positions]

    def fingerprint(self) -> str:
        """A hash of the files' names, and of the sizes and times of those that are on disk, images that they name too;
        and of how columns and boxes are read."""
        on_disk = [file for file in self.files if os.path.exists(file)]
        named = [(os.path.basename(file), *file_stamp(file)) if file in on_disk else file for file in self.files]
        read = named, self.columns.names, self.columns.box_format
        digest, stamp_of_file = hashlib.blake2b(repr(read).encode(), digest_size=16), cache(file_stamp)
        if any(file.lower().endswith(TEXT_FILES) for file in on_disk):
            images = [name for name in IMAGES if name in self.dataset.column_names]
            for row in self.dataset.select_columns(images):
                digest.update(repr([stamp(row[name], stamp_of_file) for name in images]).encode())
        return digest.hexdigest()


def open_blocks(
    path: str,
    config: str | None,
    split: str,
    limit: int | None = None,
    streaming: bool = False,
    block_size: int = 1024,
    columns: Columns | None = None,
    needs_regions: bool = False,
) -> Blocks | FileBlocks:
    """One split of a data set in blocks; see `open_split`.

    Args:
        limit: take this many rows only; not when streaming.
        block_size: most rows of a block; not when streaming.
    """
    if streaming and limit is not None:
        raise ValueError("A streamed data set is taken whole: leave out streaming to take a part of it.")
    columns = columns or Columns()
    dataset = open_split(path, config, split, streaming, columns, needs_regions)
    if streaming:
        return FileBlocks(dataset, data_files(path, config, split), columns)
    dataset = dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
    if len(dataset) == 0:
        raise ValueError(f"Split {split} of {path} is empty.")
    return Blocks(dataset, block_size)


def by_image(rows: Iterable[Record]) -> Iterator[list[Record]]:
    """Records of rows that follow each other and have the same `image_id`, together.

    Raises ValueError: as `records_of` and `check_same_image`.
    """
    group: list[Record] = []
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


def file_stamp(path: str) -> tuple[int, int] | None:
    """Size and time of a file; None of an address, and where there is none."""
    return (os.path.getsize(path), os.stat(path).st_mtime_ns) if os.path.exists(path) else None


def stamp(image: Any, stamp_of_file: Callable[[str], Any]) -> Any:
    """What changes when an undecoded image does, or one of a list of them."""
    if isinstance(image, list):
        return [stamp(each, stamp_of_file) for each in image]
    if isinstance(image, dict) and image["bytes"] is not None:
        return hashlib.blake2b(image["bytes"], digest_size=16).hexdigest()
    path = image["path"] if isinstance(image, dict) else image
    return path and (os.path.abspath(path), stamp_of_file(path))


def first_rows(dataset: Dataset) -> list[int]:
    """The first row of every image."""
    if "image_id" not in dataset.column_names:
        return list(range(len(dataset)))
    ids = dataset["image_id"][:]
    return [row for row, image_id in enumerate(ids) if row == 0 or image_id is None or image_id != ids[row - 1]]
