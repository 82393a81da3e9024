"""One split of a data set, from disk or streamed: its columns checked, its pictures left undecoded."""

import pyarrow as pa
from datasets import Array2D, Dataset, Image, IterableDataset, LargeList, List, Value, load_dataset
from datasets.exceptions import DatasetsError
from datasets.features.features import FeatureType

PICTURES = "image", "masks"
NUMBERS = pa.types.is_integer, pa.types.is_floating
# All columns that are looked at, and what they may hold: "picture", kinds of values, or [a list of something].
COLUMNS = {
    "image": "picture",
    "image_id": (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer),
    "phrase": (pa.types.is_string, pa.types.is_large_string),
    "caption": (pa.types.is_string, pa.types.is_large_string),
    "caption_span": [(pa.types.is_integer,)],
    "boxes": [[NUMBERS]],
    "polygons": [[[NUMBERS]]],
    "masks": ["picture"],
    "scribbles": [[NUMBERS]],
    "scribble_radius": NUMBERS,
    "absent": (pa.types.is_boolean,),
    "proposals": [[NUMBERS]],
    "categories": [(pa.types.is_string, pa.types.is_large_string)],
}
# A row with a list of phrases is several, each with its own span.
LISTED = {"phrase": [COLUMNS["phrase"]], "caption_span": [COLUMNS["caption_span"]]}


def open_split(
    path: str, config: str | None, split: str, streaming: bool = False, renamed: dict[str, str] | None = None
) -> Dataset | IterableDataset:
    """One split of a folder, or of a Hub id, with the columns of `COLUMNS` that it has.

    Args:
        streaming: read files as they come instead of preparing the data set on disk first.
        renamed: the data set's column → ours, where they differ.

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
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}; see dataset_scripts/features.py.")
    dataset = dataset.select_columns([column for column in COLUMNS if column in dataset.column_names])
    for column, feature in dataset.features.items():
        if not (fits(feature, COLUMNS[column]) or (column in LISTED and fits(feature, LISTED[column]))):
            raise ValueError(
                f"Column {column} of {path} holds {feature}, which is not what it should; see "
                "dataset_scripts/features.py, and rename or drop the column."
            )
    dataset = dataset.cast_column("image", Image(decode=False))
    if "masks" in dataset.column_names:
        dataset = dataset.cast_column("masks", List(Image(decode=False)))
    return dataset


def fits(feature: FeatureType, wanted: object) -> bool:
    """Whether a column of this kind can hold what is wanted of it; one of nothing but nulls can."""
    if isinstance(feature, Value) and pa.types.is_null(feature.pa_type):
        return True
    if isinstance(wanted, list):
        if isinstance(feature, Array2D):
            return fits(List(List(Value(feature.dtype))), wanted)
        return isinstance(feature, List | LargeList) and fits(feature.feature, wanted[0])
    if wanted == "picture":
        kinds = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string
        if isinstance(feature, dict):  # of undecoded pictures, in a file that does not say so
            return {"bytes", "path"} == feature.keys() and all(fits(part, kinds) for part in feature.values())
        return isinstance(feature, Image) or (
            isinstance(feature, Value) and any(is_of(feature.pa_type) for is_of in kinds)
        )
    return isinstance(feature, Value) and any(is_of(feature.pa_type) for is_of in wanted)
