"""What the processors of all families must do for grounding: show the whole image, and place phrases alike."""

import math
from typing import Any

import torch
from transformers import PreTrainedConfig, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.clip import CLIPImageProcessorPil

from ..processing_albef import TOKENIZED, Span, span_tokens
from ..tokenization_albef import span_characters
from .family import vision_config

SIDES = "height", "width"
# What of an image processor is about neither size nor cutting.
KEPT = "image_mean", "image_std", "resample", "do_rescale", "rescale_factor", "do_normalize"


class Squares(CLIPImageProcessorPil):
    """Images of one size, in place of patches in the shape of each as SigLIP 2's processor (naflex) makes them.

    What is saved is that processor, `own`, with as many patches.
    """

    def __init__(self, own: BaseImageProcessor):
        self.own, self.valid_kwargs = own, own.valid_kwargs  # the processor around it passes some of SigLIP 2's own
        super().__init__(**{name: getattr(own, name) for name in KEPT})
        self.size = dict.fromkeys(SIDES, math.isqrt(own.max_num_patches) * own.patch_size)

    def to_dict(self) -> dict[str, Any]:
        num_patches = math.prod(self.size[side] // self.own.patch_size for side in SIDES)
        return self.own.to_dict() | {"max_num_patches": num_patches}


def whole_images(processor: ProcessorMixin, config: PreTrainedConfig, image_size: int | None = None) -> ProcessorMixin:
    """Sets a processor to resize images to one size, all of them and nothing but them; it is changed in place.

    CLIP and its like cut out the middle of a image; ViLT and BridgeTower fill it up to a shape of the batch. Heatmaps
    would lie beside what they show. SigLIP 2's (naflex) has a shape for every image, which no batch could have.

    Args:
        config: of the model; SigLIP's take over the tokenizer's `pad_token_id`. image_size: side in pixels; default:
            the processor's own height and width, or those of the configuration.

    Raises:
        ValueError: the size is no whole number of patches: the model would cut off what is left over.
    """
    images, vision = processor.image_processor, vision_config(config)
    if type(images).__name__.startswith("Siglip2ImageProcessor"):
        images = processor.image_processor = Squares(images)
    own, patch_size = dict(images.size), getattr(vision, "patch_size", 1)
    trained = getattr(vision, "image_size", None)
    trained = [trained] * 2 if trained is None or isinstance(trained, int) else list(trained)
    height, width = [image_size] * 2 if image_size else (own.get(name) or side for name, side in zip(SIDES, trained))
    if [height, width] == trained:  # SigLIP was trained on 27 x 27 patches of 14 pixels, cut out of 384 x 384
        height, width = (side // patch_size * patch_size for side in trained)
    if height % patch_size or width % patch_size:
        raise ValueError(f"Images of {height} x {width} pixels are not a whole number of patches of {patch_size}.")
    size = {"height": height, "width": width}
    if getattr(images, "size_divisor", None) is not None:
        # Theirs can make no squares.
        images = processor.image_processor = CLIPImageProcessorPil(**{name: getattr(images, name) for name in KEPT})
    images.size = size
    if config.model_type == "bridgetower" or getattr(images, "crop_size", None) is not None:
        # BridgeTower's processor asks for a cut in any case: one of all that there is.
        images.do_center_crop, images.crop_size = False, size
    if config.model_type in ("siglip", "siglip2"):  # its pass fills phrases up; some configurations name another token
        config.text_config.pad_token_id = processor.tokenizer.pad_token_id
    return processor


def cleans_text(processor: ProcessorMixin) -> bool:
    """Whether it is an `AlbefProcessor`, be it of this package or of a checkpoint's own code."""
    return hasattr(processor, "max_words")


def tokenize_phrases(
    processor: ProcessorMixin, phrases: list[str], max_length: int | None = None, spans: list[Span] | None = None
) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` (num_phrases, num_tokens) of any processor; `max_length` cuts phrases.

    With the `spans` of words that are to be grounded, as `AlbefProcessor` takes them, `heatmap_token_mask` too.
    """
    options = TOKENIZED if max_length is None else {**TOKENIZED, "truncation": True, "max_length": max_length}
    if cleans_text(processor):
        return dict(processor(text=phrases, phrase_spans=spans, **options))
    if spans is not None and not processor.tokenizer.is_fast:
        name = type(processor.tokenizer).__name__
        raise ValueError(f"{name} does not tell which tokens are words of a span: pass phrases without their captions")
    # Other processors hand the text on to the tokenizer, some with places for an image.
    encoded = dict(processor.tokenizer(phrases, return_offsets_mapping=spans is not None, **options))
    if processor.tokenizer.is_fast:  # else cutting and padding would be saved with it, and come back by themselves
        processor.tokenizer.backend_tokenizer.no_truncation()
        processor.tokenizer.backend_tokenizer.no_padding()
    if spans is not None:
        offsets, attention_mask = encoded.pop("offset_mapping").tolist(), encoded["attention_mask"].tolist()
        chosen = span_tokens(offsets, attention_mask, phrases, spans, span_characters)
        encoded["heatmap_token_mask"] = torch.tensor(chosen)
    return encoded
