"""What training data must have, by its columns: asked before anything is trained."""

from typing import Any

import datasets

from .regions import REGIONS
from .streaming import StreamedRows


def check_regions(dataset: Any) -> None:
    """
    Raises:
        ValueError: it has no column with regions; of data that does not know its columns nothing is known.
    """
    columns = columns_of(dataset)
    if columns is not None and not set(columns) & set(REGIONS):
        raise ValueError(
            f"AMC needs regions, and the training data has none of the columns {', '.join(REGIONS)}; it has "
            f"{', '.join(columns)}. Rename its column of regions, or train without AMC: amc_mean_weight and "
            "amc_max_weight 0."
        )


def check_groups(dataset: Any, strategy: str) -> None:
    """
    Raises:
        ValueError: rows of `dataset` cannot be drawn so that some share an image.
    """
    columns = columns_of(dataset) or []
    if not isinstance(dataset, datasets.Dataset | StreamedRows) or "image_id" not in columns:
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
    known = isinstance(dataset, datasets.Dataset | datasets.IterableDataset)
    return dataset.column_names if known else None
