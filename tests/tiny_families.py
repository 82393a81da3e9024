"""Tiny random models of every family, for images of 32 x 32 pixels in 4 x 4 patches and the phrases of `tiny_batch`."""

from functools import partial

from transformers import (
    AltCLIPProcessor,
    Blip2Processor,
    BlipProcessor,
    BridgeTowerProcessor,
    ChineseCLIPProcessor,
    CLIPProcessor,
    ProcessorMixin,
    SiglipProcessor,
    ViltProcessor,
)
from transformers.models.blip import BlipImageProcessorPil
from transformers.models.bridgetower import BridgeTowerImageProcessorPil
from transformers.models.clip import CLIPImageProcessorPil
from transformers.models.vilt import ViltImageProcessorPil

from benchmarks.small_models import BUILDERS, Size, build
from modeling_albef_amc import tokenizer_from_texts

# The weights are large: of smaller ones, second-order gradients would drown in rounding.
SIZE = Size(width=16, heads=2, image_size=32, patch_size=8, vocab_size=40, max_tokens=20, std=0.3, eos=2)
TINY = {family: partial(build, family, SIZE) for family in BUILDERS}
PROCESSORS = {
    "blip": (BlipProcessor, BlipImageProcessorPil),
    "blip-2": (Blip2Processor, BlipImageProcessorPil),
    "vilt": (ViltProcessor, ViltImageProcessorPil),
    "bridgetower": (BridgeTowerProcessor, BridgeTowerImageProcessorPil),
    "clip": (CLIPProcessor, CLIPImageProcessorPil),
    "altclip": (AltCLIPProcessor, CLIPImageProcessorPil),
    "chinese_clip": (ChineseCLIPProcessor, CLIPImageProcessorPil),
    "siglip": (SiglipProcessor, BlipImageProcessorPil),
}


def tiny_family_processor(family: str, texts: list[str]) -> ProcessorMixin:
    """As transformers makes it for the family, with a tokenizer of the words of these texts."""
    processor_class, image_processor_class = PROCESSORS[family]
    size = {"size": {"height": 32, "width": 32}} if image_processor_class is BlipImageProcessorPil else {}
    return processor_class(image_processor_class(**size), tokenizer_from_texts(texts))
