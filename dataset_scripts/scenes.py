"""Built-in data: rendered scenes of 4 to 6 objects that share colours, shapes and sizes, with exact masks and boxes.

No phrase can be grounded by one word. An attribute phrase ("small red cross") is one whose every attribute is
necessary: without any one of them it fits another object too. In a relation phrase ("the red star left of the small
blue square") the words for the target fit at least two objects, and only the relation to a uniquely described anchor
tells them apart.

The splits: train and validation have two phrases of each kind a scene, whose relations differ in their direction alone
("left of", "right of"), so that no other word tells their targets apart; test has attribute phrases, test_relations
relation phrases; test_unseen has attribute phrases for a red cross, a green square, a blue triangle or a yellow star,
which no other split ever shows. The captions split names all objects of a scene, in random order and without a region:
image-text data to pretrain on.

On request scenes also have phrases for what is not in them: each of its words is true of some object, but not all of
them of one ("red star" where there are a red cross and a blue star).

The objects' centres lie on a lattice of an eighth of the image: in the middle of the 16-pixel patches of an image of
128 pixels. A small vision transformer that is trained from nothing learns a shape quickly when it falls on the patches
in few ways, and a heatmap, which is highest in the middle of a patch, can hit an object that is hardly larger than one.

Scene `i` of a split is drawn from `numpy.random.PCG64([seed, split, i])` and nothing else, its absent phrases from
`PCG64([seed, split, i, 1])`, and pixels are mixed in integers, so that a scene does not depend on the other scenes, on
the machine, or on what is asked about it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, NamedTuple

import datasets
import numpy as np
from PIL import Image, ImageDraw

from .builder import GroundingBuilder
from .features import encode_png, make_image_id, make_row, mask_to_box
from .options import ScenesOptions

SIZES = ("small", "large")
# Each family is its lowest and its highest RGB; the families stay apart under every brightness of a scene.
COLOURS = {
    "red": ((190, 18, 22), (235, 55, 55)),
    "green": ((20, 135, 40), (60, 180, 80)),
    "blue": ((25, 70, 190), (65, 115, 240)),
    "yellow": ((225, 190, 15), (255, 220, 60)),
    "purple": ((125, 35, 150), (160, 70, 195)),
}
SHAPES = ("star", "square", "triangle", "cross")
# Seen in no split but test_unseen; every colour and every shape still occurs in the others.
HELD_OUT = frozenset({("red", "cross"), ("green", "square"), ("blue", "triangle"), ("yellow", "star")})

_LEFT, _RIGHT, _ABOVE, _BELOW = _DIRECTIONS = ((0, -1), (0, 1), (1, -1), (1, 1))
# Words -> (axis, sign): on this axis the target's centre minus the anchor's has this sign.
RELATIONS = {
    "left of": _LEFT,
    "to the left of": _LEFT,
    "right of": _RIGHT,
    "to the right of": _RIGHT,
    "above": _ABOVE,
    "below": _BELOW,
    "under": _BELOW,
}
_RELATION_WORDS = frozenset({"left", "right", "above", "below", "under"})

# A split's number is part of its scenes' seeds: a new one comes last.
SPLITS = ("train", "validation", "test", "test_relations", "test_unseen", "captions")

_SUPERSAMPLING = 4
_UNIT = 128  # the lengths below are pixels of an image of this size
_MIN_IMAGE_SIZE = 64
_ACROSS = {"small": (22, 25), "large": (36, 40)}
_LATTICE = 8  # the centres are those of a grid of this many cells a side
_MAX_ROTATION = 4  # degrees
_MAX_LAYOUTS = 500  # one layout in two to ten is good, so that this many bad ones in a row do not happen
# Cosines of whole degrees, written with few digits: libraries may differ in the last one.
_COS = [round(float(np.cos(np.pi * degree / 180)), 6) for degree in range(360)]

Rng = np.random.Generator


@dataclass
class ScenesConfig(ScenesOptions, datasets.BuilderConfig):
    """The options, checked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir is not None:
            raise ValueError(f"scenes are drawn from a seed and read no data_dir, got {self.data_dir!r}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.image_size < _MIN_IMAGE_SIZE:
            raise ValueError(f"image_size must be at least {_MIN_IMAGE_SIZE} pixels, got {self.image_size}")
        if not 2 <= self.phrases_per_scene <= 4:
            raise ValueError(f"phrases_per_scene must be 2, 3 or 4, got {self.phrases_per_scene}")
        if self.absent_per_scene < 0:
            raise ValueError(f"absent_per_scene must not be negative, got {self.absent_per_scene}")
        if min(self.counts.values()) < 0 or not any(self.counts.values()):
            raise ValueError(f"the numbers of scenes must not be negative and not all 0, got {self.counts}")

    @property
    def counts(self) -> dict[str, int]:
        """Number of scenes by split."""
        return {split: getattr(self, split) for split in SPLITS}


class SceneObject(NamedTuple):
    """One object: its attributes, its tight box `[x1, y1, x2, y2]` and its bool mask `(height, width)`."""

    size: str
    colour: str
    shape: str
    box: list[float]
    mask: np.ndarray


class Scene(NamedTuple):
    """An image, uint8 `(height, width, 3)`, its objects, and its phrases as (phrase, index of the target object).

    A caption has no target: None.
    """

    image: np.ndarray
    objects: list[SceneObject]
    phrases: list[tuple[str, int | None]]


class Scenes(GroundingBuilder):
    """`datasets` builder of the rendered scenes; a phrase has one mask and one box, a caption none."""

    BUILDER_CONFIG_CLASS = ScenesConfig
    license_name = "apache-2.0"
    source = "Drawn by `dataset_scripts/scenes.py` of albef-amc, from a seed. No photo and no other data is in it."

    def split_names(self) -> list[str]:
        return [split for split, count in self.config.counts.items() if count]

    def images(self, split: str) -> range:
        """Numbers of scenes."""
        return range(self.config.counts[split])

    def rows(self, split: str, job: list[int]) -> Iterator[dict[str, Any]]:
        for index in job:
            self.report.kept[f"scenes of {split}"] += 1
            for row in scene_rows(self.config, split, index):
                kind = "relation phrases" if is_relation(row["phrase"]) else "attribute phrases"
                kind = "absent phrases" if row["absent"] else kind if row["boxes"] else "captions"
                self.report.kept[f"{kind} of {split}"] += 1
                yield row


def scene_rows(config: ScenesConfig, split: str, index: int) -> list[dict[str, Any]]:
    """One scene as rows of `features.FEATURES`, the images as PNG."""
    scene = draw_scene(config, split, index)
    image = encode_png(scene.image)
    image_id = make_image_id("scenes", f"{split}-{index:06d}", scene.image.tobytes())
    rows = []
    for phrase, target in scene.phrases:
        items = [] if target is None else [scene.objects[target]]
        masks = [encode_png(item.mask) for item in items]
        rows.append(make_row(image, image_id, phrase, [item.box for item in items], masks))
    if split != "captions" and config.absent_per_scene:
        absent = absent_phrases(_rng(config, split, index, 1), scene.objects, config.absent_per_scene)
        rows += [make_row(image, image_id, phrase, absent=True) for phrase in absent]
    return rows


def _rng(config: ScenesConfig, split: str, *numbers: int) -> Rng:
    return Rng(np.random.PCG64([config.seed, SPLITS.index(split), *numbers]))


def absent_phrases(rng: Rng, objects: list[SceneObject], most: int) -> list[str]:
    """Up to `most` different attribute phrases that fit no object, although each of their words fits one.

    No colour and shape that only test_unseen has: to be told in training that they are not there would be a hint.
    """
    values = [sorted({getattr(item, name) for item in objects}) for name in _NAMES]
    missing = []
    for item in (dict(zip(_NAMES, chosen)) for chosen in product(*values)):
        if (item["colour"], item["shape"]) in HELD_OUT:
            continue
        for names in (names for names in _DESCRIPTIONS if len(names) >= 2):
            if not any(all(getattr(other, name) == item[name] for name in names) for other in objects):
                missing.append((names, tuple(item[name] if name in names else "" for name in _NAMES)))
    chosen = _pick(rng, list(dict.fromkeys(missing)), most)
    return [_word_attributes(rng, _Planned(*item, centre=(0, 0)), names) for names, item in chosen]


def is_relation(phrase: str) -> bool:
    """Whether a phrase of these scenes states a relation between two objects, rather than attributes alone."""
    return not _RELATION_WORDS.isdisjoint(phrase.split())


def draw_scene(config: ScenesConfig, split: str, index: int) -> Scene:
    """Draws one scene of a split: always the same one for the same arguments."""
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}, choose from {', '.join(SPLITS)}")
    rng, side = _rng(config, split, index), config.image_size
    for _ in range(_MAX_LAYOUTS):
        attributes = _sample_attributes(rng, unseen=split == "test_unseen")
        outlines = [_sample_outline(rng, size, shape, side) for size, _, shape in attributes]
        centres = _place(rng, outlines, side)
        if centres is None:
            continue
        planned = [_Planned(*own, centre) for own, centre in zip(attributes, centres)]
        phrases = _choose_phrases(rng, planned, split, config)
        if phrases is None:
            continue
        stamps = [_draw(outline, centre, side) for outline, centre in zip(outlines, centres)]
        masks = [stamp.mask(side) for stamp in stamps]
        objects = [SceneObject(*own, mask_to_box(mask), mask) for own, mask in zip(attributes, masks)]
        return Scene(_paint(rng, side, objects, stamps), objects, phrases)
    raise RuntimeError(f"no layout found for scene {index} of {split} (seed {config.seed}): please report this")


# What is in the scene -------------------------------------------------------------------------------------------------


class _Planned(NamedTuple):
    """An object before it is drawn: its attributes and its centre (x, y) in supersampled pixels."""

    size: str
    colour: str
    shape: str
    centre: tuple[int, int]


def _pick(rng: Rng, options: Any, count: int) -> list[Any]:
    """`count` different options, in random order."""
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]


def _sample_attributes(rng: Rng, unseen: bool) -> list[tuple[str, str, str]]:
    """(size, colour, shape) of 4 to 6 objects of two or three colours and shapes, so that they share most of these.

    With `unseen` one of the held-out pairs of colour and shape is there for sure, else none of them is.
    """
    colours = _pick(rng, list(COLOURS), int(rng.integers(2, 4)))
    shapes = _pick(rng, SHAPES, int(rng.integers(2, 4)))
    held_out = None
    if unseen:
        held_out = _pick(rng, sorted(HELD_OUT), 1)[0]
        colours = [held_out[0], *[c for c in colours if c != held_out[0]][:2]]
        shapes = [held_out[1], *[s for s in shapes if s != held_out[1]][:2]]
    pairs = [(c, s) for c in colours for s in shapes if (c, s) == held_out or (c, s) not in HELD_OUT]
    count = int(rng.integers(4, 7))
    chosen = [held_out] if unseen else []
    while len(chosen) < count:
        chosen.append(pairs[int(rng.integers(len(pairs)))])
    return [(SIZES[int(rng.integers(2))], colour, shape) for colour, shape in chosen]


class _Outline(NamedTuple):
    """Vertices (x, y) in pixels of a shape around the origin, in a circle and in a box of the half widths `extent`."""

    radius: float
    extent: tuple[float, float]
    vertices: list[tuple[float, float]]


# Of each shape: how many times its corners are repeated around, and each of these as (radius, degrees).
_CORNERS = {
    "star": (5, [(0.56, -90), (0.23, -54)]),
    "square": (4, [(0.62, 45)]),
    "triangle": (3, [(0.6, -90)]),
    "cross": (4, [(0.51, -18), (0.51, 18), (0.222, 45)]),  # an arm's two corners, and the inner one after it
}


def _sample_outline(rng: Rng, size: str, shape: str, image_size: int) -> _Outline:
    """A shape of the given size, turned a little. Its bounding box lies around the origin."""
    low, high = _ACROSS[size]
    across = int(rng.integers(low * 16, high * 16 + 1)) / 16 * image_size / _UNIT
    turn = int(rng.integers(-_MAX_ROTATION, _MAX_ROTATION + 1))
    times, corners = _CORNERS[shape]
    polar = [(across * r, turn + angle + 360 // times * i) for i in range(times) for r, angle in corners]
    points = [(r * _COS[angle % 360], r * _COS[(angle - 90) % 360]) for r, angle in polar]
    middle = [(min(p[axis] for p in points) + max(p[axis] for p in points)) / 2 for axis in (0, 1)]
    points = [(x - middle[0], y - middle[1]) for x, y in points]
    radius = max(math.sqrt(x * x + y * y) for x, y in points)
    return _Outline(radius, (max(x for x, _ in points), max(y for _, y in points)), points)


def _place(rng: Rng, outlines: list[_Outline], image_size: int) -> list[tuple[int, int]] | None:
    """Centres on the lattice, in supersampled pixels, at which objects neither touch nor leave the image; or None."""
    cell, margin = image_size / _LATTICE, 2 * image_size / _UNIT
    places = [((i + 0.5) * cell, (j + 0.5) * cell) for j in range(_LATTICE) for i in range(_LATTICE)]
    centres: dict[int, tuple[float, float]] = {}
    for i in sorted(range(len(outlines)), key=lambda i: -outlines[i].radius):
        for number in rng.permutation(len(places)).tolist():
            centre = places[number]
            inside = all(e + 1.5 <= c <= image_size - e - 1.5 for c, e in zip(centre, outlines[i].extent))
            if inside and all(_apart(outlines[i], centre, outlines[j], centres[j], margin) for j in centres):
                centres[i] = centre
                break
        else:
            return None
    return [(int(x * _SUPERSAMPLING), int(y * _SUPERSAMPLING)) for _, (x, y) in sorted(centres.items())]


def _apart(
    one: _Outline, here: tuple[float, float], other: _Outline, there: tuple[float, float], margin: float
) -> bool:
    """Whether the circles or the boxes around two shapes at these centres are at least `margin` pixels apart."""
    x, y = abs(here[0] - there[0]), abs(here[1] - there[1])
    return (
        x >= one.extent[0] + other.extent[0] + margin
        or y >= one.extent[1] + other.extent[1] + margin
        or x * x + y * y >= (one.radius + other.radius + margin) ** 2
    )


# Phrases --------------------------------------------------------------------------------------------------------------


Description = tuple[str, ...]  # names of attributes, in the order of _NAMES
# The target's description, the direction, the anchor's index and its description
_Relation = tuple[Description, tuple[int, int], int, Description]
_NAMES = ("size", "colour", "shape")
_DESCRIPTIONS: list[Description] = [names for count in range(4) for names in combinations(_NAMES, count)]


def _fitting(objects: list[_Planned]) -> list[dict[Description, list[int]]]:
    """For each object and each description of it by its attributes: the objects that the description fits."""
    groups: dict[tuple[Description, tuple[str, ...]], list[int]] = {}
    keys = [[(names, tuple(getattr(item, name) for name in names)) for names in _DESCRIPTIONS] for item in objects]
    for i, own in enumerate(keys):
        for key in own:
            groups.setdefault(key, []).append(i)
    return [{key[0]: groups[key] for key in own} for own in keys]


def _unique(fitting: dict[Description, list[int]], fewest: int) -> list[Description]:
    """An object's descriptions by `fewest` or more attributes that fit it alone and need each of their attributes."""
    return [
        names
        for names in _DESCRIPTIONS
        if len(names) >= fewest
        and len(fitting[names]) == 1
        and all(len(fitting[tuple(n for n in names if n != name)]) > 1 for name in names)
    ]


def _relation_holds(
    offsets: list[tuple[float, float]], target: int, rivals: list[int], direction: tuple[int, int], image_size: int
) -> bool:
    """Whether the target clearly stands in a relation to an anchor, and all its rivals clearly do not.

    `offsets` are all objects' centres minus the anchor's. Clearly so: the centres are more than a sixth of the image
    apart in that direction, and less far across it. Clearly not: the rival's centre is on the anchor's other side.
    """
    axis, sign = direction
    along = sign * offsets[target][axis]
    if along <= image_size / 6 or abs(offsets[target][1 - axis]) >= along:
        return False
    return all(sign * offsets[i][axis] <= -image_size / 32 for i in rivals)


def _relations(
    objects: list[_Planned], fitting: list[dict[Description, list[int]]], image_size: int
) -> list[list[_Relation]]:
    """For each object all (its description, direction, anchor, the anchor's description) that single it out.

    The description fits other objects too, but not the anchor; the anchor's description fits the anchor alone.
    """
    centres = [(item.centre[0] / _SUPERSAMPLING, item.centre[1] / _SUPERSAMPLING) for item in objects]
    anchors = [
        (anchor, descriptions, [(x - centres[anchor][0], y - centres[anchor][1]) for x, y in centres])
        for anchor, descriptions in enumerate(_unique(fits, fewest=1) for fits in fitting)
        if descriptions
    ]
    found: list[list[_Relation]] = [[] for _ in objects]
    for target, fits in enumerate(fitting):
        for names in _DESCRIPTIONS[1:]:
            rivals = [i for i in fits[names] if i != target]
            for anchor, descriptions, offsets in anchors:
                if not rivals or anchor in fits[names]:
                    continue
                for direction in _DIRECTIONS:
                    if _relation_holds(offsets, target, rivals, direction, image_size):
                        found[target] += [(names, direction, anchor, description) for description in descriptions]
    return found


def _opposites(objects: list[_Planned], relations: list[list[_Relation]]) -> list[list[tuple[int, _Relation]]]:
    """Two targets each, called by the same words, and their relations to one anchor, of opposite directions."""
    stated = {}
    for target, own in enumerate(relations):
        for names, (axis, sign), *anchor in own:
            key = _noun_phrase(objects[target], names, ""), axis, *anchor
            stated.setdefault(key, {})[sign] = target, (names, (axis, sign), *anchor)
    return [[both[1], both[-1]] for both in stated.values() if len(both) == 2]


def _noun_phrase(item: _Planned, names: Description, noun: str) -> str:
    """The named attributes in the order of English; `noun` stands for the shape when that is not named."""
    return " ".join([getattr(item, name) for name in names] + ([] if "shape" in names else [noun]))


def _word_attributes(rng: Rng, item: _Planned, names: Description) -> str:
    """Wording of an attribute phrase: "small red cross", "the small red cross", "the red cross that is small", …"""
    noun = ("thing", "object")[int(rng.integers(2))]
    form = ("{}", "{}", "the {}", "a {}", "the {} that is {}")[int(rng.integers(5))]
    if "that is" in form:
        return form.format(_noun_phrase(item, names[1:], noun), getattr(item, names[0]))
    return form.format(_noun_phrase(item, names, noun))


def _word_relation(rng: Rng, objects: list[_Planned], target: int, relation: _Relation) -> str:
    """Wording of a relation phrase: "the red cross left of the small thing", …"""
    names, direction, anchor, anchor_names = relation
    words = _pick(rng, [words for words, meaning in RELATIONS.items() if meaning == direction], 1)[0]
    noun = ("thing", "object")[int(rng.integers(2))]
    article = ("the ", "")[int(rng.integers(2))]
    described = _noun_phrase(objects[target], names, noun)
    return f"{article}{described} {words} the {_noun_phrase(objects[anchor], anchor_names, noun)}"


def _choose_phrases(
    rng: Rng, objects: list[_Planned], split: str, config: ScenesConfig
) -> list[tuple[str, int | None]] | None:
    """Phrases of the split's kinds, each with another target, the relations first; None when there are too few.

    Train and validation take half of `phrases_per_scene` as relations, two as `_opposites`, and the rest as attributes,
    of which two will do; the test splits take what there is, and two at least (test_unseen: one). Captions have one
    phrase, all objects joined by "and", with no target.
    """
    order = _pick(rng, range(len(objects)), len(objects))
    if split == "captions":
        return [(" and ".join(_noun_phrase(objects[i], _NAMES, "") for i in order), None)]
    wanted, mixed = config.phrases_per_scene, split in ("train", "validation")
    num_relations = wanted // 2 if mixed else wanted
    fitting = _fitting(objects)
    phrases: list[tuple[str, int | None]] = []
    if split not in ("test", "test_unseen"):
        relations = _relations(objects, fitting, config.image_size)
        if mixed and num_relations == 2:
            pairs = _opposites(objects, relations) or [[]]
            stated = _pick(rng, pairs, 1)[0]
        else:
            targets = [i for i in order if relations[i]][:num_relations]
            stated = ((target, _pick(rng, relations[target], 1)[0]) for target in targets)
        phrases = [(_word_relation(rng, objects, target, relation), target) for target, relation in stated]
        if len(phrases) < (num_relations if mixed else 2):
            return None
    if split != "test_relations":
        taken = {target for _, target in phrases}
        unique = [[] if i in taken else _unique(fits, fewest=2) for i, fits in enumerate(fitting)]
        if split == "test_unseen":
            held_out = [(item.colour, item.shape) in HELD_OUT for item in objects]
            unique = [[n for n in found if held_out[i] and n[-2:] == _NAMES[1:]] for i, found in enumerate(unique)]
        targets = [i for i in order if unique[i]][: wanted - len(phrases)]
        if len(targets) < (1 if split == "test_unseen" else min(2, wanted - len(phrases))):
            return None
        for target in targets:
            phrases.append((_word_attributes(rng, objects[target], _pick(rng, unique[target], 1)[0]), target))
    return phrases


# Drawing --------------------------------------------------------------------------------------------------------------


class _Stamp(NamedTuple):
    """A shape drawn at its place: how many of each pixel's 16 parts it covers, in the window that it lies in."""

    window: tuple[slice, slice]
    coverage: np.ndarray

    def mask(self, image_size: int) -> np.ndarray:
        """The pixels at least half covered, bool `(image_size, image_size)`."""
        mask = np.zeros((image_size, image_size), bool)
        mask[self.window] = 2 * self.coverage >= _SUPERSAMPLING**2
        return mask


def _draw(outline: _Outline, centre: tuple[int, int], image_size: int) -> _Stamp:
    """Draws a shape around `centre` (x, y), in supersampled pixels."""
    k = _SUPERSAMPLING
    reach = int(outline.radius + 2)
    left, top = (max(c // k - reach, 0) for c in centre)
    right, bottom = (min(c // k + reach + 1, image_size) for c in centre)
    x, y = centre[0] - left * k, centre[1] - top * k
    canvas = Image.new("L", ((right - left) * k, (bottom - top) * k), 0)
    ImageDraw.Draw(canvas).polygon([(x + round(vx * k), y + round(vy * k)) for vx, vy in outline.vertices], fill=1)
    parts = np.asarray(canvas).reshape(bottom - top, k, right - left, k)
    return _Stamp((slice(top, bottom), slice(left, right)), parts.sum(axis=(1, 3), dtype=np.int64))


def _smooth_noise(rng: Rng, cells: int, image_size: int, filter_: Image.Resampling) -> np.ndarray:
    """Random grays on a coarse grid, enlarged: int64 `(image_size, image_size)` from 0 to 255."""
    coarse = Image.fromarray(rng.integers(0, 256, size=(cells, cells)).astype(np.uint8))
    return np.asarray(coarse.resize((image_size, image_size), filter_)).astype(np.int64)


def _background(rng: Rng, image_size: int) -> np.ndarray:
    """Clouds, a gradient, stripes or a checker of two grayish colours, with grain: int64 `(height, width, 3)`."""
    first, second = (int(rng.integers(75, 150)) + rng.integers(-14, 15, size=3) for _ in range(2))
    kind = ("clouds", "gradient", "stripes", "checker")[int(rng.integers(4))]
    ramp = np.arange(image_size)
    # `blend`: how much of the second colour, from 0 to 256
    if kind == "clouds":
        blend = _smooth_noise(rng, int(rng.integers(4, 9)), image_size, Image.Resampling.BICUBIC)
    elif kind == "checker":
        cell = int(rng.integers(8, 22)) * image_size // _UNIT
        blend = ((ramp[None, :] // cell + ramp[:, None] // cell) % 2) * 256
    else:
        weights = rng.integers(-8, 9, size=2)
        slope = weights[0] * ramp[None, :] + weights[1] * ramp[:, None]
        if kind == "gradient":
            slope = slope - slope.min()
            blend = slope * 256 // max(int(slope.max()), 1)
        else:
            period = int(rng.integers(50, 130)) * image_size // _UNIT
            blend = np.abs(slope % (2 * period) - period) * 256 // period
    blend = blend[..., None]
    grain = _smooth_noise(rng, 16, image_size, Image.Resampling.BILINEAR)[..., None]
    return (first * (256 - blend) + second * blend) // 256 + (grain - 128) // 10


def _paint(rng: Rng, image_size: int, objects: list[SceneObject], stamps: list[_Stamp]) -> np.ndarray:
    """Paints the objects, each with its own shade of its colour and a slight shading, uint8 `(height, width, 3)`."""
    pixels = _background(rng, image_size)
    parts, ramp = _SUPERSAMPLING**2, np.arange(image_size)
    for item, stamp in zip(objects, stamps):
        low, high = (np.array(rgb) for rgb in COLOURS[item.colour])
        colour = low + rng.integers(0, 257, size=3) * (high - low) // 256
        lean = rng.integers(-6, 7, size=2)
        x1, y1, x2, y2 = item.box
        across = 2 * ramp[None, stamp.window[1]] - x1 - x2
        down = 2 * ramp[stamp.window[0], None] - y1 - y2
        shade = (lean[0] * across + lean[1] * down) * 2 // max(x2 - x1, y2 - y1)
        coverage, under = stamp.coverage[..., None], pixels[stamp.window]
        over = (colour + shade[..., None]) * coverage
        pixels[stamp.window] = (under * (parts - coverage) + over + parts // 2) // parts
    brightness = int(rng.integers(82, 107))
    return np.clip(pixels * brightness // 100, 0, 255).astype(np.uint8)
