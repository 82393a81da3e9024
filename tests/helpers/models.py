"""Tiny models of every family, for images of 32 x 32 pixels in 4 x 4 patches and the phrases of `tiny_batch`."""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from string import ascii_lowercase

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    ByT5Tokenizer,
    CLIPProcessor,
    CLIPTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Siglip2Tokenizer,
    SiglipProcessor,
    TrainingArguments,
    XLMRobertaTokenizer,
)
from transformers.models.blip import BlipImageProcessorPil
from transformers.models.bridgetower import BridgeTowerImageProcessorPil
from transformers.models.clip import CLIPImageProcessorPil
from transformers.models.flava import FlavaImageProcessorPil
from transformers.models.owlvit import OwlViTImageProcessorPil
from transformers.models.siglip2 import Siglip2ImageProcessorPil
from transformers.models.vilt import ViltImageProcessorPil
from transformers.models.vit import ViTImageProcessorPil

from modeling_albef_amc import AlbefConfig, tokenizer_from_texts
from modeling_albef_amc.families.decoders import DECODERS
from modeling_albef_amc.families.family import Size
from modeling_albef_amc.families.processors import LoadedProcessor
from modeling_albef_amc.families.registry import FAMILIES

# The weights are large: of smaller ones, second-order gradients would drown in rounding.
SIZE = Size(width=16, heads=2, image_size=32, patch_size=8, vocab_size=40, max_tokens=20, std=0.3, eos=2)
FOLDERS = tempfile.TemporaryDirectory()
TINY = {name: partial(family.small_model, SIZE) for name, family in FAMILIES.items() if name != "albef"}
# As the families' own, for images of 32 x 32 pixels where they say a size.
SQUARE = {"size": {"height": 32, "width": 32}}
IMAGE_PROCESSORS = {
    "vilt": ViltImageProcessorPil,
    "bridgetower": BridgeTowerImageProcessorPil,
    "flava": partial(FlavaImageProcessorPil, **SQUARE, crop_size=SQUARE["size"]),
    "clipseg": partial(ViTImageProcessorPil, **SQUARE),
    "owlvit": partial(OwlViTImageProcessorPil, **SQUARE),
    "siglip2": partial(Siglip2ImageProcessorPil, patch_size=8, max_num_patches=16),
    **dict.fromkeys(("clip", "altclip", "chinese_clip", "metaclip_2", "aimv2"), CLIPImageProcessorPil),
}
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
        BlipImageProcessorPil(**SQUARE).save_pretrained(folder)
        Path(folder, "config.json").write_text(f'{{"model_type": "{family}"}}')  # by which some tokenizers are read
        return LoadedProcessor(folder)
    tokenizer = siglip_2_tokenizer(texts) if family == "siglip2" else tokenizer_from_texts(texts)
    if family in ("metaclip_2", "aimv2"):  # they read the place of the end token
        ends = TemplateProcessing("$A [CLS]", special_tokens=[("[CLS]", SIZE.eos)])
        tokenizer.backend_tokenizer.post_processor = ends
    processor_class = FAMILIES[family].load(FAMILIES[family].processor_class)
    return processor_class(IMAGE_PROCESSORS.get(family, partial(BlipImageProcessorPil, **SQUARE))(), tokenizer)


def siglip_2_tokenizer(texts: list[str]) -> Siglip2Tokenizer:
    """As checkpoints come with it; transformers loads no other for naflex. A word before a blank is one token."""
    words = sorted({f"{word}▁" for text in texts for word in text.split()})
    merges = dict.fromkeys((word[at], word[at + 1 :]) for word in words for at in range(len(word) - 2, -1, -1))
    special = "<pad>", "<eos>", "<bos>", "<unk>", "<mask>"
    pieces = dict.fromkeys([*special, *sorted({*"".join(words)}), *words, *map("".join, merges)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    options = dict(padding_side="right", model_input_names=["input_ids"], add_bos_token=False, add_eos_token=True)
    return Siglip2Tokenizer(vocab=vocabulary, merges=list(merges), **options)


def own_clip_processor() -> CLIPProcessor:
    """With CLIP's own tokenizer, of single letters and without a mask token, and its default cut of the middle."""
    letters = [letter + end for letter in ascii_lowercase for end in ("", "</w>")]
    vocabulary = {token: number for number, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return CLIPProcessor(images, CLIPTokenizer(vocab=vocabulary, merges=[]))


def own_tokenizer(family: str, words: list[str]) -> PreTrainedTokenizerBase:
    """Of the class, and with the special tokens, that checkpoints of these families come with."""
    if family in ("siglip", "siglip2"):
        return siglip_2_tokenizer(words)
    if family == "metaclip_2":
        pieces = ["<s>", "<pad>", "</s>", "<unk>", *(f"▁{word}" for word in words), "<mask>"]
        return XLMRobertaTokenizer(vocab=[(piece, -float(number)) for number, piece in enumerate(pieces)])
    if family == "flava":
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
    letters = [letter + end for letter in ascii_lowercase for end in ("", "</w>")]
    pieces = ["!", *letters, "<|startoftext|>", "<|endoftext|>"]  # OWL-ViT reads the token of the highest number
    return CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])


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
    """Random images with one phrase each, with an end token; the first phrase is two tokens shorter than the others."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 40, (num_phrases, num_tokens), generator=generator)
    input_ids[:, -1], input_ids[0, -3] = SIZE.eos, SIZE.eos
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
    """Autograd against central differences in float64, along directions in which every parameter has its share.

    Each is moved along its gradient and as far in a random direction, so that the loss changes by as much for every
    one; those almost without a gradient are moved together, and the loss hardly changes.

    Args:
        loss_of: gives the loss of the model as it is now; it is told whether it is differentiated.
        moved: parts of names; at least one parameter of each must have a gradient that is not small.
    """
    loss_of(True).backward()
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    norms = {name: 0.0 if each.grad is None else each.grad.norm().item() for name, each in parameters.items()}
    floor = 1e-5 * max(norms.values())
    is_steep = {name: norm > floor for name, norm in norms.items()}
    for names in ([name for name in norms if is_steep[name]], [name for name in norms if not is_steep[name]]):
        slope, length, directions = 0.0, 1.0, {}
        for name in names:
            gradient, direction = parameters[name].grad, torch.randn_like(parameters[name])
            direction /= direction.norm()
            if is_steep[name]:
                direction = (gradient / norms[name] + direction) / norms[name]
            slope += 0.0 if gradient is None else (gradient * direction).sum().item()
            directions[name], length = direction, max(length, direction.norm().item())
        values = []
        for change in (step / length, -2 * step / length, step / length):
            with torch.no_grad():
                for name, direction in directions.items():
                    parameters[name] += change * direction
            values.append(loss_of(False).item())
        assert slope == pytest.approx((values[0] - values[1]) * length / (2 * step), rel=1e-5, abs=1e-6)
    assert {part for part in moved for name in norms if part in name and norms[name] > 1e-4} == moved


def relative_difference(one: dict, other: dict) -> float:
    """The largest difference of a gradient, relative to the largest entry of that gradient or 1 % of all gradients'."""
    assert [n for n, g in one.items() if g is None] == [n for n, g in other.items() if g is None]
    pairs = [(one[name], other[name]) for name in one if one[name] is not None]
    floor = 0.01 * max(a.abs().max().item() for a, _ in pairs)
    return max((a - b).abs().max().item() / max(a.abs().max().item(), floor) for a, b in pairs)
