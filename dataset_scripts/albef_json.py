"""Captions, with or without boxes, from lists as ALBEF and AMC read them: records {"image", "caption", "bbox"}.

The file is a JSON list or JSON Lines. `caption` is a text or a list of texts, each of which becomes a row's phrase; in
the lists for grounding ({"image", "text", "ref_id"}) it is called `text`. `bbox`, `[x1, y1, x2, y2]` in pixels or a
list of such boxes, is the region of all of them; where there is none, the rows have no region and train the objectives
that need none. `absent`, true, says that somebody has looked, and the image does not show it. `ref_id` is not used: the
object that it names, with its box, is in the refer toolkit's files, which the builder `refcoco` reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from .builder import AnnotationConfig, GroundingBuilder, SourceImage, Unusable, check_corners, unusable_if
from .coco_format import listed_boxes, read_box
from .features import PhraseFields
from .json_files import stream_json_records
from .options import AlbefJsonOptions

_OTHER_NAMES = (
    *("box", "boxes", "bboxes", "bounding_box", "region", "regions", "x1", "xmin", "x", "left"),
    *("polygon", "polygons", "segmentation", "mask", "masks", "point", "points", "scribbles"),
)

_LOOKED_AT = 200  # images

Numbered = tuple[int, dict[str, Any]]  # a record with its number in the file
Records = tuple[str | None, list[Numbered]]  # an image's name, and its records


@dataclass
class AlbefJsonConfig(AlbefJsonOptions, AnnotationConfig):
    """The options, checked."""


class AlbefJson(GroundingBuilder):
    """`datasets` builder of ALBEF's lists of captions; rows as in `features.FEATURES`.

    Boxes are cut to the image where there are images, and to positive numbers where not. Dropped and counted are
    records without image or caption, empty captions, boxes that lie beside the image, captions all of whose boxes were
    dropped (they were meant to have a region) and images that cannot be used. Where a box is none or has no area at
    all, or is mostly outside of the image, its captions are dropped too, as nobody knows where a part of what they say
    is. A list of which more than a quarter of the boxes are no corners in pixels raises a `ValueError`.

    Records of an image that follow each other are taken together. Where they are apart, so are their rows, and the
    image is stored with each: sort such a list by image first.
    """

    BUILDER_CONFIG_CLASS = AlbefJsonConfig
    source = "A list of images with captions and boxes in ALBEF's JSON form that the builder was given."

    def split_names(self) -> list[str]:
        self._check_boxes()
        return [self.config.split]

    def images(self, split: str) -> Iterator[Records]:
        by_image = groupby(self._records(), key=lambda numbered: _image_of(numbered[1]))
        return ((image, list(records)) for image, records in by_image)

    def image(self, record: Records) -> SourceImage | None:
        name, records = record
        place = f"{self.config.annotations}, record {records[0][0]}"
        if name is None:
            self.drop("records without image", place, len(records))
            return None
        place, lost = f"{place} ({name})", {"records of images that cannot be used": len(records)}
        if not name.startswith(self.config.image_prefix):
            self.drop("images: their name does not begin with image_prefix", place)
            self.lose(lost)
            return None
        path = name.removeprefix(self.config.image_prefix)
        files = (path.lstrip("/\\") if self.config.image_prefix else path,)
        return SourceImage(files, place, records, lost, near=self.config.annotations)

    def phrases(self, content: list[Numbered], size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        """One row a caption, in the order of the file."""
        for number, fields in content:
            place = f"{self.config.annotations}, record {number}"
            captions = fields.get("caption") or fields.get("text")
            captions = captions if isinstance(captions, list) and captions else [captions]
            with self.dropping("captions", place, len(captions)):
                boxes = self.cut_boxes(map(read_box, listed_boxes(fields.get("bbox"))), size, place)
                absent = fields.get("absent") or False
                unusable_if(absent not in (True, False), "absent is neither true nor false")
                unusable_if(absent and boxes, "absent, and yet with a box")
                for caption in captions:
                    phrase = " ".join(caption.split()) if isinstance(caption, str) else ""
                    if not phrase:
                        self.drop("captions: missing, empty or no text", place)
                        continue
                    if phrase != caption:
                        self.report.kept["captions with stray blanks, cleaned"] += 1
                    kind = "of absent phrases" if absent else "with boxes" if boxes else "without region"
                    self.report.kept[f"rows {kind}"] += 1
                    yield {"phrase": phrase, "boxes": boxes, "absent": bool(absent)}

    def _records(self) -> Iterator[Numbered]:
        path = Path(self.config.data_dir, self.config.annotations)
        for number, record in enumerate(stream_json_records(path)):
            if not isinstance(record, dict):
                raise ValueError(
                    f"{path}: record {number} is no record with image and caption or text: {str(record)[:80]}"
                )
            others = [name for name in _OTHER_NAMES if record.get(name) not in (None, "", [], {})]
            if others and not record.get("bbox"):
                raise ValueError(
                    f"{path}: record {number} has {', '.join(others)}, which is not understood: call it bbox, "
                    "[x1, y1, x2, y2] in pixels or a list of such boxes"
                )
            yield number, record

    def _check_boxes(self) -> None:
        """Raises a ValueError where too many boxes are none of corners in pixels for chance to explain it."""
        boxes = (
            (f"record {number}", read_box(box))
            for number, record in self._records()
            for box in listed_boxes(record.get("bbox"))
        )
        check_corners(self.config.annotations, boxes, "bbox is")
        self.check_scale(self.config.annotations, self._first_boxes())

    def _first_boxes(self) -> Iterator[tuple[list[float], tuple[int, int]]]:
        """Those of the first images that can be used, each with its image's size."""
        twin = self.twin()
        for image in filter(None, map(twin.image, islice(self.images(self.config.split), _LOOKED_AT))):
            try:
                size = twin.load_image(twin.find_image(image.files, image.near)).size
            except Unusable:
                continue
            for _, record in image.content if size else ():
                yield from ((box, size) for each in listed_boxes(record.get("bbox")) if (box := read_box(each)))


def _image_of(record: dict[str, Any]) -> str | None:
    image = record.get("image")
    return image if isinstance(image, str) and image else None
