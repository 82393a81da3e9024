"""The base of the builders that read files of records, JSON or JSON Lines, each with phrases and boxes of one image.

A file is of the split that its name or its folder says: `train`, `val`, `valid` or `validation`, `test`, `testA`,
`testB`, as a word of it. Where no name says one, a share of the images is drawn for validation. Records of an image in
the files of a split are taken together, wherever they are and however they spell its name.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .builder import GroundingBuilder, SourceImage, Unusable, joined, unusable_if, walk
from .coco_format import SIZEABLE, as_read, read_box, read_whole
from .features import PhraseFields, plain_name
from .json_files import Place, read_record, stream_json_places, stream_json_records

_ENDINGS = (".json", ".jsonl")
_LOOKED_AT = 200  # images of a file
_BEGINNING = 2**24  # bytes
_BEYOND = 1.05  # of an image's side: a box that ends farther out is not one that was rounded
PUNCTUATION = ".,;:!?"

Box = list[float] | Unusable | None  # corners in pixels; why there are none; what are no four numbers


class Listed(NamedTuple):
    """A record, with its place: the file, its number there, its bytes."""

    record: dict[str, Any]
    file: str
    number: int
    place: Place

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.file}, record {self.number}"


Records = list[Listed]  # of the same image
_Start = tuple[str, int]  # the file and number of the first of them


class Region(NamedTuple):
    """A phrase as a record has it, with boxes; those of phrases that are read the same are taken together."""

    phrase: Any
    boxes: list[Box]
    caption: str | None = None
    caption_span: tuple[int, int] | None = None


class PhraseFiles(GroundingBuilder):
    """Base of the builders of files of records. A subclass says what a record's image is, and what its phrases are.

    Its configuration has the options of `options.PhraseFilesOptions`.
    """

    keys: tuple[str, ...] = ()  # of which a record has one or more

    # What a subclass has

    def image_name(self, record: dict[str, Any]) -> str:
        """What a record calls its image; Unusable where it has none."""
        raise NotImplementedError

    def regions(self, record: dict[str, Any], size: tuple[int, int] | None, name: str) -> Iterable[Region]:
        """The phrases of a record, of an image of (width, height); Unusable where the record is of no use."""
        raise NotImplementedError

    def look(self) -> None:
        """What is to be known or checked of all files before any row is made; `self.files` has their names."""

    # What `build` calls

    def split_names(self) -> list[str]:
        names = self._names()
        self.files = dict(zip(names, self.file_splits(names)))
        self.look()
        self.splits = self._listed_again()
        if None in self.files.values():
            self.draw_splits((self._key(records), records) for file in names for records in self._by_image(file))
            return ["train", "validation"] if self.config.validation_fraction else ["train"]
        return sorted(set(self.files.values()))

    def images(self, split: str) -> Iterator[Records]:
        for file, own in self.files.items():
            if own in (None, split):
                found = self._by_image(file)
                yield from (records for records in found if own or self.drawn_split(self._key(records)) == split)

    def image(self, record: Records) -> SourceImage | None:
        first = record[0]
        try:
            image = self._image_file(first.record)
        except Unusable as reason:
            self.drop(str(reason), first.name, len(record))
            return None
        lost = {"records of images that cannot be used": len(record)}
        size = next(filter(None, (self.size_of(own.record) for own in record)), None)
        called = joined(first.file, self.name_in_id(image))
        return SourceImage((image,), f"{first.name} ({image:.200})", record, lost, size, called, first.file)

    def phrases(self, content: Records, size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        """One row a phrase of an image, in the order of the files; those in a caption, one for each caption."""
        found: dict[tuple[str, str | None], tuple[list[str], list[Region]]] = {}
        for listed in content:
            with self.dropping("records", listed.name):
                own: dict[str, list[Region]] = {}
                for region in self.regions(listed.record, size, listed.name):
                    phrase = " ".join(region.phrase.split()) if isinstance(region.phrase, str) else ""
                    if phrase:
                        own.setdefault(as_read(phrase), []).append(region._replace(phrase=phrase))
                    else:
                        self.drop("phrases: missing, empty or no text", listed.name)
                for same, regions in own.items():
                    caption = regions[0].caption if regions[0].caption_span else None
                    names, known = found.setdefault((same, caption), ([], []))
                    names.append(listed.name)
                    known += regions
        for names, regions in found.values():
            name = f"{' and '.join(names)} ({regions[0].phrase:.80})"
            with self.dropping("phrases", name):
                yield self._row(regions, size, name)

    # For subclasses

    def records(self, file: str) -> Iterator[Listed]:
        path = Path(self.config.data_dir, file)
        for number, (record, place) in enumerate(stream_json_places(path)):
            if not isinstance(record, dict):
                raise ValueError(f"{path}: record {number} is none with {' or '.join(self.keys)}: {str(record)[:80]}")
            yield Listed(record, file, number, place)

    def size_of(self, record: dict[str, Any]) -> tuple[int, int] | None:
        """(width, height) where a record has both."""
        width, height = (read_whole(record.get(side)) or 0 for side in ("width", "height"))
        return (width, height) if width > 0 and height > 0 else None

    def sizes(self, file: str) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
        """The first records of a file whose image's (width, height) is known, to look at before any row is made."""
        twin = self.twin()
        for records in islice(self._runs(file), _LOOKED_AT):
            image = twin.image(records)
            try:
                size = image and twin.load_image(twin.find_image(image.files, image.near), image.size).size
            except Unusable:
                continue
            if size:
                yield from ((listed.record, size) for listed in records)

    def check_sizes(self, key: str, boxes_of: Callable[[dict[str, Any]], Iterable[tuple[str, Any]]]) -> None:
        """ValueError: corners in place of sizes, or percent, where images tell: boxes end beyond, and would not as
        corners; or all end at 100 or 1000.

        Args: boxes_of: the boxes that a record has under `key`, with their names.
        """
        for file in self.files:
            count, wrong, located = 0, [], []
            for record, size in self.sizes(file):
                for name, value in boxes_of(record):
                    box = read_box(value)
                    if box is None:
                        continue
                    count += 1
                    x, y, right, bottom = box
                    located.append(([x, y, x + right, y + bottom], size))
                    is_over, is_inside = ends_beyond(located[-1][0], size), not ends_beyond(box, size)
                    if is_over and is_inside and x < right and y < bottom:
                        wrong.append(f"{name}: {box}")
            if len(wrong) > SIZEABLE * count:
                raise ValueError(
                    f"{file}: {len(wrong):,} of {count:,} boxes ({'; '.join(wrong[:3])}) end beyond their image, and "
                    f"would not as corners [x1, y1, x2, y2]: {key} is expected to be [x, y, width, height]"
                )
            self.check_scale(file, located)

    # Parts

    def _names(self) -> list[str]:
        """The files to read: those named, or those in the data folder or below whose first record is of this kind."""
        if self.config.annotations:
            return [name.strip() for name in self.config.annotations.split(",")]
        folder = self.config.data_dir
        names = [name for name in walk(folder) if name.lower().endswith(_ENDINGS) and self._fits(Path(folder, name))]
        if not names:
            raise ValueError(
                f"{folder} has no .json or .jsonl file of records with {' or '.join(self.keys)}: name it (annotations)"
            )
        return names

    def _fits(self, path: Path) -> bool:
        if not path.is_file():  # but a pipe, or a link to nothing
            return False
        with path.open("rb") as file:
            beginning = file.read(_BEGINNING)
        if len(beginning) == _BEGINNING and not any(f'"{key}"'.encode() in beginning for key in self.keys):
            return False  # of another kind, which may be one record of gigabytes
        try:
            first = next(stream_json_records(path), None)
        except ValueError as error:
            raise ValueError(f"{error} (annotations names the files to read)") from error
        return isinstance(first, dict) and not first.keys().isdisjoint(self.keys)

    def _runs(self, file: str) -> Iterator[Records]:
        """A file's records, those of an image that follow each other together."""
        return (list(run) for _, run in groupby(self.records(file), key=self._name))

    def _by_image(self, file: str) -> Iterator[Records]:
        """A file's records by image, each with those that list it again."""
        others, later = self.splits
        for run in self._runs(file):
            place = file, run[0].number
            if place not in later:
                yield run + [self._read_again(*each) for each in others.get(place, ())]

    def _listed_again(self) -> tuple[dict[_Start, list[tuple[str, int, Place]]], set[_Start]]:
        """Of images that are listed in several places: the first → the records of the others; and where these begin.

        Of all other images, which files have by millions, nothing is kept.
        """
        hashes = array("q", (hash(key) for _, key in self._keyed_runs()))
        values, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
        several = set(values[counts > 1].tolist())
        first: dict[tuple[str | None, ...], _Start] = {}
        others: dict[_Start, list[tuple[str, int, Place]]] = {}
        later: set[_Start] = set()
        for run, key in self._keyed_runs() if several else ():
            place = run[0].file, run[0].number
            if hash(key) in several and first.setdefault(key, place) != place:
                others.setdefault(first[key], []).extend((each.file, each.number, each.place) for each in run)
                later.add(place)
        if later:
            self.report.kept["images that are listed again, taken together with the first"] += len(later)
        return others, later

    def _keyed_runs(self) -> Iterator[tuple[Records, tuple[str | None, ...]]]:
        """Each with what tells its image from others, those of other splits too."""
        for file, split in self.files.items():
            for run in self._runs(file):
                with suppress(Unusable):
                    name = self._image_file(run[0].record)
                    folder = file.rpartition("/")[0]
                    yield run, (split, *self.image_key((name,), file, folder, plain_name(name)))

    def _read_again(self, file: str, number: int, place: Place) -> Listed:
        with Path(self.config.data_dir, file).open("rb") as opened:
            return Listed(read_record(opened, place), file, number, place)

    def _image_file(self, record: dict[str, Any]) -> str:
        """What the image's file is called in images_dir; Unusable where the record has none."""
        name = self.image_name(record)
        unusable_if(
            not name.startswith(self.config.image_prefix), "images: their name does not begin with image_prefix"
        )
        return name.removeprefix(self.config.image_prefix)

    def _name(self, listed: Listed) -> str | int:
        """What a record calls its image, or a name of its own where it has none."""
        try:
            return self.image_name(listed.record)
        except Unusable:
            return listed.number

    def _key(self, records: Records) -> str:
        return self.name_in_id(str(self._name(records[0])))

    def _row(self, regions: list[Region], size: tuple[int, int] | None, name: str) -> PhraseFields:
        cut = self.cut_boxes((box for region in regions for box in region.boxes), size, name)
        boxes = [box for number, box in enumerate(cut) if box not in cut[:number]]
        self.report.kept["rows with boxes" if boxes else "rows without region"] += 1
        phrase, _, caption, span = regions[0]
        return {"phrase": phrase, "boxes": boxes, "caption": caption if span else None, "caption_span": span}


def ends_beyond(corners: list[float], size: tuple[int, int]) -> bool:
    return corners[2] > _BEYOND * size[0] or corners[3] > _BEYOND * size[1]


def span_of(phrase: str, caption: str) -> tuple[int, int] | None:
    """(first, end) of the words of a caption that a phrase is, but for case and punctuation; None if in doubt."""
    words, all_words = ([word.strip(PUNCTUATION).casefold() for word in text.split()] for text in (phrase, caption))
    starts = [start for start in range(len(all_words)) if all_words[start : start + len(words)] == words]
    return (starts[0], starts[0] + len(words)) if words and len(starts) == 1 else None
