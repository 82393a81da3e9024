"""The rendered scenes: what their phrases, boxes, masks and images promise, read off the rows and the pixels.

The phrases are parsed here anew, with regular expressions, and colours, sizes and shapes are measured in the pixels.
"""

import colorsys
import hashlib
import io
import re
from itertools import combinations, pairwise

import numpy as np
import pytest
from PIL import Image

from dataset_scripts.scenes import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZES,
    SPLITS,
    Scenes,
    ScenesConfig,
    draw_scene,
    is_relation,
    scene_rows,
)
from tests.helpers.builders import decoded, name_in_source

COUNTS = {"train": 60, "validation": 16, "test": 40, "test_relations": 40, "test_unseen": 40, "captions": 20}
PHRASE_SPLITS = tuple(split for split in SPLITS if split != "captions")
RELATION = re.compile(
    r"^(?P<target>.+?) (?P<relation>(?:to the )?(?:left|right) of|above|below|under) the (?P<anchor>.+)$"
)


@pytest.fixture(scope="module")
def dataset():
    """The rows by split."""
    config = ScenesConfig(**COUNTS)
    return {s: [row for i in range(count) for row in scene_rows(config, s, i)] for s, count in COUNTS.items()}


@pytest.fixture(scope="module")
def scenes():
    config = ScenesConfig(**COUNTS)
    return {(s, i): draw_scene(config, s, i) for s, count in COUNTS.items() for i in range(count)}


def attributes_of(words: str) -> dict[str, str]:
    """The attributes that a noun phrase names."""
    found = {}
    for word in words.split():
        for name, values in (("size", SIZES), ("colour", tuple(COLOURS)), ("shape", SHAPES)):
            if word in values:
                assert name not in found, f"{words!r} names two of {name}"
                found[name] = word
    return found


def fits(attributes: dict[str, str], item) -> bool:
    return all(getattr(item, name) == value for name, value in attributes.items())


def rows_of(dataset, split: str) -> list[tuple[int, str, list[float] | None]]:
    """(number of the scene, phrase, box) of each row; a caption has no box: None."""
    return [
        (int(name_in_source(row["image_id"]).rsplit("-", 1)[1]), row["phrase"], *(row["boxes"] or [None]))
        for row in dataset[split]
    ]


def target_of(scene, box: list[float]) -> int:
    (index,) = [i for i, item in enumerate(scene.objects) if item.box == box]
    return index


def test_rows_of_an_image_follow_each_other_and_have_a_box_and_a_mask(dataset, scenes):
    for split, count in COUNTS.items():
        ids = [name_in_source(row["image_id"]) for row in dataset[split]]
        assert list(dict.fromkeys(ids)) == [f"{split}-{i:06d}" for i in range(count)]
        assert sum(a != b for a, b in pairwise(ids)) == count - 1  # every image's rows follow each other
        for row in dataset[split][:40]:
            scene = scenes[split, int(name_in_source(row["image_id"])[-6:])]
            assert np.array_equal(Image.open(io.BytesIO(row["image"]["bytes"])), scene.image)
            assert len(row["boxes"]) == len(row["masks"]) == (0 if split == "captions" else 1)
            for box, mask in zip(row["boxes"], map(decoded, row["masks"])):
                assert np.array_equal(mask, scene.objects[target_of(scene, box)].mask)
                rows, columns = np.nonzero(mask)
                assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_each_split_has_its_kinds_of_phrases_and_distinct_targets(dataset):
    kinds = {split: [is_relation(phrase) for _, phrase, _ in rows_of(dataset, split)] for split in SPLITS}
    assert not any(kinds["test"] + kinds["test_unseen"] + kinds["captions"])
    assert all(kinds["test_relations"])
    words = {word for rows in dataset.values() for row in rows for word in row["phrase"].split()}
    other = {"and", "the", "a", "thing", "object", "that", "is", "left", "right", "to", "of", "above", "below", "under"}
    assert words <= {*SIZES, *COLOURS, *SHAPES} | other
    for split in PHRASE_SPLITS:
        by_scene: dict[int, list] = {}
        for index, phrase, box in rows_of(dataset, split):
            by_scene.setdefault(index, []).append((phrase, tuple(box)))
        for rows in by_scene.values():
            assert len({box for _, box in rows}) == len(rows) <= 4
            if split in ("train", "validation"):
                assert [is_relation(phrase) for phrase, _ in rows] == [True, True, False, False]


def test_relations_of_a_scene_differ_in_the_direction_alone(dataset):
    """No words but those of the direction tell the targets of a training scene apart."""
    opposite, seen = {"left": "right", "right": "left", "above": "below", "below": "above"}, set()
    for split in ("train", "validation"):
        scenes: dict[int, list] = {}
        for index, phrase, _ in rows_of(dataset, split):
            if found := RELATION.match(phrase):
                direction = (
                    re.search("left|right|above|below|under", found["relation"]).group().replace("under", "below")
                )
                words = attributes_of(found["target"]), attributes_of(found["anchor"])
                scenes.setdefault(index, []).append((direction, *words))
        for (direction, *words), (other, *other_words) in scenes.values():
            assert (opposite[direction], words) == (other, other_words)
            seen |= {direction, other}
    assert seen == {*opposite}


@pytest.mark.parametrize("phrases_per_scene", [2, 3])
def test_fewer_phrases_a_scene_have_one_relation(phrases_per_scene):
    config = ScenesConfig(**COUNTS, phrases_per_scene=phrases_per_scene)
    rows = [row["phrase"] for index in range(20) for row in scene_rows(config, "train", index)]
    assert [is_relation(phrase) for phrase in rows] == ([True] + [False] * (phrases_per_scene - 1)) * 20


def test_captions_name_every_object_once(dataset, scenes):
    orders = []
    for index, caption, box in rows_of(dataset, "captions"):
        assert box is None
        objects = [(item.size, item.colour, item.shape) for item in scenes["captions", index].objects]
        named = [tuple(words.split()) for words in caption.split(" and ")]
        assert sorted(named) == sorted(objects)
        orders.append(named == objects)
    assert len(orders) == COUNTS["captions"] and not all(orders)


@pytest.mark.parametrize("split", ["train", "validation", "test", "test_unseen"])
def test_attribute_phrases_need_each_of_their_words(dataset, scenes, split):
    checked = 0
    for index, phrase, box in rows_of(dataset, split):
        assert bool(RELATION.match(phrase)) == is_relation(phrase)
        if is_relation(phrase):
            continue
        scene = scenes[split, index]
        attributes = attributes_of(phrase)
        assert len(attributes) >= 2
        fitting = [i for i, item in enumerate(scene.objects) if fits(attributes, item)]
        assert fitting == [target_of(scene, box)], phrase
        for dropped in attributes:
            fewer = {name: value for name, value in attributes.items() if name != dropped}
            assert sum(fits(fewer, item) for item in scene.objects) >= 2, f"{phrase!r} does not need its {dropped}"
        checked += 1
    assert checked >= 15


@pytest.mark.parametrize("split", ["train", "validation", "test_relations"])
def test_relation_phrases_need_their_relation(dataset, scenes, split):
    checked = 0
    for index, phrase, box in rows_of(dataset, split):
        if not is_relation(phrase):
            continue
        scene = scenes[split, index]
        match = RELATION.match(phrase)
        attributes, anchor_attributes = attributes_of(match["target"]), attributes_of(match["anchor"])
        (anchor,) = [item for item in scene.objects if fits(anchor_attributes, item)]
        fitting = [i for i, item in enumerate(scene.objects) if fits(attributes, item)]
        assert len(fitting) >= 2 and target_of(scene, box) in fitting, phrase
        assert not fits(attributes, anchor)
        axis = 0 if "left" in match["relation"] or "right" in match["relation"] else 1
        sign = 1 if re.search("left|above", match["relation"]) else -1
        for i in fitting:
            item = scene.objects[i]
            gaps = [(anchor.box[a] + anchor.box[a + 2] - item.box[a] - item.box[a + 2]) / 2 for a in (0, 1)]
            if item.box == box:
                assert sign * gaps[axis] > 128 / 6 and sign * gaps[axis] > abs(gaps[1 - axis]), phrase
            else:
                assert sign * gaps[axis] <= -4, phrase
        checked += 1
    assert checked >= 15


def test_held_out_pairs_are_seen_in_test_unseen_only(dataset, scenes):
    for (split, _), scene in scenes.items():
        if split != "test_unseen":
            assert not HELD_OUT & {(item.colour, item.shape) for item in scene.objects}
    targets = set()
    for index, phrase, box in rows_of(dataset, "test_unseen"):
        named = attributes_of(phrase)
        item = scenes["test_unseen", index].objects[target_of(scenes["test_unseen", index], box)]
        assert (named["colour"], named["shape"]) == (item.colour, item.shape)
        targets.add((item.colour, item.shape))
    assert targets == HELD_OUT
    train = {(item.colour, item.shape) for (split, _), s in scenes.items() if split == "train" for item in s.objects}
    assert {c for c, _ in train} == set(COLOURS) and {s for _, s in train} == set(SHAPES)


def test_objects_are_centred_on_the_patches_and_almost_upright(scenes):
    columns, rows = set(), set()
    for scene in scenes.values():
        for item in scene.objects:
            x1, y1, x2, y2 = item.box
            column, row = (x1 + x2) // 2 // 16, (y1 + y2) // 2 // 16
            # A box is of whole pixels: its middle may be half a pixel off.
            assert abs((x1 + x2) / 2 - (16 * column + 8)) <= 0.5 and abs((y1 + y2) / 2 - (16 * row + 8)) <= 0.5
            columns.add(column)
            rows.add(row)
            if item.shape == "square":  # its box grows by cos + sin of the angle
                side = np.sqrt(item.mask.sum())
                angle = np.radians(4)
                assert side - 0.5 <= max(x2 - x1, y2 - y1) <= side * (np.cos(angle) + np.sin(angle)) + 1
    assert columns == rows == set(range(1, 7))


def test_objects_are_apart_and_not_on_the_edge(scenes):
    for scene in scenes.values():
        assert 4 <= len(scene.objects) <= 6
        for item in scene.objects:
            assert item.mask[1:-1, 1:-1].sum() == item.mask.sum()
        for one, other in combinations(scene.objects, 2):
            grown = one.mask.copy()
            for axis, shift in ((0, 1), (0, -1), (1, 1), (1, -1)):
                grown |= np.roll(one.mask, shift, axis)
            assert not (grown & other.mask).any()


def measured_colour(rgb: np.ndarray) -> str:
    hue = colorsys.rgb_to_hsv(*(rgb / 255))[0]
    degrees = {"red": 0, "yellow": 50, "green": 130, "blue": 222, "purple": 283}
    return min(degrees, key=lambda name: min(abs(360 * hue - degrees[name]), 360 - abs(360 * hue - degrees[name])))


def measured_shape(mask: np.ndarray) -> str:
    """By the number of waves in the outline's distance from the centroid."""
    rows, columns = np.nonzero(mask)
    y, x = rows - rows.mean(), columns - columns.mean()
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    bins = ((angle + np.pi) / (2 * np.pi) * 36).astype(int) % 36
    outline = np.array([radius[bins == b].max(initial=0) for b in range(36)])
    waves = np.abs(np.fft.rfft(outline))[3:6]
    shape = ("triangle", "square", "star")[int(waves.argmax())]
    # Between its corners a square comes down to 0.71 of their distance, a cross much lower.
    return "cross" if shape == "square" and outline.min() < 0.6 * outline.max() else shape


def test_objects_stand_out_and_their_colour_size_and_shape_can_be_read_off_the_pixels(scenes):
    for scene in scenes.values():
        anywhere = np.any([item.mask for item in scene.objects], axis=0)
        for item in scene.objects:
            x1, y1, x2, y2 = item.box
            around = np.zeros_like(anywhere)
            around[max(y1 - 4, 0) : y2 + 4, max(x1 - 4, 0) : x2 + 4] = True
            beside = scene.image[around & ~anywhere]
            assert np.abs(np.median(scene.image[item.mask], axis=0) - np.median(beside, axis=0)).max() > 25
            assert measured_colour(np.median(scene.image[item.mask], axis=0)) == item.colour
            assert measured_shape(item.mask) == item.shape
            across = max(x2 - x1, y2 - y1)
            assert (across < 28) == (item.size == "small") and (across > 31) == (item.size == "large")


def test_scenes_do_not_depend_on_each_other_and_are_the_same_everywhere():
    few, many = ScenesConfig(train=1), ScenesConfig(train=100000, test=0, captions=0)
    assert np.array_equal(draw_scene(few, "train", 7).image, draw_scene(many, "train", 7).image)
    digests = {}
    for split, index, seed in DIGESTS:
        scene = draw_scene(ScenesConfig(seed=seed), split, index)
        digest = hashlib.sha256(scene.image.tobytes())
        for phrase, target in scene.phrases:
            digest.update(phrase.encode())
            if target is not None:
                digest.update(scene.objects[target].mask.tobytes())
        digests[split, index, seed] = digest.hexdigest()[:16]
    assert digests == DIGESTS
    assert len(set(digests.values())) == len(digests)


# Recorded when the scenes were first drawn, of train when its relations became opposites: a change here means that
# every number trained on them is of other data.
DIGESTS = {
    ("train", 0, 0): "d5f5ffb759f78a33",
    ("train", 5999, 0): "35332c93131f8456",
    ("test", 7, 0): "1a5baf4b0674cdf7",
    ("test_relations", 3, 0): "41b4d5cc35d21252",
    ("test_unseen", 1, 5): "91c0e81a99f2d93f",
    ("captions", 2, 0): "2131275b07c3c22b",
}


@pytest.mark.parametrize(("image_size", "phrases_per_scene"), [(64, 2), (97, 3), (224, 4)])
def test_other_sizes(image_size, phrases_per_scene):
    config = ScenesConfig(image_size=image_size, phrases_per_scene=phrases_per_scene)
    for split in PHRASE_SPLITS:
        for index in range(5):
            scene = draw_scene(config, split, index)
            assert scene.image.shape == (image_size, image_size, 3)
            assert len(scene.phrases) <= phrases_per_scene
            if split == "train":
                assert sum(is_relation(phrase) for phrase, _ in scene.phrases) == phrases_per_scene // 2
                assert len(scene.phrases) >= min(phrases_per_scene, 3)
            for item in scene.objects:
                across = max(item.box[2] - item.box[0], item.box[3] - item.box[1]) * 128 / image_size
                assert (across < 29.5) == (item.size == "small")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"image_size": 32}, "at least 64"),
        ({"phrases_per_scene": 5}, "phrases_per_scene"),
        ({"train": -1}, "numbers of scenes"),
        (dict.fromkeys(SPLITS, 0), "numbers of scenes"),
        ({"data_dir": "images"}, "read no data_dir"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ScenesConfig(**options)


def test_an_unknown_split_is_named_and_one_of_no_scenes_left_out(tmp_path):
    with pytest.raises(ValueError, match="no split 'dev'"):
        draw_scene(ScenesConfig(), "dev", 0)
    builder = Scenes(cache_dir=str(tmp_path), **dict.fromkeys(SPLITS, 0) | {"test": 2})
    assert [generator.name for generator in builder._split_generators(None)] == ["test"]
