"""Objects in images as annotation formats outline them: boxes, turned or not, polygons, ellipses, masks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .builder import MAX_PIXELS, unusable_if
from .coco_format import read_number

_ELLIPSE = 64  # points of a polygon


class Instance(NamedTuple):
    """An object in an image: its box, its mask, or both.

    Attributes:
        record: what it is called in messages.
        label: what it is called in the source; for `group_by_label` alone.
        box: `[x1, y1, x2, y2]` in pixels, also beyond the image.
        segmentation: as of `segmentation_to_mask`, or a function that gives the mask: all of a data set are large.
        is_turned: its box is turned, and stands in `segmentation` as a polygon.
        is_outline: its box is that of its polygons, which may differ from what these cover where they are small.
        is_crowd: it is a crowd of objects.
        is_ignored: a find there is neither right nor wrong.
        has_bad_box: it has a box that cannot be read.
        trouble: why it cannot be used.
        texts: of its own, which are its phrases instead of the label.
    """

    record: str
    label: str = ""
    box: list[float] | None = None
    segmentation: Any = None
    is_turned: bool = False
    is_outline: bool = False
    is_crowd: bool = False
    is_ignored: bool = False
    has_bad_box: bool = False
    trouble: str = ""
    texts: tuple[str, ...] = ()


def read_points(value: Any) -> list[list[float]]:
    """Points `[[x, y], …]`; Unusable where a coordinate is no finite number."""
    points = value if isinstance(value, list) else [None]
    numbers = [[read_number(each) for each in point] if isinstance(point, list | tuple) else [] for point in points]
    unusable_if(any(len(point) != 2 or None in point for point in numbers), "with points that are none")
    return numbers


def read_numbers(values: Mapping[str, Any], *keys: str) -> list[float]:
    """What some keys have; Unusable where that is no finite number."""
    numbers = [read_number(values.get(key)) for key in keys]
    unusable_if(None in numbers, "with a coordinate that is no finite number")
    return numbers  # type: ignore[return-value]


def polygon(record: str, label: str, points: list[list[float]]) -> Instance:
    """An object whose outline is a polygon."""
    unusable_if(len(points) < 3, "polygon of fewer than three points")
    outline = [value for point in points for value in point]
    return Instance(record, label, bounds(points), [outline], is_outline=True)


def turned_box(record: str, label: str, corners: list[list[float]]) -> Instance:
    """An object whose box is turned, or not."""
    if len({x for x, _ in corners}) == len({y for _, y in corners}) == 2:
        return Instance(record, label, bounds(corners))
    return Instance(record, label, segmentation=[[value for point in corners for value in point]], is_turned=True)


def place_mask(part: np.ndarray, x: int, y: int, size: tuple[int, int]) -> np.ndarray:
    """A mask of an image of (width, height) from a part of it `(height, width)` that begins at (x, y)."""
    unusable_if(size[0] * size[1] > MAX_PIXELS, "masks: of an image of more pixels than any has")
    mask = np.zeros(size[::-1], bool)
    top, left, end, right = max(y, 0), max(x, 0), min(y + part.shape[0], size[1]), min(x + part.shape[1], size[0])
    if top < end and left < right:
        mask[top:end, left:right] = part[top - y : end - y, left - x : right - x]
    return mask


def corners_of(box: list[float]) -> list[list[float]]:
    """The corners of a box `[x1, y1, x2, y2]`, clockwise."""
    x1, y1, x2, y2 = box
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def bounds(points: list[list[float]]) -> list[float]:
    """`[x1, y1, x2, y2]` around points `[x, y]`."""
    xs, ys = zip(*points)
    return [min(xs), min(ys), max(xs), max(ys)]


def ellipse(place: Sequence[float], degrees: float = 0) -> list[list[float]]:
    """An ellipse (x, y of its centre, radii along x and y), turned clockwise, as a polygon `[[x, y], …]`."""
    x, y, radius_x, radius_y = place
    steps = [2 * math.pi * step / _ELLIPSE for step in range(_ELLIPSE)]
    return turn([[x + radius_x * math.cos(step), y + radius_y * math.sin(step)] for step in steps], (x, y), degrees)


def turn(points: list[list[float]], about: tuple[float, float], degrees: float) -> list[list[float]]:
    """Points `[x, y]` turned clockwise about one."""
    if not degrees:
        return points
    x, y, cos, sin = *about, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [[x + cos * (px - x) - sin * (py - y), y + sin * (px - x) + cos * (py - y)] for px, py in points]
