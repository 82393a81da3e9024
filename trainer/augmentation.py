"""Random changes to an image together with the regions and the phrases that speak of it.

What is true of the image stays true: a mirrored image swaps "left" and "right" in its phrases, colours change only
where no phrase names one, and a crop keeps every region whole. Pillow does it in about half of kornia's time.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance, ImageOps

from .regions import Region

_COLOR_WORDS = re.compile(
    r"\b(?:colou?r(?:s|ed|ful)?|gr[ae]y|red|orange|yellow|green|blue|purple|violet|lilac|lavender|pink|brown|black|white"
    r"|gold|golden|silver|beige|tan|maroon|burgundy|crimson|navy|teal|turquoise|cyan|aqua|magenta|cream|khaki|ivory"
    r"|blonde?|brunette|dark|darker|light|lighter|bright|brighter|pale"
    r"|(?:redd|green|blu|yellow|brown|black|whit|pink|purpl|orang|gr[ae]y)ish)\b",
    re.IGNORECASE,
)
_POSITION_WORDS = re.compile(
    r"\b(?:left|right|leftmost|rightmost|top|topmost|bottom|upper|lower|middle|cent(?:er|re|ral)|corner|edge|border|side"
    r"|far|farthest|furthest|first|second|third|last)\b",
    re.IGNORECASE,
)
# Whole words, and the compounds "left-hand", "lefthand", "leftmost", "leftward(s)", "leftside"; not "lefty", "bright".
_LEFT_RIGHT = re.compile(r"\b(left|right)(?=(?:hand|most|wards?|side)?\b)", re.IGNORECASE)
_OPPOSITE = {"left": "right", "right": "left"}


def names_color(phrase: str) -> bool:
    """Whether the phrase names a colour or a shade, so that gray or jitter could make it false."""
    return _COLOR_WORDS.search(phrase) is not None


def names_position(phrase: str) -> bool:
    """Whether the phrase may name a position in the image, which a crop would move."""
    return _POSITION_WORDS.search(phrase) is not None


def swap_left_right(phrase: str) -> str:
    """The phrase for the mirrored image: "left" and "right" change places, their case kept.

    The words are not understood: "right behind the car" becomes "left behind the car".
    """

    def opposite(match: re.Match) -> str:
        word = match.group()
        swapped = _OPPOSITE[word.lower()]
        if word.isupper():
            return swapped.upper()
        return swapped.capitalize() if word[0].isupper() else swapped

    return _LEFT_RIGHT.sub(opposite, phrase)


@dataclass
class GroundingAugmentation:
    """Changes one image, all its phrases and all their regions together; the defaults are the paper's.

    Draws from torch's global generator, so a seeded worker repeats its batches.

    Args:
        flip: Probability of mirroring left to right. Phrases swap "left" and "right".
        gray: Probability of taking the colour out. Spared where any phrase of the image names a colour.
        jitter: Probability of changing brightness, contrast, saturation and hue. Spared likewise.
        crop: Probability of cropping to a random window (the processor resizes it) that holds every region of the
            image. Spared where any phrase names a position in the image, which the crop would move, or has no region:
            what it speaks of could be cut off.
        brightness, contrast, saturation: Jitter multiplies each by a factor drawn from [1 - value, 1 + value]; these
            and the hue are not in the paper but in its code.
        hue: Jitter turns the hue by a share of the colour circle drawn from [-hue, hue], at most 0.5.
        min_crop: The crop window is at least this share of the image's width and of its height.
    """

    flip: float = 0.5
    gray: float = 0.2
    jitter: float = 0.5
    crop: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.4
    min_crop: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            most = 0.5 if name == "hue" else 1
            if not 0 <= value <= most:
                raise ValueError(f"{name} must lie in [0, {most}], got {value}")

    def __call__(
        self, image: Image.Image, phrases: Sequence[str], regions: Sequence[Region | None]
    ) -> tuple[Image.Image, list[str], list[Region | None]]:
        """New image (RGB), phrases and their regions (None: no region), in the same order."""
        phrases, regions = list(phrases), list(regions)
        if _happens(self.crop) and None not in regions and not any(map(names_position, phrases)):
            window = self._crop_window(image, regions)
            image = image.crop(window)
            regions = [region.cropped(*window) for region in regions]
        if _happens(self.flip):
            image = ImageOps.mirror(image)
            phrases = [swap_left_right(phrase) for phrase in phrases]
            regions = [region and region.mirrored() for region in regions]
        # Both are drawn before the phrases are looked at: a colour word does not shift the draws of the next image.
        turn_gray, shift_colors = _happens(self.gray), _happens(self.jitter)
        if not any(map(names_color, phrases)):
            if turn_gray:
                image = image.convert("L").convert("RGB")
            if shift_colors:
                image = self._jittered(image)
        return image, phrases, regions

    def _crop_window(self, image: Image.Image, regions: Sequence[Region]) -> tuple[int, int, int, int]:
        """A random window of whole pixels, xyxy, that holds the extents of all regions."""
        lefts, tops, rights, bottoms = zip(*(region.extent for region in regions), strict=True)
        x1, x2 = self._crop_span(math.floor(min(lefts)), math.ceil(max(rights)), image.width)
        y1, y2 = self._crop_span(math.floor(min(tops)), math.ceil(max(bottoms)), image.height)
        return x1, y1, x2, y2

    def _crop_span(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """A random [a, b) within [0, length) that holds [start, stop): its length is drawn first, then its place."""
        shortest = max(stop - start, math.ceil(self.min_crop * length), 1)
        span = _integer(shortest, length)
        first = _integer(max(0, stop - span), min(start, length - span))
        return first, first + span

    def _jittered(self, image: Image.Image) -> Image.Image:
        image = ImageEnhance.Brightness(image).enhance(1 + _symmetric(self.brightness))
        image = ImageEnhance.Contrast(image).enhance(1 + _symmetric(self.contrast))
        image = ImageEnhance.Color(image).enhance(1 + _symmetric(self.saturation))
        shift = round(255 * _symmetric(self.hue))
        hue, saturation, value = image.convert("HSV").split()
        hue = hue.point([(level + shift) % 256 for level in range(256)])
        return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def _happens(probability: float) -> bool:
    return torch.rand(()).item() < probability


def _integer(low: int, high: int) -> int:
    """A random integer, both ends included."""
    return int(torch.randint(low, high + 1, ()).item())


def _symmetric(limit: float) -> float:
    """A random number in [-limit, limit]."""
    return limit * (2 * torch.rand(()).item() - 1)
