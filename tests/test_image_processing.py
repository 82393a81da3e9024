"""The image processors: numbers against Pillow and NumPy directly, every kind of input, every refusal."""

import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from modeling_albef_amc.image_processing_albef import AlbefImageProcessor
from modeling_albef_amc.image_processing_pil_albef import AlbefImageProcessorPil
from tests.helpers.data import BROKEN_EXIF

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture
def processor():
    return AlbefImageProcessorPil(size={"height": 24, "width": 32})


@pytest.fixture
def rgb():
    """(13, 19, 3) uint8, neither side a number of channels."""
    return np.random.default_rng(0).integers(0, 256, (13, 19, 3), dtype=np.uint8)


def expected_pixels(rgb: np.ndarray, height: int = 24, width: int = 32) -> np.ndarray:
    resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC)
    return ((np.asarray(resized).astype(np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


def pixels(processor, images, **kwargs) -> torch.Tensor:
    return processor(images, return_tensors="pt", **kwargs)["pixel_values"]


def test_defaults_are_those_of_the_released_model():
    processor = AlbefImageProcessorPil()
    assert (processor.size["height"], processor.size["width"]) == (256, 256)
    assert processor.resample == Image.Resampling.BICUBIC
    assert processor.image_mean == pytest.approx(tuple(MEAN))
    assert processor.image_std == pytest.approx(tuple(STD))
    assert pixels(processor, Image.new("RGB", (3, 500))).shape == (1, 3, 256, 256)
    assert AlbefImageProcessorPil(size=384).size["width"] == 384


def test_pixel_values_are_pillow_bicubic_then_float64_arithmetic(processor, rgb):
    result = pixels(processor, Image.fromarray(rgb))
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result[0].numpy(), expected_pixels(rgb), atol=2e-6)


@pytest.mark.parametrize(
    "convert",
    [
        lambda rgb: rgb,
        lambda rgb: rgb.transpose(2, 0, 1),
        lambda rgb: rgb.astype(np.int64),
        lambda rgb: rgb.astype(np.float32),
        lambda rgb: rgb.astype(np.float64) / 255,
        lambda rgb: rgb.astype(np.uint16) * 257,
        lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1),
        lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1).float().div(255).requires_grad_(),
        lambda rgb: np.ascontiguousarray(rgb[:, ::-1])[:, ::-1],
        lambda rgb: Image.fromarray(np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])),
        lambda rgb: [[Image.fromarray(rgb)]],
        lambda rgb: rgb[None],
    ],
    ids=["hwc", "chw", "int64", "float", "unit", "uint16", "tensor", "unit_tensor", "flipped", "rgba", "list", "batch"],
)
def test_every_container_and_number_type_gives_the_same(processor, rgb, convert):
    np.testing.assert_allclose(pixels(processor, convert(rgb))[0].numpy(), expected_pixels(rgb), atol=2e-6)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LA"])
def test_pillow_modes_are_converted_by_pillow(processor, rgb, mode):
    image = Image.fromarray(rgb).convert(mode)
    expected = expected_pixels(np.asarray(image.convert("RGB")))
    np.testing.assert_allclose(pixels(processor, image)[0].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("width", [19, 4, 3, 1])
def test_grey_arrays_and_tensors_of_two_dimensions(processor, width):
    grey = np.random.default_rng(1).integers(0, 256, (13, width), dtype=np.uint8)
    expected = expected_pixels(np.dstack([grey] * 3))
    for image in (grey, torch.from_numpy(grey), [grey, grey]):
        np.testing.assert_allclose(pixels(processor, image)[0].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("RGB", (5, 7), (255, 0, 51)), (1, 0, 0.2)),
        (Image.new("RGBA", (5, 6), (255, 0, 0, 0)), (1, 1, 1)),  # transparent
        (Image.fromarray(np.full((5, 6), 257 * 51, np.uint16)), (0.2, 0.2, 0.2)),  # scaled, not clipped
        (np.ones((13, 19), bool), (1, 1, 1)),
        (np.full((5, 6, 3), (1.0001, -0.1, 0.2)), (1, 0, 0.2)),  # of a bicubic resize: no values of 0 to 255
        (torch.tensor([1.19, -0.19, 0.4]).expand(5, 6, 3), (1, 0, 0.4)),
    ],
)
def test_plain_colours_by_hand(processor, image, colour):
    result = pixels(processor, [image, np.zeros((3, 4, 3), np.uint8)])
    for place, value in enumerate((colour, (0, 0, 0))):
        expected = np.broadcast_to(((np.array(value) - MEAN) / STD)[:, None, None], (3, 24, 32))
        np.testing.assert_allclose(result[place].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1), (3, 3), (4, 3)])
def test_thin_and_tiny_images_keep_each_librarys_channel_order(processor, size):
    width, height = size
    rgb = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = expected_pixels(rgb)
    for image in (rgb, Image.fromarray(rgb), torch.from_numpy(rgb).permute(2, 0, 1)):
        np.testing.assert_allclose(pixels(processor, image)[0].numpy(), expected, atol=2e-6)


def test_exif_orientation_is_not_applied_to_pillow_images(processor, rgb, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        np.testing.assert_allclose(pixels(processor, image)[0].numpy(), expected_pixels(rgb), atol=2e-6)
    turned = expected_pixels(np.ascontiguousarray(np.rot90(rgb, -1)))
    for path in (tmp_path / "turned.png", str(tmp_path / "turned.png")):
        np.testing.assert_allclose(pixels(processor, path)[0].numpy(), turned, atol=2e-6)


def test_files_are_read_as_images_are_opened_elsewhere(processor, rgb, tmp_path):
    for exif in BROKEN_EXIF:
        Image.fromarray(rgb).save(tmp_path / "broken.png", exif=exif)
        np.testing.assert_allclose(
            pixels(processor, tmp_path / "broken.png")[0].numpy(), expected_pixels(rgb), atol=2e-6
        )
    Image.new("RGBA", (9, 9)).save(tmp_path / "clear.png")
    np.testing.assert_allclose(
        pixels(processor, tmp_path / "clear.png")[0, :, 0, 0].numpy(), (1 - MEAN) / STD, atol=2e-6
    )


def test_scaled_values_are_kept_without_do_rescale(processor, rgb):
    scaled = torch.from_numpy(rgb).permute(2, 0, 1) / 255
    result = pixels(processor, scaled, do_rescale=False, do_resize=False)
    np.testing.assert_allclose(result[0].numpy(), expected_pixels(rgb, 13, 19), atol=2e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images were given"),
        ([[], [np.zeros((5, 5, 3))]], r"images\[0\] is an empty group"),
        ([[np.zeros((5, 5, 3))], torch.zeros(0, 3, 5, 5)], r"images\[1\] is an empty group"),
        (np.zeros((0, 5, 5, 3)), "no images were given"),
        (None, "images must be a Pillow image"),
        ([None], r"images\[0\] must be a Pillow image"),
        ([[np.zeros((5, 5, 3))], [np.zeros((5, 5, 3)), 7]], r"images\[1\]\[1\] must be a Pillow image"),
        ([np.zeros((5, 5, 3), np.uint8), np.full((5, 5, 3), 300)], "image 1: .* values from 300.0 to 300.0"),
        ([np.full((5, 5, 3), -0.5)], "image 0: .* values from -0.5"),
        ([np.full((5, 5, 3), 1.5)], r"image 0: .* values from 1\.5 .* \[0, 1\]: clip them"),
        ([np.full((5, 5, 3), (9.0, 0, -0.1))], "image 0: .* values from -0.1"),
        ([np.full((5, 5, 3), np.nan)], "image 0: .* values from nan"),
        ([np.zeros((0, 5, 3), np.uint8)], "image 0: .* no pixels"),
        ([np.zeros((5, 5, 2), np.uint8)], "image 0: Unable to infer channel dimension"),
        ([np.zeros(5)], r"images\[0\] must have 2 to 4 dimensions"),
        ([Image.new("F", (5, 5))], "image 0: .* mode 'F'"),
        ([Image.new("I", (5, 5))], "image 0: .* mode 'I'"),
        (["no/such/file.jpg"], "image 0: .*no/such/file.jpg"),
    ],
)
def test_what_is_refused(processor, images, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        processor(images)


def test_a_truncated_file_is_refused_with_its_index(processor, rgb, tmp_path):
    Image.fromarray(np.tile(rgb, (20, 20, 1))).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:9000])
    with pytest.raises(ValueError, match=r"image 1: .*truncated"):
        processor([rgb, Image.open(tmp_path / "half.jpg")])


def test_saving_and_loading_change_nothing(tmp_path):
    saved = AlbefImageProcessorPil(size={"height": 40, "width": 48})
    before = saved.to_dict()
    saved.save_pretrained(tmp_path, False)
    assert saved.to_dict() == before == AlbefImageProcessorPil.from_pretrained(tmp_path).to_dict()
    assert pixels(AlbefImageProcessorPil.from_pretrained(tmp_path), Image.new("RGB", (3, 5))).shape == (1, 3, 40, 48)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["auto_map"] == {"AutoImageProcessor": "image_processing_pil_albef.AlbefImageProcessorPil"}
    assert list(inspect.signature(saved.save_pretrained).parameters) == ["save_directory", "push_to_hub", "kwargs"]


@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
def test_each_twin_loads_what_the_other_saved(tmp_path):
    for saves, loads in ((AlbefImageProcessor, AlbefImageProcessorPil), (AlbefImageProcessorPil, AlbefImageProcessor)):
        saved = saves(size={"height": 40, "width": 48})
        saved.save_pretrained(tmp_path)
        ours, theirs = saved.to_dict(), loads.from_pretrained(tmp_path).to_dict()
        assert ours.pop("image_processor_type") and theirs.pop("image_processor_type")
        assert {name: ours[name] for name in set(ours) & set(theirs)} == {n: theirs[n] for n in set(ours) & set(theirs)}


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_the_torchvision_twin_says_what_is_missing():
    with pytest.raises(ImportError, match=r"(?i)torchvision"):
        AlbefImageProcessor()


@pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
@pytest.mark.parametrize(
    "convert", [Image.fromarray, np.asarray, lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1) / 255]
)
def test_the_torchvision_twin_agrees_up_to_rounding(processor, rgb, convert):
    twin = AlbefImageProcessor(size={"height": 24, "width": 32})
    difference = pixels(processor, convert(rgb)) - pixels(twin, convert(rgb))
    assert difference.abs().max() < 3 / 255 / STD.min()
