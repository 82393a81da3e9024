"""Photos with annotations in COCO's format: one row for each category in a photo, with all its instances.

The phrase is the category's name ("traffic light") and its region every instance of it in the photo, crowds
(`iscrowd`) included: a crowd is part of what the phrase means, and a point in it is right. Photos are stored as they
are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from .features import FEATURES, encode_png, make_row
from .segmentations import is_box, segmentation_to_mask
from .sources import SourceBuilder, SourceConfig, Unusable, chunked, clip_box, read_json, split_of

_PHOTOS_PER_JOB = 1000


@dataclass
class CocoConfig(SourceConfig):
    """Where the data is and how it is split."""

    annotations: str = field(default="instances.json", metadata={"help": "Annotation file, in the data folder."})
    categories: str | None = field(
        default=None,
        metadata={"help": "JSON file with a list of {id, name}, to use instead of the annotation file's categories."},
    )
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
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be at least 0 and below 1, got {self.validation_fraction}")
        if self.split is not None:
            datasets.NamedSplit(self.split)  # raises where no file could be named so


class Coco(SourceBuilder):
    """`datasets` builder of photos with COCO annotations; rows as in `features.FEATURES`.

    A file that is not what it should be (missing keys, the same id twice, a box that is not four numbers) raises a
    `ValueError` that names the record. A record that is of no use is dropped and counted in `report`, or named in
    strict mode: an annotation whose photo or category is not listed, a photo that is missing, cannot be decoded or has
    another size than its record says, a box without area in the photo, a segmentation that cannot be read or covers no
    pixel. Where an instance has no segmentation at all, its row goes by boxes alone.
    """

    BUILDER_CONFIG_CLASS = CocoConfig
    source = (
        "Photos and an annotation file in COCO's format that the builder was given. Photos are stored byte for byte as "
        "they were, whatever they show and carry with them (Exif data too)."
    )

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(description=__doc__, features=FEATURES, license=self.config.license or "")

    def split_names(self) -> list[str]:
        folder = Path(self.config.data_dir)
        other_categories = folder / self.config.categories if self.config.categories else None
        photos, categories, annotations = _read_annotations(folder / self.config.annotations, other_categories)
        usable: dict[int, list[dict[str, Any]]] = {}
        for annotation in annotations:
            record = f"annotation {annotation['id']}"
            if annotation["image_id"] not in photos:
                self.drop("instances: of a photo that is not listed", record)
            elif annotation["category_id"] not in categories:
                self.drop("instances: of a category that is not listed (see --categories)", record)
            else:
                name = categories[annotation["category_id"]]
                usable.setdefault(annotation["image_id"], []).append({**annotation, "category": name})
        order = {name: number for number, name in enumerate(categories.values())}
        self.splits: dict[str, list[dict[str, Any]]] = {}
        for photo in photos.values():
            own = sorted(usable.get(photo["id"], []), key=lambda annotation: order[annotation["category"]])
            split = self.config.split or split_of(str(photo["id"]), self.config.validation_fraction)
            self.splits.setdefault(split, []).append({**photo, "annotations": own})
        return sorted(self.splits)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process gets: not all photos, which come to it in its jobs."""
        return {**super().__getstate__(), "splits": None}

    def jobs(self, split: str) -> Iterator[list[dict[str, Any]]]:
        """Records of photos, each with its annotations."""
        return chunked(self.splits[split], _PHOTOS_PER_JOB)

    def rows(self, split: str, job: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for record in job:
            if not record["annotations"]:
                self.report.dropped["photos without annotation"] += 1
                continue
            try:
                photo = self.photo(record["file_name"], (record["width"], record["height"]))
            except Unusable as reason:
                self.drop(str(reason), f"photo {record['id']} ({record['file_name']})")
                self.report.dropped["instances: of a photo that cannot be used"] += len(record["annotations"])
                continue
            self.report.kept["photos"] += 1
            for category, annotations in groupby(record["annotations"], key=lambda annotation: annotation["category"]):
                boxes, masks = self._instances(list(annotations), record)
                if not boxes:
                    continue
                self.report.kept["rows (a photo and a category)"] += 1
                if any(mask is None for mask in masks):
                    self.report.kept["rows by boxes alone, for want of a segmentation"] += 1
                    masks = []
                yield make_row(photo, str(record["id"]), category, boxes, [encode_png(mask) for mask in masks])

    def _instances(
        self, annotations: list[dict[str, Any]], photo: dict[str, Any]
    ) -> tuple[list[list[float]], list[np.ndarray | None]]:
        """Boxes, and masks or None, of the annotations that can be used; counts all of them."""
        boxes: list[list[float]] = []
        masks: list[np.ndarray | None] = []
        size = photo["width"], photo["height"]
        for annotation in annotations:
            x, y, width, height = annotation["bbox"]
            try:
                box = clip_box([x, y, x + width, y + height], size)
                mask = segmentation_to_mask(annotation.get("segmentation"), photo["height"], photo["width"])
            except Unusable as reason:
                self.drop(f"instances: {reason}", f"annotation {annotation['id']}")
                continue
            boxes.append(box)
            masks.append(mask)
            self.report.kept["instances"] += 1
            if annotation.get("iscrowd"):
                self.report.kept["instances that are crowds"] += 1
        return boxes, masks


# The annotation file --------------------------------------------------------------------------------------------------


def _read_annotations(
    path: Path, categories_path: Path | None
) -> tuple[dict[int, dict[str, Any]], dict[int, str], list[dict[str, Any]]]:
    """Photos by id, names of categories by id, and annotations: all checked, in the order of the file."""
    content = read_json(path)
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
        _require(path, "annotation", annotation, "bbox", is_box(annotation.get("bbox")))
        _require(path, "annotation", annotation, "iscrowd", annotation.get("iscrowd", 0) in (0, 1))
    listed = content["categories"]
    if categories_path is not None:
        path, listed = categories_path, read_json(categories_path)
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
