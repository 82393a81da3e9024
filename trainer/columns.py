"""Which columns of a data set hold what, and in which units: as told, as its card says, or as can be guessed.

A data set names its columns as it likes, nests them (`objects.bbox`), has one box a row, or a label for each box. Its
rows become rows of our columns, see `splits.COLUMNS`. What is guessed is said in a line; what is in doubt is an error
that lists the columns and proposes the option.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from datasets import (
    Array2D,
    ClassLabel,
    Dataset,
    Features,
    Image,
    IterableDataset,
    Json,
    LargeList,
    List,
    Value,
    concatenate_datasets,
)
from datasets.features.features import FeatureType
from huggingface_hub import DatasetCard
from huggingface_hub.errors import HTTPError
from transformers.utils import logging

from .phrase_rows import OF_PHRASES, SIDES
from .regions import BOX_FORMATS, REGIONS
from .written import as_numbers, as_texts, is_list, nesting

logger = logging.get_logger(__name__)
Place = tuple[str, ...]  # the column, and names within it
Row = dict[str, Any]

# How deep the lists of each are in a row of one phrase; boxes are lists of four numbers.
DEPTHS = {"boxes": 2, "polygons": 3, "masks": 1, "scribbles": 2, "proposals": 2, "caption_span": 1, "categories": 1}
TEXTS = "phrase", "caption", "categories"
# What is no text; lists may be of texts: of these, and of paths.
TYPES = dict.fromkeys(("boxes", "polygons", "scribbles", "scribble_radius", "proposals", *SIDES), "float64")
TYPES |= {"caption_span": "int64", "absent": "bool"}
LISTS_OF_TEXTS = "phrase", "categories", "masks"
FIRST = 100  # rows that are looked at
MOST_NAMED = 30  # columns in a message
MAX_MASKS = 2**30  # bytes that are put together in memory
# What each must hold, as a user would say it.
HOLDS = {
    "image": "an image, or its path",
    "image_id": "a text or a whole number",
    **dict.fromkeys(SIDES, "a number of pixels"),
    "phrase": 'a text, or in every row a list of texts, such as ["a cat", "a dog"]',
    "caption": "a text",
    "caption_span": "two whole numbers, such as [0, 2]",
    "boxes": "four numbers a box, such as [10.5, 20, 60, 80], or a list of such boxes",
    "polygons": "a list of objects, each a list of parts [x, y, x, y, …] or of points [[x, y], …]",
    "masks": "a list of images, or of their paths",
    "scribbles": "a list of strokes [x, y, x, y, …]",
    "scribble_radius": "a number",
    "absent": "true or false",
    "proposals": "a list of boxes, each of four numbers, such as [10.5, 20, 60, 80]",
    "categories": "a list of texts",
}
# What columns are called elsewhere, as of `plain_name`. A category is a phrase only where there are regions.
IMAGE_NAMES = re.compile("image|img|picture|photo|path|file|(image|img|file)(path|name)|imagefile")
PHRASE_NAMES = re.compile("(phrase|caption|text|sent|sentence|(referring)?expression|description)s?|query")
CATEGORY_NAMES = re.compile("categor(y|ies)|(text)?labels?|class|classes|(class|category|label)name")
LISTS_OF_LABELS = re.compile(f"{CATEGORY_NAMES.pattern}|.*(labels|names|classes|categories)|tags|objects|entities")
NO_IDS = re.compile("(?!.*ids?$).*")
# Our columns that are so by this very name. In other spellings they are guessed: units of boxes are to be found out,
# and categories may be the phrases.
AS_WRITTEN = "image", "boxes", "categories"
ALSO_CALLED = {"no_target": "absent"}  # by gRefCOCO
BOX_NAMES = re.compile("(bbox|box|boundingbox)(es)?")
TURN_NAMES = re.compile("(rotation(angle)?|angle|theta)(deg(ree)?|rad(ian)?)?s?")
# Four columns of a box, and what it is, the second where the first does not fit. Where others are there, too, width and
# height are the image's.
FOUR_NAMES = {
    "x1 y1 x2 y2": ["xyxy"],
    "x0 y0 x1 y1": ["xyxy"],
    "xmin ymin xmax ymax": ["xyxy"],
    "left top right bottom": ["xyxy"],
    "x y width height": ["xywh", "cxcywh"],
    "x y w h": ["xywh", "cxcywh"],
    "left top width height": ["xywh"],
    "xcenter ycenter width height": ["cxcywh"],
    "centerx centery width height": ["cxcywh"],
    "cx cy w h": ["cxcywh"],
}
# Columns by which a published data set is known, which of them are meant, and what its boxes are.
KNOWN: list[tuple[set[str], dict[str, str], str]] = [
    (  # lmms-lab/RefCOCO and its kin; `question` is the same in every row
        {"question_id", "question", "answer", "segmentation", "bbox", "iscrowd", "file_name"},
        {"phrase": "answer", "boxes": "bbox"},
        "xywh",
    ),
    (  # jxu124/refcoco and its kin
        {"ref_id", "ann_id", "raw_anns", "raw_image_info", "image_path", "bbox", "captions"},
        {"image": "image_path", "phrase": "captions", "boxes": "bbox"},
        "xyxy",
    ),
]


@dataclass
class Columns:
    """What is known of a data set's columns and units; `open_split` adds what it finds out.

    Args:
        names: our column → theirs: a column, a place in one, such as "objects.bbox", or of `boxes` also four of them
            with commas between them, "x1,y1,x2,y2".
        box_format: of BOX_FORMATS; None until the data's card or its first boxes have decided.
        download_images: fetch images that are addresses.
        guessed_of: the columns that `box_format` was guessed of, if it was.
    """

    names: dict[str, str] = field(default_factory=dict)
    box_format: str | None = None
    download_images: bool = False
    guessed_of: str | None = None
    said: set[str] = field(default_factory=set)

    def say(self, line: str) -> None:
        """Warns once."""
        if line not in self.said:
            self.said.add(line)
            logger.warning(line)

    def read_card(self, path: str) -> None:
        """Adds what the card of a data set says (`albef_amc: {columns: …, box_format: …}` in its YAML) and nobody else.

        Raises ValueError: it is no such mapping.
        """
        found = card_data(path).get("albef_amc") or {}
        names = found.get("columns") or {} if isinstance(found, dict) else None
        if not isinstance(names, dict) or found.keys() - {"columns", "box_format"}:
            raise ValueError(
                f"README.md of {path}: albef_amc takes columns (ours: theirs) and box_format; got {found!r:.200}"
            )
        box_format = self.box_format or found.get("box_format")
        if box_format not in (None, *BOX_FORMATS):
            raise ValueError(
                f"README.md of {path}: box_format must be one of {', '.join(BOX_FORMATS)}, got {box_format!r:.80}"
            )
        self.names = {str(ours): str(theirs) for ours, theirs in names.items()} | self.names
        self.box_format = box_format


def card_data(path: str) -> dict[str, Any]:
    """The YAML of the README.md of a folder, of a file's folder or of a Hub id; empty where there is none at hand.

    Raises ValueError: a README.md on this machine has some that cannot be read.
    """
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    if not folder.exists():
        try:
            return DatasetCard.load(path).data.to_dict()
        except (HTTPError, OSError, ValueError, yaml.YAMLError):  # of the Hub, the network; what is needed is asked for
            return {}
    readme = folder / "README.md"
    text = readme.read_text("utf-8", errors="replace") if readme.is_file() else ""
    begins, _, rest = text.partition("---\n")
    try:
        data = {} if begins.strip("\ufeff") else yaml.safe_load(rest.partition("\n---")[0])
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{readme}: its YAML cannot be read: {error}") from error
    return data if isinstance(data, dict) else {}


# Which columns --------------------------------------------------------------------------------------------------------


class Leaf(NamedTuple):
    """What is at a place, and how many lists are around it."""

    depth: int
    feature: FeatureType

    @property
    def is_image(self) -> bool:
        return isinstance(self.feature, Image | dict)

    @property
    def is_text(self) -> bool:
        return isinstance(self.feature, ClassLabel) or self.is_of(pa.types.is_string, pa.types.is_large_string)

    @property
    def is_mixed(self) -> bool:
        """Whether it is values of several types, of which datasets keep the JSON."""
        return isinstance(self.feature, Json)

    @property
    def is_written(self) -> bool:
        """Whether it is text, which may stand for something else."""
        return self.is_mixed or (self.is_text and not isinstance(self.feature, ClassLabel))

    @property
    def is_number(self) -> bool:
        return not isinstance(self.feature, ClassLabel) and self.is_of(pa.types.is_integer, pa.types.is_floating)

    def is_of(self, *kinds: Any) -> bool:
        return isinstance(self.feature, Value) and any(kind(self.feature.pa_type) for kind in kinds)


class MissingColumnError(ValueError):
    """A column that somebody named is not there."""


@dataclass
class Found:
    """Where our columns are: each at one place, or a box at four.

    Args:
        guessed: those that nobody has named.
        formats: what the boxes may be: of the first group that has any that fits, the one; None: as documented.
    """

    places: dict[str, list[Place]]
    guessed: list[str]
    formats: list[list[str]] | None = None

    def __str__(self) -> str:
        return " ".join(f"{ours}={written(self.places[ours])}" for ours in self.guessed)


def find_columns(features: Features, columns: Columns, known: Collection[str], path: str, needs_regions: bool) -> Found:
    """Where our columns are: as told, by our names, or guessed.

    Args:
        known: our columns. path: of the data set, for messages.
        needs_regions: without, boxes are left out if it is in doubt which they are.

    Raises ValueError: there is no such column, or it is in doubt which is meant.
    """
    there = leaves(features)
    found = Found({}, [])
    for columns_of_it, names, box_format in KNOWN:
        if columns_of_it <= features.keys():
            found = Found({ours: [(theirs,)] for ours, theirs in names.items()}, list(names), [[box_format]])
    for ours, theirs in columns.names.items():
        if ours not in known:
            raise ValueError(f"--columns {ours}={theirs}: there is no {ours} here, only {', '.join(known)}.")
        found.places[ours] = places_of(ours, theirs, there, path)
        found.guessed = [each for each in found.guessed if each != ours]
        if ours == "boxes":
            found.formats = formats_of(found.places[ours])
    used, is_told = {place[0] for places in found.places.values() for place in places}, "phrase" in found.places
    guesses = Guesses(found, there, path)
    boxes = guesses.boxes()
    used |= {place[0] for place, *_ in boxes if place[:-1] == ("boxes",)}  # of numbers by names
    add_own(found, {name for name in features if name not in used}, known, path)
    try:
        guesses.add("boxes", [] if "boxes" in found.places else boxes)
    except ValueError as error:
        if needs_regions:
            raise
        columns.say(f"Regions are left out. {error}")
    guesses.add("phrase", [] if is_told else guesses.phrases())
    guesses.add("image", guesses.images())
    for ours, place in guesses.sides():
        found.places.setdefault(ours, [place])
    return found


def add_own(found: Found, names: Collection[str], known: Collection[str], path: str) -> None:
    """Adds those of our columns that are called as here, by the very name before others; ValueError: two others are."""
    for ours in [ours for ours in known if ours not in found.places]:
        named = [ours] if ours in names else sorted(name for name in names if own_name(name) == ours)
        if len(named) > 1:
            doubt = " or ".join(f"{ours}={name}" for name in named)
            raise ValueError(f"{path}: it is in doubt what {ours} is. Say --columns {doubt}.")
        if named:
            found.places[ours] = [(named[0],)]


@dataclass
class Guesses:
    """What columns may be by their names and kinds."""

    found: Found
    there: dict[Place, Leaf]
    path: str

    def add(self, ours: str, options: list[list[Place]]) -> None:
        """ValueError: there are several."""
        places = self.found.places
        several = [places[ours], *options] if ours in places else options
        if len(several) > 1:
            named = listed([f"{ours}={written(each)}" for each in several], " or ")
            told = [numbers_told(place) for place, *_ in several if ours == "phrase" and self.leaf(place).is_number]
            raise ValueError(" ".join([f"{self.path}: it is in doubt what {ours} is. Say --columns {named}.", *told]))
        if options:
            places[ours] = options[0]
            self.found.guessed.append(ours)
            if ours == "boxes":
                self.found.formats = formats_of(options[0])
            for other in ("caption", "categories") if ours == "phrase" else ():
                if options[0] == places.get(other):  # no caption that phrases are a part of
                    del places[other]

    def boxes(self) -> list[list[Place]]:
        options = [
            [place]
            for place, leaf in self.there.items()
            if BOX_NAMES.fullmatch(plain_name(place[-1])) and (leaf.is_written or (leaf.is_number and leaf.depth))
        ]
        for parent in dict.fromkeys(place[:-1] for place in self.there):
            places = [
                place
                for place, leaf in self.there.items()
                if place[:-1] == parent and (leaf.is_number or leaf.is_written)
            ]
            places.sort(key=lambda place: of_box(place) != plain_name(place[-1]))  # bbox_width rather than the image's
            beside = {of_box(place): place for place in places}
            fours = [names.split() for names in FOUR_NAMES if {*names.split()} <= beside.keys()]
            # Of quadrilaterals, x1 y1 … x4 y4 or x0 y0 … x3 y3, two corners are no box.
            fours = [names for names in fours if {"x1": "x3", "x0": "x2"}.get(names[0]) not in beside]
            fours = [names for names in fours if "width" not in names] or fours
            options += [[beside[name] for name in names] for names in fours]
        return options

    def phrases(self) -> list[list[Place]]:
        """Texts in the innermost of what the regions lie in that has any, and what else the boxes may be of.

        Of a text of the whole row it is in doubt that all boxes are of it, where each box has a category of its own.
        """
        own = self.found.places.get("phrase")
        regions = [self.found.places[region] for region in REGIONS if region in self.found.places]
        if not regions:
            return [] if own else self.texts(PHRASE_NAMES, ())
        home = regions[0][0][:-1]
        nests = [home[:depth] for depth in range(len(home), -1, -1)]
        named = ((self.texts(names, nest), nest) for names in (PHRASE_NAMES, CATEGORY_NAMES) for nest in nests)
        options, nest = ([own], ()) if own else next(filter(itemgetter(0), named), ([], home))
        is_caption = not own and all(plain_name(place[-1]).startswith("caption") for (place,) in options)
        is_of_all = self.is_several() and not all(map(self.is_list, options))
        others = self.labels(NO_IDS, home[: len(nest) + 1]) if nest != home else []
        others += self.labels(CATEGORY_NAMES, nest) if options and is_caption else []
        others += filter(self.is_list, self.labels(LISTS_OF_LABELS, nest)) if is_of_all else []
        found = dict.fromkeys(place for (place,) in [*([] if own else options), *others])
        return [[place] for place in found]

    def labels(self, names: re.Pattern, parent: Place) -> list[list[Place]]:
        """Texts in a parent, and lists of categories without their names."""
        numbers = [place for place in numbers_of_categories(self.there) if self.there[place].depth]
        return self.texts(names, parent) + [
            [place] for place in numbers if place[: len(parent)] == parent and (parent or not place[1:])
        ]

    def texts(self, names: re.Pattern, parent: Place) -> list[list[Place]]:
        """Those in a parent, `category.name` too, by what they are called there."""
        # What a caption or categories of a phrase would be may be the phrase.
        ours = () if "phrase" in self.found.places else ("caption", "categories") if self.is_several() else ("caption",)
        taken = [place for other, places in self.found.places.items() if other not in ours for place in places]
        return [
            [place]
            for place, leaf in self.there.items()
            if leaf.is_text
            and place[: len(parent)] == parent
            and names.fullmatch("".join(map(plain_name, place[len(parent) :])))
            and place not in taken
        ]

    def is_several(self) -> bool:
        """Whether a row may have several instances."""
        regions = [(region, self.found.places[region]) for region in REGIONS if region in self.found.places]
        single = [(place, len(places) == 1 and region != "masks") for region, places in regions for place in places]
        return any(self.leaf(place).is_written or self.leaf(place).depth > depth for place, depth in single)

    def is_list(self, option: list[Place]) -> bool:
        """Whether it is a list or, where boxes are text, has the name of one."""
        leaf, name = self.leaf(option[0]), plain_name(option[0][-1])
        is_read = any(self.leaf(place).is_written for place in self.found.places.get("boxes", []))
        return leaf.depth > 0 or bool(is_read and leaf.is_written and re.search("(?<!s)s$", name))

    def leaf(self, place: Place) -> Leaf:
        return self.there.get(place, Leaf(0, Value("null")))

    def images(self) -> list[list[Place]]:
        if "image" in self.found.places:
            return []
        taken = [place for places in self.found.places.values() for place in places]
        free = {place: leaf for place, leaf in self.there.items() if leaf.depth == 0 and place not in taken}
        named = [place for place in free if len(place) == 1 and IMAGE_NAMES.fullmatch(plain_name(place[0]))]
        kinds = pa.types.is_binary, pa.types.is_large_binary
        return (
            [[place] for place, leaf in free.items() if leaf.is_image]
            or [[place] for place in named if free[place].is_text or free[place].is_of(*kinds)]
            or [[place] for place in named if free[place].is_of(pa.types.is_integer)]  # a file may be called 1
        )

    def sides(self) -> Iterator[tuple[str, Place]]:
        """Of the image's width and height, where there are such beside those of boxes."""
        used = [place for places in self.found.places.values() for place in places]
        numbers = [place for place, leaf in self.there.items() if leaf.is_number and leaf.depth == 0]
        free = {plain_name(place[0]): place for place in numbers if len(place) == 1 and place not in used}
        for names in ("width", "height"), ("imagewidth", "imageheight"), ("imgwidth", "imgheight"):
            if free.keys() >= {*names} and all(len(place) == 1 for place in self.found.places.get("image", [])):
                yield from zip(SIDES, map(free.get, names))


def leaves(features: Features | dict[str, FeatureType]) -> dict[Place, Leaf]:
    """All places of a data set."""
    found: dict[Place, Leaf] = {}
    for name, feature in features.items():
        depth = 0
        while isinstance(feature, List | LargeList):
            feature, depth = feature.feature, depth + 1
        if isinstance(feature, Array2D):
            feature, depth = Value(feature.dtype), depth + 2
        if isinstance(feature, dict) and feature.keys() != {"bytes", "path"}:  # of undecoded images
            for place, leaf in leaves(feature).items():
                found[(name, *place)] = Leaf(depth + leaf.depth, leaf.feature)
        else:
            found[(name,)] = Leaf(depth, feature)
    return found


def numbers_of_categories(there: dict[Place, Leaf]) -> list[Place]:
    """Categories whose names are not there."""
    numbers = [place for place, leaf in there.items() if leaf.is_number]
    return [place for place in numbers if CATEGORY_NAMES.fullmatch(re.sub("ids?$", "", plain_name(place[-1])))]


def is_category(place: Place) -> bool:
    """Whether what is there is called one, by the names around it, too: `category.name`."""
    names = [*map(plain_name, place)]
    return any(CATEGORY_NAMES.fullmatch("".join(names[first:])) for first in range(len(names)))


def numbers_told(place: Place) -> str:
    return f"{written([place])} has numbers: for phrases, write the categories' names there."


def places_of(ours: str, theirs: str, there: dict[Place, Leaf], path: str) -> list[Place]:
    """What is called so; ValueError: nothing is."""
    by_name = {".".join(place): place for place in there}
    parts = [theirs] if theirs in by_name else theirs.split(",")
    if missing := [part for part in parts if part not in by_name]:
        raise MissingColumnError(f"{path} has no column {', '.join(missing)}; it has {listed(list(by_name))}.")
    if len(parts) not in ((1, 4) if ours == "boxes" else (1,)):
        raise ValueError(f"--columns {ours}={theirs}: a column is one, a box also four.")
    return [by_name[part] for part in parts]


def formats_of(boxes: list[Place]) -> list[list[str]] | None:
    """What the boxes at these places may be, see `Found`."""
    if boxes == [("boxes",)]:
        return None
    names = " ".join(map(of_box, boxes))
    return [[each, f"{each}_normalized"] for each in FOUR_NAMES.get(names, [])] or [[*BOX_FORMATS]]


def plain_name(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def own_name(name: str) -> str:
    """A name as one of ours, in whatever case and with blanks around it; of AS_WRITTEN only as it is."""
    plain = name.strip().lower()
    return name if plain in AS_WRITTEN else ALSO_CALLED.get(plain, plain)


def of_box(place: Place) -> str:
    """What a column of a box is called, without the box."""
    return re.sub("^b?box(?=.)", "", plain_name(place[-1]))


def written(places: list[Place]) -> str:
    return ",".join(".".join(place) for place in places)


def listed(names: list[str], between: str = ", ") -> str:
    """Names in a message, of many the first."""
    more = f" … ({len(names):,} in all)" if len(names) > MOST_NAMED else ""
    return between.join(names[:MOST_NAMED]) + more


def widened(feature: FeatureType, place: Place) -> FeatureType:
    """The same, with the whole numbers at a place as floating point numbers, which other rows may have."""
    if isinstance(feature, List | LargeList):
        inner = widened(feature.feature, place)
        return LargeList(inner) if isinstance(feature, LargeList) else List(inner, length=feature.length)
    if isinstance(feature, dict) and place:
        return {name: widened(each, place[1:]) if name == place[0] else each for name, each in feature.items()}
    return Value("float64") if Leaf(0, feature).is_number and pa.types.is_integer(feature.pa_type) else feature


# Their rows as ours ---------------------------------------------------------------------------------------------------


@dataclass
class Arrangement:
    """Turns tables of a data set into tables of those of our columns that have to be made.

    Args:
        places, labels: of our columns; where they are categories, the names of their numbers, None of texts.
        meant: where texts stand for numbers or lists, these.
        ways: of a region, how it belongs to the row's phrases: "one" instance is the region of a phrase, or "shared" by
            several; "each" instance has a phrase of its own, so that those with the same one are its region; so has
            each "flat" polygon. The parts of polygons may be lists of "points".
        is_grouped: phrases with the same words are one.
        features: of the columns that come out.
        path: of the data set, for messages.
    """

    places: dict[str, list[Place]]
    labels: dict[str, list[str] | None]
    meant: dict[str, Leaf]
    ways: dict[str, str]
    is_grouped: bool
    features: Features
    path: str

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [self.row(row) for row in table.to_pylist()]
        made = {}
        for ours, feature in self.features.items():
            kind = Features({ours: feature}).arrow_schema.field(0).type
            try:
                made[ours] = pa.array([row[ours] for row in rows], kind)
            except pa.ArrowException as error:
                wrong = next(row[ours] for row in rows if not is_of_kind(row[ours], kind))
                raise ValueError(misfit(ours, self.places[ours], self.path, wrong)) from error
        return pa.table(made)

    def row(self, row: Row) -> Row:
        found = {ours: self.read(ours, row) for ours in self.features}
        if isinstance(self.features.get("phrase"), List) and len(self.places["phrase"][0]) > 1:
            found["phrase"] = found["phrase"] or []  # objects may be null
        phrases = found.get("phrase")
        several = phrases if isinstance(phrases, list) else []
        for region, way in self.ways.items():
            given = found[region]
            is_there = given is not None and not (isinstance(given, list) and not given)
            if way == "one":
                found[region] = [given] if is_there else []
            elif way == "points":
                try:
                    found[region] = flat_lists(given, DEPTHS[region] + isinstance(phrases, list))
                except ValueError as error:
                    raise ValueError(misfit(region, self.places[region], self.path, given)) from error
            elif way == "shared":
                found[region] = [[given] if is_there else []] * len(several)
            elif way in ("each", "flat"):
                given = given or [None] * len(several)
                given = found[region] = [[each] if way == "flat" and each else each for each in given]
                if len(given) != len(several):
                    raise ValueError(
                        f"Column {region} of {self.path} holds {len(given)} instances for the {len(several)} phrases "
                        f"{several!r:.80}: give one for all, one entry for each of the row's phrases, or a list."
                    )
        return grouped(found, self.ways) if self.is_grouped else found

    def read(self, ours: str, row: Row) -> Any:
        """What the row has at a column's place, or at the four of a box."""
        places = self.places[ours]
        values = [value_at(row[place[0]], place[1:]) for place in places]
        if ours in self.meant:
            values = [meaning(value, ours, places, self.path) for value in values]
        if len(values) > 1:
            try:
                return four(values)
            except (TypeError, ValueError) as error:  # of lists that are not as long
                raise ValueError(misfit(ours, places, self.path, values)) from error
        (value,) = values
        if ours in self.meant and (depth := nesting(value)) is not None:
            for _ in range(self.meant[ours].depth - depth):  # one box where others are lists of boxes
                value = [value]
        return named(value, self.labels[ours]) if ours in self.labels else value


def flat_lists(value: Any, depth: int) -> Any:
    """With lists of points [x, y], so deep in lists, as flat lists of their numbers; ValueError: others are there."""
    if value is None:
        return None
    if depth > 1:
        return [flat_lists(each, depth - 1) for each in value]
    if any(point is None or len(point) != 2 for point in value):
        raise ValueError("these are no points")
    return [number for point in value for number in point]


def meaning(value: Any, ours: str, places: list[Place], path: str) -> Any:
    """What texts at a place of a row stand for; ValueError: for nothing that our column holds."""
    try:
        return as_numbers(value, is_bare=len(places) == 1) if ours in TYPES else as_texts(value)
    except ValueError as error:
        raise ValueError(misfit(ours, places, path, value)) from error


def misfit(ours: str, places: list[Place], path: str, value: Any, is_listed: bool = False) -> str:
    """What to do about a value that is none of our column's. is_listed: the row has a list of phrases."""
    wanted = HOLDS[ours] + (", one entry for each of the row's phrases" if is_listed and ours in OF_PHRASES[1:] else "")
    return (
        f"Column {written(places)} of {path} must hold {wanted}; it has {value!r:.80}. Write it so, name another "
        f"column (--columns {ours}=…), or rename or drop it."
    )


def is_of_kind(value: Any, kind: pa.DataType) -> bool:
    try:
        pa.array([value], kind)
    except pa.ArrowException:
        return False
    return True


def value_at(value: Any, place: Place) -> Any:
    """What is at a place of a value, through lists."""
    if not place or value is None:
        return value
    if isinstance(value, list):
        return [value_at(each, place) for each in value]
    return value_at(value[place[0]], place[1:])


def four(values: list) -> list | None:
    """Four values, or lists of them, as a box, or a list of them; None where there is nothing."""
    if any(isinstance(value, list) for value in values):
        return [four(list(each)) for each in zip(*values, strict=True)]
    return None if all(value is None for value in values) else values


def named(value: Any, labels: list[str] | None) -> Any:
    """Categories, in lists of lists, in words; of numbers, -1 is none."""
    if isinstance(value, list):
        return [named(each, labels) for each in value]
    if labels is None or value is None:
        return value and in_words(value)
    return None if value < 0 else in_words(labels[value])


def in_words(category: str) -> str:
    """A category as a person would say it, as builders do: `traffic_light` is a traffic light, `bow_(weapon)` a bow."""
    words, more = category.replace("_", " "), 1
    spoken = words
    while more:  # brackets in brackets
        spoken, more = re.subn(r"\([^()]*\)", " ", spoken)
    return " ".join((spoken.strip() or words).split())


def as_read(words: str) -> str:
    """Words as an uncased tokenizer reads them, as in builds: phrases of an image that are read the same are one."""
    return " ".join(words.casefold().replace("_", " ").replace("-", " ").split())


def grouped(found: Row, ways: dict[str, str]) -> Row:
    """A row whose phrases are different: what had the same words is one phrase, with all of its instances."""
    if found["phrase"] is None:
        return {**found, **dict.fromkeys(ways, None)}
    numbers: dict[Any, list[int]] = {}
    spelled: dict[Any, Any] = {}
    for number, phrase in enumerate(found["phrase"]):
        for each in phrase if isinstance(phrase, list) else [phrase]:  # several expressions of one object
            same = as_read(each) if isinstance(each, str) else each
            numbers.setdefault(spelled.setdefault(same, each), []).append(number)
    row = {**found, "phrase": list(numbers)}
    for name in OF_PHRASES[1:]:
        values = found.get(name)
        if not isinstance(values, list):
            continue
        if len(values) != len(found["phrase"]):
            raise ValueError(
                f"{name} has {len(values)} entries for the phrases {found['phrase']!r:.80}: give one for each"
            )
        if name not in REGIONS or ways.get(name) == "shared":
            row[name] = [values[of_phrase[0]] for of_phrase in numbers.values()]
        elif ways.get(name) in ("each", "flat"):
            given = [[values[number] for number in of_phrase] for of_phrase in numbers.values()]
            row[name] = [instances if any(instances) else [] for instances in given]
        else:
            row[name] = [all_instances([values[number] for number in of_phrase]) for of_phrase in numbers.values()]
    return row


def all_instances(lists: list[list | None]) -> list:
    """Those of one phrase, of several entries. Where only some have any, None stands for what the others lack, so that
    nobody takes the rest for all that the phrase means."""
    return [each for instances in lists for each in instances or ([None] if any(lists) else [])]


def kinds_of(features: Features, places: dict[str, list[Place]]) -> dict[str, Leaf]:
    """What our columns are; of four, text if one of them is."""
    there = leaves(features)
    kinds = {ours: [there.get(place, Leaf(0, Value("null"))) for place in each] for ours, each in places.items()}
    return {ours: next((kind for kind in each if kind.is_written), each[0]) for ours, each in kinds.items()}


def may_stand_for_else(ours: str, kind: Leaf) -> bool:
    """Whether it is text that may stand for a number or a list."""
    is_list = ours in LISTS_OF_TEXTS and kind.depth == 0
    return kind.is_written and (ours in TYPES or is_list or kind.is_mixed)


def rows_to_look_at(dataset: Dataset | IterableDataset, found: Found) -> list[Row]:
    """What the first rows have where texts may stand for something else."""
    kinds = kinds_of(dataset.features, found.places)
    names = {place[0] for ours in kinds if may_stand_for_else(ours, kinds[ours]) for place in found.places[ours]}
    return first_rows(dataset, sorted(names)) if names else []


def only_upright(
    dataset: Dataset | IterableDataset, found: Found, columns: Columns, path: str, needs_regions: bool
) -> Dataset | IterableDataset:
    """The data set, in which no box is turned by an angle beside it; without need, guessed ones that are are left out.

    Raises ValueError, of a stream as it comes: one is.
    """
    boxes, there = found.places.get("boxes", []), leaves(dataset.features)
    depths = [max(there.get(place, Leaf(0, Value("null"))).depth - (len(boxes) == 1), 0) for place in boxes]
    turns = [
        place
        for place, leaf in there.items()
        if boxes and place[:-1] == boxes[0][:-1] and leaf.is_number and leaf.depth == depths[0]
        if TURN_NAMES.fullmatch(of_box(place))
    ]
    if not turns:
        return dataset
    ((column, *inside), *_) = turns

    def check(table: pa.Table) -> pa.Table:
        angles = table[column]
        for name in [*inside, ""]:
            while pa.types.is_nested(angles.type) and not pa.types.is_struct(angles.type):
                angles = pc.list_flatten(angles)
            angles = pc.struct_field(angles, name) if name else angles
        if turned := angles.filter(pc.greater(pc.abs(angles), 0)).to_pylist():
            raise ValueError(
                f"{path}: boxes ({written(boxes)}) are turned by {written(turns[:1])}, such as {turned[0]:g}, and "
                "would be read as upright ones. Write the corners as polygons ([x, y, x, y, …]), or upright boxes "
                "around them; then, or if it is of something else, rename or drop this column."
            )
        return table

    if isinstance(dataset, IterableDataset):
        rows = dataset.with_format("arrow").map(check, batched=True, features=dataset.features)
        return rows.with_format(None)
    try:
        for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000):
            check(table)
    except ValueError as error:
        if needs_regions or "boxes" not in found.guessed:
            raise
        columns.say(f"Boxes are left out. {error}")
        found.guessed.remove("boxes")
        del found.places["boxes"]
    return dataset


def first_rows(dataset: Dataset | IterableDataset, names: list[str]) -> list[Row]:
    """These columns of the first rows; of streamed data of the first file: others are read when it is their turn."""
    if isinstance(dataset, IterableDataset):
        dataset = dataset.shard(num_shards=dataset.num_shards, index=0)
    tables = dataset.select_columns(names).with_format("arrow").iter(batch_size=FIRST)
    return [row for table in islice(tables, 1) for row in table.to_pylist()]


def arrange(dataset: Dataset | IterableDataset, found: Found, path: str, first: list[Row]) -> Dataset | IterableDataset:
    """The data set with our columns: those that only have another name as they are, the others made of theirs.

    Args: first: as of `rows_to_look_at`.
    """
    arrangement = arrangement_of(dataset.features, found, path, first, may_repeat(dataset, found.places["phrase"]))
    made = arrangement.features
    renamed = {places[0][0]: ours for ours, places in found.places.items() if ours not in made}
    features = Features({**{ours: dataset.features[theirs] for theirs, ours in renamed.items()}, **made})
    sources = list(dict.fromkeys(place[0] for ours in made for place in found.places[ours]))
    if isinstance(dataset, Dataset):
        kept = dataset.select_columns(list(renamed)).rename_columns(renamed)
        if not made:
            return kept
        # Apart from the images, which would be written once more.
        rows = dataset.select_columns(sources).with_format("arrow")
        rows = rows.map(arrangement, batched=True, features=made, remove_columns=sources).with_format(None)
        info = dataset.info.copy()
        info.features = features
        return concatenate_datasets([kept, rows], info=info, split=dataset.split, axis=1) if renamed else rows
    if list(renamed.items()) == [(name, name) for name in dataset.column_names]:
        return dataset

    def arranged(table: pa.Table) -> pa.Table:
        kept = table.select(list(renamed)).rename_columns(list(renamed.values()))
        for name, column in zip(made, arrangement(table.select(sources)).columns if made else ()):
            kept = kept.append_column(name, column)
        return kept

    # Table by table: of single rows, those of streamed data that have nothing in a column lose its type.
    return dataset.with_format("arrow").map(arranged, batched=True, features=features).with_format(None)


def may_repeat(dataset: Dataset | IterableDataset, places: list[Place]) -> bool:
    """Whether the list of phrases of a row may have one of them twice; that of a streamed row may."""
    ((name, *inside), *_) = places
    if not isinstance(dataset, Dataset) or inside:
        return True
    for lists in dataset.data.column(name).chunks:
        if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)):
            return False
        phrases = pc.list_flatten(lists)
        if pa.types.is_nested(phrases.type):
            return True
        is_text = pa.types.is_string(phrases.type) or pa.types.is_large_string(phrases.type)
        if is_text:  # by more than `grouped` and `in_words` go by: what turns out to be different stays so
            phrases = pc.replace_substring_regex(pc.utf8_lower(phrases), r"[\s\pZ_]+|\([^()]*\)", "")
        pairs = pa.table({"row": pc.list_parent_indices(lists), "phrase": phrases})
        if len(pairs.group_by(["row", "phrase"]).aggregate([])) < len(pairs):
            return True
    return False


def arrangement_of(features: Features, found: Found, path: str, first: list[Row], repeats: bool) -> Arrangement:
    """What of our columns has to be made of theirs, and how."""
    places = found.places
    kinds = kinds_of(features, places)
    meant = meanings(kinds, places, path, first)
    kinds |= meant
    is_label = {ours: isinstance(kinds[ours].feature, ClassLabel) for ours in places}
    labels = {ours: kinds[ours].feature.names for ours in places if is_label[ours] and ours in TEXTS}
    phrase = kinds.get("phrase", Leaf(0, Value("null")))
    if phrase.is_text and is_category(places["phrase"][0]):
        labels.setdefault("phrase", None)
    phrase = phrase if phrase.is_text and phrase.depth < 3 else Leaf(0, phrase.feature)  # which is refused later
    ways = ways_of(kinds, places, is_listed=phrase.depth > 0)
    is_grouped = phrase.depth == 2 or bool({"each", "flat"} & {*ways.values()}) or (phrase.depth == 1 and repeats)
    is_made = {
        ours: len(each) > 1 or len(each[0]) > 1 or ours in labels or ours in ways or ours in meant
        for ours, each in places.items()
    }
    if is_grouped:
        is_made |= dict.fromkeys(set(OF_PHRASES) & places.keys(), True)
    elif "shared" in ways.values():
        is_made["phrase"] = True
    renamed: dict[str, str] = {}
    for ours, each in places.items():  # a column is renamed once
        is_made[ours] = is_made[ours] or renamed.setdefault(each[0][0], ours) != ours
    made = {}
    for ours in [ours for ours in places if is_made[ours]]:
        feature = Value("string") if ours in labels else kinds[ours].feature
        depth = kinds[ours].depth + (len(places[ours]) > 1)
        if ours in ways:
            depth = DEPTHS[ours] + (phrase.depth > 0)
            is_wide = ours == "masks" or kinds[ours].is_of(pa.types.is_floating)
            feature = feature if is_wide else Value("float64")
        elif ours == "phrase":
            depth = min(depth, 1)
        for _ in range(depth):
            feature = List(feature)
        made[ours] = feature
    return Arrangement(places, labels, meant, ways, is_grouped, Features(made), path)


def meanings(kinds: dict[str, Leaf], places: dict[str, list[Place]], path: str, first: list[Row]) -> dict[str, Leaf]:
    """Where texts stand for numbers or lists, what these are, by the first rows."""
    meant: dict[str, Leaf] = {}
    for ours in sorted(kinds, key="phrase".__ne__):  # of lists of phrases others have lists, too
        kind = kinds[ours]
        if not may_stand_for_else(ours, kind):
            continue
        values = [value_at(row[place[0]], place[1:]) for row in first for place in places[ours]]
        if not (ours in TYPES or kind.is_mixed or any(map(is_list, values))):
            continue
        found = [nesting(meaning(value, ours, places[ours], path)) for value in values]
        found, depth = [each for each in found if each is not None], kind.depth
        if len(places[ours]) == 1:
            is_listed = ours in OF_PHRASES[1:] and (kinds | meant)["phrase"].depth > 0
            whole = DEPTHS.get(ours, 0) + is_listed
            depth = max([depth, *found, 0 if is_listed and found else whole])
        meant[ours] = Leaf(depth, Value(TYPES.get(ours, "string")))
    return meant


def ways_of(kinds: dict[str, Leaf], places: dict[str, list[Place]], is_listed: bool) -> dict[str, str]:
    """How regions that have to be made belong to their phrases, by the depth of their lists; see `Arrangement`."""
    ways = {}
    for region in [region for region in REGIONS if region in places]:
        kind, is_mask = kinds[region], region == "masks"
        missing = DEPTHS[region] + is_listed - kind.depth - (len(places[region]) > 1)
        if kind.is_image or kind.is_text if is_mask else kind.is_number:
            # A flat polygon, not a list of such, is the one part of an instance.
            more = {-1: "points"} if region == "polygons" else {}
            listed = {1: "each", 2: "flat" if region == "polygons" else "shared"}
            way = (more | (listed if is_listed else {1: "one"})).get(missing)
            ways |= {region: way} if way else {}
    return ways


def put_together(
    dataset: Dataset | IterableDataset,
    found: Found,
    columns: Columns,
    path: str,
    image_key: Callable[[str], str],
) -> Dataset | IterableDataset:
    """The data set, rows of the same image and category as one row with the regions of all.

    Args:
        dataset: with our columns, its images not placed yet.
        image_key: the same for all paths of an image.
    """
    (place,) = found.places["phrase"]
    name = place[-1]
    regions = [region for region in REGIONS if region in dataset.column_names]
    # Of a phrase that somebody named, too, but for expressions, of which the same may be of two objects.
    if not (is_category(place) or ("phrase" in columns.names and not PHRASE_NAMES.fullmatch(plain_name(name)))):
        return dataset
    if not regions or not isinstance(dataset.features["phrase"], Value):
        return dataset
    if not isinstance(dataset, Dataset):
        columns.say(
            f"{path}: streamed rows stay apart. If several have the same image and {name}, leave out streaming."
        )
        return dataset
    groups = same_images(dataset.select_columns(["image", "phrase"]).with_format("arrow")[:], image_key)
    if len(groups) == len(dataset):
        return dataset
    if "masks" in regions and dataset.data.column("masks").nbytes > MAX_MASKS:
        columns.say(f"{path}: rows with the same image and {name} stay apart: their masks are too large to be moved.")
        return dataset
    what = "boxes" if regions == ["boxes"] else "regions"
    columns.say(f"{path}: {len(dataset):,} {what} in {len(groups):,} rows, one for each image and {name}.")
    together: dict[str, list] = {}
    for region in regions:
        given = dataset.select_columns([region]).with_format("arrow")[:][region].to_pylist()  # masks undecoded
        together[region] = [[]] * len(dataset)
        for group in groups:
            together[region][group[0]] = all_instances([given[row] for row in group])
    made = Dataset.from_dict(together, Features({region: dataset.features[region] for region in regions}))
    # Of all rows, and the first of each group chosen then: images would be written once more.
    kept = dataset.remove_columns(regions)
    info = dataset.info.copy()
    info.features = Features({**kept.features, **made.features})
    whole = concatenate_datasets([kept, made], info=info, split=dataset.split, axis=1)
    return whole.select([group[0] for group in groups])


def same_images(table: pa.Table, image_key: Callable[[str], str]) -> list[list[int]]:
    """The rows of each image and phrase, in the order of the first of them; a row without an image is alone.

    Images are told apart by the keys of their paths or else, where several of one phrase are as long, by their bytes.
    Phrases are the same as of `as_read`.
    """
    images = table["image"]
    if pa.types.is_struct(images.type):
        contents, paths = pc.struct_field(images, "bytes"), pc.struct_field(images, "path")
    else:
        is_path = pa.types.is_string(images.type) or pa.types.is_large_string(images.type)
        missing = pa.nulls(len(images))
        contents, paths = (missing, images) if is_path else (images, missing)
    contents, paths = contents.cast(pa.large_binary()), pc.if_else(pc.is_null(contents), paths, None)
    spelled = {each: each and image_key(each) for each in pc.unique(paths).to_pylist()}
    paths = pa.chunked_array([[spelled[each] for each in paths.to_pylist()]], pa.string())
    phrases = pc.utf8_lower(pc.utf8_trim_whitespace(pc.replace_substring_regex(table["phrase"], r"[-_\s]+", " ")))
    keys = {"path": paths, "size": pc.binary_length(contents), "phrase": phrases}
    rows = pa.table({**keys, "row": np.arange(len(table))}).group_by([*keys], use_threads=False)
    is_named, groups = pc.is_valid(paths).to_numpy(), []
    for group in rows.aggregate([("row", "list")])["row_list"].to_pylist():
        parts: dict[Any, list[int]] = {}
        for row in group if len(group) > 1 and not is_named[group[0]] else ():
            content = contents[row].as_buffer()
            mark = row if content is None else hashlib.blake2b(content, digest_size=16).digest()
            parts.setdefault(mark, []).append(row)
        groups += parts.values() or [group]
    return sorted(groups)
