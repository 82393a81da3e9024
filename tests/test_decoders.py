"""Generative models: their scores against their own forward pass, processor and chat template; traps; prompts."""

import copy
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

import train
from modeling_albef_amc import AutoGrounder, gradcam
from modeling_albef_amc.families.decoder import Decoder
from modeling_albef_amc.families.decoders import DECODERS
from modeling_albef_amc.families.processors import whole_images
from modeling_albef_amc.families.prompts import ANSWER, QUESTION, REQUEST, SAMPLES, Prompt
from modeling_albef_amc.families.registry import FAMILIES
from modeling_albef_amc.families.training import groundable
from tests.helpers.data import tiny_records, write_folder
from tests.helpers.models import (
    SIZE,
    TINY,
    check_by_finite_differences,
    enable_checkpointing,
    relative_difference,
    tiny_batch,
    tiny_family_processor,
)
from tests.helpers.training import RUN, collator_of, make_trainer, training_logs, write_yaml
from tests.helpers.versions import is_older
from trainer.amc_loss import attention_mask_consistency_loss
from trainer.arguments import ModelArguments
from trainer.lora import merge
from trainer.training import build_model

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


def bart_tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    """Of bytes, and with its own tokens around every text."""
    tokenizer = bytes_tokenizer(["<s>", "</s>", *special]).backend_tokenizer
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@dataclass
class Own:
    """What a family has of its own.

    Args:
        images: module and class of its image processor. settings: of that, for photos of 32 x 32 pixels.
        chat: its prompt; {} is what is said. plain: what its processor takes where there is no chat template.
        tokens: special ones, beside the image token, which is `image`. call: options of the processor.
    """

    images: str
    settings: dict[str, Any]
    chat: str | None
    tokens: dict[str, str] = field(default_factory=dict)
    image: str = "<image>"
    tokenizer: Callable = bytes_tokenizer
    options: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    plain: str | None = None
    has_films: bool = False


SQUARE = {"height": 32, "width": 32}
CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QWEN = Own(
    "qwen2_vl.Qwen2VLImageProcessorPil",
    dict(size={"shortest_edge": 1024, "longest_edge": 1024}, patch_size=4, merge_size=2),
    CHATML.format("<|vision_start|><|image_pad|><|vision_end|>{}"),
    dict(start="<|vision_start|>", end="<|vision_end|>", video="<|video_pad|>", user="<|im_start|>"),
    "<|image_pad|>",
    has_films=True,
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
    "smolvlm": replace(FRAMED, images="smolvlm.SmolVLMImageProcessorPil", has_films=True),
    "idefics3": FRAMED,
    "internvl": Own(
        "got_ocr2.GotOcr2ImageProcessorPil",
        dict(size=SQUARE, crop_to_patches=False),
        CHATML.format("<IMG_CONTEXT>\n{}"),
        dict(start_image_token="<img>", end_image_token="</img>", video_token="<video>", user="<|im_start|>"),
        "<IMG_CONTEXT>",
        options=dict(image_seq_length=16),
        call=dict(crop_to_patches=False),
        has_films=True,
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
    "qwen3_5": QWEN,
    "paligemma": Own(
        "siglip.SiglipImageProcessorPil",
        dict(size=SQUARE, image_seq_length=16),
        None,
        tokenizer=lambda special: pieces_tokenizer(special, "<bos>", dummy_space=False),
        plain="answer en {}",
    ),
    "florence2": Own(
        "clip.CLIPImageProcessorPil",
        dict(size=SQUARE, crop_size=SQUARE, image_seq_length=17),
        None,
        tokenizer=bart_tokenizer,
    ),
    "kosmos-2": Own(
        "clip.CLIPImageProcessorPil",
        dict(size=SQUARE, crop_size=SQUARE),
        None,
        tokenizer=pieces_tokenizer,
        call=dict(num_image_tokens=4),
        plain="Question: {} Answer:",
    ),
    "mllama": Own(
        "mllama.MllamaImageProcessorPil",
        dict(size=SQUARE, max_image_tiles=2),
        "<|begin_of_text|><|user|><|image|>{}<|eot_id|><|assistant|>",
        {name: name for name in ("<|user|>", "<|eot_id|>", "<|assistant|>", "<|python_tag|>")},
        "<|image|>",
        tokenizer=lambda special: pieces_tokenizer(special, "<|begin_of_text|>", dummy_space=False),
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
    modules = {"PixtralProcessor": "pixtral", "LlavaProcessor": "llava", "Qwen3VLProcessor": "qwen3_vl"}
    file = modules.get(processor_name, name.replace("-", ""))
    module = importlib.import_module(f"transformers.models.{file}.processing_{file}")
    monkeypatch.setattr(module, "num2words", str, raising=False)
    processor_class = getattr(module, processor_name)
    options = own.options | ({"video_processor": tokenizer} if own.has_films else {})
    if own.chat is not None:
        options["chat_template"] = own.chat.replace("{}", "{{ messages[0]['content'][1]['text'] }}")
    return processor_class(getattr(images, class_name)(**own.settings), tokenizer, **options)


def model_of(name: str, processor: ProcessorMixin) -> PreTrainedModel:
    image = processor.tokenizer.convert_tokens_to_ids(OWN[name].image)
    model = DECODERS[name].small_model(replace(SIZE, vocab_size=image))
    del model.config.grounding
    return model


@pytest.mark.parametrize("name", [name for name in OWN if "yes" in DECODERS[name].layers])
def test_scores_are_those_of_the_models_own_forward_pass(name, monkeypatch):
    """With the prompt that its own processor makes of its own chat template, phrase by phrase."""
    processor, own = own_processor(name, monkeypatch), OWN[name]
    model = model_of(name, processor)
    if name == "kosmos-2" and is_older("transformers>=5.18"):  # its own SDPA makes a causal attention to the image
        model.set_attn_implementation("eager")
    grounder = AutoGrounder(model, processor, device="cpu")
    prompt = Prompt.of(model.config)

    def logits(said: str, answered: str = "") -> torch.Tensor:
        options = own.call
        if own.chat is None:
            text = own.plain.format(said)
        else:
            chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": said}]}]
            text = processor.apply_chat_template(chat, add_generation_prompt=True)
            is_begun = text.startswith(processor.tokenizer.bos_token or "\0")  # as it finds when it tokenizes
            options = options | dict(add_special_tokens=not is_begun)
        text += ("" if text.endswith(("\n", "]", "<|assistant|>")) else " ") * bool(answered) + answered
        inputs = processor(images=[photo()], text=[text], return_tensors="pt", **options)
        with torch.no_grad():
            return model(**inputs).logits[0]

    for phrase, score in zip(PHRASES, grounder.score(photo(), PHRASES), strict=True):
        last = logits(QUESTION.format(phrase))[-1]
        expected = last[prompt.yes] - last[prompt.no]
        rounding = 2e-7 / (expected.sigmoid() * (-expected).sigmoid()).item()  # of a probability close to 1
        assert torch.tensor(score).logit() == pytest.approx(expected.item(), abs=2e-4 + rounding), phrase
    if name == "paligemma":  # its processor puts a line's end behind what is answered
        return
    for phrase, score in zip(PHRASES, grounder.score(photo(), PHRASES, explanation="likelihood"), strict=True):
        ids = grounder.processor.tokenizer(prompt.lead + phrase, add_special_tokens=False)["input_ids"]
        last = logits(REQUEST, ANSWER.format(phrase))[-len(ids) - 1 : -1].log_softmax(dim=-1)
        expected = last[torch.arange(len(ids)), ids].mean().exp()
        assert score == pytest.approx(expected.item(), rel=1e-3), phrase


def test_florence_2_says_the_phrase_as_its_caption(monkeypatch):
    """As many log-probabilities as its own loss of these labels is the mean of, but for the end's."""
    processor = own_processor("florence2", monkeypatch)
    model = model_of("florence2", processor)
    grounder = AutoGrounder(model, processor, device="cpu")
    inputs = processor(images=[photo()], text=["<CAPTION>"], return_tensors="pt")
    for phrase, score in zip(PHRASES, grounder.score(photo(), PHRASES), strict=True):
        labels = processor.tokenizer(phrase, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(**inputs, labels=labels).logits[0].log_softmax(dim=-1)
        expected = logits[torch.arange(labels.shape[1]), labels[0]][1:-1].mean().exp()
        assert score == pytest.approx(expected.item(), rel=1e-3), phrase


@pytest.fixture
def exact(monkeypatch):
    """Softmax and norms of transformers are in float32 whatever the model is in."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of Kosmos-2's mask
    yield
    torch.set_default_dtype(before)


def explained(family: Decoder, model: PreTrainedModel, batch: dict, **options) -> torch.Tensor:
    return gradcam(family.explain(model, **batch, **options), options.get("create_graph", False))


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("explanation", ["yes", "likelihood"])
@pytest.mark.parametrize("name", [name for name, family in DECODERS.items() if not family.is_whole])
def test_keys_and_values_of_the_image_serve_all_of_its_phrases(name, explanation):
    """Maps and gradients, with several phrases an image, are those of a pass through the whole prompt for each."""
    model, family = TINY[name]().double(), DECODERS[name]
    batch, index = tiny_batch(dtype=torch.float64), torch.tensor([1, 0, 0, 1])
    batch |= dict(pixel_values=batch["pixel_values"][:2], image_index=index)
    maps, gradients = [], []
    for each in (family, replace(family, is_whole=True)):
        heatmaps = explained(each, model, batch, explanation=explanation, create_graph=True)
        heatmaps.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        maps.append(heatmaps.detach())
        model.zero_grad()
    torch.testing.assert_close(*maps, rtol=1e-9, atol=1e-12)
    assert relative_difference(*gradients) < 1e-8


def amc_loss_of_likelihood(name: str, model: PreTrainedModel, create_graph: bool) -> torch.Tensor:
    batch, masks = tiny_batch(dtype=torch.float64), torch.zeros(4, 16, 16)
    masks[:, 4:12, 2:8] = 1
    heatmaps = explained(DECODERS[name], model, batch, explanation="likelihood", create_graph=create_graph)
    return sum(attention_mask_consistency_loss(heatmaps, masks, margin_mean=1.0, margin_max=1.0).values())


@pytest.mark.usefixtures("exact")
@every_decoder
def test_second_order_gradients_of_the_likelihood(name):
    model, parts = TINY[name]().double(), {"layers.2"}
    if name in ("llava", "qwen2_5_vl", "paligemma"):
        parts = {"patch", "embed_tokens", "layers.0.self_attn.v_proj", "layers.1.self_attn.q_proj", "lm_head"}
    check_by_finite_differences(model, partial(amc_loss_of_likelihood, name, model), parts)


@every_decoder
def test_the_grid_is_where_the_image_is(name):
    """What changes in a cell of the image changes the feature of that cell most."""
    model, family = TINY[name](), DECODERS[name]
    first, side = int(name in ("florence2", "kosmos-2", "mllama")), 8
    if name == "florence2":  # its features are about the corners of cells; random convolutions mix neighbours
        side = 1
        with torch.no_grad():
            for part, parameter in model.named_parameters():
                parameter *= 0.1 if ".blocks." in part or "encoder.layers" in part else 1.0
    height, width = (32, 32) if family.only_squares else (24, 40)
    image = torch.randn(32, 3, height, width)
    rows, columns = family.grid(model.config, image)
    assert (rows, columns) == (height // 8, width // 8)
    with torch.no_grad():
        before = family.features(model, image)
    for cell in range(rows * columns):
        changed, (row, column) = image.clone(), divmod(cell, columns)
        changed[:, :, 8 * row : 8 * row + side, 8 * column : 8 * column + side] += torch.randn(32, 3, side, side)
        with torch.no_grad():
            moved = (family.features(model, changed) - before).norm(dim=-1).mean(dim=0)
        assert moved[first : first + rows * columns].argmax() == cell


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_cls_among_the_image_tokens_is_no_cell(name):
    model, family, batch = TINY[name](), DECODERS[name], tiny_batch()
    expected = family.features(model, batch["pixel_values"])
    model.config.vision_feature_select_strategy = "full"
    torch.testing.assert_close(family.features(model, batch["pixel_values"])[:, 1:], expected)
    start = len(model.config.grounding["prompt"]["before"]) + 1
    for each in (family, replace(family, is_whole=True)):
        assert each.explain(model, **batch).patches == slice(start, start + 16)
    model = TINY["llava_onevision"]()  # whose image encoder has none to leave out
    model.config.vision_feature_select_strategy = "default"
    with pytest.raises(ValueError, match="16 features of an image of 4 x 4 cells: is vision_feature_select_strategy"):
        DECODERS["llava_onevision"].explain(model, **batch)


def test_noise_on_embeddings(tmp_path):
    """NEFTune's, of Trainer."""
    collator = collator_of(tiny_family_processor("llava", PHRASES), mlm_probability=0)
    model, settings = DECODERS["llava"].small_model(replace(SIZE, vocab_size=200)), dict(max_steps=2, itm_weight=0)
    losses = []
    for alpha in (None, 5.0):
        torch.manual_seed(0)
        trainer = make_trainer(tmp_path, copy.deepcopy(model), collator=collator, neftune_noise_alpha=alpha, **settings)
        trainer.train()
        losses.append(training_logs(trainer)[0]["loss_caption"])
    assert losses[0] != losses[1]


def test_the_one_tile_of_llava_onevision_is_that_of_samples_of_several_images():
    """Which it never cuts into tiles; and LLaVA-NeXT's own way to pack an image of one tile."""
    images, sizes = torch.randn(2, 3, 32, 32), torch.tensor([[32, 32]] * 2)
    model = TINY["llava_onevision"]()
    own = model.model.get_image_features(images, image_sizes=sizes, batch_num_images=torch.tensor([2]))
    found = DECODERS["llava_onevision"].features(model, images)
    torch.testing.assert_close(found, torch.stack(list(own.pooler_output)))
    model = TINY["llava_next"]()
    found = DECODERS["llava_next"].features(model, images)
    core = model.model
    packed, _ = core.pack_image_features(found[:, None, :-1], sizes, "default", image_newline=core.image_newline)
    torch.testing.assert_close(found, torch.stack(packed))


@every_decoder
def test_attention_is_recorded_without_its_dropout(name):
    dropout = {"dropout" if name == "mllama" else "attention_dropout": 0.5}
    model, batch = TINY[name](**dropout).train(), tiny_batch()
    attention = DECODERS[name].explain(model, **batch).attention.detach()
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]), rtol=1e-4, atol=1e-5)
    implementation = model.config.get_text_config()._attn_implementation
    scores = [DECODERS[name].explain(model, **batch).score for _ in range(2)]
    assert name == "qwen3_5" or not torch.equal(*scores)  # it has no other attention with dropout
    assert model.config.get_text_config()._attn_implementation == implementation != "eager"


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_positions_of_an_earlier_generation_do_not_matter(name):
    model, batch = TINY[name](), tiny_batch()
    expected = explained(DECODERS[name], model, batch)
    model.model.rope_deltas = torch.full((4, 1), 17)
    torch.testing.assert_close(explained(DECODERS[name], model, batch), expected)


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_an_image_of_zeros_is_an_image(name):
    model, batch = TINY[name](), tiny_batch()
    batch["pixel_values"][1] = 0
    heatmaps = explained(DECODERS[name], model, batch)
    assert heatmaps.shape == (4, 4, 4) and (heatmaps[1] > 0).any()


# Phrases and their words ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explanation", ["yes", "likelihood"])
def test_words_of_a_caption_have_maps_of_their_own(explanation, monkeypatch):
    processor = own_processor("qwen2_5_vl", monkeypatch)
    grounder = AutoGrounder(model_of("qwen2_5_vl", processor), processor, device="cpu")
    caption = "the man on the left of two cats"
    pixels = grounder.read(photo())[1]
    tokens = grounder.tokenize([caption])
    explained = grounder.explain(
        grounder.model, pixels, tokens.input_ids, tokens.attention_mask, explanation=explanation
    )
    words = grounder.processor.tokenizer(" " + caption, return_offsets_mapping=True, add_special_tokens=False)
    of_left = [first < 20 and last > 16 for first, last in words["offset_mapping"]]  # " left", with its space
    expected = gradcam(explained, per_token=True)[0][: len(of_left)][torch.tensor(of_left)].mean(dim=0)
    phrases = [{"caption": caption, "caption_span": (4, 5)}]
    (prepared,) = grounder.explain_phrases(
        [grounder.prepare({"image": photo(), "phrases": phrases})], explanation=explanation
    )
    torch.testing.assert_close(prepared.heatmaps[0], expected, rtol=1e-3, atol=1e-6)


# Prompts and processors -----------------------------------------------------------------------------------------------


def test_how_it_is_asked_is_saved_with_the_model_and_the_processor_as_it_was(tmp_path, monkeypatch):
    processor = own_processor("llava", monkeypatch)
    model = model_of("llava", processor)
    processor.save_pretrained(tmp_path / "before")
    expected = AutoGrounder(model, processor, device="cpu").ground(photo(), PHRASES)
    adapted = whole_images(processor, model.config)
    for part in (model, adapted):
        part.save_pretrained(tmp_path / "after")
    before = [*(tmp_path / "before").iterdir()]
    for file in before:
        assert file.read_bytes() == (tmp_path / "after" / file.name).read_bytes(), file.name
    monkeypatch.setattr("modeling_albef_amc.families.decoder.make_prompt", None)  # it is known
    grounder = AutoGrounder.from_pretrained(str(tmp_path / "after"), device="cpu")
    for found, answer in zip(grounder.ground(photo(), PHRASES), expected, strict=True):
        assert found["score"] == pytest.approx(answer["score"], rel=1e-5) and found["point"] == answer["point"]
    for folder in ("after", "again"):  # where it came from, too
        grounder.processor.save_pretrained(tmp_path / folder)
    assert {file.name for file in (tmp_path / "again").iterdir()} == {path.name for path in before}
    for file in before:
        if file.name == "tokenizer_config.json":  # tokenizers write down when they were last loaded from a file
            continue
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    shutil.rmtree(tmp_path / "after")
    grounder.processor.save_pretrained(tmp_path / "later")
    assert {file.name for file in (tmp_path / "later").iterdir()} == {path.name for path in before}


def test_the_chat_template_is_found_where_transformers_finds_it(tmp_path, monkeypatch):
    processor = own_processor("llava", monkeypatch)
    model, template = model_of("llava", processor), processor.chat_template
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    expected = AutoGrounder.from_pretrained(str(tmp_path), device="cpu").score(photo(), PHRASES)
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("no place for an image")
    grounder = AutoGrounder.from_pretrained(str(tmp_path), device="cpu")
    assert grounder.score(photo(), PHRASES) == expected
    grounder.processor.save_pretrained(tmp_path / "saved")
    assert AutoProcessor.from_pretrained(tmp_path / "saved").chat_template.keys() == {"default", "tool_use"}
    shutil.rmtree(more)
    (tmp_path / "chat_template.jinja").unlink()
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    assert AutoGrounder.from_pretrained(str(tmp_path), device="cpu").score(photo(), PHRASES) == expected


def test_a_tokenizer_without_padding_stays_so(monkeypatch):
    processor = own_processor("llava", monkeypatch)
    model = model_of("llava", processor)
    processor.tokenizer.eos_token, processor.tokenizer.pad_token = processor.tokenizer.pad_token, None
    assert AutoGrounder(model, processor, device="cpu").score(photo(), PHRASES)
    assert processor.tokenizer.pad_token is None


@pytest.mark.parametrize("name", OWN)
def test_images_of_another_size(name, monkeypatch):
    processor = own_processor(name, monkeypatch)
    model = model_of(name, processor)
    if DECODERS[name].any_size:
        assert AutoGrounder(model, whole_images(processor, model.config, 16), device="cpu").score(photo(), PHRASES)
        return
    with pytest.raises(ValueError, match="of the size that it was trained with, 32 x 32 pixels: leave out image_size"):
        whole_images(processor, model.config, 64)


CHAT_ERRORS = {
    "puts the image behind the text": (lambda chat: "USER: {} <image> ASSISTANT:", {}),
    "has 0 places": (lambda chat: "USER: {} ASSISTANT:", {}),
    "has 2 places": (lambda chat: "USER: <image><image>{} ASSISTANT:", {}),
    "There is no chat template": (lambda chat: None, {}),
    "Of the chat templates tool_use none is called default": (lambda chat: {"tool_use": chat}, {}),
}


@pytest.mark.parametrize("message", CHAT_ERRORS)
def test_a_chat_template_that_does_not_serve(message, monkeypatch):
    processor = own_processor("llava", monkeypatch)
    model, (change, _) = model_of("llava", processor), CHAT_ERRORS[message]
    chat = change(processor.chat_template)
    said = "{{ messages[0]['content'][1]['text'] }}"
    processor.chat_template = chat.replace("{}", said) if isinstance(chat, str) else chat
    with pytest.raises(ValueError, match=message):
        AutoGrounder(model, processor, device="cpu")


def test_a_tokenizer_that_does_not_serve(monkeypatch):
    processor = own_processor("llava", monkeypatch)
    model = model_of("llava", processor)
    model.config.image_token_index = 10**6
    with pytest.raises(ValueError, match="has no token 1000000, which is this model's image token"):
        whole_images(processor, model.config)
    processor.tokenizer.backend_tokenizer.model = models.WordLevel({"<unk>": 1}, unk_token="<unk>")
    with pytest.raises(ValueError, match="'Yes' is no single token of TokenizersBackend"):
        whole_images(processor, model_of("llava", own_processor("llava", monkeypatch)).config)


def test_what_cannot_be_explained_says_so():
    model, batch = TINY["gemma3"](), tiny_batch()
    with pytest.raises(ValueError, match=r"layer 0 is none of this model's: choose one of 1\."):  # it slides
        DECODERS["gemma3"].explain(model, **batch, layer=0)
    model = TINY["gemma3"](sliding_window=8)
    with pytest.raises(ValueError, match="are more than the model's sliding window"):
        DECODERS["gemma3"].explain(model, **batch)
    model = TINY["llava"]().train()
    enable_checkpointing(model)
    with pytest.raises(ValueError, match='attn_implementation="eager"'):
        DECODERS["llava"].explain(model, **batch)
    model = TINY["llava"]()
    del model.config.grounding
    with pytest.raises(ValueError, match=r"call whole_images\(processor, model\.config\)"):
        DECODERS["llava"].explain(model, **batch)
    config = transformers.LlavaConfig(vision_config=dict(model_type="pixtral"))
    with pytest.raises(ValueError, match="Pixtral's image encoder is not known here"):
        DECODERS["llava"].grid(config, batch["pixel_values"])
    with pytest.raises(ValueError, match="20 x 20 pixels are not a whole number of cells of 8"):
        DECODERS["qwen2_vl"].explain(TINY["qwen2_vl"](), torch.zeros(1, 3, 20, 20), batch["input_ids"][:1])


def test_what_is_trained_is_chosen_by_settings(tmp_path):
    model = TINY["llava"]()
    model.save_pretrained(tmp_path)
    tiny_family_processor("llava", PHRASES).save_pretrained(tmp_path)
    chosen = dict(explanation="likelihood", grounding_layer=2)
    trained, processor = build_model(ModelArguments(model=str(tmp_path), **chosen), [])
    assert trained.config.grounding["explanation"] == "likelihood" and trained.config.grounding["layer"] == 2
    assert processor.image_processor.size["height"] == 32
    for wrong, message in ((dict(explanation="itm"), "has yes and likelihood"), (dict(grounding_layer=3), "layer 3")):
        with pytest.raises(ValueError, match=message):
            build_model(ModelArguments(model=str(tmp_path), **wrong), [])


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_the_explanation_and_layer_that_it_was_trained_with(name):
    model, batch, family = TINY[name](), tiny_batch(), DECODERS[name]
    expected = explained(family, model, batch, explanation="likelihood", layer=2)
    assert not torch.allclose(explained(family, model, batch), expected)
    model.config.grounding |= dict(explanation="likelihood", layer=2)
    assert torch.equal(explained(family, model, batch), expected)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("qwen2_vl", dict(explanation="likelihood", layer=2, image_size=64)),
        ("siglip", dict(method="gradient", layer=0)),
    ],
)
def test_adapters_know_how_they_were_asked_and_explained(name, settings, tmp_path):
    """Neither of which is in a file of their base model; nor is it lost when they are merged."""
    pytest.importorskip("peft")
    model = FAMILIES[name].small_model(replace(SIZE, vocab_size=200))
    for part in (model, tiny_family_processor(name, PHRASES)):
        part.save_pretrained(tmp_path / "base")
    data = write_folder(tmp_path / "data-set", train=tiny_records(4))
    config = write_yaml(tmp_path, dataset=data, **RUN | dict(max_steps=2), report_to="none", itm_weight=0)
    named = {"layer": "grounding_layer"}
    told = [text for key, value in settings.items() for text in (f"--{named.get(key, key)}", str(value))]
    options = ["--lora_rank", "2", *told]
    run, merged = str(tmp_path / "run"), str(tmp_path / "merged")
    train.main([config, "--model", str(tmp_path / "base"), *options, "--output_dir", run, "--save_strategy", "epoch"])
    merge(run, merged)
    loaded = [AutoGrounder.from_pretrained(path, device="cpu") for path in (run, f"{run}/checkpoint-2", merged)]
    loaded.append(transformers.pipeline("visual-grounding", model=run, device="cpu", processor=loaded[0].processor))
    loaded[-1].save_pretrained(tmp_path / "again")
    loaded.insert(0, AutoGrounder.from_pretrained(str(tmp_path / "again"), device="cpu"))
    for grounder in loaded:
        grounding = grounder.model.config.grounding
        assert grounding == vars(model.config).get("grounding", {}) | settings
    answers = [(loaded.pop())(photo(), PHRASES), *(grounder.ground(photo(), PHRASES) for grounder in loaded)]
    for found in answers[1:]:
        for one, other in zip(answers[0], found, strict=True):
            assert one["score"] == pytest.approx(other["score"], rel=1e-4) and one["point"] == other["point"]
    damaged, message = ('{"prompt": {"before": [1]}}', "it has no prompt") if name in DECODERS else ("{", "")
    Path(run, "grounding.json").write_text(damaged)
    with pytest.raises(ValueError, match=rf"grounding\.json.*{message}"):
        AutoGrounder.from_pretrained(run)
    command = [config, "--model", str(tmp_path / "base"), "--output_dir", run, "--lora_rank", "2"]
    other = "was trained with (explanation 'likelihood'|grounding_layer 0), this run"
    with pytest.raises(ValueError, match=other):
        train.main([*command, "--resume_from_checkpoint", "auto", "--max_steps", "3"])
    for checkpoint in Path(run).glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    train.main([*command])  # into the same folder, as the family's own
    grounding = vars(AutoGrounder.from_pretrained(run, device="cpu").model.config).get("grounding", {})
    assert not grounding.keys() & {"explanation", "layer", "method"}


@pytest.mark.parametrize("name", ["llava", "florence2"])
def test_a_model_that_has_been_trained_still_writes(name):
    model, batch = TINY[name](), tiny_batch()
    image, options = model.config.image_token_id, dict(max_new_tokens=3, do_sample=False)
    ids = torch.tensor([[1, *[image] * (17 if name == "florence2" else 16), 5]])
    inputs = dict(pixel_values=batch["pixel_values"][:1], input_ids=ids, attention_mask=torch.ones_like(ids))
    expected = model.generate(**inputs, **options)
    trained = groundable(model)
    assert torch.equal(trained.generate(**inputs, **options), expected)
    assert trained(**batch).loss.requires_grad  # as before
