"""One split of a data set, from disk or streamed: its columns checked, its images left undecoded."""

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from datasets import (
    Array2D,
    ClassLabel,
    Dataset,
    DatasetBuilder,
    Features,
    Image,
    IterableDataset,
    LargeList,
    List,
    ReadInstruction,
    Value,
    get_dataset_split_names,
    load_dataset,
    load_dataset_builder,
)
from datasets.exceptions import DatasetsError, NonMatchingSplitsSizesError
from datasets.features.features import FeatureType
from datasets.inspect import SplitsNotFoundError
from datasets.packaged_modules.csv.csv import CsvConfig
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.table import CastError

from modeling_albef_amc.families.checkpoint_checks import read_object

from .box_units import decide_boxes
from .columns import (
    IMAGE_NAMES,
    MOST_NAMED,
    TEXTS,
    Columns,
    Found,
    MissingColumnError,
    arrange,
    card_data,
    find_columns,
    first_rows,
    leaves,
    listed,
    misfit,
    numbers_of_categories,
    numbers_told,
    only_upright,
    own_name,
    plain_name,
    put_together,
    rows_to_look_at,
    written,
)
from .columns import widened as widened_at
from .image_places import has_paths, image_key, place_images
from .known_formats import IMAGE_FILES, files_below, is_image
from .phrase_rows import OF_PHRASES, SIDES
from .regions import REGIONS

# Files that are a data set by themselves, and what reads them.
FILES = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
# What folders of images are called, and the splits that they are.
SPLIT_FOLDERS = {"train": "train", "training": "train", "valid": "validation", "validation": "validation"}
SPLIT_FOLDERS |= {"val": "validation", "dev": "validation", "test": "test", "testing": "test"}
IMAGES = "image", "masks"
ACCEPTED, *REJECTED = "accept", "reject", "ignore"  # rows, in a column `answer` that Prodigy writes
# What pandas takes for a missing value; a phrase may be called so.
NO_VALUES = "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"
NO_VALUES += "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"
TEXT_FILES = ".csv", ".json", ".jsonl", ".ndjson", ".tsv"
MAX_WHOLE = 2**30  # bytes of a table that is read at once
NUMBERS = pa.types.is_integer, pa.types.is_floating
TEXT = pa.types.is_string, pa.types.is_large_string
# What datasets and Arrow say without the column or option, and what to do.
ADVICE = {
    r"Config name is missing.*configs: \[(.*?)\]": r"it has several configurations; say --dataset_config, one of \1",
    r"Couldn't cast array of type\s+(.*?)\s+to\s+null": r"the first rows of its first file have nothing in a column "
    r"that has \1 later: put a row first that has something in each",
    "infer the same data file format": "its splits seem to have files of different kinds: name a table, such as "
    "--dataset D/train.csv",
    r"Failed to parse string: '(.*)' as a scalar of type": "a column of numbers in its first rows has the text "
    r"\1 later: write all of it as text, in quotes",
}
# All columns that are looked at, and what they may hold: "image file", kinds of values, or [a list of something].
COLUMNS = {
    "image": "image file",
    "image_id": (*TEXT, pa.types.is_integer),
    "phrase": TEXT,
    "caption": TEXT,
    "caption_span": [(pa.types.is_integer,)],
    "boxes": [[NUMBERS]],
    "polygons": [[[NUMBERS]]],
    "masks": ["image file"],
    "scribbles": [[NUMBERS]],
    "scribble_radius": NUMBERS,
    "absent": (pa.types.is_boolean, pa.types.is_integer),
    "proposals": [[NUMBERS]],
    "categories": [TEXT],
    **dict.fromkeys(SIDES, NUMBERS),
}
MOST_SEARCHED = 10_000  # rows, for one that is unlike others
# What they hold in a row with a list of phrases, which is several records; see `phrase_rows`.
LISTED = COLUMNS | {column: [COLUMNS[column]] for column in OF_PHRASES}


def open_split(
    path: str,
    config: str | None,
    split: str,
    streaming: bool = False,
    columns: Columns | None = None,
    needs_regions: bool = False,
) -> Dataset | IterableDataset:
    """One split of a file, a folder or a Hub id, with the columns of `COLUMNS` that it has.

    Paths of images and masks are relative to the folder of the files that name them. A file is the one split that is
    asked for. Where it, or a folder's only split, has a column `split` that names several, a split is the rows of it.

    Args:
        streaming: read files as they come instead of preparing the data set on disk first.
        columns: what is known of its columns and units; what is found out is added.
        needs_regions: a data set without any column of regions is an error.

    Raises:
        ValueError: it cannot be read, or has no such split or column, or a column holds something else, or it is in
            doubt which column is meant, or what its boxes are.
    """
    columns = Columns() if columns is None else columns
    asked = split
    told_here = partial(told, f"Split {asked} of {path}", lambda: data_files(path, config, split))
    with told_here():
        rows = splits_of_rows(path, config)
        split = rows.whole if rows else split  # of which those that are asked for are chosen
    dataset, found = load(path, config, split, streaming, columns, needs_regions, told_here)
    if rows:
        none = f" {rows.unnamed:,} rows that name none are left out." if rows.unnamed else ""
        names = ", ".join(dict.fromkeys(rows.names.values()))
        columns.say(f"{path}: its column {rows.column} says which rows are of split {asked}, of {names}.{none}")
        with told_here():
            dataset = of_rows(dataset, asked, rows)
    if dataset.column_names is None:
        raise ValueError(
            f"{path} does not say its columns before it is read: leave out streaming, or store it as Parquet."
        )
    with told_here():
        said = [] if rows else said_splits(dataset)
    if said:
        columns.say(f"{path}: all rows are taken for split {asked}, whatever its column split says ({listed(said)}).")
    with rows_not_objects(lambda: data_files(path, config, split)):
        found = found or find_columns(dataset.features, columns, COLUMNS, path, needs_regions)
        if missing := {"image", "phrase"} - found.places.keys():
            raise ValueError(missing_columns(dataset, missing, found, path))
        dataset = only_upright(without_rejected(dataset, found, columns, path), found, columns, path, needs_regions)
        unknown = [column for column in dataset.column_names if [(column,)] not in found.places.values()]
        others = dataset.select_columns(unknown)
        with told_here():
            first = rows_to_look_at(dataset, found)
        dataset = arrange(dataset, found, path, first)
        dataset, is_listed = known_columns(dataset, found, path, needs_regions, others)
    if isinstance(dataset, Dataset):
        with told_here():
            dataset.data.validate(full=True)  # of text that is not UTF-8 nothing else says so before it is read
    folders = cache(lambda: folders_of_files(path, config, split))
    dataset = put_together(dataset, found, columns, path, lambda image: image_key(image, folders()))
    image = Image(decode=False)
    kinds = {"image": image, "masks": List(List(image)) if is_listed else List(image)}
    features = Features({name: kinds.get(name, feature) for name, feature in dataset.features.items()})
    fetch = columns.download_images
    paths = [name for name in kinds if name in features and has_paths(dataset, name, fetch)]
    if paths:
        place = {"names": paths, "folders": folders(), "schema": features.arrow_schema}
        place |= {"fetch": fetch} if fetch else {}
        # Table by table: of single rows, those of streamed data that have nothing in a column lose its type. Few rows
        # each: a table of 2 GiB of images cannot be written.
        options = {"batched": True, "batch_size": 100, "features": features, "fn_kwargs": place}
        dataset = dataset.with_format("arrow").map(place_images, **options).with_format(None)
    try:
        return decide_boxes(undecoded(dataset, features), found, columns, path, needs_regions)
    except (CastError, TypeError, DatasetsError, pa.ArrowException):  # of a streamed file after the first
        with told_here():
            raise


def undecoded(dataset: Dataset | IterableDataset, features: Features) -> Dataset | IterableDataset:
    """The same rows by these features, which differ in what is decoded; on disk they are not written again."""
    if isinstance(dataset, IterableDataset):
        for name in set(IMAGES) & set(features):
            dataset = dataset.cast_column(name, features[name])
        return dataset
    info = dataset.info.copy()
    info.features = features
    # cast_column would write all columns anew for a list of images, and fail where 1,000 rows hold 2 GiB; so would
    # flatten_indices.
    return Dataset(dataset.data.cast(features.arrow_schema), info, dataset.split, dataset._indices)


def load(
    path: str,
    config: str | None,
    split: str,
    streaming: bool,
    columns: Columns,
    needs_regions: bool,
    told_here: Callable[[], AbstractContextManager[None]],
) -> tuple[Dataset | IterableDataset, Found | None]:
    """The split as datasets reads it, its columns wide enough for all rows; and where ours are in it, if it says so."""
    is_here = os.path.exists(path)
    with told_here():
        source = source_of(path, config, split)
    # A stream's columns are those of its first rows, by which datasets would read all others, and prepare them too.
    is_look = is_here and split.isidentifier() and not streaming  # nor is a slice streamed
    with told_here():
        if "name" in source:
            source["data_files"] = own_files(path, config, split)
        files, is_csv = text_files(source, split) if is_here else ([], False)
        source |= {"sep": separator_of_all(files)} if is_csv else {}
        if is_csv and not streaming:
            dataset, features = None, csv_features(files, source)
        else:
            dataset = load_dataset(**source, split=split, streaming=streaming or is_look)
            features = dataset.features and Features({name: plain(each) for name, each in dataset.features.items()})
    columns.read_card(path)
    found, options = None, {}
    if features is not None:
        with rows_not_objects(lambda: files, dataset):
            found = find_columns(features, columns, COLUMNS, path, needs_regions)
        wide = widened(features, found, is_csv)
        texts = [name for name in features if fits(features[name], NUMBERS) and wide[name] == Value("string")]
        if texts:
            columns.say(f"{path}: {', '.join(texts)}: numbers are taken as texts.")
        if dataset is None:
            options = csv_options(files, features, texts, found)
        elif wide != dataset.features:
            options = {"features": wide}
    with told_here():
        if is_look or options:
            dataset = load_dataset(**source, split=split, streaming=streaming, **options)
        if dataset.column_names is None:
            next(iter(dataset))  # says why, if the first file is broken
        else:
            # datasets would decode images, and stop at one that is missing or broken.
            dataset = dataset if isinstance(dataset, Dataset) else dataset.decode(False)
    return of_folder(dataset, path, split), found


def text_files(source: dict[str, Any], split: str) -> tuple[list[str], bool]:
    """Files of a split on disk, and whether they are CSV.

    Raises ValueError: the first record of a file of JSON is null, at which Arrow ends the process.
    """
    builder = load_dataset_builder(**source)
    named = [file for files in files_by_split(builder, split).values() for file in files]
    files = [file for file in named if os.path.isfile(file)]
    for file in files:
        if file.lower().endswith((".json", ".jsonl", ".ndjson")):
            with open(file, "rb") as opened:
                if re.match(rb"(\xef\xbb\xbf)?\s*\[?\s*null\b", opened.read(1000)):
                    raise ValueError(f"the first record of {file} is null: remove it")
    return files, bool(files) and isinstance(builder.config, CsvConfig)


def csv_features(files: list[str], source: dict[str, Any]) -> Features:
    """What columns hold in all rows of all files; of a file too large to be read at once, in the first of them."""
    kinds: dict[str, pa.DataType] = {}
    for file in files:
        most = 10_000 if os.path.getsize(file) > MAX_WHOLE else None
        frame = pd.read_csv(file, sep=source["sep"], nrows=most, low_memory=False)
        for field in pa.Table.from_pandas(frame, preserve_index=False).schema:
            kind = kinds.setdefault(field.name, field.type)
            if kind != field.type:
                are_numbers = all(fits(Value(str(each)), NUMBERS) for each in (kind, field.type))
                kinds[field.name] = pa.float64() if are_numbers else pa.string()
    return Features.from_arrow_schema(pa.schema(kinds))


def csv_options(files: list[str], features: Features, texts: list[str], found: Found) -> dict[str, Any]:
    """How CSV is read so that a column is of one kind in all rows; else it would be of that of the first 10,000."""
    texts = [*texts, *(name for name in features if fits(features[name], TEXT))]
    converters: dict[str, Callable] = dict.fromkeys(texts, text_or_none)
    if len(files) > 1:  # in some of which all numbers may be whole
        converters |= {name: number_or_nan for name in features if features[name] == Value("float64")}
    for ((name, *_),) in filter(None, [found.places.get("absent")]):
        converters |= {} if fits(features[name], COLUMNS["absent"]) else {name: truth_or_none}
    options: dict[str, Any] = {"converters": converters} if converters else {}
    exact = {place[0] for ours in TEXTS for place in found.places.get(ours, [])}
    missing = {name: [""] if name in exact else [*NO_VALUES] for name in features}
    options |= {"keep_default_na": False, "na_values": missing}
    is_whole = all(os.path.getsize(file) <= MAX_WHOLE for file in files)
    return options | ({"chunksize": 2**31 - 1} if is_whole else {})


def not_looked_into(dataset: Dataset | IterableDataset) -> str:
    """What to do about the first column whose entries differ in keys or types, and the first that does."""
    mixed = [place for place, leaf in leaves(dataset.features).items() if leaf.is_mixed]
    if not mixed:
        return ""
    column = mixed[0][0]
    rows = islice(dataset.select_columns([column]), MOST_SEARCHED)
    entries = ((number, entry) for number, row in enumerate(rows) for entry in objects_in(row[column]))
    _, first = next(entries, (0, {}))
    found = ""
    for number, entry in entries:
        keys = [key for key in first | entry if len({kind_of(first, key), kind_of(entry, key)} - {"NoneType"}) > 1]
        if keys:
            found = f" record {number} has {entry!r:.100}, which is unlike {first!r:.100} in {keys[0]!r}:"
            break
    return f" {written(mixed[:1])} cannot be looked into:{found} give all that is in it the same keys and types."


def objects_in(value: Any) -> Iterator[dict]:
    """Also in lists of lists."""
    if isinstance(value, dict):
        yield value
    for each in value if isinstance(value, list) else ():
        yield from objects_in(each)


def kind_of(entry: dict, key: str) -> str:
    """Of what it has there; None goes with any, but a key that is missing with none."""
    value = entry.get(key)
    if key not in entry:
        return "missing"
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def missing_columns(dataset: Dataset | IterableDataset, missing: set[str], found: Found, path: str) -> str:
    """What to do about a data set without a phrase or an image."""
    guessed = {ours: written(found.places[ours]) for ours in found.guessed if ours in ("image", "phrase")}
    said = " ".join(f"{ours}={guessed.get(ours, '…')}" for ours in sorted(missing | guessed.keys()))
    remedy = f"Rename what stands for it, or say --columns {said}; see docs/data.md."
    files = list(files_below(Path(path), None)) if os.path.isdir(path) else []
    near = [file for file in files if len(file.relative_to(path).parts) < 3]
    tables = [file for file in near if file.suffix in FILES]
    others = [file for file in near if not is_image(file) and not re.match("(?i)readme|license", file.name)]
    metadata = [file for file in files if file.stem == "metadata"]
    there = leaves(dataset.features)
    if "phrase" in missing and (numbers := numbers_of_categories(there)):
        remedy = f"{numbers_told(numbers[0])} {remedy}"
    if dataset.column_names == ["text"]:
        remedy = (
            "datasets took lines of text files for rows. Of YOLO's labels, name the folder with labels, images and "
            "data.yaml or classes.txt, which says the names of classes."
        )
    remedy += not_looked_into(dataset)
    if (metadata or tables) and "phrase" in missing and set(dataset.column_names) <= {"image", "label"}:
        remedy = f"datasets read its images and passed over {os.path.relpath((metadata or tables)[0], path)}: " + (
            "words such as train or test in the names of images or folders say splits to it. Put all images of a "
            "split, with a metadata file that is of them alone, below one folder: train/, test/."
            if metadata
            else "put this file into a folder of its own, with paths of the images from there, such as ../images/1.jpg,"
            f" or name the file: --dataset {tables[0]}."
        )
    elif others and "phrase" in missing and set(dataset.column_names) <= {"image", "label"}:
        remedy = (
            f"datasets read its images and passed over {os.path.relpath(others[0], path)}. If this says what is in "
            f"them, write it as a table of {', '.join(FILES)}, a row for each phrase and its image, and name the file: "
            "--dataset …; see docs/data.md."
        )
    has = listed([written([place]) for place in there])
    return f"{path} has no column {', '.join(sorted(missing | guessed.keys()))}; it has {has}. {remedy}"


def widened(features: Features, found: Found, is_csv: bool) -> Features:
    """The same, with known columns of nothing but nulls, or of numbers, as what other rows may hold in them."""
    names = {places[0][0]: ours for ours, places in found.places.items() if len(places) == len(places[0]) == 1}
    is_listed = any(isinstance(features[column], List | LargeList) for column in names if names[column] == "phrase")
    wanted = {column: (LISTED if is_listed else COLUMNS).get(name) for column, name in names.items()}
    wide = {
        column: feature_of(wanted[column]) if column in wanted and is_narrow(feature, wanted[column]) else feature
        for column, feature in features.items()
    }
    for ours in set(REGIONS) & found.places.keys():
        for place in found.places[ours]:
            wide[place[0]] = widened_at(wide[place[0]], place[1:])
    if is_csv:  # of which 7 and 007 are two images
        wide |= {place[0]: Value("string") for place in found.places.get("image_id", [])}
    return Features(wide)


def plain(feature: FeatureType) -> FeatureType:
    """The same, decimal numbers as floating point numbers, and views of texts as texts."""
    if isinstance(feature, List | LargeList):
        inner = plain(feature.feature)
        return LargeList(inner) if isinstance(feature, LargeList) else List(inner, length=feature.length)
    if isinstance(feature, dict):
        return {name: plain(each) for name, each in feature.items()}
    if isinstance(feature, Value) and pa.types.is_decimal(feature.pa_type):
        return Value("float64")
    return Value("string") if isinstance(feature, Value) and pa.types.is_string_view(feature.pa_type) else feature


def feature_of(wanted: Any) -> FeatureType:
    """Of what is wanted of a column, the widest kind; of an image, its path."""
    if isinstance(wanted, list):
        return List(feature_of(wanted[0]))
    kinds = map(Value, ("string", "float64", "bool", "int64"))
    return next(kind for kind in kinds if fits(kind, wanted))


def is_narrow(feature: FeatureType, wanted: Any) -> bool:
    """Whether it can hold nothing but nulls, whole numbers where any are wanted, or numbers where texts are."""
    if isinstance(feature, List | LargeList):
        return isinstance(wanted, list) and is_narrow(feature.feature, wanted[0])
    if fits(feature, (pa.types.is_null,)):
        return True
    if wanted == NUMBERS:
        return fits(feature, (pa.types.is_integer,))
    return fits(feature, NUMBERS) and fits(Value("string"), wanted) and not fits(feature, wanted)


def named_shards(dataset: IterableDataset, files: list[str]) -> list[str]:
    """What messages call each shard of a streamed data set: its file, if each is one."""
    return files if len(files) == dataset.num_shards else ["The data set"] * dataset.num_shards


def reading(rows: Iterable[Any], what: str) -> Iterator[Any]:
    """The rows or tables of a streamed data set, errors as of `told`."""
    with told(what, lambda: [what]):
        for row in rows:
            if isinstance(row, pa.Table):
                row.validate(full=True)
            yield row


@contextmanager
def told(what: str, files: Callable[[], list[str]] = list) -> Iterator[None]:
    """What keeps `datasets` from reading a data set, as a ValueError that names it, and the line of one of its files
    where that is not UTF-8.
    """
    try:
        yield
    except NonMatchingSplitsSizesError as error:
        raise ValueError(
            f"{what} cannot be had: its files have other rows than its README.md counts, which is of one build. Of "
            "files of several, put together, remove the README.md."
        ) from error
    except StopIteration as error:  # where it looks for the first row
        raise ValueError(f"{what} cannot be had: a file of it is empty.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{what} cannot be had: the YAML that its README.md begins with is none: {error}") from error
    except (ValueError, TypeError, OSError, DatasetsError, pa.ArrowException) as error:
        reason = reason_of(error)
        named = [] if isinstance(reason, str) else files()
        if "BatchSize must be greater than 0" in str(reason):  # of a file's first part
            reason = f"{', '.join(files_without_rows(named)) or 'a file of it'} has no row: remove it"
        if isinstance(reason, UnicodeDecodeError) or re.search("UTF-?8", str(reason)):
            what, reason = next(lines_of_other_texts(named), what), "it is not in UTF-8: save the file as UTF-8"
        if utf_16 := next(files_in_utf_16(named), None):
            what, reason = utf_16, "it is in UTF-16, as PowerShell writes it: save the file as UTF-8"
        raise ValueError(f"{what} cannot be had: {reason}") from error


def reason_of(error: BaseException) -> BaseException | str:
    """What to do about an error where that is known, else the error that is its cause."""
    # Of a broken file datasets says that there was an error, and what it was only as its cause.
    while isinstance(error, DatasetsError | SplitsNotFoundError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, CastError):
        keys = sorted(set(error.table_column_names) ^ set(error.requested_column_names))
        return f"only some of its rows have the keys {', '.join(keys)}: write these into every row, null without"
    found = {advice: re.search(pattern, str(error), re.DOTALL) for pattern, advice in ADVICE.items()}
    return next((match.expand(advice) for advice, match in found.items() if match), error)


@contextmanager
def rows_not_objects(
    files: Callable[[], list[str]], dataset: Dataset | IterableDataset | None = None
) -> Iterator[None]:
    """Where columns are not understood, and a file is one JSON object, which datasets takes for a row, says that; and
    where one that somebody named is not there, what of the data set cannot be looked into."""
    try:
        yield
    except ValueError as error:
        for file in files():
            if keys := keys_of_object(file):
                raise ValueError(
                    f"{file} is one object, of the keys {listed(keys)}: make it a list of rows, or JSON Lines, a row "
                    "each line, and a file of each split."
                ) from error
        if isinstance(error, MissingColumnError) and dataset is not None:
            raise ValueError(f"{error}{not_looked_into(dataset)}") from error
        raise


def keys_of_object(file: str) -> list[str]:
    """Of a JSON file on disk that is one object, and no row with the path of an image."""
    if not (file.lower().endswith(".json") and os.path.isfile(file) and os.path.getsize(file) <= MAX_WHOLE):
        return []
    with open(file, encoding="utf-8-sig") as opened:
        try:
            found = json.load(opened)
        except ValueError:  # of several rows
            return []
    if not isinstance(found, dict):
        return []
    is_row = any(isinstance(found[key], str) and IMAGE_NAMES.fullmatch(plain_name(key)) for key in found)
    return [] if is_row else [f"{key:.80}" for key in found]


def files_without_rows(files: list[str]) -> list[str]:
    """Of Parquet files on disk."""
    on_disk = [file for file in files if file.endswith(".parquet") and os.path.isfile(file)]
    return [file for file in on_disk if not pq.read_metadata(file).num_rows]


def files_in_utf_16(files: list[str]) -> Iterator[str]:
    """Of files on disk, those that begin with its byte order mark."""
    for file in files:
        if file.lower().endswith(TEXT_FILES) and os.path.isfile(file):
            with open(file, "rb") as opened:
                if opened.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                    yield file


def lines_of_other_texts(files: list[str]) -> Iterator[str]:
    """Of files on disk, the lines that are not UTF-8."""
    for file in files:
        if file.lower().endswith(TEXT_FILES) and os.path.isfile(file):
            with open(file, "rb") as lines:
                for number, line in enumerate(lines, 1):
                    if "\ufffd" in line.decode(errors="replace"):
                        yield f"Line {number} of {file}"


def known_columns(
    dataset: Dataset | IterableDataset, found: Found, path: str, needs_regions: bool, others: Dataset | IterableDataset
) -> tuple[Dataset | IterableDataset, bool]:
    """The data set with its columns in our order, and whether its rows have lists of phrases.

    Args: others: the columns that it had and that nobody knows, for messages.
    """
    if needs_regions and not set(REGIONS) & set(dataset.column_names):
        raise ValueError(
            f"AMC needs regions, and scores do; {path} has none of the columns {', '.join(REGIONS)}; not understood: "
            f"{listed(others.column_names) or 'none'}. Say which has its regions (--columns boxes=…), or train without "
            f"AMC: --region_loss none.{not_looked_into(others)}"
        )
    dataset = dataset.select_columns([column for column in COLUMNS if column in dataset.column_names])
    is_listed = fits(dataset.features["phrase"], LISTED["phrase"])
    for column, feature in dataset.features.items():
        is_of_all = column == "absent" and fits(feature, COLUMNS[column])
        if not (fits(feature, (LISTED if is_listed else COLUMNS)[column]) or is_of_all):
            values = [row[column] for row in first_rows(dataset, [column])]
            first = next((value for value in values if value is not None), feature)
            raise ValueError(misfit(column, found.places[column], path, first, is_listed))
    return dataset, is_listed


def split_folders(path: str) -> dict[str, str]:
    """Split → its folder of images, where all have one table in their common folder, which datasets pass over."""
    tables = ImageFolder.METADATA_FILENAMES
    if not os.path.isdir(path) or not any(Path(path, table).is_file() for table in tables):
        return {}
    folders = [each for each in Path(path).iterdir() if each.is_dir() and each.name.lower() in SPLIT_FOLDERS]
    if any((folder / table).is_file() for folder in folders for table in tables):  # of its own
        return {}
    return {SPLIT_FOLDERS[folder.name.lower()]: folder.name for folder in folders}


def of_folder(dataset: Dataset | IterableDataset, path: str, split: str) -> Dataset | IterableDataset:
    """The rows of a table that name images in the folder of the split, where folders are splits."""
    folders = split_folders(path)
    if not folders:
        return dataset
    if split not in folders or "file_name" not in (dataset.column_names or []):
        raise ValueError(
            f"Split {split} of {path} cannot be had: its table is of {', '.join(folders)}, each taken whole, and names "
            "images by file_name."
        )
    beginning = f"{folders[split]}/"
    found = rows_where(dataset, "file_name", lambda name: (name or "").startswith(beginning))
    if isinstance(found, Dataset) and len(found) == 0:
        raise ValueError(f"Split {split} of {path} cannot be had: no file_name in its table begins with {beginning}")
    return found


class SplitsOfRows(NamedTuple):
    """What a column says of the rows of a data set.

    Args:
        whole: the split that all of them are to datasets.
        names: what the column says → the split.
        unnamed: how many rows are of none.
    """

    whole: str
    column: str
    names: dict[str | int, str]
    unnamed: int


def splits_of_rows(path: str, config: str | None) -> SplitsOfRows | None:
    """What the column `split` says, of a file or of a folder that is one split; None where it tells none apart.

    One of the splits has to be called train, val, dev or test, or begin so; the others are whatever they are called.
    """
    source = source_of(path, config, "train")
    if not os.path.exists(path):
        return None
    files = {"train": [path]}
    if os.path.isdir(path):
        builder = load_dataset_builder(**source)
        files = files_by_split(builder, "all")
        if isinstance(builder, ImageFolder):
            files = {split: [each for each in files[split] if is_metadata(each)] for split in files}
    if len(files) != 1:
        return None
    ((whole, tables),) = files.items()
    column, counts, said = "", Counter[Any](), dict[Any, Any]()
    for table in chain.from_iterable(map(tables_of_splits, tables)):
        column = next((name for name in table.column_names if own_name(name) == "split"), "")
        kind = table[column].type if column else None
        is_label = kind is not None and pa.types.is_integer(kind)
        label = Features.from_arrow_schema(table.schema)[column] if is_label else None  # as the file's features tell
        is_text = kind is not None and not is_label and (pa.types.is_dictionary(kind) or fits(Value(str(kind)), TEXT))
        if not (is_text or isinstance(label, ClassLabel)):
            return None
        values = table[column] if is_label else table[column].cast(pa.string())
        for value, count in map(dict.values, pc.value_counts(values).to_pylist()):
            counts[value] += count
            said[value] = label.names[value] if is_label and value is not None and value >= 0 else value
    texts = {value: text.strip() for value, text in said.items() if isinstance(text, str) and text.strip()}
    names = {value: re.sub(r"\W+", "_", SPLIT_FOLDERS.get(text.lower(), text)) for value, text in texts.items()}
    is_known = any(re.match("train|val|dev|test", name, re.IGNORECASE) for name in names.values())
    if not is_known or not 1 < len({*names.values()}) <= MOST_NAMED:
        return None
    return SplitsOfRows(str(whole), column, names, sum(counts.values()) - sum(counts[value] for value in names))


def tables_of_splits(file: str) -> Iterable[pa.Table]:
    """Of a file, its column `split`, with others where it cannot be read alone; an empty table of what is no table."""
    kind = FILES.get(Path(file).suffix.lower())
    if not os.path.isfile(file) or kind is None:
        return [pa.table({})]
    if kind == "csv":
        frame = pd.read_csv(file, sep=separator(file), usecols=lambda name: own_name(name) == "split", dtype=str)
        return [pa.Table.from_pandas(frame, preserve_index=False)]
    if kind == "parquet":
        names = [name for name in pq.read_schema(file).names if own_name(name) == "split"]
        return [pq.read_table(file, columns=names)]
    source = {"path": kind, "data_files": {"train": file}}
    text_files(source, "train")  # refuses what would end the process
    try:
        return load_dataset(**source, split="train", streaming=True).with_format("arrow").iter(batch_size=10_000)
    except StopIteration:  # it has no row, which beside others is no trouble
        return []


def is_metadata(file: str) -> bool:
    return os.path.basename(file) in ImageFolder.METADATA_FILENAMES


def without_rejected(
    dataset: Dataset | IterableDataset, found: Found, columns: Columns, path: str
) -> Dataset | IterableDataset:
    """The rows that nobody rejected in Prodigy, or passed over; of other columns `answer`, all."""
    name = next((name for name in dataset.column_names if own_name(name) == "answer"), "")
    if not name or [(name,)] in found.places.values() or not fits(dataset.features[name], TEXT):
        return dataset
    is_whole = isinstance(dataset, Dataset)
    said = dataset.select_columns([name])[name][:] if is_whole else [row[name] for row in first_rows(dataset, [name])]
    if not ({*said} - {None} and {*said} <= {None, ACCEPTED, *REJECTED}):
        return dataset
    num_rejected = sum(each in REJECTED for each in said)
    if is_whole and not num_rejected:
        return dataset
    count = f"{num_rejected:,} of {len(said):,} rows" if is_whole else "rows"
    columns.say(f"{path}: {count} are left out, of which the column {name} says {' or '.join(REJECTED)}.")
    return rows_where(dataset, name, lambda each: each not in REJECTED)


def rows_where(
    dataset: Dataset | IterableDataset, column: str, is_kept: Callable[[Any], bool]
) -> Dataset | IterableDataset:
    """Those by what a column says. Table by table: of single rows, those of streamed data that have nothing in a column
    lose its type."""
    if isinstance(dataset, Dataset):
        return dataset.filter(is_kept, input_columns=column)

    def kept(table: pa.Table) -> pa.Table:
        return table.filter(pa.array(map(is_kept, table[column].to_pylist()), pa.bool_()))

    return dataset.with_format("arrow").map(kept, batched=True, features=dataset.features).with_format(None)


def said_splits(dataset: Dataset | IterableDataset) -> list[str]:
    """What a column `split` says of rows that are taken together, if not the same of all; of a stream, of the first."""
    name = next((name for name in dataset.column_names if own_name(name) == "split"), "")
    feature = dataset.features.get(name)
    if not isinstance(feature, Value | ClassLabel):
        return []
    is_whole, names = isinstance(dataset, Dataset), getattr(feature, "names", None)
    values = dataset.unique(name) if is_whole else {row[name] for row in first_rows(dataset, [name])}
    said = sorted(str(each if names is None or each is None else names[each]) for each in values)
    return said if len(said) > 1 else []


def of_rows(dataset: Dataset | IterableDataset, asked: str, rows: SplitsOfRows) -> Dataset | IterableDataset:
    """The rows of the splits that are asked for; slices are of these.

    Raises ValueError: no row is of such a split.
    """
    names = dict.fromkeys(rows.names.values())
    if unknown := {part.partition("[")[0].strip() for part in asked.split("+")} - names.keys():
        raise ValueError(f"its column {rows.column} has only {', '.join(names)}, not {', '.join(sorted(unknown))}")
    if isinstance(dataset, IterableDataset):
        wanted = [part.strip() for part in asked.split("+")]
        return rows_where(dataset, rows.column, lambda said: rows.names.get(said) in wanted)
    numbers: dict[str, list[int]] = {split: [] for split in names}
    for number, said in enumerate(dataset.select_columns([rows.column])[rows.column][:]):
        numbers.setdefault(rows.names.get(said, ""), []).append(number)
    parts = ReadInstruction.from_spec(asked).to_absolute({split: len(numbers[split]) for split in names})
    return dataset.select([row for part in parts for row in numbers[part.splitname][part.from_ : part.to]])


def source_of(path: str, config: str | None, split: str | None) -> dict[str, Any]:
    """What `load_dataset` is told of a folder or Hub id; or of a file, which is the split that is asked for.

    Raises ValueError: it is a file of another kind, not there, or would be taken for a pattern of others.
    """
    if os.path.exists(path):
        if pattern := re.search(r"[][*?]", os.path.abspath(path)):
            raise ValueError(f"{path}: datasets takes {pattern[0]} in a path for a pattern of others: rename it.")
    elif Path(path).suffix.lower() in FILES or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ValueError(f"There is no file or folder {path}.")
    if saved := saved_files(path):
        return {"path": "arrow", "data_files": saved}
    if folders := split_folders(path):
        (table, *_) = (file for name in ImageFolder.METADATA_FILENAMES if (file := Path(path, name)).is_file())
        return {"path": FILES[table.suffix], "data_files": dict.fromkeys(folders, str(table))}
    if not os.path.isfile(path):
        return {"path": not_a_loader(path), "name": config, "data_files": named_files(path)}
    kind = Path(path).suffix.lower()
    if kind not in FILES:
        raise ValueError(f"{path} is no table of {', '.join(FILES)}: albef-amc build reads other annotations.")
    names = dict.fromkeys(part.partition("[")[0].strip() for part in (split or "train").split("+"))
    return {"path": FILES[kind], "data_files": dict.fromkeys(names, path)}


def text_or_none(text: str) -> str | None:
    return text or None


def number_or_nan(text: str) -> float:
    return float("nan" if text.strip() in NO_VALUES else text)


def truth_or_none(text: str) -> bool | str | None:
    """A cell of CSV that says whether a phrase is absent; what says neither stays text, and is refused."""
    return {"": None, "true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}.get(
        text.strip().lower(), text
    )


def separator(file: str) -> str:
    """What parts the columns of a CSV file; by its first line, and of a compressed one, a comma."""
    if not file.lower().endswith(TEXT_FILES):
        return ","
    with open(file, encoding="utf-8-sig", errors="replace") as opened:
        line = opened.readline()
    return max(",;\t", key=line.count)


def separator_of_all(files: list[str]) -> str:
    """ValueError: two files differ in what parts their columns, as which datasets reads all of a split."""
    first, *others = map(separator, files)
    if other := next((file for file, each in zip(files[1:], others) if each != first), None):
        raise ValueError(f"columns are parted by {first!r} in {files[0]}, and by {separator(other)!r} in {other}")
    return first


def not_a_loader(path: str) -> str:
    """A folder's whole path: by its name alone datasets would take one called csv, json or parquet for a loader."""
    return os.path.abspath(path) if os.path.isdir(path) else path


def saved_files(path: str) -> dict[str, list[str]]:
    """Split → the files of a folder of `save_to_disk`; beside them may lie what `map` has left there."""
    folders = {"train": Path(path)} if Path(path, "state.json").is_file() else {}
    if (several := Path(path, "dataset_dict.json")).is_file():
        folders = {split: Path(path, split) for split in read_object(several).get("splits", [])}
    listed = {split: read_object(folder / "state.json").get("_data_files", []) for split, folder in folders.items()}
    return {split: [os.path.abspath(folders[split] / file["filename"]) for file in listed[split]] for split in listed}


def named_files(path: str) -> dict[str, str] | None:
    """Split → its files, where no README.md says them: of builds put together, by their names, of which datasets knows
    few; or the table of each folder of a split, which images in it would hide.
    """
    if not os.path.isdir(path) or card_data(path).keys() & {"configs", "dataset_info"}:
        return None
    files = Path(path, "data").glob("*.parquet")
    splits = [re.fullmatch(r"(\w+(?:\.\w+)*)-\d+\.parquet", file.name) for file in files]
    if splits and all(splits):
        return {split[1]: f"data/{split[1]}-*.parquet" for split in splits}
    tables = [file.relative_to(path) for file in files_below(Path(path), None) if file.suffix.lower() in FILES]
    own = {SPLIT_FOLDERS.get(table.parts[0].lower()): table for table in tables}
    kinds, names = {FILES[table.suffix.lower()] for table in tables}, {table.name for table in tables}
    is_one_each = len(own) == len(tables) and None not in own and len(kinds) == 1
    if not is_one_each or names & {*ImageFolder.METADATA_FILENAMES}:
        return None
    return {split: str(own[split]) for split in dict.fromkeys(SPLIT_FOLDERS.values()) if split in own}


def split_names(path: str, config: str | None) -> list[str]:
    """Those of rows, of a folder, or of a Hub id; else a file has no other than the one that is asked for."""
    with told(path, lambda: [path] if os.path.isfile(path) else []):
        rows = splits_of_rows(path, config)  # says what no folder may be called
        if rows or os.path.isfile(path):
            return list(dict.fromkeys(rows.names.values())) if rows else []
        return list(saved_files(path) or split_folders(path)) or get_dataset_split_names(
            not_a_loader(path), config, data_files=named_files(path)
        )


def data_files(path: str, config: str | None, split: str) -> list[str]:
    """The files of a split; of slices and sums such as "train[:75%]+test", those of the splits that they name."""
    builder = load_dataset_builder(**source_of(path, config, split))
    return [file for files in files_by_split(builder, split).values() for file in files]


def files_by_split(builder: DatasetBuilder, split: str) -> dict[str, list[str]]:
    files = builder.config.data_files or {}
    names = dict.fromkeys(part.partition("[")[0].strip() for part in split.split("+"))
    return {name: list(files[name]) for name in (files if split == "all" else names) if name in files}


def own_files(path: str, config: str | None, split: str) -> dict[str, Any] | None:
    """Split → its files, of those that `split` names: other splits may have other columns. As of `named_files` where a
    README.md counts the rows of all splits, and of images, which are many.
    """
    named = named_files(path)
    if not os.path.isdir(path):
        return named
    builder = load_dataset_builder(not_a_loader(path), config, data_files=named)
    own = files_by_split(builder, split)
    are_tables = not any(
        file.lower().endswith((".zip", *IMAGE_FILES)) or glob.has_magic(file)
        for files in own.values()
        for file in files
    )
    # Of all splits, of which a part would lose them: their counts, and the kinds of columns.
    is_counted = builder.info.splits is not None or builder.info.features is not None
    return own if own and are_tables and not is_counted else named


def folders_of_files(path: str, config: str | None, split: str) -> list[str]:
    """Where the files of a split are that may name images, on this machine or on the Hub."""
    tables = [file for file in data_files(path, config, split) if not file.lower().endswith(IMAGE_FILES)]
    return list(dict.fromkeys(map(os.path.dirname, tables)))


def fits(feature: FeatureType, wanted: Any) -> bool:
    """Whether a column of this kind can hold what is wanted of it; one of nothing but nulls can."""
    if isinstance(feature, Value) and pa.types.is_null(feature.pa_type):
        return True
    if isinstance(wanted, list):
        if isinstance(feature, Array2D):
            return fits(List(List(Value(feature.dtype))), wanted)
        return isinstance(feature, List | LargeList) and fits(feature.feature, wanted[0])
    if wanted == "image file":
        kinds = pa.types.is_binary, pa.types.is_large_binary, *TEXT
        if isinstance(feature, dict):  # of undecoded images, in a file that does not say so
            return {"bytes", "path"} == feature.keys() and all(fits(part, kinds) for part in feature.values())
        return isinstance(feature, Image) or fits(feature, kinds)
    return isinstance(feature, Value) and any(is_of(feature.pa_type) for is_of in wanted)
