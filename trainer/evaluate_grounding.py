"""Scores where checkpoints point: pointing game and box accuracy on splits of a data set, a table, and pictures.

    albef-amc evaluate --models base=outputs/scenes/base with_amc=outputs/scenes/with_amc \\
        --dataset outputs/scenes/data --splits validation test --output outputs/scenes
    accelerate launch -m albef_amc.trainer.evaluate_grounding --models mine=outputs/run --dataset data/x

Every phrase leaves a row in OUTPUT/records/NAME/SPLIT.parquet; a split that has its file is not scored again.
"""

import argparse
import json
import time
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from .benchmarks import BENCHMARKS, TITLES, Protocol, published_table, table
from .blocks import Blocks, FileBlocks, open_blocks
from .commands import parse
from .data_checks import check_boxes
from .evaluation import RecordGrounder, data_of_run, load_grounder, make_accelerator, progress_title, share
from .heatmap_grid import choose_cases, gallery, grid_of_batch
from .process_group import run_script
from .record_store import OF_HEATMAPS, check_split, read_records, record_schema, write_records
from .scoring import check_usable, summarize
from .splits import split_names
from .uncertainty import compared, told


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    return evaluate(parse("evaluate", arguments))


def evaluate(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Returns: model → split → share of right answers by the protocol's first metric, on every process."""
    accelerator = make_accelerator(args)
    protocol = replace(BENCHMARKS[args.benchmark] if args.benchmark else Protocol(), in_caption=args.in_caption)
    splits = open_splits(args, protocol)
    report: dict[str, Any] = {"dataset": args.dataset, "dataset_config": args.dataset_config, "models": {}}
    chosen, heatmaps = [], {}  # the records of the picture, and each model's heatmaps of them
    all_records: dict[str, dict[str, pa.Table]] = {split: {} for split in splits}  # split → model → records
    for name, path in args.models.items():
        grounder, settings = load_grounder(path, args, protocol, accelerator)
        report["protocol"] = grounder.protocol.spelled_out()
        report["models"][name] = {}
        records = {}
        for split, blocks in splits.items():
            file = args.output / "records" / name / f"{split}.parquet"
            title = progress_title(f"{name}, {split}", accelerator)
            records[split], speed = score_split(grounder, blocks, file, settings, args.overwrite, accelerator, title)
            if accelerator.is_main_process:
                summary = checked_summary(records[split], protocol, f"{name}: Split {split} of {args.dataset}")
                report["models"][name][split] = {**summary, "pairs_per_second": speed}
                if args.gallery:
                    cases = choose_cases(records[split], protocol.metrics[0], args.gallery)
                    cases = {kind: blocks.records_at(positions) for kind, positions in cases.items()}
                    gallery(cases, grounder.pictured, name).save(args.output / f"gallery-{name}-{split}.png")
        if accelerator.is_main_process and args.num_pictured:
            chosen = chosen or picture_records(splits, records, args.num_pictured)
            drawn, heatmaps[name] = grounder.pictured(chosen)
        if accelerator.is_main_process:
            for split, of_split in records.items():
                all_records[split][name] = of_split.select(["image_id", "error", protocol.metrics[0]])
    results: dict[str, dict[str, float]] = {}
    if accelerator.is_main_process:
        metric = protocol.metrics[0]
        report["compared"] = {split: compared(of_models, metric) for split, of_models in all_records.items()}
        results = write_results(args.output, report, protocol)
        tell_of_other_phrases(all_records)
        if args.num_pictured:
            grid_of_batch(drawn, heatmaps).save(args.output / "heatmaps.png")
            print(f"\n{args.output / 'results.json'} and {args.output / 'heatmaps.png'} written.")
    (results,) = broadcast_object_list([results])
    return results


def open_splits(args: argparse.Namespace, protocol: Protocol) -> dict[str, Blocks | FileBlocks]:
    """The splits to score, their boxes checked; sets `args.box_format`."""
    splits, (path, columns) = {}, data_of_run(args, args.strict)
    names = args.splits or protocol.splits
    if len(names) > 1 and Path(path).is_file() and not split_names(path, args.dataset_config):
        raise ValueError(f"{args.dataset} is a file, of one split: name it, e.g. --splits {names[0]}")
    for split in names:
        check_split(split)
        source = path, args.dataset_config, split, args.max_examples, args.streaming, args.batch_size
        splits[split] = open_blocks(*source, columns, needs_regions=True)
        args.box_format = columns.box_format or "xyxy"
        check_boxes(splits[split].dataset, args.box_format, f"split {split} of {args.dataset}")
    return splits


def score_split(
    grounder: RecordGrounder,
    blocks: Blocks | FileBlocks,
    file: Path,
    settings: dict[str, Any],
    overwrite: bool,
    accelerator: Accelerator,
    title: str | None,
) -> tuple[pa.Table | None, float | None]:
    """The records of a split, from `file` or grounded now; all processes call it together.

    Args:
        settings: what the records depend on, apart from the data. title: of the progress bar.

    Returns: on the main process the records; and pairs per second, all processes together, of a split grounded now.
    """
    records, settings = None, {**settings, "data": blocks.fingerprint()}
    if accelerator.is_main_process and not overwrite:
        records = read_records(file, settings)
    (is_there,) = broadcast_object_list([records is not None])
    if is_there:
        return records, None
    schema = record_schema(grounder.protocol.metrics, grounder.heatmaps, grounder.faithfulness)
    start = time.perf_counter()
    batches = grounder.ground(blocks, share(list(range(len(blocks))), accelerator), title)
    parts = [(number, pa.Table.from_pylist(rows, schema)) for number, rows in batches]
    seconds = max(gather_object([time.perf_counter() - start]))
    parts = gather_object(parts)
    if not accelerator.is_main_process:
        return None, None
    records = pa.concat_tables(part for _, part in sorted(parts, key=itemgetter(0))).combine_chunks()
    write_records(file, records, settings)
    return records, len(records) / seconds


def checked_summary(records: pa.Table, protocol: Protocol, name: str) -> dict[str, Any]:
    """The numbers of a split. ValueError: no phrase of it can be scored, or most records cannot be used."""
    summary = summarize(records, protocol.metrics)
    num_records, num_unusable = summary["num_records"], summary["num_unusable"]
    if num_unusable:
        print(f"{name}: {num_unusable} of {num_records} records cannot be used and were left out, such as")
        print("\n".join(f"  {line}" for line in summary["unusable"]))
    check_usable(name, num_unusable, num_records, summary.get("unusable", []))
    if protocol.metrics[0] not in summary:
        raise ValueError(f"{name} has no phrase with a box: nothing to score.")
    if "absent" in summary:
        of_absent = summary["absent"]
        print(f"{name}: AUROC of true against {of_absent['num_phrases']} absent phrases: {of_absent['auroc']:.3f}")
    if "deletion" in summary:
        deletion, insertion = (summary[each]["mean"] for each in OF_HEATMAPS)
        print(f"{name}: deletion {deletion:.3f} (the lower, the better), insertion {insertion:.3f} (the higher)")
    return summary


def write_results(output: Path, report: dict[str, Any], protocol: Protocol) -> dict[str, dict[str, float]]:
    """Writes results.json, report.json and, for a benchmark, table.md; prints the table.

    Returns: model → split → accuracy by the first metric.
    """
    metric, models = protocol.metrics[0], report["models"]
    results = {name: {split: found[metric]["accuracy"] for split, found in of.items()} for name, of in models.items()}
    splits = list(next(iter(results.values())))
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (output / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    if protocol.published:
        drawn = published_table(protocol, models, splits)
        (output / "table.md").write_text(drawn + "\n")
    else:
        percent = {name: {split: 100 * score for split, score in of.items()} for name, of in results.items()}
        drawn = table(f"{TITLES[metric]}, %", splits, percent)
    print(drawn)
    for split in splits:
        bounds = {name: [100 * bound for bound in of[split][metric]["interval"]] for name, of in models.items()}
        said = "; ".join(f"{name} {low:.1f} to {high:.1f}" for name, (low, high) in bounds.items())
        print(f"{split}, 95 % intervals: {said}", *(told(split, pair) for pair in report["compared"][split]), sep="\n")
    return results


def tell_of_other_phrases(records: dict[str, dict[str, pa.Table]]) -> None:
    """Says where models could not use the same records: theirs are numbers of different phrases.

    `records`: split → model → records.
    """
    for split, of_models in records.items():
        usable = {name: table["error"].is_null().to_pylist() for name, table in of_models.items()}
        first = next(iter(usable.values()))
        if any(of_model != first for of_model in usable.values()):
            counts = ", ".join(f"{name} {sum(of_model)}" for name, of_model in usable.items())
            print(
                f"Split {split}: the models could use different ones of its {len(first)} records ({counts}), so that "
                "their numbers are of different phrases. To compare them, mend or drop those that were left out."
            )


def picture_records(
    splits: dict[str, Blocks | FileBlocks], records: dict[str, pa.Table], count: int
) -> list[dict[str, Any]]:
    """The records of the picture: `count` in all, from every split alike, spread evenly over its usable ones."""
    chosen = []
    for number, (split, blocks) in enumerate(splits.items()):
        usable = [row for row, error in enumerate(records[split]["error"].to_pylist()) if error is None]
        part = min(count // len(splits) + (number < count % len(splits)), len(usable))
        chosen += blocks.records_at(usable[i * len(usable) // part] for i in range(part))
    return chosen


if __name__ == "__main__":
    run_script(main)
