"""Scores where checkpoints point: pointing game and box accuracy on splits of a data set, a table, and pictures.

    accelerate launch evaluate_grounding.py --models base=outputs/scenes/base with_amc=outputs/scenes/with_amc \\
        --dataset outputs/scenes/data --splits validation test --output outputs/scenes
    accelerate launch evaluate_grounding.py --benchmark refcoco+ --models mine=outputs/run --dataset data/refcoco_plus

Every phrase leaves a row in OUTPUT/records/NAME; a run that was cut off goes on from there.
"""

import argparse
import json
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from modeling_albef_amc import explain_function
from modeling_albef_amc.auto_grounder import add_hub_arguments, hub_options, load_model, load_processor
from modeling_albef_amc.families import METHODS
from modeling_albef_amc.processing_albef import cleans_text
from trainer.benchmarks import BENCHMARKS, TITLES, Protocol, published_table, table
from trainer.blocks import Blocks, FileBlocks, open_blocks, record_at
from trainer.evaluation import Grounder
from trainer.gallery import choose_cases, gallery
from trainer.grounding_run import RunOptions, ground_split, make_accelerator, model_settings
from trainer.heatmap_grid import grid_of_batch
from trainer.process_group import run_script
from trainer.record_store import HEATMAP_TYPES, RecordStore
from trainer.regions import BOX_FORMATS
from trainer.scoring import Tally, check_usable


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Returns: model → split → share of right answers by the protocol's first metric, on every process."""
    args = parse_arguments(arguments)
    accelerator = make_accelerator(args.cpu, args.bf16)
    protocol = replace(BENCHMARKS[args.benchmark] if args.benchmark else Protocol(), in_caption=args.in_caption)
    source = args.dataset, args.dataset_config
    splits = {
        split: open_blocks(*source, split, args.max_examples, args.streaming, args.block_size)
        for split in args.splits or protocol.splits
    }
    report: dict[str, Any] = {"dataset": args.dataset, "dataset_config": args.dataset_config, "models": {}}
    pictured: tuple[list[dict], dict] = [], {}
    options = RunOptions(args.batch_size, args.num_workers, args.overwrite)
    for name, path in args.models.items():
        grounder = make_grounder(path, args, protocol, accelerator)
        settings = apply_protocol(grounder, args)
        grounder.model = accelerator.prepare_model(grounder.model, evaluation_mode=True)
        report["protocol"] = grounder.protocol.spelled_out()
        report["models"][name] = {}
        stores = {}
        for split, blocks in splits.items():
            title, folder = f"{name}, {split}", args.output / "records" / name
            stores[split], speed = ground_split(grounder, blocks, folder, split, settings, options, title)
            if accelerator.is_main_process:
                summary = summarize(stores[split], protocol, f"Split {split} of {args.dataset}")
                report["models"][name][split] = {**summary, "pairs_per_second": speed}
                if args.gallery:
                    draw_gallery(grounder, blocks, stores[split], args, name, split)
        if accelerator.is_main_process and args.num_pictured:
            records = pictured[0] or picture_records(grounder, splits, stores, args.num_pictured)
            pictured = records, {**pictured[1], name: grounder.heatmaps_of(records)}
    results: dict[str, dict[str, float]] = {}
    if accelerator.is_main_process:
        results = write_results(args.output, report, protocol)
        if args.num_pictured:
            grid_of_batch(*pictured).save(args.output / "heatmaps.png")
            print(f"\n{args.output / 'results.json'} and {args.output / 'heatmaps.png'} written.")
    (results,) = broadcast_object_list([results])
    return results


def make_grounder(path: str, args: argparse.Namespace, protocol: Protocol, accelerator: Accelerator) -> Grounder:
    """A checkpoint of any known family, explained as the settings of `add_run_arguments` say.

    Raises:
        ValueError: the family is unknown, or cannot be explained so.
    """
    if args.in_caption and args.method == "relevance":
        raise ValueError("relevance is of a whole text: leave out --in_caption or take another --method.")
    hub = hub_options(vars(args))
    model = load_model(path, attn_implementation=args.attn_implementation, **hub)
    names = {"layer": args.grounding_layer, "explanation": args.explanation}
    options = {name: value for name, value in names.items() if value is not None}
    explain = partial(explain_function(model, args.method), **options)
    grounder = Grounder(model, explain, load_processor(path, model, **hub), protocol, accelerator)
    options = {"heatmaps": args.save_heatmaps, "strict": args.strict, "method": args.method}
    return replace(grounder, **options, box_format=args.box_format)


def apply_protocol(grounder: Grounder, args: argparse.Namespace) -> dict[str, Any]:
    """Sets the processor to the protocol, fills in what that leaves open, and says what the records depend on."""
    processor, protocol = grounder.processor, grounder.protocol
    if protocol.image_size is not None:
        processor.image_processor.size = {"height": protocol.image_size, "width": protocol.image_size}
    max_words = None
    if cleans_text(processor):  # no other family counts words
        max_words = processor.max_words = protocol.max_words or processor.max_words
    size = processor.image_processor.size["height"]
    grounder.protocol = replace(protocol, image_size=size, max_words=max_words)
    return {
        **model_settings(grounder.model, processor),
        "protocol": grounder.protocol.spelled_out(),
        "heatmaps": grounder.heatmaps,
        **{name: getattr(args, name) for name in ("bf16", "method", "explanation", "grounding_layer", "box_format")},
    }


def summarize(store: RecordStore, protocol: Protocol, name: str) -> dict[str, Any]:
    """The numbers of a split.

    Raises:
        ValueError: no phrase of it can be scored.
    """
    store.counts()  # raises where blocks are missing
    columns = ["image_id", "phrase", "categories", "score", "absent", "error", *protocol.metrics]
    tally = Tally.of(store.tables(columns), protocol.metrics)
    if tally.num_unusable:
        print(f"{name}: {tally.num_unusable} of {tally.num_records} records cannot be used and were left out, such as")
        print("\n".join(f"  {line}" for line in tally.unusable))
    check_usable(name, tally.num_unusable, tally.num_records, next(iter(tally.unusable), None))
    if tally.scored[protocol.metrics[0], None] == 0:
        raise ValueError(f"{name} has no phrase with a box: nothing to score.")
    summary = tally.summary()
    if "absent" in summary:
        of_absent = summary["absent"]
        print(f"{name}: AUROC of true against {of_absent['num_phrases']} absent phrases: {of_absent['auroc']:.3f}")
    return summary


def write_results(output: Path, report: dict[str, Any], protocol: Protocol) -> dict[str, dict[str, float]]:
    """Writes results.json, report.json and, for a benchmark, table.md; prints the table.

    Returns: model → split → accuracy by the first metric.
    """
    metric = protocol.metrics[0]
    models = report["models"]
    results = {name: {split: found[metric]["accuracy"] for split, found in of.items()} for name, of in models.items()}
    splits = list(next(iter(results.values())))
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (output / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    if protocol.published:
        own = {
            f"{name}, in captions" if protocol.in_caption else name: {
                (split, m): 100 * of[split][m]["accuracy"]
                for split in splits
                for m in protocol.metrics
                if m in of[split]
            }
            for name, of in models.items()
        }
        drawn = published_table(protocol, own, splits)
        (output / "table.md").write_text(drawn + "\n")
    else:
        percent = {name: {split: 100 * score for split, score in of.items()} for name, of in results.items()}
        drawn = table(f"{TITLES[metric]}, %", splits, percent)
    print(drawn)
    return results


def picture_records(
    grounder: Grounder, splits: dict[str, Blocks | FileBlocks], stores: dict[str, RecordStore], count: int
) -> list[dict]:
    """The records of the picture: `count` in all, from every split alike, spread evenly over its usable ones."""
    records = []
    for number, (split, blocks) in enumerate(splits.items()):
        errors = chain.from_iterable(t["error"].to_pylist() for t in stores[split].tables(["error"]))
        usable = [position for position, error in enumerate(errors) if error is None]
        share = min(count // len(splits) + (number < count % len(splits)), len(usable))
        counts = stores[split].counts()
        records += [record_at(blocks, counts, usable[i * len(usable) // share]) for i in range(share)]
    return [grounder.with_boxes(record) for record in records]


def draw_gallery(
    grounder: Grounder, blocks: Blocks | FileBlocks, store: RecordStore, args: argparse.Namespace, name: str, split: str
) -> None:
    metric, counts = grounder.protocol.metrics[0], store.counts()
    cases = choose_cases(store.tables(["score", metric]), metric, args.gallery)
    chosen = {
        kind: [grounder.with_boxes(record_at(blocks, counts, position)) for position in positions]
        for kind, positions in cases.items()
    }
    gallery(chosen, grounder.heatmaps_of, name).save(args.output / f"gallery-{name}-{split}.png")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What any grounding of a data set can be told."""
    add_hub_arguments(parser)
    parser.add_argument("--dataset", required=True, help="folder of Parquet files, or Hub id")
    parser.add_argument("--dataset_config", help="its configuration, where it has several")
    parser.add_argument(
        "--box_format", choices=BOX_FORMATS, default="xyxy", help="what the data's boxes are (default: xyxy, pixels)"
    )
    parser.add_argument("--streaming", action="store_true", help="read its files as they come; a block is one of them")
    parser.add_argument("--batch_size", type=int, default=64, help="phrases a pass (default: 64)")
    parser.add_argument(
        "--block_size", type=int, default=1024, help="rows a block, see trainer/blocks.py (default: 1024)"
    )
    parser.add_argument("--num_workers", type=int, default=2, help="threads a process that read ahead (default: 2)")
    parser.add_argument(
        "--save_heatmaps",
        nargs="?",
        const="float32",
        choices=list(HEATMAP_TYPES),
        help="keep the maps over the patches; values below 6e-8 are lost to float16 (default type: float32)",
    )
    parser.add_argument(
        "--in_caption",
        action="store_true",
        help="ask with the row's caption instead of its phrase and average the maps of the phrase's word pieces "
        "(caption_span) only; the score is then the probability that the whole caption fits",
    )
    parser.add_argument(
        "--method", choices=list(METHODS), default="gradcam", help="what makes the heatmaps (default: gradcam)"
    )
    parser.add_argument("--explanation", choices=["itm", "itc"], help="score to explain (default: the family's own)")
    parser.add_argument("--grounding_layer", type=int, help="layer to explain (default: the model's own)")
    parser.add_argument("--strict", action="store_true", help="stop at a record that cannot be used")
    parser.add_argument("--overwrite", action="store_true", help="start anew, whatever records are there")
    parser.add_argument("--attn_implementation", help="attention below and beside the explained one, e.g. sdpa")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where that is safe")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU that is there")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=CHECKPOINT", help="what to compare")
    parser.add_argument(
        "--benchmark", choices=list(BENCHMARKS), help="its protocol, and what was published, in the table"
    )
    parser.add_argument("--splits", nargs="+", help="splits to score (default: the benchmark's; test)")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for results, pictures and records")
    parser.add_argument("--max_examples", type=int, help="score this many phrases a split only")
    parser.add_argument("--num_pictured", type=int, default=8, help="rows of heatmaps.png (default: 8)")
    parser.add_argument("--gallery", type=int, default=0, metavar="N", help="draw N best, worst and random cases each")
    add_run_arguments(parser)
    args = parser.parse_args(arguments)
    if any("=" not in model for model in args.models):
        parser.error("--models takes NAME=CHECKPOINT pairs, e.g. mine=outputs/run")
    args.models = dict(model.split("=", 1) for model in args.models)
    if any("/" in name or name.startswith(".") for name in args.models):
        parser.error("names in --models become names of folders: leave out / and a dot in front")
    return args


if __name__ == "__main__":
    run_script(main)
