"""Referring expressions: RefCOCO, RefCOCO+, RefCOCOg and ReferIt as the refer toolkit distributes them.

The four have one layout: `refs(<whose split>).p`, expressions and splits (unc, google, umd, berkeley), and
`instances.json`, photos and annotations. One row is one expression, in the toolkit's clean form (lower case, no
punctuation), with the box of its object, the object's mask where it has one, and the object's category. Boxes are cut
to the photo.

Splits keep the toolkit's names, but `val` is named validation. ReferIt has objects in `testAB` and `testBC`: they are
in both of the splits that this names, as in the toolkit.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .coco_fields import read_box, read_id, read_whole
from .features import encode_png, make_row, mask_to_box
from .json_files import stream_json_lists
from .proposals import read_proposals
from .safe_pickle import load_plain_pickle
from .segmentations import contradict, segmentation_to_mask
from .sources import SourceBuilder, SourceConfig, Unusable, chunked, clip_box

_PHOTOS_PER_JOB = 500
# The toolkit's name of a split → its name here.
_SPLITS = {
    "train": "train",
    "val": "validation",
    "test": "test",
    "testA": "testA",
    "testB": "testB",
    "testC": "testC",
}


@dataclass
class RefCocoConfig(SourceConfig):
    """Where the data is, and which of its splits to use."""

    splits_by: str | None = field(
        default=None,
        metadata={"help": "Whose split: the name in refs(NAME).p, such as unc. Not needed where there is one file."},
    )
    proposals: str | None = field(
        default=None,
        metadata={"help": "JSON file of a detector's boxes (dets.json), in the data folder or by its whole path."},
    )


class RefCoco(SourceBuilder):
    """`datasets` builder of referring expressions; rows as in `features.FEATURES`.

    `images_dir` holds the photos, or for COCO's a folder `train2014` with them. A file that is not what it should be
    (missing keys, the same id twice, code in the pickle) raises a `ValueError` that names the record. What is of no use
    is dropped and counted in `report`, or named in strict mode: expressions of an annotation that is not there or lies
    in another photo, of an unknown split, without a word, with a box without area in the photo, or of a photo that
    cannot be used.

    A part of a segmentation that cannot be read is left out and counted; where nothing is left, the row goes by its box
    alone. An object that has no box, but a mask, has the mask's own. Where the two contradict each other (an IoU below
    a half), the mask is left out, counted and named: by the box the published results are told.
    """

    BUILDER_CONFIG_CLASS = RefCocoConfig
    builder_name = "refcoco"
    source = (
        "Expressions and splits of the refer toolkit (github.com/lichengunc/refer); photos of COCO (RefCOCO, RefCOCO+, "
        "RefCOCOg) or of SAIAPR TC-12 (ReferIt), stored byte for byte as they were."
    )

    def split_names(self) -> list[str]:
        folder = Path(self.config.data_dir)
        refs_path = _refs_path(folder, self.config.splits_by)
        refs = _read_refs(refs_path)
        photos, annotations = _read_instances(folder / "instances.json", {ref["ann_id"] for ref in refs})
        proposals = read_proposals(folder / self.config.proposals) if self.config.proposals else None
        self.splits: dict[str, dict[int, dict[str, Any]]] = {}  # split → photo's id → photo with its refs
        for ref in refs:
            splits = _splits_of(ref["split"])
            annotation = annotations.get(ref["ann_id"])
            if annotation is None:
                reason = "of an annotation that is not in instances.json"
            elif annotation["image_id"] != ref["image_id"]:
                reason = "of an annotation in another photo"
            elif ref["image_id"] not in photos:
                reason = "of a photo that is not in instances.json"
            elif not splits:
                reason = f"of an unknown split, {ref['split'][:20]!r}"
            else:
                for split in splits:
                    own = self.splits.setdefault(split, {}).setdefault(
                        ref["image_id"], {**photos[ref["image_id"]], "refs": []}
                    )
                    own["refs"].append({**annotation, "ref_id": ref["ref_id"], "sentences": ref["sentences"]})
                continue
            self.drop(f"expressions: {reason}", f"{refs_path}: ref {ref['ref_id']}", len(ref["sentences"]))
        if proposals is not None:
            self._join_proposals(proposals)
        return [split for split in _SPLITS.values() if split in self.splits]

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process gets: not all photos, which come to it in its jobs."""
        return {**super().__getstate__(), "splits": None}

    def jobs(self, split: str) -> Iterator[list[dict[str, Any]]]:
        """Records of photos, each with its refs, and each of these with its annotation."""
        return chunked(self.splits[split].values(), _PHOTOS_PER_JOB)

    def rows(self, split: str, job: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for photo in job:
            record = f"photo {photo['id']} ({photo['file_name']})"
            try:
                image = self.photo(self._path(photo["file_name"]), (photo["width"], photo["height"]))
            except Unusable as reason:
                self.drop(str(reason), record)
                lost = sum(len(ref["sentences"]) for ref in photo["refs"])
                self.report.dropped["expressions: of a photo that cannot be used"] += lost
                continue
            self.report.kept["photos"] += 1
            photo = {**photo, "image_id": self.image_id(photo["file_name"], image)}
            proposals = self._usable_proposals(photo, record)
            for ref in photo["refs"]:
                yield from self._rows_of_ref(ref, photo, image, proposals)

    def _rows_of_ref(
        self,
        ref: dict[str, Any],
        photo: dict[str, Any],
        image: dict[str, Any] | None,
        proposals: list[list[float]] | None,
    ) -> Iterator[dict[str, Any]]:
        record = f"ref {ref['ref_id']}"
        drop = partial(self.drop, record=f"{record}, annotation {ref['id']}")
        mask = segmentation_to_mask(ref["segmentation"], photo["height"], photo["width"], drop)
        try:
            box = _box(ref["bbox"], mask, photo)
        except Unusable as reason:
            self.drop(f"expressions: {reason}", record, len(ref["sentences"]))
            return
        if mask is not None and contradict(box, mask_to_box(mask)):
            drop("masks: contradict their box (IoU below 0.5), which is taken alone")
            mask = None
        masks = [] if mask is None else [encode_png(mask)]
        self.report.kept["objects"] += 1
        for sentence in ref["sentences"]:
            phrase = " ".join(sentence["sent"].split())
            if not phrase:
                self.drop("expressions: without a word", f"{record}, sentence {sentence.get('sent_id')}")
                continue
            self.report.kept["expressions"] += 1
            if not masks:
                self.report.kept["expressions by a box alone, for want of a mask"] += 1
            if proposals == []:
                self.report.kept["expressions without proposals"] += 1
            categories = [ref["category"]] if ref["category"] else []
            yield make_row(
                image, photo["image_id"], phrase, [box], masks, categories=categories, proposals=proposals or []
            )

    def _path(self, file_name: str) -> str:
        """A photo's path in `images_dir`, which may hold COCO's folders instead of the photos themselves."""
        subset = re.match(r"COCO_([a-z]+20\d\d)_", file_name)
        if subset and self.config.images_dir and Path(self.config.images_dir, subset[1]).is_dir():
            return f"{subset[1]}/{file_name}"
        return file_name

    def _join_proposals(self, proposals: dict[str, list[list[float]]]) -> None:
        found = 0
        for photos in self.splits.values():
            for photo in photos.values():
                own = proposals.get(str(photo["id"]), proposals.get(photo["file_name"], []))
                photo["proposals"] = own
                found += bool(own)
        if self.splits and not found:
            some = next(iter(next(iter(self.splits.values())).values()))
            raise ValueError(
                f"{self.config.proposals} has no box for any photo of {self.config.data_dir}, such as {some['id']} "
                f"({some['file_name']}): is it of another data set?"
            )

    def _usable_proposals(self, photo: dict[str, Any], record: str) -> list[list[float]] | None:
        """The proposals, as the detector gave them, that have area in the photo; None where none were asked for."""
        if "proposals" not in photo:
            return None
        usable = []
        for x, y, width, height in photo["proposals"]:
            box = [x, y, x + width, y + height]
            try:
                clip_box(box, (photo["width"], photo["height"]))
            except Unusable as reason:
                self.drop(f"proposals: {reason}", record)
                continue
            usable.append(box)
        return usable


def _box(bbox: Any, mask: np.ndarray | None, photo: dict[str, Any]) -> list[float]:
    """An object's box, cut to the photo: its own, or without one its mask's."""
    if bbox is None:
        if mask is None:
            raise Unusable("of an object with neither a box nor a mask")
        return mask_to_box(mask)
    x, y, width, height = bbox
    return clip_box([x, y, x + width, y + height], (photo["width"], photo["height"]))


def _splits_of(name: str) -> list[str]:
    """The splits here that a ref belongs to, by the toolkit's name; none if that is unknown."""
    letters = re.fullmatch("test([ABC]{2,3})", name)
    names = [f"test{letter}" for letter in letters[1]] if letters else [name]
    return [_SPLITS[name] for name in names if name in _SPLITS]


# The files ------------------------------------------------------------------------------------------------------------


def _refs_path(folder: Path, splits_by: str | None) -> Path:
    names = sorted(path.name[5:-3] for path in folder.glob("refs(*).p"))
    if not names:
        raise ValueError(f"{folder} has no file refs(<whose split>).p, such as refs(unc).p")
    if splits_by is None and len(names) == 1:
        splits_by = names[0]
    if splits_by not in names:
        problem = "has several splits, say which" if splits_by is None else f"has no split by {splits_by}"
        raise ValueError(f"{folder} {problem}: splits_by may be {', '.join(names)}")
    return folder / f"refs({splits_by}).p"


def _read_refs(path: Path) -> list[dict[str, Any]]:
    """The refs, checked, in the order of the file.

    Their `file_name` is not read: it names a cut-out of the photo (`COCO_train2014_000000581857_16.jpg`), and ReferIt's
    refs have none.
    """
    refs = load_plain_pickle(path)
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{path} is not a list of refs")
    ids = set()
    for number, ref in enumerate(refs):
        record = f"{path}: ref {ref.get('ref_id')!r:.80} (number {number} in the file)"
        if type(ref.get("ref_id")) is not int:
            raise ValueError(f"{record}: ref_id is not a whole number")
        if ref["ref_id"] in ids:
            raise ValueError(f"{record}: its id occurs twice")
        ids.add(ref["ref_id"])
        if type(ref.get("ann_id")) not in (int, str):  # text in ReferIt: "8756_2"
            raise ValueError(f"{record}: ann_id is neither a whole number nor text")
        ref["ann_id"] = read_id(ref["ann_id"])
        if type(ref.get("image_id")) is not int:
            raise ValueError(f"{record}: image_id is not a whole number")
        if not isinstance(ref.get("split"), str):
            raise ValueError(f"{record}: split is not text")
        sentences = ref.get("sentences")
        if not isinstance(sentences, list) or not all(
            isinstance(sentence, dict) and isinstance(sentence.get("sent"), str) for sentence in sentences
        ):
            raise ValueError(f"{record}: sentences is not a list of sentences with a text, sent")
    return refs


def _read_instances(path: Path, wanted: set[Any]) -> tuple[dict[int, dict[str, Any]], dict[Any, dict[str, Any]]]:
    """Photos by id, and of the annotations those that are wanted, by id; both with what is needed of them, checked."""
    photos: dict[int, dict[str, Any]] = {}
    categories: dict[Any, Any] = {}
    annotations: dict[Any, dict[str, Any]] = {}
    for key, record, _ in stream_json_lists(path, ("images", "annotations", "categories")):
        if not isinstance(record, dict):
            raise ValueError(
                f"{path} needs the lists images, annotations and categories to be of records: {str(record)[:80]}"
            )
        if key == "images":
            _add_photo(path, photos, record)
        elif key == "annotations":
            _add_annotation(path, annotations, record, wanted)
        elif isinstance(record.get("name"), str):
            categories[read_id(record.get("id"))] = record["name"]
    for annotation in annotations.values():  # the categories may follow the annotations
        id_ = annotation["category"]
        annotation["category"] = None if id_ is None else categories.get(id_)
    return photos, annotations


def _add_photo(path: Path, photos: dict[int, dict[str, Any]], image: dict[str, Any]) -> None:
    record, id_ = f"{path}: image {image.get('id')!r:.80}", read_id(image.get("id"))
    if id_ is None or id_ in photos:
        raise ValueError(f"{record}: its id is not a whole number or text, or occurs twice")
    if not isinstance(image.get("file_name"), str):
        raise ValueError(f"{record}: file_name is not text")
    width, height = read_whole(image.get("width")), read_whole(image.get("height"))
    if not (width and height and width > 0 and height > 0):
        raise ValueError(f"{record}: width and height are not whole numbers above 0")
    photos[id_] = {"id": id_, "file_name": image["file_name"], "width": width, "height": height}


def _add_annotation(
    path: Path, annotations: dict[Any, dict[str, Any]], annotation: dict[str, Any], wanted: set[Any]
) -> None:
    id_ = read_id(annotation.get("id"))
    if id_ is None or id_ not in wanted:
        return
    if id_ in annotations:
        raise ValueError(f"{path}: annotation {id_}: its id occurs twice")
    bbox = annotation.get("bbox") or None
    if bbox is not None and read_box(bbox) is None:
        raise ValueError(f"{path}: annotation {id_}: bbox is not four numbers")
    annotations[id_] = {
        "id": id_,
        "image_id": read_id(annotation.get("image_id")),
        "bbox": bbox and read_box(bbox),
        "segmentation": annotation.get("segmentation"),
        "category": read_id(annotation.get("category_id")),
    }
