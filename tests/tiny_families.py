"""Tiny random models of every family, for images of 32 x 32 pixels in 4 x 4 patches and the phrases of `tiny_batch`."""

from functools import partial

from transformers import ProcessorMixin
from transformers.models.blip import BlipImageProcessorPil
from transformers.models.bridgetower import BridgeTowerImageProcessorPil
from transformers.models.clip import CLIPImageProcessorPil
from transformers.models.vilt import ViltImageProcessorPil

from modeling_albef_amc import tokenizer_from_texts
from modeling_albef_amc.families.family import Size
from modeling_albef_amc.families.registry import FAMILIES

# The weights are large: of smaller ones, second-order gradients would drown in rounding.
SIZE = Size(width=16, heads=2, image_size=32, patch_size=8, vocab_size=40, max_tokens=20, std=0.3, eos=2)
TINY = {name: partial(family.small_model, SIZE) for name, family in FAMILIES.items() if name != "albef"}
IMAGE_PROCESSORS = {"vilt": ViltImageProcessorPil, "bridgetower": BridgeTowerImageProcessorPil}
IMAGE_PROCESSORS |= dict.fromkeys(("clip", "altclip", "chinese_clip"), CLIPImageProcessorPil)


def tiny_family_processor(family: str, texts: list[str]) -> ProcessorMixin:
    """As transformers makes it for the family, with a tokenizer of the words of these texts."""
    image_processor_class = IMAGE_PROCESSORS.get(family, BlipImageProcessorPil)
    size = {"size": {"height": 32, "width": 32}} if image_processor_class is BlipImageProcessorPil else {}
    processor_class = FAMILIES[family].load(FAMILIES[family].processor_class)
    return processor_class(image_processor_class(**size), tokenizer_from_texts(texts))
