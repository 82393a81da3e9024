"""Label Studio's JSON (its full form or JSON-MIN): rectangles, polygons, ellipses and brushes with labels.

The phrase is a label, its region all of that label in the image; a region with several labels is of all of them. A text
typed for a region (`TextArea perRegion`) is its phrase instead where the field is called `caption`, `description` or
the like; other texts are counted. Coordinates are percent of the image. Rectangles and ellipses may be turned. Key
points have no area: they are counted, and a row that they would be part of is left out. Of a task's annotations that
were not cancelled, that which is marked as the ground truth is taken, or else the one updated last. Predictions are not
read.

Images that were uploaded are called `<8 digits>-<name>` by Label Studio: both names are looked for, as is the last part
of an address. Splits are files, or their folders, named train, valid and test.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from .builder import IMAGE_SUFFIXES, MAX_PIXELS, UPLOADED, Unusable, joined, unusable_if
from .coco_format import read_number, read_whole, texts_of
from .features import (
    FEATURES,  # noqa: F401 - `objects` needs it, as it does `segmentations` (see `builder`)
)
from .json_files import stream_json_records
from .objects import ObjectConfig, Photo, PhotoListBuilder
from .options import LabelStudioOptions
from .segmentations import (
    segmentation_to_mask,  # noqa: F401
)
from .shapes import Instance, corners_of, ellipse, polygon, read_numbers, read_points, turn, turned_box

_KINDS = ("rectangle", "polygon", "brush", "ellipse", "keypoint", "vector")


@dataclass
class LabelStudioConfig(LabelStudioOptions, ObjectConfig):
    """The options, checked."""


class LabelStudio(PhotoListBuilder):
    """`datasets` builder of Label Studio's annotations; rows as in `features.FEATURES`, trouble as of `RegionBuilder`.

    A file that is no list of tasks raises a `ValueError` that names the record, as does a task of which it cannot be
    told what its image is.
    """

    BUILDER_CONFIG_CLASS = LabelStudioConfig
    source = "Images and Label Studio's JSON that the builder was given, images stored byte for byte as they were."

    def read(self, path: Path, name: str) -> Iterator[Photo]:
        photos = list(self._photos(path, name))
        called: dict[str, set[str]] = {}
        for photo in photos:
            called.setdefault(photo.files[-1], set()).add(photo.files[0])
        for photo in photos:  # of uploads that were called the same before, only the new name tells which is which
            is_one = len(called[photo.files[-1]]) == 1
            yield photo if is_one or len(photo.files) == 1 else photo._replace(files=photo.files[:-1])

    def _photos(self, path: Path, name: str) -> Iterator[Photo]:
        for number, task in enumerate(stream_json_records(path, lines=False)):
            if not isinstance(task, dict):
                raise ValueError(f"{path}: record {number} is no task of Label Studio: {str(task)[:80]}")
            data = task["data"] if isinstance(task.get("data"), dict) else task
            files = _files(data, task.get("file_upload"))
            if not files:
                raise ValueError(f"{path}: record {number} has no image in its data: {str(data)[:80]}")
            place = f"{name}, task {task.get('id', number)}"
            results = self._results(task, place)
            shown = sorted({str(each.get("to_name")) for each in results if _kind(each)})
            if len(shown) > 1:
                raise ValueError(f"{path}: record {number} has regions of several images (to_name {', '.join(shown)}).")
            sizes = {_size(each) for each in results} - {None}
            texts, instances = self._texts(results), []
            for at, each in enumerate(results):
                if kind := _kind(each):
                    called, own = f"{place}, region {each.get('id', at)}", texts.get(str(each.get("id")), ())
                    instance = _instance(kind, each, "", called)._replace(texts=own)
                    labels = self._labels(each, results, called, own)
                    instances += [instance._replace(label=label.strip()) for label in labels]
            size = sizes.pop() if len(sizes) == 1 else None
            yield Photo(joined(name, files[0]), f"{place} ({files[0]})", files, name, instances, size)

    def _results(self, task: dict[str, Any], place: str) -> list[dict[str, Any]]:
        """What the task's annotation has, or in JSON-MIN all that has a size."""
        if "data" not in task:
            lists = [value for value in task.values() if isinstance(value, list)]
            return [each for own in lists for each in own if isinstance(each, dict) and "original_width" in each]
        listed = task.get("annotations", task.get("completions")) or []
        listed = [each for each in listed if isinstance(each, dict) and not each.get("was_cancelled")]
        chosen = [each for each in listed if each.get("ground_truth")] or listed
        if len(chosen) > 1:
            self.report.kept["tasks with several annotations, the last of which is taken"] += 1
        last = max(chosen, key=lambda each: str(each.get("updated_at") or each.get("created_at") or ""), default={})
        results = last.get("result")
        return [each for each in results if isinstance(each, dict)] if isinstance(results, list) else []

    def _texts(self, results: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
        """The texts of regions, by their ids, where the field they were typed in is called so."""
        regions = {str(each["id"]) for each in results if _kind(each) and each.get("id")}
        found: dict[str, dict[str, Any]] = {}
        for each in results:
            if _kind(each) is None and (text := _value(each).get("text")):
                id_, typed = str(each.get("id")), {str(each.get("from_name")): text}
                if id_ in regions and texts_of(typed):
                    found.setdefault(id_, {}).update(typed)
                else:
                    self.report.kept["texts not read: of no region, or of a field not called caption, phrase, …"] += 1
        return {id_: tuple(texts_of(typed)) for id_, typed in found.items()}

    def _labels(
        self, result: dict[str, Any], results: list[dict[str, Any]], place: str, texts: tuple[str, ...]
    ) -> list[str]:
        """The labels of a region, which may stand in another result of its id; nothing for one with texts alone."""
        same = [each for each in results if each.get("id") == result.get("id")] if result.get("id") else [result]
        found: dict[str, None] = {}
        for each in (result, *same):
            value = each.get("value") if isinstance(each.get("value"), dict) else each
            for key, labels in value.items():
                if key.endswith("labels") and isinstance(labels, list):
                    found.update({label: None for label in labels if isinstance(label, str) and label.strip()})
        labels = (self.label_of(label, place, texts) for label in found or [None])
        return [label for label in labels if label is not None]


def _files(data: dict[str, Any], uploaded: Any) -> tuple[str, ...]:
    """What the image of a task may be called, as it was called before its upload last."""
    values = [value for value in data.values() if isinstance(value, str)]
    addresses = [value for value in values if _path_of(value).rpartition(".")[2].lower() in IMAGE_SUFFIXES]
    image = data.get("image")
    if not isinstance(image, str) or not image:
        image = addresses[0] if len(addresses) == 1 else uploaded
    if not isinstance(image, str) or not image:
        return ()
    path = _path_of(image)
    name = path.rsplit("/", 1)[-1]
    if path.startswith("data/upload/"):
        path = name
    return tuple(filter(None, dict.fromkeys((path, name, name[9:] if UPLOADED.match(name) else name))))


def _path_of(address: str) -> str:
    """The path in an address: `/data/upload/1/…`, `/data/local-files/?d=…`, `s3://…`, `https://…`, or a path."""
    if not re.match("[A-Za-z][A-Za-z0-9+.-]+://|/data/", address):
        return address.replace("\\", "/")
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    return (local[0] if local else unquote(parts.path)).lstrip("/")


def _size(result: dict[str, Any]) -> tuple[int, int] | None:
    width, height = (read_whole(result.get(f"original_{side}")) or 0 for side in ("width", "height"))
    return (width, height) if width > 0 and height > 0 else None


def _value(result: dict[str, Any]) -> dict[str, Any]:
    value = result.get("value", result)
    return value if isinstance(value, dict) else {}


def _kind(result: dict[str, Any]) -> str | None:
    """What a result outlines; None of choices, texts and labels alone."""
    value = _value(result)
    named = str(result.get("type", "")) + "".join(key for key in value if key.endswith("labels"))
    kind = next((kind for kind in _KINDS if kind in named), None)
    if kind is None and re.search(r"[a-z]labels", named.replace("labelslabels", "")):
        kind = "other"
    return "brush" if "rle" in value else kind


def _instance(kind: str, result: dict[str, Any], label: str, record: str) -> Instance:
    try:
        size = _size(result)
        unusable_if(size is None, "without the size of its image (original_width, original_height)")
        unusable_if(
            read_number(result.get("image_rotation")) not in (None, 0), "of an image that was turned to label it"
        )
        return _outline(kind, _value(result), size, record, label)  # type: ignore[arg-type]
    except Unusable as reason:
        return Instance(record, label, trouble=str(reason))


def _outline(kind: str, value: dict[str, Any], size: tuple[int, int], record: str, label: str) -> Instance:
    unit_x, unit_y = size[0] / 100, size[1] / 100

    degrees = read_number(value.get("rotation")) or 0
    if kind == "rectangle":
        x, y, width, height = read_numbers(value, "x", "y", "width", "height")
        x, y, width, height = x * unit_x, y * unit_y, width * unit_x, height * unit_y
        return turned_box(record, label, turn(corners_of([x, y, x + width, y + height]), (x, y), degrees))
    if kind == "ellipse":
        x, y, radius_x, radius_y = read_numbers(value, "x", "y", "radiusX", "radiusY")
        return polygon(record, label, ellipse([x * unit_x, y * unit_y, radius_x * unit_x, radius_y * unit_y], degrees))
    if kind == "polygon":
        points = [[x * unit_x, y * unit_y] for x, y in read_points(value.get("points"))]
        return polygon(record, label, points)
    unusable_if(kind in ("keypoint", "vector"), "a key point or a line, which has no area")
    unusable_if(kind != "brush", "of a shape that is not read")
    rle = value.get("rle")
    is_list = isinstance(rle, list) and all(type(each) is int and 0 <= each < 256 for each in rle)
    unusable_if(not is_list, "brush without run lengths")
    return Instance(record, label, segmentation=partial(_mask, bytes(rle), size))  # type: ignore[arg-type]


def _mask(rle: bytes, size: tuple[int, int]) -> np.ndarray:
    """A brush's mask: where the alpha of its RGBA pixels, packed in runs, is not 0.

    The number of values (32 bits), the bits of a value less one (5 bits), the bits of four kinds of lengths less one (4
    bits each); then runs: whether it is of one value (1 bit), the kind of its length (2 bits), the length less one, and
    the one value or all of them.
    """
    width, height = size
    unusable_if(width * height > MAX_PIXELS, "masks: of an image of more pixels than any has")
    bits, position = f"{int.from_bytes(rle, 'big'):0{8 * len(rle)}b}" if rle else "", 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        unusable_if(position > len(bits), "mask parts: run lengths that were cut off")
        return int(bits[position - count : position], 2)

    unusable_if(read(32) != 4 * width * height, "mask parts: run lengths for another image size")
    word, lengths = read(5) + 1, [read(4) + 1 for _ in range(4)]
    values, at = np.zeros(4 * width * height, bool), 0
    while at < len(values):
        is_run, length = read(1), read(lengths[read(2)]) + 1
        unusable_if(at + length > len(values), "mask parts: run lengths that do not add up to the image")
        values[at : at + length] = read(word) > 0 if is_run else [read(word) > 0 for _ in range(length)]
        at += length
    return values[3::4].reshape(height, width)
