"""Which layer? Scores every layer of a checkpoint, with --heads every head too, by the pointing game; names the best.

    albef-amc sweep --model outputs/scenes/with_amc --dataset outputs/scenes/data --split validation
    accelerate launch -m albef_amc.trainer.sweep_layers --model Salesforce/blip-itm-base-coco --dataset data/x --heads

Choose by a split that you do not report on.
"""

import argparse
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object

from modeling_albef_amc.families.registry import explained_layers
from modeling_albef_amc.gradcam import heatmap_points
from modeling_albef_amc.processing_albef import check_heatmaps

from .benchmarks import Protocol, table
from .blocks import open_blocks
from .commands import parse
from .data_checks import check_boxes
from .evaluation import (
    ImageQuestions,
    RecordGrounder,
    data_of_run,
    load_grounder,
    make_accelerator,
    progress_bar,
    share,
)
from .heads import HeadGrounder
from .metrics.pointing_game.pointing_game import point_in_boxes
from .process_group import run_script
from .scoring import check_usable

AVERAGE = "all heads"
NUM_BEST = 5
# (layer, head) → phrases that it points at; a head is "0", "1", …, or AVERAGE.
Hits = Counter[tuple[int, str]]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return sweep(parse("sweep", arguments))


def sweep(args: argparse.Namespace) -> dict[str, Any]:
    """Returns: "layers": layer → head, or all of them → accuracy; "best": the best layer and its accuracy; with --heads
    "best_heads": "layer.head" → accuracy, the best few of all layers.
    """
    accelerator = make_accelerator(args)
    protocol = Protocol(metrics=("pointing_game",), in_caption=args.in_caption)
    (path, columns), name = data_of_run(args, args.strict), f"Split {args.split} of {args.dataset}"
    source = path, args.dataset_config, args.split, args.max_examples, args.streaming, args.batch_size
    blocks = open_blocks(*source, columns, needs_regions=True)
    args.box_format = columns.box_format or "xyxy"
    check_boxes(blocks.dataset, args.box_format, name)
    grounder, _ = load_grounder(args.model, args, protocol, accelerator, HeadGrounder)
    layers = explained_layers(grounder.grounder.model, args.explanation)
    own = share(list(range(len(blocks))), accelerator)
    hits, unusable, num_phrases, num_records = Counter(), [], 0, 0
    with progress_bar(accelerator.is_main_process, total=blocks.num_rows(own), unit=" phrases") as shown:
        for _, images in grounder.read_blocks(blocks, own):
            for layer in layers:
                hits.update(hits_of_layer(grounder, images, layer, args.heads))
            questions = [question for found in images for question in found.questions]
            unusable += [str(question) for question in questions if question.error is not None]
            num_phrases += sum(question.error is None and len(question.boxes) > 0 for question in questions)
            num_records += len(questions)
            shown.update(len(questions))
    unusable, found = gather_object(unusable), gather_object([(num_phrases, num_records, hits)])
    num_phrases, num_records = sum(each[0] for each in found), sum(each[1] for each in found)
    hits = Counter()
    for *_, of_process in found:
        hits.update(of_process)  # a sum would drop the heads without a hit
    if unusable and accelerator.is_main_process:
        print(f"{len(unusable)} of {num_records} records cannot be used and were left out; the first: {unusable[0]}")
    check_usable(name, len(unusable), num_records, unusable)
    if num_phrases == 0:
        raise ValueError(f"{name} has no phrase with a box: nothing to score.")
    heads = [AVERAGE, *sorted({head for _, head in hits if head != AVERAGE}, key=int)]
    scores = {layer: {head: hits[layer, head] / num_phrases for head in heads} for layer in layers}
    best = max(layers, key=lambda layer: scores[layer][AVERAGE])
    result: dict[str, Any] = {"layers": scores, "best": {"layer": best, "accuracy": scores[best][AVERAGE]}}
    if args.heads:
        of_heads = {f"{layer}.{head}": scores[layer][head] for layer in layers for head in heads if head != AVERAGE}
        result["best_heads"] = dict(sorted(of_heads.items(), key=lambda each: -each[1])[:NUM_BEST])
    if accelerator.is_main_process:
        show(scores)
        accuracy = 100 * scores[best][AVERAGE]
        print(f"\nBest of {num_phrases:,} phrases: --grounding_layer {best} ({accuracy:.1f} %).")
        if args.heads:
            found = ", ".join(f"{name} ({100 * value:.1f} %)" for name, value in result["best_heads"].items())
            print(f"Best heads: {found}. `evaluate --heads` takes some of them, with commas between.")
        if args.output is not None:
            args.output.mkdir(parents=True, exist_ok=True)
            (args.output / "layers.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def hits_of_layer(grounder: RecordGrounder, images: list[ImageQuestions], layer: int, per_head: bool) -> Hits:
    """How many phrases of the images a layer points at, by the mean over its heads and, if asked for, by each head."""
    replace(grounder, options={**grounder.options, "grounding_layer": layer}).explain(images)
    hits: Hits = Counter()
    for found in images:
        for question, of_heads in zip(found.usable, found.image.heatmaps if found.image else ()):
            check_heatmaps(of_heads)
            maps = torch.cat([of_heads.mean(dim=0, keepdim=True), of_heads if per_head else of_heads[:0]])
            points = heatmap_points(maps, torch.tensor([found.image.size]).expand(len(maps), 2)).numpy()
            for head, point in zip([AVERAGE, *map(str, range(len(of_heads)))], points):
                hits[layer, head] += point_in_boxes(point, question.boxes)
    return hits


def show(scores: dict[int, dict[str, float]]) -> None:
    """Prints the table: a row a layer; of the heads the best and the worst."""
    rows = {}
    for layer, of_layer in scores.items():
        row, name = {AVERAGE: 100 * of_layer[AVERAGE]}, str(layer)
        heads = {head: score for head, score in of_layer.items() if head != AVERAGE}
        if heads:
            row |= {"best head": 100 * max(heads.values()), "worst head": 100 * min(heads.values())}
            name += f", best head {max(heads, key=heads.get)}"
        rows[name] = row
    print(table("layer", list(row), rows))


if __name__ == "__main__":
    run_script(main)
