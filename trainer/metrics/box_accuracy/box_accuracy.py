"""Box accuracy: how often the detector proposal that a heatmap favours overlaps the phrase's box well enough."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
Share of phrases for which the detector proposal with the most heat, sum(heatmap inside) / area ** 0.5, has an
intersection over union of at least 0.5 with the phrase's box.
"""

# Examples are in README.md.
_KWARGS_DESCRIPTION = """
Args:
    heatmaps: One heatmap `(rows, columns)` per phrase, over the grid of patches or of any other size. It is upsampled
        bicubically to the size of its image.
    image_sizes: `(height, width)` of each phrase's image, in pixels.
    proposals: Per phrase the detector's boxes `[x, y, width, height]`, in pixels; may be empty.
    boxes: Per phrase its boxes `[x1, y1, x2, y2]`, in pixels, at least one; the proposal may match any of them. A box
        of four -100 is padding and is left out.
    iou_threshold (`float`, *optional*): Least intersection over union of a correct answer, in (0, 1]. Defaults to 0.5.
Returns:
    `box_accuracy`: correct answers / phrases, in [0, 1].
    `num_phrases`: number of phrases.
    `num_unanswered`: phrases without proposals, or with none that scores above 0. They count as wrong.
"""

_PADDING = -100  # that GroundingCollator fills up the boxes of a batch with
# Free parameter of the bicubic kernel: torch's interpolate takes this one, Pillow -0.5.
_BICUBIC_A = -0.75


def upsample_bicubic(heatmap: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map `(rows, columns)` as `torch.nn.functional.interpolate` upsamples it with mode "bicubic" and align_corners
    False: float64 `(height, width)`.
    """
    rows, columns = heatmap.shape
    return _bicubic_matrix(rows, height) @ heatmap @ _bicubic_matrix(columns, width).T


def score_proposals(heatmap: np.ndarray, proposals: np.ndarray) -> np.ndarray:
    """Heat inside each proposal over the root of its area.

    The corners are truncated to whole pixels, and what lies outside the image is left out; the area is the proposal's
    own, not truncated.

    Args:
        heatmap: `(height, width)`, at the size of the image.
        proposals: `(num_proposals, 4)`, x, y, width, height in pixels, width and height above 0.

    Returns: float64 `(num_proposals,)`.
    """
    scores = []
    for x, y, width, height in np.asarray(proposals, dtype=np.float64).reshape(-1, 4):
        # A negative index would count from the far end of the map.
        x1, y1, x2, y2 = (max(0, int(corner)) for corner in (x, y, x + width, y + height))
        scores.append(heatmap[y1:y2, x1:x2].sum(dtype=np.float64) / (width * height) ** 0.5)
    return np.array(scores)


def intersection_over_union(box: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union with the last pixel counted in, as the code of RefCOCO does.

    A box ends at x2 = x1 + width - 1. Boxes that share a single column or row of pixels do not intersect by this
    definition, and a box one pixel wide does not even intersect itself. Two boxes without area give 0.

    Args:
        box, other: `(4,)`, x, y, width, height in pixels.
    """
    x1, y1 = max(box[0], other[0]), max(box[1], other[1])
    x2 = min(box[0] + box[2] - 1, other[0] + other[2] - 1)
    y2 = min(box[1] + box[3] - 1, other[1] + other[3] - 1)
    intersection = (x2 - x1 + 1) * (y2 - y1 + 1) if x1 < x2 and y1 < y2 else 0.0
    union = box[2] * box[3] + other[2] * other[3] - intersection
    return float(intersection / union) if union else 0.0


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class BoxAccuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        numbers = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="Yang et al., Improving Visual Grounding by ... Gradient-based Explanations, CVPR 2023",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "heatmaps": datasets.List(datasets.List(datasets.Value("float32"))),
                    "image_sizes": datasets.List(datasets.Value("int64")),
                    "proposals": datasets.List(numbers),
                    "boxes": datasets.List(numbers),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2206.15462", "https://arxiv.org/abs/1801.08186"],
        )

    def _compute(
        self,
        heatmaps: list[list[list[float]]],
        image_sizes: list[list[int]],
        proposals: list[list[list[float]]],
        boxes: list[list[list[float]]],
        iou_threshold: float = 0.5,
    ) -> dict[str, float | int]:
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"iou_threshold must lie in (0, 1], got {iou_threshold}")
        if len(heatmaps) == 0:
            raise ValueError("there are no phrases to score: check that the split has records")
        phrases = enumerate(zip(heatmaps, image_sizes, proposals, boxes, strict=True))
        overlaps = [_best_overlap(*phrase, index) for index, phrase in phrases]
        return {
            "box_accuracy": sum(iou is not None and iou >= iou_threshold for iou in overlaps) / len(overlaps),
            "num_phrases": len(overlaps),
            "num_unanswered": overlaps.count(None),
        }


def _best_overlap(heatmap: list, size: list, proposals: list, boxes: list, index: int) -> float | None:
    """The favoured proposal's largest intersection over union with a box; None if no proposal scores above 0."""
    heatmap = _read_heatmap(heatmap, size, index)
    candidates = _read_boxes(proposals, "proposals must be [x, y, width, height]", index)
    boxes = [box for box in boxes if set(box) != {_PADDING}]
    if not boxes:
        raise ValueError(f"phrase {index} has no boxes to be scored against; leave it out")
    references = _read_boxes(boxes, "boxes must be [x1, y1, x2, y2]", index, are_corners=True)
    scores = score_proposals(heatmap, candidates)
    if not (scores > 0).any():
        return None
    answer = candidates[scores.argmax()]
    return max(intersection_over_union(true, answer) for true in references)


def _bicubic_matrix(length: int, new_length: int) -> np.ndarray:
    """The linear map from `length` samples to `new_length`: float64 `(new_length, length)`."""
    # Pixel centres, measured in samples; beyond the ends the outermost sample repeats.
    centers = (np.arange(new_length) + 0.5) * (length / new_length) - 0.5
    taps = np.floor(centers).astype(np.int64)[:, None] + np.arange(-1, 3)
    distance = np.abs(centers[:, None] - taps)
    a = _BICUBIC_A
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    matrix, rows = np.zeros((new_length, length)), np.arange(new_length)[:, None]
    np.add.at(matrix, (rows, taps.clip(0, length - 1)), np.where(distance <= 1, near, far))
    return matrix


def _read_heatmap(heatmap: list[list[float]], size: list[int], index: int) -> np.ndarray:
    """The heatmap at the size of its image: float64 `(height, width)`."""
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"phrase {index}: the image size must be (height, width) in pixels, got {size}")
    if len({len(row) for row in heatmap}) != 1 or not heatmap[0]:
        raise ValueError(f"phrase {index}: the heatmap must be (rows, columns), every row of the same length")
    heatmap = np.array(heatmap, dtype=np.float64)
    if not np.isfinite(heatmap).all():
        raise ValueError(f"phrase {index}: the heatmap holds NaN or infinite values; check what the model gave")
    return upsample_bicubic(heatmap, *size)


def _read_boxes(boxes: list[list[float]], form: str, index: int, are_corners: bool = False) -> np.ndarray:
    """Boxes, checked, as x, y, width, height: float64 `(num_boxes, 4)`."""
    is_finite = all(len(box) == 4 and np.isfinite(box).all() for box in boxes)
    read = np.array(boxes if is_finite else [], dtype=np.float64).reshape(-1, 4)
    if are_corners:
        read[:, 2:] -= read[:, :2]
    if not is_finite or not (read[:, 2:] > 0).all():
        raise ValueError(f"phrase {index}: {form}, four finite numbers with a width and height above 0, got {boxes}")
    return read
