"""Generative models: their scores against their own forward pass, processor and chat template; traps; prompts."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from modeling_albef_amc import AutoGrounder
from modeling_albef_amc.families.decoder import DECODERS
from modeling_albef_amc.families.prompts import ANSWER, QUESTION, REQUEST, SAMPLES, Prompt
from tests.helpers.models import SIZE

TEXTS = [*SAMPLES, QUESTION.format(""), REQUEST, ANSWER.format(""), "Yes no yes No user: assistant model answer en"]
PHRASES = ["a red dog", "the man on the left of two cats", "dogs"]
every_decoder = pytest.mark.parametrize("name", DECODERS)


def bytes_tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    """Of Qwen's kind: a word with its space before it is another token than without."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<pad>", additional_special_tokens=special
    )


def pieces_tokenizer(special: list[str], bos: str = "<s>", dummy_space: bool = True) -> PreTrainedTokenizerFast:
    """Of Llama's kind: a text begins with a space that nobody wrote, and with a token of its own; or of Gemma's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    if dummy_space:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokens = [bos, "<unk>", "<pad>", *special]
    texts = [f"▁{text}\n".replace(" ", "▁") for text in TEXTS * 3]
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=tokens))
    tokenizer.post_processor = TemplateProcessing(f"{bos} $A", special_tokens=[(bos, 0)])
    names = dict(bos_token=bos, unk_token="<unk>", pad_token="<pad>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=special, **names)


@dataclass
class Own:
    """What a family has of its own.

    Args:
        images: module and class of its image processor. settings: of that, for photos of 32 x 32 pixels.
        chat: its prompt; {} is what is said. tokens: special ones, beside the image token, which is `image`.
    """

    images: str
    settings: dict[str, Any]
    chat: str | None
    tokens: dict[str, str] = field(default_factory=dict)
    image: str = "<image>"
    tokenizer: Callable = bytes_tokenizer
    options: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)


SQUARE = {"height": 32, "width": 32}
CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QWEN = Own(
    "qwen2_vl.Qwen2VLImageProcessorPil",
    dict(size={"shortest_edge": 1024, "longest_edge": 1024}, patch_size=4, merge_size=2),
    CHATML.format("<|vision_start|><|image_pad|><|vision_end|>{}"),
    dict(start="<|vision_start|>", end="<|vision_end|>", video="<|video_pad|>", user="<|im_start|>"),
    "<|image_pad|>",
)
FRAMED = Own(
    "idefics3.Idefics3ImageProcessorPil",
    dict(size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False),
    "<|im_start|>User:<image>{}<end_of_utterance>\nAssistant:",
    {name: name for name in ("<|im_start|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")},
    options=dict(image_seq_len=16),
)
LLAVA = Own(
    "llava.LlavaImageProcessorPil",
    dict(size={"shortest_edge": 32}, crop_size=SQUARE),
    "USER: <image>\n{} ASSISTANT:",
    tokenizer=pieces_tokenizer,
    options=dict(patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1),
)
OWN = {
    "llava": LLAVA,
    "smolvlm": replace(FRAMED, images="smolvlm.SmolVLMImageProcessorPil"),
    "idefics3": FRAMED,
    "internvl": Own(
        "got_ocr2.GotOcr2ImageProcessorPil",
        dict(size=SQUARE, crop_to_patches=False),
        CHATML.format("<IMG_CONTEXT>\n{}"),
        dict(start_image_token="<img>", end_image_token="</img>", video_token="<video>", user="<|im_start|>"),
        "<IMG_CONTEXT>",
        options=dict(image_seq_length=16),
        call=dict(crop_to_patches=False),
    ),
    "gemma3": Own(
        "gemma3.Gemma3ImageProcessorPil",
        dict(size=SQUARE),
        "<bos><start_of_turn>user\n<start_of_image>{}<end_of_turn>\n<start_of_turn>model\n",
        dict(boi_token="<start_of_image>", eoi_token="<end_of_image>", turn="<start_of_turn>", end="<end_of_turn>"),
        "<image_soft_token>",
        tokenizer=lambda special: pieces_tokenizer(special, "<bos>", dummy_space=False),
        options=dict(image_seq_length=16),
    ),
    "mistral3": Own(
        "pixtral.PixtralImageProcessorPil",
        dict(size={"longest_edge": 32}, patch_size={"height": 8, "width": 8}),
        "<s>[INST][IMG]{}[/INST]",
        {name: name for name in ("[INST]", "[/INST]", "[IMG_BREAK]", "[IMG_END]")},
        "[IMG]",
        tokenizer=lambda special: pieces_tokenizer(special, dummy_space=False),
        options=dict(patch_size=4, spatial_merge_size=2),
    ),
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "paligemma": Own(
        "siglip.SiglipImageProcessorPil",
        dict(size=SQUARE, image_seq_length=16),
        None,
        tokenizer=lambda special: pieces_tokenizer(special, "<bos>", dummy_space=False),
    ),
}


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def own_processor(name: str, monkeypatch) -> ProcessorMixin:
    """As transformers makes it; its parts for films, which need torchvision, are stood in for by the tokenizer."""
    own = OWN[name]
    monkeypatch.setitem(
        transformers.processing_utils.MODALITY_TO_BASE_CLASS_MAPPING, "video_processor", "PreTrainedTokenizerBase"
    )
    module, _, class_name = own.images.partition(".")
    images = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
    tokenizer = own.tokenizer([*own.tokens.values()])
    tokenizer.add_special_tokens({"additional_special_tokens": [*own.tokens.values(), own.image]})
    for attribute, token in {**own.tokens, "image_token": own.image, "context_image_token": own.image}.items():
        if attribute.endswith("_token"):
            monkeypatch.setattr(tokenizer, attribute, token, raising=False)
            monkeypatch.setattr(tokenizer, f"{attribute}_id", tokenizer.convert_tokens_to_ids(token), raising=False)
    for attribute in ("num_frames", "fps", "size"):  # of films, which SmolVLM's asks for
        monkeypatch.setattr(tokenizer, attribute, {}, raising=False)
    pixtral = importlib.import_module("transformers.models.pixtral.image_processing_pil_pixtral")
    monkeypatch.setitem(sys.modules, "transformers.models.pixtral.image_processing_pixtral", pixtral)
    processor_name = DECODERS[name].processor_class
    file = {"PixtralProcessor": "pixtral", "LlavaProcessor": "llava"}.get(processor_name, name)
    module = importlib.import_module(f"transformers.models.{file}.processing_{file}")
    monkeypatch.setattr(module, "num2words", str, raising=False)
    processor_class = getattr(module, processor_name)
    videos = {} if name in ("llava", "idefics3", "gemma3", "mistral3", "paligemma") else {"video_processor": tokenizer}
    chat = None
    if own.chat is not None:
        said = "{{ messages[0]['content'][1]['text'] }}"
        chat = own.chat.replace("{}", said)
    options = own.options | videos
    processor = processor_class(getattr(images, class_name)(**own.settings), tokenizer, chat_template=chat, **options)
    return processor


def model_of(name: str, processor: ProcessorMixin) -> PreTrainedModel:
    image = processor.tokenizer.convert_tokens_to_ids(OWN[name].image)
    model = DECODERS[name].small_model(replace(SIZE, vocab_size=image))
    del model.config.grounding
    return model


@pytest.mark.parametrize("name", OWN)
def test_scores_are_those_of_the_models_own_forward_pass(name, monkeypatch):
    """With the prompt that its own processor makes of its own chat template, phrase by phrase."""
    processor, own = own_processor(name, monkeypatch), OWN[name]
    model = model_of(name, processor)
    grounder = AutoGrounder(model, processor, device="cpu")
    prompt = Prompt.of(model.config)

    def logits(said: str, answered: str = "") -> torch.Tensor:
        text = f"answer en {said}"
        if own.chat is not None:
            chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": said}]}]
            text = processor.apply_chat_template(chat, add_generation_prompt=True)
            text += ("" if text[-1] in "\n]" else " ") * bool(answered) + answered
        is_begun = text.startswith(("<s>", "<bos>"))  # as apply_chat_template finds, when it tokenizes
        options = own.call | dict(add_special_tokens=not is_begun) if own.chat else {}
        inputs = processor(images=[photo()], text=[text], return_tensors="pt", **options)
        with torch.no_grad():
            return model(**inputs).logits[0]

    for phrase, score in zip(PHRASES, grounder.score(photo(), PHRASES), strict=True):
        last = logits(QUESTION.format(phrase))[-1]
        expected = last[prompt.yes] - last[prompt.no]
        assert torch.tensor(score).logit() == pytest.approx(expected.item(), abs=2e-4), phrase
    if own.chat is None:  # its processor puts a line's end behind what is answered
        return
    for phrase, score in zip(PHRASES, grounder.score(photo(), PHRASES, explanation="likelihood"), strict=True):
        ids = grounder.processor.tokenizer(prompt.lead + phrase, add_special_tokens=False)["input_ids"]
        last = logits(REQUEST, ANSWER.format(phrase))[-len(ids) - 1 : -1].log_softmax(dim=-1)
        expected = last[torch.arange(len(ids)), ids].mean().exp()
        assert score == pytest.approx(expected.item(), rel=1e-3), phrase
