"""ReferIt as lists of photos and a JSON file for each region: expressions for regions of SAIAPR TC-12's photos.

The lists `referit_train_imlist.txt`, `referit_val_imlist.txt` and `referit_test_imlist.txt` (9,000, 1,000 and 10,000
photos, by number) are the splits train, validation and test; they decide, not what a record says of its own split. A
record, `<photo>_<region>.json`, has the region's expressions and its box. One row is one expression, its words parted
by single blanks and otherwise as people typed them. Boxes are cut to the photo. For the same data in the layout of the
refer toolkit (`refclef`), which has masks too, there is the builder `refcoco`.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .coco_fields import is_box
from .features import make_row
from .json_files import read_json, read_text
from .sources import SourceBuilder, SourceConfig, Unusable, chunked, clip_box

_PHOTOS_PER_JOB = 500
_LISTS = {
    "train": "referit_train_imlist.txt",
    "validation": "referit_val_imlist.txt",
    "test": "referit_test_imlist.txt",
}


@dataclass
class ReferItConfig(SourceConfig):
    """Where the lists, the records and the photos are."""

    records: str = field(
        default=".", metadata={"help": "Folder of the records, <photo>_<region>.json, in the data folder."}
    )


class ReferIt(SourceBuilder):
    """`datasets` builder of ReferIt; rows as in `features.FEATURES`. `images_dir` holds the photos, `<photo>.jpg`.

    A list that is missing, holds something else than numbers, or a photo twice or also in another list, raises a
    `ValueError` that names it. What is of no use is dropped and counted in `report`, or named in strict mode: records
    of a photo in no list, that cannot be read or name another photo, with a box without area in the photo, expressions
    without a word, photos that cannot be used.
    """

    BUILDER_CONFIG_CLASS = ReferItConfig
    builder_name = "referit"
    source = (
        "Expressions of ReferIt (Kazemzadeh et al., EMNLP 2014) and photos of SAIAPR TC-12, these stored byte for byte "
        "as they were."
    )

    def split_names(self) -> list[str]:
        folder = Path(self.config.data_dir)
        lists = {split: read_photo_list(folder / name) for split, name in _LISTS.items()}
        regions = _regions_by_photo(folder / self.config.records)
        self.splits: dict[str, list[tuple[int, list[int]]]] = {}
        listed: dict[int, str] = {}
        for split, photos in lists.items():
            for photo in photos:
                if photo in listed:
                    raise ValueError(f"{folder}: photo {photo} is in the lists of {listed[photo]} and of {split}")
                listed[photo] = split
            self.splits[split] = [(photo, regions[photo]) for photo in photos if photo in regions]
            if without := len(photos) - len(self.splits[split]):
                self.report.dropped["photos: listed, but without a record"] += without
        for photo in sorted(regions.keys() - listed.keys()):
            self.drop("records: of a photo in no list", f"photo {photo}", len(regions[photo]))
        return [split for split, photos in self.splits.items() if photos]

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process gets: not all photos, which come to it in its jobs."""
        return {**super().__getstate__(), "splits": None}

    def jobs(self, split: str) -> Iterator[list[tuple[int, list[int]]]]:
        """Numbers of photos, each with those of its regions; the records are read by whoever makes the rows."""
        return chunked(self.splits[split], _PHOTOS_PER_JOB)

    def rows(self, split: str, job: list[tuple[int, list[int]]]) -> Iterator[dict[str, Any]]:
        for photo, regions in job:
            try:
                image, size = self.photo_and_size(f"{photo}.jpg")
            except Unusable as reason:
                self.drop(str(reason), f"photo {photo}")
                self.report.dropped["records: of a photo that cannot be used"] += len(regions)
                continue
            self.report.kept["photos"] += 1
            image_id = self.image_id(str(photo), image)
            for region in regions:
                path = Path(self.config.data_dir, self.config.records, f"{photo}_{region}.json")
                try:
                    box, expressions = _read_record(path, photo)
                    box = clip_box(box, size)
                except Unusable as reason:
                    self.drop(f"records: {reason}", str(path))
                    continue
                self.report.kept["records"] += 1
                for expression in expressions:
                    phrase = " ".join(expression.split())
                    if not phrase:
                        self.drop("expressions: without a word", str(path))
                        continue
                    self.report.kept["expressions"] += 1
                    yield make_row(image, image_id, phrase, [box])


def read_photo_list(path: Path) -> list[int]:
    """The photos' numbers in a list, one a line.

    Raises:
        ValueError: The file is missing, a line is no number, or a photo is listed twice.
    """
    photos: dict[int, None] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        if not re.fullmatch(r"\d{1,9}", line.strip(), re.ASCII):
            raise ValueError(f"{path}, line {number}: {line[:40]!r} is not a photo's number")
        photo = int(line)
        if photo in photos:
            raise ValueError(f"{path}, line {number}: photo {photo} is listed twice")
        photos[photo] = None
    return list(photos)


def _regions_by_photo(folder: Path) -> dict[int, list[int]]:
    """Photo's number → its regions' numbers, in order, by the names of the files in the folder."""
    regions: dict[int, list[int]] = {}
    if not folder.is_dir():
        raise ValueError(f"records: there is no folder {folder}")
    with os.scandir(folder) as entries:
        for entry in entries:
            if name := re.fullmatch(r"([1-9]\d*)_(0|[1-9]\d*)\.json", entry.name, re.ASCII):
                regions.setdefault(int(name[1]), []).append(int(name[2]))
    if not regions:
        raise ValueError(f"{folder} has no record, <photo>_<region>.json")
    return {photo: sorted(numbers) for photo, numbers in regions.items()}


def _read_record(path: Path, photo: int) -> tuple[list[float], list[str]]:
    """The box `[x1, y1, x2, y2]` and the expressions of a region; Unusable where they cannot be read."""
    try:
        record = read_json(path)
    except ValueError as error:
        raise Unusable("that are no JSON, or were cut off") from error
    if not isinstance(record, dict):
        raise Unusable("that are no JSON object")
    if record.get("img_id") != f"{photo}.jpg":
        raise Unusable("that name another photo (img_id) than their file does")
    if not is_box(record.get("bbox")):
        raise Unusable("without a box of four numbers (bbox)")
    expressions = record.get("query")
    if not isinstance(expressions, list) or not all(isinstance(expression, str) for expression in expressions):
        raise Unusable("without a list of expressions (query)")
    return record["bbox"], expressions
