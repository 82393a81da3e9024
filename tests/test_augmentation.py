"""Augmentation: image, regions and phrases change together, and stay true of each other."""

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.augmentation import GroundingAugmentation, names_color, names_position, swap_left_right
from trainer.regions import Region

HEIGHT, WIDTH = 40, 60
RED, GREEN = (250, 10, 20), (30, 220, 40)
OFF = {"flip": 0.0, "gray": 0.0, "jitter": 0.0, "crop": 0.0}


def painted(box, color=RED, seed=0):
    """Noise without red or green of its own, the box painted over: float64 box, uint8 image."""
    pixels = np.random.default_rng(seed).integers(100, 160, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = color
    return Image.fromarray(pixels)


def region(**annotations):
    return Region.from_record(annotations, HEIGHT, WIDTH)


def all_kinds(box):
    """The same rectangle as a box, as a polygon and as a mask."""
    x1, y1, x2, y2 = box
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    mask[y1:y2, x1:x2] = 1
    return [region(boxes=[box]), region(polygons=[[[x1, y1, x2, y1, x2, y2, x1, y2]]]), region(masks=[mask])]


@pytest.mark.parametrize(
    ("phrase", "mirrored"),
    [
        ("the man on the left of the dog", "the man on the right of the dog"),
        ("Left arm, RIGHT leg", "Right arm, LEFT leg"),
        ("rightmost cup, left-most plate", "leftmost cup, right-most plate"),
        ("left-hand side", "right-hand side"),
        ("lefthand righthand leftward leftwards rightside", "righthand lefthand rightward rightwards leftside"),
        ("leftmost Rightmost", "rightmost Leftmost"),
        ("a lefty in a bright, upright copyright leftover", "a lefty in a bright, upright copyright leftover"),
        ("left/right", "right/left"),
        ("the man", "the man"),
        ("", ""),
    ],
)
def test_left_and_right_change_places_as_whole_words(phrase, mirrored):
    assert swap_left_right(phrase) == mirrored
    assert swap_left_right(mirrored) == phrase


@pytest.mark.parametrize(
    ("phrase", "color", "position"),
    [
        ("a Red shirt", True, False),
        ("greyish-blue sky", True, False),
        ("the colorful kite", True, False),
        ("dark hair", True, False),
        ("blond boy", True, False),
        ("a bored, tanned man on a goldfish pond", False, False),
        ("infrared greens are redder", False, False),
        ("the man in the top corner", False, True),
        ("second from Left", False, True),
        ("center", False, True),
        ("a stop sign, an upright bottle and a sofa", False, False),
    ],
)
def test_words_that_name_colors_and_positions(phrase, color, position):
    assert names_color(phrase) is color
    assert names_position(phrase) is position


def test_mirroring_by_hand():
    image = painted([3, 5, 10, 8])
    flip = GroundingAugmentation(**OFF | {"flip": 1.0})
    kept = np.asarray(image).copy()
    boxed, polygon, masked = all_kinds([3, 5, 10, 8])
    mirrored, phrases, regions = flip(image, ["left dog", "cat", "x", "y"], [boxed, polygon, masked, None])
    np.testing.assert_array_equal(np.asarray(mirrored), kept[:, ::-1])
    np.testing.assert_array_equal(np.asarray(image), kept)
    assert phrases == ["right dog", "cat", "x", "y"]
    for changed in regions[:3]:
        assert changed.boxes.tolist() == [[50, 5, 57, 8]]
    np.testing.assert_array_equal(regions[1].polygons[0][0], [[57, 5], [50, 5], [50, 8], [57, 8]])
    assert regions[2].masks[0][5:8, 50:57].all() and regions[2].masks[0].sum() == 21
    assert regions[3] is None


def test_masks_and_boxes_cover_exactly_the_painted_pixels_after_flip_and_crop():
    augmentation = GroundingAugmentation(**OFF | {"flip": 0.5, "crop": 0.7})
    generator = np.random.default_rng(1)
    torch.manual_seed(0)
    shapes, flips = set(), 0
    for seed in range(60):
        x1, y1 = generator.integers(0, WIDTH - 6), generator.integers(0, HEIGHT - 6)
        box = [int(side) for side in (x1, y1, generator.integers(x1 + 1, WIDTH), generator.integers(y1 + 1, HEIGHT))]
        image = painted(box, seed=seed)
        image, phrases, regions = augmentation(image, ["a", "b", "c"], all_kinds(box))
        red = (np.asarray(image) == RED).all(axis=2)
        assert red.sum() == (box[2] - box[0]) * (box[3] - box[1]), "the crop cut the region"
        shapes.add(image.size)
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        flips += tight[0] != box[0]
        for changed in regions:
            assert (changed.width, changed.height) == image.size
            assert changed.boxes.tolist() == [tight]
        np.testing.assert_array_equal(regions[2].masks[0], red)
        assert phrases == ["a", "b", "c"]
    assert len(shapes) > 20 and flips > 20


def test_polygons_are_cropped_as_boxes_are():
    boxed, polygon, masked = (kind.cropped(5, 10, 45, 38) for kind in all_kinds([20, 12, 40, 30]))
    assert (polygon.height, polygon.width) == (28, 40)
    np.testing.assert_array_equal(polygon.polygons[0][0], [[15, 2], [35, 2], [35, 20], [15, 20]])
    np.testing.assert_allclose(boxed.rasterize(40), masked.rasterize(40), atol=1e-6)
    assert np.abs(polygon.rasterize(40) - boxed.rasterize(40)).mean() < 0.02


def test_a_crop_holds_all_regions_of_the_image_and_is_no_smaller_than_asked():
    augmentation = GroundingAugmentation(**OFF | {"crop": 1.0}, min_crop=0.4)
    torch.manual_seed(0)
    lefts, rights, widths = set(), set(), set()
    for _ in range(300):
        image, _, regions = augmentation(
            painted([20, 10, 24, 14]),
            ["a", "b"],
            [region(boxes=[[20, 10, 24.5, 14]]), region(boxes=[[30, 20, 31, 21]])],
        )
        assert image.width >= 24 and image.height >= 16
        assert all(box.min() >= 0 for box in (regions[0].boxes, regions[1].boxes))
        first, second = regions[0].boxes[0], regions[1].boxes[0]
        assert (second - first).tolist() == [10, 10, 6.5, 7]
        assert second[2] <= image.width and second[3] <= image.height
        lefts.add(20 - first[0])
        rights.add(20 - first[0] + image.width)
        widths.add(image.width)
    # Every place that the window may take is taken by some.
    assert min(lefts) == 0 and max(lefts) == 20 and min(rights) == 31 and max(rights) == 60
    assert min(widths) == 24 and max(widths) == 60


@pytest.mark.parametrize(
    ("phrases", "has_region"),
    [(["a man", "the one in the corner"], [True, True]), (["left"], [True]), (["a", "b"], [True, False])],
)
def test_no_crop_where_a_phrase_names_a_position_or_has_no_region(phrases, has_region):
    augmentation = GroundingAugmentation(**OFF | {"crop": 1.0})
    regions = [region(boxes=[[3, 3, 5, 5]]) if has else None for has in has_region]
    for _ in range(10):
        image, _, _ = augmentation(painted([3, 3, 5, 5]), phrases, regions)
        assert image.size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("change", ["gray", "jitter"])
def test_colors_change_unless_a_phrase_names_one(change):
    augmentation = GroundingAugmentation(**OFF | {change: 1.0})
    torch.manual_seed(0)
    image = painted([3, 3, 20, 20])
    changed, _, _ = augmentation(image, ["a man", "a dog"], [None, None])
    assert changed.size == image.size and changed.mode == "RGB" and changed.tobytes() != image.tobytes()
    spared, _, _ = augmentation(image, ["a man", "a brown dog"], [None, None])
    assert spared.tobytes() == image.tobytes()


def test_gray_has_no_color():
    image, _, _ = GroundingAugmentation(**OFF | {"gray": 1.0})(painted([3, 3, 20, 20]), ["a"], [None])
    pixels = np.asarray(image).astype(int)
    assert (pixels == pixels[:, :, :1]).all()
    assert pixels[5, 5, 0] == round(0.299 * 250 + 0.587 * 10 + 0.114 * 20)


def test_jitter_of_nothing_is_nearly_the_identity():
    still = GroundingAugmentation(**OFF | {"jitter": 1.0}, brightness=0, contrast=0, saturation=0, hue=0)
    image = painted([3, 3, 20, 20])
    changed, _, _ = still(image, ["a"], [None])
    # The way to HSV and back rounds.
    assert np.abs(np.asarray(changed).astype(int) - np.asarray(image)).max() <= 4


def test_hue_alone_turns_the_hue_and_keeps_the_value():
    turn = GroundingAugmentation(**OFF | {"jitter": 1.0}, brightness=0, contrast=0, saturation=0, hue=0.5)
    torch.manual_seed(0)
    hues = set()
    for _ in range(30):
        changed, _, _ = turn(Image.new("RGB", (2, 2), RED), ["a"], [None])
        assert abs(max(changed.getpixel((0, 0))) - 250) <= 1
        hues.add(changed.convert("HSV").getpixel((0, 0))[0] // 32)
    assert len(hues) >= 6


def test_brightness_multiplies():
    brighten = GroundingAugmentation(**OFF | {"jitter": 1.0}, brightness=0.4, contrast=0, saturation=0, hue=0)
    torch.manual_seed(0)
    levels = [brighten(Image.new("RGB", (1, 1), (100,) * 3), ["a"], [None])[0].getpixel((0, 0))[0] for _ in range(200)]
    assert 60 <= min(levels) < 65 and 135 < max(levels) <= 140


def test_probabilities_are_kept_and_the_seed_repeats_all():
    augmentation = GroundingAugmentation(crop=0.3)
    image, box = painted([3, 3, 20, 20]), region(boxes=[[3, 3, 20, 20]])

    def run():
        torch.manual_seed(3)
        return [augmentation(image, ["dog"], [box]) for _ in range(400)]

    first, second = run(), run()
    assert [one[0].tobytes() for one in first] == [two[0].tobytes() for two in second]
    cropped = sum(one[0].size != image.size for one in first) / 400
    assert abs(cropped - 0.3) < 0.07
    flip = GroundingAugmentation(gray=0, jitter=0)
    torch.manual_seed(0)
    flipped = sum(flip(image, ["left"], [box])[1] == ["right"] for _ in range(400)) / 400
    assert abs(flipped - 0.5) < 0.08


def test_a_color_word_does_not_shift_the_later_draws_of_flips():
    flip = GroundingAugmentation(jitter=0)

    def flips(first_phrase):
        torch.manual_seed(0)
        phrases = [first_phrase, *["left"] * 20]
        return [flip(painted([3, 3, 5, 5]), [phrase], [None])[1] for phrase in phrases][1:]

    assert flips("a dog") == flips("a red dog")


@pytest.mark.parametrize(
    "wrong", [{"flip": 1.5}, {"gray": -0.1}, {"hue": 0.6}, {"min_crop": 2}, {"crop": float("nan")}]
)
def test_values_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must lie in"):
        GroundingAugmentation(**wrong)
