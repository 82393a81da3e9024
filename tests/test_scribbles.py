"""Points and scribbles as soft regions: against values worked out by hand."""

import numpy as np
import pytest

from tests.helpers.data import tiny_processor, tiny_records
from trainer.data_collator import GroundingCollator
from trainer.regions import Region


def region(*scribbles: list[float], radius: float = 4.0, **others) -> Region:
    return Region.from_record({"scribbles": scribbles, "scribble_radius": radius, **others}, 16, 16)


def test_a_point_is_a_soft_disc():
    drawn = region([10.5, 6.5]).rasterize(16)
    assert drawn.dtype == np.float32 and drawn[6, 10] == 1
    # A half at the radius, and a half to the power of (distance / radius)² elsewhere.
    assert drawn[6, 14] == drawn[2, 10] == pytest.approx(0.5)
    assert drawn[6, 2] == pytest.approx(0.5**4)
    assert drawn[9, 14] == pytest.approx(0.5 ** (25 / 16))


def test_a_stroke_is_as_far_as_its_nearest_point():
    drawn = region([4.5, 8.5, 12.5, 8.5, 12.5, 2.5]).rasterize(16)
    assert (drawn[8, 4:13] == 1).all() and (drawn[2:9, 12] == 1).all()
    assert drawn[12, 8] == pytest.approx(0.5)
    assert drawn[11, 1] == pytest.approx(0.5 ** (18 / 16))
    # The union of two instances is not the stroke that joins them.
    apart = region([2.5, 2.5], [13.5, 13.5], radius=2).rasterize(16)
    assert apart[2, 2] == apart[13, 13] == 1 and apart[8, 8] < 0.01
    assert region([2.5, 2.5], [13.5, 13.5], radius=2).rasterize(16, instance=1)[2, 2] < 0.01


def test_a_point_between_coarse_cells_does_not_vanish():
    drawn = region([8.0, 8.0], radius=0.01).rasterize(4)
    assert drawn.max() == 1 and (drawn[1:3, 1:3] == 1).all() and drawn.sum() == 4


def test_boxes_and_extent_reach_to_the_radius():
    assert region([10, 6], [1, 1, 3, 15]).boxes.tolist() == [[6, 2, 14, 10], [0, 0, 7, 16]]
    assert region([10, 6]).extent == (6, 2, 14, 10)


def test_cropped():
    one = region([3.5, 6.5, 5.5, 9.5])
    assert np.allclose(one.cropped(0, 2, 16, 16).scribbles[0], [[3.5, 4.5], [5.5, 7.5]])
    with pytest.raises(ValueError, match="cuts the region"):
        one.cropped(4, 0, 16, 16)


def test_all_kinds_in_one_batch():
    records = tiny_records(6)
    for record in records[1:]:
        record["boxes"] = []
    records[1] |= {"scribbles": [[10, 10]], "scribble_radius": 3}
    records[2]["polygons"] = [[[2, 2, 20, 2, 20, 20]]]
    records[3]["masks"] = [np.pad(np.ones((5, 5)), ((0, 32), (0, 35)))]
    records[5]["absent"] = True
    batch = GroundingCollator(tiny_processor(), mask_size=8)(records)
    assert batch["has_region"].tolist() == [True, True, True, True, False, False]
    assert batch["is_absent"].tolist() == [False] * 5 + [True]
    assert batch["masks"].amax(dim=(1, 2)).tolist() == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"scribbles": [[1.0]], "scribble_radius": 2}, "scribble 0 must be pairs"),
        ({"scribbles": [[1, 2], []], "scribble_radius": 2}, "scribble 1 must be pairs"),
        ({"scribbles": [[[1, 2], [3]]], "scribble_radius": 2}, "scribble 0 must be finite numbers, a flat list"),
        ({"scribbles": [[1, float("nan")]], "scribble_radius": 2}, "finite"),
        ({"scribbles": [[20, 3]], "scribble_radius": 2}, "outside the image of 16x16"),
        ({"scribbles": [[1, 2]]}, "need a scribble_radius above 0, in pixels.* got None"),
        ({"scribbles": [[1, 2]], "scribble_radius": 0}, "got 0"),
        ({"scribbles": [[1, 2]], "scribble_radius": float("inf")}, "got inf"),
    ],
)
def test_what_cannot_be_used_says_what_to_do(record: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Region.from_record(record, 16, 16)
