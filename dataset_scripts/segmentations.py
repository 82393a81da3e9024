"""Segmentations as COCO and the data sets around it write them, as masks: polygons and run lengths."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from .coco_fields import is_number, read_number, read_whole
from .sources import MAX_PIXELS, Unusable

_LONGEST_OUTLINE = 2**21  # pixels, of all polygons of an object: what traces them takes a hundred bytes for each
_MOST_BITS = 60  # of a compressed number
_LEAST_AGREEMENT = 0.5  # IoU of a box and its mask's own: parts that were not drawn leave more, another object less


def segmentation_to_mask(segmentation: Any, height: int, width: int, drop: Callable[[str], None]) -> np.ndarray | None:
    """A segmentation as a mask: the union of its parts that can be read.

    Args:
        segmentation: polygons `[x, y, x, y, …]` in pixels; run lengths `{"size": [height, width], "counts"}`,
            compressed or not; a list of such parts, of both kinds too.
        drop: is told why, for each part that is left out, and for a mask that nothing is left of.

    Returns:
        bool `(height, width)`; None where there is no segmentation, or nothing of it can be used.
    """
    parts = _parts(segmentation)
    if parts and height * width > MAX_PIXELS:
        drop("masks: of a photo of more pixels than any has")
        return None
    mask, polygons, outline = None, [], 0.0
    for part in parts:
        try:
            if isinstance(part, dict) and part:  # one at a time, as there may be any number
                found = _run_lengths_to_mask(part, height, width)
                mask = found if mask is None else np.logical_or(mask, found, out=mask)
                continue
            polygon = _polygon(part, height, width)
            length = _outline(polygon)
            if outline + length > _LONGEST_OUTLINE:
                raise Unusable("polygons with a longer outline than any object has")
        except Unusable as reason:
            drop(f"mask parts: {reason}")
            continue
        outline += length
        polygons.append(polygon)
    if polygons:
        merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
        found = _run_lengths_to_mask(merged, height, width)
        mask = found if mask is None else mask | found
    if mask is not None and not mask.any():
        drop("masks: segmentation that covers no pixel of the photo")
        return None
    return mask


def contradict(box: Sequence[float], mask_box: Sequence[float]) -> bool:
    """Whether an object's box and its mask's own cannot be of the same object: their IoU is below a half."""
    width = min(box[2], mask_box[2]) - max(box[0], mask_box[0])
    height = min(box[3], mask_box[3]) - max(box[1], mask_box[1])
    both = max(width, 0) * max(height, 0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, mask_box)]
    return both < _LEAST_AGREEMENT * (sum(areas) - both)


def _parts(segmentation: Any) -> list[Any]:
    """Polygons and run lengths; a flat list of numbers is one polygon."""
    if segmentation is None or segmentation == []:
        return []
    if isinstance(segmentation, list) and any(isinstance(part, list | dict) for part in segmentation):
        return segmentation
    return [segmentation]


def _polygon(part: Any, height: int, width: int) -> list[float]:
    """A part that is a polygon, its coordinates checked.

    Raises:
        Unusable: it is none.
    """
    if part in ([], {}, ""):
        raise Unusable("empty")
    if not isinstance(part, list):
        raise Unusable("neither polygon nor run lengths")
    if len(part) % 2:
        raise Unusable("polygon with an odd number of coordinates")
    if len(part) < 6:
        raise Unusable("polygon of fewer than three points")
    polygon = part if all(map(is_number, part)) else [read_number(value) for value in part]
    if None in polygon:
        raise Unusable("polygon with a coordinate that is no finite number")
    # Outlines are traced point by point before they are cut to the image: a wild coordinate would exhaust memory.
    if max(map(abs, polygon)) > 10 * max(height, width):
        raise Unusable("polygon far outside the photo")
    return polygon


def _outline(polygon: list[float]) -> float:
    """Its length in pixels, or more where that is little."""
    most = max(map(abs, polygon)) * len(polygon)
    if most < 2**15:
        return most
    points = np.array(polygon, float).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _run_lengths_to_mask(segmentation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Run lengths, down the columns, zeros first. pycocotools' own decoder trusts them, so it is not used."""
    size = segmentation.get("size")
    if not isinstance(size, list) or [read_whole(side) for side in size] != [height, width]:
        raise Unusable("run lengths for another image size")
    counts = segmentation.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    if isinstance(counts, str):
        counts = _decompress(counts)
    if isinstance(counts, list) and not all(type(count) is int for count in counts):
        counts = [read_whole(count) for count in counts]
    if not isinstance(counts, list) or None in counts or min(counts, default=0) < 0:
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
