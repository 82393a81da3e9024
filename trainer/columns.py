"""Which columns of a data set hold what, and in which units: as told, as its card says, or as can be guessed.

A data set names its columns as it likes, nests them (`objects.bbox`), has one box a row, or a label for each box. Its
rows become rows of our columns, see `splits.COLUMNS`. What is guessed is said in a line; what is in doubt is an error
that lists the columns and proposes the option.
"""

import io
import json
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
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

from modeling_albef_amc.images import UNREADABLE, open_file

from .phrase_rows import OF_PHRASES
from .regions import BOX_FORMATS, REGIONS, to_xyxy

logger = logging.get_logger(__name__)
Place = tuple[str, ...]  # the column, and names within it
Row = dict[str, Any]

# How deep the lists of each are in a row of one phrase; boxes are lists of four numbers.
DEPTHS = {"boxes": 2, "polygons": 3, "masks": 1, "scribbles": 2}
# What columns are called elsewhere, as of `plain_name`. A category is a phrase only where there are regions.
IMAGE_NAMES = "img picture photo imagepath imgpath filename filepath path imagefile imagename imgname file".split()
PHRASE_NAMES = (
    "phrase phrases caption captions text texts sentence sentences sent expression expressions referringexpression "
    "referringexpressions description descriptions query"
).split()
CATEGORY_NAMES = "category label labels class classes classname categoryname".split()
BOX_NAMES = "bbox bboxes box boxes boundingbox boundingboxes".split()
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
# As many boxes decide what all are, looked for in so many rows.
NUM_DECIDING, MAX_ROWS = 256, 10_240
_MISFITS = 0.01  # share of boxes that are wrong in any data set
_EXIF_ORIENTATION, _TURNED = 0x0112, range(5, 9)  # of the latter, width and height change places


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
            raise ValueError(f"README.md of {path}: albef_amc takes columns (ours: theirs) and box_format; got {found!r:.200}")
        self.names = {str(ours): str(theirs) for ours, theirs in names.items()} | self.names
        self.box_format = self.box_format or found.get("box_format")
        if self.box_format not in (None, *BOX_FORMATS):
            raise ValueError(f"README.md of {path}: box_format must be one of {', '.join(BOX_FORMATS)}, got {self.box_format!r}")


def card_data(path: str) -> dict[str, Any]:
    """The YAML of the README.md of a folder, of a file's folder or of a Hub id; empty where there is none at hand."""
    folder = Path(path).parent if Path(path).is_file() else Path(path)
    if folder.exists() and not (folder / "README.md").is_file():
        return {}
    try:
        return DatasetCard.load(folder / "README.md" if folder.exists() else path).data.to_dict()
    except (HTTPError, OSError, ValueError, yaml.YAMLError):  # of the Hub or the network; nor must a README be a card
        return {}


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
        places, given = self.found.places, ours in self.found.places
        if len(options) + given > 1:
            named = [*([f"{ours}={written(places[ours])}"] if given else []), *(f"{ours}={written(o)}" for o in options)]
            raise ValueError(f"{self.path}: it is in doubt what {ours} is. Say --columns {' or '.join(named)}.")
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
            if plain_name(place[-1]) in BOX_NAMES
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
        home = home[:-1] if len(boxes) > 1 and home and plain_name(home[-1]) in BOX_NAMES else home
        if "phrase" in self.found.places:  # all boxes of the row would be of this phrase
            is_guess = "boxes" in self.found.guessed and home and self.found.places["phrase"] == [("phrase",)]
            return self.texts(PHRASE_NAMES + CATEGORY_NAMES, home) if is_guess else []
        options = self.texts(PHRASE_NAMES, home)
        if not options and self.found.places.keys() & set(REGIONS):
            options = self.texts(CATEGORY_NAMES, home) + (self.texts(PHRASE_NAMES, ()) if home else [])
        return options

    def texts(self, names: list[str], parent: Place) -> list[list[Place]]:
        taken = [place for ours, places in self.found.places.items() if ours != "caption" for place in places]
        return [
            [place]
            for place, leaf in self.there.items()
            if leaf.is_text and place[:-1] == parent and plain_name(place[-1]) in names and place not in taken
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
            if (leaf.is_text or leaf.is_of(*kinds)) and len(place) == 1 and plain_name(place[0]) in IMAGE_NAMES
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
                found[name, *place] = Leaf(depth + leaf.depth, leaf.feature)
        else:
            found[name,] = Leaf(depth, feature)
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
        places, labels: of our columns; where categories are numbers, their names.
        ways: of a region, how it belongs to the row's phrases: "one" instance is the region of a phrase, or "shared" by
            several; "each" instance has a phrase of its own, so that those with the same one are its region.
        is_grouped: phrases with the same words are one.
        features: of the columns that come out.
        path: of the data set, for messages.
    """

    places: dict[str, list[Place]]
    labels: dict[str, list[str]]
    ways: dict[str, str]
    is_grouped: bool
    features: Features
    path: str

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [self.row(row) for row in table.to_pylist()]
        fields = self.features.arrow_schema
        return pa.table([pa.array([row[each.name] for row in rows], each.type) for each in fields], fields)

    def row(self, row: Row) -> Row:
        found = {ours: self.read(ours, row) for ours in self.features}
        phrases = found.get("phrase")
        several = phrases if isinstance(phrases, list) else [phrases]
        for region, way in self.ways.items():
            given = found[region]
            is_there = given is not None and not (isinstance(given, list) and not given)
            if way == "one":
                found[region] = [given] if is_there else []
            elif way == "shared":
                found[region] = [[given] if is_there else []] * len(several)
            else:
                given = found[region] = given or []
                if len(given) != len(several):
                    raise ValueError(
                        f"Column {region} of {self.path} holds {len(given)} instances for the {len(several)} phrases "
                        f"{several!r:.80}: give one for all of them, one entry for each of the row's phrases, or a list."
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
        """Boxes that are written as JSON."""
        try:
            found = json.loads(text) if text.strip() else []
            if not isinstance(found, list):
                raise ValueError("no list")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"Column {written(self.places[ours])} of {self.path} has {text!r:.80}: {error}") from error
        return [found] if found and not isinstance(found[0], list) else found


def value_at(value: Any, place: Place) -> Any:
    """What is at a place of a value, through lists."""
    if not place or value is None:
        return value
    return [value_at(each, place) for each in value] if isinstance(value, list) else value_at(value[place[0]], place[1:])


def four(values: list) -> list | None:
    """Four values, or lists of them, as a box, or a list of them; None where there is nothing."""
    if any(isinstance(value, list) for value in values):
        return [four(list(each)) for each in zip(*values)]
    return None if all(value is None for value in values) else values


def named(value: Any, labels: list[str]) -> Any:
    """Numbers of categories, in lists of lists, as what they are called; -1 is none."""
    if isinstance(value, list):
        return [named(each, labels) for each in value]
    return None if value is None or value < 0 else in_words(labels[value])


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
        if name not in REGIONS:
            row[name] = [values[of_phrase[0]] for of_phrase in numbers.values()]
        elif ways.get(name) == "each":
            row[name] = [[values[number] for number in of_phrase] for of_phrase in numbers.values()]
        else:
            row[name] = [[each for number in of_phrase for each in values[number] or []] for of_phrase in numbers.values()]
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
    """What of our columns has to be made of theirs, by the depth of their lists, and how."""
    there, places = leaves(features), found.places
    kinds = {ours: there.get(each[0], Leaf(0, Value("null"))) for ours, each in places.items()}
    labels = {
        ours: kinds[ours].feature.names
        for ours in ("phrase", "caption", "categories")
        if ours in places and isinstance(kinds[ours].feature, ClassLabel)
    }
    phrase = kinds.get("phrase", Leaf(0, Value("null")))
    is_text = phrase.is_text and phrase.depth < 3
    ways, made = {}, {ours for ours, each in places.items() if len(each) > 1 or len(each[0]) > 1} | labels.keys()
    for region in [region for region in REGIONS if region in places and is_text]:
        kind, is_mask = kinds[region], region == "masks"
        is_written = region == "boxes" and kind.is_text and kind.depth == 0
        if not (is_written or (kind.is_image or kind.is_text if is_mask else kind.is_number)):
            continue
        depth = DEPTHS[region] if is_written else kind.depth + (len(places[region]) > 1)
        names = {0: "one"} if phrase.depth == 0 else {0: "shared", 1: "each"}
        if way := names.get(depth - DEPTHS[region] + 1):
            ways[region] = way
        if way or is_written:
            made.add(region)
    is_grouped = is_text and (phrase.depth == 2 or "each" in ways.values())
    if is_grouped:
        made |= set(OF_PHRASES) & places.keys()
    elif "shared" in ways.values():
        made.add("phrase")
    by_column: dict[str, str] = {}
    for ours, each in places.items():
        if ours not in made and by_column.setdefault(each[0][0], ours) != ours:
            made.add(ours)  # a column is renamed once
    out = {}
    for ours in [ours for ours in places if ours in made]:
        kind, depth = kinds[ours], kinds[ours].depth
        feature = Value("string") if ours in labels else kind.feature
        if ours == "phrase" and is_text:
            depth = min(depth, 1)
        elif ours in ways or (ours in REGIONS and kind.is_text and ours == "boxes"):
            depth = DEPTHS[ours] + (phrase.depth > 0)
            is_narrow = kind.is_number and not pa.types.is_integer(kind.feature.pa_type)
            feature = feature if ours == "masks" or is_narrow else Value("float64")
        for _ in range(depth):
            feature = List(feature)
        out[ours] = feature
    return Arrangement(places, labels, ways, is_grouped, Features(out), path)


# In which units -------------------------------------------------------------------------------------------------------


def decide_boxes(dataset: Dataset | IterableDataset, found: Found, columns: Columns, path: str) -> None:
    """Sets the format of the boxes, as their first ones allow, and says what was guessed.

    Args: dataset: with our columns, its images undecoded.

    Raises ValueError: none fits, or several do.
    """
    decided = ""
    if "boxes" in found.places and found.formats is not None and columns.box_format is None:
        boxes, sizes = first_boxes(dataset)
        if not len(boxes):
            raise ValueError(f"{path}: it is in doubt what its boxes are; the first rows have none. Say --box_format.")
        groups = [[each for each in group if fits_images(boxes, sizes, each)] for group in found.formats]
        fitting = next(filter(None, groups), [])
        theirs, first = written(found.places["boxes"]), f"the first is {[round(v, 4) for v in boxes[0].tolist()]}"
        if len(fitting) != 1:
            what = f"may be {' or '.join(fitting)}" if fitting else f"are none of {', '.join(sum(found.formats, []))}"
            raise ValueError(
                f"{path}: boxes ({theirs}) {what}, by {len(boxes)} of them; {first}. Say which: --box_format "
                f"{' or '.join(fitting) or '…'}."
            )
        (columns.box_format,) = fitting
        decided = f"boxes are {columns.box_format}, {first}"
    elif "boxes" in found.places and columns.box_format is None:
        columns.box_format = "xyxy"
    if found.guessed or decided:
        said = "; ".join(filter(None, (str(found), decided)))
        columns.say(f"{path}: {said}. Guessed; --columns and --box_format say otherwise.")


def first_boxes(dataset: Dataset | IterableDataset) -> tuple[np.ndarray, np.ndarray]:
    """float64 (num_boxes, 4), of the first rows with any, and (num_boxes, 2): width and height of their images, 0 for
    one that cannot be read. Of an image only the header is."""
    boxes: list[list[float]] = []
    sizes: list[tuple[int, int]] = []
    rows = dataset.select_columns(["image", "boxes"]).with_format("arrow").iter(batch_size=64)
    for table in islice(rows, MAX_ROWS // 64):
        for row in table.to_pylist():
            of_row = list(fours(row["boxes"]))
            boxes += of_row
            sizes += [image_size(row["image"])] * len(of_row) if of_row else []
        if len(boxes) >= NUM_DECIDING:
            break
    return np.array(boxes, dtype=np.float64).reshape(-1, 4), np.array(sizes).reshape(-1, 2)


def fours(values: Any) -> Iterator[list[float]]:
    """The lists of four numbers in lists of whatever depth."""
    if isinstance(values, list) and values and not any(isinstance(value, list) for value in values):
        if len(values) == 4 and all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            yield values
    elif isinstance(values, list):
        for value in values:
            yield from fours(value)


def image_size(image: dict[str, Any] | None) -> tuple[int, int]:
    """Width and height of an undecoded image, upright; 0, 0 if it cannot be read."""
    try:
        with open_file(io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]) as opened:
            # Of a PNG without Exif data in front, all would be decoded to look for it behind.
            is_known = opened.format != "PNG" or "exif" in opened.info
            is_turned = is_known and opened.getexif().get(_EXIF_ORIENTATION) in _TURNED
            return opened.size[::-1] if is_turned else opened.size
    except (TypeError, *UNREADABLE):
        return 0, 0


def fits_images(boxes: np.ndarray, sizes: np.ndarray, box_format: str) -> bool:
    """Whether boxes (num_boxes, 4), but for very few, have an area in this format, and are in images of these sizes."""
    is_shares = box_format.endswith("_normalized")
    limits = np.ones_like(sizes, dtype=np.float64) if is_shares else np.where(sizes == 0, np.inf, sizes)
    slack = np.where(np.isinf(limits), 0, np.maximum(limits * 0.005, 0 if is_shares else 1))
    corners = to_xyxy(boxes, box_format)
    is_right = (corners[:, :2] < corners[:, 2:]).all(axis=1)
    is_right &= (corners[:, :2] >= -slack).all(axis=1) & (corners[:, 2:] <= limits + slack).all(axis=1)
    is_right &= is_shares | (np.abs(boxes) > 1).any(axis=1)
    return bool((~is_right).mean() <= _MISFITS)
