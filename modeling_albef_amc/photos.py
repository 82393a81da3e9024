"""Photos from wherever they are (paths, URLs, Pillow images, arrays), and with them their phrases."""

import io
import os
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import ChannelDimension

from .image_processing_pil_albef import array_to_eight_bit, channel_axis_format, pillow_to_eight_bit
from .tokenization_albef import check_characters

Photo = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor
# A phrase by itself, or in its caption: {"caption": "a man in a red hat", "caption_span": [3, 6]}.
Phrase = str | Mapping[str, Any]
Phrases = Phrase | list[Phrase]
# What is opened from files and addresses. Pillow knows more kinds, of which some start other programs (EPS does).
FORMATS = ["AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]
# A photo of a few bytes may say that it is larger than memory; Pillow stops at twice what it warns of, at gigabytes.
MAX_PIXELS = 2**26
# What Pillow raises for files that are no picture, are cut off or are too large to be meant seriously.
UNREADABLE = OSError, ValueError, SyntaxError, Image.DecompressionBombError


def is_photo(value: object) -> bool:
    """Whether this is one photo; an array or tensor of four dimensions is several."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim < 4
    return isinstance(value, str | os.PathLike | Image.Image)


def open_photo(photo: Photo, timeout: float = 30) -> Image.Image:
    """
    A photo in RGB, upright: turned as its EXIF orientation says, which is how it is shown everywhere.

    Args:
        photo: a path, a URL, a Pillow image, or an array or tensor (height, width), (height, width, channels) or
            (channels, height, width) of any number type; transparent pixels are laid on white.
        timeout: seconds to wait for a URL.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: the URL cannot be had.
        ValueError: the file is no picture or cut off, an array has no picture's shape or values.
    """
    if isinstance(photo, np.ndarray | torch.Tensor):
        return photo_from_array(photo)
    name, opened = f"this photo ({type(photo).__name__})", photo
    if isinstance(photo, str | os.PathLike):
        name = os.fspath(photo)
        is_url = name.startswith(("http://", "https://"))
        if not is_url and not os.path.isfile(name):
            raise FileNotFoundError(f"there is no photo {name}")
        opened = io.BytesIO(download(name, timeout)) if is_url else name
    elif not isinstance(photo, Image.Image):
        raise ValueError(f"a photo must be a path, a URL, a Pillow image or an array, not {type(photo)}")
    try:
        opened = opened if isinstance(opened, Image.Image) else open_file(opened)
        upright = ImageOps.exif_transpose(pillow_to_eight_bit(opened))
        return Image.fromarray(convert_to_rgb(upright, return_numpy=True))
    except UNREADABLE as error:
        raise ValueError(f"{name} is not a readable photo: {error}") from error


def open_file(file: str | os.PathLike | io.BytesIO) -> Image.Image:
    """A picture of a known kind, not decoded yet.

    Raises:
        UNREADABLE: it is none, or has more than `MAX_PIXELS`.
    """
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        image.close()
        raise Image.DecompressionBombError(f"{size} are more than the {MAX_PIXELS:,} that are read: make it smaller")
    return image


def download(url: str, timeout: float) -> bytes:
    # Some servers turn away the library's own name.
    request = urllib.request.Request(url, headers={"User-Agent": "albef-amc"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.read()
    except (OSError, ValueError) as error:  # ValueError: the URL is malformed
        raise ConnectionError(f"{url} could not be fetched: {error}") from error


def photo_from_array(array: np.ndarray | torch.Tensor) -> Image.Image:
    """Booleans, integers or floating point values, see `array_to_eight_bit`, to a photo in RGB."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"an array of the shape {tuple(array.shape)} is no photo: pass (height, width, 3)")
    if array.ndim == 3 and channel_axis_format(array) == ChannelDimension.FIRST:
        array = array.transpose(1, 2, 0) if isinstance(array, np.ndarray) else array.permute(1, 2, 0)
    pixels = array_to_eight_bit(array, do_rescale=True).cpu().numpy()
    photo = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    return Image.fromarray(convert_to_rgb(photo, return_numpy=True))


class Records(Dataset):
    """Photos and their phrases as records {"image", "phrases"}, read one by one."""

    def __init__(self, images: Any, phrases: Phrases | list[Phrases] | None):
        if is_nested(phrases) and len(phrases) != len(images):
            raise ValueError(f"{len(phrases)} lists of phrases for {len(images)} photos: pass one list a photo")
        self.images, self.phrases = images, phrases

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return as_record(self.images[row], self.phrases[row] if is_nested(self.phrases) else self.phrases)


def is_nested(phrases: Any) -> bool:
    return isinstance(phrases, list | tuple) and any(isinstance(item, list | tuple) for item in phrases)


def as_record(image: Photo | Mapping[str, Any], phrases: Phrases | None) -> dict[str, Any]:
    """{"image", "phrases"} with the phrases, none of them empty, in a list."""
    if isinstance(image, Mapping):
        phrases = image.get("phrases") if phrases is None else phrases
        if "image" not in image:
            raise ValueError(f'a record needs "image" and "phrases", this one has {", ".join(map(repr, image))}')
        image = image["image"]
    if phrases is None:
        raise ValueError('no phrases were given: pass them after the photos, or in the records as "phrases"')
    phrases = [phrases] if isinstance(phrases, str | Mapping) else list(phrases)
    for text, _ in map(text_and_span, phrases):
        if not isinstance(text, str):
            raise ValueError(f"a phrase must be a string, not {text!r}; for one photo pass one list of phrases")
        if not text.strip():
            raise ValueError(f"a phrase is empty ({text!r}): give it a word or leave it out")
        check_characters(text)
    return {"image": image, "phrases": phrases}


def text_and_span(phrase: Phrase) -> tuple[str, list[int] | None]:
    """What the model is asked, and the (first, end) of the words in it that are to be found; None for all of it."""
    if not isinstance(phrase, Mapping):
        return phrase, None
    missing = {"caption", "caption_span"} - phrase.keys()
    if missing:
        raise ValueError(f'a phrase in its caption needs "caption" and "caption_span"; {phrase!r} lacks {missing}')
    return phrase["caption"], phrase["caption_span"]


__all__ = ["Records", "open_photo"]
