"""The base of all builders: reads images safely, counts what is dropped, splits the work into jobs.

A builder streams *jobs*, lists of raw records that make one Parquet file each, and turns a job into rows. Nothing else
is held in memory, jobs run in any number of processes, and what comes out does not depend on that number.
"""

import copy
import hashlib
import io
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import datasets
import numpy as np
from PIL import ExifTags, Image

from .features import FEATURES, BuildReport, PhraseFields, make_image_id, make_row, plain_name, why_not_storable
from .options import AnnotationOptions

# What images are stored as. Pillow knows more kinds, of which some start other programs (EPS does) and few are tested.
IMAGE_FORMATS = ["AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]
IMAGE_SUFFIXES = {"avif", "bmp", "gif", "jfif", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp"}
MAX_PIXELS = 2**26  # an image of a few bytes may say that it is larger than memory
# What Pillow raises for files that are no image, are cut off or are too large to be meant seriously.
UNREADABLE = OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError
TURNED = range(5, 9)  # of EXIF orientations, those by which width and height change places
_HIDDEN_FOLDERS = ".", "__"  # how they begin: of notebooks, of macOS
_ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]+://")
_OUTSIDE = re.compile(r"/|\.\./|[A-Za-z]:/")  # paths that lead out of a folder, the last of Windows
MOSTLY_OUTSIDE = "box that is mostly outside of the image"
_FARTHEST = 1e9  # pixels; products of what is farther may be beyond floats
_WIDEST = 1e6  # pixels, more than any image has: nothing else keeps infinity out where the size is not known
_NUM_DECIDING = 256  # boxes by which their scale is told
_CHANCE = 2**-16  # below which boxes of another scale are none that happen to be in a part of their images
_SIZEABLE = 0.25  # a share of the boxes that chance does not explain
_LONGEST_NAME = 4096  # with folders, on Linux; others take less
# A photo's versions by Roboflow, `img07_jpg.rf.<hash>.jpg` of img07.jpg, and what COCO's names of 2014 begin with.
_VERSION = re.compile(r"(.+?)(?:[._](jpe?g|png|webp|bmp|tiff?))?\.rf\.[\w-]+\.\w+", re.IGNORECASE)
UPLOADED = re.compile("[0-9a-f]{8}-")  # what Label Studio puts before the names of uploads
_COCO_2014 = re.compile(r"COCO_[a-z]+2014_(?=\d{12}\.)")
# Word of a file's or folder's name, in lower case → the split that it names.
SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
SPLITS |= {"test": "test", "testing": "test", "testa": "testA", "testb": "testB", "testc": "testC", "miniv": "miniv"}
_FOLDER = re.compile(r"(?:(?:images|labels|annotations)[_-])?([a-z]+?)(?:\d{4})?(?:[_-](?:images|labels|annotations))?")


class Unusable(Exception):
    """Why a record cannot be used; its text is the reason that it is counted under, `detail` goes with its name."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.detail = detail


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
        split = getattr(self, "split", None)  # of builders that are told it
        if split is not None and not re.fullmatch(r"(?!all$)\w+(\.\w+)*", split):
            raise ValueError(f"split: {split!r} is no name of a split: letters, digits, _ and single dots, but not all")
        for name in ("data_dir", "images_dir"):
            folder = getattr(self, name)
            if folder is not None and not Path(folder).is_dir():
                raise ValueError(f"{name}: there is no folder {folder}")


@dataclass
class DrawnSplitsConfig(AnnotationConfig):
    """As `AnnotationConfig`, with a share of the images for validation."""

    validation_fraction: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be at least 0 and below 1, got {self.validation_fraction}")


class LoadedImage(NamedTuple):
    """An image as an `Image()` feature stores it, byte for byte, and its (width, height); None in a build without."""

    stored: dict[str, Any] | None
    size: tuple[int, int] | None


class SourceImage(NamedTuple):
    """What a record says of its image."""

    files: Sequence[str]  # what its file may be called; the first that is there is taken
    record: str  # what the image is called in messages
    content: Any  # what `phrases` makes the rows of
    lost: dict[str, int]  # what is lost with the image, and how many; {} in a name stands for the reason
    size: tuple[int, int] | None = None  # (width, height) in pixels
    name: str | None = None  # in its id; none: the first of the files
    near: str = ""  # path of its annotations in the data folder; a folder's ends in /


class GroundingBuilder(datasets.GeneratorBasedBuilder):
    """Base of the builders. A subclass reads records, one an image (`images`), and makes rows of each (`phrases`).

    Its objects are copied to worker processes, each of which fills a `report` of its own.
    """

    source = ""  # where the data is from, for the data card
    license_name = ""  # on the Hub, where the source states one
    images_per_job = 500
    splits: Any = None  # what a subclass keeps of the splits to make jobs of; not copied to worker processes

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.report = BuildReport()
        self._moved: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "splits": None}

    def _info(self) -> datasets.DatasetInfo:
        description = sys.modules[type(self).__module__].__doc__ or ""
        return datasets.DatasetInfo(description=description, features=FEATURES, license=self.license_name)

    # What a subclass has

    def split_names(self) -> list[str]:
        """The splits that the source has; what all of them need is read here."""
        raise NotImplementedError

    def images(self, split: str) -> Iterable[Any]:
        """Streams a split's records, one an image; the same ones every time."""
        raise NotImplementedError

    def image(self, record: Any) -> SourceImage | None:
        """The image that a record is of; None where it is left out, which is counted here."""
        raise NotImplementedError

    def phrases(self, content: Any, size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        """What `make_row` gets for each phrase of an image of (width, height)."""
        raise NotImplementedError

    # What `build` calls

    def jobs(self, split: str) -> Iterator[list[Any]]:
        """A split's records in lists, of which each makes a file."""
        records = iter(self.images(split))
        while job := list(islice(records, self.images_per_job)):
            yield job

    def rows(self, split: str, job: list[Any]) -> Iterator[dict[str, Any]]:
        """The rows of a job, those of an image following each other; counts into `self.report`."""
        for image in filter(None, map(self.image, job)):
            try:
                loaded = self.load_image(self.find_image(image.files, image.near), image.size)
            except Unusable as reason:
                self.drop(str(reason), image.record + reason.detail)
                self.lose(image.lost, str(reason))
                continue
            self.report.kept["images"] += 1
            image_id = self.image_id(image.name or image.files[0], loaded)
            for fields in self.phrases(image.content, loaded.size):
                yield make_row(loaded.stored, image_id, **fields)

    def storable_rows(self, split: str, job: list[Any]) -> Iterator[dict[str, Any]]:
        """`rows` without those that no file can hold; these are dropped, after `rows` counted what it made them of."""
        for row in self.rows(split, job):
            if reason := why_not_storable(row):
                self.drop(f"rows: {reason}", f"phrase {row['phrase']!r:.80} of {row['image_id']!r:.80}")
            else:
                yield row

    # As a loading script: `build` needs none of these three. datasets 3 finds those modules alone that a script imports
    # itself, so that each imports all that it needs, `features` and `options` too.

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

    def file_splits(self, files: Sequence[str]) -> list[str | None]:
        """The splits of annotation files, by their paths in the data folder; where none names one, they are drawn.

        Beside a file that names one, those that name none are train's, which is counted.
        """
        splits = [self.config.split or file_split(file) for file in files]
        if not any(splits):
            return splits
        for file in (file for file, split in zip(files, splits) if split is None):
            self.report.kept[f"files that no split is named for, in train: {file}"] += 1
        return [split or "train" for split in splits]

    def drop(self, reason: str, record: str, count: int = 1) -> None:
        """Counts records that cannot be used; in strict mode raises a ValueError that names the record."""
        if self.config.strict:
            raise ValueError(f"{record}: {reason}")
        self.report.add({}, {reason: count}, {reason: [record]})

    def dropping(self, what: str, record: str, count: int = 1) -> "_Dropping":
        """A block that ends at the first thing that is Unusable, which is counted as `<what>: <reason>`."""
        return _Dropping(self, what, record, count)

    def lose(self, lost: dict[str, int], reason: str = "") -> None:
        """Counts what is lost with something that is dropped for a reason."""
        for what, count in lost.items():
            if count:
                self.report.dropped[what.format(reason)] += count

    def name_in_id(self, name: str) -> str:
        """What an image's id calls it, by its name in the source: without a folder of this machine."""
        name = plain_name(name)
        if name.startswith("/") and self.config.images_dir:
            root = os.path.abspath(self.config.images_dir)
            name = os.path.relpath(name, root) if Path(name).is_relative_to(root) else name
        return name.rpartition("/")[2] if _OUTSIDE.match(name) else name

    def image_id(self, name: str, image: LoadedImage) -> str:
        """The id of an image by its name in the source, marked by its bytes or, without these, by where it is."""
        if image.stored:
            return make_image_id(self.name, self.name_in_id(name), image.stored["bytes"])
        place = os.path.join(os.path.abspath(self.config.data_dir), plain_name(name))
        return make_image_id(self.name, self.name_in_id(name), place.encode(errors="surrogatepass"))

    @cached_property
    def image_files(self) -> "ImageFiles":
        return ImageFiles(self.config.images_dir)

    def find_image(self, files: Sequence[str], near: str = "") -> str:
        """Where in `images_dir` an image is (`ImageFiles.find`); its first name where it is not, or without images."""
        return (self.config.images_dir and self.image_files.find(files, near)) or files[0]

    def image_key(self, files: Sequence[str], near: str, *otherwise: str) -> tuple[str, ...]:
        """Where an image is, by whichever name that is found; `otherwise` where it is not, or without images."""
        with suppress(Unusable):
            if self.config.images_dir and (place := self.image_files.find(files, near)):
                return (place,)
        return otherwise

    def load_image(self, path: str, size: tuple[int, int] | None = None) -> LoadedImage:
        """An image, with the size that it has when it is turned upright; without images, None and the size given.

        Args:
            path: in `images_dir`.
            size: (width, height) in pixels that the annotations say it has.

        Raises:
            Unusable: it is missing, outside `images_dir`, not readable to its end, or of another size.
        """
        if self.config.images_dir is None:
            return LoadedImage(None, size)
        data = read_inside(Path(self.config.images_dir), path)
        try:
            with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
                unusable_if(image.width * image.height > MAX_PIXELS, "images: have more pixels than are read")
                image.load()  # to its end; then a TIFF file is turned already, and others are not
                found = image.size[::-1] if is_turned(image) else image.size
        except UNREADABLE as error:
            raise Unusable("images: cannot be decoded") from error
        unusable_if(size not in (None, found), "images: have another size than their record says")
        return LoadedImage({"bytes": data, "path": None}, found)

    def twin(self) -> Any:
        """One to look ahead with, who counts nothing here and stops at nothing."""
        twin = copy.copy(self)
        twin.report, twin.config, twin.image_files = BuildReport(), copy.copy(self.config), self.image_files
        twin.config.strict = False
        return twin

    def cut_boxes(
        self, boxes: Iterable[list[float] | Unusable | None], size: tuple[int, int] | None, record: str
    ) -> list[list[float]]:
        """All boxes of a phrase, `[x1, y1, x2, y2]` in pixels, cut to an image of (width, height).

        Args:
            boxes: None where there are no four numbers, Unusable where it says why.

        Raises:
            Unusable: none is of use, or one is lost, so that the others are not all that the phrase means.
        """
        kept: list[list[float]] = []
        lost = 0
        is_whole = True
        for box in boxes:
            try:
                if isinstance(box, Unusable):
                    raise box
                unusable_if(box is None or max(map(abs, box)) >= _WIDEST, "not four numbers of pixels")
                cut = clip_box(box, size)
            except Unusable as reason:
                self.drop(f"boxes: {reason}", record)
                lost += 1
                is_whole = is_whole and isinstance(reason, OutsideImage)
                continue
            if cut != box:
                self.report.kept["boxes over the edge of the image, cut"] += 1
            kept.append(cut)
        unusable_if(lost and not kept, "none of their boxes is of use")
        unusable_if(not is_whole, "one of their boxes is lost")
        return kept

    def check_scale(self, file: str, boxes: Iterable[tuple[Sequence[float], Sequence[float]]]) -> None:
        """As the function `check_scale`, unless somebody has said that boxes are in pixels.

        Args:
            boxes: corners, and (width, height) of their image.
        """
        if not self.config.in_pixels:
            corners_and_sizes = np.array([[*corners, *size] for corners, size in boxes], float).reshape(-1, 6)
            check_scale(file, corners_and_sizes[:, :4], corners_and_sizes[:, 4:])

    def drawn_split(self, key: str) -> str:
        """train or validation, by a hash of the key alone: an image stays where it is when others come or go.

        Args:
            key: the image's name, of which its folders do not count.
        """
        key = _drawn_name(key)
        return self._moved.get(key) or ("validation" if _draw(key) < self.config.validation_fraction else "train")

    def draw_splits(self, images: Iterable[tuple[str, Any]]) -> None:
        """Sees to it that train and validation both have a row, which of a few images chance may leave one without.

        Then validation gets the image whose draw is the lowest, train the one whose draw is the highest; a single image
        is train's. Images without a row do not count.

        Args:
            images: (name, record); read until both splits are seen to have a row.
        """
        self._moved, fraction = {}, self.config.validation_fraction
        if not fraction:
            return
        twin = self.twin()
        lowest = highest = None  # (draw, key), of those that have a row
        for name, record in images:
            key = _drawn_name(name)
            draw = _draw(key), key
            if lowest is not None and lowest < draw < highest:
                continue
            if next(twin.storable_rows("train", [record]), None) is None:
                continue
            lowest, highest = min(lowest or draw, draw), max(highest or draw, draw)
            if lowest[0] < fraction <= highest[0]:
                return
        if lowest is not None and highest[0] < fraction:
            self._moved = {highest[1]: "train"}
        elif lowest != highest:
            self._moved = {lowest[1]: "validation"}
        for split in self._moved.values():
            self.report.kept[f"images moved to {split}, for which none was drawn"] += 1


class _Dropping:
    """Not by `contextlib`, which takes four times as long: there is one for each region of Visual Genome."""

    __slots__ = "builder", "count", "record", "what"

    def __init__(self, builder: GroundingBuilder, what: str, record: str, count: int):
        self.builder, self.what, self.record, self.count = builder, what, record, count

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if isinstance(error, Unusable):
            self.builder.drop(f"{self.what}: {error}", self.record, self.count)
        return isinstance(error, Unusable)


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF or XMP says that width and height change places; where neither can be read, it does not."""
    with suppress(Exception):  # Pillow trusts the numbers there, and fails by whatever they lead it to
        return image.getexif().get(ExifTags.Base.Orientation) in TURNED
    return False


class ImageFiles:
    """The files of a folder and those below, found by what annotations call them."""

    def __init__(self, folder: str):
        self.folder = folder

    @cached_property
    def _places(self) -> dict[str, list[str]]:
        places: dict[str, list[str]] = {}
        for place in walk(self.folder):
            places.setdefault(_key(place), []).append(place)
        return places

    @cached_property
    def _cleaned(self) -> dict[str, list[str]]:
        """The files that servers call otherwise once they have them: blanks become _, all but letters, - _ . goes."""
        places: dict[str, list[str]] = {}
        for place in chain.from_iterable(self._places.values()):
            name = _folded(place.rpartition("/")[2])
            if (cleaned := _as_cleaned(name)) != name:
                places.setdefault(f"/{cleaned}", []).append(place)
        return places

    @cached_property
    def _splits(self) -> set[str | None]:
        """Those that folders are named for."""
        folders = {place.rpartition("/")[0] for places in self._places.values() for place in places}
        return {folder_split(f"{folder}/") for folder in folders}

    def find(self, names: Iterable[str], near: str = "") -> str | None:
        """Where a file is that has one of the names, the first that any has: at this path, or the nearest that ends so.

        A name may be without its suffix, in another case or form of Unicode, percent-encoded, or as servers clean it.
        Of an upload, called `<8 digits>-<name>` as well, nobody knows whether its name was cleaned.
        Where the folder of the annotations is named for a split, or their file is and there is such a folder, one of
        another split has other images, unless the name is of that split itself.

        Args:
            near: path of the annotations, from whose folder a name may be, too; a folder's ends in /.

        Raises:
            Unusable: several are as near.
        """
        folder, several, given = near[: near.rfind("/") + 1], [], [*names]
        names = dict.fromkeys(map(plain_name, [*given, *map(unquote, given)]))
        for name in names:
            is_upload = any(UPLOADED.match(each) and each[9:] == name for each in names)
            for place in (plain_name(folder + name), name):
                # By a bare name the file in the folder of the images is but one of those that may be meant.
                is_path = "/" in place and not _OUTSIDE.match(place)
                if is_path and not is_upload and os.path.isfile(os.path.join(self.folder, place)):
                    return place
            end = f"/{_folded(name)}"
            # What seems to be its suffix may be a part of its stem: `a.tif` of `a.tif.jpg`.
            keys = dict.fromkeys((_key(name), end.rpartition("/")[2]))
            places = chain.from_iterable(self._places.get(key, ()) for key in keys)
            found = [place for place in places if _ends_in(f"/{_folded(place)}", end)]
            found += self._cleaned.get(end, []) if is_upload or not found else []
            if found and (split := self._split_of(near)):
                found = [place for place in found if folder_split(place) in (None, split, file_split(name))]
            nearness = {place: _nearness(_as_cleaned(place) if is_upload else place, name, near) for place in found}
            found.sort(key=nearness.__getitem__, reverse=True)
            if len(found) == 1 or len({nearness[place] for place in found[:2]}) == 2:
                return found[0]
            several = several or found
        if several:
            detail = f" (is it {' or '.join(several[:2])}?)"
            raise Unusable("images: several files in images_dir are called so: leave one, or name its folder", detail)
        return None

    def _split_of(self, near: str) -> str | None:
        split = file_split(near)
        return folder_split(near) or (split if split in self._splits else None)


def _key(place: str) -> str:
    """A file's name as files are looked for: in lower case, an image's without its suffix."""
    name = _folded(place.rpartition("/")[2])
    stem, _, suffix = name.rpartition(".")
    return stem if suffix in IMAGE_SUFFIXES else name


def _as_cleaned(place: str) -> str:
    """A file's path, its name as servers clean it."""
    folder, slash, name = place.rpartition("/")
    return folder + slash + re.sub(r"[^-\w.]", "", name.replace(" ", "_"))


def _folded(name: str) -> str:
    """In lower case and one form of Unicode: macOS parts letters from their accents."""
    return unicodedata.normalize("NFC", name).lower()


def _ends_in(place: str, end: str) -> bool:
    return place.endswith(end) or place.rpartition(".")[0].endswith(end)


def _nearness(place: str, name: str, near: str) -> tuple[bool, int, bool, int]:
    """How near a file of this name is to annotations: by its case, by its folders, by how deep it is in others."""
    folders, words = set(place.lower().split("/")[:-1]), _words(near)
    is_of_split = folder_split(place) == file_split(near) is not None
    depth = place.count("/")
    return place.endswith(name), len(folders & words) + is_of_split, not folders.isdisjoint(("images", "data")), -depth


@lru_cache(1024)
def _words(near: str) -> frozenset[str]:
    """What folders of images are called that lie beside annotations, or that their file's name ends or begins with.

    `train2017` is of `instances_train2017.json`.
    """
    *folders, name = near.lower().split("/")
    parts = name.rpartition(".")[0].split("_")
    runs = ("_".join(parts[i : j + 1]) for i in range(len(parts)) for j in range(i, len(parts)))
    return frozenset([*folders, *runs])


@lru_cache(4096)
def folder_split(path: str) -> str | None:
    """The split that a folder on the path of a file is named for: `train/a.xml`, `labels/val2017/a.txt`."""
    for folder in reversed(path.replace("\\", "/").lower().split("/")[:-1]):
        if (found := _FOLDER.fullmatch(folder)) and found[1] in SPLITS:
            return SPLITS[found[1]]
    return None


@lru_cache(4096)
def file_split(path: str) -> str | None:
    """The split that a file of a whole split, or a folder on its path, is named for: `instances_val2017.json`.

    Of several test splits each has its own: `instances_test_unseen.json` is of test_unseen.
    """
    name = path.replace("\\", "/").rpartition("/")[2].lower()
    if several := re.fullmatch(r"instances_(test_(?!dev\b)[a-z_]+)\.json", name):
        return several[1]
    named = {SPLITS[word] for word in re.findall("[a-z]+", name.rpartition(".")[0] or name) if word in SPLITS}
    return named.pop() if len(named) == 1 else folder_split(path)


def joined(near: str, name: str) -> str:
    """What an image that annotations at a path in the data folder call by a name is called in its id."""
    name, folder = plain_name(name), "" if near.startswith("/") else near[: near.rfind("/") + 1]
    return folder + (name.rpartition("/")[2] if _OUTSIDE.match(name) else name)


def telling_ends(names: Iterable[str]) -> dict[str, str]:
    """Name → as much of its end as tells it from all others, in whole parts: of `a/1.jpg` beside `b/1.jpg` all."""
    backwards = sorted({tuple(name.split("/"))[::-1] for name in names})
    same = ([one == other for one, other in zip(*pair)] for pair in pairwise(backwards))
    common = [0, *([*each, False].index(False) for each in same), 0]
    return {"/".join(own[::-1]): "/".join(own[max(pair) :: -1]) for own, pair in zip(backwards, pairwise(common))}


def walk(folder: str) -> Iterator[str]:
    """Paths of all files in a folder and those below, in order; none that is hidden."""
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(_HIDDEN_FOLDERS))
        below = os.path.relpath(top, folder).replace(os.sep, "/")
        for name in sorted(names):
            if not name.startswith("."):
                yield name if below == "." else f"{below}/{name}"


def files_like(folder: Path, pattern: str) -> list[Path]:
    """Files by a pattern of their places below a folder, in order; none that `walk` passes over."""

    def is_passed_over(path: Path) -> bool:
        *folders, name = path.relative_to(folder).parts
        return name.startswith(".") or any(each.startswith(_HIDDEN_FOLDERS) for each in folders if each != "..")

    return sorted(path for path in folder.glob(pattern) if path.is_file() and not is_passed_over(path))


def read_inside(folder: Path, name: str) -> bytes:
    """The bytes of an image file in a folder.

    Raises:
        Unusable: `name` leads out of the folder (an absolute path, "..", a link), or is of no file that can be read.
    """
    unusable_if(_ADDRESS.match(name), "images: named by an address; download them, and name the files instead")
    root = os.path.realpath(folder)
    if "\\" in name and not os.path.isfile(os.path.join(root, name)):
        name = name.replace("\\", "/")  # as Windows writes it
    try:
        path = os.path.realpath(os.path.join(root, name)) if len(name) <= _LONGEST_NAME else None
    except ValueError:  # of a NUL or a lone surrogate
        path = None
    unusable_if(path is None, "images: their name is none that a file can have")
    if not Path(path).is_relative_to(root):
        is_link = Path(os.path.normpath(os.path.join(root, name))).is_relative_to(root)
        unusable_if(is_link, "images: links that lead out of the folder of the images: copy what they link to (cp -rL)")
        raise Unusable(
            "images: their name leads out of the folder of the images: name them as they are there (albef_json: "
            "--image_prefix)"
        )
    # Not of Path, which raises for long names and rings of links.
    unusable_if(not os.path.isfile(path), "images: neither in images_dir nor below it: give the folder that has them")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Unusable("images: cannot be read") from error


def _drawn_name(name: str) -> str:
    """What a photo is called in every export: its file's name, as it was before Roboflow made versions of it."""
    name = plain_name(name).rpartition("/")[2]  # posixpath's functions are slow here: datasets replaces them
    if version := _VERSION.fullmatch(name):
        name = ".".join(filter(None, version.groups()))
    return _COCO_2014.sub("", name)


def _draw(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:4], "big") / 2**32


def _area(box: list[float]) -> float:
    x1, y1, x2, y2 = (min(max(value, -_FARTHEST), _FARTHEST) for value in box)
    return (x2 - x1) * (y2 - y1)


def clip_box(box: list[float], size: tuple[int, int] | None, least: float = 0.5) -> list[float]:
    """`[x1, y1, x2, y2]` in pixels, cut to an image of (width, height); where that is unknown, to positive numbers.

    Args:
        least: the share of its area that must be in the image.

    Raises:
        OutsideImage: it lies beside the image.
        Unusable: it has no area at all, or too little in the image, so that nobody knows whether the image shows what
            it was to surround; or it is in shares of the image.
    """
    width, height = size or (float("inf"), float("inf"))
    x1, y1, x2, y2 = box
    unusable_if(min(box) >= -1 and max(box) <= 1 and any(value % 1 for value in box), "box in shares of the image")
    cut = [max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)]
    if not (cut[2] > cut[0] and cut[3] > cut[1]):
        raise (OutsideImage if x2 > x1 and y2 > y1 else Unusable)("box without area in the image")
    unusable_if(cut != box and _area(cut) < least * _area(box), MOSTLY_OUTSIDE)
    return cut


def check_scale(file: str, corners: np.ndarray, sizes: np.ndarray) -> None:
    """ValueError: boxes are counted to 100 or 1000 in images of any size, as far as some of them tell.

    Args:
        corners: `(num_boxes, 4)`.
        sizes: `(num_boxes, 2)`, width and height of their images, 0 where they are not known.
    """
    known = np.flatnonzero((sizes > 0).all(axis=1) & np.isfinite(corners).all(axis=1))
    chosen = known[:: len(known) // _NUM_DECIDING + 1]
    if scale := seeming_scale(corners[chosen], sizes[chosen]):
        first = [round(value, 4) for value in corners[chosen[0]].tolist()]
        raise ValueError(
            f"{file}: boxes seem to be counted to {scale} in images of any size: none goes beyond; the corners of the "
            f"first are {first}. Make pixels of them, or, if that is what they are, say --in_pixels"
        )


def seeming_scale(corners: np.ndarray, sizes: np.ndarray) -> int | None:
    """100 or 1000, where boxes end there and not beyond, though so many would, mirrored in their images, that it is no
    chance: photos are as likely as their mirror images, so it is one of two for each of these boxes."""
    starts, ends, sides = np.hsplit(np.unique(np.hstack([corners, sizes]), axis=0), 3)
    for scale in (100, 1000):
        num_beyond = (starts < sides - scale).any(axis=1).sum()
        if 0.75 * scale < ends.max(initial=0) <= 1.005 * scale and 0.5**num_beyond <= _CHANCE:
            return scale
    return None


def check_corners(file: str, boxes: Iterable[tuple[str, list[float] | None]], what: str) -> None:
    """Raises a ValueError where too many boxes are none of corners in pixels for chance to explain it.

    Args:
        boxes: each with its record's name; None, which is no box of any format, is passed over.
        what: is expected to be corners, as in "bbox is".
    """
    count, wrong = 0, []
    for record, box in boxes:
        if box is None:
            continue
        count += 1
        try:
            unusable_if(max(map(abs, box)) <= 1, "box in shares of the image")  # of the whole image, too
            clip_box(box, None)
        except OutsideImage:
            continue
        except Unusable as reason:
            wrong.append(f"{record}, {box!s:.80}: {reason}")
    if len(wrong) > _SIZEABLE * count:
        raise ValueError(
            f"{file}: {len(wrong):,} of {count:,} boxes are none ({'; '.join(wrong[:3])}): {what} expected to be "
            "[x1, y1, x2, y2] in pixels, not [x, y, width, height], nor in shares of the image"
        )
