"""What a data set has, looked at before anything is trained on it.

    albef-amc inspect my.jsonl --columns phrase=caption boxes=bbox --output sheet.png

Of each split it prints counts, how large regions are and which records cannot be used, and draws random rows with their
regions: whoever looks at them sees at once when boxes are xywh. It ends with the command that trains on the data, or
with why that would be refused.
"""

import argparse
import os
import random
import shlex
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from PIL import Image

from modeling_albef_amc.images import open_image
from modeling_albef_amc.tools.figures import captioned, panel, sheet
from modeling_albef_amc.tools.ground import picture_suffixes

from .columns import Columns
from .commands import parse
from .data_checks import SIZEABLE, check_regions, check_sample, is_of_units, plain, values_of_phrases
from .data_collator import Example, SourceImage, read_example
from .evaluation import data_of_run
from .phrase_rows import (
    PhraseRows,
    Record,
    check_same_image,
    image_id_of,
    image_marks,
    is_absent,
    phrase_counts,
    record_name,
)
from .process_group import place_apart, run_script
from .regions import REGIONS, Region
from .splits import split_names
from .training import load_split

# Share of the image that a region's box covers, up to which it is of a bin.
SIZES = {"up to 1 %": 0.01, "up to 5 %": 0.05, "up to 20 %": 0.2, "up to 50 %": 0.5, "more": float("inf")}
NAMED, PANEL, BAR = 10, 230, 40  # records of trouble; pixels; characters


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return inspect(parse("inspect", arguments))


def inspect(args: argparse.Namespace) -> dict[str, Any]:
    """Prints what is found; returns it: split → "phrases", "images", kinds of regions, "absent", "sizes", "unusable",
    "refused": why training and evaluation would refuse it, or None.

    Raises ValueError: the data set cannot be read, or no record can be used; with --strict, one cannot.
    """
    if args.output and args.output.suffix.lower() not in picture_suffixes():
        raise ValueError(f"--output {args.output}: choose a kind of picture by its ending, such as .png or .jpg")
    path, columns = data_of_run(args, args.strict)
    is_build_of_file = path != args.dataset and os.path.isfile(args.dataset)  # which is of all files around it
    folder = os.path.dirname(args.dataset) or "." if is_build_of_file else args.dataset
    output = args.output or place_apart("inspected.png", folder)
    source = path, args.dataset_config
    splits = args.splits or split_names(*source) or ["train"]
    found, sheets = {}, []
    for split in splits:
        dataset, why = load(*source, split, columns)
        box_format = columns.box_format or "xyxy"
        found[split], panels = look_at(dataset, args.num_read, args.num_pictured, box_format)
        found[split]["refused"] = why or found[split]["refused"] or why_refused(dataset, box_format)
        show(split, found[split], min(args.num_read, len(dataset)))
        if panels:
            sheets.append(captioned(grid := sheet(panels, 4), split, grid.width))
    refused = {split: why for split in splits if (why := found[split]["refused"])}
    if not sheets:
        raise ValueError(f"No record of {args.dataset} can be used. {next(iter(refused.values()), '')}".strip())
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet(sheets, 1).save(output)
    print(f"\nRandom rows with their regions: {output}")
    for split, why in refused.items():
        print(f"Split {split} can neither be trained on nor scored: {why}")
    if not refused.keys() & {train_split(splits), "validation"}:
        print(f"Train on it: {command(args, columns.box_format, splits, folder)}")
    trouble = [name for of_split in found.values() for name in of_split["unusable"]]
    if args.strict and trouble:
        raise ValueError(f"{len(trouble):,} records cannot be used; the first: {trouble[0]}")
    return found


def load(path: str, config: str | None, split: str, columns: Columns) -> tuple[Dataset | PhraseRows, str | None]:
    """A split, and why it would be refused if it is its regions that are not understood."""
    try:
        return load_split(path, config, split, None, columns, needs_regions=True), None
    except ValueError as error:
        return load_split(path, config, split, None, columns), str(error)


def why_refused(dataset: Dataset | PhraseRows, box_format: str) -> str | None:
    """What the checks before a training say of it."""
    try:
        check_regions(dataset, box_format)
        check_sample(dataset, lambda records: [read(record, None, box_format) for record in records])
    except ValueError as error:
        return str(error)
    return None


def read(record: Record, number: int | None, box_format: str) -> Example:
    """ValueError: it cannot be used."""
    try:
        return read_example(record, SourceImage(open_image(record.get("image")), 0), box_format)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{record_name(record, number)}: {error}") from error


def look_at(
    dataset: Dataset | PhraseRows, num_read: int, num_pictured: int, box_format: str
) -> tuple[dict[str, Any], list[Image.Image]]:
    """What a split has, and pictures of random records with their regions.

    Args:
        num_read: records, spread evenly, that are read with their images; of all others the columns are counted.
    """
    found = count(dataset)
    chosen = range(len(dataset)) if num_read >= len(dataset) else np.linspace(0, len(dataset) - 1, num_read).astype(int)
    pictured = set(random.Random(0).sample(list(chosen), min(num_pictured, len(chosen))))
    panels, sizes, unusable, refused = [], Counter(dict.fromkeys(SIZES, 0)), [], None
    first_of_images: dict[str, int] = {}
    for number in map(int, chosen):
        record = dataset[number]
        try:
            example = read(record, number, box_format)
        except ValueError as error:
            unusable.append(str(error))
            continue
        image_id = image_id_of(record)
        first = number if image_id is None else first_of_images.setdefault(str(image_id), number)
        try:
            if first != number:
                check_same_image(dataset[first], record)
        except ValueError as error:  # which no training passes over
            refused = refused or str(error)
            unusable.append(f"{record_name(record)}: {error}")
            continue
        if example.region is not None:
            x1, y1, x2, y2 = example.region.boxes.T
            for share in (x2 - x1) * (y2 - y1) / (example.region.width * example.region.height):
                sizes[next(name for name, most in SIZES.items() if share <= most)] += 1
        if number in pictured:
            panels.append(picture(example.source.image, record, example.region))
    return {**found, "sizes": dict(sizes), "unusable": unusable, "refused": refused}, panels


def count(dataset: Dataset | PhraseRows) -> dict[str, Any]:
    """Of all records: phrases, images by their `image_marks`, regions by kind, absent phrases."""
    counts = Counter(dict.fromkeys(("phrases", *REGIONS, "without region", "absent"), 0))
    rows = dataset.dataset if isinstance(dataset, PhraseRows) else dataset
    names = [name for name in ("phrase", "absent", *REGIONS) if name in rows.column_names]
    for table in rows.select_columns(names).with_format("arrow").iter(batch_size=10_000):
        columns = {name: plain(table[name]) for name in names}
        if pa.types.is_nested(columns["phrase"].type):  # of several phrases a row
            numbers = phrase_counts(columns["phrase"]).to_pylist()
            columns = {name: values_of_phrases(column, numbers) for name, column in columns.items()}
        counts["phrases"] += len(columns["phrase"])
        counts["absent"] += pc.sum(columns["absent"]).as_py() or 0 if "absent" in columns else 0
        is_bare = np.ones(len(columns["phrase"]), bool)
        for kind in ("masks", "polygons", "scribbles", "boxes"):  # the first that there is, as in `Region`
            if kind in columns:
                number = pc.fill_null(pc.list_value_length(columns[kind]), 0).to_numpy(zero_copy_only=False)
                counts[kind] += int((is_bare & (number > 0)).sum())
                is_bare &= number == 0
        counts["without region"] += int(is_bare.sum())
    return {**counts, "images": len({*image_marks(rows)})}


def picture(image: Image.Image, record: Record, region: Region | None) -> Image.Image:
    if region is None:
        return panel(image, f'"{record["phrase"]}", {"absent" if is_absent(record) else "no region"}', width=PANEL)
    heat = None
    if region.kind != "boxes":
        grid = Image.fromarray((255 * region.rasterize(256)).astype(np.uint8))
        heat = np.asarray(grid.resize(image.size), dtype=np.float32)
    return panel(image, f'"{record["phrase"]}"', heat, boxes=region.boxes.tolist(), width=PANEL)


def show(split: str, found: dict[str, Any], num_read: int) -> None:
    phrases, images = found["phrases"], found["images"]
    print(f"\n{split}: {phrases:,} phrases of {images:,} images, {phrases / max(images, 1):.1f} an image")
    for kind in (*REGIONS, "without region", "absent"):
        if found[kind]:
            print(f"  {kind:16}{found[kind]:>12,}  {found[kind] / phrases:6.1%}")
    total = sum(found["sizes"].values())
    if total:
        print(f"Boxes of the {num_read:,} that were read, by their share of the image:")
        for name, number in found["sizes"].items():
            print(f"  {name:16}{number:>12,}  {'█' * round(BAR * number / total)}".rstrip())
    unusable = found["unusable"]
    if unusable:
        share, of_units = len(unusable) / num_read, sum(map(is_of_units, unusable))
        advice = "; most such boxes are in another box_format" if of_units > SIZEABLE * num_read else ""
        print(f"{len(unusable):,} of {num_read:,} cannot be used ({share:.1%}){advice}:")
        print("\n".join(f"  {name:.500}" for name in unusable[:NAMED]))


def train_split(splits: list[str]) -> str:
    return "train" if "train" in splits else splits[0]


def command(args: argparse.Namespace, box_format: str | None, splits: list[str], folder: str) -> str:
    """Args: folder: what it writes nothing into."""
    words = ["albef-amc", "train", "--model", "CHECKPOINT", "--dataset", args.dataset]
    words += ["--dataset_config", args.dataset_config] if args.dataset_config else []
    words += ["--columns", *map("=".join, args.columns.items())] if args.columns else []
    words += ["--box_format", box_format] if box_format not in (None, "xyxy") else []
    words += ["--download_images"] if args.download_images else []
    words += ["--train_split", train_split(splits)] if "train" not in splits else []
    words += ["--validation_fraction", "0.1"] if "validation" not in splits else []
    name = os.path.splitext(os.path.basename(os.path.abspath(args.dataset)))[0]
    return shlex.join([*words, "--output_dir", str(place_apart(f"outputs/{name}", folder))])


if __name__ == "__main__":
    run_script(main)
