"""Which columns of a data set hold what, and in which units: as told, as its card says, or as can be guessed.

A data set names its columns as it likes, nests them (`objects.bbox`), has one box a row, or a label for each box. Its
rows become rows of our columns, see `splits.COLUMNS`. What is guessed is said in a line; what is in doubt is an error
that lists the columns and proposes the option.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
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
    LargeList,
    List,
    Value,
    concatenate_datasets,
)
from datasets.features.features import FeatureType
from huggingface_hub import DatasetCard
from huggingface_hub.errors import HTTPError
from transformers.utils import logging

from .phrase_rows import OF_PHRASES
from .regions import BOX_FORMATS, REGIONS

logger = logging.get_logger(__name__)
Place = tuple[str, ...]  # the column, and names within it
Row = dict[str, Any]

# How deep the lists of each are in a row of one phrase; boxes are lists of four numbers.
DEPTHS = {"boxes": 2, "polygons": 3, "masks": 1, "scribbles": 2}
TEXTS = "phrase", "caption", "categories"
# What columns are called elsewhere, as of `plain_name`. A category is a phrase only where there are regions.
IMAGE_NAMES = re.compile("image|img|picture|photo|path|file|(image|img|file)(path|name)|imagefile")
PHRASE_NAMES = re.compile("(phrase|caption|text|sent|sentence|(referring)?expression|description)s?|query")
CATEGORY_NAMES = re.compile("categor(y|ies)|labels?|class|classes|(class|category)name")
BOX_NAMES = re.compile("(bbox|box|boundingbox)(es)?")
# Four columns of a box, the first that are there (width and height may be the image's), and what it is, the second
# where the first does not fit.
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
    """

    names: dict[str, str] = field(default_factory=dict)
    box_format: str | None = None
    download_images: bool = False
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
    def is_number(self) -> bool:
        return not isinstance(self.feature, ClassLabel) and self.is_of(pa.types.is_integer, pa.types.is_floating)

    def is_of(self, *kinds: Any) -> bool:
        return isinstance(self.feature, Value) and any(kind(self.feature.pa_type) for kind in kinds)


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
    used = {place[0] for places in found.places.values() for place in places}
    for name in features:
        if name in known and name not in used | found.places.keys():
            found.places[name] = [(name,)]
    guesses = Guesses(found, there, path)
    try:
        guesses.add("boxes", [] if found.places.keys() & set(REGIONS) else guesses.boxes())
    except ValueError as error:
        if needs_regions:
            raise
        columns.say(f"Regions are left out. {error}")
    guesses.add("phrase", guesses.phrases())
    guesses.add("image", guesses.images())
    return found


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
            named = " or ".join(f"{ours}={written(each)}" for each in several)
            raise ValueError(f"{self.path}: it is in doubt what {ours} is. Say --columns {named}.")
        if options:
            places[ours] = options[0]
            self.found.guessed.append(ours)
            if ours == "boxes":
                self.found.formats = formats_of(options[0])
            if ours == "phrase" and options[0] == places.get("caption"):  # no caption that phrases are a part of
                del places["caption"]

    def boxes(self) -> list[list[Place]]:
        options = [
            [place]
            for place, leaf in self.there.items()
            if BOX_NAMES.fullmatch(plain_name(place[-1]))
            and (leaf.is_number if leaf.depth else leaf.is_of(pa.types.is_string, pa.types.is_large_string))
        ]
        for parent in dict.fromkeys(place[:-1] for place in self.there):
            beside = {
                re.sub("^b?box(?=.)", "", plain_name(place[-1])): place
                for place, leaf in self.there.items()
                if place[:-1] == parent and leaf.is_number
            }
            fours = [names.split() for names in FOUR_NAMES if {*names.split()} <= beside.keys()]
            options += [[beside[name] for name in names] for names in fours[:1]]
        return options

    def phrases(self) -> list[list[Place]]:
        """Those beside the boxes; where boxes lie deeper, of the other texts it is not known which are theirs."""
        boxes = self.found.places.get("boxes", [("boxes",)])
        home = boxes[0][:-1]
        home = home[:-1] if len(boxes) > 1 and home and BOX_NAMES.fullmatch(plain_name(home[-1])) else home
        if "phrase" in self.found.places:  # all boxes of the row would be of this phrase
            is_guess = "boxes" in self.found.guessed and home and self.found.places["phrase"] == [("phrase",)]
            return self.texts(PHRASE_NAMES, home) + self.texts(CATEGORY_NAMES, home) if is_guess else []
        options = self.texts(PHRASE_NAMES, home)
        if not options and self.found.places.keys() & set(REGIONS):
            options = self.texts(CATEGORY_NAMES, home) + (self.texts(PHRASE_NAMES, ()) if home else [])
        return options

    def texts(self, names: re.Pattern, parent: Place) -> list[list[Place]]:
        taken = [place for ours, places in self.found.places.items() if ours != "caption" for place in places]
        return [
            [place]
            for place, leaf in self.there.items()
            if leaf.is_text and place[:-1] == parent and names.fullmatch(plain_name(place[-1])) and place not in taken
        ]

    def images(self) -> list[list[Place]]:
        if "image" in self.found.places:
            return []
        taken = [place for places in self.found.places.values() for place in places]
        free = {place: leaf for place, leaf in self.there.items() if leaf.depth == 0 and place not in taken}
        kinds = pa.types.is_binary, pa.types.is_large_binary
        return [[place] for place, leaf in free.items() if leaf.is_image] or [
            [place]
            for place, leaf in free.items()
            if (leaf.is_text or leaf.is_of(*kinds)) and len(place) == 1 and IMAGE_NAMES.fullmatch(plain_name(place[0]))
        ]


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


def places_of(ours: str, theirs: str, there: dict[Place, Leaf], path: str) -> list[Place]:
    """What is called so; ValueError: nothing is."""
    by_name = {".".join(place): place for place in there}
    parts = [theirs] if theirs in by_name else theirs.split(",")
    if missing := [part for part in parts if part not in by_name]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(by_name)}.")
    if len(parts) not in ((1, 4) if ours == "boxes" else (1,)):
        raise ValueError(f"--columns {ours}={theirs}: a column is one, a box also four.")
    return [by_name[part] for part in parts]


def formats_of(boxes: list[Place]) -> list[list[str]] | None:
    """What the boxes at these places may be, see `Found`."""
    if boxes == [("boxes",)]:
        return None
    names = " ".join(re.sub("^b?box(?=.)", "", plain_name(place[-1])) for place in boxes)
    return [[each, f"{each}_normalized"] for each in FOUR_NAMES.get(names, [])] or [[*BOX_FORMATS]]


def plain_name(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def written(places: list[Place]) -> str:
    return ",".join(".".join(place) for place in places)


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
        ways: of a region, how it belongs to the row's phrases: "one" instance is the region of a phrase, or "shared" by
            several; "each" instance has a phrase of its own, so that those with the same one are its region; or all are
            the phrase's, and "written" as JSON.
        is_grouped: phrases with the same words are one.
        features: of the columns that come out.
        path: of the data set, for messages.
    """

    places: dict[str, list[Place]]
    labels: dict[str, list[str] | None]
    ways: dict[str, str]
    is_grouped: bool
    features: Features
    path: str

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [self.row(row) for row in table.to_pylist()]
        made = {}
        for ours, feature in self.features.items():
            try:
                made[ours] = pa.array([row[ours] for row in rows], Features({ours: feature}).arrow_schema.field(0).type)
            except pa.ArrowException as error:
                raise ValueError(f"Column {written(self.places[ours])} of {self.path} is no {ours}: {error}") from error
        return pa.table(made)

    def row(self, row: Row) -> Row:
        found = {ours: self.read(ours, row) for ours in self.features}
        phrases = found.get("phrase")
        several = phrases if isinstance(phrases, list) else []
        for region, way in self.ways.items():
            given = found[region]
            is_there = given is not None and not (isinstance(given, list) and not given)
            if way == "one":
                found[region] = [given] if is_there else []
            elif way == "shared":
                found[region] = [[given] if is_there else []] * len(several)
            elif way == "each":
                given = found[region] = given or []
                if len(given) != len(several):
                    raise ValueError(
                        f"Column {region} of {self.path} holds {len(given)} instances for the {len(several)} phrases "
                        f"{several!r:.80}: give one for all, one entry for each of the row's phrases, or a list."
                    )
        return grouped(found, self.ways) if self.is_grouped else found

    def read(self, ours: str, row: Row) -> Any:
        """What the row has at a column's place, or at the four of a box."""
        values = [value_at(row[place[0]], place[1:]) for place in self.places[ours]]
        if len(values) > 1:
            return four(values)
        (value,) = values
        if ours in self.labels:
            return named(value, self.labels[ours])
        if isinstance(value, str) and ours in REGIONS:
            return self.parsed(value, ours)
        return value

    def parsed(self, text: str, ours: str) -> list:
        """Boxes that are written as JSON, or as Python writes them; of a single one, brackets may be missing."""
        try:
            bare = text.replace("(", "[").replace(")", "]").strip()
            found = json.loads(bare if bare.startswith("[") else f"[{bare}]")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"Column {written(self.places[ours])} of {self.path} has {text!r:.80}: {error}") from error
        return [found] if found and not isinstance(found[0], list) else found


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
        return [four(list(each)) for each in zip(*values)]
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


def grouped(found: Row, ways: dict[str, str]) -> Row:
    """A row whose phrases are different: what had the same words is one phrase, with all of its instances."""
    if found["phrase"] is None:
        return {**found, **dict.fromkeys(ways, None)}
    numbers: dict[Any, list[int]] = {}
    for number, phrase in enumerate(found["phrase"]):
        for each in phrase if isinstance(phrase, list) else [phrase]:  # several expressions of one object
            numbers.setdefault(each, []).append(number)
    row = {**found, "phrase": list(numbers)}
    for name in OF_PHRASES[1:]:
        values = found.get(name)
        if not isinstance(values, list):
            continue
        if len(values) != len(found["phrase"]):
            raise ValueError(
                f"{name} has {len(values)} entries for the phrases {found['phrase']!r:.80}: give one for each"
            )
        if name not in REGIONS:
            row[name] = [values[of_phrase[0]] for of_phrase in numbers.values()]
        elif ways.get(name) == "each":
            row[name] = [[values[number] for number in of_phrase] for of_phrase in numbers.values()]
        else:
            row[name] = [
                [each for number in of_phrase for each in values[number] or []] for of_phrase in numbers.values()
            ]
    return row


def arrange(dataset: Dataset | IterableDataset, found: Found, path: str) -> Dataset | IterableDataset:
    """The data set with our columns: those that only have another name as they are, the others made of theirs."""
    arrangement = arrangement_of(dataset.features, found, path)
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


def arrangement_of(features: Features, found: Found, path: str) -> Arrangement:
    """What of our columns has to be made of theirs, and how."""
    there, places = leaves(features), found.places
    kinds = {ours: there.get(each[0], Leaf(0, Value("null"))) for ours, each in places.items()}
    is_label = {ours: isinstance(kinds[ours].feature, ClassLabel) for ours in places}
    labels = {ours: kinds[ours].feature.names for ours in places if is_label[ours] and ours in TEXTS}
    phrase = kinds.get("phrase", Leaf(0, Value("null")))
    if phrase.is_text and CATEGORY_NAMES.fullmatch(plain_name(places["phrase"][0][-1])):
        labels.setdefault("phrase", None)
    phrase = phrase if phrase.is_text and phrase.depth < 3 else Leaf(0, phrase.feature)  # which is refused later
    ways = ways_of(kinds, places, is_listed=phrase.depth > 0)
    is_grouped = phrase.depth == 2 or "each" in ways.values()
    is_made = {
        ours: len(each) > 1 or len(each[0]) > 1 or ours in labels or ours in ways for ours, each in places.items()
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
        depth, feature = kinds[ours].depth, Value("string") if ours in labels else kinds[ours].feature
        if ours in ways:
            depth = DEPTHS[ours] + (phrase.depth > 0)
            is_wide = ours == "masks" or kinds[ours].is_of(pa.types.is_floating)
            feature = feature if is_wide else Value("float64")
        elif ours == "phrase":
            depth = min(depth, 1)
        for _ in range(depth):
            feature = List(feature)
        made[ours] = feature
    return Arrangement(places, labels, ways, is_grouped, Features(made), path)


def ways_of(kinds: dict[str, Leaf], places: dict[str, list[Place]], is_listed: bool) -> dict[str, str]:
    """How regions that have to be made belong to their phrases, by the depth of their lists; see `Arrangement`."""
    ways = {}
    for region in [region for region in REGIONS if region in places]:
        kind, is_mask = kinds[region], region == "masks"
        missing = DEPTHS[region] + is_listed - kind.depth - (len(places[region]) > 1)
        if region == "boxes" and kind.is_text and kind.depth == 0:
            ways[region] = "each" if is_listed else "written"
        elif kind.is_image or kind.is_text if is_mask else kind.is_number:
            way = {1: "each", 2: "shared"}.get(missing) if is_listed else {1: "one"}.get(missing)
            ways |= {region: way} if way else {}
    return ways


def put_together(
    dataset: Dataset | IterableDataset, found: Found, columns: Columns, path: str
) -> Dataset | IterableDataset:
    """The data set, rows that have a box each of the same image and category as one row with all of these boxes.

    Args: dataset: with our columns, its images not placed yet.
    """
    (*_, name) = found.places["phrase"][0]
    regions = set(REGIONS) & set(dataset.column_names)
    if (
        not CATEGORY_NAMES.fullmatch(plain_name(name))
        or regions != {"boxes"}
        or not isinstance(dataset.features["phrase"], Value)
    ):
        return dataset
    if not isinstance(dataset, Dataset):
        columns.say(
            f"{path}: streamed rows stay apart. If several have the same image and {name}, leave out streaming."
        )
        return dataset
    table = dataset.select_columns(["image", "phrase"]).with_format("arrow")[:]
    images = table["image"]
    if pa.types.is_struct(images.type):
        images = pc.if_else(pc.is_null(pc.struct_field(images, "bytes")), pc.struct_field(images, "path"), None)
    if not (pa.types.is_string(images.type) or pa.types.is_large_string(images.type)) or images.null_count:
        return dataset
    rows = pa.table({"image": images, "phrase": table["phrase"], "row": np.arange(len(table))})
    groups = rows.group_by(["image", "phrase"], use_threads=False).aggregate([("row", "list")])["row_list"].to_pylist()
    if len(groups) == len(rows):
        return dataset
    columns.say(f"{path}: {len(rows):,} boxes in {len(groups):,} rows, one for each image and {name}.")
    boxes = dataset["boxes"][:]
    features = Features({"boxes": dataset.features["boxes"]})
    together = Dataset.from_dict(
        {"boxes": [[box for row in group for box in boxes[row] or []] for group in groups]}, features
    )
    first = dataset.select([group[0] for group in groups]).remove_columns("boxes")
    info = dataset.info.copy()
    info.features = Features({**first.features, **features})
    return concatenate_datasets([first, together], info=info, split=dataset.split, axis=1)
