"""One split of a data set, from disk or streamed: its columns checked, its images left undecoded."""

import os

import pyarrow as pa
from datasets import (
    Array2D,
    Dataset,
    Image,
    IterableDataset,
    LargeList,
    List,
    Value,
    get_dataset_split_names,
    load_dataset,
    load_dataset_builder,
)
from datasets.exceptions import DatasetsError
from datasets.features.features import FeatureType

from .phrase_rows import OF_PHRASES
from .regions import REGIONS

IMAGES = "image", "masks"
NUMBERS = pa.types.is_integer, pa.types.is_floating
TEXT = pa.types.is_string, pa.types.is_large_string
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
    "absent": (pa.types.is_boolean,),
    "proposals": [[NUMBERS]],
    "categories": [TEXT],
}
# What they hold in a row with a list of phrases, which is several records; see `phrase_rows`.
LISTED = COLUMNS | {column: [COLUMNS[column]] for column in OF_PHRASES}


def open_split(
    path: str,
    config: str | None,
    split: str,
    streaming: bool = False,
    renamed: dict[str, str] | None = None,
    needs_regions: bool = False,
) -> Dataset | IterableDataset:
    """One split of a folder, or of a Hub id, with the columns of `COLUMNS` that it has.

    Args:
        streaming: read files as they come instead of preparing the data set on disk first.
        renamed: the data set's column → ours, where they differ.
        needs_regions: a data set without any column of regions is an error.

    Paths of images are relative to the folder of the files that name them.

    Raises:
        ValueError: it cannot be read, or has no such split or column, or a column holds something else.
    """
    try:
        dataset = load_dataset(path, config, split=split, streaming=streaming)
    except (ValueError, OSError, DatasetsError) as error:
        # Of a broken file datasets says that there was an error, and what it was only as its cause.
        raise ValueError(f"Split {split} of {path} cannot be had: {error.__cause__ or error}") from error
    if dataset.column_names is None:
        raise ValueError(
            f"{path} does not say its columns before it is read: leave out streaming, or store it as Parquet."
        )
    for column, ours in (renamed or {}).items():
        if column not in dataset.column_names:
            raise ValueError(f"{path} has no column {column}; it has {', '.join(dataset.column_names)}.")
        dataset = dataset.rename_column(column, ours)
    missing = {"image", "phrase"} - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(sorted(missing))}; it has {', '.join(dataset.column_names)}. Rename what "
            "stands for it; see dataset_scripts/features.py."
        )
    dataset, is_listed = known_columns(dataset, path, needs_regions)
    folder = folder_of_files(path, config, split) if fits(dataset.features["image"], TEXT) else None
    if folder is not None:
        features = dataset.features  # which streamed data would forget
        dataset = dataset.map(
            lambda row: {"image": row["image"] and os.path.join(folder, row["image"])}, features=features
        )
    dataset = dataset.cast_column("image", Image(decode=False))
    if "masks" in dataset.column_names:
        masks = List(Image(decode=False))
        dataset = dataset.cast_column("masks", List(masks) if is_listed else masks)
    return dataset


def known_columns(
    dataset: Dataset | IterableDataset, path: str, needs_regions: bool
) -> tuple[Dataset | IterableDataset, bool]:
    """The data set with those columns that are known, and whether its rows have lists of phrases."""
    others = [column for column in dataset.column_names if column not in COLUMNS]
    if needs_regions and not set(REGIONS) & set(dataset.column_names):
        raise ValueError(
            f"AMC needs regions, and {path} has none of the columns {', '.join(REGIONS)}; not understood: "
            f"{', '.join(others) or 'none'}. Rename its column of regions, or train without AMC: --amc_mean_weight 0 "
            "--amc_max_weight 0."
        )
    dataset = dataset.select_columns([column for column in COLUMNS if column in dataset.column_names])
    is_listed = fits(dataset.features["phrase"], LISTED["phrase"])
    for column, feature in dataset.features.items():
        is_of_all = column == "absent" and fits(feature, COLUMNS[column])
        if not (fits(feature, (LISTED if is_listed else COLUMNS)[column]) or is_of_all):
            wanted = ", one entry for each of the row's phrases" if is_listed and column in OF_PHRASES[1:] else ""
            raise ValueError(
                f"Column {column} of {path} holds {feature}, which is not what it should{wanted}; see "
                "dataset_scripts/features.py, and rename or drop the column."
            )
    return dataset, is_listed


def split_names(path: str, config: str | None) -> list[str]:
    """
    Raises:
        ValueError: there is no such data set.
    """
    try:
        return get_dataset_split_names(path, config)
    except (ValueError, OSError, DatasetsError) as error:
        raise ValueError(f"{path} cannot be had: {error.__cause__ or error}") from error


def folder_of_files(path: str, config: str | None, split: str) -> str | None:
    """The folder on this machine that all files of a split are in; None where that is not one.

    Raises:
        ValueError: they are in several.
    """
    files = (load_dataset_builder(path, config).config.data_files or {}).get(split, [])
    folders = {os.path.dirname(file) for file in files if os.path.exists(file)}
    if len(folders) > 1:
        raise ValueError(f"Files of {path} in several folders name images by relative paths: keep them in one.")
    return folders.pop() if folders else None


def fits(feature: FeatureType, wanted: object) -> bool:
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
