"""Referring expressions: RefCOCO, RefCOCO+, RefCOCOg and ReferIt as the refer toolkit distributes them, and gRefCOCO.

The four have one layout: `refs(<whose split>).p`, expressions and splits (unc, google, umd, berkeley), and
`instances.json`, images and annotations. One row is one expression, in the toolkit's clean form (lower case, no
punctuation), with the box of its object, the object's mask where it has one, and the object's category. Boxes are cut
to the image.

gRefCOCO has `grefs(unc).json` (or `.p`) in place of the pickle. Its expressions are of any number of objects: the row
has the boxes and masks of all of them; one without a target (`ann_id` [-1]) is an absent phrase.

Splits keep the toolkit's names, but `val` is named validation. ReferIt has objects in `testAB` and `testBC`: they are
in both of the splits that this names, as in the toolkit.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .builder import (
    AnnotationConfig,
    GroundingBuilder,
    OutsideImage,
    SourceImage,
    Unusable,
    clip_box,
    unusable_if,
)
from .coco_format import SIZEABLE, AnnotationFile, CocoImage, contradict, read_box, read_corners, read_id
from .features import PhraseFields, encode_png, mask_to_box
from .json_files import read_json
from .options import RefCocoOptions
from .safe_pickle import load_plain_pickle
from .segmentations import segmentation_to_mask

_BEYOND = 1.05  # of an image's side: a box that ends farther out is not one that was rounded
# The toolkit's name of a split → its name here.
_SPLITS = {name: name for name in ("train", "val", "test", "testA", "testB", "testC")} | {"val": "validation"}

Boxes = list[list[float]]


@dataclass
class RefCocoConfig(RefCocoOptions, AnnotationConfig):
    """The options, checked."""


class RefCoco(GroundingBuilder):
    """`datasets` builder of referring expressions; rows as in `features.FEATURES`.

    A broken file (missing keys, an id twice, code in the pickle) raises a `ValueError` that names the record. What is
    of no use is dropped and counted: expressions of an annotation that is not there or lies in another image, of an
    unknown split, without a word, with a box without area in the image, or of an image that cannot be used. Of several
    objects, one beside the image is left out, and one that is lost otherwise takes the expression along.

    A part of a segmentation that cannot be read is left out; where nothing is left, the row goes by boxes alone. An
    object without a box has its mask's own. Where the two contradict each other (an IoU below a half), the mask is left
    out: by the box the published results are told.
    """

    BUILDER_CONFIG_CLASS = RefCocoConfig
    source = (
        "Expressions and splits of the refer toolkit (github.com/lichengunc/refer); images of COCO (RefCOCO, RefCOCO+, "
        "RefCOCOg) or of SAIAPR TC-12 (ReferIt), stored byte for byte as they were."
    )

    def split_names(self) -> list[str]:
        folder = Path(self.config.data_dir)
        refs_path = _refs_path(folder, self.config.splits_by)
        refs = _read_refs(refs_path)
        proposals = read_proposals(folder / self.config.proposals) if self.config.proposals else None
        wanted = {id_ for ref in refs for id_ in ref["ann_id"]}
        file = AnnotationFile(folder / "instances.json", wanted=wanted, in_pixels=self.config.in_pixels)
        images = {image.id: image for image in file.images.values()}
        found: dict[str, dict[int, _Image]] = {}  # split → image's id → the image with its refs
        for ref in refs:
            splits, targets = _splits_of(ref["split"]), [file.records.get(id_) for id_ in ref["ann_id"]]
            reason = None
            if None in targets:
                reason = "of an annotation that is not in instances.json"
            elif ref.get("no_target") not in (None, not targets):
                reason = "whose ann_id and no_target contradict each other"
            elif any(read_id(target["image_id"]) != ref["image_id"] for target in targets):
                reason = "of an annotation in another image"
            elif ref["image_id"] not in images:
                reason = "of an image that is not in instances.json"
            elif not splits:
                reason = f"of an unknown split, {ref['split'][:20]!r}"
            if reason:
                self.drop(f"expressions: {reason}", f"{refs_path}: ref {ref['ref_id']}", len(ref["sentences"]))
                continue
            names = [file.categories.get(file.category_numbers[read_id(target["category_id"])]) for target in targets]
            for split in splits:
                own = found.setdefault(split, {}).setdefault(ref["image_id"], _Image(images[ref["image_id"]], []))
                own.refs.append((ref, targets, list(dict.fromkeys(filter(None, names)))))
        self.splits = {split: list(own.values()) for split, own in found.items()}
        if proposals is not None:
            self._join_proposals(proposals)
        return [split for split in _SPLITS.values() if split in self.splits]

    def images(self, split: str) -> list["_Image"]:
        return self.splits[split]

    def image(self, record: "_Image") -> SourceImage:
        image = record.image
        lost = {"expressions: of an image that cannot be used": sum(len(ref["sentences"]) for ref, *_ in record.refs)}
        return SourceImage((image.file_name,), f"image {image.id} ({image.file_name})", record, lost, image.size)

    def phrases(self, content: "_Image", size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        image, refs, proposals = content
        usable = None if proposals is None else self._usable_proposals(proposals, image)
        for ref, targets, categories in refs:
            with self.dropping("expressions", f"ref {ref['ref_id']}", len(ref["sentences"])):
                boxes, masks = self._boxes_and_masks(ref, targets, image.size)
                self.report.kept["objects"] += len(boxes)
                for sentence in ref["sentences"]:
                    phrase = " ".join(sentence["sent"].split())
                    if not phrase:
                        record = f"ref {ref['ref_id']}, sentence {sentence.get('sent_id')}"
                        self.drop("expressions: without a word", record)
                        continue
                    self.report.kept["expressions"] += 1
                    if not boxes:
                        self.report.kept["expressions without a target, as absent phrases"] += 1
                    elif not masks:
                        self.report.kept["expressions by a box alone, for want of a mask"] += 1
                    if usable == []:
                        self.report.kept["expressions without proposals"] += 1
                    yield {
                        "phrase": phrase,
                        "boxes": boxes,
                        "masks": masks,
                        "categories": categories,
                        "proposals": usable or [],
                        "absent": not boxes,
                    }

    def _boxes_and_masks(
        self, ref: dict[str, Any], targets: list[dict[str, Any]], size: tuple[int, int]
    ) -> tuple[Boxes, list[dict[str, Any]]]:
        """The boxes of all targets in the image, and their masks, if all have one; Unusable if one was lost."""
        boxes, masks = [], []
        for number, annotation in enumerate(targets, start=1):
            try:
                box, own = self._box_and_mask(ref, annotation, size)
            except OutsideImage as reason:
                if number == len(targets) and not boxes:
                    raise
                self.drop(f"objects: {reason}", f"ref {ref['ref_id']}, annotation {annotation['id']}")
                continue
            boxes.append(box)
            masks += own
        return boxes, masks if len(masks) == len(boxes) else []

    def _box_and_mask(
        self, ref: dict[str, Any], annotation: dict[str, Any], size: tuple[int, int]
    ) -> tuple[list[float], list[dict[str, Any]]]:
        """An object's box, cut to the image, its own or without one its mask's; and its mask, where it has one."""
        drop = partial(self.drop, record=f"ref {ref['ref_id']}, annotation {annotation['id']}")
        width, height = size
        mask = segmentation_to_mask(annotation.get("segmentation"), height, width, drop)
        whole = read_corners(annotation.get("bbox"))
        unusable_if(whole is None and mask is None, "of an object with neither a box nor a mask")
        try:
            box = mask_to_box(mask) if whole is None else clip_box(whole, size)
        except Unusable as unusable:
            if mask is None:
                raise
            drop(f"boxes: {unusable}; the mask's own is taken")
            box = mask_to_box(mask)
        if mask is not None and contradict(box, mask_to_box(mask)):
            drop("masks: contradict their box (IoU below 0.5), which is taken alone")
            mask = None
        return box, [] if mask is None else [encode_png(mask)]

    def _join_proposals(self, proposals: dict[str, Boxes]) -> None:
        for split, own in self.splits.items():
            boxes = [proposals.get(str(image.id), proposals.get(image.file_name, [])) for image, *_ in own]
            self.splits[split] = [image._replace(proposals=found) for image, found in zip(own, boxes)]
        images = [image for own in self.splits.values() for image in own]
        if images and not any(image.proposals for image in images):
            image = images[0].image
            raise ValueError(
                f"{self.config.proposals} has no box for any image of {self.config.data_dir}, such as {image.id} "
                f"({image.file_name}): is it of another data set?"
            )
        located = [(image.image, box) for image in images for box in image.proposals or ()]
        wrong = [f"image {image.id}: {box}" for image, box in located if _are_corners(box, image.size)]
        are_shares = bool(located) and all(max(box) <= 1 for _, box in located)
        if are_shares or len(wrong) > max(1, SIZEABLE * len(located)):
            raise ValueError(
                f"{self.config.proposals}: {len(wrong):,} of {len(located):,} boxes end beyond their image, and "
                f"would not as corners, or all are shares of it ({'; '.join(wrong[:3])}): proposals are "
                "[x, y, width, height] in pixels"
            )

    def _usable_proposals(self, proposals: Boxes, image: CocoImage) -> Boxes:
        """Those that are in the image for the most part, as evaluation takes them; as the detector gave them."""
        usable = []
        for box in map(read_corners, proposals):
            with self.dropping("proposals", f"image {image.id} ({image.file_name})"):
                clip_box(box, image.size)
                usable.append(box)
        return usable


def _are_corners(box: list[float], size: tuple[int, int]) -> bool:
    """Whether `[x, y, width, height]` ends beyond its image, and as `[x1, y1, x2, y2]` would be inside."""
    (x, y, *sizes), limits = box, [_BEYOND * side for side in size]
    is_beyond = any(start + length > limit for start, length, limit in zip((x, y), sizes, limits))
    return is_beyond and all(start < end <= limit for start, end, limit in zip((x, y), sizes, limits))


class _Image(NamedTuple):
    """An image with (ref, annotations, categories) of its expressions; proposals `[x, y, width, height]`."""

    image: CocoImage
    refs: list[tuple[dict[str, Any], list[dict[str, Any]], list[str]]]
    proposals: Boxes | None = None


def _splits_of(name: str) -> list[str]:
    """The splits here that a ref belongs to, by the toolkit's name; none if that is unknown."""
    letters = re.fullmatch("test([ABC]{2,3})", name)
    names = [f"test{letter}" for letter in letters[1]] if letters else [name]
    return [_SPLITS[name] for name in names if name in _SPLITS]


# The files ------------------------------------------------------------------------------------------------------------


def _refs_path(folder: Path, splits_by: str | None) -> Path:
    """The file of the expressions; of one in both forms the pickle, which the toolkits take, too."""
    paths = [path for ending in ("json", "p") for path in sorted(folder.glob(f"*refs(*).{ending}"))]
    files = {(match[1], match[2]): path for path in paths if (match := re.fullmatch(r"(g?refs)\((.+)\)", path.stem))}
    if not files:
        raise ValueError(f"{folder} has no file refs(<whose split>).p, such as refs(unc).p, and no grefs(unc).json")
    whose = [name for _, name in files]
    named = {name if whose.count(name) == 1 else path.stem: path for (_, name), path in files.items()}
    if splits_by is None and len(named) == 1:
        return next(iter(named.values()))
    if splits_by not in named:
        problem = "has several splits, say which" if splits_by is None else f"has no split by {splits_by}"
        raise ValueError(f"{folder} {problem}: splits_by may be {', '.join(sorted(named))}")
    return named[splits_by]


def _read_refs(path: Path) -> list[dict[str, Any]]:
    """The refs, checked, in the order of the file; `ann_id` is the list of their targets.

    Their `file_name` is not read: it names a cut-out of the image (`COCO_train2014_000000581857_16.jpg`), and ReferIt's
    refs have none.
    """
    refs = read_json(path) if path.suffix == ".json" else load_plain_pickle(path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{path} is not a list of refs")
    ids = set()
    for number, ref in enumerate(refs):
        problem = _problem_of_ref(ref)
        if problem is None:
            ref |= {key: read_id(ref[key]) for key in ("ref_id", "image_id")}
            targets = list(dict.fromkeys(map(read_id, _as_list(ref["ann_id"]))))
            ref["ann_id"] = [] if targets == [-1] else targets
            # gRefCOCO's toolkit takes an id that occurs twice, and nothing here goes by it.
            is_grefs = path.name.startswith("grefs")
            problem = "its id occurs twice" if ref["ref_id"] in ids and not is_grefs else None
            if not targets and not is_grefs:  # lost: each of their expressions has an object
                ref["ann_id"] = [None]
        if problem:
            raise ValueError(f"{path}: ref {ref.get('ref_id')!r:.80} (number {number} in the file): {problem}")
        ids.add(ref["ref_id"])
    return refs


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _problem_of_ref(ref: dict[str, Any]) -> str | None:
    for key in ("ref_id", "image_id"):
        if type(read_id(ref.get(key))) is not int:
            return f"{key} is not a whole number"
    if None in map(read_id, _as_list(ref.get("ann_id"))):  # text in ReferIt: "8756_2"
        return "ann_id is neither a whole number nor text, nor a list of these"
    if ref.get("no_target") not in (None, False, True):
        return "no_target is neither true nor false"
    if not isinstance(ref.get("split"), str):
        return "split is not text"
    sentences = ref.get("sentences")
    if not isinstance(sentences, list) or not all(
        isinstance(sentence, dict) and isinstance(sentence.get("sent"), str) for sentence in sentences
    ):
        return "sentences is not a list of sentences with a text, sent"
    return None


# A detector's boxes ---------------------------------------------------------------------------------------------------


def read_proposals(path: Path) -> dict[str, Boxes]:
    """A JSON file of proposals: boxes `[x, y, width, height]` in pixels, by the image's id or by its file's name.

    Three layouts are known: {image's id: [[x, y, width, height, …], …]} (ALBEF's dets.json), a list of {"image_id",
    "box"} (MAttNet's), and a list of expressions with {"pred_boxes", "pred_boxes_img_id"}, the latter the names of the
    boxes' cut-outs (`COCO_train2014_000000266240_3.jpg`); there the expressions of an image repeat its boxes.
    """
    content = read_json(path)
    if isinstance(content, dict):
        return {id_: _first_fours(boxes, f"{path}: image {id_}") for id_, boxes in content.items()}
    if isinstance(content, list) and all(isinstance(record, dict) for record in content):
        if all("image_id" in record and "box" in record for record in content):
            proposals: dict[str, Boxes] = {}
            for number, detection in enumerate(content):
                boxes = _first_fours([detection["box"]], f"{path}: detection {number}")
                proposals.setdefault(str(read_id(detection["image_id"])), []).extend(boxes)
            return proposals
        if all("pred_boxes" in record and "pred_boxes_img_id" in record for record in content):
            return _by_expression(content, path)
    raise ValueError(
        f"{path} is in no known layout of proposals: {{image's id: boxes}}, a list of {{image_id, box}}, or a list of "
        "{pred_boxes, pred_boxes_img_id}"
    )


def _by_expression(expressions: list[dict[str, Any]], path: Path) -> dict[str, Boxes]:
    proposals: dict[str, dict[str, list[float]]] = {}  # image's name → cut-out's name → box
    for number, expression in enumerate(expressions):
        record = f"{path}: expression {number}"
        boxes, names = _first_fours(expression["pred_boxes"], record), expression["pred_boxes_img_id"]
        if not isinstance(names, list) or len(names) != len(boxes):
            raise ValueError(f"{record}: pred_boxes_img_id has not one name for each of pred_boxes")
        for name, box in zip(names, boxes, strict=True):
            image = re.fullmatch(r"(.+)_\d+(\.\w+)", str(name))
            if image is None:
                raise ValueError(f"{record}: {str(name)[:80]!r} is not a cut-out's name, <image>_<number>.jpg")
            if proposals.setdefault(image[1] + image[2], {}).setdefault(name, box) != box:
                raise ValueError(f"{record}: {name} has another box than in an expression before")
    return {image: list(boxes.values()) for image, boxes in proposals.items()}


def _first_fours(boxes: Any, record: str) -> Boxes:
    """Boxes that a score or category may follow: their first four numbers."""
    fours = []
    for box in boxes if isinstance(boxes, list) else [None]:
        four = read_box(box[:4] if isinstance(box, list) else box)
        if four is None:
            raise ValueError(f"{record}: {str(box)[:80]!r} is not a box, [x, y, width, height]")
        fours.append(four)
    return fours
