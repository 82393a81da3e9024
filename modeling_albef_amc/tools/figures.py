"""Figures of answers: panels with a caption, and sheets of panels."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..visualization import MARK, mark, overlay

PAPER, INK = "white", "black"


def panel(
    image: Image.Image,
    caption: str,
    heatmap: np.ndarray | None = None,
    point: tuple[int, int] | None = None,
    boxes: Sequence[Sequence[float]] = (),
    colour: str = MARK,
    width: int = 560,
    max_height: int = 900,
) -> Image.Image:
    """A picture of `width` pixels, whatever the image's size: caption, image, and on it heatmap, boxes and point.

    Args:
        image: RGB. heatmap: (height, width) of the image.
        point: (x, y), boxes: (x1, y1, x2, y2), in pixels of the image. colour: of the point.
        max_height: of the image in the panel; a taller one becomes narrower instead.
    """
    scale = min(width / image.width, max_height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if point is not None:
        point = int((point[0] + 0.5) * scale), int((point[1] + 0.5) * scale)
    corners = [[round(edge * scale) for edge in box] for box in boxes]
    corners = [(x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)) for x1, y1, x2, y2 in corners]
    picture = image if heatmap is None else overlay(image, heatmap)
    # Scaled first, so that lines are equally thin on all images.
    picture = mark(picture.resize(size, Image.Resampling.BICUBIC), point, corners, colour)
    return captioned(picture, caption, width)


def captioned(picture: Image.Image, caption: str, width: int) -> Image.Image:
    """A picture, up to `width` pixels wide, below its caption."""
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
    """Panels in rows, from left to right; by default up to three in one row, more in about a square."""
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
