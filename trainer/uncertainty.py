"""How far the share of right answers may be off, and whether two models differ by more than chance."""

from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

NUM_DRAWS, LEVEL = 2000, 0.95


def interval(values: Sequence[float], image_ids: Sequence[Hashable]) -> tuple[float, float]:
    """Where the mean of the values lies in 95 % of the draws of as many images, with replacement.

    The percentile bootstrap (Efron and Tibshirani, 1993) by images, since phrases of an image succeed together. The
    draws are the same every time.

    Args:
        values: (num_phrases,). image_ids: (num_phrases,), of each phrase's image; None is an image of its own.
    """
    numbers: dict[Hashable, int] = {}
    ids = [("row", row) if each is None else ("id", each) for row, each in enumerate(image_ids)]
    image = [numbers.setdefault(each, len(numbers)) for each in ids]
    sums, counts = np.bincount(image, weights=np.asarray(values, dtype=np.float64)), np.bincount(image)
    generator = np.random.default_rng(0)
    drawn = (generator.integers(len(counts), size=len(counts)) for _ in range(NUM_DRAWS))
    means = [sums[images].sum() / counts[images].sum() for images in drawn]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mcnemar(num_first: int, num_second: int) -> float:
    """The exact two-sided p of McNemar's test (1947), that two models err alike.

    Args: `num_first`, `num_second`: phrases that the first alone, and the second alone, is right about.
    """
    count, term, tail = num_first + num_second, 1, 1
    for number in range(min(num_first, num_second)):  # `term` is "count over number", each from the one before
        term = term * (count - number) // (number + 1)
        tail += term
    return min(1.0, 2 * tail / 2**count)


def compared(records: dict[str, pa.Table], metric: str) -> list[dict[str, Any]]:
    """Each two models on the same split, by the phrases that both were scored on.

    Args: records: model → its records of the split, see `record_schema`.

    Returns: for each pair "models"; "only", how many phrases each alone is right about; "p" of `mcnemar`; and
        "difference" of the shares of right answers, first minus second, with its "interval".
    """
    columns = {name: table.select(["image_id", "error", metric]).to_pydict() for name, table in records.items()}
    found = []
    for names in combinations(columns, 2):
        one, other = (columns[name] for name in names)
        rows = [row for row, error in enumerate(one["error"]) if error is None and other["error"][row] is None]
        rows = [row for row in rows if one[metric][row] is not None and other[metric][row] is not None]
        if not rows:
            continue
        more = [one[metric][row] - other[metric][row] for row in rows]
        only = {names[0]: more.count(1), names[1]: more.count(-1)}
        difference = {
            "difference": sum(more) / len(more),
            "interval": interval(more, [one["image_id"][r] for r in rows]),
        }
        found.append({"models": list(names), "only": only, "p": mcnemar(*only.values()), **difference})
    return found


def told(split: str, pair: dict[str, Any]) -> str:
    """A line about a pair of `compared`."""
    one, other = pair["models"]
    low, high = (f"{100 * bound:+.1f}" for bound in pair["interval"])
    p = "p < 0.001" if pair["p"] < 0.001 else f"p = {pair['p']:.3f}"
    return (
        f"{split}: {one} against {other} {100 * pair['difference']:+.1f} points ({low} to {high}); right alone about "
        f"{pair['only'][one]:,} and {pair['only'][other]:,} phrases, {p}"
    )
