"""Region annotations of a phrase: read and checked, mirrored, cropped, and drawn as the mask of the AMC loss.

Coordinates are pixels of the image, x to the right and y down, half-open: pixel column `i` covers `i <= x < i + 1`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from modeling_albef_amc.images import load_image

# What of a record may hold its region.
REGIONS = "boxes", "polygons", "masks", "scribbles"
# Corners, corner and size, or centre and size; in pixels, or normalized: in shares of the image's width and height.
BOX_FORMATS = "xyxy", "xywh", "cxcywh", "xyxy_normalized", "xywh_normalized", "cxcywh_normalized"
# Polygons are drawn on a grid this many times finer than the mask and averaged: their edges are exact to a quarter of a
# cell.
_POLYGON_OVERSAMPLING = 4
_THINNEST = 1e-6  # pixels: of less, the share of a cell that is covered could be 0 by rounding
_LEAST_AGREEMENT = 0.5  # IoU of boxes and the boxes around masks or polygons; and the share of a box in the image
_FAR = 2.0**24  # pixels: farther than any image is wide, and as far as float32 counts them


@dataclass(frozen=True)
class Region:
    """Where the objects of one phrase are in an image of `height` x `width` pixels: the union of its instances.

    The instances are the `masks` if there are any, else the `polygons`, else the `scribbles`, else the `boxes`.

    Args:
        height, width: Of the image in pixels.
        boxes: float64 `(num_boxes, 4)`, xyxy in pixels, within the image.
        polygons: Per instance its parts, each float64 `(num_points, 2)` of x, y in pixels.
        masks: Per instance float32 `(height, width)` in [0, 1].
        scribbles: Per instance float64 `(num_points, 2)`, the x, y in pixels that a stroke runs through; a single one
            is a point.
        scribble_radius: How far from a stroke, in pixels, a soft mask falls to a half: `0.5 ** (distance / radius)²`.
    """

    height: int
    width: int
    boxes: np.ndarray
    polygons: tuple[tuple[np.ndarray, ...], ...] = ()
    masks: tuple[np.ndarray, ...] = ()
    scribbles: tuple[np.ndarray, ...] = ()
    scribble_radius: float = 0.0

    @classmethod
    def from_record(
        cls, record: Mapping[str, Any], height: int, width: int, box_format: str = "xyxy"
    ) -> "Region | None":
        """Reads and checks `masks`, `polygons`, `scribbles` and `boxes` of a record; None when it has none of them.

        Boxes are clipped to the image. Without boxes in the record, `boxes` are the tight boxes of the masks, polygons
        or scribbles. Soft masks count as inside from 0.5 on when a box is taken around them. Of a kind in which an
        instance is None or empty nothing is taken if the record has a box for each instance.

        Args:
            record: May hold `boxes` (a list of xyxy), `polygons` (per instance a list of flat `[x0, y0, x1, y1, …]`,
                or one of points `[[x0, y0], [x1, y1], …]`), `scribbles` (per instance one flat `[x0, y0, …]`, with the
                record's `scribble_radius` in pixels) and `masks` (per instance an 8-bit gray PIL image, its undecoded
                `{"bytes", "path"}`, or an array `(height, width)` in [0, 1]); each may be missing, None or empty.
            height, width: Of the image in pixels.
            box_format: of BOX_FORMATS, what the record's boxes are; those of the region are xyxy in pixels.

        Raises:
            ValueError, FileNotFoundError: A region is unusable; the message says which and what to do.
        """
        boxes, polygons, masks, scribbles = (_items(record.get(kind), kind) for kind in REGIONS)
        polygons, masks, scribbles = (
            [] if len(kind) <= len(boxes) and any(map(_is_empty, kind)) else kind
            for kind in (polygons, masks, scribbles)
        )
        if not (boxes or polygons or masks or scribbles):
            return None
        size = height, width
        region = cls(
            *size,
            boxes=np.zeros((0, 4)),
            masks=tuple(_read_mask(mask, i, *size) for i, mask in enumerate(masks)),
            polygons=tuple(_read_polygons(parts, i, *size) for i, parts in enumerate(polygons)),
            scribbles=tuple(_read_scribble(points, i, *size) for i, points in enumerate(scribbles)),
            scribble_radius=_read_radius(record.get("scribble_radius")) if scribbles else 0.0,
        )
        if not boxes:
            return replace(region, boxes=np.array(next(filter(None, region._tight_boxes())), dtype=np.float64))
        region = replace(region, boxes=read_boxes(boxes, "box", *size, box_format))
        region._check_agreement()
        return region

    def _check_agreement(self) -> None:
        """ValueError: boxes and masks or polygons, or scribbles, are of different places.

        As many boxes as instances: each has one that it agrees with, in whatever order. Else those that overlap are
        compared together. A scribble may be as small as it likes in a box, which needs one if they are the region.
        """
        for kind, own in zip(("masks", "polygons"), map(np.array, self._tight_boxes())):
            if len(own) and _agreement(self.boxes, own) < _LEAST_AGREEMENT:
                raise ValueError(
                    f"its boxes {self.boxes.tolist()} contradict its {kind}, around which they would be {own.tolist()} "
                    f"(IoU below {_LEAST_AGREEMENT}): drop what is wrong, add what is missing, or say the format of "
                    "the boxes (box_format)"
                )
        has_scribble = np.full(len(self.boxes), self.kind != "scribbles")
        for index, points in enumerate(self.scribbles):
            x, y = points.T[..., None]
            x1, y1, x2, y2 = self.boxes.T
            is_inside = (x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2)
            has_scribble |= is_inside.any(axis=0)
            if is_inside.any(axis=1).mean() < 0.5:
                raise ValueError(
                    f"scribble {index} lies outside its boxes {self.boxes.tolist()}: drop what is wrong, or say the "
                    "format of the boxes (box_format)"
                )
        if not has_scribble.all():
            bare = self.boxes[~has_scribble].tolist()
            raise ValueError(f"its boxes {bare} have no scribble in them: draw one in each box, or drop these boxes")

    def _tight_boxes(self) -> list[list[tuple[float, float, float, float]]]:
        """The boxes around masks (from 0.5 on), around polygons, and around scribbles."""
        size = self.height, self.width
        return [
            [_mask_box(mask) for mask in self.masks],
            [_box_around(np.concatenate(parts), 0, *size) for parts in self.polygons],
            [_box_around(points, self.scribble_radius, *size) for points in self.scribbles],
        ]

    @property
    def kind(self) -> str:
        """What the instances are."""
        return next(kind for kind in ("masks", "polygons", "scribbles", "boxes") if len(getattr(self, kind)))

    @property
    def num_instances(self) -> int:
        return len(getattr(self, self.kind))

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """The smallest xyxy box, in pixels, that holds everything: masks (from 0.5 on), scribbles, polygons, boxes."""
        return tuple(_hull(np.array([*self.boxes, *(box for kind in self._tight_boxes() for box in kind)]))[0].tolist())

    def mirrored(self) -> "Region":
        """The region in the image mirrored left to right: the span [x1, x2) becomes [width - x2, width - x1)."""

        def mirror(points: np.ndarray) -> np.ndarray:
            return np.stack([self.width - points[:, 0], points[:, 1]], axis=1)

        boxes = self.boxes[:, [2, 1, 0, 3]]
        boxes[:, ::2] = self.width - boxes[:, ::2]
        return self._moved(boxes, mirror, lambda mask: mask[:, ::-1])

    def cropped(self, x1: int, y1: int, x2: int, y2: int) -> "Region":
        """The region in the image cropped to the window `[x1, y1, x2, y2]`, whole pixels, which holds its extent.

        Raises:
            ValueError: The window cuts the region.
        """
        left, top, right, bottom = self.extent
        if not (x1 <= left and y1 <= top and right <= x2 and bottom <= y2):
            raise ValueError(f"the crop window {[x1, y1, x2, y2]} cuts the region {[left, top, right, bottom]}")
        boxes, corner = self.boxes - np.array([x1, y1, x1, y1]), np.array([x1, y1])
        moved = self._moved(boxes, lambda points: points - corner, lambda mask: mask[y1:y2, x1:x2])
        return replace(moved, height=y2 - y1, width=x2 - x1)

    def _moved(self, boxes: np.ndarray, move_points: Callable, move_mask: Callable) -> "Region":
        polygons = tuple(tuple(map(move_points, parts)) for parts in self.polygons)
        masks, scribbles = tuple(map(move_mask, self.masks)), tuple(map(move_points, self.scribbles))
        return replace(self, boxes=boxes, polygons=polygons, masks=masks, scribbles=scribbles)

    def rasterize(self, size: int, instance: int | None = None) -> np.ndarray:
        """Draws the region over a grid of `size` x `size` cells laid over the whole image.

        A cell holds the share of its area that the region covers; of a scribble, the soft mask in the cell's middle.
        So that a region smaller than a cell does not vanish, each instance is scaled until its fullest cell holds what
        its fullest pixel held (1 for all but soft masks). The union of instances is their maximum, cell by cell.

        Args:
            instance: Draw this instance only; None draws the union of all.

        Returns: float32 `(size, size)` in [0, 1].
        """
        place = self.height, self.width, size
        draw = {
            "masks": lambda mask: _draw_mask(mask, size),
            "polygons": lambda parts: _draw_polygons(parts, *place),
            "scribbles": lambda points: _draw_scribble(points, self.scribble_radius, *place),
            "boxes": lambda box: _draw_box(box, *place),
        }[self.kind]
        instances = getattr(self, self.kind)
        return np.maximum.reduce([draw(each) for each in (instances if instance is None else [instances[instance]])])


def _hull(boxes: np.ndarray) -> np.ndarray:
    """(1, 4): the box around boxes (num_boxes, 4)."""
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])[None]


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(num_boxes, num_others): intersection over union."""
    first, last = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
    both = np.maximum(last - first, 0).prod(axis=-1)
    return both / (_areas(boxes)[:, None] + _areas(others) - both)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _agreement(boxes: np.ndarray, others: np.ndarray) -> float:
    """As many boxes as others: the least IoU of one with its best match. Else the least of groups, each around all that
    hang together by overlaps, of which one without a box or without another has 0."""
    overlaps = _overlaps(boxes, others)
    if len(boxes) != len(others):
        touching = overlaps > 0
        if not (touching.any(axis=0).all() and touching.any(axis=1).all()):
            return 0.0
        groups = touching @ touching.T
        for _ in range(len(boxes).bit_length()):
            groups = groups @ groups
        hulls = [(_hull(boxes[group]), _hull(others[touching[group].any(axis=0)])) for group in groups]
        overlaps = np.concatenate([_overlaps(*both) for both in hulls])
    return float(min(overlaps.max(axis=0).min(), overlaps.max(axis=1).min()))


def _as_array(value: Any) -> Any:
    """A tensor, which records of a data set in torch's format hold, as an array; anything else as it is."""
    return value.numpy(force=True) if isinstance(value, Tensor) else value


def as_number(value: Any) -> float | None:
    """A number of whatever library, or a truth value; None of anything else."""
    value = (
        np.asarray(_as_array(value))
        if isinstance(value, bool | int | float | np.generic | np.ndarray | Tensor)
        else None
    )
    return float(value) if value is not None and value.ndim == 0 and value.dtype.kind in "biuf" else None


def _items(value: Any, name: str) -> list:
    value = _as_array(value)
    if value is not None and not isinstance(value, list | tuple | np.ndarray):
        raise ValueError(f"{name} is no list, but {value!r:.80}")
    return [] if value is None else list(value)


def _is_empty(value: Any) -> bool:
    """Whether it is None, or a list, an array or an undecoded image of nothing else."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(map(_is_empty, value))
    return value is None or (isinstance(value, np.ndarray | Tensor) and 0 in value.shape)


def to_xyxy(boxes: np.ndarray, box_format: str, height: float = 1, width: float = 1) -> np.ndarray:
    """Boxes `(..., 4)` of one of BOX_FORMATS as xyxy; normalized ones in pixels of an image of that size."""
    if box_format not in BOX_FORMATS:
        raise ValueError(f"box_format must be one of {', '.join(BOX_FORMATS)}, got {box_format!r}")
    first, second = boxes[..., :2], boxes[..., 2:]
    if box_format.startswith("cxcywh"):
        first, second = first - second / 2, first + second / 2
    elif box_format.startswith("xywh"):
        second = first + second
    scale = [width, height] if box_format.endswith("normalized") else [1, 1]
    return np.concatenate([first * scale, second * scale], axis=-1)


def _numbers(given: Any, name: str, form: str, most: float = _FAR) -> np.ndarray:
    """A list of finite numbers, none farther from 0 than `most`."""
    try:
        numbers = np.array(_as_array(given), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = None
    if numbers is None or numbers.ndim != 1 or not (np.abs(numbers) <= most).all():
        raise ValueError(f"{name} must be finite numbers, {form}; got {given!r:.80}")
    return numbers


def _are_points(given: Any) -> bool:
    """Whether it is a list of pairs [x, y]."""
    lists = list | tuple | np.ndarray
    if not isinstance(given, lists) or len(given) == 0:
        return False
    return all(isinstance(each, lists) and len(each) == 2 and not isinstance(each[0], lists) for each in given)


def _points(given: Any, name: str, at_least: int) -> np.ndarray:
    """float64 `(num_points, 2)` of a flat list."""
    flat = _numbers(given, name, "a flat list [x0, y0, x1, y1, …]")
    if flat.size % 2 or flat.size < 2 * at_least:
        raise ValueError(f"{name} must be pairs [x0, y0, …], at least {at_least}; got {flat.size} numbers")
    return flat.reshape(-1, 2)


def _is_thin(box: Sequence[float] | np.ndarray) -> bool:
    return bool(box[2] - box[0] < _THINNEST or box[3] - box[1] < _THINNEST)


def _outside(name: str, given: Any, height: int, width: int) -> ValueError:
    remedy = " (or say their box_format)" if name.startswith(("box", "proposal")) else ""
    return ValueError(
        f"{name} lies outside the image of {width}x{height} pixels, most of it at least: {given!r:.80}; check that "
        f"it belongs to this image and is in its pixels{remedy}, or drop it"
    )


def _clipped(box: np.ndarray, name: str, height: int, width: int) -> np.ndarray:
    """What of a box is in the image; ValueError: less than half, so that it is of another image or unit."""
    clipped = np.clip(box, 0, [width, height, width, height])
    share = (clipped[2:] - clipped[:2]) / (box[2:] - box[:2])
    if _is_thin(clipped) or share.prod() < _LEAST_AGREEMENT:
        raise _outside(name, box.tolist(), height, width)
    return clipped


def read_boxes(given: Any, name: str, height: int, width: int, box_format: str) -> np.ndarray:
    """(num_boxes, 4), xyxy in pixels, clipped to the image; ValueError: one cannot be used."""
    boxes = [_read_box(box, f"{name} {i}", height, width, box_format) for i, box in enumerate(_items(given, name))]
    return np.array(boxes).reshape(-1, 4)


def _read_box(given: Any, name: str, height: int, width: int, box_format: str) -> np.ndarray:
    box = _numbers(given, name, f"four as {box_format}", most=float(np.finfo(np.float64).max))
    if box.shape != (4,):
        raise ValueError(f"{name} must be four numbers, {box_format}; got {given!r:.80}")
    if not box_format.endswith("normalized"):
        _check_units(box, name, height, width, "say so by box_format, e.g. xyxy_normalized")
    box = to_xyxy(box, box_format, height, width)
    if _is_thin(box):
        raise ValueError(
            f"{name} has no area as {box_format}: {np.array(given).tolist()}; give x1 < x2 and y1 < y2, say that the "
            "boxes are of another format (box_format), or drop it"
        )
    return _clipped(box, name, height, width)


def _check_units(coordinates: np.ndarray, name: str, height: int, width: int, remedy: str = "multiply them") -> None:
    """Refuses coordinates which in pixels are of a part of the first pixel, which nobody marks."""
    if max(height, width) > 1 and (np.abs(coordinates) <= 1).all() and (coordinates % 1).any():
        raise ValueError(
            f"{name} has no coordinate above 1: {coordinates.ravel().tolist()}; if they are shares of the image's "
            f"width and height, not pixels, {remedy}"
        )


def _read_polygons(parts: Any, index: int, height: int, width: int) -> tuple[np.ndarray, ...]:
    name = f"polygon {index}"
    given = [_as_array(part) for part in _items(parts, name) if not _is_empty(part)]
    if not given:
        raise ValueError(f"{name} has no parts; drop it")
    # A part has at least six numbers: of two each, they are the points of the one part.
    given = [given] if _are_points(given) else given
    checked = [_points(np.ravel(part) if _are_points(part) else part, name, 3) for part in given]
    points = np.concatenate(checked)
    _check_units(points, name, height, width)
    box = np.concatenate([points.min(axis=0), points.max(axis=0)])
    if _is_thin(box):
        raise ValueError(f"{name} has no area: {box.tolist()} holds all of it; mend or drop it")
    _clipped(box, name, height, width)
    return tuple(checked)


def _read_mask(mask: Any, index: int, height: int, width: int) -> np.ndarray:
    if _is_empty(mask):
        raise ValueError(f"mask {index} is empty: {mask!r}; drop it, or give a box for each instance")
    mask = _as_array(mask)
    if isinstance(mask, np.ndarray):
        if mask.dtype.kind not in "bfui" or not (np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1):
            raise ValueError(f"mask {index} has values outside [0, 1]; divide an 8-bit mask by 255")
        mask = mask.astype(np.float32)
    else:
        mask = load_image(mask)
        if mask.mode not in ("1", "L"):
            raise ValueError(f'mask {index} has mode "{mask.mode}"; store masks as 8-bit gray ("L") with 0 and 255')
        mask = np.asarray(mask.convert("L"), dtype=np.float32) / 255
    if mask.shape != (height, width):
        remedy = "resize the mask"
        if mask.shape == (width, height):
            remedy += ", or turn it, if the image is turned upright by its EXIF and the mask is not"
        raise ValueError(
            f"mask {index} has shape {mask.shape}, the image is (height, width) = ({height}, {width}); {remedy}"
        )
    if mask.max() < 0.5:
        raise ValueError(
            f"mask {index} is empty: its largest value is {mask.max():.3g} of 1; drop it, or store 8-bit masks with "
            "0 and 255"
        )
    return mask


def _read_scribble(given: Any, index: int, height: int, width: int) -> np.ndarray:
    points = _points(given, f"scribble {index}", 1)
    _check_units(points, f"scribble {index}", height, width)
    if not ((points >= 0) & (points <= [width, height])).all(axis=1).any():
        raise _outside(f"scribble {index}", given, height, width)
    return points


def _read_radius(given: Any) -> float:
    radius = as_number(given)
    if radius is None or isinstance(given, bool) or not 0 < radius <= _FAR:
        raise ValueError(
            f"scribbles need a scribble_radius above 0, in pixels, how far from them the object reaches; got {given!r}"
        )
    return radius


def _box_around(points: np.ndarray, radius: float, height: int, width: int) -> tuple[float, float, float, float]:
    """The box within the image that holds all that is as near as `radius` to these points."""
    low, high = np.clip([points.min(axis=0) - radius, points.max(axis=0) + radius], 0, [width, height])
    return (*low.tolist(), *high.tolist())


def _mask_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    columns = np.flatnonzero((mask >= 0.5).any(axis=0))
    rows = np.flatnonzero((mask >= 0.5).any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _coverage(starts: np.ndarray, stops: np.ndarray, length: int, size: int) -> np.ndarray:
    """Share `(size, num_intervals)` of each of `size` equal cells of [0, length) that each [start, stop) covers."""
    edges = np.arange(size + 1)[:, None] * (length / size)
    covered = np.minimum(stops, edges[1:]) - np.maximum(starts, edges[:-1])
    return np.clip(covered * (size / length), 0, 1)


def _draw_box(box: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    columns, rows = _coverage(box[0:1], box[2:3], width, size), _coverage(box[1:2], box[3:4], height, size)
    return ((rows / rows.max()) @ (columns / columns.max()).T).astype(np.float32)


def _draw_polygons(parts: Sequence[np.ndarray], height: int, width: int, size: int) -> np.ndarray:
    fine = size * _POLYGON_OVERSAMPLING
    canvas = Image.new("L", (fine, fine))
    draw = ImageDraw.Draw(canvas)
    for part in parts:
        # Pillow puts the centre of pixel i at coordinate i, not i + 0.5.
        draw.polygon(list(map(tuple, part * [fine / width, fine / height] - 0.5)), fill=255)
    drawn = np.asarray(canvas.reduce(_POLYGON_OVERSAMPLING), dtype=np.float32)
    if drawn.max() == 0:
        # It passes by a corner of the image, or is too thin for the grid: the box of its points, as far as they go.
        return _draw_box(np.array(_box_around(np.concatenate(parts), 0, height, width)), height, width, size)
    return drawn / drawn.max()


def _draw_scribble(points: np.ndarray, radius: float, height: int, width: int, size: int) -> np.ndarray:
    middles = np.arange(0.5, size) / size
    x, y = middles[None, :] * width, middles[:, None] * height
    squares = np.full((size, size), np.inf)
    for start, stop in zip(points, points[1:] if len(points) > 1 else points):
        along = stop - start
        # Of each cell, how far along the stroke from start (0) to stop (1) its nearest point is.
        nearest = ((x - start[0]) * along[0] + (y - start[1]) * along[1]) / max(along @ along, 1e-12)
        nearest = nearest.clip(0, 1)
        distance = (x - start[0] - nearest * along[0]) ** 2 + (y - start[1] - nearest * along[1]) ** 2
        squares = np.minimum(squares, distance)
    # Less the smallest, the fullest cell is 1 however small the radius is.
    return (0.5 ** ((squares - squares.min()) / max(radius**2, 1e-12))).astype(np.float32)


def _draw_mask(mask: np.ndarray, size: int) -> np.ndarray:
    # Pixels are boxes of one pixel each.
    rows, columns = (
        _coverage(np.arange(length), np.arange(1, length + 1), length, size).astype(np.float32) for length in mask.shape
    )
    drawn = rows @ mask @ columns.T
    return np.clip(drawn * (mask.max() / drawn.max()), 0, 1)
