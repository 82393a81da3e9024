"""What training data must be, asked before anything is trained: its columns, its boxes, a sample of its records."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils import logging

from .box_units import SIZEABLE
from .loss_means import ITEMS
from .phrase_rows import PhraseRows, Record, phrase_counts
from .regions import REGIONS, to_xyxy
from .splits import told
from .streaming import StreamedRows

logger = logging.get_logger(__name__)
SAMPLE = 64  # records that are read before training
NAMED = 3
_STREAMED_ROWS = 10_000  # of which regions are looked at; all others are only read when it is their turn


def check_regions(dataset: Any, box_format: str = "xyxy") -> None:
    """Warns of the share of phrases that have a region, where that is not all; asks no data without known columns.

    Raises:
        ValueError: there is no region, or boxes are no boxes of that format.
    """
    columns = columns_of(dataset)
    if columns is None:
        return
    columns_of_regions = [name for name in REGIONS if name in columns]
    if not columns_of_regions:
        raise ValueError(
            f"AMC needs regions, and the training data has none of the columns {', '.join(REGIONS)}; it has "
            f"{', '.join(columns)}. Rename its column of regions, or train without AMC: region_loss none."
        )
    if is_transformed(dataset):  # what it holds is not what is read
        return
    found = check_boxes(dataset, box_format, "the training data")
    # Of streamed data only the first rows were looked at: others may have regions.
    is_whole = not isinstance(dataset, StreamedRows | datasets.IterableDataset)
    if found.num_with_region == 0 and is_whole:
        raise ValueError(
            f"AMC needs regions, and {', '.join(columns_of_regions)} of the {found.num_records:,} training phrases are "
            "empty. Fill them, or train without AMC: region_loss none."
        )
    if found.num_with_region < found.num_records:
        share, count = found.num_with_region / found.num_records, f"{found.num_with_region:,} of {found.num_records:,}"
        phrases = "training phrases" if is_whole else "first training phrases"
        logger.warning(
            f"{share:.1%} of the {phrases} ({count}) have a region, which is learned from these only: annotated_share "
            "draws them more often."
        )


def check_metric(metric: str, dataset: Any) -> None:
    """ValueError: the data to evaluate on have no phrase that this metric is of; of streamed data it is not known."""
    columns = columns_of(dataset)
    if columns is None or is_transformed(dataset) or isinstance(dataset, datasets.IterableDataset):
        return
    regions, needed = [name for name in REGIONS if name in columns], None
    if ITEMS.get(metric) == "regions" or metric == "pointing_game":
        has_any = bool(regions) and look_at_regions(dataset, regions, "xyxy").num_with_region > 0
        needed = None if has_any else f"have a region ({', '.join(REGIONS)})"
    elif ITEMS.get(metric) == "absent" or metric == "absent_auroc":
        rows = dataset if isinstance(dataset, PhraseRows) else dataset.with_format(None)
        is_absent = [value == 1 for value in rows["absent"]] if "absent" in columns else [False]
        needed = None if any(is_absent) else "are absent (column absent)"
        needed = "are not absent" if metric == "absent_auroc" and all(is_absent) else needed
    if needed is not None:
        raise ValueError(
            f"metric_for_best_model: {metric} is of phrases that {needed}, and the evaluation data have none: choose "
            "another metric, or other data."
        )


def check_evaluated(dataset: Any) -> None:
    """ValueError: data that can only be trained on."""
    if isinstance(dataset, StreamedRows):
        raise ValueError(
            "StreamedRows are to train on, and no data to evaluate on: load_split of trainer.training opens a split."
        )


def check_boxes(dataset: Any, box_format: str, name: str) -> "RegionStatistics":
    """What is found of the regions of data `name`; ValueError: boxes are no boxes of that format."""
    with told(name):
        found = look_at_regions(dataset, [kind for kind in REGIONS if kind in columns_of(dataset)], box_format)
    first = "; ".join(found.first)
    if found.num_shares > SIZEABLE * found.num_boxes:
        raise ValueError(
            f"{found.num_shares:,} of {found.num_boxes:,} boxes of {name} have no coordinate above 1: they "
            "seem to be shares of the image, not pixels. Say so by box_format, e.g. --box_format xyxy_normalized. "
            f"First: {first}."
        )
    if found.num_flat > SIZEABLE * found.num_boxes:
        raise ValueError(
            f"{found.num_flat:,} of {found.num_boxes:,} boxes of {name} have no area as {box_format}: they "
            f"seem to be of another format. Say which by box_format, e.g. --box_format xywh. First: {first}."
        )
    return found


@dataclass
class RegionStatistics:
    """What was found of `num_records` records; `first` describes the first boxes without an area or in shares."""

    num_records: int = 0
    num_with_region: int = 0
    num_boxes: int = 0
    num_flat: int = 0
    num_shares: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, columns: dict[str, pa.Array], names: Sequence[str], box_format: str) -> None:
        """Counts records: their phrases, and the columns of regions by these names."""
        self.num_records += len(columns["phrase"])
        self.num_with_region += int(have_region(columns, names).sum())
        if "boxes" not in names or not len(boxes := pc.list_flatten(columns["boxes"])):
            return
        is_whole = pc.equal(pc.list_value_length(boxes), 4)  # what is no box is named when it is its turn
        owners = pc.list_parent_indices(columns["boxes"]).filter(is_whole).to_numpy()
        values = pc.list_flatten(boxes.filter(is_whole)).cast(pa.float64())
        values = values.to_numpy(zero_copy_only=False).reshape(-1, 4)
        x1, y1, x2, y2 = to_xyxy(values, box_format).T
        is_flat = ~((x1 < x2) & (y1 < y2))
        self.num_boxes, self.num_flat = self.num_boxes + len(values), self.num_flat + int(is_flat.sum())
        is_share = (np.abs(values) <= 1).all(axis=1) & (not box_format.endswith("normalized"))
        self.num_shares += int(is_share.sum())
        for number in np.flatnonzero(is_flat | is_share)[: NAMED - len(self.first)]:
            self.first.append(f"phrase {columns['phrase'][int(owners[number])].as_py()!r}: {values[number].tolist()}")


def look_at_regions(dataset: Any, names: Sequence[str], box_format: str) -> RegionStatistics:
    """Of phrases and regions, without the images; of streamed data in the first rows."""
    statistics = RegionStatistics()
    for columns, _ in tables_of_phrases(dataset, names):
        statistics.add(columns, names, box_format)
    return statistics


def tables_of_phrases(dataset: Any, names: Sequence[str]) -> Iterator[tuple[dict[str, pa.Array], list[int]]]:
    """Phrases and these columns, one value a phrase, and how many phrases each of their rows has."""
    rows = dataset.dataset if isinstance(dataset, StreamedRows | PhraseRows) else dataset
    tables = rows.select_columns(["phrase", *names]).with_format("arrow").iter(batch_size=_STREAMED_ROWS)
    for table in islice(tables, 1) if isinstance(rows, datasets.IterableDataset) else tables:
        columns, lengths = {name: plain(table[name]) for name in table.column_names}, [1] * len(table)
        if pa.types.is_nested(columns["phrase"].type):  # of several phrases a row
            lengths = phrase_counts(columns["phrase"]).to_pylist()
            columns = {name: values_of_phrases(column, lengths) for name, column in columns.items()}
        yield columns, lengths


def have_region(columns: dict[str, pa.Array], names: Sequence[str]) -> np.ndarray:
    """(num_phrases,) of bool, by the columns of regions of these names."""
    counts = [np.zeros(len(columns["phrase"]))]
    counts += [pc.fill_null(pc.list_value_length(columns[name]), 0).to_numpy(zero_copy_only=False) for name in names]
    return np.sum(counts, axis=0) > 0


def with_annotated_share(
    dataset: datasets.Dataset | PhraseRows | StreamedRows, share: float
) -> datasets.Dataset | PhraseRows | StreamedRows:
    """The same phrases, those with a region repeated until they are this share of all; of 1, these alone.

    Args: share: in 0..1.

    Raises ValueError: no phrase has a region, or the data are streamed.
    """
    if not share:
        return dataset
    if isinstance(dataset, StreamedRows):
        raise ValueError("annotated_share needs all rows at hand: leave out streaming.")
    names = [name for name in REGIONS if name in dataset.column_names]
    tables = [(have_region(columns, names), lengths) for columns, lengths in tables_of_phrases(dataset, names)]
    found, lengths = map(np.concatenate, zip(*tables))
    if isinstance(dataset, PhraseRows):  # perhaps of some of the rows
        found = found[(np.cumsum(lengths) - lengths)[dataset.rows] + dataset.numbers]
    annotated, others = np.flatnonzero(found), np.flatnonzero(~found)
    if not len(annotated):
        raise ValueError("annotated_share needs phrases with a region, and none of the training data has one.")
    if share == 1:
        return dataset.select(annotated)
    wanted = math.ceil(share / (1 - share) * len(others))
    return dataset.select(np.sort(np.concatenate([others, np.resize(annotated, max(wanted, len(annotated)))])))


def plain(column: pa.ChunkedArray) -> pa.Array:
    """In one piece, and as lists where datasets has a type of its own for them."""
    column = column.combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return column.storage if isinstance(column.type, pa.ExtensionType) else column


def values_of_phrases(column: pa.Array, lengths: list[int]) -> pa.Array:
    """One value a phrase, of a column with a list of them a row, or one of all; rows with too few or too many are named
    when read.
    """
    if not pa.types.is_nested(column.type):
        return column.take(np.repeat(np.arange(len(lengths)), lengths))
    rows = zip(column.to_pylist(), lengths)
    values = [each for row, length in rows for each in islice(chain(row or [], repeat(None)), length)]
    return pa.array(values, column.type.value_type)


def check_sample(
    dataset: Any, collate: Callable[[list[Record]], Any], name: str = "the training data", most: float = SIZEABLE
) -> Record:
    """Reads a sample of the records, spread over the data set or, if it is streamed, from its beginning.

    Args:
        collate: a strict collator.
        most: share of them that may be unusable.

    Returns: the first record that can be used.

    Raises:
        ValueError: more of them cannot be used, or none can.
    """
    if isinstance(dataset, StreamedRows):
        records = list(islice(dataset, SAMPLE))
    else:
        size = min(SAMPLE, len(dataset))
        records = [dataset[number * len(dataset) // size] for number in range(size)]
    usable, problems = None, []
    for record in records:
        try:
            collate([record])
        except ValueError as error:
            problems.append(str(error))
        else:
            usable = usable or record
    if usable is None or len(problems) > most * len(records):
        named = "; ".join(problems[:NAMED])
        advice = " If their boxes are not [x1, y1, x2, y2] in pixels, say what they are by --box_format."
        raise ValueError(
            f"{len(problems)} of {len(records)} records of {name} that were tried cannot be used: {named}. "
            f"Mend or drop such records.{advice if any(map(is_of_units, problems)) else ''}"
        )
    return usable


def is_of_units(problem: str) -> bool:
    """Whether a record cannot be used because of a box that may be of another format; `Region` says so."""
    return "box_format" in problem


def check_order(dataset: Any, strategy: str, phrases_per_image: int) -> None:
    """Refuses a data set whose rows cannot be drawn in the order asked for, or so that some share an image."""
    if isinstance(dataset, StreamedRows) and strategy != "random":
        raise ValueError(f"Streamed data need train_sampling_strategy random, not {strategy}: parts come in any order.")
    if phrases_per_image == 1:
        return
    columns = columns_of(dataset) or []
    if is_transformed(dataset):  # whose rows are not made only to be told apart
        columns = [name for name in columns if name in dataset.column_names]
    if not isinstance(dataset, datasets.Dataset | StreamedRows | PhraseRows) or "image_id" not in columns:
        raise ValueError(
            "phrases_per_image above 1 needs the column image_id, to know which rows share an image, of a "
            f"datasets.Dataset or StreamedRows; this is {type(dataset).__name__} with {', '.join(columns) or 'none'}."
        )
    if strategy != "random":
        raise ValueError(f"phrases_per_image above 1 needs train_sampling_strategy random, not {strategy}.")


def columns_of(dataset: Any) -> list[str] | None:
    """None where a data set does not know them."""
    if isinstance(dataset, StreamedRows):
        dataset = dataset.dataset
    if is_transformed(dataset):
        return list(dataset[0])
    known = isinstance(dataset, datasets.Dataset | datasets.IterableDataset | PhraseRows)
    return dataset.column_names if known else None


def is_transformed(dataset: Any) -> bool:
    """Whether its rows come out of a function, of `with_transform` or `set_transform`."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom"
