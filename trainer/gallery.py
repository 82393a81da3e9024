"""A sheet of cases: the surest hits, the surest misses, and some at random."""

import random
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
import torch
from PIL import Image, ImageDraw, ImageFont

from .heatmap_grid import grid_of_batch

Record = dict[str, Any]
HEADINGS = {"best": "surest hits", "worst": "surest misses", "random": "at random"}
HEADING_HEIGHT = 34


def choose_cases(tables: Iterable[pa.Table], metric: str, count: int, seed: int = 0) -> dict[str, list[int]]:
    """Positions among all records: "best" hits and "worst" misses by the score, the highest first, and "random" ones.

    Phrases without a box, and records that could not be used, are none of them. A kind may have fewer than `count`.

    Args:
        tables: with the columns "score" and `metric`.
    """
    cases, position = [], 0
    for table in tables:
        for score, hit in zip(table["score"].to_pylist(), table[metric].to_pylist()):
            if hit is not None:
                cases.append((position, score, hit))
            position += 1
    by_score = sorted(cases, key=lambda case: (-case[1], case[0]))
    positions = {
        "best": [position for position, _, hit in by_score if hit][:count],
        "worst": [position for position, _, hit in by_score if not hit][:count],
        "random": sorted(random.Random(seed).sample([case[0] for case in cases], min(count, len(cases)))),
    }
    return {kind: chosen for kind, chosen in positions.items() if chosen}


def gallery(
    cases: dict[str, list[Record]],
    heatmaps_of: Callable[[list[Record]], torch.Tensor],
    title: str,
) -> Image.Image:
    """The kinds of cases side by side, each case with its annotated region and its heatmap.

    Args:
        cases: kind → records, kinds as of `choose_cases`.
        heatmaps_of: maps (num_records, rows, columns) of records.
        title: of the heatmaps, such as the model's name.
    """
    sheets = []
    for kind, records in cases.items():
        sheets.append((HEADINGS[kind], grid_of_batch(records, {title: heatmaps_of(records)})))
    gap = 24
    width = sum(sheet.width for _, sheet in sheets) + gap * (len(sheets) - 1)
    height = HEADING_HEIGHT + max(sheet.height for _, sheet in sheets)
    picture = Image.new("RGB", (width, height), "white")
    draw, left = ImageDraw.Draw(picture), 0
    for heading, sheet in sheets:
        draw.text((left + 8, 8), heading, fill="black", font=ImageFont.load_default(size=18))
        picture.paste(sheet, (left, HEADING_HEIGHT))
        left += sheet.width + gap
    return picture
