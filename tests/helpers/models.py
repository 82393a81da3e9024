"""Tiny models of every family, for images of 32 x 32 pixels in 4 x 4 patches and the phrases of `tiny_batch`."""

import tempfile
from dataclasses import replace
from functools import partial
from string import ascii_lowercase

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    ByT5Tokenizer,
    CLIPProcessor,
    CLIPTokenizer,
    PreTrainedModel,
    ProcessorMixin,
    SiglipProcessor,
    TrainingArguments,
)
from transformers.models.blip import BlipImageProcessorPil
from transformers.models.bridgetower import BridgeTowerImageProcessorPil
from transformers.models.clip import CLIPImageProcessorPil
from transformers.models.vilt import ViltImageProcessorPil

from modeling_albef_amc import AlbefConfig, tokenizer_from_texts
from modeling_albef_amc.families.decoder import DECODERS
from modeling_albef_amc.families.family import Size
from modeling_albef_amc.families.processors import LoadedProcessor
from modeling_albef_amc.families.registry import FAMILIES

# The weights are large: of smaller ones, second-order gradients would drown in rounding.
SIZE = Size(width=16, heads=2, image_size=32, patch_size=8, vocab_size=40, max_tokens=20, std=0.3, eos=2)
FOLDERS = tempfile.TemporaryDirectory()
TINY = {name: partial(family.small_model, SIZE) for name, family in FAMILIES.items() if name != "albef"}
IMAGE_PROCESSORS = {"vilt": ViltImageProcessorPil, "bridgetower": BridgeTowerImageProcessorPil}
IMAGE_PROCESSORS |= dict.fromkeys(("clip", "altclip", "chinese_clip"), CLIPImageProcessorPil)
# What transformers calls it, and called it before 5.22.
IS_NEW = hasattr(TrainingArguments, "activation_checkpointing")
CHECKPOINTING = f"{'activation' if IS_NEW else 'gradient'}_checkpointing"


def enable_checkpointing(model: PreTrainedModel, options: dict | None = None) -> None:
    getattr(model, f"{CHECKPOINTING}_enable")(options)


def tiny_family_processor(family: str, texts: list[str]) -> ProcessorMixin | LoadedProcessor:
    """As transformers makes it for the family, with a tokenizer of the words of these texts."""
    if family in DECODERS:  # whose models know how they are asked
        folder = tempfile.mkdtemp(dir=FOLDERS.name)
        tokenizer_from_texts(texts).save_pretrained(folder)
        BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
        return LoadedProcessor(folder)
    image_processor_class = IMAGE_PROCESSORS.get(family, BlipImageProcessorPil)
    size = {"size": {"height": 32, "width": 32}} if image_processor_class is BlipImageProcessorPil else {}
    processor_class = FAMILIES[family].load(FAMILIES[family].processor_class)
    return processor_class(image_processor_class(**size), tokenizer_from_texts(texts))


def own_clip_processor() -> CLIPProcessor:
    """With CLIP's own tokenizer, of single letters and without a mask token, and its default cut of the middle."""
    letters = [letter + end for letter in ascii_lowercase for end in ("", "</w>")]
    vocabulary = {token: number for number, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return CLIPProcessor(images, CLIPTokenizer(vocab=vocabulary, merges=[]))


def slow_siglip_processor() -> SiglipProcessor:
    """With a tokenizer of bytes, which is slow and without a mask token, as SigLIP's own that needs sentencepiece."""
    return SiglipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), ByT5Tokenizer())


def own_tokenizer_model(family: str) -> PreTrainedModel:
    """CLIP or SigLIP for the two processors above."""
    return FAMILIES[family].small_model(replace(SIZE, vocab_size=400, max_tokens=60, eos=1, pad=1))


def tiny_config(**overrides) -> AlbefConfig:
    """ALBEF with two image, two text and three fusion layers; images of 32 x 32 pixels, 4 x 4 patches."""
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=5, num_attention_heads=2, fusion_layer=2)
    settings = dict(
        vision_config=dict(**vision, image_size=32, patch_size=8, initializer_range=0.2),
        text_config=dict(
            **text,
            vocab_size=40,
            max_position_embeddings=20,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.2,
        ),
        projection_dim=8,
        queue_size=12,
        grounding_layer=3,
        initializer_range=0.2,
    )
    return AlbefConfig(**{**settings, **overrides})


def tiny_blip() -> BlipForImageTextRetrieval:
    """BLIP with two image and three text layers, for the same images and phrases."""
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, vocab_size=40)
    no_dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tokens = dict(bos_token_id=1, eos_token_id=2, sep_token_id=2, pad_token_id=0)
    config = BlipConfig(
        vision_config=dict(**vision, image_size=32, patch_size=8),
        text_config=dict(**text, **no_dropout, **tokens, encoder_hidden_size=16, max_position_embeddings=20),
        image_text_hidden_size=8,
    )
    model = BlipForImageTextRetrieval(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # initialised as it is, its second-order gradients would drown in rounding
                parameter.normal_(std=0.3)
    return model


def tiny_batch(
    num_phrases: int = 4, num_tokens: int = 6, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Random images with one phrase each; the first phrase is two tokens shorter than the others."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 40, (num_phrases, num_tokens), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, -2:] = 0
    return {
        "pixel_values": torch.randn(num_phrases, 3, 32, 32, generator=generator).to(dtype),
        "input_ids": input_ids * attention_mask,
        "attention_mask": attention_mask,
    }


def masked_batch(num_phrases: int = 4) -> dict[str, torch.Tensor]:
    """`tiny_batch` with two masked words in every phrase."""
    batch = tiny_batch(num_phrases)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, 1:3] = batch["input_ids"][:, 1:3]
    return {**batch, "mlm_input_ids": batch["input_ids"].where(labels == -100, 3), "mlm_labels": labels}


def check_by_finite_differences(model, loss_of, moved: set[str], step: float = 1e-6) -> None:
    """Autograd against central differences in float64, for every parameter, along a random direction.

    Args:
        loss_of: gives the loss of the model as it is now; it is told whether it is differentiated.
        moved: parts of names; at least one parameter of each must have a gradient that is not small.
    """
    loss_of(True).backward()
    steep = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        direction = F.normalize(torch.randn_like(parameter).flatten(), dim=0).view_as(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
            values.append(loss_of(False).item())
            with torch.no_grad():
                parameter -= sign * step * direction
        difference = (values[0] - values[1]) / (2 * step)
        slope = 0.0 if parameter.grad is None else (parameter.grad * direction).sum().item()
        assert slope == pytest.approx(difference, rel=1e-4, abs=1e-7), name
        if abs(slope) > 1e-4:
            steep |= {part for part in moved if part in name}
    assert steep == moved


def relative_difference(one: dict, other: dict) -> float:
    """The largest difference of a gradient, relative to the largest entry of that gradient or 1 % of all gradients'."""
    assert [n for n, g in one.items() if g is None] == [n for n, g in other.items() if g is None]
    pairs = [(one[name], other[name]) for name in one if one[name] is not None]
    floor = 0.01 * max(a.abs().max().item() for a, _ in pairs)
    return max((a - b).abs().max().item() / max(a.abs().max().item(), floor) for a, b in pairs)
