"""VIA 2 (VGG Image Annotator): its project or the annotations exported from it, as JSON.

The phrase is what a region's attribute says it is, its region all regions of that name in the image: rectangles,
circles, ellipses, polygons. Several attributes need `--label_attribute`. The name is the value that was typed or
chosen, or of options that are called by numbers their description; of a box that was ticked for several, all of them.
Points and lines have no area: they are counted, and a row that they would be part of is left out. VIA does not know an
image's size: in a build without images, objects have boxes alone, and are not cut to the image.

Splits are files, or their folders, named train, valid and test. VIA 3 has another format, which is refused.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .builder import Unusable, joined, unusable_if
from .coco_format import read_number
from .features import (
    FEATURES,  # noqa: F401 - `objects` needs it, as it does `segmentations` (see `builder`)
)
from .json_files import read_json
from .objects import ObjectConfig, Photo, PhotoListBuilder
from .options import ViaOptions
from .segmentations import (
    segmentation_to_mask,  # noqa: F401
)
from .shapes import Instance, ellipse, polygon, read_numbers, read_points


@dataclass
class ViaConfig(ViaOptions, ObjectConfig):
    """The options, checked."""


class Via(PhotoListBuilder):
    """`datasets` builder of VIA's annotations; rows as in `features.FEATURES`, trouble as of `RegionBuilder`.

    A file that is not VIA 2's, or whose regions have several attributes without one being chosen, raises a
    `ValueError`. A region without the attribute is dropped and counted.
    """

    BUILDER_CONFIG_CLASS = ViaConfig
    source = "Images and VIA's JSON that the builder was given, images stored byte for byte as they were."

    def read(self, path: Path, name: str) -> Iterator[Photo]:
        content = read_json(path)
        project = content if isinstance(content, dict) else {}
        images = project.get("_via_img_metadata", project)
        if "project" in project and "metadata" in project:
            raise ValueError(f"{path} is of VIA 3: VIA 2's annotations are read, or COCO's, which VIA 3 can export")
        is_via = isinstance(images, dict) and all(
            isinstance(each, dict) and "regions" in each for each in images.values()
        )
        if not is_via or (not images and "_via_img_metadata" not in project):
            raise ValueError(f"{path} is no JSON of VIA 2: images with filename and regions, or a project of them")
        attribute = self._attribute(path, images)
        options = _options(project, attribute)
        for image in images.values():
            file = image.get("filename")
            if not isinstance(file, str) or not file:
                raise ValueError(f"{path}: an image without filename: {str(image)[:100]}")
            instances = []
            for number, region in enumerate(_regions(image)):
                place = f"{name}, {file}, region {number}"
                attributes = region.get("region_attributes")
                value = attributes.get(attribute) if isinstance(attributes, dict) else None
                ticked = [key for key, is_on in value.items() if is_on] if isinstance(value, dict) else []
                for each in ticked or [None if isinstance(value, dict) else value]:
                    if label := self.label_of(options.get(each, each) if isinstance(each, str) else each, place):
                        instances.append(_instance(region.get("shape_attributes"), place, label))
            yield Photo(joined(name, file), f"{name}, {file}", (file,), name, instances)

    def _attribute(self, path: Path, images: dict[str, Any]) -> str | None:
        """The region attribute that names objects."""
        counts = Counter(
            key
            for image in images.values()
            for region in _regions(image)
            if isinstance(found := region.get("region_attributes"), dict)
            for key, value in found.items()
            if value not in ("", {}, None)
        )
        chosen, listed = self.config.label_attribute, ", ".join(map(repr, sorted(counts)))
        if chosen is not None and chosen not in counts and counts:
            raise ValueError(f"{path}: no region has the attribute {chosen!r} (label_attribute), but {listed}")
        if chosen is None and len(counts) > 1:
            raise ValueError(
                f"{path}: regions have the attributes {listed}: say --label_attribute, which names the object"
            )
        if not counts and any(map(_regions, images.values())):
            raise ValueError(
                f"{path}: no region says what it is: region_attributes are empty. Give regions an attribute in VIA "
                "with the words that name them, of one kind of object too"
            )
        return chosen or next(iter(counts), None)


def _regions(image: dict[str, Any]) -> list[dict[str, Any]]:
    """A list, or as VIA 1 has it a mapping."""
    regions = image["regions"]
    regions = list(regions.values()) if isinstance(regions, dict) else regions
    return [each if isinstance(each, dict) else {} for each in regions] if isinstance(regions, list) else []


def _options(project: dict[str, Any], attribute: str | None) -> dict[str, str]:
    """Options that are called by numbers → what their description says."""
    found: Any = project
    for key in ("_via_attributes", "region", attribute, "options"):
        found = found.get(key) if isinstance(found, dict) else None
    options = found.items() if isinstance(found, dict) else ()
    return {key: text for key, text in options if key.isdigit() and isinstance(text, str) and text.strip()}


def _instance(shape: Any, record: str, label: str) -> Instance:
    try:
        return _shape(shape if isinstance(shape, dict) else {}, record, label)
    except Unusable as reason:
        return Instance(record, label, trouble=str(reason))


def _shape(shape: dict[str, Any], record: str, label: str) -> Instance:
    kind = shape.get("name")
    if kind == "rect":
        x, y, width, height = read_numbers(shape, "x", "y", "width", "height")
        return Instance(record, label, [x, y, x + width, y + height])
    if kind in ("circle", "ellipse"):
        names = ("cx", "cy", "r", "r") if kind == "circle" else ("cx", "cy", "rx", "ry")
        degrees = math.degrees(read_number(shape.get("theta")) or 0)
        return polygon(record, label, ellipse(read_numbers(shape, *names), degrees))
    unusable_if(kind in ("point", "polyline"), "a point or a line, which has no area")
    unusable_if(kind != "polygon", "of a shape that VIA does not have")
    columns = [shape.get("all_points_x"), shape.get("all_points_y")]
    unusable_if(not all(isinstance(each, list) for each in columns), "polygon without points")
    unusable_if(len(columns[0]) != len(columns[1]), "polygon with an odd number of coordinates")
    return polygon(record, label, read_points([list(point) for point in zip(*columns)]))
