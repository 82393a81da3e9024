"""Grounds every phrase of a data set: images and phrases in, one row a phrase out, with score, point and box.

    accelerate launch ground_dataset.py --model outputs/run --dataset data/mine --split train --output outputs/grounded
    accelerate launch ground_dataset.py … --shard 3/8      # on the fourth of eight machines

`datasets.load_dataset(OUTPUT)` reads the rows. A run that was cut off goes on when it is started again; machines may
share OUTPUT, or their OUTPUT/data are put together afterwards.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from evaluate_grounding import add_run_arguments, apply_protocol, make_grounder
from trainer.benchmarks import GROUNDING_ONLY
from trainer.blocks import open_blocks
from trainer.grounding_run import RunOptions, ground_split, make_accelerator
from trainer.process_group import run_script


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    accelerator = make_accelerator(args.cpu, args.bf16)
    blocks = open_blocks(
        args.dataset, args.dataset_config, args.split, args.max_examples, args.streaming, args.block_size, args.columns
    )
    protocol = replace(GROUNDING_ONLY, in_caption=args.in_caption)
    grounder = make_grounder(args.model, args, protocol, accelerator)
    settings = apply_protocol(grounder, args)
    grounder.model = accelerator.prepare_model(grounder.model, evaluation_mode=True)
    options = RunOptions(args.batch_size, args.num_workers, args.overwrite, args.shard)
    store, speed = ground_split(grounder, blocks, args.output, args.split, settings, options, args.split)
    if accelerator.is_main_process:
        if speed is not None:
            print(f"{speed:.1f} pairs/s")
        missing = store.missing()
        if missing:
            print(f"{len(missing)} of {len(blocks)} blocks are missing here: those of the other shards.")
        else:
            rows, unusable = sum(store.counts()), []
            for table in store.tables(["error"]):
                unusable += table["error"].drop_null().to_pylist()
            count = f"{len(unusable):,} have an error instead of an answer."
            print(f"{args.output / 'data'} has all {rows:,} rows; {count}")
            if unusable and len(unusable) == rows:
                raise ValueError(
                    f"No row of split {args.split} of {args.dataset} has an answer; the first: {unusable[0]}. When it "
                    "is mended, start again with --overwrite."
                )
            if unusable:
                print(f"The first error: {unusable[0]}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, metavar="CHECKPOINT", help="of any known family")
    parser.add_argument("--split", default="train", help="of the data set (default: train)")
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="OURS=THEIRS", help="e.g. phrase=caption image_id=key"
    )
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="machine I of N, counted from 0 (default: 0/1)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--max_examples", type=int, help="ground the first so many rows only")
    add_run_arguments(parser)
    args = parser.parse_args(arguments)
    index, slash, number = args.shard.partition("/")
    if not (slash and index.isdecimal() and number.isdecimal() and int(index) < int(number)):
        parser.error("--shard takes I/N with I from 0 to N - 1, e.g. 3/8 on the fourth of eight machines")
    args.shard = int(index), int(number)
    if args.overwrite and args.shard != (0, 1):
        parser.error(
            "--overwrite would delete what other machines made: delete the folder first, then start the shards"
        )
    if any("=" not in column for column in args.columns):
        parser.error("--columns takes OURS=THEIRS pairs, e.g. phrase=caption")
    args.columns = {theirs: ours for ours, theirs in (column.split("=", 1) for column in args.columns)}
    return args


if __name__ == "__main__":
    run_script(main)
