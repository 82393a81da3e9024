"""Attention maps, relevance, heads and layers: against values worked out step by step."""

import copy
import json
import re
from io import BytesIO

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from modeling_albef_amc import AlbefModel, AutoGrounder, explain_function, gradcam, groundable
from modeling_albef_amc.families.auto import load_model
from modeling_albef_amc.families.gradient import gradient_map
from modeling_albef_amc.families.registry import FAMILIES, METHODS, explained_layers
from modeling_albef_amc.families.relevance import LayerAttention, relevance
from modeling_albef_amc.gradcam import PhraseAttention, attention_map
from tests.helpers.data import PHRASES, picture, tiny_albef, tiny_processor, tiny_records, write_folder
from tests.helpers.models import TINY, tiny_batch, tiny_config, tiny_family_processor
from trainer import evaluate_grounding, sweep_layers
from trainer.evaluation import batch_heatmaps
from trainer.heads import HeadGrounder
from trainer.training import set_explained

MODELS = {"albef": lambda: AlbefModel(tiny_config()).eval(), **TINY}
WITH_RELEVANCE = [name for name, family in FAMILIES.items() if family.modules is not None]


def random_attention(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64).softmax(dim=-1).requires_grad_()


def test_the_attention_map_by_hand():
    attention = torch.tensor([[[[0.1, 0.2, 0.3, 0.4, 0.0]] * 2, [[0.5, 0.0, 0.1, 0.2, 0.2]] * 2]], requires_grad=True)
    explained = PhraseAttention(attention.sum()[None], attention, torch.tensor([[1, 0]]), slice(1, None), (2, 2))
    assert torch.allclose(attention_map(explained), torch.tensor([[[0.1, 0.2], [0.3, 0.1]]]))
    assert torch.allclose(attention_map(explained, per_head=True)[0, 0], torch.tensor([[0.2, 0.3], [0.4, 0.0]]))
    assert (attention_map(explained, per_token=True)[0, 1] == 0).all()
    with pytest.raises(ValueError, match="returned no attention"):
        attention_map(explained._replace(attention=None))
    with pytest.raises(ValueError, match="grid of 3 x 2"):
        attention_map(explained._replace(grid=(3, 2)))


@pytest.mark.parametrize("method", [gradcam, attention_map, gradient_map])
@pytest.mark.parametrize("family", MODELS)
def test_the_mean_of_the_heads_is_the_map(family, method):
    model = MODELS[family]()
    explain = explain_function(model)
    of_heads = method(explain(model, **tiny_batch()), per_head=True)
    mean = method(explain(model, **tiny_batch()))
    torch.testing.assert_close(of_heads.mean(dim=1), mean, rtol=1e-4, atol=1e-6 * mean.max().item())
    of_tokens = method(explain(model, **tiny_batch()), per_head=True, per_token=True)
    assert of_tokens.shape[:2] == of_heads.shape[:2] and of_tokens.ndim == 5


def test_relevance_of_one_attention_is_its_own():
    """With a cross-attention alone nothing is handed on: the row of [CLS] of ReLU(gradient · attention)."""
    attention = random_attention(2, 3, 4, 5)
    factor = torch.randn_like(attention)
    score = (attention * factor).sum(dim=(1, 2, 3))
    explained = PhraseAttention(score, attention, torch.ones(2, 4), slice(1, None), (2, 2))
    found = relevance(explained._replace(layers=(LayerAttention("cross", attention),)))
    expected = (attention * factor).relu().mean(dim=1)[:, 0, 1:].reshape(2, 2, 2)
    torch.testing.assert_close(found, expected.detach())
    unread = [LayerAttention("cross", random_attention(2, 3, 4, 5)) for _ in range(2)]
    with pytest.raises(ValueError, match=r"does not depend on the recorded attention.*dynamic quantisation"):
        relevance(explained._replace(layers=tuple(unread)))
    with pytest.raises(ValueError, match="explain_all_layers"):
        relevance(explained)


def test_relevance_step_by_step():
    """Text, cross, text, cross over an image encoder of two layers, written down with loops for one phrase."""
    torch.manual_seed(0)
    kinds = ["image", "image", "text", "cross", "text", "cross"]
    sizes = {"image": (5, 5), "text": (3, 3), "cross": (3, 5)}
    attentions = [random_attention(1, 2, *sizes[kind]) for kind in kinds]
    factors = [torch.randn_like(attention) for attention in attentions]
    # Products, so that every gradient depends on the other attentions too.
    parts = [(attention * factor).sum() for attention, factor in zip(attentions, factors)]
    score = torch.stack([parts[0] * parts[3], parts[1] * parts[5], parts[2] * parts[4]]).sum()[None]
    layers = tuple(LayerAttention(kind, attention) for kind, attention in zip(kinds, attentions))
    found = relevance(PhraseAttention(score, attentions[5], torch.ones(1, 3), slice(1, None), (2, 2), layers=layers))

    others = [3, 5, 4, 0, 2, 1]  # the part that each is multiplied by
    bars = [
        (attention * factor * parts[other]).detach().clamp(min=0)[0].mean(dim=0)
        for attention, factor, other in zip(attentions, factors, others)
    ]
    image, text, cross = torch.eye(5).double(), torch.eye(3).double(), torch.zeros(3, 5).double()

    def normalized(matrix):
        rest = matrix - torch.eye(len(matrix))
        sums = rest.sum(dim=1, keepdim=True)
        return torch.where(sums > 0, rest / sums, 0) + torch.eye(len(matrix))

    for kind, bar in zip(kinds, bars):
        if kind == "image":
            image = image + bar @ image
        elif kind == "text":
            text, cross = text + bar @ text, cross + bar @ cross
        else:
            cross = cross + normalized(text).T @ bar @ normalized(image)
    torch.testing.assert_close(found, cross[None, 0, 1:].reshape(1, 2, 2))


@pytest.mark.parametrize("family", WITH_RELEVANCE)
def test_relevance_of_every_family_that_has_it(family):
    model, batch = MODELS[family](), tiny_batch()
    explained = explain_function(model, "relevance")(model, **batch)
    torch.testing.assert_close(explained.score, explain_function(model)(model, **batch).score, rtol=1e-4, atol=1e-5)
    found = relevance(explained)
    assert found.shape == (4, 4, 4) and (found >= 0).all() and (found.amax(dim=(1, 2)) > 0).all()
    # All attention of the family was recorded, and each phrase has its own.
    assert len(explained.layers) == len(FAMILIES[family].modules(model)) >= 3
    shared = batch | {"pixel_values": batch["pixel_values"][:1], "image_index": torch.zeros(4, dtype=torch.long)}
    together = relevance(explain_function(model, "relevance")(model, **shared))
    for row in range(4):
        alone = {name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask")}
        own = relevance(explain_function(model, "relevance")(model, batch["pixel_values"][:1], **alone))
        torch.testing.assert_close(together[row], own[0], rtol=1e-3, atol=1e-5 * own.max().item())


@pytest.mark.parametrize("family", WITH_RELEVANCE)
def test_relevance_of_a_frozen_model(family):
    model = MODELS[family]()
    expected = relevance(explain_function(model, "relevance")(model, **tiny_batch()))
    frozen = copy.deepcopy(model).requires_grad_(False)
    before = frozen.config._attn_implementation
    with torch.no_grad():
        explained = explain_function(frozen, "relevance")(frozen, **tiny_batch())
    torch.testing.assert_close(relevance(explained), expected, rtol=1e-4, atol=1e-6)
    assert frozen.config._attn_implementation == before


@pytest.mark.parametrize("parts", [{"": "eager", "vision_config": "sdpa"}, {"": "sdpa", "text_config": "eager"}])
def test_relevance_leaves_the_attention_of_every_part(parts):
    model = MODELS["albef"]()
    model.set_attn_implementation("eager")
    expected = relevance(explain_function(model, "relevance")(model, **tiny_batch()))
    model.set_attn_implementation(parts)
    before = [part.config._attn_implementation for part in (model, model.vision_model, model.text_model)]
    assert set(before) == {"eager", "sdpa"}
    torch.testing.assert_close(relevance(explain_function(model, "relevance")(model, **tiny_batch())), expected)
    assert before == [part.config._attn_implementation for part in (model, model.vision_model, model.text_model)]


def test_what_cannot_be_explained_says_so():
    model = MODELS["blip-2"]()
    with pytest.raises(ValueError, match=r"relevance is not worked out for blip-2, only for albef, blip, vilt, clip"):
        explain_function(model, "relevance")
    with pytest.raises(ValueError, match="method 'saliency': choose one of gradcam, attention, gradient, relevance"):
        explain_function(model, "saliency")
    model = MODELS["albef"]()
    with pytest.raises(ValueError, match="leave out grounding_layer"):
        explain_function(model, "relevance")(model, **tiny_batch(), layer=2)


def quantised(model: torch.nn.Module, pattern: str) -> torch.nn.Module:
    """With those linear layers in torch's dynamic quantisation whose names have the pattern."""
    linear = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    chosen = [name for name in linear if re.search(pattern, name)]
    assert chosen
    how = torch.ao.quantization.default_dynamic_qconfig
    return torch.ao.quantization.quantize_dynamic(model, dict.fromkeys(chosen, how))


# BLIP-2, transformers' own too, asks its matching head for the dtype of its weights.
ALL, MLPS = r"^(?!itm_head)", r"(fc\d|intermediate|intermediate\.dense)$"


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize(
    ("family", "layers"), [*((family, ALL) for family in MODELS), ("albef", MLPS), ("blip", MLPS), ("clip", MLPS)]
)
def test_a_part_of_a_gradient_is_no_heatmap(family, layers):
    """Some of it goes around layers of dynamic quantisation, which let none through."""
    model, batch = quantised(MODELS[family](), layers), tiny_batch()
    explained = explain_function(model)(model, **batch)
    assert ((explained.probability >= 0) & (explained.probability <= 1)).all()
    assert attention_map(explained).amax(dim=(1, 2)).min() > 0
    with pytest.raises(ValueError, match="no gradient through layers of dynamic quantisation"):
        gradcam(explained)
    if family in WITH_RELEVANCE:
        with pytest.raises(ValueError, match="dynamic quantisation"):
            relevance(explain_function(model, "relevance")(model, **batch))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_what_is_quantised_below_an_explained_attention_matters_to_no_gradient():
    model, batch = MODELS["blip"](), tiny_batch()
    images = quantised(model, "vision_model")
    image_embeds = FAMILIES["blip"].encode_images(images, batch["pixel_values"]).detach()
    expected = gradcam(explain_function(model)(model, **batch, image_embeds=image_embeds))
    torch.testing.assert_close(gradcam(explain_function(images)(images, **batch)), expected)
    plain = gradcam(explain_function(model)(model, **batch))
    assert not torch.allclose(plain, expected, rtol=1e-3)


@pytest.mark.parametrize("family", MODELS)
def test_every_layer_that_is_named_can_be_explained(family):
    model = MODELS[family]()
    layers = list(explained_layers(model))
    maps = [gradcam(explain_function(model)(model, **tiny_batch(), layer=layer)) for layer in layers]
    assert len(layers) >= 2 or family in ("blip-2", "gemma3", "qwen3_5", "kosmos-2")
    assert not any(torch.allclose(maps[0], other) for other in maps[1:])
    with pytest.raises(ValueError, match="layer" if family == "albef" else r"layer 9 .*choose one of [01]"):
        explain_function(model)(model, **tiny_batch(), layer=9)
    with pytest.raises(ValueError, match="explanation 'lrp'"):
        explain_function(model)(model, **tiny_batch(), explanation="lrp")


# As they were trained -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["clip", "siglip", "blip"])
def test_heatmaps_are_as_they_were_trained(family, tmp_path):
    """Method and layer are in the configuration: training goes on by them, and every way in takes them."""
    model, batch = TINY[family](), tiny_batch()
    set_explained(model, None, 0, "gradient")
    expected = gradient_map(explain_function(model)(model, **batch, layer=0))
    for part in (model, tiny_family_processor(family, PHRASES)):
        part.save_pretrained(tmp_path)
    trained = groundable(load_model(str(tmp_path), training=True).eval())
    torch.testing.assert_close(trained(**batch, output_heatmaps=True).heatmaps, expected)
    whole = {"attention_mask": None, "image_index": None, **batch}
    evaluated = batch_heatmaps(trained, explain_function(trained), whole)
    torch.testing.assert_close(evaluated, expected)
    grounder = AutoGrounder.from_pretrained(str(tmp_path), device="cpu")
    pipeline = transformers.pipeline("visual-grounding", model=str(tmp_path), device="cpu")
    told = dict(method="gradient", grounding_layer=0)
    asked = picture(), PHRASES
    answers = [grounder.ground(*asked), grounder.ground(*asked, **told), pipeline(*asked)]
    for found in answers[1:]:
        for one, other in zip(answers[0], found, strict=True):
            assert np.allclose(one["heatmap"], other["heatmap"], atol=1e-6 * one["heatmap"].max())
    for other in (told | dict(method="gradcam"), told | dict(grounding_layer=1)):
        assert not np.allclose(answers[0][0]["heatmap"], grounder.ground(*asked, **other)[0]["heatmap"])


def test_what_cannot_be_trained_says_so():
    for wrong, message in (
        (("itm", None, None), "'itm': CLIP has itc"),
        ((None, 9, None), "grounding_layer 9: choose one of range"),
        ((None, None, "attention"), "'attention': heatmaps are trained by gradcam or gradient"),
    ):
        with pytest.raises(ValueError, match=message):
            set_explained(TINY["clip"](), *wrong)
    with pytest.raises(ValueError, match="of other families: see ALBEF's model_config"):
        set_explained(tiny_albef(), None, None, "gradient")


# Ways in --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(1)
    tiny_albef().albef.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_the_pipeline_by_every_method(checkpoint, method):
    grounder = AutoGrounder.from_pretrained(str(checkpoint))
    (answer,) = grounder.ground(picture(), "red square on the left", method=method)
    inputs = grounder.processor(images=picture(), text="red square on the left", return_tensors="pt")
    explained = explain_function(grounder.model, method)(grounder.model, **inputs)
    expected = grounder.processor.post_process_grounding(METHODS[method](explained), [picture().size[::-1]])[0]
    assert answer["point"] == expected["point"]
    torch.testing.assert_close(torch.tensor(answer["heatmap"]), expected["heatmap"])


def test_the_pipeline_refuses(checkpoint):
    grounder = AutoGrounder.from_pretrained(str(checkpoint))
    with pytest.raises(ValueError, match="method 'saliency'"):
        grounder.ground(picture(), "red square", method="saliency")
    with pytest.raises(ValueError, match="no map of the words of a caption"):
        grounder.ground(picture(), {"caption": "a red square", "caption_span": (1, 3)}, method="relevance")


def test_the_sweep_agrees_with_the_evaluation_of_every_layer(checkpoint, tmp_path, capsys):
    data = write_folder(tmp_path / "data", test=tiny_records(12, without_region=(3,)))
    source = ["--dataset", str(data), "--cpu", "--batch_size", "4"]
    for method in ("gradcam", "attention"):
        options = [*source, "--method", method]
        found = sweep_layers.main(["--model", str(checkpoint), "--split", "test", *options, "--output", str(tmp_path)])
        expected = {}
        for layer in found["layers"]:
            more = ["--grounding_layer", str(layer), "--num_pictured", "0", "--output", str(tmp_path / f"{layer}")]
            expected[layer] = evaluate_grounding.main(["--models", f"m={checkpoint}", *options, *more, "--overwrite"])[
                "m"
            ]["test"]
        assert {layer: scores["all heads"] for layer, scores in found["layers"].items()} == expected
        best = max(expected, key=expected.get)
        assert found["best"] == {"layer": best, "accuracy": expected[best]}
        assert f"--grounding_layer {best}" in capsys.readouterr().out
    assert json.loads((tmp_path / "layers.json").read_text())["best"] == found["best"]


def test_the_sweep_of_heads(checkpoint, tmp_path):
    data = write_folder(tmp_path / "data", test=tiny_records(6))
    found = sweep_layers.main(
        ["--model", str(checkpoint), "--dataset", str(data), "--split", "test", "--cpu", "--heads"]
    )
    num_heads = tiny_config().text_config.num_attention_heads
    assert list(found["layers"][found["best"]["layer"]]) == ["all heads", *map(str, range(num_heads))]
    grounder, records = AutoGrounder.from_pretrained(str(checkpoint)), tiny_records(6)
    model, processor = grounder.model, grounder.processor
    for layer, scores in found["layers"].items():
        hits = 0
        for record in records:
            photo = Image.open(BytesIO(record["image"]["bytes"]))
            inputs = processor(images=photo, text=record["phrase"], return_tensors="pt")
            of_heads = gradcam(explain_function(model)(model, **inputs, layer=layer), per_head=True)
            x, y = processor.post_process_grounding(of_heads[:, 1], [photo.size[::-1]])[0]["point"]
            hits += any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in record["boxes"])
        assert scores["1"] == hits / 6


def test_heads_that_are_chosen(checkpoint, tmp_path, capsys):
    """Maps are the mean of theirs, of one layer or several; the sweep names the best."""
    data = write_folder(tmp_path / "data", test=tiny_records(6))
    source = ["--dataset", str(data), "--cpu"]
    found = sweep_layers.main(["--model", str(checkpoint), "--split", "test", "--heads", *source])
    values = [value for of in found["layers"].values() for head, value in of.items() if head != "all heads"]
    best, value = next(iter(found["best_heads"].items()))
    assert value == max(values) and [*found["best_heads"].values()] == sorted(values, reverse=True)[:5]
    command = ["--models", f"m={checkpoint}", *source, "--num_pictured", "0"]
    report = evaluate_grounding.main([*command, "--output", str(tmp_path / "one"), "--heads", best])
    assert report["m"]["test"] == value
    grounder = HeadGrounder.from_pretrained(str(checkpoint), device="cpu")
    grounder.heads = [(3, 1), (4, 0)]
    (answer,) = grounder.ground(picture(), PHRASES[:1])
    plain = AutoGrounder.from_pretrained(str(checkpoint), device="cpu")
    inputs = plain.processor(images=picture(), text=PHRASES[:1], return_tensors="pt")
    explain = explain_function(plain.model)
    maps = [
        gradcam(explain(plain.model, **inputs, layer=layer), per_head=True)[:, head] for layer, head in grounder.heads
    ]
    size = picture().height, picture().width
    expected = plain.processor.post_process_grounding(sum(maps) / 2, [size])[0]["heatmap"]
    np.testing.assert_allclose(answer["heatmap"], expected, rtol=1e-4, atol=1e-8)
    for wrong, message in (("0.1", "layer 0 explains nothing here"), ("3.9", "layer 3 has heads 0 to 1")):
        with pytest.raises(ValueError, match=message):
            evaluate_grounding.main([*command, "--output", str(tmp_path / wrong), "--heads", wrong])
    for wrong in ("3", "3.1;4.0"):
        with pytest.raises(SystemExit):
            evaluate_grounding.main([*command, "--output", str(tmp_path / "x"), "--heads", wrong])
    assert "such as 14.24,14.13" in capsys.readouterr().err


def test_the_sweep_of_a_model_that_diverged(checkpoint, tmp_path):
    diverged = AlbefModel.from_pretrained(checkpoint)
    diverged.itm_head.weight.data.fill_(float("nan"))
    for part in (diverged, tiny_processor()):
        part.save_pretrained(tmp_path / "model")
    data = write_folder(tmp_path / "data", test=tiny_records(2))
    with pytest.raises(ValueError, match="heatmap 0 has NaN or infinite values: the model diverged"):
        sweep_layers.main(["--model", str(tmp_path / "model"), "--dataset", str(data), "--split", "test", "--cpu"])


def test_the_sweep_refuses(checkpoint, tmp_path, capsys):
    data = write_folder(tmp_path / "data", test=tiny_records(2, without_region=(0, 1)))
    arguments = ["--model", str(checkpoint), "--dataset", str(data), "--split", "test", "--cpu"]
    with pytest.raises(ValueError, match="no phrase with a box"):
        sweep_layers.main(arguments)
    with pytest.raises(SystemExit):
        sweep_layers.main([*arguments, "--method", "relevance"])
    assert "gradcam, attention or gradient" in capsys.readouterr().err
