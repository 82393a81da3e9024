"""What AMC does to pointing, on the built-in scenes: model families, kinds and numbers of annotations, loss parts.

    python -m benchmarks.scenes_study kinds             # after `make train`, whose data and base model it takes
    python -m benchmarks.scenes_study budget losses     # goes on where it was; --jobs 2 runs two at a time

Every run trains for equally many steps, ALBEF from the base model of `make train`, the other families from random
weights, and is scored on the held-out split `test` by the pointing game. Writes benchmarks/scenes_study.json, and
docs/annotation_budget.png for the budget.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers
import yaml
from datasets import Image, List, load_dataset
from PIL import Image as PilImage
from tokenizers.processors import TemplateProcessing
from transformers.models.blip import BlipImageProcessorPil

from benchmarks.small_models import Size, build
from dataset_scripts.build import main as build_data
from modeling_albef_amc import (
    AlbefConfig,
    AlbefForPreTraining,
    AlbefImageProcessorPil,
    AlbefProcessor,
    tokenizer_from_texts,
)

ROOT = Path(__file__).parents[1]
SCENES = ROOT / "outputs" / "scenes"
RESULTS = Path(__file__).with_name("scenes_study.json")
SCRIBBLE_RADIUS = 8.0  # pixels, of 128
BUDGETS = {0: "0", 1: "1", 5: "5", 25: "25", 100: "100"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Settings of one line of a table, before seeds.

    Args:
        data: the variant of the training data, see `VARIANTS`.
        settings: of train.py, beside those of the recipe.
        family: trained from random weights; none: ALBEF, from the base model of `make train`.
        metric: that the run is scored by.
    """

    name: str
    data: str = "box"
    settings: dict[str, Any] = field(default_factory=dict)
    family: str | None = None
    metric: str = "pointing_game"

    @property
    def recipe(self) -> str:
        return f"trainer/configs/scenes_{'with_amc' if self.family in (None, 'albef') else 'families'}.yaml"


# Variants of the training data: what is left of a row's mask and box


def mask_of(row: Row) -> np.ndarray:
    """(height, width) of bool: the union of a row's masks."""
    masks = [np.asarray(PilImage.open(io.BytesIO(mask["bytes"]))) > 127 for mask in row["masks"]]
    return np.logical_or.reduce(masks)


def as_mask(row: Row) -> Row:
    return {"masks": row["masks"], "boxes": row["boxes"], "polygons": []}


def as_box(row: Row) -> Row:
    return {"masks": [], "boxes": row["boxes"], "polygons": []}


def as_boxes(row: Row) -> Row:
    """Several boxes around one object: of what lies in each quarter of its box."""
    mask = mask_of(row)
    rows, columns = np.nonzero(mask)
    middle_y, middle_x = (rows.min() + rows.max() + 1) // 2, (columns.min() + columns.max() + 1) // 2
    boxes = []
    for below in (rows < middle_y, rows >= middle_y):
        for right in (columns < middle_x, columns >= middle_x):
            y, x = rows[below & right], columns[below & right]
            if len(x):
                boxes.append([float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)])
    return {"masks": [], "boxes": boxes, "polygons": []}


def as_polygon(row: Row) -> Row:
    """The convex hull of the mask: what a few clicks around an object give."""
    rows, columns = np.nonzero(mask_of(row))
    corners = {(int(x) + dx, int(y) + dy) for x, y in zip(columns, rows) for dx in (0, 1) for dy in (0, 1)}
    hull = convex_hull(sorted(corners))
    return {"masks": [], "boxes": row["boxes"], "polygons": [[[float(v) for point in hull for v in point]]]}


def convex_hull(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Corners of the hull of sorted points, in order (Andrew's monotone chain)."""

    def chain(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for x, y in points:
            while len(found) > 1:
                (x0, y0), (x1, y1) = found[-2:]
                if (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0:
                    break
                found.pop()
            found.append((x, y))
        return found[:-1]

    return chain(points) + chain(points[::-1])


def as_point(row: Row) -> Row:
    """The pixel of the mask that is nearest to its middle."""
    rows, columns = np.nonzero(mask_of(row))
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return with_scribble([columns[nearest] + 0.5, rows[nearest] + 0.5])


def as_scribble(row: Row) -> Row:
    """A stroke from left to right through the mask, up and down with its middle."""
    rows, columns = np.nonzero(mask_of(row))
    stops = np.linspace(columns.min(), columns.max(), 4).astype(int)
    return with_scribble([value for x in stops for value in (x + 0.5, rows[columns == x].mean() + 0.5)])


def with_scribble(points: list[float]) -> Row:
    scribbles = [[float(value) for value in points]]
    return {"masks": [], "boxes": [], "polygons": [], "scribbles": scribbles, "scribble_radius": SCRIBBLE_RADIUS}


def with_budget(percent: int, row: Row, index: int, order: np.ndarray) -> Row:
    """A box, for the first `percent` of the rows in a random order; more percent keep what fewer have."""
    return as_box(row) if order[index] < percent / 100 else {"masks": [], "boxes": [], "polygons": []}


VARIANTS: dict[str, Callable[[Row], Row]] = {
    "mask": as_mask,
    "box": as_box,
    "boxes": as_boxes,
    "polygon": as_polygon,
    "point": as_point,
    "scribble": as_scribble,
}


def build_variant(name: str, folder: Path) -> Path:
    """The scenes with other regions in `train`; `test` stays as it is."""
    if (folder / "README.md").exists():
        return folder
    if name == "absent":
        build_data(["scenes", "--output", str(folder), "--absent-per-scene", "1"])
        return folder
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for path in (SCENES / "data" / "data").glob("test-*.parquet"):
        link = folder / "data" / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path)
    train = load_dataset(str(SCENES / "data"), split="train")
    train = train.cast_column("image", Image(decode=False)).cast_column("masks", List(Image(decode=False)))
    if name.startswith("budget_"):
        order = np.random.default_rng(0).permutation(len(train)) / len(train)
        change = partial(with_budget, int(name.removeprefix("budget_")), order=order)
        train = train.map(change, with_indices=True)
    else:
        train = train.map(VARIANTS[name])
    train.to_parquet(str(folder / "data" / "train-00000.parquet"))
    (folder / "README.md").write_text(f"Scenes, train annotated by: {name}.\n")
    return folder


def random_model(family: str, folder: Path) -> Path:
    """A checkpoint of random weights with a tokenizer of the words of the scenes, as transformers saves it."""
    if (folder / "processor_config.json").exists():
        return folder
    tokenizer = tokenizer_from_texts(load_dataset(str(SCENES / "data"), split="train")["phrase"])
    torch.manual_seed(0)
    if family == "albef":
        fields = yaml.safe_load((ROOT / "trainer/configs/scenes_base.yaml").read_text())["model_config"]
        fields["text_config"]["vocab_size"] = len(tokenizer)
        AlbefForPreTraining(AlbefConfig(**fields)).save_pretrained(folder)
        side = fields["vision_config"]["image_size"]
        AlbefProcessor(AlbefImageProcessorPil(size={"height": side, "width": side}), tokenizer).save_pretrained(folder)
        return folder
    size = Size(vocab_size=len(tokenizer), pad=tokenizer.pad_token_id, eos=tokenizer.sep_token_id)
    build(family, size).save_pretrained(folder)
    if family == "clip":  # it reads the place of the end token
        special = [("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=special)
    image_processor = BlipImageProcessorPil(size={"height": size.image_size, "width": size.image_size})
    PROCESSORS[family](image_processor, tokenizer).save_pretrained(folder)
    return folder


# Studies

PROCESSORS = {
    "blip": transformers.BlipProcessor,
    "blip-2": transformers.Blip2Processor,
    "vilt": transformers.ViltProcessor,
    "bridgetower": transformers.BridgeTowerProcessor,
    "clip": transformers.CLIPProcessor,
    "altclip": transformers.AltCLIPProcessor,
    "chinese_clip": transformers.ChineseCLIPProcessor,
    "siglip": transformers.SiglipProcessor,
}
NO_AMC = {"amc_mean_weight": 0.0, "amc_max_weight": 0.0}
STUDIES: dict[str, list[Run]] = {
    "kinds": [
        Run("none", settings=NO_AMC),
        Run("box"),
        Run("boxes", "boxes", {"box_choice": "all"}),
        *(Run(name, name) for name in ("polygon", "mask", "point", "scribble")),
    ],
    "budget": [Run(f"{text} %", f"budget_{percent}") for percent, text in BUDGETS.items()],
    "losses": [
        Run("both", "mask"),
        Run("mean only", "mask", {"amc_max_weight": 0.0}),
        Run("max only", "mask", {"amc_mean_weight": 0.0}),
        Run("margin of the mean 0.1", "mask", {"amc_margin_mean": 0.1}),
        Run("margin of the mean 0.3", "mask", {"amc_margin_mean": 0.3}),
        Run("margin of the max 0.1", "mask", {"amc_margin_max": 0.1}),
        Run("margin of the max 1", "mask", {"amc_margin_max": 1.0}),
        Run("means over the batch", "mask", {"amc_reduction": "batch"}),
    ],
    "absent": [
        Run("without", "absent", {"absent_weight": 0.0}, metric="absent_auroc"),
        Run("with", "absent", metric="absent_auroc"),
    ],
    "families": [
        run
        for family in ("albef", *PROCESSORS)
        for run in (
            Run(f"{family} without AMC", "mask", NO_AMC, family),
            Run(f"{family} with AMC", "mask", family=family),
        )
    ],
}


def train(run: Run, seed: int, folder: Path, steps: int) -> float:
    """Fine-tunes, unless that was done before. Returns: the pointing accuracy on `test`."""
    output = folder / f"{run.name.replace(' ', '_')}_{seed}"
    done = output / "all_results.json"
    if not done.exists():
        settings = {
            "model": SCENES / "base" if run.family is None else folder.parent / "models" / run.family,
            "dataset": build_variant(run.data, folder.parent / "data" / run.data),
            "eval_splits": "test",
            "max_eval_examples": 10_000,
            "output_dir": output,
            "max_steps": steps,
            "seed": seed,
            "logging_steps": 100,
            "num_logged_heatmaps": 0,
            "report_to": "none",
        } | run.settings
        arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, "train.py", run.recipe, *arguments]
        output.mkdir(parents=True, exist_ok=True)
        with open(output / "log.txt", "w") as log:
            subprocess.run(
                command, check=True, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
            )
        for weights in output.glob("*.safetensors"):
            weights.unlink()
    return json.loads(done.read_text())[f"test_{run.metric}"]


def draw_budget(rows: list[Row], path: Path) -> None:
    percents = list(BUDGETS)
    means, spreads = [row["mean"] for row in rows], [row["spread"] for row in rows]
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    axes.errorbar(range(len(percents)), means, yerr=spreads, marker="o", capsize=3, color="#7c3aed")
    axes.set_xticks(range(len(percents)), [f"{percent} %" for percent in percents])
    axes.set(xlabel="training phrases with a region", ylabel="pointing accuracy, %", ylim=(0, 100))
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "study")
    options = parser.parse_args(arguments)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for study in options.studies:
        runs = STUDIES[study]
        for data in {run.data for run in runs}:  # not while others build the same
            build_variant(data, options.output / "data" / data)
        for family in {run.family for run in runs} - {None}:
            random_model(family, options.output / "models" / family)
        with ThreadPoolExecutor(options.jobs) as pool:
            futures = {
                (run.name, seed): pool.submit(train, run, seed, options.output / study, options.steps)
                for seed in range(options.seeds)
                for run in runs
            }
            found = {key: 100 * future.result() for key, future in futures.items()}
        rows = []
        for run in runs:
            scores = [found[run.name, seed] for seed in range(options.seeds)]
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            rows.append({"name": run.name, "mean": statistics.mean(scores), "spread": spread, "seeds": scores})
        results[study] = {"steps": options.steps, "rows": rows}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(f"| {study} | {runs[0].metric} on test, % |\n|---|---:|")
        print("\n".join(f"| {row['name']} | {row['mean']:.1f} ± {row['spread']:.1f} |" for row in rows))
        if study == "budget":
            draw_budget(rows, ROOT / "docs" / "annotation_budget.png")


if __name__ == "__main__":
    main()
