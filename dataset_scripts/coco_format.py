"""COCO's annotation files as people's tools write them: numbers as text, sizes with a point, ids of any kind.

What can mean one thing only is read so; anything else raises a ValueError that names the record.
"""

import math
import re
import sys
from array import array
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .builder import check_scale
from .json_files import read_json, read_record, stream_json_lists

_ID_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,198}")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")
_LONGEST_NUMBER, _LONGEST_ID = 40, 200  # characters
_EXACT = 2**53  # from here on floats leave out whole numbers
SIZEABLE = 0.25  # a share of the annotations that chance does not explain
_BEYOND = 1.05  # of an image's side: a box that ends farther out is not one that was rounded
# What a text of a region's own is called, as of `_text_keys`; the first that is there is taken.
_SINGULARS = "caption", "phrase", "expression", "referringexpression", "sentence", "sent", "description", "text"
TEXT_NAMES = [*(name + ending for name in _SINGULARS for ending in ("", "s")), "query"]
_LISTS_OF_LVIS = ("not_exhaustive_category_ids", "neg_category_ids")  # of an image
_EXAMPLES = 3  # records that a message names
_LEAST_AGREEMENT = 0.5  # IoU of a box and its mask's own: parts that were not drawn leave more, another object less


# Fields: None for what cannot be read ---------------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    """Whether `value` is a finite float, or an int that one can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def read_number(value: Any) -> float | None:
    """A finite number, also one that is written as text ("12.5")."""
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    return value if is_number(value) else None


def read_whole(value: Any) -> int | None:
    """A whole number, also one that is written as 40.0, "40" or "40.0"."""
    number = read_number(value)
    return int(number) if number is not None and abs(number) < _EXACT and number == int(number) else None


def read_id(value: Any) -> int | str | None:
    """An id: a whole number of 64 bits, or a text, as which a larger number is taken. 7, 7.0 and "7" are the same id,
    "007" and "a7" are texts.
    """
    if isinstance(value, str) and _ID_NUMBER.fullmatch(value):
        value = int(value)
    if type(value) is int and abs(value) < 10 ** (_LONGEST_ID - 1):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, str):
        return value if 0 < len(value) <= _LONGEST_ID else None
    return read_whole(value) if type(value) is float else None


def read_box(value: Any) -> list[float] | None:
    """Four finite numbers in a list, which may be written as text."""
    if not isinstance(value, list) or len(value) != 4 or None in (numbers := list(map(read_number, value))):
        return None
    return numbers


def listed_boxes(value: Any) -> list[Any]:
    """A box, or several, as a list of them."""
    if value is None or value == []:
        return []
    return value if isinstance(value, list) and isinstance(value[0], list) else [value]


def read_corners(value: Any) -> list[float] | None:
    """`[x1, y1, x2, y2]` of a box `[x, y, width, height]`."""
    if (box := read_box(value)) is None:
        return None
    x, y, width, height = box
    return [x, y, x + width, y + height]


def read_region(annotation: dict[str, Any]) -> tuple[list[float] | None, Any]:
    """An annotation's box as corners and its segmentation; of a box that CVAT has turned, a polygon alone."""
    box, segmentation = read_corners(annotation.get("bbox")), annotation.get("segmentation")
    attributes = annotation.get("attributes")
    degrees = read_number(attributes.get("rotation")) if isinstance(attributes, dict) else None
    if box is None or segmentation or not degrees:
        return box, segmentation
    x1, y1, x2, y2 = box
    x, y, cos, sin = (x1 + x2) / 2, (y1 + y2) / 2, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x1 - x, y1 - y), (x2 - x, y1 - y), (x2 - x, y2 - y), (x1 - x, y2 - y)]  # clockwise, about the centre
    return None, [[value for dx, dy in corners for value in (x + cos * dx - sin * dy, y + sin * dx + cos * dy)]]


def read_flag(annotation: dict[str, Any], key: str) -> bool | None:
    """What an annotation's `iscrowd` or `ignore` says, which it need not have."""
    value = annotation.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    return {0: False, 1: True}.get(read_whole(value))


@lru_cache(4096)
def in_words(category: str) -> str:
    """A category's name as a person would say it: `traffic_light` is a traffic light, `bow_(weapon)` a bow.

    What stands in brackets tells a dictionary's meanings apart, and nobody says it.
    """
    words, more = category.replace("_", " "), 1
    spoken = words
    while more:  # brackets in brackets
        spoken, more = re.subn(r"\([^()]*\)", " ", spoken)
    return " ".join((spoken.strip() or words).split())


def as_read(words: str) -> str:
    """Words as an uncased tokenizer reads them: phrases of an image that are read the same are one."""
    return " ".join(words.casefold().replace("_", " ").replace("-", " ").split())


def contradict(box: Sequence[float], mask_box: Sequence[float]) -> bool:
    """Whether an object's box and its mask's own, both of corners, cannot be of one object: an IoU below a half."""
    width = min(box[2], mask_box[2]) - max(box[0], mask_box[0])
    height = min(box[3], mask_box[3]) - max(box[1], mask_box[1])
    both = max(width, 0) * max(height, 0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, mask_box)]
    return both < _LEAST_AGREEMENT * (sum(areas) - both)


def name_of(annotation: dict[str, Any], number: int) -> str:
    """What an annotation is called in messages."""
    id_ = annotation.get("id")
    return f"annotation number {number} (without id)" if id_ is None else f"annotation {id_}"


# Files ----------------------------------------------------------------------------------------------------------------


class CocoImage(NamedTuple):
    """An image's record; the last fields are MDETR's, UNINEXT's and LVIS's."""

    id: int | str
    file_name: str  # LVIS's have none, but an address
    address: str | None  # folder and name at the end of COCO's address: "val2017/000000000139.jpg"
    size: tuple[int, int] | None  # (width, height) in pixels; none: the file does not say it, nor can the image be had
    caption: str | None
    dataset_name: Any
    expressions: tuple[str, ...]  # each of them for all that is marked in the image
    not_exhaustive: tuple[int, ...]  # numbers of the categories not all of whose instances are marked
    negative: tuple[int, ...]  # and of those that it was searched for, and has none of


NO_CATEGORY = -1  # in place of a category's number


class _Numbers(dict[int | str, int]):
    """Ids → numbers for them, given as the ids come: an id may be a text, a column of numbers holds none."""

    def __missing__(self, id_: int | str) -> int:
        return self.setdefault(id_, len(self))


class AnnotationFile:
    """An annotation file, read through and checked.

    The outlines of all COCO take gigabytes as Python's lists, so that annotations stay in the file, but for `wanted`.
    An annotation may also be a caption of its image, or have all segments of it (panoptic): that is of `NO_CATEGORY`.

    Args:
        categories_path: a list of categories, by itself or in a file like this one, to take in place of the file's own.
        wanted: ids of the annotations to look at, which `records` then has; all.
        size_of: the size of an image, None if it cannot be had; asked where the record has none.
        in_pixels: boxes are, though they may seem to be counted to 100 or 1000.
    """

    def __init__(
        self,
        path: Path,
        categories_path: Path | None = None,
        wanted: Collection[Any] | None = None,
        size_of: Callable[[CocoImage], tuple[int, int] | None] | None = None,
        in_pixels: bool = False,
    ) -> None:
        self.path, self.wanted, self._size_of, self._in_pixels = path, wanted, size_of, in_pixels
        self.images: dict[int, CocoImage] = {}  # by number
        self.categories: dict[int, str] = {}  # names by number
        self.records: dict[int | str, dict[str, Any]] = {}  # annotations by id
        self.category_numbers, self._image_numbers = _Numbers(), _Numbers()
        self._columns, self._ids, self._text_ids = array("q"), array("q"), set()
        self._corners = array("f")  # x1, y1, x2, y2 of an annotation's box
        self.with_tokens: set[int] = set()  # numbers of the images that annotations mark words in the caption of
        # Annotations with coordinates; those with none above 1; of these, those with one that is not whole.
        self._num_located = self._num_small = self._num_shares = 0
        self.has_segments, self._num_captions = False, 0
        self.kinds: dict[int, str] = {}  # their supercategories, where they have one, by number
        lists = ("images", *(() if categories_path else ("categories",)), "annotations")
        for key, record, place in stream_json_lists(path, lists, self._spare_lists):
            if key == "annotations":
                self._add_annotation(record, place)
            elif key == "images":
                self._add_image(record)
            else:
                self._add_category(record, path)
        if categories_path is not None:
            listed = read_json(categories_path)
            listed = listed.get("categories") if isinstance(listed, dict) else listed
            if not isinstance(listed, list):
                raise ValueError(f"{categories_path} is not a list of categories")
            for record in listed:
                self._add_category(record, categories_path)
        self._check_all()

    def table(self) -> np.ndarray:
        """int64 `(num_annotations, 5)`: number in the list, the image's, the category's, first byte and end."""
        return np.array(self._columns, np.int64).reshape(-1, 5)

    def _spare_lists(self) -> set[str]:
        """Captions have no categories."""
        return {"categories"} if 5 * self._num_captions == len(self._columns) > 0 else set()

    def _check_all(self) -> None:
        if self._num_shares > SIZEABLE * self._num_located or 0 < self._num_small == self._num_located:
            raise ValueError(
                f"{self.path}: no coordinate of {self._num_small:,} of {self._num_located:,} annotations is above 1: "
                "they seem to be shares of the image, not pixels. Multiply them by its width and height"
            )
        self._check_sizes()
        unique, counts = np.unique(np.array(self._ids, np.int64), return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"{self.path}: annotation id {unique[counts > 1][0]} occurs twice")

    def _check_sizes(self) -> None:
        """Corners in place of sizes: as `[x, y, width, height]` they end beyond the image, as corners inside it."""
        table, corners = self.table(), np.array(self._corners, np.float32).reshape(-1, 4)
        sizes = np.full((len(self._image_numbers), 2), np.inf, np.float32)
        for number, image in self.images.items():
            sizes[number] = image.size or np.inf
        start, end, limit = corners[:, :2], corners[:, 2:], _BEYOND * sizes[table[:, 1]]
        with np.errstate(invalid="ignore"):  # of what is infinite in 32 bits
            width = end - start
        is_over, is_inside = (end > limit).any(1), ((start >= 0) & (start < width) & (width <= limit)).all(1)
        wrong = np.flatnonzero(is_over & is_inside)
        if len(wrong) > SIZEABLE * np.isfinite(corners).all(1).sum():
            with self.path.open("rb") as file:
                first = [name_of(read_record(file, place), n) for n, _, _, *place in table[wrong[:_EXAMPLES]].tolist()]
            raise ValueError(
                f"{self.path}: {len(wrong):,} boxes ({', '.join(first)}{', …' * (len(wrong) > len(first))}) end beyond "
                "their image, and would not as corners [x1, y1, x2, y2]: COCO's boxes are [x, y, width, height]"
            )
        if not self._in_pixels:
            check_scale(str(self.path), corners, np.where(np.isinf(sizes), 0, sizes)[table[:, 1]])

    def _add_image(self, record: Any) -> None:
        number = self._image_numbers[_check_id(self.path, "image", record)]
        if number in self.images:
            raise ValueError(f"{self.path}: image id {record['id']} occurs twice")
        file_name, address, caption = (record.get(key) for key in ("file_name", "coco_url", "caption"))
        address = "/".join(address.split("/")[-2:]) if isinstance(address, str) else None
        file_name = address if file_name is None else file_name
        in_part, negative = (record.get(key) or [] for key in _LISTS_OF_LVIS)
        width, height = (read_whole(record.get(side) or 0) for side in ("width", "height"))
        require = partial(_require, self.path, f"image {record['id']}", record)
        require("file_name", isinstance(file_name, str) and file_name)
        is_unsaid = 0 in (width, height) and self._size_of is not None
        require("width", is_unsaid or (width or 0) > 0)
        require("height", is_unsaid or (height or 0) > 0)
        for key, ids in zip(_LISTS_OF_LVIS, (in_part, negative)):
            require(key, isinstance(ids, list))
        image = CocoImage(
            read_id(record["id"]),
            file_name,
            address,
            None if is_unsaid else (width, height),
            caption if isinstance(caption, str) else None,
            record.get("dataset_name"),
            tuple(texts_in(record.get("expressions")) or texts_in(record.get("expression"))),
            *(tuple(self.category_numbers[read_id(id_)] for id_ in ids) for ids in (in_part, negative)),
        )
        self.images[number] = image._replace(size=self._size_of(image)) if is_unsaid else image

    def _add_category(self, record: Any, path: Path) -> None:
        number = self.category_numbers[_check_id(path, "category", record)]
        name = record.get("name")
        _require(path, f"category {record['id']}", record, "name", isinstance(name, str) and in_words(name))
        known = self.categories.setdefault(number, name)
        if isinstance(kind := record.get("supercategory"), str):
            self.kinds[number] = kind
        if in_words(known) != in_words(name):
            raise ValueError(f"{path}: category id {record['id']} occurs twice, as {known!r:.80} and as {name!r:.80}")

    def _add_annotation(self, record: Any, place: tuple[int, int]) -> None:
        number = len(self._columns) // 5
        has_none = isinstance(record, dict) and record.get("id") is None
        id_ = None if has_none else _check_id(self.path, "annotation", record)
        if self.wanted is not None:
            if id_ not in self.wanted:
                return
            self.records[id_] = record
        name = name_of(record, number)
        require = partial(_require, self.path, name, record)
        image, box = read_id(record.get("image_id")), record.get("bbox")
        require("image_id", image is not None)
        category_number = self._category_of(record, name)
        require("bbox", box in (None, []) or read_corners(box) or record.get("segmentation"))
        for flag in ("iscrowd", "ignore"):
            require(flag, read_flag(record, flag) is not None)
        self._columns.extend((number, self._image_numbers[image], category_number, *place))
        corners = read_region(record)[0]
        self._corners.extend(corners if corners and all(map(is_number, corners)) else [math.nan] * 4)
        coordinates = _coordinates(record)
        if any(coordinates):
            is_small = max(map(abs, coordinates)) <= 1
            self._num_located += 1
            self._num_small += is_small
            self._num_shares += is_small and any(value % 1 for value in coordinates)
        if "tokens_positive" in record:
            self.with_tokens.add(self._image_numbers[image])
        if type(id_) is int:
            self._ids.append(id_)
        elif id_ in self._text_ids:
            raise ValueError(f"{self.path}: annotation id {id_} occurs twice")
        elif id_ is not None:
            self._text_ids.add(id_)

    def _category_of(self, annotation: dict[str, Any], name: str) -> int:
        """Its category's number, or that of what has no category of its own."""
        if is_caption(annotation):
            self._num_captions += 1
            return NO_CATEGORY
        if "segments_info" in annotation:
            self.has_segments = True
            _check_segments(self.path, annotation, name)
            return NO_CATEGORY
        if texts_of(annotation):
            return NO_CATEGORY
        category = read_id(annotation.get("category_id"))
        _require(self.path, name, annotation, "category_id", category is not None)
        return self.category_numbers[category]


def texts_of(annotation: dict[str, Any]) -> list[str]:
    """What an annotation says of its own region, in words and not by a category, as GRiT's of Visual Genome do: a text
    or a list of them, each once. It may stand in its `attributes`, as CVAT's do."""
    attributes = annotation.get("attributes")
    found = (
        texts_in(record[key])
        for record in (annotation, attributes if isinstance(attributes, dict) else {})
        for key in _text_keys(tuple(record))
    )
    return next(filter(None, found), [])


@lru_cache(4096)
def _text_keys(keys: tuple[str, ...]) -> list[str]:
    """Those of a record's keys that are called as texts are, in whatever spelling."""
    plain = {key: re.sub("[^a-z0-9]", "", key.lower()) for key in keys}
    return sorted((key for key in keys if plain[key] in TEXT_NAMES), key=lambda key: TEXT_NAMES.index(plain[key]))


def texts_in(value: Any) -> list[str]:
    """The texts in a value, with single blanks between words; none that is empty, or read like one before.
    A text may be a record, as those of the refer toolkit are (`raw`, `sent`)."""
    texts = value if isinstance(value, list) else [value]
    found: dict[str, str] = {}
    for text in texts:
        if isinstance(text, dict):
            text = next(filter(None, map(text.get, (*_text_keys(tuple(text)), "raw"))), None)
        if isinstance(text, str) and text.split():
            found.setdefault(as_read(text), " ".join(text.split()))
    return list(found.values())


def is_caption(annotation: dict[str, Any]) -> bool:
    """Whether it is a sentence about the image as a whole, as in COCO's `captions_train2017.json`."""
    return "caption" in annotation and not annotation.keys() & {"bbox", "segmentation", "category_id"}


def _check_segments(path: Path, record: dict[str, Any], name: str) -> None:
    """An image's panoptic segmentation: segments are what has the colour of their number in a PNG file."""
    segments = record["segments_info"]
    is_list = isinstance(segments, list) and all(isinstance(segment, dict) for segment in segments)
    _require(path, name, record, "segments_info", is_list)
    _require(path, name, record, "file_name", isinstance(record.get("file_name"), str))
    ids: set[int | None] = {None}
    for number, segment in enumerate(segments):
        require = partial(_require, path, f"{name}, segment number {number}", segment)
        id_, box = read_whole(segment.get("id")), segment.get("bbox")
        require("id", id_ not in ids)
        require("category_id", read_id(segment.get("category_id")) is not None)
        require("bbox", box in (None, []) or read_corners(box))
        require("iscrowd", read_flag(segment, "iscrowd") is not None)
        ids.add(id_)


def _coordinates(annotation: dict[str, Any]) -> list[float]:
    """Those of its box and polygons; of run lengths, which are of pixels, infinity."""
    box, segmentation = annotation.get("bbox"), annotation.get("segmentation")
    parts = [box, *(segmentation if isinstance(segmentation, list) else [segmentation])]
    if any(isinstance(part, dict) for part in parts):
        return [math.inf]
    values = [value for part in parts for value in (part if isinstance(part, list) else [part])]
    return [read_number(value) or 0 for value in values]


def _check_id(path: Path, kind: str, record: Any) -> int | str:
    id_ = read_id(record.get("id")) if isinstance(record, dict) else None
    if id_ is None:
        raise ValueError(f"{path}: {kind} without a whole number as id, or a text: {str(record)[:200]}")
    return id_


def _require(path: Path, name: str, record: dict[str, Any], key: str, good: Any) -> None:
    if not good:
        problem = f"cannot be {record[key]!r:.100}" if key in record else "is missing"
        raise ValueError(f"{path}: {name}: {key} {problem}")
