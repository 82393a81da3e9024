"""Pictures of answers, with NumPy and Pillow alone: photos under heatmaps, points, boxes, captions, sheets."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Every 17th of the 256 colours of matplotlib's "inferno" (S. van der Walt and N. Smith, CC0), whose lightness rises
# evenly; between them, straight lines stay within 6 of 255 of the original.
INFERNO = [
    (0, 0, 4), (12, 8, 38), (36, 12, 79), (66, 10, 104), (93, 18, 110), (120, 28, 109), (147, 38, 103), (174, 48, 92),
    (199, 62, 76), (221, 81, 58), (237, 105, 37), (248, 133, 15), (252, 165, 10), (250, 198, 45), (242, 230, 97),
    (252, 255, 164),
]  # fmt: skip
MARK, RIM, PAPER, INK = "cyan", "black", "white", "black"


def colour_table() -> np.ndarray:
    """(256, 3) uint8: the colour of every level of heat."""
    levels = np.arange(256)
    anchors = np.linspace(0, 255, len(INFERNO))
    return np.stack([np.interp(levels, anchors, channel) for channel in zip(*INFERNO)], axis=1).round().astype(np.uint8)


def overlay(photo: Image.Image, heatmap: np.ndarray, opacity: float = 0.6) -> Image.Image:
    """The photo under its heatmap.

    Args:
        photo: RGB.
        heatmap: (height, width) of the photo; its minimum lets the photo through, its maximum covers it by `opacity`.
            A constant heatmap shows nothing.
        opacity: in [0, 1].

    Raises:
        ValueError: the heatmap has another size than the photo, or the opacity is outside [0, 1].
    """
    if heatmap.shape != (photo.height, photo.width):
        raise ValueError(f"a heatmap of {heatmap.shape} does not fit a photo of {(photo.height, photo.width)}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0, 1], got {opacity}")
    low, high = float(heatmap.min()), float(heatmap.max())
    # Eight bits from here on: large photos have many pixels.
    levels = ((heatmap - low) * (255 / max(high - low, 1e-30))).round().astype(np.uint8)
    colours = Image.fromarray(colour_table()[levels])
    return Image.composite(colours, photo, Image.fromarray((levels * np.float32(opacity)).astype(np.uint8)))


def mark(
    picture: Image.Image,
    point: tuple[int, int] | None = None,
    boxes: Sequence[Sequence[int]] = (),
    colour: str = MARK,
) -> Image.Image:
    """A copy of the picture with half-open boxes (x1, y1, x2, y2) and a point (x, y) drawn in, in its pixels.

    The lines grow with the picture and have a dark rim, to be seen on light and dark alike.

    Args:
        colour: of the point.
    """
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    width = max(1, round(max(picture.size) / 250))
    for x1, y1, x2, y2 in boxes:
        x2, y2 = x2 - 1, y2 - 1
        # Outlines grow inwards; a box too small for its rim keeps the line.
        if min(x2 - x1, y2 - y1) > 4 * width:
            draw.rectangle((x1, y1, x2, y2), outline=RIM, width=2 * width)
        draw.rectangle((x1, y1, x2, y2), outline=MARK, width=max(1, min(width, (x2 - x1) // 2, (y2 - y1) // 2)))
    if point is not None:
        draw.circle(point, 3.5 * width, fill=RIM)
        draw.circle(point, 2.5 * width, fill=colour)
        draw.point(point, fill=colour)
    return picture


def panel(
    photo: Image.Image,
    caption: str,
    heatmap: np.ndarray | None = None,
    point: tuple[int, int] | None = None,
    boxes: Sequence[Sequence[float]] = (),
    colour: str = MARK,
    width: int = 560,
    max_height: int = 900,
) -> Image.Image:
    """A picture of `width` pixels, whatever the photo's size: caption, photo, and on it heatmap, boxes and point.

    Args:
        photo: RGB.
        heatmap: (height, width) of the photo. point: (x, y), boxes: (x1, y1, x2, y2), in pixels of the photo.
        colour: of the point.
        max_height: of the photo in the panel; a taller one becomes narrower instead.
    """
    scale = min(width / photo.width, max_height / photo.height)
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    if point is not None:
        point = tuple(int((place + 0.5) * scale) for place in point)
    corners = [[round(edge * scale) for edge in box] for box in boxes]
    corners = [(x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)) for x1, y1, x2, y2 in corners]
    picture = photo if heatmap is None else overlay(photo, heatmap)
    # Scaled first, so that lines are equally thin on all photos.
    picture = mark(picture.resize(size, Image.Resampling.BICUBIC), point, corners, colour)
    return captioned(picture, caption, width)


def captioned(picture: Image.Image, caption: str, width: int) -> Image.Image:
    """The picture below its caption, on paper of `width` pixels, at least its own."""
    font = ImageFont.load_default(size=max(14, width // 28))
    lines = wrap(caption, font, width)
    line_height = sum(font.getmetrics())
    drawn = Image.new("RGB", (width, line_height * len(lines) + line_height // 2 + picture.height), PAPER)
    draw = ImageDraw.Draw(drawn)
    for number, line in enumerate(lines):
        draw.text((0, number * line_height), line, fill=INK, font=font)
    drawn.paste(picture, (0, drawn.height - picture.height))
    return drawn


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words, or within a word that fills a line alone."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def sheet(panels: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Panels in rows, from left to right; by default up to three in one row, more in about a square.

    Raises:
        ValueError: there is no panel.
    """
    if not panels:
        raise ValueError("a sheet needs at least one panel")
    columns = columns or (len(panels) if len(panels) <= 3 else math.ceil(math.sqrt(len(panels))))
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    gap = max(8, panels[0].width // 40)
    cell = max(item.width for item in panels) + gap
    heights = [max(item.height for item in row) + gap for row in rows]
    picture = Image.new("RGB", (gap + cell * min(columns, len(panels)), gap + sum(heights)), PAPER)
    for number, row in enumerate(rows):
        for column, item in enumerate(row):
            picture.paste(item, (gap + column * cell, gap + sum(heights[:number])))
    return picture


__all__ = ["captioned", "mark", "overlay", "panel", "sheet"]
