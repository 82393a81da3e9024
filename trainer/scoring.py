"""Whether answers are right, one by one and in all."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from .metrics.box_accuracy.box_accuracy import intersection_over_union, score_proposals
from .metrics.pointing_game.pointing_game import point_in_boxes
from .phrase_rows import record_name
from .record_store import OF_HEATMAPS, OF_REGIONS
from .uncertainty import interval

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


def heat_inside(heatmap: np.ndarray, boxes: np.ndarray) -> float | None:
    """The share of the heat that is inside the boxes, in [0, 1]; None without heat or boxes.

    The energy-based pointing game (Wang et al., Score-CAM, arXiv 1910.01279). A pixel is inside by its centre; heat
    below 0, as upsampling makes, is none.

    Args: heatmap: (height, width). boxes: (num_boxes, 4), xyxy in pixels.
    """
    heat, inside = heatmap.clip(min=0), np.zeros(heatmap.shape, dtype=bool)
    for x1, y1, x2, y2 in np.ceil(boxes - 0.5).clip(min=0).astype(int):
        inside[y1:y2, x1:x2] = True
    total = heat.sum(dtype=np.float64)
    return float(heat[inside].sum(dtype=np.float64) / total) if total > 0 and len(boxes) else None


def size_of(boxes: np.ndarray) -> str | None:
    """By the mean area of boxes (num_boxes, 4), xyxy in pixels: "small", "medium" or "large", as COCO parts them."""
    if not len(boxes):
        return None
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1).mean()
    return "small" if area < 32**2 else "medium" if area < 96**2 else "large"


def best_proposal(heatmap: np.ndarray, proposals: np.ndarray) -> np.ndarray | None:
    """Of proposals (num_proposals, 4), xyxy, the one with the most heat for its size; None if none scores above 0."""
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


def check_usable(name: str, num_unusable: int, num_records: int, unusable: list[str]) -> None:
    """ValueError: of the records of the data `name` none can be used, or so few that a score would say little.

    Args:
        unusable: records that cannot be used, and why; the first is told.
    """
    if 2 * num_unusable <= num_records:
        return
    if num_unusable == num_records:
        raise ValueError(f"{name} has no record that can be used; the first: {unusable[0]}")
    raise ValueError(
        f"{name}: {num_unusable} of {num_records} records cannot be used, too many for a score; the first: "
        f"{unusable[0]}. Mend or drop them, or say what the boxes are: --box_format."
    )


def summarize(records: pa.Table, metrics: tuple[str, ...]) -> dict[str, Any]:
    """The numbers of a split, for JSON: shares of right answers, of all scored phrases, with their 95 % interval, and
    by category and size; and the means of the heat inside regions, of deletion and of insertion, where there are any.

    Box accuracy is left out where no phrase has proposals; else a phrase without counts as wrong.

    Args:
        records: see `record_schema`.
    """
    columns = ["image_id", "phrase", "categories", "score", "absent", "error", *metrics]
    optional = OF_REGIONS | OF_HEATMAPS
    columns += [name for name in optional if name in records.column_names]  # records from before have none
    rows = records.select(columns).to_pylist()
    usable = [row for row in rows if row["error"] is None]
    named = [f"{record_name(row, number)}: {row['error']}" for number, row in enumerate(rows)]
    unusable = [name for name, row in zip(named, rows) if row["error"] is not None]
    summary: dict[str, Any] = {"num_records": len(rows), "num_unusable": len(unusable)}
    if unusable:
        summary["unusable"] = unusable[:NAMED]
    scores = {is_absent: [row["score"] for row in usable if row["absent"] is is_absent] for is_absent in (True, False)}
    if scores[True] and scores[False]:
        rank = auroc(np.array(scores[False]), np.array(scores[True]))
        summary["absent"] = {"auroc": rank, "num_phrases": len(scores[True])}
    scored = [row for row in usable if any(row[metric] is not None for metric in metrics)]
    for name in ("energy", *OF_HEATMAPS):
        values = [row[name] for row in scored if row.get(name) is not None]
        if values:
            summary[name] = {"mean": sum(values) / len(values), "num_phrases": len(values)}
    categories = sorted({category for row in scored for category in row["categories"] or ()} - {None})
    for metric in metrics:
        num_unanswered = sum(row[metric] is None for row in scored)
        if num_unanswered == len(scored):
            continue
        summary[metric] = accuracy(scored, metric)
        hits, image_ids = zip(*((row[metric] is True, row["image_id"]) for row in scored))
        summary[metric]["interval"] = interval(hits, image_ids)
        sizes = {size: [row for row in scored if row.get("size") == size] for size in ("small", "medium", "large")}
        if any(sizes.values()):
            summary[metric]["sizes"] = {size: accuracy(of_size, metric) for size, of_size in sizes.items() if of_size}
        if metric == "box_accuracy":
            summary[metric]["num_without_proposals"] = num_unanswered
        if categories:
            summary[metric]["categories"] = {
                category: accuracy([row for row in scored if category in (row["categories"] or ())], metric)
                for category in categories
            }
    return summary


def accuracy(rows: list[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    return {"accuracy": sum(row[metric] is True for row in rows) / len(rows), "num_phrases": len(rows)}
