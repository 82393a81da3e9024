"""Segmentations as COCO and the data sets around it write them, as masks: polygons, run lengths, PNG files."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from .builder import MAX_PIXELS, UNREADABLE, Unusable, read_inside, unusable_if
from .coco_format import is_number, read_number, read_whole

_LONGEST_OUTLINE = 2**21  # pixels, of all polygons of an object: what traces them takes a hundred bytes for each
_MOST_BITS = 60  # of a compressed number
_UNREADABLE = "run lengths that cannot be read"


def segmentation_to_mask(segmentation: Any, height: int, width: int, drop: Callable[[str], None]) -> np.ndarray | None:
    """A segmentation as a mask: the union of its parts that can be read.

    Args:
        segmentation: polygons `[x, y, x, y, …]` or `[[x, y], …]` in pixels; run lengths `{"size": [height, width],
            "counts"}`, compressed or not; a list of such parts, of both kinds too; a polygon by itself.
        drop: is told why, for each part that is left out, and for a mask that nothing is left of.

    Returns: bool `(height, width)`; None where there is no segmentation, or nothing of it can be used.
    """
    if segmentation is None or segmentation == []:
        return None
    is_list = isinstance(segmentation, list) and any(isinstance(part, list | dict) for part in segmentation)
    if is_list and len(segmentation) > 2 and all(map(_is_point, segmentation)):
        is_list = False  # one polygon
    if height * width > MAX_PIXELS:
        drop("masks: of an image of more pixels than any has")
        return None
    mask, polygons, outline = None, [], 0.0
    for part in segmentation if is_list else [segmentation]:
        try:
            if isinstance(part, dict) and part.keys() & {"size", "counts"}:  # one at a time, as there may be any number
                found = _run_lengths_to_mask(part, height, width)
                mask = found if mask is None else np.logical_or(mask, found, out=mask)
                continue
            polygon = _polygon(part, height, width)
            length = _outline(polygon)
            unusable_if(outline + length > _LONGEST_OUTLINE, "polygons with a longer outline than any object has")
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
        drop("masks: segmentation that covers no pixel of the image")
        return None
    return mask


def _polygon(part: Any, height: int, width: int) -> list[float]:
    """A part that is a polygon, its coordinates checked."""
    unusable_if(part in ([], {}, ""), "empty")
    unusable_if(not isinstance(part, list), "neither polygon nor run lengths")
    if all(map(_is_point, part)):
        points = ([point["x"], point["y"]] if isinstance(point, dict) else point for point in part)
        part = [value for point in points for value in point]
    unusable_if(len(part) % 2, "polygon with an odd number of coordinates")
    unusable_if(len(part) < 6, "polygon of fewer than three points")
    polygon = part if all(map(is_number, part)) else [read_number(value) for value in part]
    unusable_if(None in polygon, "polygon with a coordinate that is no finite number")
    unusable_if(max(map(abs, polygon)) <= 1, "polygon in shares of the image, not pixels")
    # Outlines are traced point by point before they are cut to the image: a wild coordinate would exhaust memory.
    unusable_if(max(map(abs, polygon)) > 10 * max(height, width), "polygon far outside the image")
    return polygon


def _is_point(value: Any) -> bool:
    """Whether it is `[x, y]` or `{"x", "y"}`, of which some tools make polygons."""
    if isinstance(value, dict):
        return value.keys() == {"x", "y"}
    return isinstance(value, list) and len(value) == 2


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
    is_same = isinstance(size, list) and [read_whole(side) for side in size] == [height, width]
    unusable_if(not is_same, "run lengths for another image size")
    counts = segmentation.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    if isinstance(counts, str):
        counts = _decompress(counts)
    if isinstance(counts, list) and not all(type(count) is int for count in counts):
        counts = [read_whole(count) for count in counts]
    unusable_if(not isinstance(counts, list) or None in counts or min(counts, default=0) < 0, _UNREADABLE)
    unusable_if(sum(counts) != height * width, "run lengths that do not add up to the image")
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
        unusable_if(not 0 <= bits < 64 or shift > _MOST_BITS, _UNREADABLE)
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    unusable_if(shift, _UNREADABLE)
    return counts


def mask_to_run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A bool mask `(height, width)` as run lengths that `segmentation_to_mask` reads."""
    down = mask.T.ravel()
    ends = np.flatnonzero(down[1:] != down[:-1]) + 1
    counts = np.diff(ends, prepend=0, append=down.size).tolist()
    return {"size": list(mask.shape), "counts": [0] * int(down[0]) + counts}


def read_segment_ids(folder: Path, name: str | None, size: tuple[int, int] | None) -> np.ndarray:
    """The numbers of the segments that an image's pixels are of, from a PNG file of COCO's panoptic format.

    Args:
        name: of the file in the folder; none of one that is missing.
        size: (width, height) of the image.

    Returns: int32 `(height, width)`: red + 256 green + 65,536 blue; of a gray file its values.

    Raises:
        Unusable: the file is missing or outside the folder, no PNG file, or of another size.
    """
    unusable_if(name is None, "PNG file of the segments that is missing")
    try:
        data = read_inside(folder, name)
    except Unusable as reason:
        raise Unusable("PNG file of the segments that cannot be read, or is outside of the data folder") from reason
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            unusable_if(
                image.size != size or image.width * image.height > MAX_PIXELS,
                "PNG file of the segments of another size",
            )
            is_gray = image.mode in ("1", "L") or image.mode.startswith("I")
            pixels = np.asarray(image if is_gray else image.convert("RGB")).astype(np.int32)
    except UNREADABLE as error:
        raise Unusable("PNG file of the segments that cannot be decoded") from error
    return pixels if pixels.ndim == 2 else pixels @ np.array([1, 256, 65536], np.int32)
