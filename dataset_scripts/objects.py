"""The base of the builders of objects in images: one row for each label in an image, with all its instances.

The phrase is the label in words, in `phrase_template` if one is given; its region is every instance in the image. An
instance with a text of its own (`caption`, `description` …) is of that phrase, see `by_label_and_text`.
A format has a `Photo` for each image, of a file of its own (`PhotoFileBuilder`) or of a file of many
(`PhotoListBuilder`). Splits are those that folders or files are named for; where none is, train and validation are
drawn.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from .builder import (
    IMAGE_SUFFIXES,
    MOSTLY_OUTSIDE,
    DrawnSplitsConfig,
    GroundingBuilder,
    OutsideImage,
    SourceImage,
    Unusable,
    clip_box,
    file_split,
    folder_split,
    telling_ends,
    unusable_if,
    walk,
)
from .coco_format import SIZEABLE, as_read, contradict, in_words
from .features import PhraseFields, encode_png, mask_to_box, plain_name
from .options import ObjectOptions
from .segmentations import segmentation_to_mask
from .shapes import Instance

_BESIDE_LOST = "instances: beside one that was lost, without which the row would not be of all"
_OF_ONE_IMAGE = "several of one image: keep one, or put their objects into one"
_LOOKS = 200  # photos that are read ahead
_BEYOND = 1.05  # of an image's side: a box that ends farther out is not one that was rounded


@dataclass
class ObjectConfig(ObjectOptions, DrawnSplitsConfig):
    """The options, checked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phrase_template.count("{}") != 1:
            raise ValueError(f"phrase_template: {self.phrase_template!r} needs {{}} once, where the label is to stand")


class RegionBuilder(GroundingBuilder):
    """Base of the builders of phrases with the boxes and masks of all that they mean.

    Trouble with a mask is not trouble with the object. A part of a segmentation that cannot be read is left out; where
    nothing is left, the instance has its box, and its row goes by boxes alone. An instance without a box, or whose box
    cannot be read or has no area in the image, has its mask's own. Where the two contradict each other (an IoU below a
    half), the mask is taken and the box is its own; of a mask that has lost a part the box is taken. A box that is
    turned is a mask of that shape, and in the image like a straight one.

    A row is of all instances that the image shows. One whose box lies beside the image is not among them. One with
    neither a mask nor a box with an area, or one that is mostly outside of the image, is somewhere, nobody knows where:
    its row is left out.
    """

    def region_rows(
        self, phrase: PhraseFields, instances: Iterable[Instance], size: tuple[int, int] | None, kind: str
    ) -> Iterator[PhraseFields]:
        """The row of a phrase with all its instances, or none; `kind` is what the report calls the phrase."""
        boxes, masks = self._boxes_and_masks(instances, size)
        if not boxes:
            return
        self.report.kept[f"rows (an image and a {kind})"] += 1
        if len(masks) < len(boxes):
            self.report.kept["rows by boxes alone, for want of a segmentation"] += 1
            masks = []
        yield {**phrase, "boxes": boxes, "masks": masks}

    def _boxes_and_masks(
        self, instances: Iterable[Instance], size: tuple[int, int] | None
    ) -> tuple[list[list[float]], list[dict[str, Any]]]:
        """Boxes, and such masks as there are, of the instances, which are counted; none if one was lost."""
        boxes: list[list[float]] = []
        masks: list[dict[str, Any]] = []
        crowds, is_whole = 0, True
        for instance in instances:
            try:
                box, mask = self._box_and_mask(instance, size, partial(self.drop, record=instance.record))
            except Unusable as reason:
                self.drop(f"instances: {reason}", instance.record)
                is_whole = is_whole and isinstance(reason, OutsideImage)
                continue
            boxes.append(box)
            if mask is not None:
                masks.append(encode_png(mask))  # of a large image a file is much smaller
            crowds += instance.is_crowd
        if not boxes or not is_whole:
            self.lose({_BESIDE_LOST: len(boxes)})
            return [], []
        self.report.kept["instances"] += len(boxes)
        if crowds:
            self.report.kept["instances that are crowds"] += crowds
        return boxes, masks

    def _box_and_mask(
        self, instance: Instance, size: tuple[int, int] | None, drop: Callable[[str], None]
    ) -> tuple[list[float], np.ndarray | None]:
        """An instance's box, cut to the image, and its mask; Unusable if it has no mask, and no box with an area."""
        unusable_if(instance.trouble, instance.trouble)
        lost: list[str] = []
        whole, mask = instance.box, None
        if size is not None:
            mask = _mask(instance.segmentation, size, lost.append)
        for reason in lost:
            drop(reason)
        if whole is None:
            return self._box_of_mask(instance, size, mask, drop), mask
        try:
            box = clip_box(whole, size)
        except Unusable as unusable:
            if mask is None:
                raise
            drop(f"boxes: {unusable}; the mask's own is taken")
            return mask_to_box(mask), mask
        if box != whole:  # many of them may be corners in place of sizes
            self.report.kept["boxes over the edge of the image, cut"] += 1
        if mask is None or (instance.is_outline and box == whole):
            return box, mask
        if contradict(box, mask_to_box(mask)):
            if lost:
                drop("masks: contradict their box (IoU below 0.5) for want of a part; the box is taken alone")
                return box, None
            drop("boxes: contradict their mask (IoU below 0.5); the mask's own is taken")
            return mask_to_box(mask), mask
        return box, mask

    def _box_of_mask(
        self, instance: Instance, size: tuple[int, int] | None, mask: np.ndarray | None, drop: Callable[[str], None]
    ) -> list[float]:
        if instance.is_turned:
            _check_turned(instance.segmentation[0], size, mask)
        unusable_if(mask is None, "neither a box nor a mask")
        if instance.has_bad_box:
            drop("boxes: not four finite numbers; the mask's own is taken")
        kind = "whose box is turned" if instance.is_turned else "without a box"
        self.report.kept[f"instances {kind}, which have their mask's own"] += 1
        return mask_to_box(mask)


class ObjectBuilder(RegionBuilder):
    """Base of the builders of objects in images.

    Attributes:
        words: label → in words, where all labels are known; see `words_of_labels`.
    """

    words: Mapping[str, str] = MappingProxyType({})

    def _info(self) -> Any:
        info = super()._info()
        info.license = self.config.license or ""
        return info

    # For subclasses

    def phrase_of(self, label: str) -> str:
        """The phrase of a label in words."""
        return self.config.phrase_template.replace("{}", label)

    def label_rows(self, instances: Iterable[Instance], size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        """A row for each label of an image of (width, height), labels that are read the same being one, and for each
        text of its instances."""
        phrases: dict[str, str] = {}
        labelled = []
        for instance in instances:
            words = self.words.get(instance.label) or in_words(instance.label)
            phrases.setdefault(as_read(words), self.phrase_of(words))
            labelled.append((as_read(words), instance))
        labels, texts = by_label_and_text(labelled, phrases.get)
        for label, own in labels.items():
            yield from self.region_rows({"phrase": phrases[label]}, own, size, "label")
        for text, own in texts.items():
            yield from self.region_rows({"phrase": text}, own, size, "phrase")


class Photo(NamedTuple):
    """What a source says of an image.

    Attributes:
        name: of the image in its id, no other's.
        record: what it is called in messages.
        files: what the image file may be called; the first that is there is taken.
        near: path of the annotations in the data folder, which tells image files of one name apart.
        size: (width, height) in pixels.
        split: that the record names, if it does.
    """

    name: str
    record: str
    files: tuple[str, ...]
    near: str
    instances: list[Instance]
    size: tuple[int, int] | None = None
    split: str | None = None


class _PhotoBuilder(ObjectBuilder):
    """A builder of photos: `listed` has their records with their splits, `photo` reads one."""

    def listed(self) -> Iterator[tuple[str | None, str, Any]]:
        """(split that it is named for, name, record) of each image."""
        raise NotImplementedError

    def photo(self, record: Any) -> Photo:
        """What a record says; Unusable where it cannot be read."""
        raise NotImplementedError

    def split_names(self) -> list[str]:
        listed = list(self.listed())
        self._check_fit([record for *_, record in listed])
        if not self.config.split and not any(split for split, *_ in listed):
            self.draw_splits((self.drawn_name(name), record) for _, name, record in listed)
            listed = [(self.drawn_split(self.drawn_name(name)), name, record) for _, name, record in listed]
        self.splits: dict[str, list[Any]] = {}
        for split, _, record in listed:
            if split is None and not self.config.split:
                self.report.kept["images that no split is named for, in train"] += 1
            self.splits.setdefault(self.config.split or split or "train", []).append(record)
        return sorted(self.splits)

    def drawn_name(self, name: str) -> str:
        """The name by which a record's image is drawn for train or validation."""
        return name

    def images(self, split: str) -> list[Any]:
        return self.splits[split]

    def image(self, record: Any) -> SourceImage | None:
        try:
            photo = self.photo(record)
        except Unusable as reason:
            self.drop(f"files: {reason}", f"{record}{reason.detail}")
            return None
        if not photo.instances:
            self.report.dropped["images without annotation"] += 1
            return None
        lost = {"instances: of an image that cannot be used": len(photo.instances)}
        return SourceImage(photo.files, photo.record, photo, lost, photo.size, photo.name, photo.near)

    def label_of(self, value: Any, record: str, texts: Collection[str] = ()) -> str | None:
        """A label that is a text with a word, or nothing of an object with texts of its own; of one without either
        nobody knows what it is: it is counted."""
        if isinstance(value, str) and in_words(value):
            return value
        if texts:
            return ""
        self.drop("instances: without a label", record)
        return None

    def phrases(self, content: Photo, size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        return self.label_rows(content.instances, size)

    def known_size(self, photo: Photo) -> tuple[float, float] | None:
        """The size that boxes are held against before the build, of photos some of which cannot be used."""
        return photo.size or self.load_image(self.find_image(photo.files, photo.near)).size

    def _check_fit(self, records: list[Any]) -> None:
        """Looks at evenly spread records: where many boxes are beyond their image, something is wrong with all; so is
        it where they are of a scale of their own."""
        count, wrong, twin, located = 0, [], self.twin(), []
        for record in records[:: len(records) // _LOOKS + 1]:
            try:
                photo = twin.photo(record)
                size = twin.known_size(photo)
            except Unusable:
                continue
            for instance in photo.instances if size else ():
                if instance.box is not None:
                    count += 1
                    located.append((instance.box, size))
                    shares = [value / size[axis % 2] for axis, value in enumerate(instance.box)]
                    if max(shares) > _BEYOND or min(shares) < 1 - _BEYOND:
                        wrong.append(f"{instance.record}: {[round(value, 2) for value in instance.box]}")
        if len(wrong) > SIZEABLE * count:
            raise ValueError(
                f"{self.config.data_dir}: {len(wrong):,} of {count:,} boxes that were looked at are beyond their image "
                f"({'; '.join(wrong[:3])}): they seem to be in other units, or of images of another size"
            )
        self.check_scale(self.config.data_dir, located)


class PhotoFileBuilder(_PhotoBuilder):
    """Base of formats of a file for each image. A record is the path of its file in the data folder."""

    suffix = ""

    def listed(self) -> Iterator[tuple[str | None, str, str]]:
        paths = [path for path in walk(self.config.data_dir) if path.lower().endswith(self.suffix)]
        if not paths:
            raise ValueError(f"{self.config.data_dir} has no file *{self.suffix}")
        return ((folder_split(path), path[: -len(self.suffix)], path) for path in paths)

    def split_names(self) -> list[str]:
        """Without the files of which several are of one image: neither has all that is in it."""
        super().split_names()
        for split, paths in self.splits.items():
            files: dict[tuple[str, ...], list[str]] = {}
            for path in paths:
                folder, _, name = path[: -len(self.suffix)].rpartition("/")
                files.setdefault(self.image_key((name,), f"{folder}/" if folder else "", path), []).append(path)
            for several in files.values():
                if len(several) > 1:
                    self.drop(f"files: {_OF_ONE_IMAGE}", " and ".join(several), len(several))
            self.splits[split] = [several[0] for several in files.values() if len(several) == 1]
        return sorted(split for split, paths in self.splits.items() if paths)

    def drawn_name(self, name: str) -> str:
        """The image file's, by which formats of many images call it; without images, that of the record's file."""
        with suppress(Unusable):
            return self.find_image((name.rpartition("/")[2],), name[: name.rfind("/") + 1])
        return name

    def photo_of(self, path: str, stated: str, instances: list[Instance], size: tuple[int, int] | None = None) -> Photo:
        """The photo of a file, which is called as the file is, or as it states."""
        stem, ending = path[: -len(self.suffix)], stated.rpartition(".")[2]
        name = f"{stem}.{ending}" if ending.lower() in IMAGE_SUFFIXES else stem
        # By the stem alone a mask that lies nearer would be meant as well.
        called = [name.rpartition("/")[2], stem.rpartition("/")[2]]
        files = tuple(dict.fromkeys([*called, *((stated, plain_name(stated).rpartition("/")[2]) if stated else ())]))
        return Photo(name, path, files, path[: path.rfind("/") + 1], instances, size)


class PhotoListBuilder(_PhotoBuilder):
    """Base of formats of files of many images. A record is the photo; images that are listed again are one."""

    suffix = ".json"

    def read(self, path: Path, name: str) -> Iterator[Photo]:
        """The photos of a file, called `name` in the data folder; ValueError where it is none of the format."""
        raise NotImplementedError

    def listed(self) -> Iterator[tuple[str | None, str, Photo]]:
        names = [self.config.annotations]
        if not self.config.annotations:
            names = [name for name in walk(self.config.data_dir) if name.lower().endswith(self.suffix)]
            if not names:
                raise ValueError(f"{self.config.data_dir} has no file *{self.suffix}")
        read = [(photo.split or file_split(name), name, photo) for name, photo in self._read_all(names)]
        ends = telling_ends(plain_name(photo.files[0]) for *_, photo in read)
        others = self.config.split or ("train" if any(split for split, *_ in read) else None)
        photos: dict[tuple[str | None, ...], tuple[str | None, Photo]] = {}
        for split, name, photo in read:
            first, *more = photo.files
            photo = photo._replace(files=(first, ends[plain_name(first)], *more))
            place = self.image_key(photo.files, photo.near, name.rpartition("/")[0], plain_name(first))
            key = (self.config.split or split or others, *place)
            if key in photos:
                self.report.kept["images that are listed again, taken together with the first"] += 1
                split, known = photos[key]
                photo = known._replace(instances=known.instances + photo.instances)
            photos[key] = split, photo
        self.words = words_of_labels(instance.label for _, photo in photos.values() for instance in photo.instances)
        return ((split, photo.name, photo) for split, photo in photos.values())

    def _read_all(self, names: list[str]) -> Iterator[tuple[str, Photo]]:
        for name in names:
            try:
                yield from ((name, photo) for photo in self.read(Path(self.config.data_dir, name), name))
            except ValueError as error:
                if len(names) == 1 or self.config.strict:
                    raise
                raise ValueError(f"{error} (--annotations names the one file to read)") from error

    def photo(self, record: Photo) -> Photo:
        return record


def _mask(segmentation: Any, size: tuple[int, int], drop: Callable[[str], None]) -> np.ndarray | None:
    if not callable(segmentation):
        return segmentation_to_mask(segmentation, size[1], size[0], drop)
    try:
        mask = segmentation()
        unusable_if(mask.shape != size[::-1], "mask parts: mask of another image size")
        unusable_if(not mask.any(), "masks: segmentation that covers no pixel of the image")
        return mask
    except Unusable as reason:
        drop(str(reason))
        return None


def _check_turned(corners: list[float], size: tuple[int, int] | None, mask: np.ndarray | None) -> None:
    """Raises Unusable for a turned box `[x, y, x, y, …]` less than half of which is in the image."""
    xs, ys = corners[::2], corners[1::2]
    around = [min(xs), min(ys), max(xs), max(ys)]
    if clip_box(around, size, least=0) != around:
        twice = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))
        unusable_if(mask is None or mask.sum() < abs(twice) / 4, MOSTLY_OUTSIDE)


def by_label_and_text(
    objects: Iterable[tuple[Any, Instance]], phrase_of: Callable[[Any], str | None]
) -> tuple[dict[Any, list[Instance]], dict[str, list[Instance]]]:
    """Objects with their labels, by label and by text of their own.

    A text is of all objects that have it, whatever their labels. A label is there where one of its objects has no text,
    or one that is read as the label's phrase, with all of its objects, and those of others that are called so.
    """
    labels: dict[Any, dict[Hashable, Instance]] = {}
    texts: dict[str, tuple[str, dict[Hashable, Instance]]] = {}
    named: dict[Any, str] = {}
    for label, instance in objects:
        reading = as_read(phrase_of(label) or "")
        # Of an object with several labels, each has an instance of the same region.
        key = instance.record, id(instance.box), id(instance.segmentation)
        labels.setdefault(label, {})[key] = instance
        others = [text for text in instance.texts if as_read(text) != reading]
        for text in others:
            texts.setdefault(as_read(text), (text, {}))[1][key] = instance
        if not others or len(others) < len(instance.texts):
            named[label] = reading
    for label, reading in named.items():
        labels[label] |= texts.pop(reading, ("", {}))[1]
    by_label = {label: list(own.values()) for label, own in labels.items() if label in named}
    return by_label, {text: list(own.values()) for text, own in texts.values()}


def same_words(label: str) -> str:
    """What is the same of labels that an uncased tokenizer reads the same."""
    return as_read(in_words(label))


def words_of_labels(labels: Iterable[str]) -> dict[str, str]:
    """Label → in words, of a list of labels; one phrase for those that an uncased tokenizer reads the same.

    Labels that only their brackets tell apart keep these: "cell (healthy)", "cell (damaged)".
    """
    readings: dict[str, set[str]] = {}
    for label in (labels := list(labels)):
        readings.setdefault(same_words(label), set()).add(as_read(label))
    words, first = {}, {}
    for label in labels:
        own = in_words(label) if len(readings[same_words(label)]) == 1 else " ".join(label.replace("_", " ").split())
        words[label] = first.setdefault(as_read(own), own)
    return words
