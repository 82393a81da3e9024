"""What AMC does to pointing, on the built-in scenes: model families, kinds and numbers of annotations, loss parts.

    python -m benchmarks.scenes_study kinds             # after `make train`, whose data and base model it takes
    python -m benchmarks.scenes_study budget losses     # goes on where it was; --jobs 2 runs two at a time

Every run trains for equally many steps and is scored on the held-out split `test` by the pointing game. Writes
benchmarks/scenes_study.json, and docs/annotation_budget.png for the budget.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import yaml
from datasets import Image, List, load_dataset
from PIL import Image as PilImage
from tokenizers.processors import TemplateProcessing
from transformers import Siglip2Tokenizer
from transformers.models.blip import BlipImageProcessorPil
from transformers.models.siglip2 import Siglip2ImageProcessorPil

from benchmarks.measure import ROOT, Row, report
from dataset_scripts.build import main as build_data
from dataset_scripts.scenes import is_relation
from modeling_albef_amc import AlbefConfig, AlbefForPreTraining, AlbefImageProcessorPil, tokenizer_from_texts
from modeling_albef_amc.families.decoders import DECODERS
from modeling_albef_amc.families.family import Size
from modeling_albef_amc.families.registry import FAMILIES, TRAINED_METHODS

SCENES = ROOT / "outputs" / "scenes"
SIDE, SCRIBBLE_RADIUS = 128, 8.0  # pixels


def several_boxes(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    """Of what lies in each quarter of the box."""
    quarter = 2 * (y >= (y.min() + y.max() + 1) // 2) + (x >= (x.min() + x.max() + 1) // 2)
    parts = [(x[quarter == number], y[quarter == number]) for number in np.unique(quarter)]
    return [[float(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1)] for x, y in parts]


def convex_hull(x: np.ndarray, y: np.ndarray) -> list[float]:
    """Corners of the hull in order, x0, y0, x1, …: those that lie farthest in some direction, as few clicks give."""
    corners = np.concatenate([np.stack([x + dx, y + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
    angles = np.arange(0.001, 2 * np.pi, 0.05)  # none across an edge, of which all corners are as far
    farthest = (corners @ np.stack([np.cos(angles), np.sin(angles)])).argmax(axis=0)
    return [float(value) for corner in dict.fromkeys(map(tuple, corners[farthest])) for value in corner]


def middle(x: np.ndarray, y: np.ndarray) -> list[float]:
    """The pixel that is nearest to the middle."""
    nearest = np.argmin((x - x.mean()) ** 2 + (y - y.mean()) ** 2)
    return [float(x[nearest] + 0.5), float(y[nearest] + 0.5)]


def stroke(x: np.ndarray, y: np.ndarray) -> list[float]:
    """From left to right, up and down with the middle."""
    stops = np.linspace(x.min(), x.max(), 4).astype(int)
    return [float(value) for stop in stops for value in (stop + 0.5, y[x == stop].mean() + 0.5)]


# Kinds of regions, of the columns x and rows y of a mask's pixels.
VARIANTS: dict[str, Callable[[Row, np.ndarray, np.ndarray], Row]] = {
    "mask": lambda row, x, y: {"masks": row["masks"], "boxes": row["boxes"]},
    "box": lambda row, x, y: {"boxes": row["boxes"]},
    "boxes": lambda row, x, y: {"boxes": several_boxes(x, y)},
    "polygon": lambda row, x, y: {"boxes": row["boxes"], "polygons": [[convex_hull(x, y)]]},
    "point": lambda row, x, y: {"scribbles": [middle(x, y)], "scribble_radius": SCRIBBLE_RADIUS},
    "scribble": lambda row, x, y: {"scribbles": [stroke(x, y)], "scribble_radius": SCRIBBLE_RADIUS},
}


def annotate(row: Row, index: int, name: str, rank: np.ndarray) -> Row:
    """The regions of a row in a variant; `rank` is its place, in [0, 1), among the rows that a budget takes in turn."""
    nothing = {"masks": [], "boxes": [], "polygons": []}
    if name.startswith("budget_"):
        has_box = rank[index] < int(name.removeprefix("budget_")) / 100
        return nothing | ({"boxes": row["boxes"]} if has_box else {})
    masks = [np.asarray(PilImage.open(io.BytesIO(mask["bytes"]))) > 127 for mask in row["masks"]]
    y, x = np.nonzero(np.logical_or.reduce(masks))
    return nothing | VARIANTS[name](row, x, y)


def build_variant(name: str, folder: Path) -> None:
    """The scenes with other regions in `train`; test splits stay as they are."""
    if (folder / "README.md").exists():
        return
    if name == "absent":
        build_data(["scenes", "--output", str(folder), "--absent-per-scene", "1"])
        return
    (folder / "data").mkdir(parents=True, exist_ok=True)
    splits = ["train"]
    for path in (SCENES / "data" / "data").glob("test*.parquet"):
        (folder / "data" / path.name).unlink(missing_ok=True)
        (folder / "data" / path.name).symlink_to(path)
        splits.append(path.name.split("-")[0])
    rows = load_dataset(str(SCENES / "data"), split="train")
    rows = rows.cast_column("image", Image(decode=False)).cast_column("masks", List(Image(decode=False)))
    if name == "attributes":
        rows = rows.filter(lambda phrase: not is_relation(phrase), input_columns="phrase")
    else:
        rank = np.random.default_rng(0).permutation(len(rows)) / len(rows)
        rows = rows.map(partial(annotate, name=name, rank=rank), with_indices=True)
    rows.to_parquet(str(folder / "data" / "train-00000.parquet"))
    files = [{"split": split, "path": f"data/{split}-*"} for split in splits]
    settings = json.dumps({"configs": [{"config_name": "default", "data_files": files}]})  # which is YAML, too
    (folder / "README.md").write_text(f"---\n{settings}\n---\nScenes, train annotated by: {name}.\n")


def build_model(family: str, folder: Path) -> None:
    """A checkpoint of random weights with a tokenizer of the words of the scenes, as transformers saves it."""
    if (folder / "processor_config.json").exists():
        return
    phrases = list(load_dataset(str(SCENES / "data"), split="train")["phrase"])
    tokenizer, images = tokenizer_from_texts(phrases), BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    if family == "siglip2":  # no other tokenizer, and no other images, go with it
        options = dict(padding_side="right", model_input_names=["input_ids"], add_bos_token=False, add_eos_token=True)
        words = {word for phrase in phrases for word in phrase.split()}
        words = sorted({*words, *(f"{word} " for word in words)})
        tokenizer = Siglip2Tokenizer(**options).train_new_from_iterator(words, vocab_size=1000)
        images = Siglip2ImageProcessorPil(patch_size=16, max_num_patches=(SIDE // 16) ** 2)
    if family in ("clip", "metaclip_2", "clipseg", "owlvit", "aimv2"):  # they read the place of the end token
        if family == "owlvit":  # of the highest number, that is
            tokenizer.add_special_tokens({"sep_token": "[END]"})
        special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", tokenizer.sep_token)]
        single = f"[CLS] $A {tokenizer.sep_token}"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single, special_tokens=special)
    torch.manual_seed(0)
    if family == "albef":
        fields = yaml.safe_load((ROOT / "trainer/configs/scenes_base.yaml").read_text())["model_config"]
        fields["text_config"]["vocab_size"] = len(tokenizer)
        model, images = AlbefForPreTraining(AlbefConfig(**fields)), AlbefImageProcessorPil(size=dict(images.size))
    else:
        size = Size(vocab_size=len(tokenizer), pad=tokenizer.pad_token_id, eos=tokenizer.sep_token_id)
        model = FAMILIES[family].small_model(size)
    model.save_pretrained(folder)
    if family in DECODERS:
        for part in (tokenizer, images):
            part.save_pretrained(folder)
        (folder / "processor_config.json").write_text("{}")
        return
    FAMILIES[family].load(FAMILIES[family].processor_class)(images, tokenizer).save_pretrained(folder)


# By study and line of its table: settings of train.py beside those of the recipe. `data` is the variant of the training
# data; `family` is trained from random weights, ALBEF otherwise from the base model of `make train`.
NO_AMC = {"region_loss": "none"}
# Generative models learn from random weights what they are to say, and not yet whether it is so.
SAYS_PHRASES = {"explanation": "likelihood", "itm_weight": 0.0}
# Families without results yet. From the same random weights, MetaCLIP 2 and CLIPSeg score as CLIP does.
NOT_RUN = "metaclip_2", "clipseg", "owlvit", "siglip2", "flava", *DECODERS
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "kinds": {"none": {"data": "box"} | NO_AMC} | {name: {"data": name} for name in VARIANTS},
    "budget": {f"{percent} %": {"data": f"budget_{percent}"} for percent in (0, 1, 5, 25, 100)},
    # The phrases with a region, and no others.
    "annotated alone": {f"{percent} %": {"data": f"budget_{percent}", "annotated_share": 1.0} for percent in (5, 25)},
    "losses": {
        "both": {"data": "mask"},
        "mean only": {"data": "mask", "amc_max_weight": 0.0},
        "max only": {"data": "mask", "amc_mean_weight": 0.0},
        "margin of the mean 0.1": {"data": "mask", "amc_margin_mean": 0.1},
        "margin of the mean 0.3": {"data": "mask", "amc_margin_mean": 0.3},
        "margin of the max 0.1": {"data": "mask", "amc_margin_max": 0.1},
        "margin of the max 1": {"data": "mask", "amc_margin_max": 1.0},
        "means over the batch": {"data": "mask", "amc_reduction": "batch"},
    },
    "region losses": {
        f"{title}, {loss}": {"data": "mask", "region_loss": loss} | settings
        for title, settings in (("ALBEF", {}), ("LLaVA", {"family": "llava"} | SAYS_PHRASES))
        for loss in ("klal", "amc", "both", "none")
    },
    "generative": {
        f"{family} {name} AMC": {"data": "mask", "family": family} | SAYS_PHRASES | settings
        for family in ("llava", "smolvlm", "qwen2_5_vl", "internvl", "gemma3")
        for name, settings in (("without", NO_AMC), ("with", {}))
    },
    "absent": {"without": {"data": "absent", "absent_weight": 0.0}, "with": {"data": "absent"}},
    # SigLIP wants larger steps and a longer warm-up, chosen by other scenes.
    "dual encoders": {
        f"{family} by {method}": {"data": "attributes", "family": family, "method": method} | settings
        for family, settings in (
            ("clip", {"learning_rate": 1e-3}),
            ("altclip", {"learning_rate": 1e-3}),
            ("chinese_clip", {"learning_rate": 1e-3}),
            ("siglip", {"learning_rate": 2e-3, "warmup_steps": 150}),
        )
        for method in TRAINED_METHODS
    },
    "families": {
        f"{family} {name} AMC": {"data": "mask", "family": family} | settings
        for family in FAMILIES
        if family not in NOT_RUN
        for name, settings in (("without", NO_AMC), ("with", {}))
    },
}
STUDIES["kinds"]["boxes"]["box_choice"] = "all"


def train(settings: dict[str, Any], recipe: str, output: Path, by_attention: bool) -> dict[str, float]:
    """Results of a run on `test`, unless it was done before; its weights are not kept.

    Args: by_attention: also by the attention alone, without its gradient.
    """
    done = output / "all_results.json"
    if not done.exists():
        shutil.rmtree(output, ignore_errors=True)  # what an interrupted run left
        output.mkdir(parents=True)
        pairs = ((name, value if isinstance(value, list) else [value]) for name, value in settings.items())
        options = [text for name, values in pairs for text in (f"--{name}", *map(str, values))]
        commands = [["train.py", recipe, *options, "--output_dir", str(output)]]
        if by_attention:
            told = [
                "--dataset",
                str(settings["dataset"]),
                "--method",
                "attention",
                "--output",
                str(output / "attention"),
            ]
            commands.append(["-m", "albef_amc.trainer.evaluate_grounding", "--models", f"trained={output}", *told])
        with open(output / "log.txt", "w") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            for command in commands:
                whole = [sys.executable, *command]
                subprocess.run(whole, check=True, cwd=ROOT, stdout=log, stderr=log, env=environment)
        for weights in output.glob("*.safetensors"):
            weights.unlink()
    found = json.loads(done.read_text())
    if by_attention:
        results = json.loads((output / "attention" / "results.json").read_text())
        found["attention_pointing_game"] = results["trained"]["test"]
    return found


def run_study(study: str, seeds: int, steps: int, jobs: int, folder: Path) -> list[Row]:
    common = {"eval_splits": "test", "max_eval_examples": 10_000, "max_steps": steps, "logging_steps": 100}
    common |= {"num_logged_heatmaps": 0, "report_to": "none"}
    metric = "test_absent_auroc" if study == "absent" else "test_pointing_game"
    if study == "generative":  # of combinations that no training phrase has
        common["eval_splits"] = ["test", "test_unseen"]
    futures: dict[str, list[Future]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for name, changed in STUDIES[study].items():
            settings, data, family = common | changed, folder / "data" / changed["data"], changed.get("family")
            build_variant(settings.pop("data"), data)
            model = folder / "models" / settings.pop("family") if family else SCENES / "base"
            if family:
                build_model(family, model)
            recipe = f"trainer/configs/scenes_{'with_amc' if family in (None, 'albef') else 'families'}.yaml"
            settings |= {"model": model, "dataset": data}
            runs = [(seed, folder / study / f"{name.replace(' ', '_')}_{seed}") for seed in range(seeds)]
            futures[name] = [
                pool.submit(train, settings | {"seed": seed}, recipe, output, study == "region losses")
                for seed, output in runs
            ]
    rows = []
    for name, of_name in futures.items():
        found = [100 * future.result()[metric] for future in of_name]
        row = {"name": name, "steps": steps, "mean": statistics.mean(found), "spread": spread(found), "seeds": found}
        for study_of_it, beside, other in (
            ("generative", "unseen", "test_unseen_pointing_game"),
            ("region losses", "attention", "attention_pointing_game"),
        ):
            if study == study_of_it:
                found = [100 * future.result()[other] for future in of_name]
                row |= {f"{beside}_mean": statistics.mean(found), f"{beside}_spread": spread(found)}
                row |= {f"{beside}_seeds": found}
        rows.append(row)
    return rows


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def draw_budget(results: dict[str, list[Row]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    names = [row["name"] for row in results["budget"]]
    lines = {"budget": ("all phrases", "#7c3aed"), "annotated alone": ("the annotated phrases alone", "#0891b2")}
    for study, (label, color) in lines.items():
        rows = results.get(study, [])
        places, means = [names.index(row["name"]) for row in rows], [row["mean"] for row in rows]
        spreads = [row["spread"] for row in rows]
        axes.errorbar(places, means, yerr=spreads, marker="o", capsize=3, color=color, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="training phrases with a region", ylabel="pointing accuracy, %", ylim=(0, 100))
    axes.legend(loc="lower right")
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", choices=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "study")
    options = parser.parse_args()
    for study in options.studies:
        rows = run_study(study, options.seeds, options.steps, options.jobs, options.output)
        results = Path(__file__).with_name("scenes_study.json")
        report(study, rows, results)
        if study in ("budget", "annotated alone"):
            draw_budget(json.loads(results.read_text()), ROOT / "docs" / "annotation_budget.png")


if __name__ == "__main__":
    main()
