"""LabelMe: a JSON file for each image, with shapes: rectangles, polygons, circles, masks.

The phrase is a shape's label, its region all shapes of that label in the image, or its `description`. Shapes of one
label and `group_id` that are no rectangles are parts of one object; a part that cannot be read is left out.
X-AnyLabeling's files are read too, its turned boxes (`rotation`) as masks of that shape. Points and lines have no area:
they are counted, and a row that they would be part of is left out, but for those that are parts of an object with
others.

Splits are folders named train, valid and test. An image is found by the name of its JSON file, or else by `imagePath`.
"""

import base64
import io
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from .builder import MAX_PIXELS, UNREADABLE, Unusable, unusable_if
from .coco_format import read_whole, texts_of
from .features import (
    FEATURES,  # noqa: F401 - `objects` needs it, as it does `segmentations` (see `builder`)
)
from .json_files import read_json
from .objects import ObjectConfig, Photo, PhotoFileBuilder
from .options import LabelmeOptions
from .segmentations import (
    segmentation_to_mask,  # noqa: F401
)
from .shapes import Instance, bounds, ellipse, place_mask, polygon, read_points, turned_box

_WHOLE = ("rectangle", "rotation", "mask")  # shapes that are objects of their own, whatever their group


@dataclass
class LabelmeConfig(LabelmeOptions, ObjectConfig):
    """The options, checked."""


class Labelme(PhotoFileBuilder):
    """`datasets` builder of LabelMe's annotations; rows as in `features.FEATURES`, trouble as of `RegionBuilder`.

    A file that is no JSON, was cut off or is not LabelMe's is dropped and counted.
    """

    BUILDER_CONFIG_CLASS = LabelmeConfig
    source = "Images and LabelMe's JSON files that the builder was given, images stored byte for byte as they were."
    suffix = ".json"

    def photo(self, record: str) -> Photo:
        try:
            content = read_json(f"{self.config.data_dir}/{record}")
        except ValueError as error:
            raise Unusable("no JSON that can be read") from error
        shapes = content.get("shapes") if isinstance(content, dict) else None
        unusable_if(not isinstance(shapes, list), "without LabelMe's shapes")
        width, height = (read_whole(content.get(f"image{side}")) or 0 for side in ("Width", "Height"))
        size = (width, height) if width > 0 and height > 0 else None
        instances: dict[Any, Instance] = {}
        for number, shape in enumerate(shapes):
            place = f"{record}, shape {number}"
            shape = shape if isinstance(shape, dict) else {}
            texts = tuple(texts_of(shape))
            if (label := self.label_of(shape.get("label"), place, texts)) is None:
                continue
            try:
                instance = _instance(shape, place, label, size)
            except Unusable as reason:
                instance = Instance(place, label, trouble=str(reason))
            instance = instance._replace(texts=texts)
            is_part = shape.get("group_id") is not None and shape.get("shape_type") not in _WHOLE
            key = (label, str(shape.get("group_id"))) if is_part else number
            instances[key] = self._with_part(instances[key], instance) if key in instances else instance
        path = content.get("imagePath")
        return self.photo_of(record, path if isinstance(path, str) else "", list(instances.values()), size)

    def _with_part(self, known: Instance, part: Instance) -> Instance:
        """An object with one more part; trouble with a part is not trouble with the object, while another is good."""
        known, part = (each._replace(texts=known.texts or part.texts) for each in (known, part))
        if not known.trouble and not part.trouble:
            corners = [box[start : start + 2] for box in (known.box, part.box) for start in (0, 2)]
            return known._replace(box=bounds(corners), segmentation=known.segmentation + part.segmentation)
        good, bad = (known, part) if part.trouble else (part, known)
        self.drop(f"mask parts: {bad.trouble}", bad.record)
        return good


def _instance(shape: dict[str, Any], record: str, label: str, size: tuple[int, int] | None) -> Instance:
    kind, points = shape.get("shape_type") or "polygon", read_points(shape.get("points"))
    if kind == "rectangle":
        unusable_if(len(points) < 2, "rectangle of fewer than two points")
        return Instance(record, label, bounds(points))
    if kind == "rotation":
        unusable_if(len(points) != 4, "turned box of other than four points")
        return turned_box(record, label, points)
    if kind in ("polygon", "quadrilateral"):
        return polygon(record, label, points)
    if kind == "circle":
        unusable_if(len(points) != 2, "circle of other than two points")
        (x, y), radius = points[0], math.dist(*points)
        return polygon(record, label, ellipse([x, y, radius, radius]))._replace(
            box=[x - radius, y - radius, x + radius, y + radius]
        )
    unusable_if(kind in ("point", "points", "line", "linestrip"), "a point or a line, which has no area")
    unusable_if(kind != "mask", "of a shape that LabelMe does not have")
    unusable_if(len(points) != 2 or not isinstance(shape.get("mask"), str), "mask without a picture or its two corners")
    x1, y1, x2, y2 = bounds(points)
    width, height = _png_size(shape["mask"]) or (x2 - x1 + 1, y2 - y1 + 1)  # the second corner is in it, or was not
    box = [x1, y1, x1 + width, y1 + height]
    return Instance(record, label, box, size and partial(_mask, shape["mask"], x1, y1, size))


def _png_size(text: str) -> tuple[int, int] | None:
    """(width, height) of a PNG in base64, by its header."""
    try:
        header = base64.b64decode(text[:32])
    except ValueError:  # binascii's error, or of what is not ASCII
        return None
    is_png = header[:4] == b"\x89PNG" and len(header) == 24
    return (int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:], "big")) if is_png else None


def _mask(text: str, x: float, y: float, size: tuple[int, int]) -> np.ndarray:
    """A mask from a PNG in base64 that begins at (x, y); Unusable where that cannot be read."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]) as image:
            unusable_if(image.width * image.height > MAX_PIXELS, "mask parts: mask of more pixels than are read")
            part = np.asarray(image.convert("L")) > 0
    except UNREADABLE as error:
        raise Unusable("mask parts: mask that is no PNG picture") from error
    return place_mask(part, round(x), round(y), size)
