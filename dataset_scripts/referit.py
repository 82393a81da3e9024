"""ReferIt as lists of images and a JSON file for each region: expressions for regions of SAIAPR TC-12's images.

The lists `referit_train_imlist.txt`, `referit_val_imlist.txt` and `referit_test_imlist.txt` (9,000, 1,000 and 10,000
images, by number) are the splits train, validation and test; they decide, not what a record says of its own split. A
record, `<image>_<region>.json`, has the region's expressions and its box. One row is one expression, its words parted
by single blanks and otherwise as people typed them. Boxes are cut to the image. For the same data in the layout of the
refer toolkit (`refclef`), which has masks too, there is the builder `refcoco`.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .builder import AnnotationConfig, GroundingBuilder, SourceImage, Unusable, clip_box, unusable_if
from .coco_format import read_box
from .features import PhraseFields
from .json_files import read_json, read_text
from .options import ReferItOptions

_LISTS = {"train": "train", "validation": "val", "test": "test"}  # split → its name in names of files


@dataclass
class ReferItConfig(ReferItOptions, AnnotationConfig):
    """The options, checked."""


class ReferIt(GroundingBuilder):
    """`datasets` builder of ReferIt; rows as in `features.FEATURES`. `images_dir` holds the images, `<image>.jpg`.

    A list that is missing, holds something else than numbers, or an image twice or also in another list, raises a
    `ValueError` that names it. What is of no use is dropped and counted in `report`, or named in strict mode: records
    of an image in no list, that cannot be read or name another image, with a box without area in the image, expressions
    without a word, images that cannot be used.
    """

    BUILDER_CONFIG_CLASS = ReferItConfig
    source = (
        "Expressions of ReferIt (Kazemzadeh et al., EMNLP 2014) and images of SAIAPR TC-12, these stored byte for byte "
        "as they were."
    )

    def split_names(self) -> list[str]:
        folder = Path(self.config.data_dir)
        lists = {split: read_image_list(folder / f"referit_{name}_imlist.txt") for split, name in _LISTS.items()}
        regions = _regions_by_image(folder / self.config.records)
        self.splits: dict[str, list[tuple[int, list[int]]]] = {}
        listed: dict[int, str] = {}
        for split, images in lists.items():
            for image in images:
                if image in listed:
                    raise ValueError(f"{folder}: image {image} is in the lists of {listed[image]} and of {split}")
                listed[image] = split
            self.splits[split] = [(image, regions[image]) for image in images if image in regions]
            if without := len(images) - len(self.splits[split]):
                self.report.dropped["images: listed, but without a record"] += without
        for image in sorted(regions.keys() - listed.keys()):
            self.drop("records: of an image in no list", f"image {image}", len(regions[image]))
        return [split for split, images in self.splits.items() if images]

    def images(self, split: str) -> list[tuple[int, list[int]]]:
        """Numbers of images, each with those of its regions; the records are read by whoever makes the rows."""
        return self.splits[split]

    def image(self, record: tuple[int, list[int]]) -> SourceImage:
        image, regions = record
        lost = {"records: of an image that cannot be used": len(regions)}
        return SourceImage((f"{image}.jpg",), f"image {image}", record, lost, name=str(image))

    def phrases(self, content: tuple[int, list[int]], size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        image, regions = content
        for region in regions:
            path = Path(self.config.data_dir, self.config.records, f"{image}_{region}.json")
            with self.dropping("records", str(path)):
                box, expressions = _read_record(path, image)
                box = clip_box(box, size)
                self.report.kept["records"] += 1
                for expression in expressions:
                    phrase = " ".join(expression.split())
                    if not phrase:
                        self.drop("expressions: without a word", str(path))
                        continue
                    self.report.kept["expressions"] += 1
                    yield {"phrase": phrase, "boxes": [box]}


def read_image_list(path: Path) -> list[int]:
    """The images' numbers in a list, one a line; a ValueError names a line that has none, or one again."""
    images: dict[int, None] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        if not re.fullmatch(r"\d{1,9}", line.strip(), re.ASCII):
            raise ValueError(f"{path}, line {number}: {line[:40]!r} is not an image's number")
        image = int(line)
        if image in images:
            raise ValueError(f"{path}, line {number}: image {image} is listed twice")
        images[image] = None
    return list(images)


def _regions_by_image(folder: Path) -> dict[int, list[int]]:
    """Image's number → its regions' numbers, in order, by the names of the files in the folder."""
    regions: dict[int, list[int]] = {}
    if not folder.is_dir():
        raise ValueError(f"records: there is no folder {folder}")
    with os.scandir(folder) as entries:
        for entry in entries:
            if name := re.fullmatch(r"([1-9]\d*)_(0|[1-9]\d*)\.json", entry.name, re.ASCII):
                regions.setdefault(int(name[1]), []).append(int(name[2]))
    if not regions:
        raise ValueError(f"{folder} has no record, <image>_<region>.json")
    return {image: sorted(numbers) for image, numbers in regions.items()}


def _read_record(path: Path, image: int) -> tuple[list[float], list[str]]:
    """The box `[x1, y1, x2, y2]` and the expressions of a region; Unusable where they cannot be read."""
    try:
        record = read_json(path)
    except ValueError as error:
        raise Unusable("that are no JSON, or were cut off") from error
    unusable_if(not isinstance(record, dict), "that are no JSON object")
    unusable_if(record.get("img_id") != f"{image}.jpg", "that name another image (img_id) than their file does")
    box = read_box(record.get("bbox"))
    unusable_if(box is None, "without a box of four numbers (bbox)")
    expressions = record.get("query")
    is_list = isinstance(expressions, list) and all(isinstance(expression, str) for expression in expressions)
    unusable_if(not is_list, "without a list of expressions (query)")
    return box, expressions
