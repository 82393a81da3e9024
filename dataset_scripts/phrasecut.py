"""PhraseCut: phrases about Visual Genome's images, each with the boxes and polygons of all that it means.

The files are `refer_train.json`, `refer_val.json`, `refer_test.json` and `refer_miniv.json` (a few images of
validation, for a try; a split of its own), lists of {"image_id", "phrase", "instance_boxes", "Polygons"}: `[x, y,
width, height]` in pixels, and for each box the polygons of that instance. The size of an image is in
`image_data_split3000.json`, where that is there, or in the image. Images are Visual Genome's, `<image_id>.jpg`, by
themselves or in `VG_100K` and `VG_100K_2`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .builder import DrawnSplitsConfig, unusable_if
from .coco_format import contradict, read_corners, read_whole
from .features import PhraseFields, encode_png, mask_to_box
from .json_files import stream_json_records
from .options import PhraseCutOptions
from .phrase_files import PhraseFiles, Records, Region
from .segmentations import segmentation_to_mask

_SIZES = "image_data_split3000.json"


@dataclass
class PhraseCutConfig(PhraseCutOptions, DrawnSplitsConfig):
    """The options, checked."""


class PhraseCut(PhraseFiles):
    """`datasets` builder of PhraseCut; rows as in `features.FEATURES`.

    Boxes are cut to the image. A row has masks for all its instances, or goes by boxes alone: where the size of the
    image is not known, or a polygon cannot be read, or contradicts its box (an IoU below a half), all of which is
    counted. Dropped and counted are records without an image or a phrase, and phrases one of whose boxes is lost.
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

    def split_of(self, file: str) -> str | None:
        return "miniv" if "miniv" in file else super().split_of(file)

    def image_name(self, record: dict[str, Any]) -> str:
        number = read_whole(record.get("image_id"))
        unusable_if(number is None, "records without image (image_id)")
        return f"{number}.jpg"

    def places(self, name: str, record: dict[str, Any]) -> list[str]:
        return [name, f"VG_100K/{name}", f"VG_100K_2/{name}"]

    def size_of(self, record: dict[str, Any]) -> tuple[int, int] | None:
        return self.image_sizes.get(read_whole(record.get("image_id")))

    def regions(self, record: dict[str, Any], size: tuple[int, int] | None, name: str) -> Iterable[Region]:
        boxes = record.get("instance_boxes")
        unusable_if(not isinstance(boxes, list) or not boxes, "without a list of boxes (instance_boxes)")
        yield Region(record.get("phrase"), [read_corners(box) for box in boxes])

    def phrases(self, content: Records, size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        """One row a record, with masks where all its instances have one."""
        for number, record in content[1]:
            for fields in super().phrases((content[0], [(number, record)]), size):
                masks = self._masks(record, fields["boxes"], size, f"{content[0]}, record {number}")
                if not masks:
                    self.report.kept["rows by boxes alone, for want of a segmentation"] += 1
                yield {**fields, "masks": masks}

    def _masks(
        self, record: dict[str, Any], boxes: Any, size: tuple[int, int] | None, name: str
    ) -> list[dict[str, Any]]:
        """A mask for each box, or none at all."""
        polygons = record.get("Polygons")
        if size is None or not isinstance(polygons, list):
            return []
        masks = []
        for own in polygons:
            mask = segmentation_to_mask(own, size[1], size[0], partial(self.drop, record=name))
            if mask is None:
                return []
            masks.append(mask)
        found = [mask_to_box(mask) for mask in masks]
        # Boxes beside the image and doubles are gone from the row, so that they do not count any more as polygons do.
        agree = all(any(not contradict(box, other) for other in found) for box in boxes)
        if len(masks) != len(boxes) or not agree:
            self.drop("masks: that contradict their boxes (IoU below 0.5), or are not as many", name)
            return []
        return [encode_png(mask) for mask in masks]
