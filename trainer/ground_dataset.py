"""Grounds every phrase of a data set: images and phrases in, one row a phrase out, with score, point and box.

    albef-amc ground-dataset --model outputs/run --dataset data/mine --split train --output outputs/grounded
    accelerate launch -m albef_amc.trainer.ground_dataset … --shard 3/8      # on the fourth of eight machines

`datasets.load_dataset(OUTPUT)` reads the rows. A run that was cut off goes on when it is started again; machines may
share OUTPUT, or their OUTPUT/data are put together afterwards.
"""

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from operator import itemgetter

from accelerate.utils import broadcast_object_list, gather_object

from .benchmarks import GROUNDING_ONLY
from .blocks import open_blocks
from .commands import parse
from .evaluation import data_of_run, load_grounder, make_accelerator, progress_title, share
from .phrase_rows import Record
from .process_group import run_script
from .record_store import RecordStore, record_schema


def main(arguments: list[str] | None = None) -> None:
    ground_dataset(parse("ground-dataset", arguments))


def ground_dataset(args: argparse.Namespace) -> None:
    accelerator = make_accelerator(args)
    path, columns = data_of_run(args, args.strict)
    source = path, args.dataset_config, args.split, args.max_examples, args.streaming, args.block_size
    blocks = open_blocks(*source, columns)
    protocol = replace(GROUNDING_ONLY, in_caption=args.in_caption)
    grounder, settings = load_grounder(args.model, args, protocol, accelerator)
    store = RecordStore(args.output, args.split, len(blocks), record_schema((), args.save_heatmaps))
    settings |= {"data": blocks.fingerprint(), "blocks": len(blocks), "block_size": args.block_size}
    settings |= {"streaming": True} if args.streaming else {}  # rows of a box each stay apart then
    index, number = args.shard
    missing: list[int] = []
    if accelerator.is_main_process:
        store.prepare(settings, args.overwrite)
        missing = [block for block in store.missing() if block % number == index]
        if len(missing) < len(range(index, len(blocks), number)):
            print(f"{args.split}: going on; {len(missing)} of {len(blocks)} blocks are missing.")
    # All must share the same list, made before anyone writes.
    (missing,) = broadcast_object_list([missing])
    start, counts = time.perf_counter(), []

    def counted(batches: Iterable[tuple[int, list[Record]]]) -> Iterator[list[Record]]:
        for _, rows in batches:
            counts.append(len(rows))
            yield rows

    batches = grounder.ground(blocks, share(missing, accelerator), progress_title(args.split, accelerator))
    for block, of_block in groupby(batches, key=itemgetter(0)):
        store.write(block, counted(of_block))
    work = gather_object([(sum(counts), time.perf_counter() - start)])  # when all are done
    if accelerator.is_main_process:
        if missing:
            print(f"{sum(rows for rows, _ in work) / max(seconds for _, seconds in work):.1f} pairs/s")
        tell_what_is_there(store, f"split {args.split} of {args.dataset}")


def tell_what_is_there(store: RecordStore, name: str) -> None:
    """ValueError: all records are there, and none of them has an answer."""
    if left := store.missing():
        print(f"{len(left)} of {store.num_blocks} blocks are missing here: those of the other shards.")
        return
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
