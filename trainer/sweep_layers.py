"""Which layer? Scores every layer of a checkpoint, with --heads every head too, by the pointing game; names the best.

    albef-amc sweep --model outputs/scenes/with_amc --dataset outputs/scenes/data --split validation
    accelerate launch -m trainer.sweep_layers --model Salesforce/blip-itm-base-coco --dataset data/mine --heads

Choose by a split that you do not report on.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from modeling_albef_amc.families.auto import AutoGrounder
from modeling_albef_amc.families.registry import explained_layers
from modeling_albef_amc.gradcam import heatmap_points

from .benchmarks import Protocol, table
from .blocks import open_blocks
from .commands import parse
from .data_collator import record_name
from .evaluation import ImageRecords, RecordGrounder, ahead, batches_of, load_grounder, make_accelerator
from .metrics.pointing_game.pointing_game import point_in_boxes
from .process_group import run_script
from .scoring import check_usable

AVERAGE = "all heads"
# (layer, head) → phrases that it points at; a head is "0", "1", …, or AVERAGE.
Hits = Counter[tuple[int, str]]


class HeadGrounder(AutoGrounder):
    """An engine whose heatmaps are (num_heads, rows, columns)."""

    def method_functions(self, method: str, in_captions: bool = False) -> tuple[Callable, Callable]:
        explain, heatmaps_of = super().method_functions(method, in_captions)
        return explain, partial(heatmaps_of, per_head=True)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return sweep(parse("sweep", arguments))


def sweep(args: argparse.Namespace) -> dict[str, Any]:
    """Returns: "layers": layer → head, or all of them → accuracy; "best": the best layer and its accuracy."""
    accelerator = make_accelerator(args.cpu, args.bf16)
    protocol = Protocol(metrics=("pointing_game",), in_caption=args.in_caption)
    grounder, _ = load_grounder(args.model, args, protocol, accelerator, HeadGrounder)
    layers = explained_layers(grounder.grounder.model, args.explanation)
    source = args.dataset, args.dataset_config, args.split, args.max_examples, args.streaming, args.batch_size
    blocks = open_blocks(*source)
    own = list(range(len(blocks)))[accelerator.process_index :: accelerator.num_processes]
    hits, unusable, num_phrases, num_records = Counter(), [], 0, 0
    batches = (batch for block in own for batch in batches_of(blocks[block], args.batch_size))
    read = ahead(grounder.read, batches, args.num_workers)
    with tqdm(total=blocks.num_rows(own), unit=" phrases", disable=not accelerator.is_main_process) as shown:
        for images in read:
            for layer in layers:
                hits.update(hits_of_layer(grounder, images, layer, args.heads))
            num_phrases += sum(len(found.regions[number][0]) > 0 for found in images for number in found.usable)
            records = [each for found in images for each in zip(found.records, found.errors, strict=True)]
            unusable += [f"{record_name(record)}: {error}" for record, error in records if error is not None]
            num_records += len(records)
            shown.update(len(records))
    found = gather_object([(num_phrases, num_records, hits)])
    num_phrases, num_records = sum(each[0] for each in found), sum(each[1] for each in found)
    hits, unusable = Counter(), gather_object(unusable)
    for *_, of_process in found:
        hits.update(of_process)  # a sum would drop the heads without a hit
    if unusable and accelerator.is_main_process:
        print(f"{len(unusable)} of {num_records} records cannot be used and were left out; the first: {unusable[0]}")
    check_usable(f"Split {args.split} of {args.dataset}", len(unusable), num_records, next(iter(unusable), None))
    if num_phrases == 0:
        raise ValueError(f"Split {args.split} of {args.dataset} has no phrase with a box: nothing to score.")
    result = summarize(layers, hits, num_phrases)
    if accelerator.is_main_process:
        show(result, num_phrases)
        if args.output is not None:
            args.output.mkdir(parents=True, exist_ok=True)
            (args.output / "layers.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def hits_of_layer(grounder: RecordGrounder, images: list[ImageRecords], layer: int, per_head: bool) -> Hits:
    """How many phrases of the images a layer points at, by the mean over its heads and, if asked for, by each head."""
    replace(grounder, options={**grounder.options, "grounding_layer": layer}).explain(images)
    hits: Hits = Counter()
    for found in images:
        for number, of_heads in zip(found.usable, found.image.heatmaps if found.image else ()):
            maps = torch.cat([of_heads.mean(dim=0, keepdim=True), of_heads if per_head else of_heads[:0]])
            points = heatmap_points(maps, torch.tensor([found.image.size]).expand(len(maps), 2)).numpy()
            for head, point in zip([AVERAGE, *map(str, range(len(of_heads)))], points):
                hits[layer, head] += point_in_boxes(point, found.regions[number][0])
    return hits


def summarize(layers: Iterable[int], hits: Hits, num_phrases: int) -> dict[str, Any]:
    heads = sorted({AVERAGE, *(head for _, head in hits)}, key=lambda head: -1 if head == AVERAGE else int(head))
    scores = {layer: {head: hits[layer, head] / num_phrases for head in heads} for layer in layers}
    best = max(layers, key=lambda layer: scores[layer][AVERAGE])
    return {"layers": scores, "best": {"layer": best, "accuracy": scores[best][AVERAGE]}}


def show(result: dict[str, Any], num_phrases: int) -> None:
    """Prints the table: a row a layer; of the heads the best and the worst."""
    rows = {}
    for layer, scores in result["layers"].items():
        row = {AVERAGE: 100 * scores[AVERAGE]}
        heads = {head: score for head, score in scores.items() if head != AVERAGE}
        if heads:
            row |= {"best head": 100 * max(heads.values()), "worst head": 100 * min(heads.values())}
        rows[f"{layer}, best head {max(heads, key=heads.get)}" if heads else str(layer)] = row
    columns = list(next(iter(rows.values())))
    print(table("layer", columns, rows))
    best = result["best"]
    print(f"\nBest of {num_phrases:,} phrases: --grounding_layer {best['layer']} ({100 * best['accuracy']:.1f} %).")


if __name__ == "__main__":
    run_script(main)
