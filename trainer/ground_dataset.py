"""Grounds every phrase of a data set: images and phrases in, one row a phrase out, with score, point and box.

    albef-amc ground-dataset --model outputs/run --dataset data/mine --split train --output outputs/grounded
    albef-amc ground-dataset … --num_actors 8                   # by Ray: eight processes, a GPU or a core each
    albef-amc ground-dataset … --ray_address 10.0.0.1:6379      # by all GPUs of a cluster

`datasets.load_dataset(OUTPUT)` reads the rows. A block of rows is a file, written by one process, which has its name
when it is whole: a run that was cut off goes on with the blocks that are missing.
"""

import argparse
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from .benchmarks import GROUNDING_ONLY
from .blocks import open_blocks
from .columns import Columns
from .commands import parse
from .evaluation import data_of_run, load_grounder, make_accelerator, progress_bar
from .phrase_rows import Record
from .process_group import run_script
from .record_store import RecordStore, open_parquet, record_schema


class BlockGrounder:
    """Grounds blocks of a data set and writes their rows.

    Args:
        args: of the command. path, columns: what to open, see `data_of_run`.
    """

    def __init__(self, args: argparse.Namespace, path: str, columns: Columns) -> None:
        source = path, args.dataset_config, args.split, args.max_examples, args.streaming, args.block_size
        self.blocks = open_blocks(*source, columns)
        protocol = replace(GROUNDING_ONLY, in_caption=args.in_caption)
        self.grounder, self.settings = load_grounder(args.model, args, protocol, make_accelerator(args))
        self.settings |= {"blocks": len(self.blocks), "block_size": args.block_size}
        self.settings |= {"streaming": True} if args.streaming else {}  # rows of a box each stay apart then
        self.store = RecordStore(args.output, args.split, len(self.blocks), record_schema((), args.save_heatmaps))

    def ground(self, numbers: list[int], title: str | None = None) -> Iterator[int]:
        """The number of rows of each of these blocks when it is written, in order. Args: title: of a progress bar."""
        for block, of_block in groupby(self.grounder.ground(self.blocks, numbers, title), key=itemgetter(0)):
            counts: list[int] = []
            self.store.write(block, counted(of_block, counts))
            yield sum(counts)


def counted(batches: Iterable[tuple[int, list[Record]]], counts: list[int]) -> Iterator[list[Record]]:
    for _, rows in batches:
        counts.append(len(rows))
        yield rows


class Actor:
    """What Ray makes once a process, and gives numbers of blocks. Args: of `BlockGrounder`."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    @cached_property
    def blocks(self) -> BlockGrounder:
        return BlockGrounder(*self.args)

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list]]:
        """One row a block: how many rows it has, or what its user can mend, which Ray would wrap in its own error."""
        try:
            store = self.blocks.store
            for number in batch["number"].tolist():
                # What an actor that died has left is tried again, the blocks that it had finished as well.
                path = store.path(number)
                is_there = path.is_file()
                rows = open_parquet(path).metadata.num_rows if is_there else sum(self.blocks.ground([number]))
                yield {"rows": [rows], "error": [""]}
        except (ValueError, OSError) as error:
            yield {"rows": [0], "error": [str(error)]}


def main(arguments: list[str] | None = None) -> None:
    ground_dataset(parse("ground-dataset", arguments))


def ground_dataset(args: argparse.Namespace) -> None:
    path, columns = data_of_run(args, args.strict)
    if args.num_actors is None and args.ray_address is None:
        gpus = 0 if args.cpu else torch.cuda.device_count()
        args.num_actors = gpus if gpus > 1 else 0
    is_shared = args.num_actors != 0
    # What this process does not ground it only looks at: the GPUs are for the actors.
    here = BlockGrounder(argparse.Namespace(**{**vars(args), "cpu": args.cpu or is_shared}), path, columns)
    store, blocks = here.store, here.blocks
    store.prepare(here.settings | {"data": blocks.fingerprint()}, args.overwrite)
    missing = store.missing()
    if len(missing) < store.num_blocks:
        print(f"{args.split}: going on; {len(missing)} of {store.num_blocks} blocks are missing.")
    start, rows = time.perf_counter(), 0
    if missing and is_shared:
        del here
        with progress_bar(True, total=blocks.num_rows(missing), desc=args.split, unit=" pairs", smoothing=0.1) as bar:
            for number in by_ray(args, path, columns, missing):
                rows += number
                bar.update(number)
    else:
        rows = sum(here.ground(missing, args.split))
    if missing:
        print(f"{rows / (time.perf_counter() - start):.1f} pairs/s")
    tell_what_is_there(store, f"split {args.split} of {args.dataset}")


def by_ray(args: argparse.Namespace, path: str, columns: Columns, missing: list[int]) -> Iterator[int]:
    """The numbers of rows of the missing blocks, each when it is written.

    Raises ValueError: an actor cannot ground them. ImportError: Ray is not installed.
    """
    try:
        from .actors import by_actors
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}, which --num_actors needs: pip install 'albef-amc[eval,scale]'.") from error
    # Actors may start in another folder.
    here = {"model": at_hand(args.model), "output": args.output.absolute()}
    arguments = argparse.Namespace(**{**vars(args), **here}), at_hand(path), columns
    for row in by_actors(Actor, arguments, missing, args.num_actors, args.ray_address, args.cpu):
        if row["error"]:
            raise ValueError(row["error"])
        yield row["rows"]


def at_hand(path: str) -> str:
    """The same file or folder wherever one is; what is not there is the Hub's."""
    return os.path.abspath(path) if os.path.exists(path) else path


def tell_what_is_there(store: RecordStore, name: str) -> None:
    """ValueError: none of the records has an answer."""
    rows, errors = store.count()
    print(f"{store.folder / 'data'} has all {rows:,} rows; {len(errors):,} have an error instead of an answer.")
    if errors and len(errors) == rows:
        raise ValueError(
            f"No row of {name} has an answer; the first: {errors[0]}. When it is mended, start again with --overwrite."
        )
    if errors:
        print(f"The first error: {errors[0]}")


if __name__ == "__main__":
    run_script(main)
