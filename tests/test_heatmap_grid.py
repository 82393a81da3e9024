"""Pictures of heatmaps: what is laid where, and what says hit or miss."""

import io

import numpy as np
import torch
from PIL import Image

from trainer.heatmap_grid import gallery, grid_of_batch

GRAY = Image.new("RGB", (40, 30), (120, 120, 120))
LIME, RED, CYAN = (0, 255, 0), (255, 0, 0), (0, 255, 255)


def count(picture: Image.Image, color: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == color).all(axis=-1).sum())


def encoded(image: Image.Image) -> dict:
    data = io.BytesIO()
    image.save(data, format="PNG")
    return {"bytes": data.getvalue(), "path": None}


def test_hits_and_misses_are_marked():
    """Images of different sizes, decoded or not; the heat is in the box of the first row only, in one corner."""
    records = [
        {"image": GRAY, "phrase": "one", "boxes": [[21, 16, 40, 30]]},
        {"image": encoded(Image.new("RGB", (60, 20), (10, 10, 200))), "phrase": "two", "boxes": [[0, 0, 10, 10]]},
        {"image": GRAY, "phrase": "three", "boxes": None},
    ]
    heatmaps = torch.zeros(3, 4, 4, dtype=torch.bfloat16)
    heatmaps[:, 3, 3] = 1
    picture = grid_of_batch(records, {"model": heatmaps, "other": heatmaps.flip(1, 2)})
    assert picture.mode == "RGB" and 3 * 230 <= picture.width < 3 * 260
    thirds = [picture.crop((i * picture.width // 3, 0, (i + 1) * picture.width // 3, picture.height)) for i in range(3)]
    assert count(thirds[0], LIME) == count(thirds[0], RED) == 0 < count(thirds[0], CYAN)
    assert all(count(third, CYAN) > 50 for third in thirds)
    assert count(thirds[1], LIME) > 5 and count(thirds[1], RED) > 10
    rows = [grid_of_batch(records[row : row + 1], {"model": heatmaps[row : row + 1]}) for row in range(3)]
    assert [count(row, LIME) > 5 for row in rows] == [True, False, False]
    assert [count(row, RED) > 5 for row in rows] == [False, True, True]
    assert [count(row, CYAN) > 50 for row in rows] == [True, True, False]


def test_a_model_that_cannot_use_a_record_has_no_heat_in_it():
    record, heatmaps = {"image": GRAY, "phrase": "one", "boxes": [[21, 16, 40, 30]]}, torch.eye(4)[None]
    drawn = grid_of_batch([record], {"one": heatmaps, "other": [None]})
    thirds = [drawn.crop((i * drawn.width // 3, 0, (i + 1) * drawn.width // 3, drawn.height)) for i in range(3)]
    assert count(thirds[1], LIME) + count(thirds[1], RED) > 0 == count(thirds[2], LIME) + count(thirds[2], RED)
    assert count(thirds[2], CYAN) > 50


def test_on_the_edge_is_outside():
    """As in the pointing game. The heat is highest at (10, 5)."""
    heatmaps = torch.zeros(1, 30, 40)
    heatmaps[0, 5, 10] = 1
    for box, color in (([10, 3, 20, 9], RED), ([9, 3, 20, 9], LIME)):
        picture = grid_of_batch([{"image": GRAY, "phrase": "a thing", "boxes": [box]}], {"edge": heatmaps})
        assert count(picture, color) > 5 and count(picture, RED) + count(picture, LIME) == count(picture, color)


def test_a_gallery_has_its_kinds_side_by_side():
    records = [{"image": GRAY, "phrase": "a thing", "boxes": [[0, 0, 9, 9]]}] * 3
    alone = grid_of_batch(records[:2], {"tiny": torch.eye(4).expand(2, 4, 4)})
    cases = {"best": records[:2], "worst": records[:1]}
    drawn = gallery(cases, lambda asked: (asked, torch.eye(4).expand(len(asked), 4, 4)), "tiny")
    assert drawn.width > 2 * alone.width and drawn.height > alone.height
