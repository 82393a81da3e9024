"""Images of heatmaps: one row a phrase, one column a model, the annotated boxes drawn in; and sheets of cases."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from modeling_albef_amc.gradcam import heatmap_points, upsample_heatmaps
from modeling_albef_amc.images import open_image
from modeling_albef_amc.tools.figures import captioned, panel, sheet

from .metrics.pointing_game.pointing_game import point_in_boxes

Record = dict[str, Any]
Heatmaps: TypeAlias = torch.Tensor | Sequence[torch.Tensor | None]
WIDTH = 230  # of a panel, in pixels
HIT, MISS = "lime", "red"
HEADINGS = {"best": "surest hits", "worst": "surest misses", "random": "at random"}


def grid_of_batch(records: Sequence[Record], columns: Mapping[str, Heatmaps]) -> Image.Image:
    """A grid for records of a data set: the image with its annotated region, then a column for each model.

    Args:
        records: with `image`, `phrase`, and `boxes` xyxy in pixels.
        columns: title → a heatmap (rows, columns) a record as the model gives it; None where it cannot use the record.
    """
    panels = []
    for number, record in enumerate(records):
        image, boxes = open_image(record["image"]), record.get("boxes") or []
        size = image.height, image.width
        panels.append(panel(image, f'"{record["phrase"]}"', boxes=boxes, width=WIDTH))
        for title, heatmaps in columns.items():
            if (found := heatmaps[number]) is None:
                panels.append(panel(image, f"{title}: not read", boxes=boxes, width=WIDTH))
                continue
            heatmap = found[None].float().cpu()
            (point,) = heatmap_points(heatmap, torch.tensor([size])).tolist()
            word, colour = ("hit", HIT) if point_in_boxes(np.array(point), np.array(boxes)) else ("miss", MISS)
            heat = upsample_heatmaps(heatmap, size)[0].numpy()
            panels.append(panel(image, f"{title}: {word}", heat, tuple(point), boxes, colour, WIDTH))
    return sheet(panels, 1 + len(columns))


def choose_cases(records: pa.Table, metric: str, count: int, seed: int = 0) -> dict[str, list[int]]:
    """Positions among all records: "best" hits and "worst" misses by the score, the highest first, and "random" ones.

    Phrases without a box, and records that could not be used, are none of them. A kind may have fewer than `count`.

    Args:
        records: with the columns "score" and `metric`.
    """
    scores, hits = records["score"].to_pylist(), records[metric].to_pylist()
    cases = [position for position, hit in enumerate(hits) if hit is not None]
    by_score = sorted(cases, key=lambda position: -scores[position])
    positions = {
        "best": [position for position in by_score if hits[position]][:count],
        "worst": [position for position in by_score if not hits[position]][:count],
        "random": sorted(random.Random(seed).sample(cases, min(count, len(cases)))),
    }
    return {kind: chosen for kind, chosen in positions.items() if chosen}


def gallery(cases: dict[str, list[Record]], explain: Callable[..., Any], title: str) -> Image.Image:
    """The kinds of cases side by side, each case with its annotated region and its heatmap.

    Args:
        cases: kind → records, kinds as of `choose_cases`.
        explain: records → the same with the boxes to draw, and their maps (rows, columns).
        title: of the heatmaps, such as the model's name.
    """
    sheets = []
    for kind, records in cases.items():
        records, heatmaps = explain(records)
        grid = grid_of_batch(records, {title: heatmaps})
        sheets.append(captioned(grid, HEADINGS[kind], grid.width))
    return sheet(sheets)
