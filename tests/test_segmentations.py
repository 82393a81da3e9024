"""Segmentations as masks: every form, what is left out and why; and the fields of COCO's records."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dataset_scripts.coco_format import as_read, contradict, in_words, read_corners, read_id, read_whole
from dataset_scripts.segmentations import segmentation_to_mask
from modeling_albef_amc.tokenization_albef import clean_text
from tests.helpers.builders import HEIGHT, SQUARE, SQUARE_MASK, SQUARE_RUNS, WIDTH
from trainer import columns

SIZE, COUNTS = SQUARE_RUNS["size"], SQUARE_RUNS["counts"]
COMPRESSED = coco_mask.frPyObjects(SQUARE_RUNS, HEIGHT, WIDTH)["counts"].decode()
COLUMN_RUNS = {"size": SIZE, "counts": [13, 3, 32]}  # of the square, its column at x = 2 alone
# Of bad parts: why they are left out.
BAD_PARTS = [
    ([1, 1, 4, 1, 4, 4, 1], "odd number"),
    ([7, 7], "fewer than three points"),
    ([1, 1, 4, 1, 4, "four"], "no finite number"),
    ([1, 1, 4, 1, 4, float("nan")], "no finite number"),
    ([[1, 1], [4, "a"], [4, 4]], "no finite number"),
    ([1, 1, None, 1, 4, 4], "no finite number"),
    ([0.1, 0, 1, 0.5, "0.5", 1], "shares of the image"),
    ([1, 1, 4e9, 1, 4, 4], "far outside"),
    ([], "empty"),
    ({}, "empty"),
    ("square", "neither polygon nor run lengths"),
    (7, "neither polygon nor run lengths"),
    ({"all_points_x": [1, 4, 4], "all_points_y": [1, 1, 4]}, "neither polygon nor run lengths"),
    ({"size": [WIDTH, HEIGHT], "counts": COUNTS}, "another image size"),
    ({"counts": COUNTS}, "another image size"),
    ({"size": SIZE}, "cannot be read"),
    ({"size": SIZE, "counts": [7, -3, 44]}, "cannot be read"),
    ({"size": SIZE, "counts": [7.5, 40.5]}, "cannot be read"),
    ({"size": SIZE, "counts": [7, 3]}, "do not add up"),
    ({"size": SIZE, "counts": COMPRESSED[:-1]}, "add up|cannot be read"),
    ({"size": SIZE, "counts": COMPRESSED + "o"}, "cannot be read"),
    ({"size": SIZE, "counts": "é!"}, "cannot be read"),
]


def read(segmentation, height=HEIGHT, width=WIDTH):
    """The mask, and why parts of it were left out."""
    reasons = []
    return segmentation_to_mask(segmentation, height, width, reasons.append), reasons


FORMS = {
    "polygon": [SQUARE],
    "two polygons": [[1, 1, 3, 1, 3, 4, 1, 4], [3, 1, 4, 1, 4, 4, 3, 4]],
    "run lengths": SQUARE_RUNS,
    "compressed": {"size": SIZE, "counts": COMPRESSED},
    "flat": SQUARE,
    "points": [[[1, 1], [4, 1], [4, 4], [1, 4]]],
    "points, flat": [[1, 1], [4, 1], [4, 4], [1, 4]],
    "named points": [{"x": 1, "y": 1}, {"y": 1, "x": 4}, {"x": 4, "y": 4}, {"x": 1, "y": 4}],
    "named points, nested": [[{"x": 1, "y": 1}, {"x": 4, "y": 1}, {"x": 4, "y": 4}, {"x": 1, "y": 4}]],
    "text": [list(map(str, SQUARE))],
    "both kinds": [[1, 1, 3, 1, 3, 4, 1, 4], SQUARE_RUNS],
    "run lengths in a list": [COLUMN_RUNS, SQUARE_RUNS],
    "run lengths as text": {"size": [float(HEIGHT), str(WIDTH)], "counts": list(map(str, COUNTS))},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_square_is_the_square(form):
    mask, reasons = read(FORMS[form])
    assert not reasons and mask.dtype == bool and np.array_equal(mask, SQUARE_MASK)


def test_compressed_run_lengths_agree_with_pycocotools():
    rng = np.random.default_rng(1)
    for _ in range(60):
        height, width = map(int, rng.integers(1, 90, size=2))
        expected = rng.random((height, width)) < rng.random()
        expected[rng.integers(height) :] ^= True  # long runs as well as short ones
        expected[0, 0] = True
        encoded = coco_mask.encode(np.asfortranarray(expected.astype(np.uint8)))
        found, _ = read({"size": [height, width], "counts": encoded["counts"].decode()}, height, width)
        assert np.array_equal(found, expected)


def test_a_polygon_over_the_edge_is_cut_to_the_image():
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[3:, 5:] = True
    assert np.array_equal(read([[5, 3, 20, 3, 20, 20, 5, 20]])[0], expected)


@pytest.mark.parametrize(("bad", "reason"), BAD_PARTS)
def test_of_a_bad_part_the_others_stay(bad, reason):
    mask, reasons = read([bad, SQUARE, bad])
    assert np.array_equal(mask, SQUARE_MASK) and len(reasons) == 2 and reasons[0] == reasons[1]
    assert reasons[0].startswith("mask parts: ") and any(word in reasons[0] for word in reason.split("|"))


@pytest.mark.parametrize("segmentation", [[[20, 20, 24, 20, 24, 24]], {"size": SIZE, "counts": [48]}])
def test_a_mask_of_no_pixel_is_none(segmentation):
    assert read(segmentation) == (None, ["masks: segmentation that covers no pixel of the image"])


def test_without_a_segmentation_there_is_no_reason():
    assert read(None) == read([]) == (None, [])


@pytest.mark.parametrize(
    ("box", "mask_box", "expected"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], False),
        ([0, 0, 2, 2], [0, 0, 2, 1], False),  # an IoU of a half, exactly
        ([0, 0, 2, 2], [0, 0, 2, 0.9], True),
        ([0, 0, 2, 2], [1, 0, 3, 2], True),  # of a third
        ([0, 0, 2, 2], [5, 5, 6, 6], True),
    ],
)
def test_what_a_contradiction_is(box, mask_box, expected):
    assert contradict(box, mask_box) == contradict(mask_box, box) == expected


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("bow_(weapon)", "bow"),
        ("traffic light", "traffic light"),
        ("record_(vinyl)_player", "record player"),
        (" Cell  Phone ", "Cell Phone"),
        ("t-shirt", "t-shirt"),
        ("(weapon)", "(weapon)"),
        ("pan_(for", "pan (for"),
        ("(a_(b)) c", "c"),
    ],
)
def test_categories_in_words(name, phrase):
    """In builds, and where a data set of rows has names of categories."""
    assert in_words(name) == columns.in_words(name) == phrase


@pytest.mark.parametrize("words", ["T-Shirt", "t_shirt", "t shirt", " t --  SHIRT "])
def test_what_an_uncased_tokenizer_reads_the_same_is_the_same(words):
    """In builds, and in data sets of rows, as ALBEF cleans a phrase."""
    assert as_read(words) == columns.as_read(words) == "t shirt" == clean_text(words.replace("_", " ")).strip()


def test_fields_are_read_where_they_can_mean_one_thing_only():
    assert [read_whole(value) for value in (40, 40.0, "40", "40.0", " 40 ")] == [40] * 5
    assert {read_whole(value) for value in (40.5, "4x", None, True, [], 2**53, float("nan"), "1" * 41)} == {None}
    assert [read_id(value) for value in (7, 7.0, "7", "007", "a7", "-7")] == [7, 7, 7, "007", "a7", -7]
    assert [read_id(value) for value in (2**63, f"{2**63}", 2**63 - 1, f"{2**63 - 1}")] == [f"{2**63}"] * 2 + [
        2**63 - 1
    ] * 2
    assert {read_id(value) for value in (10**5000, 7.5, "", "a" * 201, None, True)} == {None}
    assert read_corners(["1", "1.0", 3, "3e0"]) == [1, 1, 4, 4]
    assert {read_corners(value) for value in ([1, 2, 3], "1234", None, [1, 2, 3, "four"], [1, 2, 3, 10**400])} == {None}
