"""What the processors of all families must do for grounding: show the whole image, and place phrases alike."""

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BaseImageProcessor, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.clip import CLIPImageProcessorPil
from transformers.utils import PushToHubMixin, cached_file

from ..processing_albef import TOKENIZED, Span, span_tokens
from ..tokenization_albef import span_characters
from .decoder import IMAGE_SIZE
from .decoders import DECODERS
from .family import vision_config
from .prompts import Prompt

SIDES = "height", "width"
# Of a processor, apart from its tokenizer.
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
# None instead of an error where there is no such file.
QUIETLY = {f"_raise_exceptions_for_{kind}": False for kind in ("gated_repo", "missing_entries", "connection_errors")}
# What of an image processor is about neither size nor cutting.
KEPT = "image_mean", "image_std", "resample", "do_rescale", "rescale_factor", "do_normalize"


class GenerativeProcessor:
    """The processor of a generative model, asked for whole images, of one size, and for phrases without a prompt.

    Args:
        processor: people's own, which is what is saved. config: of the model; how it is asked is written into it, where
            that is not known yet. image_size: side in pixels; default: as the model was trained.
    """

    def __init__(
        self, processor: "ProcessorMixin | LoadedProcessor", config: PreTrainedConfig, image_size: int | None = None
    ):
        self.processor, self.tokenizer = processor, processor.tokenizer
        if self.tokenizer.pad_token is None:  # of a copy: people's own is what is saved
            self.tokenizer = copy.deepcopy(self.tokenizer)
            self.tokenizer.pad_token = self.tokenizer.eos_token
        family, grounding = DECODERS[config.model_type], vars(config).get("grounding", {})
        trained = getattr(config.vision_config, "image_size", None) or fixed_side(processor.image_processor)
        trained = trained if isinstance(trained, int) else trained[0]
        side, cell = image_size or grounding.get("image_size", trained), family.cell(config)
        if side != trained and not family.any_size and side != trained // cell * cell:
            raise ValueError(
                f"{family.title} takes images of the size that it was trained with, {trained} x {trained} pixels: "
                f"leave out image_size {side}."
            )
        if side == trained:
            side = side // cell * cell
        if side % cell:
            raise ValueError(f"Images of {side} x {side} pixels are not a whole number of cells of {cell}.")
        template = getattr(processor, "chat_template", None) or self.tokenizer.chat_template
        if "prompt" not in grounding:
            if isinstance(template, dict):  # of several, transformers takes this one, too
                if "default" not in template:
                    raise ValueError(f"Of the chat templates {', '.join(template)} none is called default: set it.")
                template = template["default"]
            family.make_prompt(config, self.tokenizer, template).keep(config)
        config.grounding = {**config.grounding, "image_size": side}
        self.lead = Prompt.of(config).lead
        options = {name: getattr(processor.image_processor, name) for name in KEPT}
        size = {"height": side, "width": side}
        self.image_processor = CLIPImageProcessorPil(**options, size=size, crop_size=size, do_center_crop=False)

    def __call__(self, images: Any, **options: Any) -> Mapping[str, torch.Tensor]:
        return self.image_processor(images, **options)

    def save_pretrained(self, folder: str, push_to_hub: bool = False, **options: Any) -> None:
        self.processor.save_pretrained(folder, push_to_hub, **options)

    def push_to_hub(self, *args: Any, **options: Any) -> Any:
        return self.processor.push_to_hub(*args, **options)


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Of what reads the phrases."""
    return getattr(config, "qformer_config", None) or config.get_text_config()


def max_tokens(config: PreTrainedConfig) -> int:
    """Word pieces of the longest phrase that a model of this configuration reads."""
    text = text_config(config)
    # The positions of a Roberta, as these two have one, begin behind that of the padding; a text that is decoded by
    # itself begins with one token more.
    is_roberta = text.model_type in ("altclip_text_model", "bridgetower_text_model")
    return text.max_position_embeddings - (text.pad_token_id + 1 if is_roberta else int(text.is_encoder_decoder))


def num_known_tokens(config: PreTrainedConfig) -> int | None:
    """How many tokens the model has embeddings of, where its configuration says so."""
    return getattr(text_config(config), "vocab_size", None)


def check_tokens(input_ids: torch.Tensor, num_known: int | None) -> None:
    """ValueError: the tokenizer has tokens that the model does not know."""
    most = int(input_ids.max())
    if num_known is not None and most >= num_known:
        raise ValueError(
            f"the tokenizer has a token {most}, the model {num_known} tokens only: take the tokenizer that the model "
            "was trained with, or train the model with embeddings of the new tokens (resize_token_embeddings)"
        )


def fixed_side(images: BaseImageProcessor) -> int:
    """Of square images, in pixels, where a processor asks for them or for so many pixels (Qwen's); or the default."""
    size = dict(images.size)
    if size.get("height") is not None and size["height"] == size.get("width"):
        return size["height"]
    fewest, most = (size.get(name) for name in ("shortest_edge", "longest_edge"))
    return math.isqrt(most) if most is not None and fewest == most else IMAGE_SIZE


class LoadedProcessor(PushToHubMixin):
    """Tokenizer, image processor and chat template of a folder or Hub id; its files are saved as they are.

    The processors of several families cannot be made without torchvision, which nothing here needs.
    """

    def __init__(self, path: str, **hub: Any):
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **hub)
        self.image_processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False, backend="pil", **hub)
        found = {name: cached_file(path, name, **hub, **QUIETLY) for name in PROCESSOR_FILES}
        self.files = {name: Path(file).read_bytes() for name, file in found.items() if file is not None}
        # Of a file of its own the tokenizer knows.
        older = [json.loads(self.files.get(name, "{}")) for name in ("processor_config.json", "chat_template.json")]
        self.chat_template = next((each["chat_template"] for each in older if "chat_template" in each), None)

    def save_pretrained(
        self, folder: str, push_to_hub: bool = False, repo_id: str | None = None, **options: Any
    ) -> None:
        """As of transformers' processors. Options: of `push_to_hub`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        for name, content in self.files.items():
            Path(folder, name).write_bytes(content)
        if push_to_hub:
            self.push_to_hub(repo_id or Path(folder).name, **options)


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


def whole_images(processor: Any, config: PreTrainedConfig, image_size: int | None = None) -> Any:
    """A processor that resizes images to one size, all of them and nothing but them; the one given stays as it is.

    It is a copy, and of generative models a `GenerativeProcessor`. CLIP and its like cut out the middle of an image;
    ViLT and BridgeTower fill it up to a shape of the batch. Heatmaps would lie beside what they show. SigLIP 2's
    (naflex) has a shape for every image, which no batch could have.

    Args:
        config: of the model; SigLIP's take over the tokenizer's `pad_token_id`. image_size: side in pixels; default:
            the processor's own height and width, or those of the configuration.

    Raises:
        ValueError: the size is no whole number of patches: the model would cut off what is left over.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}.")
    if config.model_type in DECODERS:
        own = processor.processor if isinstance(processor, GenerativeProcessor) else processor
        return GenerativeProcessor(own, config, image_size)
    processor, vision = copy.copy(processor), vision_config(config)
    images = processor.image_processor = copy.copy(processor.image_processor)
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


def cleans_text(processor: Any) -> bool:
    """Whether it is an `AlbefProcessor`, be it of this package or of a checkpoint's own code."""
    return hasattr(processor, "max_words")


def tokenize_phrases(
    processor: Any, phrases: list[str], max_length: int | None = None, spans: list[Span] | None = None
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
    lead, texts = "", phrases
    if isinstance(processor, GenerativeProcessor):  # a part of a prompt
        lead, options = processor.lead, {**options, "add_special_tokens": False}
        texts = [lead + phrase for phrase in phrases]
    # Other processors hand the text on to the tokenizer, some with places for an image.
    encoded = dict(processor.tokenizer(texts, return_offsets_mapping=spans is not None, **options))
    if processor.tokenizer.is_fast:  # else cutting and padding would be saved with it, and come back by themselves
        processor.tokenizer.backend_tokenizer.no_truncation()
        processor.tokenizer.backend_tokenizer.no_padding()
    if spans is not None:
        offsets = (encoded.pop("offset_mapping") - len(lead)).tolist()
        chosen = span_tokens(offsets, encoded["attention_mask"].tolist(), phrases, spans, span_characters)
        encoded["heatmap_token_mask"] = torch.tensor(chosen)
    return encoded
