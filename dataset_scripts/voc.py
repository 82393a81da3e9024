"""Pascal VOC: a folder of XML files, one for each image, `Annotations/000001.xml` or beside the images.

The phrase is the name of an object, its region all objects of that name in the image, `difficult` ones too, or a text
of its own (`description`, as DIOR-RSVG has it). Corners are those of pixels, counted from 1, both inside the box, as
VOC defines them: `xmin` 1 and `xmax` 500 are all of an image 500 wide. A file with a corner at 0 or between pixels is
of a tool that measures edges from 0, and is read so. Boxes that roLabelImg (`robndbox`) or CVAT (an attribute
`rotation`) has turned are masks of that shape.

`ImageSets/Main/train.txt`, `val.txt` and `test.txt` are the splits; `trainval.txt` is train where neither of the first
two is there. Without such lists, folders `train`, `valid` and `test` are, as Roboflow has them. An image is found by
the name of its XML file, as tools pair them, or else by its `filename`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .builder import IMAGE_SUFFIXES, SPLITS, Unusable, unusable_if, walk
from .coco_format import read_number, read_whole, texts_of
from .features import (
    FEATURES,  # noqa: F401 - `objects` needs it, as it does `segmentations` (see `builder`)
)
from .json_files import read_text
from .objects import ObjectConfig, Photo, PhotoFileBuilder
from .options import VocOptions
from .segmentations import (
    segmentation_to_mask,  # noqa: F401
)
from .shapes import Instance, corners_of, turn, turned_box
from .xml_files import read_xml

_SETS = SPLITS | {"trainval": "train"}


@dataclass
class VocConfig(VocOptions, ObjectConfig):
    """The options, checked."""


class Voc(PhotoFileBuilder):
    """`datasets` builder of Pascal VOC's annotations; rows as in `features.FEATURES`, trouble as of `RegionBuilder`.

    A file that is no XML, was cut off or defines entities is dropped and counted, as is one in no list of `ImageSets`,
    where there are lists.
    """

    BUILDER_CONFIG_CLASS = VocConfig
    source = "Images and Pascal VOC's XML files that the builder was given, images stored byte for byte as they were."
    suffix = ".xml"

    def listed(self) -> Iterator[tuple[str | None, str, str]]:
        sets = self._image_sets()
        has_sets = bool(sets)
        for split, name, path in super().listed():
            place = path.lower().replace("/annotations/", "/").removeprefix("annotations/").removesuffix(self.suffix)
            if has_sets and place not in sets:
                self.drop("files: in no list of ImageSets/Main", path)
            else:
                yield sets.pop(place, split), name, path
        for place in sets:
            self.drop("image sets: images without an XML file", place)

    def photo(self, record: str) -> Photo:
        try:
            root = read_xml(f"{self.config.data_dir}/{record}")
        except ValueError as error:
            is_text = not isinstance(error.__cause__, UnicodeError)
            reason = "no XML that can be read" if is_text else "in another encoding than they say (save them as UTF-8)"
            raise Unusable(reason) from error
        unusable_if(root.tag != "annotation", "no annotation of Pascal VOC")
        width, height = (read_whole(root.findtext(f"size/{side}")) or 0 for side in ("width", "height"))
        objects = [(number, each) for number, each in enumerate(root.findall("object"))]
        boxes = [_numbers(each, "bndbox", "xmin", "ymin", "xmax", "ymax") for _, each in objects]
        values = [value for box in boxes for value in box or ()]
        first = 1 if all(value >= 1 and value == int(value) for value in values) else 0
        instances = []
        for (number, each), box in zip(objects, boxes):
            place = f"{record}, object {number}"
            attributes, texts = _attributes_and_texts(each)
            if (label := self.label_of(each.findtext("name"), place, texts)) is not None:
                corners = box and [box[0] - first, box[1] - first, *box[2:]]
                degrees = read_number(attributes.get("rotation")) or 0
                instances.append(_instance(each, place, label.strip(), corners, degrees)._replace(texts=texts))
        size = (width, height) if width > 0 and height > 0 else None
        return self.photo_of(record, (root.findtext("filename") or "").strip(), instances, size)

    def _image_sets(self) -> dict[str, str]:
        """Where an image's file is, without `Annotations` → its split."""
        lists = {path: Path(path).stem.lower() for path in walk(self.config.data_dir) if path.lower().endswith(".txt")}
        sets: dict[str, str] = {}
        for name, split in _SETS.items():
            for path in (path for path, stem in lists.items() if stem == name):
                top, _, rest = path.lower().rpartition("imagesets/main/")
                if rest != f"{name}.txt" or (name == "trainval" and "train" in sets.values()):
                    continue
                for line in filter(str.strip, read_text(Path(self.config.data_dir, path)).splitlines()):
                    image = line.split()[0].lower()
                    stem, _, suffix = image.rpartition(".")
                    stem = stem if suffix in ("xml", *IMAGE_SUFFIXES) else image
                    if sets.setdefault(top + stem, split) != split:
                        self.drop(f"image sets: images of {split} that are in another split, too", f"{path}: {stem}")
        return sets


def _numbers(each: Any, place: str, *keys: str) -> list[float] | None:
    """What some elements of one say, of an object; None where one says no number."""
    found = each.find(place)  # of whole paths ElementTree reads ten times as slowly
    numbers = [None if found is None else read_number(found.findtext(key)) for key in keys]
    return None if None in numbers else numbers  # type: ignore[return-value]


def _attributes_and_texts(each: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """CVAT's attributes of an object (`rotation`: degrees clockwise that its box was turned by), and its own texts."""
    attributes: dict[str, str] = {}
    for one in each.findall("attributes/attribute"):
        attributes.setdefault(one.findtext("name", ""), one.findtext("value", ""))
    parts: dict[str, Any] = {}
    for part in each:
        parts.setdefault(part.tag, []).append(part.text)
    return attributes, tuple(texts_of(parts | {"attributes": attributes}))


def _instance(each: Any, record: str, label: str, box: list[float] | None, degrees: float) -> Instance:
    """An object with its box, which is turned clockwise by some degrees."""
    if box is not None:
        x1, y1, x2, y2 = box
        if degrees:
            center = (x1 + x2) / 2, (y1 + y2) / 2
            return turned_box(record, label, turn(corners_of(box), center, degrees))
        return Instance(record, label, box)
    numbers = _numbers(each, "robndbox", "cx", "cy", "w", "h", "angle")
    if numbers is None:
        return Instance(record, label, trouble="without a box of four numbers (bndbox)")
    x, y, width, height, angle = numbers
    corners = corners_of([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return turned_box(record, label, turn(corners, (x, y), math.degrees(angle)))
