"""CVAT's XML for images 1.1: boxes, polygons, ellipses, masks.

The phrase is a label, its region all shapes of that label in the image, or a text of a shape's own in an attribute
called `description`, `caption` or the like. Boxes and ellipses may be turned. Points, lines, skeletons and cuboids
outline no region: they are counted, and a row that they would be part of is left out; tags, which are of whole images,
are counted. The subsets of a project (Train, Validation, Test) are the splits, or else files and folders that are named
so; images of one name in several subsets are in folders of these. XML for videos is refused: CVAT exports the same as
images.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from .builder import MAX_PIXELS, Unusable, file_split, joined, unusable_if
from .coco_format import read_number, read_whole, texts_of
from .features import (
    FEATURES,  # noqa: F401 - `objects` needs it, as it does those below (see `builder`)
)
from .json_files import (
    read_json,  # noqa: F401
)
from .objects import ObjectConfig, Photo, PhotoListBuilder
from .options import CvatOptions
from .segmentations import (
    segmentation_to_mask,  # noqa: F401
)
from .shapes import Instance, corners_of, ellipse, place_mask, polygon, read_numbers, read_points, turn, turned_box
from .xml_files import stream_xml

_WITHOUT_REGION = ("polyline", "points", "skeleton", "cuboid")


@dataclass
class CvatConfig(CvatOptions, ObjectConfig):
    """The options, checked."""


class Cvat(PhotoListBuilder):
    """`datasets` builder of CVAT's annotations; rows as in `features.FEATURES`, trouble as of `RegionBuilder`.

    A file that is no XML, was cut off or is not CVAT's for images raises a `ValueError` that names it.
    """

    BUILDER_CONFIG_CLASS = CvatConfig
    source = "Images and CVAT's XML that the builder was given, images stored byte for byte as they were."
    suffix = ".xml"

    def read(self, path: Path, name: str) -> Iterator[Photo]:
        photos = list(self._photos(path, name))
        subsets: dict[str, set[str]] = {}
        for subset, photo in photos:
            subsets.setdefault(photo.files[0], set()).add(subset)
        for subset, photo in photos:  # of one name in several subsets, each has its folder
            if subset and len(subsets[photo.files[0]]) > 1:
                file = f"{subset}/{photo.files[0]}"
                photo = photo._replace(name=joined(name, file), files=(file,))
            yield photo

    def _photos(self, path: Path, name: str) -> Iterator[tuple[str, Photo]]:
        """Those of a file, each with its subset."""
        elements = stream_xml(path, ("image", "track"))
        root = next(elements, None)
        if root is None or root.tag != "annotations":
            raise ValueError(f"{path} is no XML of CVAT for images 1.1")
        for number, element in enumerate(elements):
            if element.tag == "track":
                raise ValueError(f"{path} is CVAT's XML for videos: export it as CVAT for images 1.1")
            file = element.get("name")
            width, height = (read_whole(element.get(side)) or 0 for side in ("width", "height"))
            if not file or width <= 0 or height <= 0:
                raise ValueError(f"{path}: image {number} without name, width or height")
            instances = []
            for at, shape in enumerate(element):
                place = f"{name}, {file}, shape {at}"
                if shape.tag == "tag":
                    self.report.dropped["tags of whole images"] += 1
                    continue
                texts = tuple(texts_of({one.get("name", ""): one.text for one in shape.findall("attribute")}))
                if (label := self.label_of(shape.get("label"), place, texts)) is not None:
                    instance = _instance(shape.tag, shape.attrib, place, label, (width, height))
                    instances.append(instance._replace(texts=texts))
            subset, place = element.get("subset", ""), f"{name}, {file}"
            split = file_split(subset)
            yield subset, Photo(joined(name, file), place, (file,), name, instances, (width, height), split)


def _instance(kind: str, values: dict[str, str], record: str, label: str, size: tuple[int, int]) -> Instance:
    try:
        degrees = read_number(values.get("rotation")) or 0
        if kind == "box":
            x1, y1, x2, y2 = read_numbers(values, "xtl", "ytl", "xbr", "ybr")
            return turned_box(
                record, label, turn(corners_of([x1, y1, x2, y2]), ((x1 + x2) / 2, (y1 + y2) / 2), degrees)
            )
        if kind == "polygon":
            points = [point.split(",") for point in values.get("points", "").split(";")]
            return polygon(record, label, read_points(points))
        if kind == "ellipse":
            return polygon(record, label, ellipse(read_numbers(values, "cx", "cy", "rx", "ry"), degrees))
        unusable_if(kind in _WITHOUT_REGION, "a point, line, skeleton or cuboid, which outlines no region")
        unusable_if(kind != "mask", "of a shape that CVAT does not have")
        left, top, width, height = map(int, read_numbers(values, "left", "top", "width", "height"))
        box = [float(left), float(top), float(left + width), float(top + height)]
        return Instance(record, label, box, partial(_mask, values.get("rle", ""), (left, top, width, height), size))
    except Unusable as reason:
        return Instance(record, label, trouble=str(reason))


def _mask(text: str, place: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """A mask from run lengths, along the rows of a part of the image (left, top, width, height), zeros first."""
    left, top, width, height = place
    counts = [read_whole(each) for each in text.split(",")]
    unusable_if(None in counts or min(counts) < 0, "mask parts: run lengths that cannot be read")
    is_part = width > 0 and height > 0 and width * height <= MAX_PIXELS and sum(counts) == width * height
    unusable_if(not is_part, "mask parts: run lengths that do not add up to the box")
    part = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width)
    return place_mask(part, left, top, size)
