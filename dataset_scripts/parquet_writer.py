"""Writes what a builder makes as Parquet files: a file for each job, by any number of processes, resumable.

A finished file lies under its name, with a note of its counts beside it; both appear whole or not at all. A build that
was killed goes on with the jobs that have no note. The bytes depend on the builder alone.
"""

import gc
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.table import embed_table_storage
from datasets.utils import tqdm

from .builder import GroundingBuilder
from .features import BuildReport

# Rows of a row group: what a reader must load to see one of them. Images are large, annotations are not.
_ROWS_WITH_IMAGE, _ROWS_WITHOUT_IMAGE = 256, 8192
# Bytes of their images, each counted as often as it stands in a row: readers unpack a group so, and none of 2 GiB.
_GROUP_BYTES = 2**27
# A dictionary that outgrows this is given up for plain values: more than any row group of images needs.
_DICTIONARY_BYTES = 2**30
# Records are trees without cycles for Python's collector to find; yet it walks all of a job's each time 700 more came.
# This often instead, Visual Genome's attributes and relations take half the time to read and send.
_COLLECT_AFTER = 1_000_000


def write_splits(
    builder: GroundingBuilder,
    folder: Path,
    limit: int | None = None,
    num_proc: int = 1,
    splits: Collection[str] | None = None,
) -> None:
    """Writes the splits to `folder/data/<split>-<job>.parquet`; fills `builder.report`, `info.splits` and the sizes.

    A split without a row is left out. Errors are those of `build.build`.

    Args:
        folder: a new one, or what an earlier call with the same builder and limit left of its work.
        limit: at most this many rows of each split; jobs are then done one after the other.
    """
    for name in ("data", "notes"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = builder.split_names()  # counts what is dropped before any job, and no worker may count it again
    if unknown := sorted(set(splits or ()) - set(names)):
        raise ValueError(f"{builder.dataset_name}: there is no split {unknown[0]!r}, but {', '.join(names) or 'none'}")
    written = datasets.SplitDict(dataset_name=builder.dataset_name)
    file_bytes = 0
    with _processes(builder, folder, num_proc if limit is None else 1) as executor:
        for split in (name for name in names if splits is None or name in splits):
            info = datasets.SplitInfo(split, num_bytes=0, num_examples=0)
            with tqdm(desc=f"Building {split}", unit=" rows") as progress:
                for note in _notes(builder, split, folder, executor, 2 * num_proc, limit):
                    builder.report.add(note["kept"], note["dropped"], note["examples"])
                    info.num_examples += note["rows"]
                    info.num_bytes += note["bytes"]
                    file_bytes += note["written"]
                    progress.update(note["rows"])
            if info.num_examples:
                written.add(info)
    if not written:
        raise ValueError(f"{builder.dataset_name}: not one row came out\n{builder.report}")
    builder.info.splits = written
    builder.info.dataset_size = sum(split.num_bytes for split in written.values())
    builder.info.download_size = file_bytes


@contextmanager
def _processes(builder: GroundingBuilder, folder: Path, num_proc: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes to do jobs in, None for this one alone; Python's collector comes by less often in all of them."""
    threshold, executor = gc.get_threshold(), None
    gc.set_threshold(_COLLECT_AFTER)
    if num_proc > 1:  # not forked: pyarrow has threads
        context = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(num_proc, context, _start_worker, (builder, folder))
    try:
        yield executor
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A process ended before its job did; memory may have run out. The same command goes on with what is left; "
            f"--num_proc {num_proc // 2} needs less memory. A script that calls build itself must do so under "
            'if __name__ == "__main__":, as each process runs it, too.'
        ) from error
    finally:
        gc.set_threshold(*threshold)
        if executor is not None:
            executor.shutdown(cancel_futures=True)


def _notes(
    builder: GroundingBuilder,
    split: str,
    folder: Path,
    executor: ProcessPoolExecutor | None,
    most_waiting: int,
    limit: int | None,
) -> Iterator[dict[str, Any]]:
    """Does the jobs of a split that are not done; the notes of all of them in order. Few jobs wait for a process."""
    waiting: deque[Future[dict[str, Any]]] = deque()
    for number, job in enumerate(builder.jobs(split)):
        if limit == 0:
            return
        path = _note_path(folder, split, number)
        if executor is not None and not path.exists():
            waiting.append(executor.submit(_do_job_in_worker, split, number, job))
            if len(waiting) > most_waiting:
                yield waiting.popleft().result()
            continue
        done = path.exists()
        note = json.loads(path.read_text()) if done else do_job(builder, folder, split, number, job, limit)
        limit = None if limit is None else limit - note["rows"]
        yield note
    while waiting:
        yield waiting.popleft().result()


_worker: dict[str, Any] = {}  # the builder and the folder of a worker process


def _start_worker(builder: GroundingBuilder, folder: Path) -> None:
    _worker.update(builder=builder, folder=folder)
    Thread(target=_end_with_parent, daemon=True).start()
    gc.set_threshold(_COLLECT_AFTER)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for jobs for ever, after it wrote where the same call goes on."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _do_job_in_worker(split: str, number: int, job: list[Any]) -> dict[str, Any]:
    return do_job(**_worker, split=split, number=number, job=job, limit=None)


def do_job(
    builder: GroundingBuilder, folder: Path, split: str, number: int, job: list[Any], limit: int | None
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


def _write_file(path: Path, builder: GroundingBuilder, rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Writes rows as a Parquet file, or none where there are no rows. Returns its `rows`, `bytes` and `written`."""
    schema = builder.info.features.arrow_schema
    note = {"rows": 0, "bytes": 0, "written": 0}
    first = next(rows, None)
    if first is None:
        return note
    group = _ROWS_WITHOUT_IMAGE if first["image"] is None else _ROWS_WITH_IMAGE
    part = path.with_suffix(".part")
    # An image's rows share its bytes in the file: its column is dictionary-encoded.
    options = {"use_dictionary": ["image.bytes", "image_id", "caption"], "write_page_index": True}
    with pq.ParquetWriter(part, schema, dictionary_pagesize_limit=_DICTIONARY_BYTES, **options) as writer:
        while first is not None:
            own, first = _row_group(first, rows, group)
            table = embed_table_storage(pa.Table.from_pylist(own, schema=schema))
            writer.write_table(table)
            note["rows"] += len(table)
            note["bytes"] += table.nbytes
    note["written"] = part.stat().st_size
    os.replace(part, path)
    return note


def _row_group(
    first: dict[str, Any], rows: Iterator[dict[str, Any]], most: int
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The row and those after it, up to `most` and to `_GROUP_BYTES`; and the row after these, if there is one."""
    own, size = [first], _image_bytes(first)
    for row in rows:
        size += _image_bytes(row)
        if len(own) == most or size > _GROUP_BYTES:
            return own, row
        own.append(row)
    return own, None


def _image_bytes(row: dict[str, Any]) -> int:
    return sum(len(image["bytes"]) for image in (row["image"], *row["masks"]) if image)


def _note_path(folder: Path, split: str, number: int) -> Path:
    return folder / "notes" / f"{split}-{number:05d}.json"
