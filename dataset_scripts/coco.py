"""Photos with annotations in COCO's format: one row for each category in a photo, with all its instances.

The phrase is the category's name ("traffic light") and its region every instance of it in the photo, crowds
(`iscrowd`) included: a crowd is part of what the phrase means, and a point in it is right. Photos are stored as they
are.
"""

import hashlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pycocotools import mask as coco_mask

from .features import FEATURES, BuildReport, encode_png


@dataclass
class CocoConfig(datasets.BuilderConfig):
    """Where the data is and how it is split."""

    data_dir: str | None = field(default=None, metadata={"help": "Folder that holds the annotations and the photos."})
    annotations: str = field(default="instances.json", metadata={"help": "Annotation file, in the data folder."})
    categories: str | None = field(
        default=None,
        metadata={"help": "JSON file with a list of {id, name}, to use instead of the annotation file's categories."},
    )
    images: str = field(default="images", metadata={"help": "Folder of the photos, in the data folder."})
    split: str | None = field(
        default=None, metadata={"help": "Name of the one split to put all photos in, instead of train and validation."}
    )
    license: str | None = field(
        default=None,
        metadata={
            "help": "Licence of photos and annotations by its name on the Hub, e.g. cc-by-4.0, for the data card."
        },
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the photos, drawn by a hash of their id, that validation gets."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data_dir:
            raise ValueError("coco needs data_dir, the folder that holds the annotations and the photos")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be at least 0 and below 1, got {self.validation_fraction}")


class _Unusable(Exception):
    """Why a record cannot be used; its text is the reason it is counted under."""


class Coco(datasets.GeneratorBasedBuilder):
    """`datasets` builder of photos with COCO annotations; rows as in `features.FEATURES`.

    A file that is not what it should be (missing keys, the same id twice, a box that is not four numbers, a photo that
    is not there) raises a `ValueError` that names the record. A record that is of no use is dropped and counted in
    `report`: an annotation whose photo or category is not listed, a photo that cannot be decoded or has
    another size than its
    record says, a box without area in the photo, a segmentation that cannot be read or covers no pixel. Where an
    instance has no segmentation at all, its row goes by boxes alone.
    """

    BUILDER_CONFIG_CLASS = CocoConfig
    source = (
        "Photos and an annotation file in COCO's format that the builder was given. Photos are stored byte for byte as "
        "they were, whatever they show and carry with them (Exif data too)."
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.report = BuildReport()

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=__doc__, features=FEATURES, license=self.config.license or "")

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        folder = Path(self.config.data_dir)
        other_categories = folder / self.config.categories if self.config.categories else None
        photos, categories, annotations = _read_annotations(folder / self.config.annotations, other_categories)
        usable: dict[int, list[dict[str, Any]]] = {}
        for annotation in annotations:
            if annotation["image_id"] not in photos:
                self.report.dropped["instances: of a photo that is not listed"] += 1
            elif annotation["category_id"] not in categories:
                self.report.dropped["instances: of a category that is not listed (see --categories)"] += 1
            else:
                usable.setdefault(annotation["image_id"], []).append(annotation)
        image_folder = folder / self.config.images
        missing = [p["file_name"] for p in photos.values() if not (image_folder / p["file_name"]).is_file()]
        if missing:
            raise ValueError(f"{len(missing)} of {len(photos)} photos are not in {image_folder}, first {missing[0]}")
        splits: dict[str, list[dict[str, Any]]] = {}
        for photo in photos.values():
            split = self.config.split or _split_of(photo["id"], self.config.validation_fraction)
            splits.setdefault(split, []).append(photo)
        return [
            datasets.SplitGenerator(
                name=split,
                gen_kwargs={"photos": splits[split], "categories": categories, "annotations": usable},
            )
            for split in sorted(splits)
        ]

    def _generate_examples(
        self, photos: list[dict[str, Any]], categories: dict[int, str], annotations: dict[int, list[dict[str, Any]]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for photo in photos:
            own = annotations.get(photo["id"], [])
            if not own:
                self.report.dropped["photos without annotation"] += 1
                continue
            data = (Path(self.config.data_dir) / self.config.images / photo["file_name"]).read_bytes()
            try:
                _check_photo(data, photo)
            except _Unusable as reason:
                self.report.dropped[f"photos: {reason}"] += 1
                self.report.dropped[f"instances: of a photo that {reason}"] += len(own)
                continue
            self.report.kept["photos"] += 1
            for category, name in categories.items():
                boxes, masks = self._instances([a for a in own if a["category_id"] == category], photo)
                if not boxes:
                    continue
                self.report.kept["rows (a photo and a category)"] += 1
                if any(mask is None for mask in masks):
                    self.report.kept["rows by boxes alone, for want of a segmentation"] += 1
                    masks = []
                yield (
                    f"{photo['id']}-{category}",
                    {
                        "image": {"bytes": data, "path": None},
                        "image_id": str(photo["id"]),
                        "phrase": name,
                        "boxes": boxes,
                        "masks": [encode_png(mask) for mask in masks],
                    },
                )

    def _instances(
        self, annotations: list[dict[str, Any]], photo: dict[str, Any]
    ) -> tuple[list[list[float]], list[np.ndarray | None]]:
        """Boxes, and masks or None, of the annotations that can be used; counts all of them."""
        boxes: list[list[float]] = []
        masks: list[np.ndarray | None] = []
        for annotation in annotations:
            try:
                box = clip_box(annotation["bbox"], photo["height"], photo["width"])
                mask = segmentation_to_mask(annotation.get("segmentation"), photo["height"], photo["width"])
            except _Unusable as reason:
                self.report.dropped[f"instances: {reason}"] += 1
                continue
            boxes.append(box)
            masks.append(mask)
            self.report.kept["instances"] += 1
            if annotation.get("iscrowd"):
                self.report.kept["instances that are crowds"] += 1
        return boxes, masks


def _split_of(image_id: int, validation_fraction: float) -> str:
    """The split of a photo, by its id alone: it stays where it is when photos come or go."""
    draw = int.from_bytes(hashlib.sha256(str(image_id).encode()).digest()[:4]) / 2**32
    return "validation" if draw < validation_fraction else "train"


# Geometry -------------------------------------------------------------------------------------------------------------


def clip_box(bbox: list[float], height: int, width: int) -> list[float]:
    """COCO's `[x, y, width, height]` → `[x1, y1, x2, y2]`, both in pixels, cut to the image."""
    x, y, w, h = bbox
    box = [max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))]
    if box[2] <= box[0] or box[3] <= box[1]:
        raise _Unusable("box without area in the photo")
    return box


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> np.ndarray | None:
    """Polygons, compressed or uncompressed run lengths → bool mask `(height, width)`; None when there is nothing."""
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, dict):
        mask = _run_lengths_to_mask(segmentation, height, width)
    else:
        mask = _polygons_to_mask(segmentation, height, width)
    if not mask.any():
        raise _Unusable("segmentation that covers no pixel of the photo")
    return mask


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _polygons_to_mask(polygons: Any, height: int, width: int) -> np.ndarray:
    if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
        raise _Unusable("segmentation that is neither polygons nor run lengths")
    for polygon in polygons:
        if len(polygon) % 2:
            raise _Unusable("polygon with an odd number of coordinates")
        if len(polygon) < 6:
            raise _Unusable("polygon of fewer than three points")
        if not all(_is_number(value) for value in polygon):
            raise _Unusable("polygon with a coordinate that is no finite number")
        # Outlines are traced point by point before they are cut to the image: a wild coordinate would exhaust memory.
        if max(map(abs, polygon)) > 10 * max(height, width):
            raise _Unusable("polygon far outside the photo")
    return _run_lengths_to_mask(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)), height, width)


def _run_lengths_to_mask(segmentation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Run lengths, down the columns, zeros first. pycocotools' own decoder trusts them, so it is not used."""
    if segmentation.get("size") != [height, width]:
        raise _Unusable("run lengths for another image size")
    counts = segmentation.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    if isinstance(counts, str):
        counts = _decompress(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise _Unusable("run lengths that cannot be read")
    if sum(counts) != height * width:
        raise _Unusable("run lengths that do not add up to the image")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def _decompress(text: str) -> list[int]:
    """COCO's compressed run lengths → run lengths.

    A number is written in groups of 5 bits, lowest first, as characters from "0" on: bit 5 says that more follow, bit 4
    of the last one is the sign. From the fourth number on they are differences to the number two places before.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise _Unusable("run lengths that cannot be read")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise _Unusable("run lengths that cannot be read")
    return counts


def _check_photo(data: bytes, photo: dict[str, Any]) -> None:
    """Decodes the photo as its reader will, which turns it as its EXIF orientation says."""
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise _Unusable("cannot be decoded") from error
    if image.size != (photo["width"], photo["height"]):
        raise _Unusable("has another size than its record says")


# The annotation file --------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _read_annotations(
    path: Path, categories_path: Path | None
) -> tuple[dict[int, dict[str, Any]], dict[int, str], list[dict[str, Any]]]:
    """Photos by id, names of categories by id, and annotations: all checked, in the order of the file."""
    content = _read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "categories", "annotations")
    ):
        raise ValueError(f"{path} is not in COCO's format: it needs the lists images, categories and annotations")
    photos = _by_id(path, "image", content["images"])
    for photo in photos.values():
        _require(path, "image", photo, "file_name", isinstance(photo.get("file_name"), str) and photo["file_name"])
        for key in ("width", "height"):
            _require(path, "image", photo, key, type(photo.get(key)) is int and photo[key] > 0)
    annotations = list(_by_id(path, "annotation", content["annotations"]).values())
    for annotation in annotations:
        for key in ("image_id", "category_id"):
            _require(path, "annotation", annotation, key, type(annotation.get(key)) is int)
        box = annotation.get("bbox")
        is_box = isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)
        _require(path, "annotation", annotation, "bbox", is_box)
        _require(path, "annotation", annotation, "iscrowd", annotation.get("iscrowd", 0) in (0, 1))
    listed = content["categories"]
    if categories_path is not None:
        path, listed = categories_path, _read_json(categories_path)
        if not isinstance(listed, list):
            raise ValueError(f"{path} is not a list of categories")
    categories = _by_id(path, "category", listed)
    for category in categories.values():
        _require(path, "category", category, "name", isinstance(category.get("name"), str) and category["name"].strip())
    return photos, {id_: category["name"].strip() for id_, category in categories.items()}, annotations


def _by_id(path: Path, kind: str, records: list[Any]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for record in records:
        if not isinstance(record, dict) or type(record.get("id")) is not int:
            raise ValueError(f"{path}: {kind} without a whole number as id: {str(record)[:200]}")
        if record["id"] in found:
            raise ValueError(f"{path}: {kind} id {record['id']} occurs twice")
        found[record["id"]] = record
    return found


def _require(path: Path, kind: str, record: dict[str, Any], key: str, good: Any) -> None:
    if not good:
        problem = f"cannot be {str(record[key])[:100]!r}" if key in record else "is missing"
        raise ValueError(f"{path}: {kind} {record['id']}: {key} {problem}")
