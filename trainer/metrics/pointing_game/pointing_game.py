"""Pointing game: how often the most salient point of a phrase's heatmap lies inside one of its boxes."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
Share of phrases whose point lies strictly inside at least one of their boxes. The point is where the phrase's heatmap,
upsampled to the size of the image, has its maximum.
"""

# Examples are in README.md.
_KWARGS_DESCRIPTION = """
Args:
    points: One point `(x, y)` per phrase, in pixels of the image.
    boxes: Per phrase its boxes `[x1, y1, x2, y2]`, in pixels of the image; at least one. A box of four -100 is padding.
    categories (`list` of `str`, *optional*): One category per phrase, to have the accuracy of each as well.
Returns:
    `pointing_game`: hits / phrases, in [0, 1].
    `num_phrases`: number of phrases.
    `pointing_game_{category}`: the same among the phrases of one category, when `categories` are given.
"""

_PADDING = -100  # that GroundingCollator fills up the boxes of a batch with


def point_in_boxes(point: np.ndarray, boxes: np.ndarray) -> bool:
    """Whether the point lies strictly inside any of the boxes.

    Args:
        point: `(2,)`, x and y in pixels.
        boxes: `(num_boxes, 4)`, xyxy in pixels; may be empty.
    """
    x, y = point
    x1, y1, x2, y2 = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
    return bool(((x1 < x) & (x < x2) & (y1 < y) & (y < y2)).any())


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class PointingGame(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="Zhang et al., Top-Down Neural Attention by Excitation Backprop, IJCV 2018",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"points": numbers, "boxes": datasets.List(numbers)}),
            reference_urls=["https://arxiv.org/abs/1608.00507", "https://arxiv.org/abs/2206.15462"],
        )

    def _compute(
        self, points: list[list[float]], boxes: list[list[list[float]]], categories: list[str] | None = None
    ) -> dict[str, float | int]:
        if len(points) == 0:
            raise ValueError("there are no phrases to score: check that the split has records")
        if categories is not None and len(categories) != len(points):
            raise ValueError(f"{len(categories)} categories for {len(points)} points; give one category per phrase")
        hits = np.array([_is_hit(*phrase, index) for index, phrase in enumerate(zip(points, boxes, strict=True))])
        result = {"pointing_game": float(hits.mean()), "num_phrases": len(hits)}
        for category in sorted(set(categories or ())):
            result[f"pointing_game_{category}"] = float(hits[np.array(categories) == category].mean())
        return result


def _is_hit(point: list[float], boxes: list[list[float]], index: int) -> bool:
    if len(point) != 2 or not np.isfinite(point).all():
        raise ValueError(f"phrase {index}: the point must be two finite numbers (x, y), got {point}")
    boxes = [box for box in boxes if set(box) != {_PADDING}]
    if len(boxes) == 0:
        raise ValueError(f"phrase {index} has no boxes to be scored against; leave it out")
    for box in boxes:
        if len(box) != 4 or not (np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
            raise ValueError(
                f"phrase {index}: boxes must be finite [x1, y1, x2, y2] with x1 < x2 and y1 < y2 (not width and "
                f"height), got {box}"
            )
    return point_in_boxes(np.array(point), np.array(boxes))
