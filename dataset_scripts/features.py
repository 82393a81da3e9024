"""The one record schema of all builders.

One row is one phrase with its image; the rows of an image follow each other. Coordinates are pixels of the image as it
is shown, turned upright where its Exif data says so, `[x1, y1, x2, y2]`, half-open: a box covers the pixel columns
`x1 <= x < x2`. A phrase may have several instances, and its region is the union of all that the image shows; a builder
leaves out the row of a phrase that has lost one of them.

An image's id is `<builder>/<name in the source>#<mark>`, so that the rows of any two builds can be put together:
`coco/000000000139.jpg#5f3c07a1b2d4`. The mark is a hash of the image's bytes, or in a build without images of its path
from the data folder's.
"""

import hashlib
import io
import posixpath
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from datasets import Features, Image, Value
from PIL import Image as PilImage

try:
    from datasets import List
except ImportError:  # datasets 3, which ran loading scripts, has another name for it
    from datasets import Sequence as List

_FAR = 2**24  # pixels; from here on float32 tells neighbours no more apart, and Arrow takes no int for it

FEATURES = Features(
    {
        "image": Image(),
        "image_id": Value("string"),
        "phrase": Value("string"),
        "boxes": List(List(Value("float32"), length=4)),
        "masks": List(Image()),
        "caption": Value("string"),
        "caption_span": List(Value("int32")),
        "categories": List(Value("string")),
        "proposals": List(List(Value("float32"), length=4)),
        "absent": Value("bool"),
    }
)


class PhraseFields(TypedDict, total=False):
    """What a builder knows of a phrase: arguments of `make_row`, of which only `phrase` is needed."""

    phrase: str
    boxes: Sequence[Sequence[float]]
    masks: Sequence[dict[str, Any]]
    caption: str | None
    caption_span: tuple[int, int] | None
    categories: Sequence[str]
    proposals: Sequence[Sequence[float]]
    absent: bool


def make_row(  # noqa: PLR0913 - the columns
    image: dict[str, Any] | None,
    image_id: str,
    phrase: str,
    boxes: Sequence[Sequence[float]] = (),
    masks: Sequence[dict[str, Any]] = (),
    caption: str | None = None,
    caption_span: tuple[int, int] | None = None,
    categories: Sequence[str] = (),
    proposals: Sequence[Sequence[float]] = (),
    absent: bool = False,
) -> dict[str, Any]:
    """A row with all columns of `FEATURES`.

    Args:
        image: {"bytes", "path"}; None in a build without images.
        boxes, masks: one for each instance of the phrase; masks as of `encode_png`, all or none.
        caption: the sentence that the phrase is a part of, its words parted by single blanks.
        caption_span: (first, end): `caption.split(" ")[first:end]` are the phrase's words.
        categories: kinds of the phrase, such as "people".
        proposals: a detector's boxes in the image.
        absent: somebody has looked, and there is no such thing in the image.
    """
    return {
        "image": image,
        "image_id": image_id,
        "phrase": phrase,
        "boxes": list(boxes),
        "masks": list(masks),
        "caption": caption,
        "caption_span": list(caption_span or ()),
        "categories": list(categories),
        "proposals": list(proposals),
        "absent": absent,
    }


def plain_name(name: str) -> str:
    r"""A file's name as it is compared: `.\below\a.jpg` and `below//a.jpg` are `below/a.jpg`."""
    return posixpath.normpath(name.replace("\\", "/"))


def make_image_id(builder: str, name: str, content: bytes) -> str:
    """The id of an image of this name in its source, marked by its bytes, or by what else tells it from others."""
    return f"{builder}/{plain_name(name)}#{hashlib.sha256(content).hexdigest()[:12]}"


def why_not_storable(row: dict[str, Any]) -> str | None:
    """Why Parquet cannot hold a row of `make_row`, or None: what JSON allows and its columns do not."""
    texts = (row["image_id"], row["phrase"], row["caption"] or "", *row["categories"])
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return "half a character (a lone surrogate) in its text"
    if not any(each.isprintable() and each != " " for each in row["phrase"]):
        return "a phrase of which there is nothing to see"
    if not all(abs(value) <= _FAR for key in ("boxes", "proposals") for box in row[key] for value in box):
        return "a coordinate that is no number, or farther than an image can be wide"
    return None


def encode_png(pixels: np.ndarray) -> dict[str, bytes | None]:
    """Encodes pixels as an embedded PNG, in the form an `Image()` feature stores.

    Args:
        pixels: uint8 `(height, width, 3)` RGB, uint8 `(height, width)` gray, or bool `(height, width)`: a mask, which
            becomes 0 and 255.
    """
    # Level 4 takes half the time of the default; masks are run lengths and little else (compress_type 3: Z_RLE).
    options = {"compress_level": 4}
    if pixels.dtype == np.bool_ and pixels.ndim == 2 and pixels.size:
        pixels, options = np.negative(pixels.view(np.uint8)), {"compress_level": 1, "compress_type": 3}
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(
            f"expected bool or uint8 pixels (height, width) or (height, width, 3), got {pixels.dtype} {pixels.shape}"
        )
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, format="PNG", **options)
    return {"bytes": buffer.getvalue(), "path": None}


def mask_to_box(mask: np.ndarray) -> list[float]:
    """The tight half-open box `[x1, y1, x2, y2]` in whole pixels of a bool mask `(height, width)`."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if columns.size == 0:
        raise ValueError("an empty mask has no box")
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


class BuildReport:
    """What a builder kept and dropped: counts by reason, and the first records of each; printed by `build`."""

    NUM_EXAMPLES = 3

    def __init__(self) -> None:
        self.kept: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, kept: dict[str, int], dropped: dict[str, int], examples: dict[str, list[str]]) -> None:
        """Adds the counts of a later report."""
        self.kept.update(kept)
        self.dropped.update(dropped)
        for reason, records in examples.items():
            self.examples[reason] = (self.examples.get(reason, []) + records)[: self.NUM_EXAMPLES]

    def __str__(self) -> str:
        lines = [f"kept     {count:>9,}  {what}" for what, count in sorted(self.kept.items())]
        for reason, count in sorted(self.dropped.items()):
            lines.append(f"dropped  {count:>9,}  {reason}")
            if reason in self.examples:
                more = ", …" if count > len(self.examples[reason]) else ""
                lines.append(f"{'':20}{', '.join(self.examples[reason])}{more}")
        text = "\n".join(lines) or "nothing kept, nothing dropped"
        return text.encode(errors="backslashreplace").decode()  # names of records may be what could not be used
