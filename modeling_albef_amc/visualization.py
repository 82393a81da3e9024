"""Draws answers, with NumPy and Pillow alone: one palette, one overlay, one point and box."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

# Every 17th of the 256 colours of matplotlib's "inferno" (S. van der Walt and N. Smith, CC0), whose lightness rises
# evenly; between them, straight lines stay within 6 of 255 of the original.
INFERNO = [
    (0, 0, 4), (12, 8, 38), (36, 12, 79), (66, 10, 104), (93, 18, 110), (120, 28, 109), (147, 38, 103), (174, 48, 92),
    (199, 62, 76), (221, 81, 58), (237, 105, 37), (248, 133, 15), (252, 165, 10), (250, 198, 45), (242, 230, 97),
    (252, 255, 164),
]  # fmt: skip
MARK, RIM = "cyan", "black"


def colour_table() -> np.ndarray:
    """(256, 3) uint8: the colour of every level of heat."""
    levels = np.arange(256)
    anchors = np.linspace(0, 255, len(INFERNO))
    return np.stack([np.interp(levels, anchors, channel) for channel in zip(*INFERNO)], axis=1).round().astype(np.uint8)


def overlay(image: Image.Image, heatmap: np.ndarray, opacity: float = 0.6) -> Image.Image:
    """The image (RGB) under its heatmap (height, width), whose minimum lets it through and whose maximum covers it by
    `opacity`, in [0, 1]. A constant heatmap shows nothing."""
    if heatmap.shape != (image.height, image.width):
        raise ValueError(f"a heatmap of {heatmap.shape} does not fit an image of {(image.height, image.width)}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0, 1], got {opacity}")
    low, high = float(heatmap.min()), float(heatmap.max())
    # Eight bits from here on: large images have many pixels.
    levels = ((heatmap - low) * (255 / max(high - low, 1e-30))).round().astype(np.uint8)
    colours = Image.fromarray(colour_table()[levels])
    return Image.composite(colours, image, Image.fromarray((levels * np.float32(opacity)).astype(np.uint8)))


def mark(
    image: Image.Image, point: tuple[int, int] | None = None, boxes: Sequence[Sequence[int]] = (), colour: str = MARK
) -> Image.Image:
    """A copy of the image with half-open boxes (x1, y1, x2, y2) and a point (x, y) of this colour, in its pixels. The
    lines grow with the image and have a dark rim, to be seen on light and dark alike."""
    image = image.copy()
    draw, width = ImageDraw.Draw(image), max(1, round(max(image.size) / 250))
    for x1, y1, x2, y2 in boxes:
        x2, y2 = x2 - 1, y2 - 1
        # Outlines grow inwards; a box too small for its rim keeps the line.
        if min(x2 - x1, y2 - y1) > 4 * width:
            draw.rectangle((x1, y1, x2, y2), outline=RIM, width=2 * width)
        draw.rectangle((x1, y1, x2, y2), outline=MARK, width=max(1, min(width, (x2 - x1) // 2, (y2 - y1) // 2)))
    if point is not None:
        draw.circle(point, 3.5 * width, fill=RIM)
        draw.circle(point, 2.5 * width, fill=colour)
    return image
