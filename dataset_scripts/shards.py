"""Writes what a builder makes as Parquet files: a file for each job, by any number of processes, resumable.

A finished file lies under its name, with a note of its counts beside it; both appear whole or not at all. A build that
was killed goes on with the jobs that have no note. The bytes depend on the builder alone.
"""

import gc
import json
import multiprocessing
import os
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import embed_table_storage
from datasets.utils import tqdm

from .features import BuildReport
from .sources import SourceBuilder

# Rows of a row group: what a reader must load to see one of them. Photos are large, annotations are not.
_ROWS_WITH_IMAGE, _ROWS_WITHOUT_IMAGE = 256, 8192
# A dictionary that outgrows this is given up for plain values: more than any row group of photos needs.
_DICTIONARY_BYTES = 2**30
# Records are trees of lists and dicts, without cycles for Python's collector to find; yet it walks all of a job's each
# time 700 more came. This often instead, Visual Genome's attributes and relations take half the time to read and send.
_COLLECT_AFTER = 1_000_000


@contextmanager
def _rare_collection() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(_COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@_rare_collection()
def write_splits(
    builder: SourceBuilder,
    folder: Path,
    limit: int | None = None,
    num_proc: int = 1,
    splits: Collection[str] | None = None,
) -> None:
    """Writes the splits to `folder/data/<split>-<job>.parquet`; fills `builder.report`, `info.splits` and the sizes.

    A split without a row is left out.

    Args:
        folder: a new one, or what an earlier call with the same builder and limit left of its work.
        limit: at most this many rows of each split; jobs are then done one after the other.
        num_proc: processes that work at the same time.
        splits: the names of those to write; none: all.

    Raises:
        ValueError: bad data, an unknown split, or not one row came out.
        RuntimeError: a process ended before its job did.
    """
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "notes").mkdir(exist_ok=True)
    names = builder.split_names()  # counts what is dropped before any job, and no worker may count it again
    if unknown := sorted(set(splits or ()) - set(names)):
        raise ValueError(f"{builder.dataset_name}: there is no split {unknown[0]!r}, but {', '.join(names) or 'none'}")
    written_splits = datasets.SplitDict(dataset_name=builder.dataset_name)
    bytes_written = 0
    with _Workers(builder, folder, 1 if limit is not None else num_proc) as workers:
        for split in names:
            if splits is not None and split not in splits:
                continue
            notes = _run_split(builder, split, folder, workers, limit)
            for note in notes:
                builder.report.add(note["kept"], note["dropped"], note["examples"])
            num_examples, num_bytes, written = (
                sum(note[key] for note in notes) for key in ("rows", "bytes", "written")
            )
            if num_examples:
                written_splits.add(datasets.SplitInfo(split, num_bytes, num_examples))
            bytes_written += written
    if not written_splits:
        raise ValueError(f"{builder.dataset_name}: not one row came out\n{builder.report}")
    builder.info.splits = written_splits
    builder.info.dataset_size = sum(split.num_bytes for split in written_splits.values())
    builder.info.download_size = bytes_written


def _run_split(
    builder: SourceBuilder, split: str, folder: Path, workers: "_Workers", limit: int | None
) -> list[dict[str, Any]]:
    """Does the jobs of a split that are not done, and returns the notes of all of them in order."""
    notes: dict[int, dict[str, Any]] = {}
    with tqdm(desc=f"Building {split}", unit=" rows") as progress:

        def finish(number: int, note: dict[str, Any]) -> None:
            notes[number] = note
            progress.update(note["rows"])

        for number, job in enumerate(builder.jobs(split)):
            left = None if limit is None else limit - sum(note["rows"] for note in notes.values())
            if left == 0:
                break
            path = _note_path(folder, split, number)
            if path.exists():
                finish(number, json.loads(path.read_text()))
            else:
                workers.submit(split, number, job, left, finish)
        workers.finish_all(finish)
    return [notes[number] for number in sorted(notes)]


class _Workers:
    """Processes that write files for jobs, or this process alone; few jobs wait, so that memory stays bounded."""

    def __init__(self, builder: SourceBuilder, folder: Path, num_proc: int):
        self.builder, self.folder, self.num_proc = builder, folder, num_proc
        self.pool: ProcessPoolExecutor | None = None
        self.running: dict[Future, int] = {}

    def __enter__(self) -> "_Workers":
        if self.num_proc > 1:
            # Not forked: pyarrow has threads.
            self.pool = ProcessPoolExecutor(
                self.num_proc, multiprocessing.get_context("spawn"), _start_worker, (self.builder, self.folder)
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def submit(self, split: str, number: int, job: list[Any], left: int | None, finish: Any) -> None:
        if self.pool is None:
            finish(number, _do_job(self.builder, self.folder, split, number, job, left))
            return
        while len(self.running) >= 2 * self.num_proc:
            self._finish_some(finish)
        self.running[self.pool.submit(_do_job_in_worker, split, number, job)] = number

    def finish_all(self, finish: Any) -> None:
        while self.running:
            self._finish_some(finish)

    def _finish_some(self, finish: Any) -> None:
        for future in wait(self.running, return_when=FIRST_COMPLETED).done:
            number = self.running.pop(future)
            try:
                finish(number, future.result())
            except BrokenProcessPool as error:
                raise RuntimeError(
                    f"A process ended before its job {number} did; memory may have run out. The same command goes on "
                    f"with what is left; --num-proc {max(self.num_proc // 2, 1)} needs less memory."
                ) from error


_worker: tuple[SourceBuilder, Path] | None = None  # of a worker process


def _start_worker(builder: SourceBuilder, folder: Path) -> None:
    global _worker
    _worker = builder, folder
    gc.set_threshold(_COLLECT_AFTER)


def _do_job_in_worker(split: str, number: int, job: list[Any]) -> dict[str, Any]:
    return _do_job(*_worker, split, number, job, None)


def _do_job(
    builder: SourceBuilder, folder: Path, split: str, number: int, job: list[Any], limit: int | None
) -> dict[str, Any]:
    """Writes the file of one job, if it has a row, and the note of its counts; returns the note."""
    everything, builder.report = builder.report, BuildReport()
    try:
        path = folder / "data" / f"{split}-{number:05d}.parquet"
        note = _write_file(path, builder, islice(builder.storable_rows(split, job), limit))
        report = builder.report
        note |= {"kept": report.kept, "dropped": report.dropped, "examples": report.examples}
    finally:
        builder.report = everything
    target = _note_path(folder, split, number)
    part = target.with_suffix(".part")
    part.write_text(json.dumps(note))
    os.replace(part, target)
    return note


def _write_file(path: Path, builder: SourceBuilder, rows: Iterator[dict[str, Any]]) -> dict[str, int]:
    """Writes rows as a Parquet file, or none where there are no rows. Returns its `rows`, `bytes` and `written`."""
    schema = builder.info.features.arrow_schema
    counts = {"rows": 0, "bytes": 0, "written": 0}
    part = path.with_suffix(".part")
    writer = None
    try:
        for group in _row_groups(rows):
            table = embed_table_storage(pa.Table.from_pylist(group, schema=schema))
            if writer is None:
                writer = pq.ParquetWriter(
                    part,
                    schema,
                    use_dictionary=["image.bytes", "image_id", "caption"],
                    dictionary_pagesize_limit=_DICTIONARY_BYTES,
                    write_page_index=True,
                )
            writer.write_table(table)
            counts["rows"] += len(table)
            counts["bytes"] += table.nbytes
    finally:
        if writer is not None:
            writer.close()
    if writer is not None:
        counts["written"] = part.stat().st_size
        os.replace(part, path)
    return counts


def _row_groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for first in rows:
        size = _ROWS_WITHOUT_IMAGE if first["image"] is None else _ROWS_WITH_IMAGE
        yield [first, *islice(rows, size - 1)]


def _note_path(folder: Path, split: str, number: int) -> Path:
    return folder / "notes" / f"{split}-{number:05d}.json"
