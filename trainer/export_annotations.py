"""The boxes that `ground_dataset` has found, as annotations that detectors train on and that people correct.

    albef-amc export-annotations outputs/found --dataset data/mine --format yolo --output outputs/boxes

Each phrase is a category. Images, which the rows do not hold, come from the data set that was grounded, in OUTPUT:

    images/SPLIT/NAME.jpg
    annotations/instances_SPLIT.json              COCO's format, each box with its `score`
    labels/SPLIT/NAME.txt, data.yaml              YOLO's

`albef-amc build FORMAT --data_dir OUTPUT --images_dir OUTPUT/images` reads them again, corrected or not.
"""

import argparse
import hashlib
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from modeling_albef_amc.image_processing_pil_albef import orientation_of
from modeling_albef_amc.images import UNREADABLE, open_file, open_image

from .blocks import Blocks, FileBlocks, open_blocks
from .commands import parse
from .evaluation import data_of_run
from .phrase_rows import Record
from .process_group import run_script
from .record_store import RecordStore, open_parquet, record_schema

SUFFIXES = {"BMP": ".bmp", "JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp"}  # what detectors read
COCO_SPLITS = re.compile("train|validation|val|test[ABC]|test(_(?!dev$)[a-z_]+)?|miniv")  # by the names of files
READ = ["image_id", "phrase", "score", "box", "absent", "error"]
ABSENT, ERROR, UNLIKELY = "that are marked absent", "without an answer", "below the threshold"


@dataclass
class Annotated:
    """An image file in `images`, its (width, height), and its boxes: (phrase, box x1, y1, x2, y2 in pixels) → score."""

    path: Path
    size: tuple[int, int]
    boxes: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)


def main(arguments: list[str] | None = None) -> None:
    export_annotations(parse("export-annotations", arguments))


def export_annotations(args: argparse.Namespace) -> None:
    """ValueError: the rows are not whole or of another data set, no box is left, or the folder has something in it."""
    splits = sorted(path.stem for path in args.rows.glob("*.json"))
    if not splits:
        raise ValueError(f"{args.rows} has no rows of albef-amc ground-dataset: it has no SPLIT.json")
    if args.output.exists() and any(args.output.iterdir()):
        raise ValueError(f"--output {args.output} has something in it: choose a new folder")
    try:
        write(args, splits)
    except BaseException:
        shutil.rmtree(args.output, ignore_errors=True)  # what was written; the next try wants it empty
        raise


def write(args: argparse.Namespace, splits: list[str]) -> None:
    left_out: Counter[str] = Counter()
    path, columns = data_of_run(args, strict=False)
    if args.format == "coco" and (wrong := [split for split in splits if not COCO_SPLITS.fullmatch(split)]):
        raise ValueError(
            f"{', '.join(wrong)}: COCO has no place for a split but the name of its file, by which build would take it "
            "for train: write --format yolo, or ground splits called train, validation or test_…"
        )
    sources = {}
    for split in splits:
        streaming = bool(rows_of_split(args.rows, split).settings().get("streaming"))
        sources[split] = open_blocks(path, args.dataset_config, split, streaming=streaming, columns=columns)
    found = {split: annotated(args, split, blocks, left_out) for split, blocks in sources.items()}
    phrases = sorted({phrase for images in found.values() for image in images for phrase, _ in image.boxes})
    if not phrases:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items())
        raise ValueError(f"{args.rows} has no box to write: {reasons or 'there is no phrase'}")
    (write_coco if args.format == "coco" else write_yolo)(args.output, found, phrases)
    for split, images in found.items():
        print(f"{split}: {sum(len(image.boxes) for image in images):,} boxes in {len(images):,} images")
    for reason, number in left_out.items():
        print(f"left out: {number:,} phrases {reason}")
    if args.format == "yolo" and not {"train", "validation"} <= found.keys():
        print("Detectors want train and val in data.yaml: ground the splits train and validation into one folder.")
    print(f"{args.output} written: {len(phrases):,} categories.")


def annotated(
    args: argparse.Namespace, split: str, blocks: Blocks | FileBlocks, left_out: Counter[str]
) -> list[Annotated]:
    """The images of a split, written, with their boxes; one without any is there too, one without an answer is not."""
    answers = read_answers(args.rows, split)
    folder = args.output / "images" / split
    folder.mkdir(parents=True, exist_ok=True)
    images: dict[Any, Annotated] = {}
    names: set[str] = set()
    for records in (records for block in range(len(blocks)) for records in blocks[block]):
        # Of the first rows alone (--max_examples) there are fewer answers, which end between two rows.
        pairs = list(zip(records, answers))
        for record, answer in pairs:
            check_same(args, record, answer)
        usable = [answer for _, answer in pairs if answer["error"] is None]
        if len(usable) < len(pairs):
            left_out[ERROR] += len(pairs) - len(usable)
        if not usable:
            continue
        data, suffix, size = content(records[0]["image"])
        key = hashlib.sha256(data).digest() if usable[0]["image_id"] is None else usable[0]["image_id"]
        if key not in images:
            images[key] = Annotated(folder / (new_name(records[0], names) + suffix), size)
            images[key].path.write_bytes(data)
        elif images[key].path.read_bytes() != data:
            raise ValueError(f"two different images of {args.dataset} have the image_id {key!r}")
        images[key].boxes |= dict(boxes_of(usable, args.threshold, left_out))
    if next(answers, None) is not None:
        raise ValueError(f"{args.rows} has more rows of {split} than {args.dataset}: they are of another data set")
    return list(images.values())


def boxes_of(
    answers: list[Record], threshold: float | None, left_out: Counter[str]
) -> Iterator[tuple[tuple[str, tuple[int, ...]], float]]:
    """What `Annotated.boxes` has of these rows."""
    for answer in answers:
        if answer["absent"]:
            left_out[ABSENT] += 1
        elif threshold is not None and not answer["score"] >= threshold:
            left_out[UNLIKELY] += 1
        else:
            yield (" ".join(answer["phrase"].split()), tuple(answer["box"])), answer["score"]


def rows_of_split(folder: Path, split: str) -> RecordStore:
    return RecordStore(folder, split, 0, record_schema(()))


def read_answers(folder: Path, split: str) -> Iterator[Record]:
    """The rows of a split in their order; ValueError: a file is missing, damaged or has not the columns."""
    store = rows_of_split(folder, split)
    store.num_blocks = store.settings().get("blocks")
    if not isinstance(store.num_blocks, int):
        raise ValueError(f"{store.settings_path} is not of rows of albef-amc ground-dataset")
    if left := store.missing():
        number = f"{len(left)} of {store.num_blocks} blocks are missing"
        raise ValueError(f"{folder}, split {split}: {number}: let albef-amc ground-dataset end first")
    for block in range(store.num_blocks):
        file = open_parquet(store.path(block))
        if lacking := set(READ) - set(file.schema_arrow.names):
            raise ValueError(f"{store.path(block)} has no column {', '.join(sorted(lacking))}")
        for batch in file.iter_batches(columns=READ):
            yield from batch.to_pylist()


def check_same(args: argparse.Namespace, record: Record, answer: Record) -> None:
    """ValueError: a row is not of the record at its place."""
    image_id = None if record.get("image_id") is None else str(record["image_id"])
    phrase = record["phrase"] if isinstance(record["phrase"], str) else None
    if (image_id, phrase) != (answer["image_id"], answer["phrase"]):
        raise ValueError(
            f"{args.rows} is not of {args.dataset}: where it has the phrase {answer['phrase']!r} of image "
            f"{answer['image_id']!r}, the data set has {phrase!r} of {image_id!r}"
        )


def content(source: Any) -> tuple[bytes, str, tuple[int, int]]:
    """An image file's bytes, suffix and (width, height): as they are, or as PNG where a detector would see it turned by
    Exif or not at all.
    """
    data, path = (source.get("bytes"), source.get("path")) if isinstance(source, Mapping) else (None, source)
    if data is None and isinstance(path, str | os.PathLike) and os.path.isfile(path):
        data = Path(path).read_bytes()
    if data is not None:
        try:
            with open_file(io.BytesIO(data)) as image:
                if image.format in SUFFIXES and orientation_of(image) == 1:
                    return data, SUFFIXES[image.format], image.size
        except UNREADABLE:
            pass  # said by `open_image`, with the file's name
    opened, file = open_image(source), io.BytesIO()
    opened.save(file, format="PNG")
    return file.getvalue(), ".png", opened.size


def new_name(record: Record, names: set[str]) -> str:
    """What an image's file is called, after its id or its own file: a name that no other has, on any system."""
    image = record["image"]
    path = image.get("path") if isinstance(image, Mapping) else image if isinstance(image, str) else None
    name = str(path or "image") if record.get("image_id") is None else str(record["image_id"])
    name = re.sub(r"#[0-9a-f]{12}$", "", name).replace("\\", "/").rstrip("/").rpartition("/")[2]
    name = re.sub(r"\.(avif|bmp|gif|jpe?g|png|ppm|tiff?|webp)$", "", name, flags=re.IGNORECASE)
    name = re.sub(r"[^\w-]+", "_", name)[:80].strip("_") or "image"
    number, new = 1, name
    while new.casefold() in names:
        number += 1
        new = f"{name}-{number}"
    names.add(new.casefold())
    return new


def write_coco(folder: Path, found: dict[str, list[Annotated]], phrases: list[str]) -> None:
    ids = {phrase: number for number, phrase in enumerate(phrases, 1)}
    (folder / "annotations").mkdir()
    for split, own in found.items():
        images, annotations = [], []
        for image_id, image in enumerate(own, 1):
            width, height = image.size
            images.append({"id": image_id, "file_name": image.path.name, "width": width, "height": height})
            for (phrase, (x1, y1, x2, y2)), score in image.boxes.items():
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "score": score}
                ours = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[phrase]}
                annotations.append({**ours, **box, "segmentation": [], "iscrowd": 0})
        categories = [{"id": number, "name": phrase} for phrase, number in ids.items()]
        data = {"images": images, "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def write_yolo(folder: Path, found: dict[str, list[Annotated]], phrases: list[str]) -> None:
    numbers = {phrase: number for number, phrase in enumerate(phrases)}
    for split, own in found.items():
        labels = folder / "labels" / split
        labels.mkdir(parents=True)
        for image in own:
            width, height = image.size
            lines = []
            for phrase, (x1, y1, x2, y2) in image.boxes:
                shares = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
                lines.append(" ".join([str(numbers[phrase]), *(f"{share:.10f}" for share in shares)]) + "\n")
            (labels / f"{image.path.stem}.txt").write_text("".join(lines))
    settings: dict[str, Any] = {"val" if name == "validation" else name: f"images/{name}" for name in found}
    settings["names"] = dict(enumerate(phrases))  # without `path` all is relative to this file
    text = yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
