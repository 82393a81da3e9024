"""Opens images from wherever they are, and turns them upright by EXIF: coordinates are pixels of the upright image."""

import io
import os
import urllib.request
from collections.abc import Mapping
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers.image_utils import ChannelDimension

from .image_processing_pil_albef import array_to_eight_bit, channel_axis_format, pillow_to_rgb, upright

ImageSource: TypeAlias = str | os.PathLike | Image.Image | np.ndarray | Tensor | Mapping[str, Any]
# What is opened from files and addresses. Pillow knows more kinds, of which some start other programs (EPS does).
FORMATS = ["AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]
# An image of a few bytes may say that it is larger than memory; Pillow stops at twice what it warns of, at gigabytes.
MAX_PIXELS = 2**26
MAX_BYTES = 2**28  # of a URL
# What Pillow raises for files that are no image, are cut off or are too large to be meant seriously.
UNREADABLE = OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError


def is_image(value: object) -> bool:
    """Whether this is one image; an array or tensor of four dimensions is several."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim < 4
    return isinstance(value, str | os.PathLike | Image.Image | bytes | io.IOBase)  # those two are refused


def open_image(source: ImageSource, timeout: float = 30) -> Image.Image:
    """The image, RGB and upright; transparent pixels are laid on white.

    Args:
        source: a path, a URL, a Pillow image, the undecoded {"bytes", "path"} of a data set, or an array or tensor
            (height, width), (height, width, channels) or (channels, height, width) of any number type.
        timeout: seconds to wait for a URL.

    Raises FileNotFoundError: there is no such file. ConnectionError: the URL cannot be had. ValueError: no image.
    """
    if isinstance(source, np.ndarray | Tensor):
        return image_from_array(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        source = {"bytes": download(source, timeout), "path": source}
    return pillow_to_rgb(load_image(source))


def load_image(source: str | os.PathLike | Image.Image | Mapping[str, Any]) -> Image.Image:
    """A decoded and upright image of whatever mode it is stored in, as masks are read; of {"bytes", "path"} bytes count
    first. Errors: as of `open_image`."""
    if source is None:
        raise ValueError("there is no image: was the data set built without images? Build it with --images_dir.")
    name, file = f"this image ({type(source).__name__})", cast(Any, source)
    if isinstance(source, Mapping):
        data, path = source.get("bytes"), source.get("path")
        if data is None and path is None:
            raise ValueError('an undecoded image needs "bytes" or "path"')
        file, name = path if data is None else io.BytesIO(data), path or "this image"
    elif isinstance(source, str | os.PathLike):
        name = os.fspath(source)
    elif not isinstance(source, Image.Image):
        kind = f"{type(source).__name__} (PIL.Image.open reads files and io.BytesIO(bytes))"
        raise ValueError(f"an image must be a path, a URL, a Pillow image or an array, not {kind}")
    if isinstance(file, str | os.PathLike) and not os.path.isfile(file):  # a pipe would be waited for
        advice = ": of a data set no address is fetched, download it (--download_images)" if "://" in name else ""
        advice += "; leave out file://" if name.startswith("file:") else ""
        if len(name) > 500:
            name, advice = f"{name[:60]}…", ": this is no path; of images as text (base64) store the bytes or files"
        raise FileNotFoundError(f"there is no image {name}{advice}")
    try:
        return upright(file if isinstance(file, Image.Image) else open_file(file))
    except UnidentifiedImageError as error:  # its message says where in memory the bytes are
        message = "is not a readable image: it is of no kind that is known; get it again, or convert it to JPEG or PNG"
        raise ValueError(f"{name} {message}") from error
    except UNREADABLE as error:
        raise ValueError(f"{name} is not a readable image ({error}); fetch it again, or drop it") from error


def open_file(file: str | os.PathLike | BinaryIO) -> Image.Image:
    """An image of a known kind, not decoded yet; else one of `UNREADABLE`."""
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        image.close()
        raise Image.DecompressionBombError(f"{size} are more than the {MAX_PIXELS:,} that are read: make it smaller")
    return image


def download(url: str, timeout: float) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "albef-amc"})  # some servers turn away urllib's own
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            data = response.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: the URL is malformed
        raise ConnectionError(f"{url} could not be fetched: {error}") from error
    if len(data) > MAX_BYTES:
        raise ConnectionError(f"{url} has more than {MAX_BYTES:,} bytes: download it, and make it smaller")
    return data


def image_from_array(array: np.ndarray | Tensor) -> Image.Image:
    """Booleans, integers or floating point values, see `array_to_eight_bit`, as RGB."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"an array of the shape {tuple(array.shape)} is no image: pass (height, width, 3)")
    if array.ndim == 3 and channel_axis_format(array) == ChannelDimension.FIRST:
        array = array.transpose(1, 2, 0) if isinstance(array, np.ndarray) else array.permute(1, 2, 0)
    pixels = array_to_eight_bit(array, do_rescale=True).cpu().numpy()
    return pillow_to_rgb(Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))
