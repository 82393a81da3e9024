"""Every family, however it is loaded or wrapped, gives the answers of the plain model."""

import copy
import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    RandLoraConfig,
    VBLoRAConfig,
    VeraConfig,
    get_peft_model,
)
from PIL import Image
from torch.nn import functional as F
from transformers import (
    AltCLIPConfig,
    AutoProcessor,
    BertConfig,
    BertModel,
    BlipForConditionalGeneration,
    BlipProcessor,
    BridgeTowerConfig,
    CLIPConfig,
    CLIPProcessor,
    CLIPSegForImageSegmentation,
    OwlViTForObjectDetection,
    PretrainedConfig,
    PreTrainedModel,
    SiglipConfig,
    ViltConfig,
    ViltProcessor,
    pipeline,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.blip import BlipImageProcessorPil
from transformers.models.clip import CLIPImageProcessorPil
from transformers.models.siglip2 import Siglip2ImageProcessorPil
from transformers.models.vilt import ViltImageProcessorPil
from transformers.utils import PushToHubMixin

from modeling_albef_amc import AutoGrounder, AutoGroundingPipeline, AutoModelForVisualGrounding
from modeling_albef_amc.families import registry
from modeling_albef_amc.families.auto import AdapterError, load_model, load_processor
from modeling_albef_amc.families.decoders import DECODERS
from modeling_albef_amc.families.fusion import BLIP
from modeling_albef_amc.families.processors import LoadedProcessor, max_tokens, whole_images
from modeling_albef_amc.families.registry import explain_function
from modeling_albef_amc.families.training import groundable
from tests.helpers.data import picture, tiny_albef, tiny_dataset, tiny_processor, tiny_records
from tests.helpers.models import (
    CHECKPOINTING,
    IMAGE_PROCESSORS,
    SIZE,
    SQUARE,
    TINY,
    enable_checkpointing,
    own_tokenizer,
    tiny_batch,
    tiny_config,
    tiny_family_processor,
)
from tests.helpers.training import collator_of, make_trainer
from tests.helpers.versions import needs
from trainer.lora import merge

pytestmark = pytest.mark.slow  # every family, every way: begun first
TEXTS = ["a red dog", "a man on the left"]
FAMILY = registry.FAMILIES
FAMILIES = ["albef", *TINY]
NOT_OFFLOADED = "flava", "qwen3_vl", "qwen3_5", "florence2", "kosmos-2"
OFFLOADED = dict.fromkeys(NOT_OFFLOADED, needs("transformers>=5.18", "offloading this family"))
every_family = pytest.mark.parametrize("family", FAMILIES)
# Linear layers that attend, whatever the family calls them.
MODULES = ["query", "value", "qkv", "q_proj", "v_proj"]
LORA = LoraConfig(target_modules=MODULES, r=2, lora_alpha=8)
DORA = LoraConfig(target_modules=MODULES, r=2, lora_alpha=8, use_dora=True)
TOKENS = LoraConfig(target_modules=MODULES, r=2, trainable_token_indices={"word_embeddings": [5, 6]})
VERA = VeraConfig(target_modules=["q_proj"], r=2)
IA3 = IA3Config(target_modules=MODULES, feedforward_modules=[])


def build(family: str):
    """A model and its processor."""
    if family == "albef":
        return tiny_albef().albef.eval(), tiny_processor()
    return TINY[family](), tiny_family_processor(family, TEXTS)


@pytest.fixture
def folder(family, tmp_path):
    for part in build(family):
        part.save_pretrained(tmp_path / "checkpoint")
    return str(tmp_path / "checkpoint")


def same(found: list[dict], expected: list[dict]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], rel=1e-4) and one["point"] == other["point"]
        np.testing.assert_allclose(one["heatmap"], other["heatmap"], rtol=1e-3, atol=1e-4 * other["heatmap"].max())


@every_family
def test_every_way_to_a_checkpoint(family, folder):
    """By its path, as the class that transformers gives it, and as an object with whatever attention."""
    ground = AutoGrounder.from_pretrained(folder, device="cpu").ground
    expected = ground(picture(), TEXTS)
    assert all(answer["heatmap"].shape == (36, 40) and answer["heatmap"].max() > 0 for answer in expected)
    same(ground(picture(), TEXTS[0]), expected[:1])  # nor does it matter what else is asked
    # transformers makes no processor of several generative families without torchvision.
    options = {"processor": load_processor(folder, load_model(folder))} if family in DECODERS else {}
    same(pipeline("visual-grounding", model=folder, device="cpu", **options)(picture(), TEXTS), expected)
    model = AutoModelForVisualGrounding.from_pretrained(folder)
    same(AutoGrounder(model, build(family)[1], device="cpu").ground(picture(), TEXTS), expected)
    trainable = groundable(AutoModelForVisualGrounding.from_pretrained(folder))
    assert trainable(**tiny_batch(), output_heatmaps=True).heatmaps.max() > 0
    same(AutoGrounder(trainable, build(family)[1], device="cpu").ground(picture(), TEXTS), expected)
    assert trainable(**tiny_batch(), output_heatmaps=True).heatmaps.max() > 0
    parts = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    for config in parts:
        config.return_dict = False
    same(AutoGrounder(model, build(family)[1], device="cpu").ground(picture(), TEXTS), expected)
    assert not any(config.return_dict for config in parts)


@pytest.mark.parametrize("family", ["albef", "blip"])
def test_a_grounder_is_pickled_and_copied(family, folder):
    """Its pipeline, too; with an encoding that it keeps, once it has answered."""
    grounder, ground = AutoGrounder.from_pretrained(folder, max_encodings=2), pipeline("visual-grounding", model=folder)
    expected = grounder.ground(picture(), TEXTS)
    for way in (copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))):
        copied = way(grounder)
        same(copied.ground(picture(), TEXTS), expected)
        assert copied.max_encodings == 2 and copied.model is not grounder.model
        same(way(ground)(picture(), TEXTS), expected)


@pytest.mark.parametrize("family", ["albef", "clip"])
def test_in_the_wrapper_for_adapters_of_several_kinds(family):
    model, processor = build(family)
    adapted, merged = wrapped_in_peft(model, mixed=True)
    same(*(AutoGrounder(each, processor, device="cpu").ground(picture(), TEXTS) for each in (adapted, merged)))
    assert groundable(wrapped_in_peft(model, mixed=True)[0])(**tiny_batch(), output_heatmaps=True).heatmaps.max() > 0


def test_a_generative_processor_is_saved_and_pushed_as_others_are(tmp_path, monkeypatch):
    model, processor = build("llava")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "llava")
    processor, pushed = load_processor(str(tmp_path / "llava"), model), []
    assert issubclass(LoadedProcessor, PushToHubMixin)
    monkeypatch.setattr(LoadedProcessor, "push_to_hub", lambda self, name, **options: pushed.append((name, options)))
    processor.save_pretrained(tmp_path / "again", False)
    assert not pushed and (tmp_path / "again" / "tokenizer_config.json").is_file()
    processor.save_pretrained(tmp_path / "again", push_to_hub=True, repo_id="org/llava", private=True)
    processor.push_to_hub("org/other")
    assert pushed == [("org/llava", {"private": True}), ("org/other", {})]


def test_an_image_size_of_nothing():
    with pytest.raises(ValueError, match="image_size must be at least 1 pixel, got 0"):
        whole_images(tiny_processor(), tiny_config(), 0)


def test_images_of_several_sizes_make_no_batch():
    model, processor = build("albef")
    processor.image_processor.do_resize = False
    grounder, images = AutoGrounder(model, processor), [picture().resize(size) for size in ((32, 32), (64, 32))]
    assert len(grounder.ground(images, TEXTS)) == 2
    with pytest.raises(ValueError, match=r"images of \[\(32, 32\), \(32, 64\)\] \(height, width\) make no batch"):
        grounder.ground(images, TEXTS, batch_size=2)


def test_siglip_fills_up_as_its_tokenizer():
    """Of SigLIP 2, whose configuration names another token; transformers is the oracle."""
    model = registry.FAMILIES["siglip"].small_model(replace(SIZE, pad=1))
    processor = tiny_family_processor("siglip", TEXTS)
    inputs = processor(images=picture(), text=TEXTS, padding="max_length", max_length=20, return_tensors="pt")
    with torch.no_grad():
        expected = model(inputs["input_ids"], inputs["pixel_values"]).logits_per_image[0].sigmoid()
    assert AutoGrounder(model, processor).score(picture(), TEXTS) == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("family", ["clip", "metaclip_2", "clipseg", "owlvit", "aimv2", "siglip", "siglip2", "flava"])
def test_the_score_is_the_models_own_of_its_own_processor(family):
    """Of phrases of several lengths, and a square image larger than the model's, which no processor cuts."""
    words = sorted({word for text in TEXTS for word in text.split()})
    processor_class, tokenizer = FAMILY[family].load(FAMILY[family].processor_class), own_tokenizer(family, words)
    eos, pad = (getattr(tokenizer, f"{name}_token_id") for name in ("eos", "pad"))
    size = replace(SIZE, vocab_size=len(tokenizer), max_tokens=30, eos=eos or tokenizer.sep_token_id, pad=pad)
    model, image, options = FAMILY[family].small_model(size), picture(64, 64), {"padding": True}
    if family in ("siglip", "siglip2"):
        options = {"padding": "max_length", "max_length": 30}
    if family == "siglip2":
        options |= {"max_num_patches": 16, "patch_size": 8}
    images = IMAGE_PROCESSORS.get(family, partial(BlipImageProcessorPil, **SQUARE))
    if images is CLIPImageProcessorPil:
        images = partial(images, size={"shortest_edge": 32}, crop_size=SQUARE["size"])
    processor = processor_class(images(), tokenizer)
    inputs = processor(images=[image] * len(TEXTS), text=TEXTS, return_tensors="pt", **options)
    with torch.no_grad():
        output = model(**inputs, return_loss=False)
    if family == "flava":
        expected = output.itm_logits.softmax(dim=1)[:, 1]
    elif family in ("siglip", "siglip2"):
        expected = output.logits_per_image[0].sigmoid()
    else:
        expected = (1 + F.cosine_similarity(output.image_embeds, output.text_embeds)) / 2
    assert AutoGrounder(model, processor).score(image, TEXTS) == pytest.approx(expected.tolist(), abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-4


@pytest.mark.parametrize("family", [pytest.param(each, marks=OFFLOADED.get(each, ())) for each in FAMILIES])
def test_offloaded_weights(family, folder, tmp_path):
    """Each is brought to the device when its module runs; some are used without that."""
    plain = AutoGrounder.from_pretrained(folder, device="cpu")
    grounder = AutoGrounder(cpu_offload(load_model(folder, training=True), torch.device("cpu")), build(family)[1])
    for explanation in 2 * [*registry.FAMILIES[family].layers]:  # the hooks are there afterwards
        found, expected = (each.ground(picture(), TEXTS, explanation=explanation) for each in (grounder, plain))
        same(found, expected)
    assert {parameter.device.type for parameter in grounder.model.parameters()} == {"meta"}
    ground = pipeline("visual-grounding", model=grounder.model, processor=grounder.processor)
    same(ground(picture(), TEXTS), plain.ground(picture(), TEXTS))
    own = {name: "cpu" for name, _ in plain.model.named_parameters() if "." not in name}
    parts = own | {name: "disk" for name, _ in plain.model.named_children()}
    parts[min(parts)] = "cpu"
    grounder = AutoGrounder.from_pretrained(folder, device_map=parts, offload_folder=tmp_path / "offload")
    same(grounder.ground(picture(), TEXTS), plain.ground(picture(), TEXTS))
    parts = {name: where for name, where in sorted(parts.items(), key=lambda part: part[1] == "cpu")}
    options = {"model_kwargs": {"offload_folder": tmp_path / "offload"}}
    options |= {"processor": plain.processor} if family in DECODERS else {}
    ground = pipeline("visual-grounding", model=folder, device_map=parts, **options)
    assert next(iter(ground.model.hf_device_map.values())) == "disk" and ground.device.type == "cpu"
    same(ground(picture(), TEXTS), plain.ground(picture(), TEXTS))


@every_family
def test_several_threads(family):
    grounder = AutoGrounder(*build(family), device="cpu")
    calls = [{"phrases": TEXTS[:1]}, {"phrases": TEXTS}, {"phrases": TEXTS[1], "method": "attention"}]
    calls += [{"phrases": TEXTS, "method": "relevance"}] if registry.FAMILIES[family].modules else []
    expected = [grounder.ground(picture(), **call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda call: grounder.ground(picture(), **call), calls * 5))
    for one, other in zip(found, expected * 5, strict=True):
        same(one, other)


def test_a_model_for_another_task_is_refused(tmp_path):
    """Its head would be of random weights, or is none."""
    model, processor = build("blip")
    captioner = BlipForConditionalGeneration(model.config)
    for part in (captioner, processor):
        part.save_pretrained(tmp_path)
    for load in (AutoGrounder.from_pretrained, AutoModelForVisualGrounding.from_pretrained):
        with pytest.raises(
            ValueError, match=r"of BlipForConditionalGeneration, without weights such as itm_head\.bias"
        ):
            load(str(tmp_path))
    with pytest.raises(ValueError, match="BlipForConditionalGeneration has no score of image and text to explain"):
        pipeline("visual-grounding", model=str(tmp_path))  # which then tries the class that the checkpoint names
    for take in (explain_function, groundable, lambda model: AutoGrounder(model, processor)):
        with pytest.raises(ValueError, match="BlipForConditionalGeneration has no score of image and text to explain"):
            take(captioner)


@pytest.mark.parametrize(
    ("family", "model_class"), [("clipseg", CLIPSegForImageSegmentation), ("owlvit", OwlViTForObjectDetection)]
)
def test_a_segmenter_and_a_detector_have_a_clip_in_them(family, model_class, tmp_path):
    """Whose score is explained; the heads behind it are left out."""
    model = model_class(TINY[family]().config)
    model.save_pretrained(tmp_path)
    tiny_family_processor(family, TEXTS).save_pretrained(tmp_path)
    grounder = AutoGrounder.from_pretrained(str(tmp_path), device="cpu")
    found, expected = grounder.model.state_dict(), getattr(model, grounder.model.base_model_prefix).state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert grounder.ground(picture(), TEXTS)[0]["heatmap"].max() > 0
    with pytest.raises(ValueError, match=f"{model_class.__name__} has no score of image and text to explain"):
        explain_function(model)


def wrapped_in_peft(model, mixed=False):
    """In peft's wrapper, with adapters that change it; and a plain model of the same values."""
    adapted = get_peft_model(copy.deepcopy(model), LORA, mixed=mixed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return adapted.eval(), copy.deepcopy(adapted).merge_and_unload().eval()


def compiled_in_place(model):
    """Every module of a copy, its parts in wrappers beside; tracing gradients, as the default does."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.compile(backend="aot_eager")
    for name, part in list(model.named_children()):
        setattr(model, name, torch.compile(part, backend="aot_eager"))
    return model


@every_family
def test_in_wrappers(family):
    model, processor = build(family)
    adapted, merged = wrapped_in_peft(model)
    compiled = compiled_in_place(model)
    before = [(module._compiled_call_impl, module.forward) for module in compiled.modules()]
    for wrapped, plain in (
        (adapted, merged),
        (torch.compile(model, backend="eager"), model),
        (torch.compile(adapted, backend="eager"), merged),
        (compiled, model),
    ):
        same(*(AutoGrounder(each, processor, device="cpu").ground(picture(), TEXTS) for each in (wrapped, plain)))
        found, expected = (explain_function(each, "attention")(each, **tiny_batch()) for each in (wrapped, plain))
        torch.testing.assert_close(found.score, expected.score, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*(explain_function(each)(each, **tiny_batch()).score for each in (model, merged)))
    assert before == [(module._compiled_call_impl, module.forward) for module in compiled.modules()]


@pytest.mark.parametrize("family", ["albef", "blip"])
def test_kept_encodings_are_those_of_the_weights(family):
    adapted, processor = build(family)
    adapted = get_peft_model(adapted, LORA)
    torch.nn.init.normal_(next(each for name, each in adapted.named_parameters() if "lora_B" in name))
    optimizer = torch.optim.AdamW(adapted.parameters(), 0.1, foreach=True)
    keeping = AutoGrounder(adapted, processor, device="cpu", max_encodings=4)

    def check(num_kept: int) -> list[float]:
        found = keeping.score(picture(), TEXTS)
        assert found == AutoGrounder(adapted, processor, device="cpu").score(picture(), TEXTS)
        assert len(keeping.encodings) == num_kept
        return found

    def step():
        for parameter in adapted.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    check(1)
    check(1)
    with adapted.disable_adapter():
        check(2)
    step()
    check(3)
    adapted.load_state_dict(
        {name: 0.9 * value for name, value in adapted.state_dict().items() if value.ndim > 1}, False
    )
    check(4)
    adapted.add_adapter("second", LORA)
    adapted.set_adapter("second")
    check(4)
    keeping.encodings.clear()
    adapted.merge_adapter(["default"])
    check(1)
    with torch.inference_mode():
        adapted.register_buffer("of_inference", torch.ones(2))
    check(2)
    for name, parameter in adapted.named_parameters():  # an even number of signs in every row
        if name.endswith("lora_A.default.weight"):
            parameter.data.neg_()
    check(3)
    # By ways that torch keeps no count of, and in place of tensors whose addresses come back.
    ways = [
        lambda factor: adapted.of_inference.data.mul_(factor),
        lambda factor: np.multiply(adapted.of_inference.numpy(), factor, out=adapted.of_inference.numpy()),
        lambda factor: adapted.load_state_dict(
            {name: value * factor for name, value in adapted.state_dict().items()}, assign=True
        ),
    ]
    keeping.max_encodings = 13
    for number, way in enumerate(3 * ways):
        way(1 + 1e-6)
        check(4 + number)


def test_offloaded_weights_keep_no_encodings():
    model, processor = build("albef")
    expected = AutoGrounder(model, processor, device="cpu").score(picture(), TEXTS)
    keeping = AutoGrounder(cpu_offload(model, torch.device("cpu")), processor, max_encodings=4)
    assert keeping.score(picture(), TEXTS) == expected and not keeping.encodings


def test_what_adapts_the_input_is_refused():
    sizes = dict(num_virtual_tokens=2, token_dim=16, num_layers=3, num_attention_heads=2, num_transformer_submodules=1)
    wrapped = get_peft_model(TINY["clip"](), PromptTuningConfig(task_type="FEATURE_EXTRACTION", **sizes))
    with pytest.raises(ValueError, match="only LoRA and its like"):
        explain_function(wrapped)(wrapped, **tiny_batch())


@every_family
def test_phrases_padded_on_the_left(family):
    """ALBEF finds their first token; the others are never given any, and say so if they are."""
    model, processor = build(family)
    expected = AutoGrounder(model, processor, device="cpu").ground(picture(), TEXTS)
    processor.tokenizer.padding_side = "left"
    same(AutoGrounder(model, processor, device="cpu").ground(picture(), TEXTS), expected)
    if family == "albef":
        return
    batch = tiny_batch()
    batch |= {name: batch[name].roll(2, dims=1) for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="pad on the right"):
        explain_function(model)(model, **batch)


def test_scores_of_several_images_and_of_what_can_only_be_gone_through():
    model, processor = build("blip")
    grounder, images = AutoGrounder(model, processor, device="cpu"), [picture(), picture(20, 40)]
    expected = [grounder.score(image, TEXTS) for image in images]
    assert expected[0] == pytest.approx([answer["score"] for answer in grounder.ground(picture(), TEXTS)], rel=1e-5)
    for scores in (grounder.score(images, TEXTS), list(grounder.score(iter(images), TEXTS))):
        for actual, of_image in zip(scores, expected, strict=True):
            assert actual == pytest.approx(of_image, rel=1e-4)
    for phrases in (iter(TEXTS), map(str, TEXTS), dict.fromkeys(TEXTS).keys()):
        assert [len(scores) for scores in grounder.score(images, phrases)] == [2, 2]
    assert grounder.score([], TEXTS) == [] and grounder.score(picture(), []) == []


def test_a_function_of_ones_own():
    model, processor = build("blip")
    first_layer = AutoGrounder(model, processor, partial(BLIP.explain, layer=0), "cpu")
    default = AutoGrounder(model, processor, device="cpu")
    ours, theirs = (grounder.ground(picture(), TEXTS) for grounder in (first_layer, default))
    same(ours, default.ground(picture(), TEXTS, grounding_layer=0))
    assert not np.allclose(ours[0]["heatmap"], theirs[0]["heatmap"], rtol=0, atol=0.1 * ours[0]["heatmap"].max())


@pytest.mark.parametrize("family", ["albef"])
def test_albef_its_training_class_and_another_size(family, folder):
    assert type(load_model(folder)).__name__ == "AlbefModel"
    assert type(load_model(folder, training=True)).__name__ == "AlbefForPreTraining"
    grounder = AutoGrounder.from_pretrained(folder, device="cpu", image_size=48)
    assert grounder.processor.image_processor.size["height"] == 48
    assert len(grounder.score(picture(), TEXTS)) == 2


def test_adapters_of_positions_that_are_stretched():
    model, config = TINY["aimv2"](), LoraConfig(target_modules=["vision_model.embeddings.position_embedding"], r=2)
    adapted = get_peft_model(copy.deepcopy(model), config)
    for name, parameter in adapted.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter)
    wrapped, plain = (explain_function(each)(each, **tiny_batch()).score for each in (adapted, model))
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(wrapped, explain_function(merged)(merged, **tiny_batch()).score)
    assert not torch.allclose(wrapped, plain)


def test_adapters_as_peft_saves_them_have_the_processor_of_their_base(tmp_path):
    for part in build("clip"):
        part.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(load_model(str(tmp_path / "base")), LORA)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path / "adapters")
    grounder = AutoGrounder.from_pretrained(str(tmp_path / "adapters"), device="cpu", max_encodings=4)
    same(
        grounder.ground(picture(), TEXTS),
        AutoGrounder(adapted, build("clip")[1], device="cpu").ground(picture(), TEXTS),
    )
    assert grounder.max_encodings == 4


def test_a_tokenizer_with_more_tokens_than_the_model():
    model, processor = build("albef")
    processor.tokenizer.add_tokens([f"thing{number}" for number in range(100)])
    with pytest.raises(ValueError, match=r"the tokenizer has a token \d+, the model 89 tokens only"):
        AutoGrounder(model, processor, device="cpu").score(picture(), ["a thing99"])


def test_a_model_in_ddp(tmp_path):
    model, processor = build("albef")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/peers", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        found = AutoGrounder(wrapped, processor).score(picture(), TEXTS)
    finally:
        torch.distributed.destroy_process_group()
    assert found == AutoGrounder(model, processor).score(picture(), TEXTS)


def test_an_unknown_family_is_named(tmp_path):
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20)
    BertModel(BertConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"of type 'bert', which cannot be explained here; known are albef, "):
        AutoGrounder.from_pretrained(str(tmp_path))


def test_max_tokens():
    assert [max_tokens(config) for config in (tiny_config(), ViltConfig(max_position_embeddings=11))] == [20, 11]
    assert [max_tokens(config()) for config in (AltCLIPConfig, BridgeTowerConfig)] == [512, 512]


# Processors -----------------------------------------------------------------------------------------------------------


def shown(processor, image: Image.Image) -> np.ndarray:
    return processor(images=[image], return_tensors="pt")["pixel_values"][0].numpy()


@pytest.mark.parametrize(
    ("processor_class", "image_processor", "config"),
    [
        (CLIPProcessor, CLIPImageProcessorPil(), CLIPConfig(vision_config={"image_size": 32})),
        (ViltProcessor, ViltImageProcessorPil(), ViltConfig(image_size=32)),
        (BlipProcessor, BlipImageProcessorPil(size={"height": 32, "width": 32}), PretrainedConfig()),
    ],
    ids=["clip", "vilt", "blip"],
)
def test_the_whole_image_is_shown_and_saved_so(processor_class, image_processor, config, tmp_path):
    processor = whole_images(processor_class(image_processor, tiny_processor().tokenizer), config)
    # Grey but for its left and right edges, which a cut would lose.
    pixels = np.full((30, 90, 3), 127, dtype=np.uint8)
    pixels[:, :6], pixels[:, -6:] = 255, 0
    image = Image.fromarray(pixels)
    seen = shown(processor, image)
    assert seen.shape == (3, 32, 32)
    assert (seen[:, :, 0] > seen[:, :, 16]).all() and (seen[:, :, -1] < seen[:, :, 16]).all()
    processor.save_pretrained(tmp_path)
    again = whole_images(processor_class.from_pretrained(tmp_path), config)
    np.testing.assert_array_equal(shown(again, image), seen)
    assert shown(whole_images(again, config, image_size=64), image).shape == (3, 64, 64)


ALBEF_32_64 = tiny_config(vision_config={**tiny_config().vision_config.to_dict(), "image_size": [32, 64]})
SIGLIP_384 = SiglipConfig(vision_config={"image_size": 384, "patch_size": 14})


@pytest.mark.parametrize(
    ("config", "size", "image_size", "expected"),
    [
        (ALBEF_32_64, {"height": 40, "width": 24}, None, (40, 24)),
        (ALBEF_32_64, {"shortest_edge": 32}, None, (32, 64)),
        (ALBEF_32_64, {"height": 32, "width": 64}, 48, (48, 48)),
        (SIGLIP_384, {"height": 384, "width": 384}, None, (378, 378)),  # of its 27 x 27 patches
        (tiny_config(), {"height": 32, "width": 32}, 39, None),
        (TINY["clip"]().config, {"height": 32, "width": 36}, None, None),
    ],
)
def test_the_size_of_shown_images_is_a_whole_number_of_patches(config, size, image_size, expected):
    processor = BlipProcessor(BlipImageProcessorPil(size=size), tiny_processor().tokenizer)
    if expected is None:
        with pytest.raises(ValueError, match=r"not a whole number of patches of 8\."):
            whole_images(processor, config, image_size)
    else:
        assert shown(whole_images(processor, config, image_size), picture()).shape == (3, *expected)


@pytest.mark.parametrize("family", ["vilt", "bridgetower"])
def test_pixel_values_stay_as_the_processor_says(family):
    processor = tiny_family_processor(family, TEXTS)
    processor.image_processor.do_normalize, processor.image_processor.rescale_factor = False, 1 / 51
    image = Image.new("RGB", (40, 30), (51, 102, 204))
    expected = shown(processor, image)[:, 0, 0]  # BridgeTower's normalizes in any case
    if family == "vilt":
        np.testing.assert_allclose(expected, [1, 2, 4], rtol=1e-6)
    seen = shown(whole_images(processor, TINY[family]().config), image)
    np.testing.assert_allclose(seen, np.broadcast_to(expected[:, None, None], (3, 32, 32)), rtol=1e-6)


@pytest.mark.parametrize(("image_size", "num_patches"), [(None, 16), (64, 64)])
def test_naflex_shows_squares_and_is_saved_as_it_came(tmp_path, image_size, num_patches):
    """Its image processor makes patches in the shape of each image, which no batch could have."""
    model, processor = build("siglip2")
    model.save_pretrained(tmp_path)
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    expected = json.loads(processor.to_json_string())
    expected["image_processor"]["max_num_patches"] = num_patches
    side = image_size or 32
    for _ in range(2):  # what was saved is loaded as that, and shown alike
        shows = whole_images(whole_images(processor, model.config, image_size), model.config)
        assert shown(shows, picture()).shape == (3, side, side)
        assert json.loads(shows.to_json_string()) == expected
        shows.save_pretrained(tmp_path)
        processor, image_size = AutoProcessor.from_pretrained(tmp_path), None
        assert type(processor.image_processor) is Siglip2ImageProcessorPil
        assert processor.image_processor.max_num_patches == num_patches
    answers = AutoGrounder.from_pretrained(str(tmp_path), device="cpu").ground(picture(), TEXTS)
    same(AutoGrounder(model, shows).ground(picture(), TEXTS), answers)


def test_a_pipeline_of_transformers_shows_whole_images_too():
    processor = CLIPProcessor(CLIPImageProcessorPil(), tiny_processor().tokenizer)
    ground = AutoGroundingPipeline(TINY["clip"](), processor, task="visual-grounding", device="cpu")
    assert ground.processor.image_processor.do_center_crop is False
    assert processor.image_processor.do_center_crop is True  # it may serve another model, too


@every_family
def test_a_processor_that_cut_phrases_is_saved_as_it_was(family, folder):
    """BLIP-2's of a checkpoint for matching could not take an image afterwards."""
    expected = AutoGrounder.from_pretrained(folder, device="cpu").ground(picture(), TEXTS)
    model, processor = build(family)
    processor = whole_images(processor, model.config)
    collator_of(processor, max_length=3, mlm_probability=0.0)(tiny_records(2))
    processor.save_pretrained(folder)
    grounder = AutoGrounder.from_pretrained(folder, device="cpu")
    tokenizer = grounder.processor.tokenizer.backend_tokenizer
    assert tokenizer.truncation is None and tokenizer.padding is None
    same(grounder.ground(picture(), TEXTS), expected)


# Training -------------------------------------------------------------------------------------------------------------


def first_step(model, folder, **settings) -> tuple[dict, dict]:
    """Logs and, of the trained layers, gradients of one training step."""
    trainer = make_trainer(folder, model, tiny_dataset(8), collator_of(), max_steps=1, **settings)
    trainer.train()
    return trainer.state.log_history[0], trainer


@pytest.mark.parametrize("adapters", [LORA, DORA, IA3, TOKENS], ids=["LoRA", "DoRA", "IA3", "tokens"])
def test_albef_in_peft_is_trained_by_all_of_its_objectives(adapters, tmp_path):
    """`get_peft_model` puts adapters into the teacher too; its values follow the merged student's."""
    plain = tiny_albef()
    wrapped = get_peft_model(copy.deepcopy(plain), adapters)
    logs, _ = first_step(plain, tmp_path / "plain")
    found, trainer = first_step(wrapped, tmp_path / "peft")
    names = "loss", "loss_itc", "loss_itm", "loss_mlm", "loss_amc_mean", "loss_amc_max"
    assert {name: found[name] for name in names} == pytest.approx({name: logs[name] for name in names}, rel=1e-5)
    assert trainer.model.queue_pointer == 4
    teacher, student = trainer.model.momentum_encoder, wrapped.merge_and_unload().albef
    assert not [name for name, _ in teacher.named_modules() if "lora" in name or "ia3" in name]
    with torch.no_grad():
        trainer.model.restart_momentum_encoder()
    for name, parameter in teacher.vision_model.named_parameters():
        torch.testing.assert_close(parameter, student.vision_model.get_parameter(name))


@needs("transformers>=5.18", "LoRA")
@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"bridgetower"}))  # which cannot be checkpointed
def test_adapters_with_activation_checkpointing(family, tmp_path):
    """The words then begin a graph, in a leaf that BLIP and BLIP-2 would add to in place."""
    plain = tiny_albef() if family == "albef" else build(family)[0]
    if family in DECODERS:
        plain.set_attn_implementation("eager")
    logs = []
    for name in ("not", "by setting", "by hand"):
        model = copy.deepcopy(plain)
        if name == "by hand":
            enable_checkpointing(model)
        torch.manual_seed(0)
        found, trainer = first_step(get_peft_model(model, LORA), tmp_path, **{CHECKPOINTING: name == "by setting"})
        logs.append({name: found[name] for name in ("loss", "grad_norm", "loss_amc_max")})
        assert AutoGrounder(trainer.model, build(family)[1]).score(picture(), TEXTS)
    assert logs[1] == logs[2] == pytest.approx(logs[0], rel=1e-4)


@pytest.mark.parametrize("family", ["albef", "clip"])
def test_trained_adapters_are_merged_as_of_peft(family, tmp_path):
    plain = tiny_albef() if family == "albef" else build(family)[0]
    adapted = get_peft_model(plain, LORA)
    first_step(adapted, tmp_path / "adapted")
    expected = explain_function(adapted)(adapted.eval(), **tiny_batch()).score
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    found = load_model(str(tmp_path / "merged"))
    torch.testing.assert_close(explain_function(found)(found, **tiny_batch()).score, expected, rtol=1e-4, atol=1e-5)
    for parameter_name, parameter in merged.named_parameters():  # merging leaves all of them frozen
        parameter.requires_grad_("momentum" not in parameter_name)
    _, trainer = first_step(merged, tmp_path / "more")
    trainer.save_model()
    assert (tmp_path / "more" / "model.safetensors").exists()


def test_adapters_that_cannot_be_saved_or_loaded_as_they_are(tmp_path):
    several = get_peft_model(TINY["clip"](), LORA)
    several.add_adapter("second", LORA)
    several.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="Several adapters are active, default, second"):
        make_trainer(tmp_path / "several", several)
    for adapters, message in (
        (VERA, "VERA adapters .* set their save_projection to False"),
        (
            RandLoraConfig(r=2, target_modules=["q_proj"]),
            "RANDLORA adapters .* set their save_projection to False",
        ),
        (VBLoRAConfig(target_modules=["q_proj"], vector_length=4), "VBLORA adapters share a bank of vectors"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path / "shared", get_peft_model(TINY["clip"](), adapters))


@pytest.mark.parametrize("way", ["a second one", "by the class"])
def test_adapters_without_the_name_of_their_base_are_saved_with_it(way, tmp_path):
    """`get_peft_model` alone fills it in at once."""
    for part in build("clip"):
        part.save_pretrained(tmp_path / "base")
    if way == "a second one":
        adapted = get_peft_model(load_model(str(tmp_path / "base")), LORA)
        adapted.add_adapter("second", LoraConfig(target_modules=MODULES))
        adapted.set_adapter("second")
    else:
        adapted = PeftModel(load_model(str(tmp_path / "base")), LoraConfig(target_modules=MODULES))
    _, trainer = first_step(adapted, tmp_path / "run")
    trainer.save_model()
    loaded = load_model(str(tmp_path / "run"))
    ask = explain_function(loaded)
    expected = ask(trainer.model.eval(), **tiny_batch()).score
    torch.testing.assert_close(ask(loaded.eval(), **tiny_batch()).score, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("adapters", "message"),
    [(DORA, "lora_magnitude_vector.* cannot be loaded. Merge them"), (VERA, "does not support .*VERA.* Merge them")],
    ids=["DoRA", "VeRA"],
)
def test_adapters_that_have_to_be_merged(adapters, message, tmp_path):
    base, saved, merged = (str(tmp_path / name) for name in ("base", "saved", "merged"))
    for part in build("clip"):
        part.save_pretrained(base)
    adapted = get_peft_model(load_model(base), adapters)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(mean=1, std=0.3)
    adapted.save_pretrained(saved)  # without a processor
    with pytest.raises(ValueError, match=message):
        load_model(saved)
    build("clip")[1].save_pretrained(saved)
    for load in (AutoModelForVisualGrounding.from_pretrained, partial(pipeline, "visual-grounding")):
        with pytest.raises(AdapterError, match=message):
            load(model=saved) if isinstance(load, partial) else load(saved)
    merge(saved, merged)
    assert len(AutoGrounder.from_pretrained(merged, device="cpu").score(picture(), TEXTS)) == 2
    batch = tiny_batch()
    found, expected = (explain_function(each)(each, **batch).score for each in (load_model(merged), adapted.eval()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("adapters", "facts"),
    [(LORA, "LoRA adapters.*\\| rank \\| 2, scaled by 8 / 2, dropout 0 \\|"), (IA3, "IA3 adapters")],
)
def test_the_card_of_a_model_that_came_in_peft(adapters, facts, tmp_path):
    trainer = make_trainer(tmp_path, get_peft_model(TINY["clip"](), adapters))
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert re.search(facts + r".*\| modules \| `q_proj, qkv, query, v_proj, value` \|", card, re.DOTALL)
    assert f"\n- {adapters.peft_type.lower()}\n" in card


@needs("transformers>=5.18", "a class of a checkpoint's own code before the others of its files")
def test_albef_of_a_checkpoints_own_code_is_trained_by_all_of_its_objectives(tmp_path):
    plain = tiny_albef()
    plain.save_pretrained(tmp_path / "checkpoint")
    own = "modeling_albef_pretraining.AlbefForPreTraining"
    remote = get_class_from_dynamic_module(own, str(tmp_path / "checkpoint")).from_pretrained(tmp_path / "checkpoint")
    assert type(remote).__module__.startswith("transformers_modules.")
    (logs, _), (found, _) = first_step(plain, tmp_path / "plain"), first_step(remote, tmp_path / "remote")
    for name in ("loss", "loss_itc", "loss_itm", "loss_mlm", "loss_amc_max"):
        assert found[name] == pytest.approx(logs[name], rel=1e-5)


def test_a_model_without_the_objectives_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="AlbefModel has no ITC and no MLM: load AlbefForPreTraining with from_pretr"):
        make_trainer(tmp_path, tiny_albef().albef)
    make_trainer(tmp_path, tiny_albef().albef, itc_weight=0.0, mlm_weight=0.0).train()
    with pytest.raises(ValueError, match="set torch_compile=True"):
        make_trainer(tmp_path, torch.compile(tiny_albef(), backend="eager"))
    with pytest.raises(ValueError, match="torch_compile must be False for CLIPModel"):
        make_trainer(tmp_path, TINY["clip"](), torch_compile=True, torch_compile_backend="eager")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")  # accelerate launch --dynamo_backend eager
    with pytest.raises(ValueError, match="ACCELERATE_DYNAMO_BACKEND, of accelerate, must be no for CLIPModel"):
        make_trainer(tmp_path, TINY["clip"]())
