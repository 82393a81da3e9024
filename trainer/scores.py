"""How well a model points, of the predictions of an evaluation."""

from functools import partial, reduce
from pathlib import Path
from typing import Any

import evaluate
from transformers import EvalPrediction
from transformers.trainer_pt_utils import nested_concat

from .data_collator import PADDING
from .scoring import auroc

METRICS = Path(__file__).parent / "metrics"


class PointingScores:
    """`compute_metrics` of `AmcTrainer`.

    Pointing accuracy of the phrases that have boxes, and `absent_auroc`: how well the probability tells phrases that
    fit from those that are absent; each where there are such phrases.
    """

    def __init__(self) -> None:
        self.pointing_game = evaluate.load(str(METRICS / "pointing_game"))

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        (points, probability), (boxes, is_absent) = joined(prediction.predictions), joined(prediction.label_ids)
        has_boxes = (boxes != PADDING).any(axis=(1, 2))
        scores = {}
        if has_boxes.any():
            scores |= self.pointing_game.compute(points=points[has_boxes], boxes=boxes[has_boxes])
        true, absent = probability[is_absent == 0], probability[is_absent == 1]
        if len(true) and len(absent):
            scores["absent_auroc"] = auroc(true, absent)
        return scores


def joined(batches: Any) -> Any:
    """One tuple of arrays from those of all batches, where `eval_do_concat_batches` left them apart."""
    padded = partial(nested_concat, padding_index=PADDING)
    return reduce(padded, batches) if isinstance(batches, list) else batches
