"""Photos with annotations in COCO's format: one row for each category in a photo, with all its instances.

The phrase is the category's name ("traffic light") and its region every instance of it in the photo, crowds
(`iscrowd`) included: a crowd is part of what the phrase means, and a point in it is right. Photos are stored as they
are.
"""

from array import array
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np

from .features import FEATURES, encode_png, make_row
from .json_files import read_json, read_record, stream_json_lists
from .segmentations import is_box, segmentation_to_mask
from .sources import SourceBuilder, SourceConfig, Unusable, chunked, clip_box, split_of

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
        photos, self.categories, annotations = _read_annotations(self._path(), other_categories)
        usable = []
        for number, (id_, photo, category) in enumerate(annotations[:, :3].tolist()):
            if photo not in photos:
                self.drop("instances: of a photo that is not listed", f"annotation {id_}")
            elif category not in self.categories:
                self.drop("instances: of a category that is not listed (see --categories)", f"annotation {id_}")
            else:
                usable.append(number)
        self.splits = self._sorted(photos, annotations[usable])
        return sorted(self.splits)

    def _sorted(
        self, photos: dict[int, "_Photo"], annotations: np.ndarray
    ) -> dict[str, list[tuple["_Photo", np.ndarray]]]:
        """Split → its photos, each with the annotations of its own, sorted by their category's name."""
        rank = {id_: number for number, id_ in enumerate(photos)}
        order = {name: number for number, name in enumerate(self.categories.values())}
        photo_ranks = np.array([rank[photo] for photo in annotations[:, 1].tolist()], int)
        name_ranks = np.array([order[self.categories[category]] for category in annotations[:, 2].tolist()], int)
        by_photo = np.lexsort((name_ranks, photo_ranks))  # keeps the order of the file among equals
        ends = np.searchsorted(photo_ranks[by_photo], np.arange(len(photos)), side="right")
        splits: dict[str, list[tuple[_Photo, np.ndarray]]] = {}
        for photo, own in zip(photos.values(), np.split(annotations[by_photo], ends)):
            split = self.config.split or split_of(str(photo.id), self.config.validation_fraction)
            splits.setdefault(split, []).append((photo, own))
        return splits

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process gets: not all photos, which come to it in its jobs."""
        return {**super().__getstate__(), "splits": None}

    def jobs(self, split: str) -> Iterator[list[tuple["_Photo", np.ndarray]]]:
        """Photos, each with the columns of its annotations; the records are read by whoever makes the rows."""
        return chunked(self.splits[split], _PHOTOS_PER_JOB)

    def rows(self, split: str, job: list[tuple["_Photo", np.ndarray]]) -> Iterator[dict[str, Any]]:
        with self._path().open("rb") as file:
            for photo, annotations in job:
                if not len(annotations):
                    self.report.dropped["photos without annotation"] += 1
                    continue
                try:
                    image = self.photo(photo.file_name, (photo.width, photo.height))
                except Unusable as reason:
                    self.drop(str(reason), f"photo {photo.id} ({photo.file_name})")
                    self.report.dropped["instances: of a photo that cannot be used"] += len(annotations)
                    continue
                self.report.kept["photos"] += 1
                for category, own in groupby(annotations.tolist(), key=lambda columns: self.categories[columns[2]]):
                    records = [read_record(file, (start, end)) for _, _, _, start, end in own]
                    boxes, masks = self._instances(records, photo)
                    if not boxes:
                        continue
                    self.report.kept["rows (a photo and a category)"] += 1
                    if any(mask is None for mask in masks):
                        self.report.kept["rows by boxes alone, for want of a segmentation"] += 1
                        masks = []
                    yield make_row(image, str(photo.id), category, boxes, masks)

    def _path(self) -> Path:
        return Path(self.config.data_dir, self.config.annotations)

    def _instances(
        self, annotations: list[dict[str, Any]], photo: "_Photo"
    ) -> tuple[list[list[float]], list[dict[str, Any] | None]]:
        """Boxes, and masks as files or None, of the annotations that can be used; counts all of them."""
        boxes: list[list[float]] = []
        masks: list[dict[str, Any] | None] = []
        size = photo.width, photo.height
        for annotation in annotations:
            x, y, width, height = annotation["bbox"]
            try:
                box = clip_box([x, y, x + width, y + height], size)
                mask = segmentation_to_mask(annotation.get("segmentation"), photo.height, photo.width)
            except Unusable as reason:
                self.drop(f"instances: {reason}", f"annotation {annotation['id']}")
                continue
            boxes.append(box)
            masks.append(None if mask is None else encode_png(mask))  # of a large photo a file is much smaller
            self.report.kept["instances"] += 1
            if annotation.get("iscrowd"):
                self.report.kept["instances that are crowds"] += 1
        return boxes, masks


# The annotation file --------------------------------------------------------------------------------------------------


class _Photo(NamedTuple):
    id: int
    file_name: str
    width: int
    height: int


def _read_annotations(path: Path, categories_path: Path | None) -> tuple[dict[int, _Photo], dict[int, str], np.ndarray]:
    """
    Photos by id, names of categories by id, and of each annotation five numbers: all checked, in the order of the file.

    The outlines of all COCO take gigabytes as Python's lists, so that the annotations themselves stay in the file.

    Returns: photos, names, and int64 `(num_annotations, 5)`: id, photo's id, category's id, and the record's place.
    """
    photos: dict[int, _Photo] = {}
    names: dict[int, str] = {}
    columns = array("q")
    for key, record, place in stream_json_lists(path, ("images", "categories", "annotations")):
        if key == "annotations":
            _check_annotation(path, record)
            columns.extend((record["id"], record["image_id"], record["category_id"], *place))
        elif key == "images":
            _check_id(path, "image", record, photos)
            photos[record["id"]] = _photo(path, record)
        elif categories_path is None:
            _check_id(path, "category", record, names)
            names[record["id"]] = _name(path, record)
    annotations = np.array(columns, np.int64).reshape(-1, 5)
    ids, counts = np.unique(annotations[:, 0], return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{path}: annotation id {ids[counts > 1][0]} occurs twice")
    if categories_path is not None:
        listed = read_json(categories_path)
        if not isinstance(listed, list):
            raise ValueError(f"{categories_path} is not a list of categories")
        for record in listed:
            _check_id(categories_path, "category", record, names)
            names[record["id"]] = _name(categories_path, record)
    return photos, names, annotations


def _check_annotation(path: Path, record: Any) -> None:
    _check_id(path, "annotation", record, ())
    for key in ("image_id", "category_id"):
        _require(path, "annotation", record, key, _is_id(record.get(key)))
    _require(path, "annotation", record, "bbox", is_box(record.get("bbox")))
    _require(path, "annotation", record, "iscrowd", record.get("iscrowd", 0) in (0, 1))


def _photo(path: Path, record: dict[str, Any]) -> _Photo:
    _require(path, "image", record, "file_name", isinstance(record.get("file_name"), str) and record["file_name"])
    for key in ("width", "height"):
        _require(path, "image", record, key, type(record.get(key)) is int and record[key] > 0)
    return _Photo(record["id"], record["file_name"], record["width"], record["height"])


def _name(path: Path, record: dict[str, Any]) -> str:
    _require(path, "category", record, "name", isinstance(record.get("name"), str) and record["name"].strip())
    return record["name"].strip()


def _check_id(path: Path, kind: str, record: Any, known: Container[int]) -> None:
    if not isinstance(record, dict) or not _is_id(record.get("id")):
        raise ValueError(f"{path}: {kind} without a whole number as id: {str(record)[:200]}")
    if record["id"] in known:
        raise ValueError(f"{path}: {kind} id {record['id']} occurs twice")


def _is_id(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _require(path: Path, kind: str, record: dict[str, Any], key: str, good: Any) -> None:
    if not good:
        problem = f"cannot be {str(record[key])[:100]!r}" if key in record else "is missing"
        raise ValueError(f"{path}: {kind} {record['id']}: {key} {problem}")
