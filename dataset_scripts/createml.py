"""CreateML: a JSON list of images, each with labels and boxes, `_annotations.createml.json`.

The phrase is a label, its region all boxes of that label in the image, or a text of a box's own. Coordinates are
pixels: `x` and `y` of a box's centre, `width` and `height`. Splits are files, or their folders, named train, valid and
test.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .builder import Unusable, joined
from .coco_format import (
    read_number,  # noqa: F401 - `objects` needs it, as it does those below (see `builder`)
    texts_of,
)
from .features import (
    FEATURES,  # noqa: F401
)
from .json_files import stream_json_records
from .objects import ObjectConfig, Photo, PhotoListBuilder
from .options import CreatemlOptions
from .segmentations import (
    segmentation_to_mask,  # noqa: F401
)
from .shapes import Instance, read_numbers


@dataclass
class CreatemlConfig(CreatemlOptions, ObjectConfig):
    """The options, checked."""


class Createml(PhotoListBuilder):
    """`datasets` builder of CreateML's annotations; rows as in `features.FEATURES`, trouble as of `RegionBuilder`.

    A file that is no JSON list of images with annotations raises a `ValueError` that names the record.
    """

    BUILDER_CONFIG_CLASS = CreatemlConfig
    source = "Images and CreateML's JSON that the builder was given, images stored byte for byte as they were."

    def read(self, path: Path, name: str) -> Iterator[Photo]:
        for number, record in enumerate(stream_json_records(path, lines=False)):
            record = record if isinstance(record, dict) else {}
            image = record.get("image", record.get("imagefilename"))
            listed = record.get("annotations", record.get("annotation"))
            if not isinstance(image, str) or not image or not isinstance(listed, list):
                raise ValueError(f"{path}: record {number} has no image with a list of annotations, as CreateML's have")
            instances = []
            for at, each in enumerate(each if isinstance(each, dict) else {} for each in listed):
                place, texts = f"{name}, {image}, annotation {at}", tuple(texts_of(each))
                if (label := self.label_of(each.get("label"), place, texts)) is not None:
                    instances.append(_instance(each, place, label)._replace(texts=texts))
            yield Photo(joined(name, image), f"{name}, {image}", (image,), name, instances)


def _instance(annotation: dict[str, Any], record: str, label: str) -> Instance:
    box = annotation.get("coordinates")
    try:
        x, y, width, height = read_numbers(box if isinstance(box, dict) else {}, "x", "y", "width", "height")
    except Unusable as reason:
        return Instance(record, label, trouble=str(reason))
    return Instance(record, label, [x - width / 2, y - height / 2, x + width / 2, y + height / 2])
