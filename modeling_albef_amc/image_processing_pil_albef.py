"""Image processor of ALBEF: a bicubic resize to a square (no crop) and normalisation, with Pillow and NumPy alone."""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    infer_channel_dimension_format,
)

CHANNEL_COUNTS = (1, 3, 4)


def flatten_images(images: Any, name: str = "images") -> list[Any]:
    """Images, called `name` in errors, in any nesting of lists and tuples → a flat list of paths, URLs, Pillow images,
    and arrays or tensors (height, width), (height, width, channels) or (channels, height, width); batches of these
    (four dimensions) are taken apart."""
    if isinstance(images, str | os.PathLike):
        return [os.fspath(images)]
    is_array = isinstance(images, np.ndarray | Tensor)
    if isinstance(images, Image.Image) or (is_array and images.ndim in (2, 3)):
        return [images]
    if is_array and images.ndim != 4:
        raise ValueError(f"{name} must have 2 to 4 dimensions, got the shape {tuple(images.shape)}")
    if not is_array and not isinstance(images, list | tuple):
        raise ValueError(f"{name} must be a Pillow image, an array, a tensor, a path or a URL, not {type(images)}")
    if not len(images):
        empty = "no images were given" if name == "images" else f"{name} is an empty group: no image for its phrases"
        raise ValueError(f"{empty}; pass at least one")
    return [image for index, item in enumerate(images) for image in flatten_images(item, f"{name}[{index}]")]


def channel_axis_format(image: np.ndarray | Tensor) -> ChannelDimension:
    """Where the channels (1, 3 or 4) of an image of three dimensions are; where both ends could be, as in an array of
    one row, the library's habit decides: NumPy arrays have them last, tensors first."""
    if image.shape[0] in CHANNEL_COUNTS and image.shape[-1] in CHANNEL_COUNTS:
        return ChannelDimension.FIRST if isinstance(image, Tensor) else ChannelDimension.LAST
    return infer_channel_dimension_format(image, num_channels=CHANNEL_COUNTS)


def orientation_of(image: Image.Image) -> int:
    """EXIF's 1 to 8, or XMP's; 1 where neither can be read: viewers show such a photo as it is stored."""
    with suppress(Exception):  # Pillow trusts the numbers there, and fails by whatever they lead it to
        found = image.getexif().get(ExifTags.Base.Orientation)
        return int(found) if found in range(2, 9) else 1
    return 1


def upright(image: Image.Image) -> Image.Image:
    """A decoded copy of whatever mode the image is stored in, turned by its orientation."""
    if image.format == "TIFF":
        vars(image)["filename"] = ""  # else Pillow maps the file to memory, by the sides of the upright image
    image.load()
    orientation, image, exif = orientation_of(image), image.copy(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.info["exif"] = exif.tobytes()  # without odd tags of cameras, at which Pillow would fail
    ImageOps.exif_transpose(image, in_place=True)
    return image


def pillow_to_eight_bit(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey images to 8 bits, which Pillow would clip to white on their way to RGB."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.round(np.asarray(image).astype(np.float32) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"a Pillow image of mode {image.mode!r} has no known range: scale it to 8 bits (mode 'L')")
    return image


def pillow_to_rgb(image: Image.Image) -> Image.Image:
    """RGB of eight bits; transparent pixels are laid on white."""
    image = pillow_to_eight_bit(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def tensor_to_rgb(image: Tensor, axis: int) -> Tensor:
    """Grey is repeated along the axis of the channels; transparent pixels are laid on white."""
    if image.shape[axis] != 4:
        return image.repeat_interleave(3, axis) if image.shape[axis] == 1 else image
    white = 1 if image.is_floating_point() else 255
    colors, alpha = image.split((3, 1), axis)
    blended = (colors - white) * (alpha / white) + white
    return blended if white == 1 else blended.round().to(image.dtype)


def array_to_eight_bit(image: np.ndarray | Tensor, do_rescale: bool) -> Tensor:
    """Booleans, integers and floating point values → the uint8 values that `rescale_factor` 1/255 belongs to.

    Args:
        image: three dimensions. uint8 is left alone, bool becomes 0 and 255, uint16 is scaled by 1/257, other integers
            must lie in [0, 255]; floating point values too or, if all are below 3, in [0, 1], give or take 0.2 to clip.
        do_rescale: False when the caller has scaled the values already: floating point values are then kept.
    """
    if isinstance(image, np.ndarray):
        # torch takes neither negative strides (flipped arrays) nor read-only memory (the arrays of Pillow).
        image = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    image = image.detach()
    if image.numel() == 0:
        raise ValueError(f"an image has no pixels, its shape is {tuple(image.shape)}")
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    if image.dtype == torch.uint16:
        return (image.to(torch.float32) / 257).round().to(torch.uint8)
    dtype, image = image.dtype, image.to(torch.float32)
    if dtype.is_floating_point and not do_rescale:
        return image
    low, high = image.min().item(), image.max().item()
    # Beyond 0 and 1 because a bicubic resize overshoots at edges.
    white, beyond = (1, 0.2) if dtype.is_floating_point and high < 3 else (255, 0)
    if not (low >= -beyond and high <= white + beyond):
        raise ValueError(
            f"an image of type {dtype} has values from {low} to {high}: they must lie in [0, 255] or, for floating "
            "point, in [0, 1]: clip them, or pass do_rescale=False for images that are scaled already"
        )
    return (image.clamp(0, white) * (255 / white)).round().to(torch.uint8)


class AlbefImageInputs:
    """What both backends share: the defaults, and images in any nesting, Pillow mode and number type."""

    fetch_images: Callable[[str], Image.Image]  # of transformers' backends
    process_image: Callable[..., Any]
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"height": 256, "width": 256}
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def __init__(self, **kwargs):
        kwargs.pop("auto_map", None)  # says where a file's code is; whoever saves writes its own
        super().__init__(**kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        vars(self).pop("auto_map", None)
        return files

    def _prepare_image_like_inputs(
        self,
        images: ImageInput,
        *args,
        do_rescale: bool | None = None,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> list[Any]:
        kwargs.pop("expected_ndims", None)
        prepared = []
        for index, image in enumerate(flatten_images(images)):
            try:
                data_format = input_data_format
                if isinstance(image, str):
                    is_file = os.path.isfile(image)
                    image = pillow_to_rgb(upright(Image.open(image))) if is_file else self.fetch_images(image)
                if isinstance(image, Image.Image):
                    image = pillow_to_rgb(image) if do_convert_rgb else pillow_to_eight_bit(image)
                else:
                    if image.ndim == 2:
                        image, data_format = image[None], ChannelDimension.FIRST
                    data_format = data_format or channel_axis_format(image)
                    image = array_to_eight_bit(image, do_rescale)
                    if do_convert_rgb:
                        image = tensor_to_rgb(image, 0 if data_format == ChannelDimension.FIRST else -1)
                prepared.append(self.process_image(image, *args, input_data_format=data_format, **kwargs))
            except (ValueError, OSError) as error:  # Pillow reports truncated and unknown files as OSError.
                raise ValueError(f"image {index}: {error}") from error
        return prepared


class AlbefImageProcessorPil(AlbefImageInputs, PilBackend):
    """Pixel values for ALBEF: RGB, bicubic resize to `size` without a crop, scaled to [0, 1] and normalised.

    An EXIF orientation is applied to paths and URLs only. Transparent pixels are laid on white.

    Args: also of calls, which take `return_tensors` ("pt", "np") as well.
        do_resize, size, resample: {"height": pixels, "width": pixels} or one number for both; `PIL.Image.Resampling`.
        do_rescale, rescale_factor: values of 0 to 255 are multiplied by 1/255.
        do_normalize, image_mean, image_std: a number for each of R, G and B.
        do_convert_rgb: Pillow images of other modes become RGB.

    Returns: `pixel_values` (num_images, 3, height, width) float32; `flatten_images` says what an image is.

    >>> from PIL import Image
    >>> processor = AlbefImageProcessorPil(size={"height": 32, "width": 48})
    >>> processor(Image.new("RGB", (200, 100)), return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 3, 32, 48])
    """

    def process_image(self, image: ImageInput, *args, **kwargs) -> np.ndarray:
        return super().process_image(image.cpu() if isinstance(image, Tensor) else image, *args, **kwargs)
