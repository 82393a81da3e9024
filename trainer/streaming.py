"""Training data that is read while it is trained on, never prepared on disk; shuffled, and the same after a resume."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import IterableDataset
from torch.utils.data import get_worker_info

from .blocks import by_image
from .columns import Columns
from .phrase_rows import Record, phrase_counts, records_of
from .splits import data_files, named_shards, open_split, reading, told

_ROWS_AT_A_TIME = 100  # that are turned into Python's objects


class StreamedRows:
    """A streamed data set in parts that can be read in any order: row groups of Parquet, whole files of other kinds.

    Args:
        dataset: its images undecoded. files: it is read from, for messages.
    """

    def __init__(self, dataset: IterableDataset, files: Sequence[str] = ()):
        self.dataset = dataset.with_format("arrow")
        num_files, self.names = self.dataset.num_shards, named_shards(dataset, list(files))
        # File by file: of a data set in thousands of parts, datasets takes its time to pick one.
        self.files = [self.dataset.shard(num_shards=num_files, index=file).reshard() for file in range(num_files)]
        self.parts = [(file, part) for file, parts in enumerate(self.files) for part in range(parts.num_shards)]
        # Records of each part; for that, a narrow column is read through.
        self.sizes = [sum(map(num_records, self._tables(part, "phrase"))) for part in range(len(self.parts))]

    @classmethod
    def open(
        cls, path: str, config: str | None, split: str, needs_regions: bool = False, columns: Columns | None = None
    ) -> "StreamedRows":
        """One split of a file, a folder or a Hub id; errors as of `open_split`, and if it has no row."""
        dataset = open_split(path, config, split, True, columns, needs_regions)
        with told(f"Split {split} of {path}"):
            rows = cls(dataset, data_files(path, config, split))
        if len(rows) == 0:
            raise ValueError(f"Split {split} of {path} is empty.")
        return rows

    def _tables(self, number: int, *columns: str) -> Iterator[pa.Table]:
        """A part; of these columns, or of all, with fewer rows at a time."""
        file, part = self.parts[number]
        rows = self.files[file].shard(num_shards=self.files[file].num_shards, index=part)
        if columns:
            rows = rows.select_columns(list(columns)).with_format("arrow")
        # By `iter`: iterating over the data set itself would deal it to the workers of a loader once more.
        return reading(rows.iter(batch_size=10_000 if columns else _ROWS_AT_A_TIME), self.names[file])

    def part(self, number: int) -> Iterator[Record]:
        """The records of a part, one a phrase, in the order of the file."""
        for table in self._tables(number):
            for row in table.to_pylist():
                yield from records_of(row)

    def __len__(self) -> int:
        return sum(self.sizes)

    def __iter__(self) -> Iterator[Record]:
        """All records, in the order of the files."""
        for number in range(len(self.parts)):
            yield from self.part(number)

    def __getitem__(self, column: str) -> Iterator[Any]:
        """A column of all records."""
        for number in range(len(self.parts)):
            for table in self._tables(number, column):
                for row in table.to_pylist():
                    yield from (record[column] for record in records_of(row))


def num_records(table: pa.Table) -> int:
    phrases = table["phrase"]
    return pc.sum(phrase_counts(phrases)).as_py() or 0 if pa.types.is_nested(phrases.type) else len(phrases)


class StreamedBatches(torch.utils.data.IterableDataset):
    """The batches of one process, collated; a `DataLoader` takes them as they are (`batch_size=None`).

    In each epoch the parts are put into an order of its own, and every worker of every process reads its share of the
    records in that order, mixed in a buffer. The order depends on `seed`, the epoch, and the numbers of processes and
    workers alone. Every record comes once in an epoch; where processes cannot share them evenly, a few come twice.

    Args:
        collator: of a list of rows; its `epoch` is set.
        buffer_size: runs of rows that each worker holds in memory to draw the next one from.
        phrases_per_image: a run is up to this many rows of an image, which follow each other in the data.
        drop_last: leave out the last batch of an epoch if it is smaller.
        share: this process, of how many.
    """

    def __init__(
        self,
        rows: StreamedRows,
        collator: Any,
        batch_size: int,
        buffer_size: int = 2000,
        phrases_per_image: int = 1,
        seed: int = 0,
        drop_last: bool = False,
        share: tuple[int, int] = (0, 1),
    ):
        if buffer_size < 1 or phrases_per_image < 1:
            raise ValueError("shuffle_buffer and phrases_per_image must be at least 1.")
        self.rows, self.collator, self.batch_size = rows, collator, batch_size
        self.buffer_size, self.phrases_per_image = buffer_size, phrases_per_image
        self.seed, self.epoch, self.passed_over = seed, 0, 0
        self.process, num_processes = share
        self.num_rows = -(-len(rows) // num_processes)  # of a process
        full, left = divmod(self.num_rows, batch_size)
        self.batch_sizes = [batch_size] * full + [left] * (left > 0)
        self.num_batches = full if drop_last else len(self.batch_sizes)
        if self.num_batches == 0:
            raise ValueError(
                f"dataloader_drop_last leaves nothing of {self.num_rows} rows a process in batches of {batch_size}: "
                "lower per_device_train_batch_size, or set it to False."
            )

    def begin_epoch(self, epoch: int, passed_over: int = 0) -> None:
        """So many batches have been trained on already: they come as None, and no image is decoded."""
        self.epoch, self.passed_over = epoch, passed_over
        self.collator.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        worker = get_worker_info()
        number, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # Batches are dealt to the workers in turn.
        counts = [sum(self.batch_sizes[first::num_workers]) for first in range(num_workers)]
        lane, start = self.process * num_workers + number, self.process * self.num_rows + sum(counts[:number])
        groups = by_image(itertools.islice(self._from(start), counts[number]))
        rows = itertools.chain.from_iterable(self._mixed(groups, self._generator(lane)))
        for batch in range(number, len(self), num_workers):
            records = list(itertools.islice(rows, self.batch_sizes[batch]))
            yield None if batch < self.passed_over else self.collator(records)

    def _from(self, start: int) -> Iterator[Record]:
        """The records of the epoch from that one on, and after the last the first ones again."""
        order = torch.randperm(len(self.rows.parts), generator=self._generator(-1)).tolist()  # of all workers the same
        for part in itertools.cycle(order):
            if start < self.rows.sizes[part]:
                yield from itertools.islice(self.rows.part(part), start, None)
            start = max(start - self.rows.sizes[part], 0)

    def _mixed(self, groups: Iterator[list[Record]], generator: torch.Generator) -> Iterator[list[Record]]:
        """The rows of each image in runs, and these in an order drawn from a buffer."""
        held: list[list[Record]] = []
        for group in groups:
            image = group[0]["image"]  # once in memory
            drawn = [{**group[i], "image": image} for i in torch.randperm(len(group), generator=generator).tolist()]
            for start in range(0, len(drawn), self.phrases_per_image):
                held.append(drawn[start : start + self.phrases_per_image])
                if len(held) > self.buffer_size:
                    place = int(torch.randint(len(held), (), generator=generator))
                    held[place], held[-1] = held[-1], held[place]
                    yield held.pop()
        for place in torch.randperm(len(held), generator=generator).tolist():
            yield held[place]

    def _generator(self, purpose: int) -> torch.Generator:
        text = f"{self.seed} {self.epoch} {purpose}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def as_it_is(batch: Any) -> Any:
    """For `collate_fn`: the batch is collated already."""
    return batch
