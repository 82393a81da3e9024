"""Compares where checkpoints point: pointing game on splits of a data set, a table, and a picture.

    accelerate launch evaluate_grounding.py --models base=outputs/scenes/base with_amc=outputs/scenes/with_amc \\
        --dataset outputs/scenes/data --splits validation test --output outputs/scenes
"""

import argparse
import json
from pathlib import Path

import evaluate
import torch
from accelerate import Accelerator
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedModel, ProcessorMixin

from modeling_albef_amc import explain_function
from train import load_split, model_class
from trainer.data_collator import GroundingCollator
from trainer.evaluation import batch_heatmaps, point_at
from trainer.heatmap_grid import grid_of_batch

METRIC = Path(__file__).parent / "trainer" / "metrics" / "pointing_game"


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    args = parse_arguments(arguments)
    accelerator = Accelerator(cpu=args.cpu, mixed_precision="bf16" if args.bf16 else "no")
    pointing_game = evaluate.load(str(METRIC))
    datasets = {split: load_split(args.dataset, args.dataset_config, split, args.max_examples) for split in args.splits}
    results: dict[str, dict[str, float]] = {}
    pictured: dict[str, torch.Tensor] = {}
    for name, path in args.models.items():
        model, processor = load_model(path, args.attn_implementation)
        explain = explain_function(model)
        collator = GroundingCollator(processor).for_evaluation()
        results[name] = {}
        for split, dataset in datasets.items():
            points, boxes = point_at(
                model, explain, dataset, collator, args.batch_size, accelerator, description=f"{name}, {split}"
            )
            annotated = [i for i, phrase_boxes in enumerate(boxes) if len(phrase_boxes)]
            if not annotated:
                raise ValueError(f"Split {split} of {args.dataset} has no phrase with a box: nothing to score.")
            score = pointing_game.compute(points=points[annotated], boxes=[boxes[i] for i in annotated])
            results[name][split] = score["pointing_game"]
        records = picture_records(list(datasets.values()), args.num_pictured)
        batch = {key: value.to(accelerator.device) for key, value in tensors(collator(records)).items()}
        pictured[name] = batch_heatmaps(model, explain, batch)
    if accelerator.is_main_process:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        grid_of_batch(records, pictured).save(args.output / "heatmaps.png")
        print(table(results))
        print(f"\n{args.output / 'results.json'} and {args.output / 'heatmaps.png'} written.")
    return results


def load_model(path: str, attn_implementation: str | None = None) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A checkpoint of any known family, in evaluation mode, and its processor."""
    config = AutoConfig.from_pretrained(path)
    loader = AutoModel if config.model_type == "albef" else model_class(config)
    model = loader.from_pretrained(path, attn_implementation=attn_implementation)
    return model.eval(), AutoProcessor.from_pretrained(path)


def picture_records(datasets: list, count: int) -> list[dict]:
    """The records of the picture: `count` in all, from every split alike, spread evenly over it."""
    records = []
    for number, dataset in enumerate(datasets):
        share = count // len(datasets) + (number < count % len(datasets))
        records += [dataset[i * len(dataset) // share] for i in range(share)]
    return records


def tensors(batch: dict) -> dict[str, torch.Tensor]:
    return {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}


def table(results: dict[str, dict[str, float]]) -> str:
    """Pointing accuracy in percent, one row a model, as Markdown."""
    splits = list(next(iter(results.values())))
    width = max(len(name) for name in ["pointing accuracy, %", *results])
    lines = [f"| {'pointing accuracy, %':{width}} | " + " | ".join(splits) + " |"]
    lines.append(f"|{'-' * (width + 2)}|" + "|".join("-" * (len(split) + 1) + ":" for split in splits) + "|")
    for name, scores in results.items():
        cells = (f"{100 * scores[split]:{len(split)}.1f}" for split in splits)
        lines.append(f"| {name:{width}} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=CHECKPOINT", help="what to compare")
    parser.add_argument("--dataset", required=True, help="folder of Parquet files, or Hub id")
    parser.add_argument("--dataset_config", help="its configuration, where it has several")
    parser.add_argument("--splits", nargs="+", default=["test"], help="splits to score (default: test)")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for results.json and heatmaps.png")
    parser.add_argument("--batch_size", type=int, default=64, help="phrases a batch (default: 64)")
    parser.add_argument("--max_examples", type=int, help="score this many phrases a split only")
    parser.add_argument("--num_pictured", type=int, default=8, help="rows of the picture (default: 8)")
    parser.add_argument("--attn_implementation", help="attention below and beside the explained one, e.g. sdpa")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where that is safe")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU that is there")
    args = parser.parse_args(arguments)
    if any("=" not in model for model in args.models):
        parser.error("--models takes NAME=CHECKPOINT pairs, e.g. mine=outputs/run")
    args.models = dict(model.split("=", 1) for model in args.models)
    return args


if __name__ == "__main__":
    main()
