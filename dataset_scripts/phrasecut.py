"""PhraseCut: phrases about Visual Genome's images, each with the boxes and polygons of all that it means.

The files are `refer_train.json`, `refer_val.json`, `refer_test.json` and `refer_miniv.json` (a few images of
validation, for a try; a split of its own), lists of {"image_id", "phrase", "instance_boxes", "Polygons"}: `[x, y,
width, height]` in pixels, and for each box the polygons of that instance. The size of an image is in
`image_data_split3000.json`, where that is there, or in the image. Images are Visual Genome's, `<image_id>.jpg`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .builder import DrawnSplitsConfig, unusable_if
from .coco_format import as_read, read_corners, read_whole
from .features import PhraseFields
from .json_files import stream_json_records
from .objects import RegionBuilder
from .options import PhraseCutOptions
from .phrase_files import Listed, PhraseFiles, Records
from .segmentations import (
    segmentation_to_mask,  # noqa: F401 - which `objects` needs (see `builder`)
)
from .shapes import Instance

_SIZES = "image_data_split3000.json"


@dataclass
class PhraseCutConfig(PhraseCutOptions, DrawnSplitsConfig):
    """The options, checked."""


class PhraseCut(PhraseFiles, RegionBuilder):
    """`datasets` builder of PhraseCut; rows as in `features.FEATURES`, trouble as of `RegionBuilder`.

    Where the size of the image is not known, or polygons are not as many as boxes, a row goes by its boxes alone.
    """

    BUILDER_CONFIG_CLASS = PhraseCutConfig
    keys = ("instance_boxes",)
    source = "PhraseCut's annotations (https://people.cs.umass.edu/~chenyun/phrasecut); its images are Visual Genome's."

    def look(self) -> None:
        path = Path(self.config.data_dir, _SIZES)
        listed = stream_json_records(path) if path.is_file() else ()
        self.image_sizes = {
            read_whole(record.get("image_id")): size
            for record in listed
            if isinstance(record, dict) and (size := super(PhraseCut, self).size_of(record))
        }
        self.check_sizes("instance_boxes", self.named_boxes)

    @staticmethod
    def named_boxes(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        boxes = record.get("instance_boxes")
        for number, box in enumerate(boxes if isinstance(boxes, list) else []):
            yield f"box {number} of {record.get('phrase')!s:.80}", box

    def image_name(self, record: dict[str, Any]) -> str:
        number = read_whole(record.get("image_id"))
        unusable_if(number is None, "records without image (image_id)")
        return f"{number}.jpg"

    def size_of(self, record: dict[str, Any]) -> tuple[int, int] | None:
        return self.image_sizes.get(read_whole(record.get("image_id")))

    def phrases(self, content: Records, size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        """One row a phrase; what records with the same phrase have in common is there once."""
        found: dict[str, tuple[str, dict[str, Instance]]] = {}
        for listed in content:
            phrase = listed.record.get("phrase")
            with self.dropping("records", listed.name):
                unusable_if(not isinstance(phrase, str) or not phrase.split(), "without a phrase")
                own = {str(each[2:]): each for each in self._instances(listed)}
                found.setdefault(as_read(phrase), (" ".join(phrase.split()), {}))[1].update(own)
        for phrase, instances in found.values():
            yield from self.region_rows({"phrase": phrase}, instances.values(), size, "phrase")

    def _instances(self, listed: Listed) -> list[Instance]:
        """The boxes of a record, each with its polygons."""
        boxes, polygons = listed.record.get("instance_boxes"), listed.record.get("Polygons")
        unusable_if(not isinstance(boxes, list) or not boxes, "without a list of boxes (instance_boxes)")
        if not isinstance(polygons, list) or len(polygons) != len(boxes):
            if polygons is not None:
                self.drop("masks: not as many as boxes (Polygons)", listed.name)
            polygons = [None] * len(boxes)
        corners = map(read_corners, boxes)
        return [
            Instance(listed.name, box=box, segmentation=own, has_bad_box=box is None)
            for box, own in zip(corners, polygons)
        ]
