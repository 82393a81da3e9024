"""Segmentations as COCO and the data sets around it write them, as masks: polygons and run lengths."""

import sys
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from .sources import MAX_PIXELS, Unusable

_LONGEST_OUTLINE = 2**21  # pixels, of all polygons of an object: what traces them takes a hundred bytes for each
_MOST_BITS = 60  # of a compressed number


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> np.ndarray | None:
    """A segmentation as a mask.

    Args:
        segmentation: a list of polygons `[x, y, x, y, …]` in pixels; run lengths `{"size": [height, width], "counts"}`,
            compressed or not; or a list of such run lengths. Of a list the union is taken.

    Returns:
        bool `(height, width)`; None when there is nothing.

    Raises:
        Unusable: it cannot be read, or covers no pixel.
    """
    if segmentation is None or segmentation == []:
        return None
    if height * width > MAX_PIXELS:
        raise Unusable("segmentation of a photo of more pixels than any has")
    if isinstance(segmentation, dict):
        mask = _run_lengths_to_mask(segmentation, height, width)
    elif isinstance(segmentation, list) and all(isinstance(part, dict) for part in segmentation):
        mask = np.zeros((height, width), bool)
        for part in segmentation:  # one at a time, as there may be any number
            mask |= _run_lengths_to_mask(part, height, width)
    else:
        mask = _polygons_to_mask(segmentation, height, width)
    if not mask.any():
        raise Unusable("segmentation that covers no pixel of the photo")
    return mask


def is_number(value: Any) -> bool:
    """Whether `value` is a finite float, or an int that one can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_box(value: Any) -> bool:
    """Whether `value` is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(is_number(number) for number in value)


def _polygons_to_mask(polygons: Any, height: int, width: int) -> np.ndarray:
    if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
        raise Unusable("segmentation that is neither polygons nor run lengths")
    outline = 0.0
    for polygon in polygons:
        if len(polygon) % 2:
            raise Unusable("polygon with an odd number of coordinates")
        if len(polygon) < 6:
            raise Unusable("polygon of fewer than three points")
        if not all(is_number(value) for value in polygon):
            raise Unusable("polygon with a coordinate that is no finite number")
        # Outlines are traced point by point before they are cut to the image: a wild coordinate would exhaust memory.
        farthest = max(map(abs, polygon))
        if farthest > 10 * max(height, width):
            raise Unusable("polygon far outside the photo")
        most = farthest * len(polygon)
        outline += most if most < 2**15 else _outline(polygon)
    if outline > _LONGEST_OUTLINE:
        raise Unusable("polygons with a longer outline than any object has")
    return _run_lengths_to_mask(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)), height, width)


def _outline(polygon: list[float]) -> float:
    points = np.array(polygon, float).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _run_lengths_to_mask(segmentation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Run lengths, down the columns, zeros first. pycocotools' own decoder trusts them, so it is not used."""
    if segmentation.get("size") != [height, width]:
        raise Unusable("run lengths for another image size")
    counts = segmentation.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    if isinstance(counts, str):
        counts = _decompress(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise Unusable("run lengths that cannot be read")
    if sum(counts) != height * width:
        raise Unusable("run lengths that do not add up to the image")
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
            raise Unusable("run lengths that cannot be read")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            if shift > _MOST_BITS:
                raise Unusable("run lengths that cannot be read")
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise Unusable("run lengths that cannot be read")
    return counts
