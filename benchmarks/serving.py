"""Latency of heatmaps: the model with autograd against the exported programs, one image and several phrases.

python -m benchmarks.serving CHECKPOINT DATASET [SPLIT …]     # of a trained model, and how often each points right
"""

import argparse
import tempfile
import time
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from transformers import AutoProcessor

from benchmarks.measure import Row, median_seconds, report
from benchmarks.workloads import Scale, save_albef
from modeling_albef_amc import AlbefModel, heatmap_points
from modeling_albef_amc.tools.export_albef import FORMATS, export, load_programs, random_inputs
from trainer.metrics.pointing_game.pointing_game import point_in_boxes

Folders = dict[str, Path]  # by format


def export_and_time(scale: Scale, repeats: int) -> list[Row]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        save_albef(scale, checkpoint := f"{scratch}/albef")
        return latencies(AlbefModel.from_pretrained(checkpoint), export_all(checkpoint, Path(scratch)), repeats)


def export_all(checkpoint: str, scratch: Path) -> Folders:
    folders = {format: scratch / format for format in FORMATS}
    for format, folder in folders.items():
        start = time.perf_counter()
        differences = export(checkpoint, folder, format=format)
        sizes = [f"{path.name} {path.stat().st_size / 2**20:.1f} MiB" for path in folder.glob(f"*{FORMATS[format]}")]
        print(f"{format}: exported in {time.perf_counter() - start:.0f} s, {sizes}, largest differences {differences}")
    return folders


@torch.inference_mode()
def latencies(model: AlbefModel, folders: Folders, repeats: int, num_tokens: int = 8) -> list[Row]:
    """Milliseconds by the number of phrases about one image; phrases have `num_tokens` at most."""
    model.requires_grad_(False)
    programs = {format: load_programs(folder) for format, folder in folders.items()}
    rows = []
    for num_phrases in (1, 5, 14):
        pixel_values, phrases = random_inputs(model, 1, num_phrases, num_tokens, model.config.vision_config.grid)
        functions = {"model": partial(model, pixel_values, **phrases, output_heatmaps=True)}
        for format, (encode_images, ground) in programs.items():
            images = encode_images(pixel_values=pixel_values)
            functions[f"{format}: image"] = partial(encode_images, pixel_values=pixel_values)
            functions[f"{format}: phrases"] = partial(ground, **phrases, **images)
        seconds = median_seconds(repeats, functions)
        rows.append({"phrases": num_phrases} | {f"{name}, ms": 1000 * value for name, value in seconds.items()})
    return rows


@torch.inference_mode()
def pointing(checkpoint: str, folders: Folders, dataset: str, split: str) -> Row:
    """How many of a split's phrases each format points right for, in percent; those of an image are asked together."""
    processor, right = AutoProcessor.from_pretrained(checkpoint), {format: [] for format in folders}
    programs = {format: load_programs(folder) for format, folder in folders.items()}
    rows = load_dataset(dataset, split=split).select_columns(["image_id", "image", "phrase", "boxes"])
    for _, group in groupby(rows, lambda row: row["image_id"]):
        records = list(group)
        image = records[0]["image"].convert("RGB")
        inputs = processor(images=image, text=[[record["phrase"] for record in records]], return_tensors="pt")
        pixel_values = inputs.pop("pixel_values")
        for format, (encode_images, ground) in programs.items():
            heatmaps = ground(**inputs, **encode_images(pixel_values=pixel_values))["heatmaps"]
            for point, record in zip(heatmap_points(heatmaps, (image.height, image.width)), records, strict=True):
                right[format].append(point_in_boxes(point.numpy(), np.array(record["boxes"])))
    return {"split": split, "phrases": len(rows)} | {f"{name}, %": 100 * np.mean(hits) for name, hits in right.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder")
    parser.add_argument("dataset", help="folder that `albef-amc build` wrote")
    parser.add_argument("splits", nargs="*", default=["validation", "test"])
    parser.add_argument("--repeats", type=int, default=15, help="calls of a median")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folders = export_all(options.checkpoint, Path(scratch))
        found = [pointing(options.checkpoint, folders, options.dataset, split) for split in options.splits]
        report("pointing", found)
        report("latency", latencies(AlbefModel.from_pretrained(options.checkpoint), folders, options.repeats))
