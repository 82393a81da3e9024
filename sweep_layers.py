"""Which layer? Scores every layer of a checkpoint, with --heads every head too, by the pointing game; names the best.

    accelerate launch sweep_layers.py --model outputs/scenes/with_amc --dataset outputs/scenes/data --split validation
    accelerate launch sweep_layers.py --model Salesforce/blip-itm-base-coco --dataset data/mine --heads

Choose by a split that you do not report on.
"""

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from evaluate_grounding import add_run_arguments, apply_protocol, make_grounder
from modeling_albef_amc.families import explained_layers, heatmap_function
from modeling_albef_amc.gradcam import heatmap_points
from trainer.benchmarks import Protocol, table
from trainer.blocks import open_blocks
from trainer.data_collator import record_name
from trainer.evaluation import Batch, Grounder, ahead, numbered_batches
from trainer.grounding_run import make_accelerator
from trainer.metrics.pointing_game.pointing_game import point_in_boxes
from trainer.process_group import run_script
from trainer.scoring import check_usable

AVERAGE = "all heads"
# (layer, head) → phrases that it points at; a head is "0", "1", …, or AVERAGE.
Hits = Counter[tuple[int, str]]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Returns: "layers": layer → head, or all of them → accuracy; "best": the best layer and its accuracy."""
    args = parse_arguments(arguments)
    accelerator = make_accelerator(args.cpu, args.bf16)
    grounder = make_grounder(args.model, args, Protocol(metrics=("pointing_game",)), accelerator)
    apply_protocol(grounder, args)
    layers = explained_layers(grounder.model, args.explanation)
    grounder.model = accelerator.prepare_model(grounder.model, evaluation_mode=True)
    source = args.dataset, args.dataset_config, args.split, args.max_examples, args.streaming, args.block_size
    blocks = open_blocks(*source)
    own = list(range(len(blocks)))[accelerator.process_index :: accelerator.num_processes]
    hits: Hits = Counter()
    num_phrases, num_records, unusable = 0, 0, []
    batches = numbered_batches(blocks, own, args.batch_size)
    read = ahead(lambda item: grounder.read(item[1]), batches, args.num_workers)
    shown = tqdm(total=blocks.num_rows(own), unit=" phrases", disable=not accelerator.is_main_process)
    for batch in read:
        for layer in layers:
            hits.update(hits_of_layer(grounder, batch, layer, args.heads))
        num_phrases += sum(len(phrase.boxes) > 0 for phrase in batch.usable)
        num_records += len(batch.phrases)
        errors = ((record_name(phrase.record), phrase.error) for phrase in batch.phrases if phrase.error is not None)
        unusable += [f"{name}: {error}" for name, error in errors]
        shown.update(len(batch.phrases))
    shown.close()
    found = gather_object([(num_phrases, num_records, hits)])
    num_phrases, num_records = sum(each[0] for each in found), sum(each[1] for each in found)
    hits, unusable = sum((each[2] for each in found), Counter()), gather_object(unusable)
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


def hits_of_layer(grounder: Grounder, batch: Batch, layer: int, per_head: bool) -> Hits:
    """How many phrases of the batch a layer points at, by the mean over its heads and, if asked for, by each head."""
    explain = grounder.explain
    grounder = replace(grounder, explain=lambda *inputs: explain(*inputs, layer=layer))
    hits: Hits = Counter()
    explained = grounder.explain_batch(batch)
    if explained is None:
        return hits
    maps = heatmap_function(grounder.method)(explained, per_head=True).cpu()
    maps = torch.cat([maps.mean(dim=1, keepdim=True), maps], dim=1) if per_head else maps.mean(dim=1, keepdim=True)
    sizes = torch.tensor([phrase.size for phrase in batch.usable])
    for number, of_head in enumerate(maps.unbind(dim=1)):
        name = AVERAGE if number == 0 else str(number - 1)
        points = heatmap_points(of_head, sizes).numpy()
        for phrase, point in zip(batch.usable, points, strict=True):
            hits[layer, name] += len(phrase.boxes) > 0 and point_in_boxes(point, phrase.boxes)
    return hits


def summarize(layers: Any, hits: Hits, num_phrases: int) -> dict[str, Any]:
    heads = sorted({head for _, head in hits}, key=lambda head: -1 if head == AVERAGE else int(head))
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


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, metavar="CHECKPOINT", help="of any known family")
    parser.add_argument("--split", default="validation", help="of the data set (default: validation)")
    parser.add_argument("--heads", action="store_true", help="score every head of a layer too")
    parser.add_argument("--max_examples", type=int, help="score the first so many phrases only")
    parser.add_argument("--output", type=Path, help="folder for layers.json")
    add_run_arguments(parser)
    args = parser.parse_args(arguments)
    if args.method == "relevance" or args.grounding_layer is not None:
        parser.error("layers are compared by --method gradcam or attention, without --grounding_layer")
    return args


if __name__ == "__main__":
    run_script(main)
