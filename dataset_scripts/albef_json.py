"""Captions, with or without boxes, from lists as ALBEF and AMC read them: records {"image", "caption", "bbox"}.

The file is a JSON list or JSON Lines. `caption` is a text or a list of texts, each of which becomes a row's phrase; in
the lists for grounding ({"image", "text", "ref_id"}) it is called `text`. `bbox`, `[x1, y1, x2, y2]` in pixels or a
list of such boxes, is the region of all of them; where there is none, the rows have no region and train the objectives
that need none. `ref_id` is not used: the object that it names, with its box, is in the refer toolkit's files, which the
builder `refcoco` reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from .features import make_row
from .json_files import stream_json_records
from .sources import OutsidePhoto, SourceBuilder, SourceConfig, Unusable, chunked, clip_box

_FAR = 1e6  # pixels, more than any photo has: nothing else keeps infinity out where the size is not known


@dataclass
class AlbefJsonConfig(SourceConfig):
    """Which file, and what its images are called."""

    annotations: str = field(default="train.json", metadata={"help": "File with the list, in the data folder."})
    split: str = field(default="train", metadata={"help": "Name of the split to make of it."})
    image_prefix: str = field(
        default="",
        metadata={"help": "Beginning of the images' names to take off, where they are not relative to images_dir."},
    )


class AlbefJson(SourceBuilder):
    """`datasets` builder of ALBEF's lists of captions; rows as in `features.FEATURES`.

    Boxes are cut to the photo where there are photos, and to positive numbers where not. Dropped and counted are
    records without image or caption, empty captions, boxes that lie beside the photo, captions all of whose boxes were
    dropped (they were meant to have a region) and, with photos, images that cannot be used. Where a box is none or has
    no area at all, its captions are dropped too, as nobody knows where a part of what they say is.

    Records of an image that follow each other are taken together. Where they are apart, so are their rows, and the
    photo is stored with each: sort such a list by image first.

    Raises:
        ValueError: the file is missing, cut off, no JSON, or no list of records.
    """

    BUILDER_CONFIG_CLASS = AlbefJsonConfig
    builder_name = "albef_json"
    images_per_job = 500
    source = "A list of images with captions and boxes in ALBEF's JSON form that the builder was given."

    def split_names(self) -> list[str]:
        """The one split."""
        return [self.config.split]

    def jobs(self, split: str) -> Iterator[list[tuple[str | None, list[tuple[int, dict[str, Any]]]]]]:
        """Lists of (image, its records with their numbers in the file)."""
        by_image = groupby(self._records(), key=lambda numbered: _image_of(numbered[1]))
        return chunked(((image, list(records)) for image, records in by_image), self.images_per_job)

    def rows(self, split: str, job: list[tuple[str | None, list[tuple[int, dict[str, Any]]]]]) -> Iterator[dict]:
        """One row a caption, in the order of the file."""
        for image, records in job:
            record = f"{self.config.annotations}, record {records[0][0]}"
            if image is None:
                self.drop("records without image", record, len(records))
                continue
            try:
                name = self._photo_name(image)
                photo, size = self.photo_and_size(name)
            except Unusable as reason:
                self.drop(str(reason), f"{record} ({image})")
                self.report.dropped["records of photos that cannot be used"] += len(records)
                continue
            self.report.kept["images"] += 1
            image_id = self.image_id(name, photo)
            for number, fields in records:
                for phrase, boxes in self._phrases(f"{self.config.annotations}, record {number}", fields, size):
                    yield make_row(photo, image_id, phrase, boxes=boxes)

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        path = Path(self.config.data_dir, self.config.annotations)
        for number, record in enumerate(stream_json_records(path)):
            if not isinstance(record, dict):
                raise ValueError(
                    f"{path}: record {number} is no record with image and caption or text: {str(record)[:80]}"
                )
            yield number, record

    def _photo_name(self, image: str) -> str:
        if not image.startswith(self.config.image_prefix):
            raise Unusable("photos: their name does not begin with image_prefix")
        return image.removeprefix(self.config.image_prefix)

    def _phrases(
        self, record: str, fields: dict[str, Any], size: tuple[int, int] | None
    ) -> Iterator[tuple[str, list[list[float]]]]:
        """A record's phrases, each with its boxes."""
        captions = fields.get("caption") or fields.get("text")
        captions = captions if isinstance(captions, list) and captions else [captions]
        try:
            boxes = self._boxes(record, fields.get("bbox"), size)
        except Unusable as reason:
            self.drop(f"captions: {reason}", record, len(captions))
            return
        for caption in captions:
            phrase = " ".join(caption.split()) if isinstance(caption, str) else ""
            if not phrase:
                self.drop("captions: missing, empty or no text", record)
                continue
            if phrase != caption:
                self.report.kept["captions with stray blanks, cleaned"] += 1
            self.report.kept["rows with boxes" if boxes else "rows without region"] += 1
            yield phrase, boxes

    def _boxes(self, record: str, bbox: Any, size: tuple[int, int] | None) -> list[list[float]]:
        """A record's boxes, cut to the photo.

        Raises:
            Unusable: it has boxes, and none is of use, or one is lost.
        """
        if bbox is None or bbox == []:
            return []
        listed = bbox if isinstance(bbox, list) and isinstance(bbox[0], list) else [bbox]
        boxes, is_whole = [], True
        for box in listed:
            try:
                if not isinstance(box, list) or len(box) != 4 or not all(map(_is_coordinate, box)):
                    raise Unusable("not four numbers of pixels")
                cut = clip_box(box, size)
            except Unusable as reason:
                self.drop(f"boxes: {reason}", record)
                is_whole = is_whole and isinstance(reason, OutsidePhoto)
                continue
            if cut != box:
                self.report.kept["boxes over the edge of the photo, cut"] += 1
            boxes.append(cut)
        if not boxes:
            raise Unusable("none of their boxes is of use")
        if not is_whole:
            raise Unusable("one of their boxes is lost")
        return boxes


def _image_of(record: dict[str, Any]) -> str | None:
    image = record.get("image")
    return image if isinstance(image, str) and image else None


def _is_coordinate(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _FAR
