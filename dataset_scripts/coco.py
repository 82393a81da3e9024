"""Images with annotations in COCO's format: one row for each category in an image, with all its instances.

The phrase is the category's name in words: "traffic light", of `traffic_light` too, and "mouse" of
`mouse_(computer_equipment)`, but "bow (weapon)" where another category is `bow_(decorative_ribbons)`. Its region is
every instance of it in the image, crowds (`iscrowd`) included: a crowd is part of what the phrase means, and a point in
it is right. Images are stored as they are.

MDETR's and GoldG's files are COCO's with captions. Of an image whose annotations have `tokens_positive`, [[start, end],
…] in characters of the image's `caption`, the phrases are those words, one row for each place in the caption, whatever
the categories are called. In the files of the RefCOCO sets the caption is an expression for the one box, and
`tokens_positive` marks its noun only.
"""

import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, starmap
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from .builder import SourceImage, Unusable, unusable_if
from .coco_format import AnnotationFile, CocoImage, is_crowd, name_of, read_region, read_whole
from .features import PhraseFields, plain_name
from .json_files import read_record
from .objects import Instance, ObjectBuilder, ObjectConfig, words_of_labels
from .options import CocoOptions
from .segmentations import (
    segmentation_to_mask,  # noqa: F401 - which `objects` needs (see `builder`)
)

_EXPRESSIONS = ("refcoco", "refcoco+", "refcocog")  # as `dataset_name`
_NOT_EXHAUSTIVE = "instances: of a category not all of whose instances are marked (not_exhaustive_category_ids)"

Numbered = list[tuple[int, dict[str, Any]]]  # annotations with their number in the file
Record = tuple[CocoImage, np.ndarray]  # an image, and the columns of its annotations


@dataclass
class CocoConfig(CocoOptions, ObjectConfig):
    """The options, checked."""


class Coco(ObjectBuilder):
    """`datasets` builder of images with COCO annotations; rows as in `features.FEATURES`.

    A broken file (missing keys, the same id twice, coordinates that are shares of the image, corners in place of sizes)
    raises a `ValueError` that names it and its record. What is of no use is dropped and counted: an annotation whose
    image or category is not listed or whose `tokens_positive` are no words of a caption, an image that cannot be used.

    A box may be turned as CVAT writes it (`attributes.rotation`, degrees clockwise). A row is of all instances, as of
    `ObjectBuilder`, also where the file lists the image by several ids; that of a category that LVIS says is marked in
    part is left out. LVIS's images have no `file_name`, but COCO's address: they are looked for in COCO's folders,
    `val2017/<name>`.
    """

    BUILDER_CONFIG_CLASS = CocoConfig
    images_per_job = 1000
    source = (
        "Images and an annotation file in COCO's format that the builder was given. Images are stored byte for byte as "
        "they were, whatever they show and carry with them (Exif data too)."
    )

    def split_names(self) -> list[str]:
        other = Path(self.config.data_dir, self.config.categories) if self.config.categories else None
        file = AnnotationFile(self._path(), other, size_of=self._size_of if self.config.images_dir else None)
        images, annotations = file.images, file.table()
        words = words_of_labels(file.categories.values())
        self.categories = {number: words[name] for number, name in file.categories.items()}
        if self.config.images_dir and (found := _name_in_folder(images, self.config.images_dir)):
            self.report.kept["images whose name leads out of their folder, found there by their file's name"] += found
        by_words = file.with_tokens | {number for number, image in images.items() if image.dataset_name in _EXPRESSIONS}
        if again := _take_together(images, annotations, by_words):
            self.report.kept["images that are listed again, taken together with the first"] += again
        usable = []
        with self._path().open("rb") as file:
            for number, image, category, *place in annotations.tolist():
                if image in images and (category in self.categories or image in by_words):
                    usable.append(number)
                    continue
                missing = "an image that is not listed"
                if image in images:
                    missing = "a category that is not listed (see --categories)"
                self.drop(f"instances: of {missing}", name_of(read_record(file, place), number))
        self.splits = self._sorted(images, annotations[usable])
        return sorted(self.splits)

    def _sorted(self, images: dict[int, CocoImage], annotations: np.ndarray) -> dict[str, list[Record]]:
        """Split → its images, each with the annotations of its own, sorted by their category's name."""
        rank = {id_: number for number, id_ in enumerate(images)}
        order = {name: number for number, name in enumerate(self.categories.values())}
        image_ranks = np.array([rank[image] for image in annotations[:, 1].tolist()], int)
        names = map(self.categories.get, annotations[:, 2].tolist())
        name_ranks = np.array([order.get(name, len(order)) for name in names], int)  # of words of captions, any
        by_image = np.lexsort((name_ranks, image_ranks))  # keeps the order of the file among equals
        ends = np.searchsorted(image_ranks[by_image], np.arange(len(images)), side="right")
        records = list(zip(images.values(), np.split(annotations[by_image], ends)))
        if not self.config.split:
            self.draw_splits((self.name_in_id(image.file_name), (image, own)) for image, own in records if len(own))
        splits: dict[str, list[Record]] = {}
        for image, own in records:
            split = self.config.split or self.drawn_split(self.name_in_id(image.file_name))
            splits.setdefault(split, []).append((image, own))
        return splits

    def images(self, split: str) -> list[Record]:
        """Images, each with the columns of its annotations; the records are read by whoever makes the rows."""
        return self.splits[split]

    def image(self, record: Record) -> SourceImage | None:
        image, annotations = record
        if not len(annotations):
            self.report.dropped["images without annotation"] += 1
            return None
        lost = {"instances: of an image that cannot be used": len(annotations)}
        return SourceImage(image.file_name, f"image {image.id} ({image.file_name})", record, lost, image.size)

    def phrases(self, content: Record, size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        for phrase, own in self._instances_by_phrase(*content):
            kind = "phrase" if "caption" in phrase else "category"
            yield from self.region_rows(phrase, starmap(_instance, own), size, kind)

    def _size_of(self, file_name: str) -> tuple[int, int] | None:
        with suppress(Unusable):  # which is said when it is the image's turn
            return self.load_image(file_name).size
        return None

    def _path(self) -> Path:
        return Path(self.config.data_dir, self.config.annotations)

    def _instances_by_phrase(
        self, image: CocoImage, annotations: np.ndarray
    ) -> Iterator[tuple[PhraseFields, Numbered]]:
        """The phrases of an image, each with its place in the caption, if there is one, and its own annotations."""
        with self._path().open("rb") as file:
            records = [
                (number, self.categories.get(category), read_record(file, place))
                for number, _, category, *place in annotations.tolist()
            ]
        if image.dataset_name in _EXPRESSIONS or any("tokens_positive" in record for *_, record in records):
            yield from self._instances_by_words([(number, record) for number, _, record in records], image)
            return
        in_part = {self.categories.get(number) for number in image.not_exhaustive}
        for category, group in groupby(records, key=itemgetter(1)):
            own = [(number, record) for number, _, record in group]
            if category in in_part:
                self.report.dropped[_NOT_EXHAUSTIVE] += len(own)
            else:
                yield {"phrase": self.phrase_of(category)}, own

    def _instances_by_words(self, records: Numbered, image: CocoImage) -> Iterator[tuple[PhraseFields, Numbered]]:
        if image.caption is None:
            raise ValueError(
                f"{self._path()}: image {image.id} has no caption, though its annotations have tokens_positive, places "
                "in it, as MDETR's and GoldG's files do: such a file needs both"
            )
        caption = " ".join(image.caption.split())
        phrases: dict[tuple[str, tuple[int, int] | None], Numbered] = {}
        for number, record in records:
            with self.dropping("instances", name_of(record, number)):
                phrase = _words_of(image.caption, image.dataset_name, record.get("tokens_positive"))
                phrases.setdefault(phrase, []).append((number, record))
        for (words, span), own in phrases.items():
            yield {"phrase": words, "caption": caption if span else None, "caption_span": span}, own


def _instance(number: int, annotation: dict[str, Any]) -> Instance:
    box, segmentation = read_region(annotation)
    has_box, has_own = bool(annotation.get("bbox")), bool(annotation.get("segmentation"))
    return Instance(
        name_of(annotation, number),
        box=box,
        segmentation=segmentation,
        is_turned=box is None and has_box and not has_own,
        is_crowd=bool(is_crowd(annotation)),
        has_bad_box=box is None and has_box and has_own,
    )


def _words_of(caption: str, dataset_name: Any, tokens: Any) -> tuple[str, tuple[int, int] | None]:
    """The phrase at places of a caption, and which of its words that is: (first, end), or None if not one piece."""
    if dataset_name in _EXPRESSIONS:
        tokens = [[0, len(caption)]]
    unusable_if(not isinstance(tokens, list) or not tokens, "tokens_positive are no places in the caption")
    places: list[tuple[int, int]] = []
    for start, end in sorted(_place(token, caption) for token in tokens):
        if places and start < places[-1][1]:
            start, end = places[-1][0], max(end, places.pop()[1])
        places.append((start, end))
    words = " ".join(caption[start:end] for start, end in places).split()
    unusable_if(not words, "tokens_positive without a word")
    first = len(caption[: places[0][0]].split())
    end = first + len(words)
    return " ".join(words), (first, end) if caption.split()[first:end] == words else None


def _place(token: Any, caption: str) -> tuple[int, int]:
    start, end = map(read_whole, token) if isinstance(token, list) and len(token) == 2 else (None, None)
    is_place = start is not None and end is not None and 0 <= start < end <= len(caption)
    unusable_if(not is_place, "tokens_positive are no places in the caption")
    return start, end


def _name_in_folder(images: dict[int, CocoImage], folder: str) -> int:
    """Names images anew whose names lead out of the folder, as Label Studio's do, by files that lie directly in it.

    Only by the name of a file that no other image's name ends in. Returns how many.
    """
    names = {number: plain_name(image.file_name) for number, image in images.items()}
    ends, root, found = Counter(map(posixpath.basename, set(names.values()))), os.path.abspath(folder), 0
    for number, name in names.items():
        end = posixpath.basename(name)
        is_outside = not Path(os.path.normpath(os.path.join(root, name))).is_relative_to(root) or name[1:3] == ":/"
        if is_outside and ends[end] == 1 and os.path.isfile(os.path.join(root, end)):
            images[number], found = images[number]._replace(file_name=end), found + 1
    return found


def _take_together(images: dict[int, CocoImage], annotations: np.ndarray, by_words: set[int]) -> int:
    """Gives the annotations of images that are listed again, by another id, to the first; returns how many those are.

    MDETR's images, whose phrases are words of their captions, are listed anew for each caption, and stay.
    """
    first: dict[tuple[str, tuple[int, int] | None], int] = {}
    again: dict[int, int] = {}
    for number, image in images.items():
        if number not in by_words:
            same = first.setdefault((plain_name(image.file_name), image.size), number)
            if same != number:
                again[number] = same
                in_part = images[same].not_exhaustive + image.not_exhaustive
                images[same] = images[same]._replace(not_exhaustive=in_part)
    for number in again:
        del images[number]
    if again:
        annotations[:, 1] = [again.get(number, number) for number in annotations[:, 1].tolist()]
    return len(again)
