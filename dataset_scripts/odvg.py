"""Phrases and boxes in ODVG's JSON Lines, which Open-GroundingDino and MM-Grounding-DINO are trained on.

A record is of one image, {"filename", "height", "width"}, with one or more of these; boxes are `[x1, y1, x2, y2]` in
pixels:

- `grounding`, {"caption", "regions": [{"phrase", "bbox"}]}: phrases of a caption. A phrase may be a list of its pieces,
  a box a list of boxes; regions of the same phrase are one row.
- `detection`, {"instances": [{"bbox", "label", "category"}]}: the phrase is the category's name in words, with all its
  instances. Without `category` it is the `label`, or what the data folder's label map, {"0": "person", …}, has for it.
- `referring`, [{"phrase", "bbox"}]: an expression, or a list of several, for a box.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .builder import DrawnSplitsConfig, check_corners, files_like, unusable_if
from .coco_format import in_words, listed_boxes, read_box, read_whole
from .features import PhraseFields as PhraseFields
from .json_files import read_json
from .options import OdvgOptions
from .phrase_files import Box, PhraseFiles, Region, span_of

_LISTS = {"grounding": "regions", "detection": "instances"}


@dataclass
class OdvgConfig(OdvgOptions, DrawnSplitsConfig):
    """The options, checked."""


class Odvg(PhraseFiles):
    """`datasets` builder of ODVG's files; rows as in `features.FEATURES`.

    A caption has a row's `caption_span` where its words occur in it once. Dropped and counted are records without an
    image or any of the three lists, phrases without a word, boxes beside the image, and phrases one of whose boxes is
    lost: it is none, or mostly outside of the image. A file of which more than a quarter of the boxes are no corners in
    pixels raises a `ValueError`.
    """

    BUILDER_CONFIG_CLASS = OdvgConfig
    keys = ("grounding", "detection", "referring")
    source = "Annotations in ODVG's format that the builder was given."

    def look(self) -> None:
        self._labels = self._label_map()
        for file in self.files:
            boxes = (
                (f"record {listed.number}", box) for listed in self.records(file) for box in self._boxes(listed.record)
            )
            check_corners(file, boxes, "bbox is")
            self.check_scale(
                file, ((box, size) for record, size in self.sizes(file) for box in self._boxes(record) if box)
            )

    def image_name(self, record: dict[str, Any]) -> str:
        name = record.get("filename") or record.get("file_name")
        unusable_if(not isinstance(name, str) or not name, "records without image (filename)")
        return name

    def regions(self, record: dict[str, Any], size: tuple[int, int] | None, name: str) -> Iterable[Region]:
        unusable_if(not any(isinstance(record.get(key), dict | list) for key in self.keys), "without a list of regions")
        for kind, own in self._listed(record):
            for part in own:
                if not isinstance(part, dict):
                    self.drop(f"{kind}: that are no records", name)
                    continue
                boxes: list[Box] = [read_box(box) for box in listed_boxes(part.get("bbox"))] or [None]
                if kind == "detection":
                    phrase = self._category(part, name)
                    if phrase is not None:
                        yield Region(phrase, boxes)
                elif kind == "referring":
                    phrases = part.get("phrase")
                    yield from (
                        Region(phrase, boxes) for phrase in (phrases if isinstance(phrases, list) else [phrases])
                    )
                else:
                    yield _of_caption(part.get("phrase"), boxes, record[kind].get("caption"))

    def _listed(self, record: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
        """The kinds that a record has, and their lists."""
        for kind in self.keys:
            own = record.get(kind)
            own = own.get(_LISTS[kind]) if isinstance(own, dict) and kind in _LISTS else own
            if isinstance(own, list):
                yield kind, own

    def _boxes(self, record: dict[str, Any]) -> Iterator[list[float] | None]:
        """All of a record; None for what is no box."""
        parts = (part for _, own in self._listed(record) for part in own if isinstance(part, dict))
        return (read_box(box) for part in parts for box in listed_boxes(part.get("bbox")))

    def _category(self, instance: dict[str, Any], name: str) -> str | None:
        """What an instance is called; None, counted, if nothing says so."""
        category, label = instance.get("category"), read_whole(instance.get("label"))
        if category is None and label is None:  # some write names as labels
            category = instance.get("label")
        if not isinstance(category, str) or not category.strip():
            if self._labels is None and label is not None:
                raise ValueError(
                    f"{name}: its instances have labels without category: give the file of their names (label_map)"
                )
            category = (self._labels or {}).get(label)
        if category is None:
            self.drop("detection: without category, and of a label that the label map has not", name)
            return None
        return in_words(category)

    def _label_map(self) -> dict[int | None, str] | None:
        """The names of the labels: of the file that was named, or of the only one of which that is in the name."""
        folder = Path(self.config.data_dir)
        found = [folder / self.config.label_map] if self.config.label_map else files_like(folder, "*label_map*.json")
        if len(found) != 1:
            return None
        names = read_json(found[0])
        labels = {read_whole(key): name for key, name in names.items()} if isinstance(names, dict) else {}
        if not labels or None in labels or not all(isinstance(name, str) and name.strip() for name in labels.values()):
            raise ValueError(f'{found[0]} is no label map {{"0": "person", …}}')
        return labels


def _of_caption(phrase: Any, boxes: list[Box], caption: Any) -> Region:
    """A phrase, or the pieces of one, with its place in the caption."""
    if isinstance(phrase, list) and all(isinstance(piece, str) for piece in phrase):
        phrase = " ".join(phrase)
    if not isinstance(phrase, str) or not isinstance(caption, str):
        return Region(phrase, boxes)
    return Region(phrase, boxes, " ".join(caption.split()), span_of(phrase, caption))
