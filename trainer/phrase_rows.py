"""Rows of a data set as records of one phrase: a row may hold a list of phrases, with a list of regions for each."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value

from modeling_albef_amc.images import open_image

from .regions import REGIONS, as_number

Record = dict[str, Any]
# Of a row with a list of phrases, these hold one value a phrase; the others are of all its phrases.
OF_PHRASES = "phrase", "caption_span", "absent", "categories", *REGIONS
SIDES = "image_width", "image_height"


def records_of(row: Record) -> list[Record]:
    """One record a phrase; a row with a single phrase, or with None, is one.

    Raises ValueError, which names the row: it has not as many regions, spans or the like as phrases.
    """
    phrases = row.get("phrase")
    if not isinstance(phrases, list | np.ndarray):
        return [row]
    columns = {"phrase": phrases}
    for name in OF_PHRASES[1:]:
        values = row.get(name)
        if values is None or (name == "absent" and np.ndim(values) == 0):
            continue
        if len(values) != len(phrases):
            raise ValueError(
                f"{record_name(row)}: {name} has {len(values)} entries for {len(phrases)} phrases; give a "
                "list of them for each phrase, empty where there is none"
            )
        columns[name] = values
    return [{**row, **dict(zip(columns, values))} for values in zip(*columns.values())]


def record_name(record: Record, number: int | None = None) -> str:
    """What messages call a record: by the id of its image, or else its path, or else its own number among all."""
    image, name = record.get("image"), image_id_of(record)
    if name is None:
        name = image.get("path") if isinstance(image, Mapping) else image if isinstance(image, str) else None
    if isinstance(name, str) and len(name) > 500:  # no path, which the reason says
        name = f"{name[:60]}…"
    place = f"image {name!r}, " if name is not None else f"record {number}, " if number is not None else ""
    return f"{place}phrase {record.get('phrase')!r:.200}"


def phrase_counts(phrases: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """How many records each row is, of a column with a list of phrases a row; see `records_of`."""
    return pc.fill_null(pc.list_value_length(phrases), 1)


def check_same_image(one: Record, other: Record) -> None:
    """ValueError: the images of two records with the same `image_id` are not the same."""
    if not is_same(one.get("image"), other.get("image")):
        raise ValueError(
            f"two different images have the image_id {other.get('image_id')!r} (of the phrases {one.get('phrase')!r} "
            f"and {other.get('phrase')!r}): give every image an id of its own, such as one with its data set in front"
        )


def is_same(one: Any, other: Any) -> bool:
    """Whether two images as records have them, in whatever form, are the same bytes, file or pixels."""
    sources = [
        value if not isinstance(value, Mapping) else value.get("bytes") or value.get("path") for value in (one, other)
    ]
    if one is other or (all(isinstance(each, bytes | str | None) for each in sources) and sources[0] == sources[1]):
        return True
    try:
        one, other = open_image(one), open_image(other)
    except (ValueError, OSError):
        return False
    return one.size == other.size and one.tobytes() == other.tobytes()  # not what their files say beside the pixels


def is_absent(record: Record) -> bool:
    """Whether the phrase fits nothing in its image; missing, which NaN is too, it does not say so.

    Raises ValueError: `absent` is no truth value and neither 0 nor 1.
    """
    value = record.get("absent")
    number = 0.0 if value is None else as_number(value)
    if number not in (0, 1) and number == number:
        raise ValueError(f"absent must be true or false, got {value!r:.80}")
    return number == 1


def image_id_of(record: Record) -> Any:
    """None where it is missing, for which pandas has NaN."""
    image_id = python_value(record.get("image_id"))
    return image_id if image_id == image_id else None


def image_marks(dataset: Dataset) -> list[bytes]:
    """Of each row a hash of its `image_id`, or else of its image's bytes or path: equal where the image is."""
    names = ["image_id"] if "image_id" in dataset.column_names else []
    rows = dataset.with_format("arrow")
    if not names or any(table["image_id"].null_count for table in rows.select_columns(names).iter(batch_size=10_000)):
        names.append("image")
    marks = []
    for table in rows.select_columns(names).iter(batch_size=100):
        for row in table.to_pylist():
            image, name = row.get("image") or {}, row.get("image_id")
            mark = image.get("bytes") or str(image.get("path")).encode() if name is None else str(name).encode()
            marks.append(hashlib.blake2b(mark, digest_size=8).digest())
    return marks


def told_size(record: Record) -> tuple[float, float] | None:
    """Width and height that a record says its image has; None where it does not."""
    width, height = (as_number(record.get(side)) for side in SIDES)
    is_told = width is not None and height is not None and width == width and height == height
    return (width, height) if is_told else None


def check_size(record: Record, size: tuple[int, int]) -> None:
    """ValueError: a record says that its image has another size than it has, for which its regions would be made."""
    told = told_size(record)
    if told not in (None, size):
        raise ValueError(
            f"the image has {size[0]} x {size[1]} pixels, not {told[0]:g} x {told[1]:g} as its row says: regions would "
            "be out of place. Scale them, and correct or remove the columns of width and height."
        )


def python_value(value: Any) -> Any:
    """Python's own of NumPy's or torch's."""
    return value.item() if hasattr(value, "item") else value


class PhraseRows:
    """A data set of rows with lists of phrases, one record a phrase; images stay where they are, once.

    Args:
        rows, numbers: of each record, its row, and its place among the phrases of the row; default: all there are.
    """

    def __init__(self, dataset: Dataset, rows: np.ndarray | None = None, numbers: np.ndarray | None = None):
        if dataset.format["type"] == "custom":
            raise ValueError("rows with lists of phrases know no with_transform and no set_transform: use map instead")
        self.dataset = dataset.with_format(None)  # whose columns are lists
        self.split, self.info = dataset.split, dataset.info
        self.column_names = dataset.column_names
        if rows is None:
            counts = [1 if phrases is None else len(phrases) for phrases in dataset["phrase"]]
            rows = np.repeat(np.arange(len(counts)), counts)
            numbers = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.rows, self.numbers = rows, numbers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        """A record, or a column of all records."""
        if not isinstance(key, str):
            return records_of(self.dataset[int(self.rows[key])])[self.numbers[key]]
        values = self.dataset[key][:]
        is_listed = key in OF_PHRASES and not isinstance(self.dataset.features[key], Value)
        places = zip(self.rows, self.numbers)
        return [values[row][number] if is_listed and values[row] else values[row] for row, number in places]

    def __iter__(self) -> Iterator[Record]:
        return (self[number] for number in range(len(self)))

    def select(self, indices: Iterable[int]) -> "PhraseRows":
        indices = list(indices)
        return PhraseRows(self.dataset, self.rows[indices], self.numbers[indices])
