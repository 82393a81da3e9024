"""The base of the builders that read files of records, JSON or JSON Lines, each with phrases and boxes of one image.

A file is of the split that its name or its folder says: `train`, `val`, `valid` or `validation`, `test`, `testA`,
`testB`, as a word of it. Where no name says one, a share of the images is drawn for validation. Records of an image
that follow each other are taken together; where they are apart, so are their rows, and the image is stored with each.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from .builder import GroundingBuilder, SourceImage, Unusable, joined, unusable_if, walk
from .coco_format import SIZEABLE, read_box, read_whole
from .features import PhraseFields
from .json_files import stream_json_records

_ENDINGS = (".json", ".jsonl")
_LOOKED_AT = 200  # images of a file
_BEGINNING = 2**24  # bytes
_BEYOND = 1.05  # of an image's side: a box that ends farther out is not one that was rounded
PUNCTUATION = ".,;:!?"

Numbered = tuple[int, dict[str, Any]]  # a record with its number in the file
Records = tuple[str, list[Numbered]]  # a file, and records of it of the same image
Box = list[float] | Unusable | None  # corners in pixels; why there are none; what are no four numbers


class Region(NamedTuple):
    """A phrase as a record has it, with boxes; those of equal phrases of a record are taken together."""

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
        if None in self.files.values():
            self.draw_splits((self._key(record), record) for file in names for record in self._by_image(file))
            return ["train", "validation"] if self.config.validation_fraction else ["train"]
        return sorted(set(self.files.values()))

    def images(self, split: str) -> Iterator[Records]:
        for file, own in self.files.items():
            if own == split:
                yield from self._by_image(file)
            elif own is None:
                yield from (record for record in self._by_image(file) if self.drawn_split(self._key(record)) == split)

    def image(self, record: Records) -> SourceImage | None:
        file, numbered = record
        first, name = numbered[0][1], f"{file}, record {numbered[0][0]}"
        try:
            source = self.image_name(first)
            is_own = source.startswith(self.config.image_prefix)
            unusable_if(not is_own, "images: their name does not begin with image_prefix")
        except Unusable as reason:
            self.drop(str(reason), name, len(numbered))
            return None
        lost = {"records of images that cannot be used": len(numbered)}
        size = next(filter(None, (self.size_of(own) for _, own in numbered)), None)
        files = (source.removeprefix(self.config.image_prefix),)
        called = joined(file, self.name_in_id(files[0]))
        return SourceImage(files, f"{name} ({source:.200})", record, lost, size, called, file)

    def phrases(self, content: Records, size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        """One row a phrase of a record, in the order of the file."""
        for number, record in content[1]:
            name = f"{content[0]}, record {number}"
            with self.dropping("records", name):
                regions: dict[str, list[Region]] = {}
                spelled: dict[str, str] = {}  # phrases that differ in case alone are one
                for region in self.regions(record, size, name):
                    phrase = " ".join(region.phrase.split()) if isinstance(region.phrase, str) else ""
                    if phrase:
                        regions.setdefault(spelled.setdefault(phrase.casefold(), phrase), []).append(region)
                    else:
                        self.drop("phrases: missing, empty or no text", name)
                for phrase, own in regions.items():
                    with self.dropping("phrases", f"{name} ({phrase:.80})"):
                        yield self._row(phrase, own, size, name)

    # For subclasses

    def records(self, file: str) -> Iterator[Numbered]:
        """A file's records with their numbers."""
        path = Path(self.config.data_dir, file)
        for number, record in enumerate(stream_json_records(path)):
            if not isinstance(record, dict):
                raise ValueError(f"{path}: record {number} is none with {' or '.join(self.keys)}: {str(record)[:80]}")
            yield number, record

    def size_of(self, record: dict[str, Any]) -> tuple[int, int] | None:
        """(width, height) where a record has both."""
        width, height = (read_whole(record.get(side)) or 0 for side in ("width", "height"))
        return (width, height) if width > 0 and height > 0 else None

    def sizes(self, file: str) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
        """The first records of a file whose image's (width, height) is known, to look at before any row is made."""
        twin = self.twin()
        for file_and_records in islice(self._by_image(file), _LOOKED_AT):
            image = twin.image(file_and_records)
            try:
                size = image and twin.load_image(twin.find_image(image.files, image.near), image.size).size
            except Unusable:
                continue
            if size:
                yield from ((record, size) for _, record in file_and_records[1])

    def check_sizes(self, key: str, boxes_of: Callable[[dict[str, Any]], Iterable[tuple[str, Any]]]) -> None:
        """ValueError: corners in place of sizes, where images tell: boxes end beyond, and would not as corners.

        Args: boxes_of: the boxes that a record has under `key`, with their names.
        """
        for file in self.files:
            count, wrong = 0, []
            for record, size in self.sizes(file):
                for name, value in boxes_of(record):
                    box = read_box(value)
                    if box is None:
                        continue
                    count += 1
                    x, y, right, bottom = box
                    is_over, is_inside = ends_beyond([x, y, x + right, y + bottom], size), not ends_beyond(box, size)
                    if is_over and is_inside and x < right and y < bottom:
                        wrong.append(f"{name}: {box}")
            if len(wrong) > SIZEABLE * count:
                raise ValueError(
                    f"{file}: {len(wrong):,} of {count:,} boxes ({'; '.join(wrong[:3])}) end beyond their image, and "
                    f"would not as corners [x1, y1, x2, y2]: {key} is expected to be [x, y, width, height]"
                )

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

    def _by_image(self, file: str) -> Iterator[Records]:
        for _, group in groupby(self.records(file), key=self._name):
            yield file, list(group)

    def _name(self, numbered: Numbered) -> str | int:
        """What a record calls its image, or a name of its own where it has none."""
        try:
            return self.image_name(numbered[1])
        except Unusable:
            return numbered[0]

    def _key(self, record: Records) -> str:
        return self.name_in_id(str(self._name(record[1][0])))

    def _row(self, phrase: str, regions: list[Region], size: tuple[int, int] | None, name: str) -> PhraseFields:
        cut = self.cut_boxes((box for region in regions for box in region.boxes), size, f"{name} ({phrase:.80})")
        boxes = [box for number, box in enumerate(cut) if box not in cut[:number]]
        self.report.kept["rows with boxes" if boxes else "rows without region"] += 1
        caption, span = regions[0].caption, regions[0].caption_span
        return {"phrase": phrase, "boxes": boxes, "caption": caption if span else None, "caption_span": span}


def ends_beyond(corners: list[float], size: tuple[int, int]) -> bool:
    return corners[2] > _BEYOND * size[0] or corners[3] > _BEYOND * size[1]


def span_of(phrase: str, caption: str) -> tuple[int, int] | None:
    """(first, end) of the words of a caption that a phrase is, but for case and punctuation; None if in doubt."""
    words, all_words = ([word.strip(PUNCTUATION).casefold() for word in text.split()] for text in (phrase, caption))
    starts = [start for start in range(len(all_words)) if all_words[start : start + len(words)] == words]
    return (starts[0], starts[0] + len(words)) if words and len(starts) == 1 else None
