"""Whether answers are right, one by one and in all."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from .metrics.box_accuracy.box_accuracy import intersection_over_union, score_proposals
from .metrics.pointing_game.pointing_game import point_in_boxes

IOU_THRESHOLD = 0.5
# So many unusable records are named; the others are counted only.
NAMED = 20


def score_answer(
    answer: Mapping[str, Any], boxes: np.ndarray, proposals: np.ndarray, metrics: tuple[str, ...]
) -> dict[str, bool | None]:
    """Metric → whether the answer is right by it; None where there is nothing to compare with.

    Args:
        answer: "heatmap" (height, width), "point" (x, y) and "box" xyxy of `post_process_grounding`.
        boxes: (num_boxes, 4), the true boxes, xyxy in pixels.
        proposals: (num_proposals, 4), a detector's boxes, xyxy in pixels.
        metrics: names of the metrics.
    """
    hits: dict[str, bool | None] = dict.fromkeys(metrics)
    if len(boxes) == 0:
        return hits
    for metric in metrics:
        if metric == "pointing_game":
            hits[metric] = point_in_boxes(np.array(answer["point"]), boxes)
        elif metric == "heatmap_box":
            hits[metric] = overlaps(np.array(answer["box"], dtype=np.float64), boxes)
        elif metric == "box_accuracy" and len(proposals):
            best = best_proposal(answer["heatmap"], proposals)
            hits[metric] = best is not None and overlaps(best, boxes)
    return hits


def best_proposal(heatmap: np.ndarray, proposals: np.ndarray) -> np.ndarray | None:
    """The proposal with the most heat for its size, xyxy; None where none scores above 0.

    Args:
        heatmap: (height, width). proposals: (num_proposals, 4), at least one, xyxy.
    """
    scores = score_proposals(heatmap, to_xywh(proposals))
    return proposals[scores.argmax()] if (scores > 0).any() else None


def overlaps(box: np.ndarray, boxes: np.ndarray) -> bool:
    """Whether the box has the intersection over union with any of the boxes that makes it right; all of them xyxy."""
    return any(intersection_over_union(to_xywh(true), to_xywh(box)) >= IOU_THRESHOLD for true in boxes)


def auroc(true: np.ndarray, absent: np.ndarray) -> float:
    """How often a phrase that fits its image scores higher than one that fits nothing in its own; equal ones half.

    That is the area under the ROC curve, by the ranks (Mann and Whitney, 1947).

    Args:
        true: (num_true,), scores, at least one. absent: (num_absent,), at least one.
    """
    true = np.sort(np.asarray(true, dtype=np.float64))
    higher = len(true) - np.searchsorted(true, absent, side="right")
    not_lower = len(true) - np.searchsorted(true, absent, side="left")
    return float((higher + not_lower).mean() / (2 * len(true)))


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """(…, 4): x1, y1, x2, y2 → x, y, width, height."""
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def check_usable(name: str, num_unusable: int, num_records: int, first: str | None) -> None:
    """
    Args:
        name: of the data. first: the first record that cannot be used, and why.

    Raises:
        ValueError: none can be used, or so few that a score would say little.
    """
    if 2 * num_unusable <= num_records:
        return
    if num_unusable == num_records:
        raise ValueError(f"{name} has no record that can be used; the first: {first}")
    raise ValueError(
        f"{name}: {num_unusable} of {num_records} records cannot be used, too many for a score; the first: {first}. "
        "Mend or drop them, or say what the boxes are: --box_format."
    )


@dataclass
class Tally:
    """Counts over the records of a split, filled table by table.

    Args:
        metrics: names of the metrics.
        scores: of the phrases that are absent (True) and of the others, to tell them apart by.
    """

    metrics: tuple[str, ...]
    num_records: int = 0
    num_unusable: int = 0
    unusable: list[str] = field(default_factory=list)
    scored: Counter = field(default_factory=Counter)
    right: Counter = field(default_factory=Counter)
    without_proposals: int = 0
    scores: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})

    @classmethod
    def of(cls, tables: Iterable[pa.Table], metrics: tuple[str, ...]) -> "Tally":
        """Of tables with the columns "image_id", "phrase", "categories", "score", "absent", "error" and the metrics."""
        tally = cls(metrics)
        for table in tables:
            for record in table.to_pylist():
                tally.add(record)
        return tally

    def add(self, record: Mapping[str, Any]) -> None:
        self.num_records += 1
        if record["error"] is not None:
            self.num_unusable += 1
            if len(self.unusable) < NAMED:
                self.unusable.append(f"image {record['image_id']!r}, phrase {record['phrase']!r}: {record['error']}")
            return
        self.scores[record["absent"]].append(record["score"])
        kinds = [None, *dict.fromkeys(record["categories"] or ())]
        has_boxes = any(record[metric] is not None for metric in self.metrics)
        for metric in self.metrics if has_boxes else ():
            self.without_proposals += record[metric] is None
            for kind in kinds:
                self.scored[metric, kind] += 1
                self.right[metric, kind] += bool(record[metric])

    def accuracy(self, metric: str, category: str | None = None) -> float:
        """Right answers / scored phrases, of all or of a category; in [0, 1]."""
        return self.right[metric, category] / self.scored[metric, category]

    def summary(self) -> dict[str, Any]:
        """Numbers for JSON. Box accuracy is left out where no phrase has proposals; else one without is wrong."""
        found: dict[str, Any] = {"num_records": self.num_records, "num_unusable": self.num_unusable}
        if self.unusable:
            found["unusable"] = self.unusable
        if self.scores[True] and self.scores[False]:
            found["absent"] = {
                "auroc": auroc(np.array(self.scores[False]), np.array(self.scores[True])),
                "num_phrases": len(self.scores[True]),
            }
        for metric in self.metrics:
            num_phrases = self.scored[metric, None]
            if num_phrases == 0 or (metric == "box_accuracy" and self.without_proposals == num_phrases):
                continue
            found[metric] = {"accuracy": self.accuracy(metric), "num_phrases": num_phrases}
            if metric == "box_accuracy":
                found[metric]["num_without_proposals"] = self.without_proposals
            categories = sorted(kind for name, kind in self.scored if name == metric and kind is not None)
            if categories:
                found[metric]["categories"] = {
                    kind: {"accuracy": self.accuracy(metric, kind), "num_phrases": self.scored[metric, kind]}
                    for kind in categories
                }
        return found
