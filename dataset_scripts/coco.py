"""Images with annotations in COCO's format: one row for each category in an image, with all its instances.

The phrase is the category's name in words: "traffic light", of `traffic_light` too, and "mouse" of
`mouse_(computer_equipment)`, but "bow (weapon)" where another category is `bow_(decorative_ribbons)`. Its region is
every instance of it in the image, crowds (`iscrowd`) included: a crowd is part of what the phrase means, and a point in
it is right. Images are stored as they are.

Files of several splits make one data set: Roboflow's `train/_annotations.coco.json`, `valid/…`, `test/…`, COCO's own
`annotations/instances_train2017.json`, … A split is named by the file or its folder. Validation, if none is, is drawn
from train's images, and both of them from those that a file of no such name lists.

Captions (`captions_train2017.json`) are rows without a region. Of a panoptic segmentation the segments are instances,
of things and stuff alike; their masks are in PNG files, looked for in a folder of the JSON file's name. "tree-merged"
is a tree; "wall-other" is a wall, but left out beside another kind of wall.

LVIS lists categories that somebody looked for in an image in vain (`neg_category_ids`), which are absent phrases, and
some that are marked in part (`not_exhaustive_category_ids`), which are left out. So is a category in an image where one
of its annotations is to be ignored (`ignore`, of Objects365 and others): to COCO's evaluation a find there is neither
right nor wrong, so that it belongs neither to the region nor to the rest of the image.

MDETR's and GoldG's files are COCO's with captions. Of an image whose annotations have `tokens_positive`, [[start, end],
…] in characters of the image's `caption`, the phrases are those words, one row for each place in the caption, whatever
the categories are called. In the files of the RefCOCO sets the caption is an expression for the one box, and
`tokens_positive` marks its noun only. An annotation with a text of its own (`caption`, `phrase`, `expression`,
`sentence`, `description` …) is of that phrase, whatever its category, see `by_label_and_text`. `expressions` of an
image are each of all that is marked in it.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import starmap
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from .builder import ImageFiles, SourceImage, Unusable, telling_ends, unusable_if
from .coco_files import annotation_files
from .coco_format import (
    NO_CATEGORY,
    AnnotationFile,
    CocoImage,
    as_read,
    is_caption,
    name_of,
    read_corners,
    read_flag,
    read_id,
    read_region,
    read_whole,
    texts_of,
)
from .features import PhraseFields, plain_name
from .json_files import read_record
from .objects import ObjectBuilder, ObjectConfig, by_label_and_text, words_of_labels
from .options import CocoOptions
from .segmentations import (
    mask_to_run_lengths,
    read_segment_ids,
    segmentation_to_mask,  # noqa: F401 - which `objects` needs (see `builder`)
)
from .shapes import Instance

_EXPRESSIONS = re.compile(r"refcoco[+g]?([_\W].*)?")  # as `dataset_name`, which may say whose splits they are
_NOT_LISTED = "a category that is not listed (see --categories)"
# Why a category has no row in an image: what the file means, so that no strict build stops at it.
_NOT_EXHAUSTIVE = "instances: of a category not all of whose instances are marked (not_exhaustive_category_ids)"
_IGNORED = "instances: of a category of which one in the image is to be ignored (ignore)"
_OF_THE_REST = "instances: of a category of the rest (-other) beside another of its kind"
_AMBIGUOUS = "absent phrases: of a name of several categories, not all of which are absent"
_STUFF = re.compile("(-other)?(-merged|-stuff)?$")  # what COCO calls categories of stuff beside their name

Called = list[tuple[str, dict[str, Any]]]  # annotations, each with what it is called in messages
Labelled = Iterator[tuple[int, Instance]]  # with the label's number


class Record(NamedTuple):
    """An image. Its lists of categories have numbers of `Coco.labels`."""

    image: CocoImage
    file: int  # in `Coco.files`
    name: str  # in its id
    end: str  # of its file's name, which tells it from all others
    annotations: np.ndarray  # columns: number in its file, image, label or NO_CATEGORY, first byte, end, file


class _File(NamedTuple):
    path: Path
    place: str  # in the data folder
    scope: str  # the folder that its images' names are for; nothing for the data folder
    split: str | None
    labels: dict[int | str, int]  # of its categories by their id


@dataclass
class CocoConfig(CocoOptions, ObjectConfig):
    """The options, checked."""


class Coco(ObjectBuilder):
    """`datasets` builder of images with COCO annotations; rows as in `features.FEATURES`.

    A broken file (missing keys, the same id twice, coordinates that are shares of the image, corners in place of sizes)
    raises a `ValueError` that names it and its record. What is of no use is dropped and counted: an annotation whose
    image or category is not listed or whose `tokens_positive` are no words of a caption, an image that cannot be used.

    A box may be turned as CVAT writes it (`attributes.rotation`, degrees clockwise). A row is of all instances, as of
    `RegionBuilder`, also where the files of a split list the image several times.

    Images are looked for by their `file_name`, by COCO's address (`coco_url`), as LVIS has it, and by as much of the
    end of `file_name` as tells it from all others.
    """

    BUILDER_CONFIG_CLASS = CocoConfig
    images_per_job = 1000
    source = (
        "Images and annotation files in COCO's format that the builder was given. Images are stored byte for byte as "
        "they were, whatever they show and carry with them (Exif data too)."
    )

    def split_names(self) -> list[str]:
        paths = annotation_files(Path(self.config.data_dir), self.config.annotations)
        self.files: list[_File] = []
        self.labels: list[str] = []
        self.others: dict[int, set[int]] = {}  # labels of the rest of a kind → the others of that kind
        self._is_only = len(paths) == 1
        images: dict[int, tuple[CocoImage, int]] = {}  # by number, each with its file's
        by_words: set[int] = set()
        splits = self.file_splits([str(self._place(path)) for path in paths])
        annotations = np.concatenate([self._read(*each, images, by_words) for each in zip(paths, splits)])
        words = words_of_labels(self.labels)
        self.labels = [words[label] for label in self.labels]
        ends = telling_ends(plain_name(image.file_name) for image, _ in images.values())
        if again := self._take_together(images, annotations, by_words, ends):
            self.report.kept["images that are listed again, taken together with the first"] += again
        self.splits = self._sorted(images, annotations, ends)
        return sorted(self.splits)

    def images(self, split: str) -> list[Record]:
        """Images, each with the columns of its annotations; the records are read by whoever makes the rows."""
        return self.splits[split]

    def image(self, record: Record) -> SourceImage | None:
        image = record.image
        if not len(record.annotations) and not image.negative:
            self.report.dropped["images without annotation"] += 1
            return None
        files = (*_files_of(image), record.end)
        lost = {"instances: of an image that cannot be used": len(record.annotations)}
        called, near = f"image {image.id} ({image.file_name})", self.files[record.file].place
        return SourceImage(files, called, record, lost, image.size, record.name, near)

    def _size_of(self, image: CocoImage, near: str) -> tuple[int, int] | None:
        with suppress(Unusable):  # which is said when it is the image's turn
            return self.load_image(self.find_image(_files_of(image), near)).size
        return None

    @cached_property
    def _mask_files(self) -> ImageFiles:
        return ImageFiles(self.config.data_dir)

    # The files

    def _place(self, path: Path) -> PurePosixPath:
        """Where an annotation file is in the data folder; of one that is not in there, its name."""
        folder = Path(self.config.data_dir)
        return PurePosixPath(path.relative_to(folder) if path.is_relative_to(folder) else path.name)

    def _read(
        self, path: Path, split: str | None, images: dict[int, tuple[CocoImage, int]], by_words: set[int]
    ) -> np.ndarray:
        """Adds the images of a file to those of the files before; returns the columns of its annotations."""
        place, others = self._place(path), self.config.categories
        scope = place.parent.parent if place.parent.name == "annotations" else place.parent
        size_of = partial(self._size_of, near=str(place)) if self.config.images_dir else None
        categories = Path(self.config.data_dir, others) if others else None
        file = AnnotationFile(path, categories, size_of=size_of, in_pixels=self.config.in_pixels)
        labels = self._add_labels(file)
        by_id = {id_: labels[number] for id_, number in file.category_numbers.items() if number in labels}
        self.files.append(_File(path, str(place), str(scope) if scope.parts else "", split, by_id))
        first, total = max(images, default=-1) + 1, Counter(labels.values())
        for number, image in file.images.items():
            images[first + number] = self._with_labels(image, labels, total), len(self.files) - 1
        words = file.with_tokens | {
            number for number, image in file.images.items() if is_expression(image.dataset_name) or image.expressions
        }
        by_words |= {first + number for number in words}
        table = file.table()
        of_image, category = table[:, 1], table[:, 2].copy()
        label = np.full(len(file.category_numbers) + 1, NO_CATEGORY)  # the last one is NO_CATEGORY's own
        label[list(labels)] = list(labels.values())
        table[:, 2] = label[category]
        is_listed = np.isin(of_image, list(file.images))
        is_usable = (table[:, 2] >= 0) | (category == NO_CATEGORY) | np.isin(of_image, list(words))
        with path.open("rb") as opened:
            for number in np.flatnonzero(~is_listed | ~is_usable).tolist():
                reason = _NOT_LISTED if is_listed[number] else "an image that is not listed"
                start, end = table[number, 3:].tolist()
                self.drop(f"instances: of {reason}", self._called(read_record(opened, (start, end)), number, -1))
        table = np.column_stack((table, np.full(len(table), len(self.files) - 1)))[is_listed & is_usable]
        table[:, 1] += first
        return table

    def _add_labels(self, file: AnnotationFile) -> dict[int, int]:
        """The labels of a file's categories; what an uncased tokenizer reads the same is one, also of several files."""
        known = {as_read(label): number for number, label in enumerate(self.labels)}
        labels: dict[int, int] = {}
        names = {n: _STUFF.sub("", name) if file.has_segments else name for n, name in file.categories.items()}
        for number, name in names.items():
            labels[number] = known.setdefault(as_read(name), len(self.labels))
            if labels[number] == len(self.labels):
                self.labels.append(name)
        for number, name in names.items():
            if "-other" in file.categories[number][len(name) :]:
                kinds = {n: (names[n].split("-")[0], file.kinds.get(n, "").removesuffix("-stuff")) for n in names}
                own = {labels[n] for n, kind in kinds.items() if name in kind and n != number}
                self.others.setdefault(labels[number], set()).update(own - {labels[number]})
        return labels

    def _with_labels(self, image: CocoImage, labels: dict[int, int], total: Counter[int]) -> CocoImage:
        """The image with labels in place of its categories; absent is what all categories of a label are."""
        if not image.not_exhaustive and not image.negative:
            return image
        in_part = tuple(labels[number] for number in image.not_exhaustive if number in labels)
        absent: list[int] = []
        for label, count in Counter(labels.get(number) for number in set(image.negative)).items():
            if label is None:
                self.drop(f"absent phrases: of {_NOT_LISTED}", f"image {image.id} ({image.file_name})", count)
            elif count < total[label]:
                self.report.dropped[_AMBIGUOUS] += 1
            else:
                absent.append(label)
        return image._replace(not_exhaustive=in_part, negative=tuple(absent))

    def _take_together(
        self,
        images: dict[int, tuple[CocoImage, int]],
        annotations: np.ndarray,
        by_words: set[int],
        ends: dict[str, str],
    ) -> int:
        """Gives the annotations of images that are listed again to the first of their kind; returns how many those are.

        They are the same by where their file is found, whatever they call it, or else by their names. MDETR's images,
        whose phrases are words of their captions, are listed anew for each caption, and stay.
        """
        first: dict[tuple[Any, ...], int] = {}
        again: dict[int, int] = {}
        for number, (image, index) in images.items():
            if number not in by_words:
                file, name = self.files[index], plain_name(image.file_name)
                place = self.image_key((*_files_of(image), ends[name]), file.place, file.scope, name)
                same = first.setdefault((file.split, *place, image.size), number)
                if same != number:
                    again[number], (known, its_file) = same, images[same]
                    in_part, negative = known.not_exhaustive + image.not_exhaustive, known.negative + image.negative
                    images[same] = known._replace(not_exhaustive=in_part, negative=negative), its_file
        for number in again:
            del images[number]
        if again:
            annotations[:, 1] = [again.get(number, number) for number in annotations[:, 1].tolist()]
        return len(again)

    def _sorted(
        self, images: dict[int, tuple[CocoImage, int]], annotations: np.ndarray, ends: dict[str, str]
    ) -> dict[str, list[Record]]:
        """Split → its images, each with the annotations of its own, sorted by their label."""
        rank = {number: place for place, number in enumerate(images)}
        image_ranks = np.array([rank[image] for image in annotations[:, 1].tolist()], int)
        label_ranks = np.where(annotations[:, 2] < 0, len(self.labels), annotations[:, 2])
        by_image = np.lexsort((label_ranks, image_ranks))  # keeps the order of the files among equals
        bounds = np.searchsorted(image_ranks[by_image], np.arange(len(images)), side="right")
        names = self._names(images)
        parts = zip(images.values(), names, np.split(annotations[by_image], bounds))
        records = [
            Record(image, index, name, ends[plain_name(image.file_name)], own) for (image, index), name, own in parts
        ]
        fixed = [file.split for file in self.files]
        if not self.config.split and "validation" not in fixed:
            fixed = [None if split == "train" else split for split in fixed]
        if None in fixed:
            drawn = (record for record in records if fixed[record.file] is None)
            full = (record for record in drawn if len(record.annotations) or record.image.negative)
            self.draw_splits((self.name_in_id(record.image.file_name), record) for record in full)
        splits: dict[str, list[Record]] = {}
        for record in records:
            split = fixed[record.file] or self.drawn_split(self.name_in_id(record.image.file_name))
            splits.setdefault(split, []).append(record)
        return splits

    def _names(self, images: dict[int, tuple[CocoImage, int]]) -> list[str]:
        """What ids call the images: their file's name, which of several files may need its folder or split, too."""
        if self._is_only:
            return [image.file_name for image, _ in images.values()]
        owners: dict[str, set[tuple[str, str | None]]] = {}
        for image, index in images.values():
            owners.setdefault(plain_name(image.file_name), set()).add(self.files[index][2:4])
        names = []
        for image, index in images.values():
            file = self.files[index]
            prefix = (file.scope or file.split) if len(owners[plain_name(image.file_name)]) > 1 else None
            names.append(f"{prefix}/{self.name_in_id(image.file_name)}" if prefix else image.file_name)
        return names

    def _called(self, annotation: dict[str, Any], number: int, file: int) -> str:
        """What an annotation is called in messages."""
        name = name_of(annotation, number)
        return name if self._is_only else f"{self.files[file].place}: {name}"

    # Rows

    def phrases(self, content: Record, size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        image, own = content.image, list(self._records(content))
        has_tokens = any("tokens_positive" in record for *_, record in own)
        if has_tokens or (is_expression(image.dataset_name) and not image.expressions):
            called = [(name, record) for _, _, name, record in own]
            for phrase, found in self._instances_by_words(called, image, self.files[content.file].path):
                kind = "phrase" if "caption" in phrase else "category"
                yield from self.region_rows(phrase, starmap(_instance, found), size, kind)
        elif image.expressions:
            found = [_instance(called, record) for _, _, called, record in own]
            for expression in dict.fromkeys(image.expressions):
                yield from self.region_rows({"phrase": expression}, found, size, "phrase")
        else:
            yield from self._texts_and_categories(image, own, size)

    def _texts_and_categories(
        self, image: CocoImage, own: list[tuple[int, _File, str, dict[str, Any]]], size: tuple[int, int] | None
    ) -> Iterator[PhraseFields]:
        """Rows of what annotations say themselves, and of their categories."""
        if image.caption:
            self.report.kept["images whose caption is not read, as nothing says which of its words are where"] += 1
        instances: list[tuple[int, Instance]] = []
        for label, file, called, record in own:
            if is_caption(record):
                yield from self._caption(called, record)
                continue
            if "segments_info" in record:
                instances += self._segments(file, called, record, size)
                continue
            instance = _instance(called, record)
            if instance.texts:
                label = file.labels.get(read_id(record.get("category_id")), NO_CATEGORY)
            instances.append((label, instance))
        labels, texts = by_label_and_text(instances, self._phrase)
        for text, found in texts.items():
            yield from self.region_rows({"phrase": text}, found, size, "phrase")
        read = set(map(as_read, texts))
        present = {label for label, _ in instances} | {n for n in image.negative if as_read(self._phrase(n)) in read}
        yield from self._labelled(image, labels, present, size)

    def _phrase(self, label: int) -> str:
        """A label's, of which NO_CATEGORY has none."""
        return "" if label == NO_CATEGORY else self.phrase_of(self.labels[label])

    def _records(self, content: Record) -> Iterator[tuple[int, _File, str, dict[str, Any]]]:
        """An image's annotations: label, file, what it is called in messages, and the record."""
        with ExitStack() as stack:
            opened: dict[int, Any] = {}
            for number, _, label, start, end, index in content.annotations.tolist():
                if index not in opened:
                    opened[index] = stack.enter_context(self.files[index].path.open("rb"))
                record = read_record(opened[index], (start, end))
                yield label, self.files[index], self._called(record, number, index), record

    def _labelled(
        self,
        image: CocoImage,
        labels: dict[int, list[Instance]],
        present: set[int],
        size: tuple[int, int] | None,
    ) -> Iterator[PhraseFields]:
        """A row for each label, with its instances, and each that the image has not; `present` are all that it has."""
        for label, own in sorted(labels.items(), key=itemgetter(0)):
            if label in image.not_exhaustive:
                self.report.dropped[_NOT_EXHAUSTIVE] += len(own)
            elif any(instance.is_ignored for instance in own):
                self.report.dropped[_IGNORED] += len(own)
            elif self.others.get(label, set()) & present:
                self.report.dropped[_OF_THE_REST] += len(own)
            else:
                yield from self.region_rows({"phrase": self._phrase(label)}, own, size, "category")
        for label in dict.fromkeys(image.negative):
            if label in present or label in image.not_exhaustive:
                self.drop("absent phrases: of a category that is marked in the image", f"image {image.id}")
                continue
            self.report.kept["absent phrases (neg_category_ids)"] += 1
            yield {"phrase": self.phrase_of(self.labels[label]), "absent": True}

    def _caption(self, called: str, record: dict[str, Any]) -> Iterator[PhraseFields]:
        with self.dropping("captions", called):
            caption = record["caption"]
            unusable_if(not isinstance(caption, str) or not caption.split(), "without a word")
            self.report.kept["captions, as rows without a region"] += 1
            yield {"phrase": " ".join(caption.split())}

    def _segments(self, file: _File, called: str, record: dict[str, Any], size: tuple[int, int] | None) -> Labelled:
        """The segments of an image, each as an instance of its category."""
        ids = None
        try:
            place = self._mask_files.find((record["file_name"],), file.place)
            ids = read_segment_ids(Path(self.config.data_dir), place, size)
        except Unusable as reason:
            self.drop(f"masks: {reason}", called)
        for segment in record["segments_info"]:
            id_, label = read_whole(segment["id"]), file.labels.get(read_id(segment["category_id"]))
            name, runs = f"{called}, segment {id_}", None
            if label is None:
                self.drop(f"instances: of {_NOT_LISTED}", name)
                continue
            if ids is not None and (mask := ids == id_).any():
                runs = mask_to_run_lengths(mask)
            elif ids is not None:
                self.drop("masks: segment that no pixel of the PNG file is of", name)
            box, is_crowd = read_corners(segment.get("bbox")), bool(read_flag(segment, "iscrowd"))
            yield label, Instance(name, box=box, segmentation=runs, is_crowd=is_crowd)

    def _instances_by_words(
        self, records: Called, image: CocoImage, path: Path
    ) -> Iterator[tuple[PhraseFields, Called]]:
        """The phrases of an image, each with its place in the caption, if there is one, and its own annotations."""
        if image.caption is None:
            raise ValueError(
                f"{path}: image {image.id} has no caption, though its annotations have tokens_positive, places "
                "in it, as MDETR's and GoldG's files do: such a file needs both"
            )
        caption = " ".join(image.caption.split())
        phrases: dict[tuple[str, tuple[int, int] | None], Called] = {}
        for called, record in records:
            with self.dropping("instances", called):
                phrase = _words_of(image.caption, image.dataset_name, record.get("tokens_positive"))
                phrases.setdefault(phrase, []).append((called, record))
        for (words, span), own in phrases.items():
            yield {"phrase": words, "caption": caption if span else None, "caption_span": span}, own


def _files_of(image: CocoImage) -> tuple[str, ...]:
    """What an image's file may be called: LVIS 0.5 has COCO's names of 2014, and addresses of 2017, with others."""
    return image.file_name, *((image.address, image.address.rpartition("/")[2]) if image.address else ())


def _instance(called: str, annotation: dict[str, Any]) -> Instance:
    box, segmentation = read_region(annotation)
    has_box, has_own = bool(annotation.get("bbox")), bool(annotation.get("segmentation"))
    return Instance(
        called,
        box=box,
        segmentation=segmentation,
        is_turned=box is None and has_box and not has_own,
        is_crowd=bool(read_flag(annotation, "iscrowd")),
        is_ignored=bool(read_flag(annotation, "ignore")),
        texts=tuple(texts_of(annotation)),
        has_bad_box=box is None and has_box and has_own,
    )


def is_expression(dataset_name: Any) -> bool:
    """Whether the captions of an image of this data set are each an expression of one object."""
    return isinstance(dataset_name, str) and _EXPRESSIONS.fullmatch(dataset_name) is not None


def _words_of(caption: str, dataset_name: Any, tokens: Any) -> tuple[str, tuple[int, int] | None]:
    """The phrase at places of a caption, and which of its words that is: (first, end), or None if not one piece."""
    if is_expression(dataset_name):
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
