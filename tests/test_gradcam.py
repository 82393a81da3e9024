"""Heatmaps: Grad-CAM by hand on a hand-made attention, and what ALBEF's maps must not depend on."""

from functools import partial

import pytest
import torch
from torch import nn

from modeling_albef_amc import AlbefModel, PhraseAttention
from modeling_albef_amc.families.gradient import gradient_map
from modeling_albef_amc.families.hooks import record_attention
from modeling_albef_amc.gradcam import attention_map, gradcam, normalize_heatmaps
from tests.helpers.models import tiny_batch, tiny_config

# One phrase, two heads, two tokens, a [CLS] patch and 2 x 2 patches.
ATTENTION = [
    [[[0.1, 0.2, 0.3, 0.4, 0.0], [0.5, 0.5, 0.0, 0.0, 0.0]], [[0.0, 1.0, 0.0, 0.0, 0.0], [0.2, 0.2, 0.2, 0.2, 0.2]]]
]
GRADIENT = [
    [
        [[9.0, 1.0, -1.0, 2.0, 5.0], [9.0, 4.0, 1.0, 1.0, 1.0]],
        [[9.0, -3.0, 1.0, 1.0, 1.0], [9.0, 0.0, 1.0, 2.0, -10.0]],
    ]
]
# A · ReLU(G) without [CLS], then the mean over heads: negative gradients count for nothing.
FIRST_TOKEN = [[0.1, 0.0], [0.4, 0.0]]
SECOND_TOKEN = [[1.0, 0.1], [0.2, 0.0]]
BOTH_TOKENS = [[0.55, 0.05], [0.3, 0.0]]


def hand_made(token_mask=((1, 1),), grid=(2, 2), dtype=torch.float32) -> PhraseAttention:
    attention = torch.tensor(ATTENTION, dtype=dtype, requires_grad=True)
    score = (attention * torch.tensor(GRADIENT, dtype=dtype)).sum(dim=(1, 2, 3))
    return PhraseAttention(score, attention, torch.tensor(token_mask), slice(1, None), grid)


def grounding_model(**overrides) -> AlbefModel:
    return AlbefModel(tiny_config(**overrides)).eval()


def heatmaps_of(model, batch, **options) -> torch.Tensor:
    heatmaps = model(**batch, output_heatmaps=True, **options).heatmaps
    assert (heatmaps.amax(dim=(1, 2)) > 1e-8).all()  # something to compare
    return heatmaps


# gradcam by hand ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token_mask", "expected"),
    [([[1, 1]], BOTH_TOKENS), ([[1, 0]], FIRST_TOKEN), ([[0, 1]], SECOND_TOKEN), ([[0, 0]], [[0.0, 0.0], [0.0, 0.0]])],
)
def test_mean_over_heads_and_valid_tokens(token_mask, expected):
    heatmaps = gradcam(hand_made(token_mask))
    torch.testing.assert_close(heatmaps, torch.tensor([expected]))
    assert not heatmaps.requires_grad


def test_maps_of_single_tokens():
    torch.testing.assert_close(gradcam(hand_made(), per_token=True), torch.tensor([[FIRST_TOKEN, SECOND_TOKEN]]))
    padded = gradcam(hand_made([[1, 0]]), per_token=True)
    torch.testing.assert_close(padded, torch.tensor([[FIRST_TOKEN, [[0.0, 0.0], [0.0, 0.0]]]]))


def test_the_attention_alone():
    expected = torch.tensor([[[0.6, 0.15], [0.2, 0.0]], [[0.35, 0.1], [0.1, 0.1]]])  # of each token, by hand
    torch.testing.assert_close(attention_map(hand_made(), per_token=True), expected[None])
    torch.testing.assert_close(attention_map(hand_made()), expected.mean(dim=0, keepdim=True))


def test_the_gradient_alone():
    expected = torch.tensor([[[0.5, 0.5], [1.5, 3.0]], [[2.0, 1.0], [1.5, 0.5]]])  # of each token, by hand
    torch.testing.assert_close(gradient_map(hand_made(), per_token=True), expected[None])
    torch.testing.assert_close(gradient_map(hand_made()), expected.mean(dim=0, keepdim=True))
    assert gradient_map(hand_made(dtype=torch.bfloat16)).dtype == torch.float32


def test_rows_come_before_columns():
    attention = torch.arange(1.0, 8.0).reshape(1, 1, 1, 7).requires_grad_()
    explained = PhraseAttention(attention.sum(dim=(1, 2, 3)), attention, torch.ones(1, 1), slice(1, None), (2, 3))
    assert gradcam(explained).tolist() == [[[2.0, 3.0, 4.0], [5.0, 6.0, 7.0]]]


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    ("method", "expected", "derivative"),
    [
        (gradcam, [4.0, 36.0, 0.0, 12.5], [0.0, 4.0, 24.0, 0.0, 5.0]),
        (gradient_map, [2.0, 12.0, 0.0, 2.5], [0.0, 1.0, 4.0, 0.0, 0.5]),
    ],
)
def test_second_order(method, expected, derivative, create_graph):
    """With s = ½ Σ w·a², the map is a · w·a, and its derivative 2·w·a; without the second order it would be w·a.

    The gradient alone is w·a, and its derivative w.
    """
    values, weights = torch.tensor([9.0, 2.0, 3.0, 1.0, 5.0]), torch.tensor([9.0, 1.0, 4.0, -1.0, 0.5])
    attention = values.clone().requires_grad_()
    probabilities = attention.reshape(1, 1, 1, 5) * 1.0
    score = (weights * probabilities**2 / 2).sum().reshape(1)
    explained = PhraseAttention(score, probabilities, torch.ones(1, 1), slice(1, None), (2, 2))
    heatmaps = method(explained, create_graph)
    assert heatmaps.flatten().tolist() == expected
    assert heatmaps.requires_grad == create_graph
    if create_graph:
        heatmaps.sum().backward()
        assert attention.grad.tolist() == derivative


def test_low_precision_is_left_before_the_product():
    heatmaps = gradcam(hand_made(dtype=torch.bfloat16))
    assert heatmaps.dtype == torch.float32
    torch.testing.assert_close(heatmaps, torch.tensor([BOTH_TOKENS]), rtol=0.01, atol=0.01)
    assert gradcam(hand_made(dtype=torch.float64)).dtype == torch.float64


def test_errors_of_gradcam():
    good = hand_made()
    with pytest.raises(ValueError, match=r"no attention probabilities.*attn_implementation='eager'"):
        gradcam(good._replace(attention=None))
    with pytest.raises(ValueError, match="no graph back to the attention"):
        gradcam(good._replace(score=good.score.detach()))
    with pytest.raises(ValueError, match="no graph back to the attention"):
        gradcam(good._replace(attention=good.attention.detach()))
    with pytest.raises(ValueError, match="does not depend on the recorded attention"):
        gradcam(good._replace(attention=good.attention[..., 1:]))
    with pytest.raises(ValueError, match="grid of 3 x 2 does not fit 4 patches"):
        gradcam(hand_made(grid=(3, 2)))


# Reading maps ---------------------------------------------------------------------------------------------------------


def test_normalized_heatmaps():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 5.0]], [[-1.0, 0.0], [1.0, 4.0]], [[7.0, 7.0], [7.0, 7.0]]])
    expected = torch.tensor([[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.0], [0.25, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(normalize_heatmaps(maps), expected)
    assert normalize_heatmaps(maps.to(torch.bfloat16)).dtype == torch.float32
    # A maximum as small as the epsilon is halved.
    assert normalize_heatmaps(torch.tensor([[[0.0, 1e-7]]])).tolist() == [[[0.0, pytest.approx(0.5)]]]


# record_attention -----------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    def forward(self, value):
        if value is None:
            raise RuntimeError("no value")
        return value, value * 2, value * 3


def test_record_attention_records_every_pass_and_leaves_no_hook():
    module = Pair()
    with record_attention(module) as recorded, record_attention(module, index=2) as third:
        module(torch.tensor(1.0, requires_grad=True))
        module(torch.tensor(2.0))
    module(torch.tensor(3.0))
    assert [tensor.item() for tensor in recorded] == [2.0, 4.0]
    assert [tensor.item() for tensor in third] == [3.0, 6.0]
    assert recorded[0].requires_grad
    with pytest.raises(RuntimeError, match="no value"), record_attention(module):
        assert module._forward_hooks
        module(None)
    assert not module._forward_hooks


# ALBEF's maps: how they are computed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("explanation", ["itm", "itc"])
@pytest.mark.parametrize("inputs_made_inside", [False, True])
def test_no_grad_and_inference_mode(explanation, inputs_made_inside):
    model, batch = grounding_model(), tiny_batch()
    batch["image_index"] = torch.tensor([0, 1, 2, 3])
    span = torch.ones(4, 6, dtype=torch.long) if explanation == "itm" else None
    expected = heatmaps_of(model, batch, explanation=explanation)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            inputs = {name: value.clone() for name, value in batch.items()} if inputs_made_inside else batch
            chosen = span.clone() if inputs_made_inside and span is not None else span
            output = model(**inputs, output_heatmaps=True, explanation=explanation, heatmap_token_mask=chosen)
            assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert torch.equal(output.heatmaps, expected)
        assert not any(value.requires_grad for value in output.values() if isinstance(value, torch.Tensor))
        # What came out of it can be used in a graph again.
        (output.heatmaps * torch.ones((), requires_grad=True)).sum().backward()


def trace_layers(explanation: str, create_graph: bool) -> tuple[set[str], set[str], set[str]]:
    """Names of the layers that ran, whose output has a graph, and that gradients reached. Later passes overwrite."""
    model, graphs, reached = grounding_model(), {}, set()

    def record(name, module, inputs, output):
        graphs[name] = output[0].requires_grad
        if output[0].requires_grad:
            output[0].register_hook(lambda gradient: reached.add(name))

    layers = {f"vision.{index}": layer for index, layer in enumerate(model.vision_model.layers)}
    layers |= {f"text.{index}": layer for index, layer in enumerate(model.text_model.layers)}
    for part in ("self_attention", "cross_attention"):
        layers[f"text.3.{part}"] = getattr(model.text_model.layers[3], part)
    for name, layer in layers.items():
        layer.register_forward_hook(partial(record, name))
    options = dict(explanation=explanation, grounding_layer={"itm": 3, "itc": 1}[explanation])
    model(**tiny_batch(), output_heatmaps=True, create_graph=create_graph, **options)
    return set(graphs), {name for name, in_graph in graphs.items() if in_graph}, reached


def test_nothing_below_the_explained_layer_is_differentiated():
    layers, in_graph, reached = trace_layers("itm", create_graph=False)
    assert len(layers) == 9
    assert reached == {"text.3.cross_attention", "text.3", "text.4"}
    assert in_graph == reached | {"text.3.self_attention"}  # of the explained layer itself
    _, in_graph, reached = trace_layers("itc", create_graph=False)
    assert in_graph == reached == {"vision.1"}
    for explanation in ("itm", "itc"):
        layers, in_graph, _ = trace_layers(explanation, create_graph=True)
        assert in_graph == layers


@pytest.mark.parametrize("explanation", ["itm", "itc"])
def test_differentiable_maps_have_the_same_values(explanation):
    model, batch = grounding_model(), tiny_batch()
    plain = heatmaps_of(model, batch, explanation=explanation)
    graph = heatmaps_of(model, batch, explanation=explanation, create_graph=True)
    assert graph.requires_grad
    torch.testing.assert_close(graph, plain, rtol=1e-5, atol=1e-9)
    graph.sum().backward()
    lowest = model.vision_model.embeddings.patch_embedding.weight.grad
    assert lowest.norm() > 0


@pytest.mark.parametrize("explanation", ["itm", "itc"])
def test_a_frozen_model_grounds(explanation):
    model, batch = grounding_model(), tiny_batch()
    expected = heatmaps_of(model, batch, explanation=explanation)
    model.requires_grad_(False)
    assert torch.equal(heatmaps_of(model, batch, explanation=explanation), expected)
    with pytest.raises(ValueError, match="no graph back"):
        model(**batch, output_heatmaps=True, explanation=explanation, create_graph=True)


# ALBEF's maps: what they must not depend on ---------------------------------------------------------------------------


def close_maps(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * expected.max().item())


@pytest.mark.parametrize("explanation", ["itm", "itc"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_many_phrases_of_an_image_equal_one_by_one(explanation, create_graph):
    model, batch = grounding_model(), tiny_batch(5)
    options = dict(explanation=explanation, create_graph=create_graph)
    image_index = torch.tensor([1, 0, 1, 1, 0])
    images = batch.pop("pixel_values")[:2]
    together = heatmaps_of(model, {**batch, "pixel_values": images, "image_index": image_index}, **options)
    for i, image in enumerate(image_index.tolist()):
        single = {name: values[i : i + 1] for name, values in batch.items()}
        close_maps(together[i : i + 1], heatmaps_of(model, {**single, "pixel_values": images[image, None]}, **options))
    # The phrases of one image are told apart.
    assert not torch.allclose(together[0], together[2], rtol=0.01)


@pytest.mark.parametrize("explanation", ["itm", "itc"])
def test_padding_and_the_rest_of_the_batch_do_not_matter(explanation):
    model, batch = grounding_model(), tiny_batch()
    expected = heatmaps_of(model, batch, explanation=explanation)
    padded = {
        "pixel_values": batch["pixel_values"].flip(0),
        "input_ids": nn.functional.pad(batch["input_ids"].flip(0), (0, 3), value=7),
        "attention_mask": nn.functional.pad(batch["attention_mask"].flip(0), (0, 3)),
    }
    close_maps(heatmaps_of(model, padded, explanation=explanation).flip(0), expected)
    # The first phrase has two padded slots: without them it is the same, and so is it without a mask.
    alone = {"pixel_values": batch["pixel_values"][:1], "input_ids": batch["input_ids"][:1, :-2]}
    for create_graph in (False, True):
        close_maps(heatmaps_of(model, alone, explanation=explanation, create_graph=create_graph), expected[:1])


def test_a_span_of_tokens():
    model, batch = grounding_model(), tiny_batch()
    token_heatmaps = model(**batch, output_token_heatmaps=True).token_heatmaps
    span = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6])
    heatmaps = model(**batch, output_heatmaps=True, heatmap_token_mask=span).heatmaps
    # The first phrase ends after four tokens: its fifth slot is padding, chosen or not.
    close_maps(heatmaps[0], token_heatmaps[0, 3])
    close_maps(heatmaps[1], token_heatmaps[1, 1:3].mean(dim=0))
    close_maps(heatmaps[2], token_heatmaps[2, 0])
    assert (heatmaps[3] == 0).all()


def test_layers_are_explained_apart():
    model, batch = grounding_model(), tiny_batch()
    maps = {layer: heatmaps_of(model, batch, grounding_layer=layer) for layer in (2, 3, 4)}
    assert torch.equal(maps[3], heatmaps_of(model, batch))  # config.grounding_layer
    assert not torch.allclose(maps[2], maps[3], rtol=0.01)
    assert not torch.allclose(maps[4], maps[3], rtol=0.01)
    last = heatmaps_of(model, batch, explanation="itc", grounding_layer=1)
    assert torch.equal(last, heatmaps_of(model, batch, explanation="itc"))
    assert not torch.allclose(last, heatmaps_of(model, batch, explanation="itc", grounding_layer=0), rtol=0.01)


@pytest.mark.parametrize("explanation", ["itm", "itc"])
@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (2, 3)])
def test_rows_and_columns_of_a_map_are_those_of_the_image(explanation, shift):
    """Without positions the encoder does not know where a patch is: patches that move take their heat along."""
    model = grounding_model()
    nn.init.zeros_(model.vision_model.embeddings.position_embeddings)
    batch = tiny_batch()
    batch["pixel_values"] = torch.randn(4, 3, 32, 48)
    heatmaps = heatmaps_of(model, batch, explanation=explanation)
    assert heatmaps.shape == (4, 4, 6)
    batch["pixel_values"] = batch["pixel_values"].roll((8 * shift[0], 8 * shift[1]), dims=(2, 3))
    close_maps(heatmaps_of(model, batch, explanation=explanation), heatmaps.roll(shift, dims=(1, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grounding_layer": 1}, r"grounding_layer 1 is no fusion layer: choose one of 2\.\.4"),
        ({"grounding_layer": 5}, "grounding_layer 5 is no fusion layer"),
        ({"grounding_layer": 2, "explanation": "itc"}, "grounding_layer 2 is outside the image encoder's 2 layers"),
        ({"grounding_layer": -3, "explanation": "itc"}, "grounding_layer -3 is outside"),
        ({"explanation": "attention"}, "explanation 'attention': choose 'itm' or 'itc'"),
        ({"explanation": "itc", "output_token_heatmaps": True}, "one map a phrase"),
        ({"heatmap_token_mask": torch.ones(4, 5)}, r"\(4, 5\) tokens to choose from \(4, 6\)"),
        ({"output_heatmaps": False, "create_graph": True}, "need output_heatmaps=True"),
        ({"output_heatmaps": False, "grounding_layer": 3}, "need output_heatmaps=True"),
    ],
)
def test_errors_of_the_model(options, message):
    with pytest.raises(ValueError, match=message):
        grounding_model()(**tiny_batch(), **{"output_heatmaps": True, **options})
