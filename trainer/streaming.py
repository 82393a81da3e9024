"""Training data that is read while it is trained on, never prepared on disk: shuffled, and the same after a resume."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import torch
from datasets import IterableDataset
from torch.utils.data import get_worker_info

from .blocks import by_image
from .splits import open_split

Row = dict[str, Any]
_ROWS_AT_A_TIME = 100  # that are turned into Python's objects


class StreamedRows:
    """A streamed data set in parts that can be read in any order: row groups of Parquet, whole files of other kinds.

    Args:
        dataset: its pictures undecoded.
        num_rows: the rows it has.
    """

    def __init__(self, dataset: IterableDataset, num_rows: int):
        self.dataset = dataset.with_format("arrow")
        self.num_rows = num_rows
        num_files = self.dataset.num_shards
        # File by file: of a data set in thousands of parts, datasets takes its time to pick one.
        self.files = [self.dataset.shard(num_shards=num_files, index=file).reshard() for file in range(num_files)]
        self.parts = [(file, part) for file, parts in enumerate(self.files) for part in range(parts.num_shards)]

    @classmethod
    def open(cls, path: str, config: str | None, split: str) -> "StreamedRows":
        """One split of a folder, or of a Hub id.

        Raises:
            ValueError: as `open_split`, or it has no row.
        """
        dataset = open_split(path, config, split, streaming=True)
        try:
            rows = cls(dataset, count_rows(dataset, split))
        except (ValueError, OSError) as error:  # of pyarrow
            raise ValueError(f"Split {split} of {path} cannot be read: {error}") from error
        if len(rows) == 0:
            raise ValueError(f"Split {split} of {path} is empty.")
        return rows

    @property
    def num_parts(self) -> int:
        return len(self.parts)

    def part(self, number: int) -> Iterator[Row]:
        """The rows of a part, in the order of the file."""
        file, part = self.parts[number]
        dataset = self.files[file].shard(num_shards=self.files[file].num_shards, index=part)
        # By `iter`: iterating over the data set itself would deal it to the workers of a loader once more.
        for table in dataset.iter(batch_size=_ROWS_AT_A_TIME):
            yield from table.to_pylist()

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[Row]:
        """All rows, in the order of the files."""
        for number in range(self.num_parts):
            yield from self.part(number)

    def __getitem__(self, column: str) -> Iterator[Any]:
        """A column of all rows."""
        for table in column_tables(self.dataset, column):
            yield from table[column].to_pylist()


def column_tables(dataset: IterableDataset, column: str) -> Iterator[pa.Table]:
    return dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000)


def count_rows(dataset: IterableDataset, split: str) -> int:
    """As its card states them; a data set without a card is read once for it."""
    stated = (dataset.info.splits or {}).get(split)
    return stated.num_examples if stated else sum(len(table) for table in column_tables(dataset, "phrase"))


class StreamedBatches(torch.utils.data.IterableDataset):
    """The batches of one process, collated; a `DataLoader` takes them as they are (`batch_size=None`).

    Every worker of every process reads parts of its own (rows of its own, where there are fewer parts than workers),
    in an order drawn for each epoch, and mixes them in a buffer. The order depends on `seed`, the epoch, and the
    numbers of processes and workers alone. An epoch has as many rows as the data. One worker reads each row once in it;
    several do so as far as their parts have as many rows: who comes to an end early goes on with other rows.

    Args:
        rows: of the data set.
        collator: of a list of rows.
        batch_size: rows a batch.
        buffer_size: runs of rows that each worker holds in memory to draw the next one from.
        phrases_per_image: a run is up to this many rows of an image, which follow each other in the data.
        drop_last: leave out the last batch of an epoch if it is smaller.
        process, num_processes: this one, of how many.
    """

    def __init__(
        self,
        rows: StreamedRows,
        collator: Callable[[list[Row]], dict[str, Any]],
        batch_size: int,
        buffer_size: int = 2000,
        phrases_per_image: int = 1,
        seed: int = 0,
        drop_last: bool = False,
        process: int = 0,
        num_processes: int = 1,
    ):
        if buffer_size < 1 or phrases_per_image < 1:
            raise ValueError("shuffle_buffer and phrases_per_image must be at least 1.")
        self.rows, self.collator, self.batch_size = rows, collator, batch_size
        self.buffer_size, self.phrases_per_image = buffer_size, phrases_per_image
        self.seed, self.epoch, self.passed_over = seed, 0, 0
        self.process, self.num_processes = process, num_processes
        num_rows = -(-len(rows) // num_processes)
        full, left = divmod(num_rows, batch_size)
        self.batch_sizes = [batch_size] * full + [left] * (left > 0 and not drop_last)

    def begin_epoch(self, epoch: int, passed_over: int = 0) -> None:
        """
        Args:
            passed_over: so many batches have been trained on already: they come as None, and no picture is decoded.
        """
        self.epoch, self.passed_over = epoch, passed_over
        self.collator.epoch = epoch

    def __len__(self) -> int:
        return len(self.batch_sizes)

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        lane, num_lanes = self.process * num_workers + number, self.num_processes * num_workers
        rows = self._endless(lane, num_lanes)
        for batch in range(number, len(self), num_workers):
            records = list(itertools.islice(rows, self.batch_sizes[batch]))
            yield None if batch < self.passed_over else self.collator(records)

    def _endless(self, lane: int, num_lanes: int) -> Iterator[Row]:
        """The rows that one of all workers trains on."""
        for turn in itertools.count():
            order = self._generator(turn, num_lanes)  # of all workers the same
            parts = torch.randperm(self.rows.num_parts, generator=order).tolist()
            shared = len(parts) < num_lanes
            groups = by_image(
                row for part in (parts if shared else parts[lane::num_lanes]) for row in self.rows.part(part)
            )
            groups = itertools.islice(groups, lane if shared else 0, None, num_lanes if shared else 1)
            is_empty = True
            for run in self._mixed(groups, self._generator(turn, lane)):
                is_empty = False
                yield from run
            if is_empty:
                raise ValueError(
                    f"The training data has no row for worker {lane + 1} of {num_lanes}: train on fewer processes, "
                    "with fewer dataloader_num_workers, or without streaming."
                )

    def _mixed(self, groups: Iterator[list[Row]], generator: torch.Generator) -> Iterator[list[Row]]:
        """The rows of each image in runs, and these in an order drawn from a buffer."""
        held: list[list[Row]] = []
        for group in groups:
            picture = group[0]["image"]  # once in memory
            drawn = [{**group[i], "image": picture} for i in torch.randperm(len(group), generator=generator).tolist()]
            for start in range(0, len(drawn), self.phrases_per_image):
                held.append(drawn[start : start + self.phrases_per_image])
                if len(held) > self.buffer_size:
                    place = int(torch.randint(len(held), (), generator=generator))
                    held[place], held[-1] = held[-1], held[place]
                    yield held.pop()
        for place in torch.randperm(len(held), generator=generator).tolist():
            yield held[place]

    def _generator(self, turn: int, purpose: int) -> torch.Generator:
        text = f"{self.seed} {self.epoch} {turn} {purpose}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
