"""Intervals and comparisons: against formulas, and by hand."""

import math

import pyarrow as pa
import pytest

from trainer.record_store import record_schema
from trainer.uncertainty import compared, interval, mcnemar, told


def test_the_interval_of_independent_phrases_is_the_normal_one():
    hits = [row % 10 < 3 for row in range(500)]
    low, high = interval(hits, [str(row) for row in range(500)])
    half = 1.96 * math.sqrt(0.3 * 0.7 / 500)
    assert low == pytest.approx(0.3 - half, abs=0.05 * half) and high == pytest.approx(0.3 + half, abs=0.05 * half)
    assert interval(hits, [None] * 500) == (low, high)


def test_phrases_of_an_image_that_succeed_together_count_once():
    hits, ids = [image % 2 == 0 for image in range(100) for _ in range(5)], [row // 5 for row in range(500)]
    low, high = interval(hits, ids)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 100), rel=0.1)
    assert interval([True, False, True], ["a"] * 3) == (2 / 3, 2 / 3)


@pytest.mark.parametrize(
    ("only", "p"), [((0, 0), 1), ((4, 4), 1), ((1, 5), 14 / 64), ((5, 1), 14 / 64), ((0, 10), 2**-9)]
)
def test_mcnemar_by_hand(only, p):
    assert mcnemar(*only) == pytest.approx(p)


def test_mcnemar_of_many_phrases_is_that_of_the_normal_distribution():
    found, z = mcnemar(5200, 4800), (400 - 1) / math.sqrt(10_000)
    assert found == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)
    assert mcnemar(10_000, 0) == pytest.approx(0, abs=1e-300)


def test_models_are_compared_by_the_phrases_that_both_were_scored_on():
    def records(hits, errors):
        rows = [
            {"image_id": str(row), "phrase": "a", "error": error, "pointing_game": hit}
            for row, (hit, error) in enumerate(zip(hits, errors, strict=True))
        ]
        return pa.Table.from_pylist(rows, record_schema(("pointing_game",)))

    of_models = {
        "one": records([True, True, True, False, True, None], [None] * 6),
        "other": records([False, True, True, True, None, None], [None] * 4 + ["too long", None]),
        "nothing": records([None] * 6, [None] * 6),
    }
    (pair,) = compared(of_models, "pointing_game")
    assert pair["models"] == ["one", "other"] and pair["only"] == {"one": 1, "other": 1}
    assert pair["p"] == 1 and pair["difference"] == 0 and pair["interval"][0] < 0 < pair["interval"][1]
    assert told("test", pair).startswith("test: one against other +0.0 points (")
    assert told("test", pair).endswith("); right alone about 1 and 1 phrases, p = 1.000")
