"""In which units the boxes of a data set are, where nobody has said: what its first ones, in their images, can be."""

import io
import math
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from PIL import ExifTags

from modeling_albef_amc.image_processing_pil_albef import orientation_of
from modeling_albef_amc.images import UNREADABLE, load_image, open_file

from .columns import Columns, Found, first_rows, written
from .phrase_rows import SIDES, check_size, told_size
from .regions import REGIONS, to_xyxy

# As many boxes decide what all are, looked for in so many rows.
NUM_DECIDING, MAX_ROWS = 256, 10_240
# Above this share, a mistake is one of the whole data set and not of some of its records.
SIZEABLE = 0.25
_CHANCE = 2**-16  # below which boxes of another scale are none that happen to be in a part of their images
SCALES = 100, 1000  # that boxes may be counted to, in images of any size
_MISFITS = 0.01  # share of boxes that are wrong in any data set
_TELL_OF_IT = re.compile(b"eXIf|XML:com.adobe.xmp|Raw profile type exif")  # chunks of PNG
_TURNED = range(5, 9)  # of EXIF orientations, those by which width and height change places


def decide_boxes(
    dataset: Dataset | IterableDataset, found: Found, columns: Columns, path: str, needs_regions: bool
) -> Dataset | IterableDataset:
    """The data set; sets the format of its boxes, as their first ones allow, and says what was guessed.

    Args:
        dataset: with our columns, its images undecoded.
        needs_regions: without, guessed boxes in doubt are left out.

    Raises ValueError: none fits, or several do.
    """
    decided, wrong = "", wrong_sizes(dataset, path)
    doubt_scale(dataset, found, columns, path)
    if "boxes" in found.places and (columns.box_format is None or columns.guessed_of is not None):
        theirs = written(found.places["boxes"])
        try:
            if found.formats:
                box_format, decided = fitting_format(dataset, found, path)
            else:
                box_format = "xyxy"
                check_scale(dataset, box_format, f"{path}: boxes ({theirs})")
        except ValueError as doubt:
            error = ValueError(wrong) if wrong else doubt
            if columns.guessed_of == theirs and columns.box_format in chain.from_iterable(found.formats or ()):
                return dataset  # in doubt by itself, and as in a split before
            others = set(REGIONS) & set(dataset.column_names) - {"boxes"}
            is_blank = not any(list(fours(row["boxes"])) for row in images_and_boxes(dataset))
            if (needs_regions and not (others and is_blank)) or "boxes" not in found.guessed:
                raise error from doubt
            columns.say(f"Boxes are left out. {error}")
            found.guessed.remove("boxes")
            dataset = dataset.remove_columns("boxes")
        else:
            if columns.box_format not in (None, box_format):
                raise ValueError(
                    f"{path}: boxes ({theirs}) are {box_format}, and those of a split before ({columns.guessed_of}) "
                    f"{columns.box_format}: make them alike, or take the splits one by one."
                )
            columns.box_format, columns.guessed_of = box_format, theirs
    is_in_pixels = "boxes" in dataset.column_names and not (columns.box_format or "").endswith("_normalized")
    if wrong and (is_in_pixels or set(REGIONS) & set(dataset.column_names) - {"boxes"}):
        raise ValueError(wrong)
    if found.guessed or decided:
        said = "; ".join(filter(None, (str(found), decided)))
        columns.say(f"{path}: {said}. Guessed; --columns and --box_format say otherwise.")
    return dataset


def fitting_format(dataset: Dataset | IterableDataset, found: Found, path: str) -> tuple[str, str]:
    """Of the formats that the boxes may have, the one, and what to say of it."""
    boxes, sizes = first_boxes(dataset)
    if not len(boxes):
        seen = next((row["boxes"] for row in images_and_boxes(dataset) if row["boxes"]), None)
        advice = "Say --box_format." if seen is None else f"Each must be four numbers, not as in {str(seen)[:80]}."
        raise ValueError(f"{path}: it is in doubt what its boxes are; the first rows have none. {advice}")
    if not sizes.any():
        image = next(row["image"] for row in images_and_boxes(dataset) if list(fours(row["boxes"])))
        try:
            load_image(image)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"{path}: no image of the first rows with boxes can be read; of the first: {error}"
            ) from error
    groups = [[each for each in group if fits_images(boxes, sizes, each)] for group in found.formats or ()]
    fitting: list[str] = next(filter(None, groups), [])
    theirs, first = written(found.places["boxes"]), f"the first is {[round(v, 4) for v in boxes[0].tolist()]}"
    refuse_scale(boxes, sizes, fitting, f"{path}: boxes ({theirs})")  # of which another format may fit, too
    if len(fitting) != 1:
        tried = ", ".join(chain.from_iterable(found.formats or ()))
        what = f"may be {' or '.join(fitting)}" if fitting else f"are none of {tried}"
        counted = "" if fitting else " Of boxes counted to 100 or 1000, make pixels or shares first."
        raise ValueError(
            f"{path}: boxes ({theirs}) {what}, by {len(boxes)} of them; {first}. Say which: --box_format "
            f"{' or '.join(fitting) or '…'}; or, if they are in other columns, --columns boxes=….{counted}"
        )
    check_proposals(dataset, fitting[0], path)
    return fitting[0], f"boxes are {fitting[0]}, {first}"


def check_scale(dataset: Dataset | IterableDataset, box_format: str, name: str) -> None:
    """As `refuse_scale`, of a known format; images are only looked at where the boxes may be of another scale."""
    given = [box for row in first_rows(dataset, ["boxes"]) for box in fours(row["boxes"])]
    end = to_xyxy(np.array(given, dtype=np.float64).reshape(-1, 4), box_format)[:, 2:].max(initial=0)
    if any(0.75 * scale < end <= 1.005 * scale for scale in SCALES):
        refuse_scale(*first_boxes(dataset), [box_format], name)


def doubt_scale(dataset: Dataset | IterableDataset, found: Found, columns: Columns, path: str) -> None:
    """Says what boxes of a format that somebody told seem to be counted to."""
    if "boxes" not in found.places or columns.box_format is None or columns.guessed_of is not None:
        return
    try:
        check_scale(dataset, columns.box_format, f"{path}: boxes ({written(found.places['boxes'])})")
    except ValueError as doubt:
        columns.say(f"{doubt} That is said: they are taken for pixels.")


def refuse_scale(boxes: np.ndarray, sizes: np.ndarray, box_formats: list[str], name: str) -> None:
    """ValueError: boxes, called by a name, are counted to 100 or 1000 in images of any size, as far as these tell, in
    one of the formats that they may have."""
    scales = [seeming_scale(to_xyxy(boxes, each), sizes) for each in box_formats if len(boxes)]
    if any(scales):
        raise ValueError(
            f"{name} seem to be counted to {next(filter(None, scales))} in images of any size: none goes beyond; the "
            f"first is {[round(v, 4) for v in boxes[0].tolist()]}. Make pixels or shares of them, or, if that is what "
            f"they are, say --box_format {' or '.join(box_formats)}."
        )


def check_proposals(dataset: Dataset | IterableDataset, box_format: str, path: str) -> None:
    """ValueError: the first proposals do not fit the format that the boxes have, by which they are read, too."""
    if "proposals" not in dataset.column_names:
        return
    proposals, sizes = first_boxes(dataset, "proposals")
    if len(proposals) and not fits_images(proposals, sizes, box_format):
        raise ValueError(
            f"{path}: boxes are {box_format}, and proposals, which must be so, too, do not fit their images then; the "
            f"first is {proposals[0].tolist()}. Make both alike."
        )


def first_boxes(dataset: Dataset | IterableDataset, column: str = "boxes") -> tuple[np.ndarray, np.ndarray]:
    """float64 (num_boxes, 4), of the first rows with any in this column, and (num_boxes, 2): width and height of their
    images, 0 for one that cannot be read. Of an image only the header is. Boxes of rows that say another size are left
    out; are all so, it is the size that they say."""
    boxes: list[list[float]] = []
    sizes: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for row in images_and_boxes(dataset, column):
        of_row = list(fours(row[column]))
        boxes += of_row
        size = image_size(row["image"]) if of_row else (0, 0)
        sizes += [(told_size(row) or size, size)] * len(of_row)
        if len(boxes) >= NUM_DECIDING:
            break
    told, real = np.array(sizes).reshape(-1, 2, 2).swapaxes(0, 1)
    is_right = (told == real).all(axis=1)
    chosen = is_right if is_right.any() else slice(None)
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)[chosen], told[chosen]


def wrong_sizes(dataset: Dataset | IterableDataset, path: str) -> str:
    """What to say where a sizeable share of the first images has another size than their rows say; else nothing."""
    if not {*SIDES} <= {*dataset.column_names}:
        return ""
    rows, wrong = [row for row in first_rows(dataset, ["image", *SIDES]) if told_size(row)], []
    for row in rows:
        try:
            if any(size := image_size(row["image"])):
                check_size(row, size)
        except ValueError as error:
            wrong.append(f"such as {row['image']['path'] or 'one'!s:.200}: {error}")
    if len(wrong) <= SIZEABLE * len(rows):
        return ""
    return f"{path}: {len(wrong)} of the first {len(rows)} images are of another size than told, {wrong[0]}"


def images_and_boxes(dataset: Dataset | IterableDataset, column: str = "boxes") -> Iterator[dict[str, Any]]:
    """Of the first rows, at most MAX_ROWS."""
    names = ["image", column, *(side for side in SIDES if side in dataset.column_names)]
    tables = dataset.select_columns(names).with_format("arrow").iter(batch_size=64)
    for table in islice(tables, MAX_ROWS // 64):
        yield from table.to_pylist()


def fours(values: Any) -> Iterator[list[float]]:
    """The lists of four numbers in lists of whatever depth."""
    if isinstance(values, list) and values and not any(isinstance(value, list) for value in values):
        if len(values) == 4 and all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            yield values
    elif isinstance(values, list):
        for value in values:
            yield from fours(value)


def image_size(image: dict[str, Any] | None) -> tuple[int, int]:
    """Width and height of an undecoded image, upright; 0, 0 if it cannot be read."""
    try:
        data = image["bytes"]
        with Path(image["path"]).open("rb") if data is None else io.BytesIO(data) as file, open_file(file) as opened:
            if opened.format == "PNG":  # which would be decoded to look for it behind the pixels
                file.seek(0)
                may_be_turned = _TELL_OF_IT.search(file.read())
            else:  # the size of a TIFF is turned by its own tag already
                may_be_turned = ExifTags.Base.Orientation not in getattr(opened, "tag_v2", ())
            return opened.size[::-1] if may_be_turned and orientation_of(opened) in _TURNED else opened.size
    except (TypeError, *UNREADABLE):
        return 0, 0


def seeming_scale(corners: np.ndarray, sizes: np.ndarray) -> int | None:
    """100 or 1000, where boxes end there and not beyond, though so many would, mirrored in their images, that it is no
    chance: photos are as likely as their mirror images, so it is one of two for each of these boxes."""
    starts, ends, sides = np.hsplit(np.unique(np.hstack([corners, sizes]), axis=0), 3)
    for scale in SCALES:
        num_beyond = (starts < sides - scale).any(axis=1).sum()
        if 0.75 * scale < ends.max() <= 1.005 * scale and 0.5**num_beyond <= _CHANCE:
            return scale
    return None


def fits_images(boxes: np.ndarray, sizes: np.ndarray, box_format: str) -> bool:
    """Whether boxes (num_boxes, 4), but for very few, have an area in this format, and are in images of these sizes."""
    is_shares = box_format.endswith("_normalized")
    limits = np.ones_like(sizes, dtype=np.float64) if is_shares else np.where(sizes == 0, np.inf, sizes)
    slack = np.where(np.isinf(limits), 0, np.maximum(limits * 0.005, 0 if is_shares else 1))
    corners = to_xyxy(boxes, box_format)
    is_right = (corners[:, :2] < corners[:, 2:]).all(axis=1)
    is_right &= (corners[:, :2] >= -slack).all(axis=1) & (corners[:, 2:] <= limits + slack).all(axis=1)
    is_right &= is_shares | (np.abs(boxes) > 1).any(axis=1)
    return bool((~is_right).mean() <= _MISFITS)
