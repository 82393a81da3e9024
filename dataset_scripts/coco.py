"""Photos with annotations in COCO's format: one row for each category in a photo, with all its instances.

The phrase is the category's name in words ("traffic light"; of `traffic_light` too, and "bow" of `bow_(weapon)`) and
its region every instance of it in the photo, crowds (`iscrowd`) included: a crowd is part of what the phrase means, and
a point in it is right. Photos are stored as they are.

MDETR's and GoldG's files are COCO's with captions. Of a photo whose annotations have `tokens_positive` the phrases are
those words of its caption, one row for each place in it, whatever the categories are called.
"""

import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import datasets
import numpy as np

from .coco_fields import read_box, read_id, read_number, read_whole
from .features import FEATURES, encode_png, make_row, mask_to_box
from .json_files import read_json, read_record, stream_json_lists
from .mdetr import phrase_of
from .segmentations import contradict, segmentation_to_mask
from .sources import OutsidePhoto, SourceBuilder, SourceConfig, Unusable, chunked, clip_box, split_of

_PHOTOS_PER_JOB = 1000
_NOT_EXHAUSTIVE = "instances: of a category not all of whose instances are marked (not_exhaustive_category_ids)"


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
        default=0.1,
        metadata={
            "help": "Share of the photos, drawn by a hash of their id, that validation gets; of two or more, at least "
            "one each for train and validation."
        },
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
    `ValueError` that names the record; so does one whose coordinates are shares of the photo, which names the file.
    Numbers and ids may be written as text, sizes as 640.0. A record that is of no use is dropped and counted in
    `report`, or named in strict mode: an annotation whose photo or category is not listed or whose `tokens_positive`
    are no words of a caption, a photo that is missing, cannot be decoded or has another size than its record says.

    Trouble with a mask is not trouble with the object. A part of a segmentation that cannot be read is left out and
    counted; where nothing is left, the instance has its box, and its row goes by boxes alone, as one mask cannot speak
    for all. An instance without a box, or whose box has no area in the photo, has its mask's own. Where the two
    contradict each other (an IoU below a half), the mask is taken and the box is its own, so that training and the
    pointing game are about the same place; it is counted and named. Of a mask that has lost a part the box is taken.

    A row is of all instances that the photo shows, also where the file lists it more than once, by several ids. One
    whose box lies beside the photo is not among them. One that has neither a mask nor a box with an area is somewhere,
    nobody knows where: its row is left out, with its other instances, as all of the photo but these would be taken for
    wrong. So is the row of a category that LVIS's files say is marked in part (`not_exhaustive_category_ids`), which is
    counted and no fault.

    LVIS's photos have no `file_name`, but COCO's address: they are looked for in COCO's folders, `val2017/<name>`.
    """

    BUILDER_CONFIG_CLASS = CocoConfig
    builder_name = "coco"
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
        if again := _take_together(photos, annotations):
            self.report.kept["photos that are listed again, taken together with the first"] += again
        usable = []
        with self._path().open("rb") as file:
            for number, photo, category, *place in annotations.tolist():
                if photo in photos and category in self.categories:
                    usable.append(number)
                    continue
                reason = "a photo that is not listed"
                if photo in photos:
                    reason = "a category that is not listed (see --categories)"
                self.drop(f"instances: of {reason}", _annotation_name(read_record(file, place), number))
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
        by_photo = list(zip(photos.values(), np.split(annotations[by_photo], ends)))
        fraction = 0 if self.config.split else self.config.validation_fraction
        moved = self.moved_images(((photo.drawn_by, (photo, own)) for photo, own in by_photo if len(own)), fraction)
        splits: dict[str, list[tuple[_Photo, np.ndarray]]] = {}
        for photo, own in by_photo:
            drawn_by = photo.drawn_by
            split = self.config.split or moved.get(drawn_by) or split_of(drawn_by, fraction)
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
                image_id = self.image_id(photo.file_name, image)
                for phrase, in_caption, own in self._phrases(annotations, photo, file):
                    boxes, masks = self._instances(own, photo)
                    if not boxes:
                        continue
                    self.report.kept[
                        "rows (a photo and a phrase)" if in_caption else "rows (a photo and a category)"
                    ] += 1
                    if any(mask is None for mask in masks):
                        self.report.kept["rows by boxes alone, for want of a segmentation"] += 1
                        masks = []
                    yield make_row(image, image_id, phrase, boxes, masks, **in_caption)

    def _path(self) -> Path:
        return Path(self.config.data_dir, self.config.annotations)

    def _phrases(self, annotations: np.ndarray, photo: "_Photo", file: BinaryIO) -> Iterator["_Phrase"]:
        """The phrases of a photo, each with what `make_row` gets of its caption and its own annotations."""
        records = [
            (number, self.categories[category], read_record(file, place))
            for number, _, category, *place in annotations.tolist()
        ]
        if not any("tokens_positive" in record for *_, record in records):
            in_part = {self.categories.get(number) for number in photo.not_exhaustive}
            for category, group in groupby(records, key=itemgetter(1)):
                own = [(number, record) for number, _, record in group]
                if category in in_part:
                    self.report.dropped[_NOT_EXHAUSTIVE] += len(own)
                else:
                    yield category, {}, own
            return
        if photo.caption is None:
            raise ValueError(
                f"{self._path()}: image {photo.id} has no caption, though its annotations have tokens_positive, places "
                "in it, as MDETR's and GoldG's files do: such a file needs both"
            )
        caption = " ".join(photo.caption.split())
        phrases: dict[tuple[str, tuple[int, int] | None], list[tuple[int, dict[str, Any]]]] = {}
        for number, _, record in records:
            try:
                phrase = phrase_of(photo.caption, photo.dataset_name, record.get("tokens_positive"))
            except Unusable as reason:
                self.drop(f"instances: {reason}", _annotation_name(record, number))
                continue
            phrases.setdefault(phrase, []).append((number, record))
        for (phrase, span), own in phrases.items():
            yield phrase, {"caption": caption if span else None, "caption_span": span}, own

    def _instances(
        self, annotations: list[tuple[int, dict[str, Any]]], photo: "_Photo"
    ) -> tuple[list[list[float]], list[dict[str, Any] | None]]:
        """Boxes, and masks as files or None, of the instances in the photo; none if one was lost. Counts all of them.

        Args:
            annotations: (number in the file, record).
        """
        boxes: list[list[float]] = []
        masks: list[dict[str, Any] | None] = []
        crowds, is_whole = 0, True
        for number, annotation in annotations:
            record = _annotation_name(annotation, number)
            try:
                box, mask = self._instance(annotation, photo, record)
            except Unusable as reason:
                self.drop(f"instances: {reason}", record)
                is_whole = is_whole and isinstance(reason, OutsidePhoto)
                continue
            boxes.append(box)
            masks.append(None if mask is None else encode_png(mask))  # of a large photo a file is much smaller
            crowds += bool(_is_crowd(annotation))
        if not is_whole and boxes:
            beside = "instances: beside one that was lost, without which the row would not be of all"
            self.report.dropped[beside] += len(boxes)
        if not is_whole or not boxes:
            return [], []
        self.report.kept["instances"] += len(boxes)
        if crowds:
            self.report.kept["instances that are crowds"] += crowds
        return boxes, masks

    def _instance(
        self, annotation: dict[str, Any], photo: "_Photo", record: str
    ) -> tuple[list[float], np.ndarray | None]:
        """An instance's box, cut to the photo, and its mask.

        Raises:
            Unusable: it has no mask, and no box with an area in the photo.
        """
        drop = partial(self.drop, record=record)
        lost: list[str] = []
        mask = segmentation_to_mask(annotation.get("segmentation"), photo.height, photo.width, lost.append)
        for reason in lost:
            drop(reason)
        if not annotation.get("bbox"):
            if mask is None:
                raise Unusable("neither a box nor a mask")
            self.report.kept["instances without a box, which have their mask's own"] += 1
            return mask_to_box(mask), mask
        x, y, width, height = read_box(annotation["bbox"])
        whole = [x, y, x + width, y + height]
        try:
            box = clip_box(whole, (photo.width, photo.height))
        except Unusable as reason:
            if mask is None:
                raise
            drop(f"boxes: {reason}; the mask's own is taken")
            return mask_to_box(mask), mask
        if box != whole:  # many of them may be corners in place of sizes
            self.report.kept["boxes over the edge of the photo, cut"] += 1
        if mask is not None and contradict(box, mask_to_box(mask)):
            if lost:
                drop("masks: contradict their box (IoU below 0.5) for want of a part; the box is taken alone")
                return box, None
            drop("boxes: contradict their mask (IoU below 0.5); the mask's own is taken")
            return mask_to_box(mask), mask
        return box, mask


# The annotation file --------------------------------------------------------------------------------------------------


class _Photo(NamedTuple):
    id: int | str
    file_name: str
    width: int
    height: int
    caption: str | None  # MDETR's, as the next one
    dataset_name: Any
    not_exhaustive: tuple[int, ...]  # numbers of the categories that LVIS's files say are marked in part

    @property
    def drawn_by(self) -> str:
        """What its split is drawn by; MDETR's files list a photo anew for each caption, by other ids."""
        return str(self.id) if self.caption is None else self.file_name


_Phrase = tuple[str, dict[str, Any], list[tuple[int, dict[str, Any]]]]


class _Numbers(dict[int | str, int]):
    """Ids → numbers for them, given as the ids come: an id may be a text, a column of numbers holds none."""

    def __missing__(self, id_: int | str) -> int:
        return self.setdefault(id_, len(self))


def _read_annotations(path: Path, categories_path: Path | None) -> tuple[dict[int, _Photo], dict[int, str], np.ndarray]:
    """
    Photos and names of categories by number, and of each annotation five numbers: all checked, in the file's order.

    The outlines of all COCO take gigabytes as Python's lists, so that the annotations themselves stay in the file.

    Returns: photos, names, and int64 `(num_annotations, 5)`: its place in the list, its photo's and its category's
        number, and where its record begins and ends in the file.
    """
    photos: dict[int, _Photo] = {}
    names: dict[int, str] = {}
    photo_numbers, category_numbers = _Numbers(), _Numbers()
    columns, ids, texts = array("q"), array("q"), set()
    highest = 0.0  # coordinate, as far as need be known
    for key, record, place in stream_json_lists(path, ("images", "categories", "annotations")):
        if key == "annotations":
            id_, photo, category = _check_annotation(path, record, len(columns) // 5)
            columns.extend((len(columns) // 5, photo_numbers[photo], category_numbers[category], *place))
            highest = highest if highest > 1 else max(highest, _highest(record))
            if type(id_) is int:
                ids.append(id_)
            elif id_ in texts:
                raise ValueError(f"{path}: annotation id {id_} occurs twice")
            elif id_ is not None:
                texts.add(id_)
        elif key == "images":
            number = photo_numbers[_check_id(path, "image", record)]
            if number in photos:
                raise ValueError(f"{path}: image id {record['id']} occurs twice")
            photos[number] = _photo(path, record, category_numbers)
        elif categories_path is None:
            _add_category(path, record, names, category_numbers)
    if 0 < highest <= 1:
        raise ValueError(
            f"{path}: no coordinate of the {len(columns) // 5:,} annotations is above 1: they seem to be shares of the "
            "photo, not pixels. Multiply them by its width and height"
        )
    unique, counts = np.unique(np.array(ids, np.int64), return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{path}: annotation id {unique[counts > 1][0]} occurs twice")
    if categories_path is not None:
        listed = read_json(categories_path)
        if not isinstance(listed, list):
            raise ValueError(f"{categories_path} is not a list of categories")
        for record in listed:
            _add_category(categories_path, record, names, category_numbers)
    return photos, names, np.array(columns, np.int64).reshape(-1, 5)


def _take_together(photos: dict[int, _Photo], annotations: np.ndarray) -> int:
    """Gives the annotations of photos that are listed again, by another id, to the first; returns how many those are.

    MDETR's photos are listed anew for each of their captions, and stay.
    """
    first: dict[tuple[str, int, int], int] = {}
    again: dict[int, int] = {}
    for number, photo in photos.items():
        if photo.caption is None:
            same = first.setdefault((photo.file_name, photo.width, photo.height), number)
            if same != number:
                again[number] = same
    for number in again:
        del photos[number]
    if again:
        annotations[:, 1] = [again.get(number, number) for number in annotations[:, 1].tolist()]
    return len(again)


def _check_annotation(path: Path, record: Any, number: int) -> tuple[int | str | None, int | str, int | str]:
    """Its id, which it need not have, its photo's and its category's."""
    has_none = isinstance(record, dict) and record.get("id") is None
    id_ = None if has_none else _check_id(path, "annotation", record)
    name = _annotation_name(record, number)
    found = [read_id(record.get(key)) for key in ("image_id", "category_id")]
    for key, value in zip(("image_id", "category_id"), found, strict=True):
        _require(path, name, record, key, value is not None)
    if "bbox" in record:
        _require(path, name, record, "bbox", record["bbox"] in (None, []) or read_box(record["bbox"]))
    _require(path, name, record, "iscrowd", _is_crowd(record) is not None)
    return id_, *found


def _highest(annotation: dict[str, Any]) -> float:
    """The highest coordinate of its box and polygons, 0 without any; run lengths are of pixels, however many."""
    box, segmentation = annotation.get("bbox"), annotation.get("segmentation")
    parts = [box, *(segmentation if isinstance(segmentation, list) else [segmentation])]
    if any(isinstance(part, dict) for part in parts):
        return math.inf
    values = [value for part in parts for value in (part if isinstance(part, list) else [part])]
    return max((read_number(value) or 0 for value in values), default=0)


def _is_crowd(annotation: dict[str, Any]) -> bool | None:
    """None where it says neither; without the field it is none."""
    value = annotation.get("iscrowd")
    if value is None or isinstance(value, bool):
        return bool(value)
    return {0: False, 1: True}.get(read_whole(value))


def _annotation_name(record: dict[str, Any], number: int) -> str:
    id_ = record.get("id")
    return f"annotation number {number} (without id)" if id_ is None else f"annotation {id_}"


def _photo(path: Path, record: dict[str, Any], category_numbers: _Numbers) -> _Photo:
    name, file_name, address = f"image {record['id']}", record.get("file_name"), record.get("coco_url")
    if file_name is None and isinstance(address, str):
        file_name = "/".join(address.split("/")[-2:])
    _require(path, name, record, "file_name", isinstance(file_name, str) and file_name)
    sides = [read_whole(record.get(key)) for key in ("width", "height")]
    for key, side in zip(("width", "height"), sides, strict=True):
        _require(path, name, record, key, side is not None and side > 0)
    caption = record.get("caption")
    caption = caption if isinstance(caption, str) else None
    in_part = record.get("not_exhaustive_category_ids") or []
    _require(path, name, record, "not_exhaustive_category_ids", isinstance(in_part, list))
    in_part = tuple(category_numbers[read_id(id_)] for id_ in in_part)
    return _Photo(read_id(record["id"]), file_name, *sides, caption, record.get("dataset_name"), in_part)


def _add_category(path: Path, record: Any, names: dict[int, str], numbers: _Numbers) -> None:
    number = numbers[_check_id(path, "category", record)]
    name = record.get("name")
    _require(path, f"category {record['id']}", record, "name", isinstance(name, str) and in_words(name))
    if names.setdefault(number, in_words(name)) != in_words(name):
        raise ValueError(
            f"{path}: category id {record['id']} occurs twice, as {names[number]!r:.80} and as {name!r:.80}"
        )


def in_words(category: str) -> str:
    """A category's name as a person would say it: `traffic_light` is a traffic light, `bow_(weapon)` a bow.

    What stands in brackets tells a dictionary's meanings apart, and nobody says it. Categories that are called the same
    without it have one row in a photo, as all of them are what the phrase says.
    """
    words = category.replace("_", " ")
    return " ".join((re.sub(r"\([^()]*\)", " ", words).strip() or words).split())


def _check_id(path: Path, kind: str, record: Any) -> int | str:
    id_ = read_id(record.get("id")) if isinstance(record, dict) else None
    if id_ is None:
        raise ValueError(f"{path}: {kind} without a whole number as id, or a text: {str(record)[:200]}")
    return id_


def _require(path: Path, name: str, record: dict[str, Any], key: str, good: Any) -> None:
    if not good:
        problem = f"cannot be {str(record[key])[:100]!r}" if key in record else "is missing"
        raise ValueError(f"{path}: {name}: {key} {problem}")
