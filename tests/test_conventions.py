"""What transformers asks of every model, for both classes: the checks of its common model tests that matter here."""

import gc
import inspect

import pytest
import torch

import modeling_albef_amc
from modeling_albef_amc import AlbefForPreTraining, AlbefModel
from tests.helpers.models import masked_batch, tiny_batch, tiny_config

CLASSES = AlbefModel, AlbefForPreTraining
NUM_LAYERS, NUM_FUSION_LAYERS, NUM_VISION_LAYERS = 5, 3, 2  # of tiny_config


@pytest.fixture(params=CLASSES, ids=lambda model_class: model_class.__name__)
def model_class(request):
    return request.param


def outputs_of(model, **options) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        output = model(**tiny_batch(dtype=model.dtype), **options)
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


def test_a_tuple_holds_what_the_output_does(model_class):
    model, batch = model_class(tiny_config()).eval(), tiny_batch()
    with torch.no_grad():
        as_tuple = model(**batch, return_dict=False, output_hidden_states=True, output_attentions=True)
        as_output = model(**batch, output_hidden_states=True, output_attentions=True)
    assert isinstance(as_tuple, tuple) and isinstance(as_tuple[-1], tuple)
    torch.testing.assert_close(as_tuple, as_output.to_tuple())


def test_hidden_states_and_attentions_have_the_right_shapes(model_class):
    model = model_class._from_config(tiny_config(), attn_implementation="eager").eval()
    output = model(**tiny_batch(), output_hidden_states=True, output_attentions=True)
    vision = output.vision_model_output
    assert [tuple(states.shape) for states in output.hidden_states] == [(4, 6, 24)] * (NUM_LAYERS + 1)
    assert [tuple(states.shape) for states in output.attentions] == [(4, 2, 6, 6)] * NUM_LAYERS
    assert [tuple(states.shape) for states in output.cross_attentions] == [(4, 2, 6, 17)] * NUM_FUSION_LAYERS
    assert [tuple(states.shape) for states in vision.hidden_states] == [(4, 17, 16)] * (NUM_VISION_LAYERS + 1)
    assert [tuple(states.shape) for states in vision.attentions] == [(4, 2, 17, 17)] * NUM_VISION_LAYERS
    for attention in (*output.attentions, *output.cross_attentions, *vision.attentions):
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]))
    assert model(**tiny_batch()).hidden_states is None


@pytest.mark.parametrize("create_graph", [False, True])
def test_heatmaps_add_no_cross_attentions_of_some_layers(create_graph):
    """SDPA hands out none; the explained layer, and with a graph those above it, are eager for the heatmap alone."""
    model = AlbefModel._from_config(tiny_config(), attn_implementation="sdpa").eval()
    output = model(**tiny_batch(), output_heatmaps=True, create_graph=create_graph, output_attentions=True)
    assert output.cross_attentions == model(**tiny_batch(), output_attentions=True).cross_attentions == ()


def test_some_hidden_states_can_be_chosen(model_class):
    model = model_class(tiny_config()).eval()
    everything = model(**tiny_batch(), output_hidden_states=True).hidden_states
    chosen = model(**tiny_batch(), output_hidden_states=[0, 2]).hidden_states
    if None not in chosen:
        pytest.skip("this version of transformers takes a list for True")
    assert [states is not None for states in chosen] == [True, False, True, False, False, False]
    assert torch.equal(chosen[2], everything[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(model_class, dtype, tmp_path):
    full = model_class(tiny_config()).eval()
    full.save_pretrained(tmp_path)
    half = model_class.from_pretrained(tmp_path, dtype=dtype)
    assert half.dtype == dtype
    exact, rounded = outputs_of(full, output_heatmaps=True), outputs_of(half, output_heatmaps=True)
    for name, value in rounded.items():
        assert value.isfinite().all(), name
        torch.testing.assert_close(value.float(), exact[name], rtol=0.1, atol=0.1 * exact[name].abs().max().item())


@pytest.mark.parametrize("size", [50, 30])
def test_resized_embeddings(size):
    model = AlbefForPreTraining(tiny_config()).train()
    momentum = model.momentum_encoder
    with torch.no_grad():
        momentum.text_model.embeddings.word_embeddings.weight += 1
        momentum.mlm_head.decoder.bias += 1
    words, bias = momentum.text_model.get_input_embeddings().weight.clone(), momentum.mlm_head.decoder.bias.clone()
    encoder = model.get_input_embeddings().weight.detach().clone()  # of a graph, the old size would be remembered
    model.resize_token_embeddings(size)
    kept = min(size, 40)
    assert model.config.text_config.vocab_size == size
    assert torch.equal(model.get_input_embeddings().weight[:kept], encoder[:kept])
    assert torch.equal(momentum.text_model.get_input_embeddings().weight[:kept], words[:kept])
    assert torch.equal(momentum.mlm_head.decoder.bias[:kept], bias[:kept])
    assert momentum.mlm_head.decoder.weight is momentum.text_model.get_input_embeddings().weight
    assert not any(parameter.requires_grad for parameter in momentum.parameters())
    batch = masked_batch()
    batch |= {name: batch[name].clamp(max=size - 1) for name in ("input_ids", "mlm_input_ids", "mlm_labels")}
    batch["input_ids"][0, 1] = size - 1
    output = model(**batch)
    assert output.mlm_logits.shape == (8, size)
    output.loss.backward()


def test_weights_begin_at_the_configured_scale(model_class):
    config = tiny_config()
    config.vision_config.initializer_range = config.text_config.initializer_range = config.initializer_range = 1e-6
    for name, parameter in model_class(config).named_parameters():
        # Norms begin at one; all else at random, around zero.
        is_scale = "layernorm" in name and name.endswith("weight")
        expected = 0.07 if name.endswith("temperature") else float(is_scale)
        assert parameter.mean().item() == pytest.approx(expected, abs=1e-5), name


def test_what_overrides_a_method_takes_the_same_positional_arguments():
    """A caller who knows transformers' method may pass its arguments by their places."""
    checked = set()
    public = [getattr(modeling_albef_amc, name) for name in modeling_albef_amc.__all__]
    for owner in filter(inspect.isclass, public):
        for name, method in vars(owner).items():
            base = next((vars(base)[name] for base in owner.__mro__[1:] if name in vars(base)), None)
            # What a model or processor is called with is its own.
            if name in ("forward", "__call__", "__init__") or not (
                inspect.isfunction(method) and inspect.isfunction(base)
            ):
                continue
            own, inherited = (inspect.signature(function).parameters.values() for function in (method, base))
            if not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own):
                places = [sum(each.kind is each.POSITIONAL_OR_KEYWORD for each in side) for side in (own, inherited)]
                assert places[0] >= places[1], f"{owner.__name__}.{name}"
            checked.add(f"{owner.__name__}.{name}")
    assert {"AlbefForPreTraining.save_pretrained", "AlbefProcessor.save_pretrained"} <= checked


def test_a_training_step_leaves_no_tensor_behind(model_class):
    """Differentiable heatmaps make graphs of graphs; once the output is dropped, all of it is free."""
    model = model_class(tiny_config()).train()

    def step():
        output = model(**tiny_batch(), output_heatmaps=True)
        (output.heatmaps.square().sum() + output.itm_logits.sum()).backward()
        model.zero_grad()

    def tensors() -> int:
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    step()
    gc.collect()
    gc.disable()  # what only the collector would find is left behind as well
    try:
        before = tensors()
        step()
        assert tensors() == before
    finally:
        gc.enable()
