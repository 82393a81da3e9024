"""Regions with captions in X-VLM's JSON Lines, as its pre-training on Visual Genome and COCO reads them.

A record is of one image: {"image", "caption", "elems": [{"caption", "bb", "attributes"}]}. `bb` is `[x, y, width,
height]` in pixels; `caption` is a text or a list of texts, each of which becomes a phrase. Where a region has
`attributes`, its phrases are each of them before the caption, "red car", as X-VLM reads them. Regions of an image that
are called the same are one row. The image's own `caption` is a row without a region.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .builder import DrawnSplitsConfig, Unusable, unusable_if
from .coco_format import read_corners
from .features import PhraseFields as PhraseFields
from .json_files import stream_json_records as stream_json_records
from .options import XvlmOptions
from .phrase_files import Box, PhraseFiles, Region, ends_beyond


@dataclass
class XvlmConfig(XvlmOptions, DrawnSplitsConfig):
    """The options, checked."""


class Xvlm(PhraseFiles):
    """`datasets` builder of X-VLM's regions; rows as in `features.FEATURES`.

    Dropped and counted are records without an image or `elems`, or with the image itself in place of its name
    (`binary`), captions without a word, boxes beside the image, and phrases one of whose boxes is lost: it is none, it
    ends far beyond the image, as corners in place of sizes do, or it is mostly outside.
    """

    BUILDER_CONFIG_CLASS = XvlmConfig
    keys = ("elems",)
    source = "Regions with captions in X-VLM's format that the builder was given."

    def look(self) -> None:
        self.check_sizes("bb", self.named_boxes)

    @staticmethod
    def named_boxes(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        elems = record.get("elems")
        for number, elem in enumerate(elems if isinstance(elems, list) else []):
            if isinstance(elem, dict):
                yield f"elem {number} of {record.get('image')!s:.80}", elem.get("bb")

    def image_name(self, record: dict[str, Any]) -> str:
        name = record.get("image")
        unusable_if(name is None and record.get("binary"), "records with the image itself (binary): write it to a file")
        unusable_if(not isinstance(name, str) or not name, "records without image")
        return name

    def regions(self, record: dict[str, Any], size: tuple[int, int] | None, name: str) -> Iterable[Region]:
        elems = record.get("elems")
        unusable_if(not isinstance(elems, list), "without a list of regions (elems)")
        for caption in _texts(record.get("caption")):
            yield Region(caption, [])
        for elem in elems:
            if not isinstance(elem, dict):
                self.drop("elems: that are no records", name)
                continue
            for caption in _texts(elem.get("caption")) or [None]:
                for attribute in _texts(elem.get("attributes")) or [""]:
                    phrase = f"{attribute} {caption}" if isinstance(caption, str) and caption.strip() else None
                    yield Region(phrase, [_box(elem.get("bb"), size)])


def _texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _box(bb: Any, size: tuple[int, int] | None) -> Box:
    box = read_corners(bb)
    if box and size and ends_beyond(box, size):
        return Unusable("box that ends beyond the image, as corners do where [x, y, width, height] is expected")
    return box
