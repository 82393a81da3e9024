"""The base of all builders: reads images safely, counts what is dropped, splits the work into jobs.

A builder streams *jobs*, lists of raw records that make one Parquet file each, and turns a job into rows. Nothing else
is held in memory, jobs run in any number of processes, and what comes out does not depend on that number.
"""

import copy
import hashlib
import io
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from PIL import Image, ImageOps

from .features import FEATURES, BuildReport, make_image_id, why_not_storable
from .options import AnnotationOptions

# What images are stored as. Pillow knows more kinds, of which some start other programs (EPS does) and few are tested.
IMAGE_FORMATS = ["AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]
MAX_PIXELS = 2**26  # an image of a few bytes may say that it is larger than memory
# What Pillow raises for files that are no image, are cut off or are too large to be meant seriously.
UNREADABLE = OSError, ValueError, SyntaxError, Image.DecompressionBombError
_LONGEST_NAME = 4096  # with folders, on Linux; others take less


class Unusable(Exception):
    """Why a record cannot be used; its text is the reason that it is counted under."""


class OutsideImage(Unusable):
    """A box that has area, but none in the image: of an object that the image does not show."""


def unusable_if(bad: Any, reason: str) -> None:
    """Raises Unusable for the reason."""
    if bad:
        raise Unusable(reason)


@dataclass
class AnnotationConfig(AnnotationOptions, datasets.BuilderConfig):
    """The options of a builder of annotations, checked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data_dir:
            raise ValueError(f"{type(self).__name__} needs data_dir, the folder that holds the annotations")
        for name in ("data_dir", "images_dir"):
            folder = getattr(self, name)
            if folder is not None and not Path(folder).is_dir():
                raise ValueError(f"{name}: there is no folder {folder}")


class LoadedImage(NamedTuple):
    """An image as an `Image()` feature stores it, byte for byte, and its (width, height); None in a build without."""

    stored: dict[str, Any] | None
    size: tuple[int, int] | None


class GroundingBuilder(datasets.GeneratorBasedBuilder):
    """Base of the builders. A subclass says which splits there are, streams their jobs, and turns a job into rows.

    Its objects are copied to worker processes, each of which fills a `report` of its own.
    """

    builder_name = ""  # in `options.BUILDERS`
    source = ""  # where the data is from, for the data card
    license_name = ""  # on the Hub, where the source states one
    images_per_job = 500
    splits: Any = None  # what a subclass keeps of the splits to make jobs of; not copied to worker processes

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.report = BuildReport()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "splits": None}

    def _info(self) -> datasets.DatasetInfo:
        description = sys.modules[type(self).__module__].__doc__ or ""
        return datasets.DatasetInfo(description=description, features=FEATURES, license=self.license_name)

    def split_names(self) -> list[str]:
        """The splits that the source has; what all of them need is read here."""
        raise NotImplementedError

    def jobs(self, split: str) -> Iterator[list[Any]]:
        """Streams a split's raw records in lists, each of whole images; the same lists every time."""
        raise NotImplementedError

    def rows(self, split: str, job: list[Any]) -> Iterator[dict[str, Any]]:
        """The rows of a job, those of an image following each other; counts into `self.report`."""
        raise NotImplementedError

    def storable_rows(self, split: str, job: list[Any]) -> Iterator[dict[str, Any]]:
        """`rows` without those that no file can hold; these are dropped, after `rows` counted what it made them of."""
        for row in self.rows(split, job):
            if reason := why_not_storable(row):
                self.drop(f"rows: {reason}", f"phrase {row['phrase']!r:.80} of {row['image_id']!r:.80}")
            else:
                yield row

    # As a loading script: `build` needs none of these three.

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        super().download_and_prepare(*args, **kwargs)
        if self.report.dropped:
            logging.getLogger(__name__).warning("%s\n%s", self.dataset_name, self.report)

    def _split_generators(self, dl_manager: datasets.DownloadManager | None) -> list[datasets.SplitGenerator]:
        """Those of all splits that have a row: `datasets` can read no empty one, and then not the others either."""
        names = self.split_names()
        counted = copy.deepcopy(self.report)
        full = [split for split in names if next(self._generate_examples(split), None) is not None]
        if not full:
            raise ValueError(f"{self.dataset_name}: not one row came out\n{self.report}")
        self.report = counted  # without what the look at the splits counted
        return [datasets.SplitGenerator(name=split, gen_kwargs={"split": split}) for split in full]

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        rows = (row for job in self.jobs(split) for row in self.storable_rows(split, job))
        return ((f"{split}-{number}", row) for number, row in enumerate(rows))

    # For subclasses

    def drop(self, reason: str, record: str, count: int = 1) -> None:
        """Counts records that cannot be used.

        Raises:
            ValueError: in strict mode; it names the record.
        """
        if self.config.strict:
            raise ValueError(f"{record}: {reason}")
        self.report.add({}, {reason: count}, {reason: [record]})

    def image_id(self, name: str, image: LoadedImage) -> str:
        """The id of an image by its name in the source, as of `features.make_image_id`."""
        folder = os.path.basename(os.path.abspath(self.config.data_dir))
        return make_image_id(self.builder_name, name, image.stored and image.stored["bytes"], folder)

    def load_image(self, name: str, size: tuple[int, int] | None = None) -> LoadedImage:
        """An image, with the size that it has when it is turned upright; without images, None and the size given.

        Args:
            name: its path in `images_dir`.
            size: (width, height) in pixels that the annotations say it has.

        Raises:
            Unusable: it is missing, outside `images_dir`, not readable to its end, or of another size.
        """
        if self.config.images_dir is None:
            return LoadedImage(None, size)
        data = read_inside(Path(self.config.images_dir), name)
        try:
            with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                unusable_if(image.width * image.height > MAX_PIXELS, "images: have more pixels than are read")
                # Of the header alone it cannot be told: a TIFF file's size is turned already, that of others is not.
                found = ImageOps.exif_transpose(image).size
        except UNREADABLE as error:
            raise Unusable("images: cannot be decoded") from error
        unusable_if(size not in (None, found), "images: have another size than their record says")
        return LoadedImage({"bytes": data, "path": None}, found)

    def usable_image(
        self, name: str, record: str, lost: str, count: int, size: tuple[int, int] | None = None
    ) -> LoadedImage | None:
        """As `load_image`; None where it cannot be used, which is counted, as are `count` of what is `lost` with it."""
        try:
            image = self.load_image(name, size)
        except Unusable as reason:
            self.drop(str(reason), record)
            self.report.dropped[lost] += count
            return None
        self.report.kept["images"] += 1
        return image

    def moved_images(self, images: Iterable[tuple[str, Any]], validation_fraction: float) -> dict[str, str]:
        """Id → split of the image that goes elsewhere than `split_of` says, so that train and validation have a row.

        Of a few images chance may leave one of the two without any. Then validation gets the image whose draw is the
        lowest, train the one whose draw is the highest; a single image is train's. Images without a row do not count.

        Args:
            images: (id, what a job holds of it); read until both splits are seen to have a row.
        """
        if not validation_fraction:
            return {}
        twin = copy.copy(self)
        twin.report, twin.config = BuildReport(), copy.copy(self.config)  # a look counts nothing and stops at nothing
        twin.config.strict = False
        lowest = highest = None  # (draw, id), of those that have a row
        for image_id, record in images:
            draw = _draw(image_id), image_id
            if lowest is not None and lowest < draw < highest:
                continue
            if next(twin.storable_rows("train", [record]), None) is None:
                continue
            lowest, highest = min(lowest or draw, draw), max(highest or draw, draw)
            if lowest[0] < validation_fraction <= highest[0]:
                return {}
        if lowest is None:
            return {}
        if highest[0] < validation_fraction:
            return {highest[1]: "train"}
        return {} if lowest == highest else {lowest[1]: "validation"}


def read_inside(folder: Path, name: str) -> bytes:
    """The bytes of an image file in a folder.

    Raises:
        Unusable: `name` leads out of the folder (an absolute path, "..", a link), or is of no file that can be read.
    """
    root = os.path.realpath(folder)
    try:
        path = os.path.realpath(os.path.join(root, name)) if len(name) <= _LONGEST_NAME else None
    except ValueError:  # of a NUL or a lone surrogate
        path = None
    unusable_if(path is None, "images: their name is none that a file can have")
    unusable_if(not Path(path).is_relative_to(root), "images: their name leads out of the folder of the images")
    # Not of Path, which raises for long names and rings of links.
    unusable_if(not os.path.isfile(path), "images: not in the folder of the images")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Unusable("images: cannot be read") from error


def chunked(records: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` records, the last one shorter."""
    records = iter(records)
    while chunk := list(islice(records, size)):
        yield chunk


def check_fraction(validation_fraction: float) -> None:
    """Raises a ValueError for what is no share of the images."""
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, got {validation_fraction}")


def split_of(image_id: str, validation_fraction: float) -> str:
    """train or validation, by the id alone: an image stays where it is when others come or go."""
    return "validation" if _draw(image_id) < validation_fraction else "train"


def _draw(image_id: str) -> float:
    return int.from_bytes(hashlib.sha256(image_id.encode(errors="surrogatepass")).digest()[:4]) / 2**32


def clip_box(box: list[float], size: tuple[int, int] | None) -> list[float]:
    """`[x1, y1, x2, y2]` in pixels, cut to an image of (width, height); where that is unknown, to positive numbers.

    Raises:
        OutsideImage: it lies beside the image.
        Unusable: it has no area at all, so that nobody knows what it was to surround.
    """
    width, height = size or (float("inf"), float("inf"))
    x1, y1, x2, y2 = box
    cut = [max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)]
    if not (cut[2] > cut[0] and cut[3] > cut[1]):
        raise (OutsideImage if x2 > x1 and y2 > y1 else Unusable)("box without area in the image")
    return cut
