"""Pictures of heatmaps: what is laid where, and what says hit or miss."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.heatmap_grid import grid_of_batch, heatmap_grid, overlay

GRAY = Image.new("RGB", (40, 30), (120, 120, 120))
LIME, RED, CYAN = (0, 255, 0), (255, 0, 0), (0, 255, 255)


def count(picture: Image.Image, color: tuple[int, int, int], columns: slice = slice(None)) -> int:
    return int((np.asarray(picture)[:, columns] == color).all(axis=-1).sum())


def test_overlay_shows_the_heat_where_it_is():
    heatmap = np.full((30, 40), 2.0)
    heatmap[5:10, 20:30] = 5.0
    shown = overlay(GRAY, heatmap, opacity=0.6)
    assert shown.shape == (30, 40, 3) and shown.dtype == np.uint8
    assert (shown[0, 0] == 90).all()  # cold: the photo, dimmed to three quarters
    hottest = 0.4 * np.array([120, 120, 120]) + 0.6 * 255 * np.array([0.988362, 0.998364, 0.644924])  # inferno's last
    assert np.abs(shown[7, 25] - hottest).max() <= 1
    assert (shown == shown[0, 0]).all(axis=-1).sum() == 30 * 40 - 50
    assert np.array_equal(shown, overlay(GRAY, 100 * heatmap - 7)), "shown from its minimum to its maximum"


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_heatmap_is_all_cold(value):
    assert (overlay(GRAY, np.full((30, 40), value)) == 90).all()


def test_any_mode_of_picture():
    for mode in ("L", "RGBA", "P"):
        assert overlay(GRAY.convert(mode), np.eye(30, 40)).shape == (30, 40, 3)


def test_hits_and_misses_are_marked():
    boxes = [[[10, 5, 30, 25]]]
    hit, miss = (np.zeros((30, 40)), (20, 15)), (np.zeros((30, 40)), (35, 2))
    picture = heatmap_grid([GRAY], ["a thing"], boxes, {"good": [hit], "bad": [miss]})
    third = picture.width // 3
    first, second, last = (slice(i * third, (i + 1) * third) for i in range(3))
    assert count(picture, LIME, second) > 5 and count(picture, RED, second) == 0
    assert count(picture, RED, last) > 5 and count(picture, LIME, last) == 0
    assert count(picture, LIME, first) == count(picture, RED, first) == 0
    assert all(count(picture, CYAN, columns) > 50 for columns in (first, second, last))
    # On the edge is outside, as in the pointing game.
    edge = heatmap_grid([GRAY], ["a thing"], boxes, {"edge": [(np.zeros((30, 40)), (10, 15))]})
    assert count(edge, RED) > 5 and count(edge, LIME) == 0


def test_grid_of_records():
    """Two pictures of different sizes, decoded or not; the heat is in the box of the first and not of the second."""
    encoded = io.BytesIO()
    Image.new("RGB", (60, 20), (10, 10, 200)).save(encoded, format="PNG")
    records = [
        {"image": GRAY, "phrase": "one", "boxes": [[21, 16, 40, 30]]},
        {"image": {"bytes": encoded.getvalue(), "path": None}, "phrase": "two", "boxes": [[0, 0, 10, 10]]},
        {"image": GRAY, "phrase": "three", "boxes": None},
    ]
    heatmaps = torch.zeros(3, 4, 4, dtype=torch.bfloat16)
    heatmaps[:, 3, 3] = 1
    picture = grid_of_batch(records, {"model": heatmaps})
    assert picture.mode == "RGB" and picture.size == (460, 800)
    rows = [picture.crop((0, round(35 + i * 255), 460, round(35 + (i + 1) * 255))) for i in range(3)]
    assert count(rows[0], LIME) > 5 and count(rows[0], RED) == 0
    assert count(rows[1], RED) > 5 and count(rows[1], LIME) == 0
    assert count(rows[2], CYAN) == 0 and count(rows[2], RED) > 5
    assert grid_of_batch(records[:1], {"a": heatmaps[:1], "b": heatmaps[:1]}).size == (690, 290)
