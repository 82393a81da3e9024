"""The base of the builders of objects in images: one row for each label in an image, with all its instances.

The phrase is the label in words, in `phrase_template` if one is given; its region is every instance in the image.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from .builder import (
    MOSTLY_OUTSIDE,
    DrawnSplitsConfig,
    GroundingBuilder,
    OutsideImage,
    Unusable,
    clip_box,
    unusable_if,
)
from .coco_format import contradict, in_words
from .features import PhraseFields, encode_png, mask_to_box, plain_name
from .options import ObjectOptions
from .segmentations import segmentation_to_mask

_BESIDE_LOST = "instances: beside one that was lost, without which the row would not be of all"
_SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation"} | {
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_FOLDER = re.compile(r"(?:(?:images|labels|annotations)[_-])?([a-z]+?)(?:\d{4})?(?:[_-](?:images|labels|annotations))?")


class Instance(NamedTuple):
    """An object in an image: its box, its mask, or both.

    Attributes:
        record: what it is called in messages.
        label: what it is called in the source; for `group_by_label` alone.
        box: `[x1, y1, x2, y2]` in pixels, also beyond the image.
        segmentation: as of `segmentation_to_mask`.
        is_turned: its box is turned, and stands in `segmentation` as a polygon.
        is_crowd: it is a crowd of objects.
        has_bad_box: it has a box that cannot be read.
    """

    record: str
    label: str = ""
    box: list[float] | None = None
    segmentation: Any = None
    is_turned: bool = False
    is_crowd: bool = False
    has_bad_box: bool = False


@dataclass
class ObjectConfig(ObjectOptions, DrawnSplitsConfig):
    """The options, checked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phrase_template.count("{}") != 1:
            raise ValueError(f"phrase_template: {self.phrase_template!r} needs {{}} once, where the label is to stand")


class ObjectBuilder(GroundingBuilder):
    """Base of the builders of objects in images.

    Trouble with a mask is not trouble with the object. A part of a segmentation that cannot be read is left out; where
    nothing is left, the instance has its box, and its row goes by boxes alone. An instance without a box, or whose box
    cannot be read or has no area in the image, has its mask's own. Where the two contradict each other (an IoU below a
    half), the mask is taken and the box is its own; of a mask that has lost a part the box is taken. A box that is
    turned is a mask of that shape, and in the image like a straight one.

    A row is of all instances that the image shows. One whose box lies beside the image is not among them. One with
    neither a mask nor a box with an area, or one that is mostly outside of the image, is somewhere, nobody knows where:
    its row is left out.
    """

    def _info(self) -> Any:
        info = super()._info()
        info.license = self.config.license or ""
        return info

    # For subclasses

    def phrase_of(self, label: str) -> str:
        """The phrase of a label in words."""
        return self.config.phrase_template.replace("{}", label)

    def label_rows(self, instances: Iterable[Instance], size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        """A row for each label of an image of (width, height); labels that are read the same are one."""
        groups: dict[str, tuple[str, list[Instance]]] = {}
        for instance in instances:
            groups.setdefault(same_words(instance.label), (instance.label, []))[1].append(instance)
        for label, own in groups.values():
            yield from self.region_rows({"phrase": self.phrase_of(in_words(label))}, own, size, "label")

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
        lost: list[str] = []
        whole, mask = instance.box, None
        if size is not None:
            mask = segmentation_to_mask(instance.segmentation, size[1], size[0], lost.append)
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
        if mask is not None and contradict(box, mask_to_box(mask)):
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


def _check_turned(corners: list[float], size: tuple[int, int] | None, mask: np.ndarray | None) -> None:
    """Raises Unusable for a turned box `[x, y, x, y, …]` less than half of which is in the image."""
    xs, ys = corners[::2], corners[1::2]
    around = [min(xs), min(ys), max(xs), max(ys)]
    if clip_box(around, size, least=0) != around:
        twice = sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))
        unusable_if(mask is None or mask.sum() < abs(twice) / 4, MOSTLY_OUTSIDE)


def same_words(label: str) -> str:
    """What is the same of labels that an uncased tokenizer reads the same."""
    return _as_read(in_words(label))


def _as_read(words: str) -> str:
    return " ".join(words.casefold().replace("_", " ").replace("-", " ").split())


def words_of_labels(labels: Iterable[str]) -> dict[str, str]:
    """Label → in words, of a list of labels; one phrase for those that an uncased tokenizer reads the same.

    Labels that only their brackets tell apart keep these: "cell (healthy)", "cell (damaged)".
    """
    readings: dict[str, set[str]] = {}
    for label in (labels := list(labels)):
        readings.setdefault(same_words(label), set()).add(_as_read(label))
    words, first = {}, {}
    for label in labels:
        own = in_words(label) if len(readings[same_words(label)]) == 1 else " ".join(label.replace("_", " ").split())
        words[label] = first.setdefault(_as_read(own), own)
    return words


def folder_split(path: str) -> str | None:
    """The split that a folder on the path of a file is named for: `train/a.xml`, `labels/val2017/a.txt`."""
    for folder in reversed(PurePosixPath(plain_name(path).lower()).parent.parts):
        if (found := _FOLDER.fullmatch(folder)) and found[1] in _SPLITS:
            return _SPLITS[found[1]]
    return None


def file_split(path: str) -> str | None:
    """The split that a file of a whole split, or a folder on its path, is named for: `instances_val2017.json`."""
    words = re.findall("[a-z]+", PurePosixPath(plain_name(path).lower()).stem)
    named = {_SPLITS[word] for word in words if word in _SPLITS}
    return named.pop() if len(named) == 1 else folder_split(path)
