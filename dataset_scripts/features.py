"""The one record schema of all builders, and what the builders share.

One row is one phrase with its image; the rows of an image follow each other. Coordinates are pixels of the image as it
is shown, turned upright where its Exif data says so, `[x1, y1, x2, y2]`, half-open: a box covers the pixel columns
`x1 <= x < x2`. A phrase may have several instances, and the region of a phrase is the union of all that the image
shows; a builder leaves out the row of a phrase that has lost one of them.

An image's id is `<builder>/<name in the source>#<mark>` (`make_image_id`), so that the rows of any two builds can be
put together: `coco/000000000139.jpg#5f3c07a1b2d4`. The name is that of the file, or the number where the source has
numbers. The mark is of the photo's bytes: photos that differ have different ids, and one photo has the same in all
annotation files of a format that name it alike. A build without photos has the name of its data folder for a mark.
"""

import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Features, Image, Value
from PIL import Image as PilImage

try:
    from datasets import List
except ImportError:  # datasets 3, which ran loading scripts, has another name for it
    from datasets import Sequence as List

_FAR = 2**24  # pixels; from here on float32 tells neighbours no more apart, and Arrow takes no int for it
_PNG_LEVEL = 4  # half the time of the default, 6, for files 6 % larger

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


def make_row(
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
        image: {"bytes", "path"}; None in a build without photos.
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


def make_image_id(builder: str, name: str, photo: bytes | None, folder: str | None = None) -> str:
    """The id of an image.

    Args:
        builder: its name in `build.BUILDERS`.
        name: what the image is called in its source.
        photo: its bytes, as a file or as pixels; None in a build without photos, which
        folder: of the annotations, then tells from others.
    """
    mark = folder if photo is None else hashlib.sha256(photo).hexdigest()[:12]
    return f"{builder}/{name}#{mark}"


def why_not_storable(row: dict[str, Any]) -> str | None:
    """Why Parquet cannot hold a row of `make_row`, or None: what JSON allows and its columns do not."""
    texts = (row["image_id"], row["phrase"], row["caption"] or "", *row["categories"])
    if not all(text.isascii() or _is_utf8(text) for text in texts):
        return "half a character (a lone surrogate) in its text"
    if not all(abs(value) <= _FAR for key in ("boxes", "proposals") for box in row[key] for value in box):
        return "a coordinate that is no number, or farther than a photo can be wide"
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode_png(pixels: np.ndarray) -> dict[str, bytes | None]:
    """Encodes pixels as an embedded PNG, in the form an `Image()` feature stores.

    Args:
        pixels: uint8 `(height, width, 3)` RGB, uint8 `(height, width)` gray, or bool `(height, width)`: a mask, which
            becomes 0 and 255.

    Raises:
        ValueError: The array is of another type or shape.
    """
    if pixels.dtype == np.bool_ and pixels.ndim == 2 and pixels.size:
        return {"bytes": _encode_mask(pixels), "path": None}
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(
            f"expected bool or uint8 pixels (height, width) or (height, width, 3), got {pixels.dtype} {pixels.shape}"
        )
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).save(buffer, format="PNG", compress_level=_PNG_LEVEL)
    return {"bytes": buffer.getvalue(), "path": None}


def _encode_mask(mask: np.ndarray) -> bytes:
    """A mask as a gray PNG of 8 bits, in a quarter of the time that Pillow takes: building COCO is little else.

    Most rows of a mask are empty. How many of them compress is remembered, so that only those with pixels are
    compressed anew, as differences to the row above, in which run lengths are all that there is to find.

    Args:
        mask: bool `(height, width)`, at least a pixel; becomes 0 and 255.
    """
    height, width = mask.shape
    full = np.flatnonzero(mask.any(axis=1))
    first, end = (int(full[0]), min(int(full[-1]) + 2, height)) if full.size else (0, 0)
    values = np.negative(mask[first:end].view(np.uint8))
    rows = np.zeros((height, 1 + width), np.uint8)  # each begins with its filter: 0, none; 2, less the row above
    rows[first:end, 0] = 2
    rows[first:end, 1:] = values
    rows[first + 1 : end, 1:] -= values[:-1]
    # The pieces of a zlib stream: its header, blocks that do not refer to each other, the last block, the checksum.
    blocks = _deflate_zeros(first * (1 + width)) + _deflate(rows[first:end])
    blocks += _deflate_zeros((height - end) * (1 + width)) + b"\x03\x00"
    pixels = b"\x78\x01" + blocks + zlib.adler32(rows).to_bytes(4, "big")
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = size + b"\x08\x00\x00\x00\x00"  # 8 bits, gray, the one compression and filtering there is, not interlaced
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _deflate(data: bytes | np.ndarray) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    return compressor.compress(data) + compressor.flush(zlib.Z_FULL_FLUSH)


@lru_cache(4096)  # of half a kilobyte: the heights of a few sizes of photos
def _deflate_zeros(count: int) -> bytes:
    return _deflate(bytes(count)) if count else b""


def _chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def mask_to_box(mask: np.ndarray) -> list[int]:
    """The tight half-open box `[x1, y1, x2, y2]` in pixels of a bool mask `(height, width)`.

    Raises:
        ValueError: The mask is empty.
    """
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
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
        for why, records in examples.items():
            self.examples[why] = (self.examples.get(why, []) + records)[: self.NUM_EXAMPLES]

    def __str__(self) -> str:
        lines = [f"kept     {count:>9,}  {what}" for what, count in sorted(self.kept.items())]
        for why, count in sorted(self.dropped.items()):
            lines.append(f"dropped  {count:>9,}  {why}")
            if why in self.examples:
                more = ", …" if count > len(self.examples[why]) else ""
                lines.append(f"{'':20}{', '.join(self.examples[why])}{more}")
        text = "\n".join(lines) or "nothing kept, nothing dropped"
        return text.encode(errors="backslashreplace").decode()  # names of records may be what could not be used
