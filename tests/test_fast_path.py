"""Which attention each part runs, and on how many rows of keys: nothing falls off the fast path unseen."""

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_albef_amc import AlbefConfig, AlbefForPreTraining, AlbefModel, attention_albef
from modeling_albef_amc import modeling_albef as module
from modeling_albef_amc.gradcam import gradcam
from modeling_albef_amc.pipeline import explain_itself as albef

FUSION, EXPLAINED, LAYERS = 2, 3, 5


@pytest.fixture
def config() -> AlbefConfig:
    sizes = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2)
    return AlbefConfig(
        vision_config={**sizes, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8, "initializer_range": 0.3},
        text_config={
            **sizes, "num_hidden_layers": LAYERS, "fusion_layer": FUSION, "vocab_size": 40, "initializer_range": 0.3
        },
        projection_dim=8,
        queue_size=8,
        grounding_layer=EXPLAINED,
    )  # fmt: skip


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, str, int]]:
    """(attention, module's name, rows of keys) of every attention that runs."""
    seen: list[tuple[str, str, int]] = []

    def watched(name, function):
        def attention(module, query, key, *args, **kwargs):
            seen.append((name, module.name, len(key)))
            return function(module, query, key, *args, **kwargs)

        return attention

    for name in ("sdpa", "eager"):
        default = ALL_ATTENTION_FUNCTIONS.get_interface(name, module.eager_attention_forward)
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, watched(name, default))
    explained = module.explained_interface

    def interface(layer, explained_layer, create_graph):
        chosen = explained(layer, explained_layer, create_graph)
        return chosen if chosen is None else watched("twice" if create_graph else "leaf", chosen)

    monkeypatch.setattr(module, "explained_interface", interface)
    return seen


def named(model: torch.nn.Module) -> torch.nn.Module:
    for name, part in model.named_modules():
        if isinstance(part, module.AlbefAttention):
            part.name = name
    return model


@pytest.mark.parametrize("p", [0.1, 0.25, 1.0])
def test_dropout_of_a_cpu_keeps_the_mean_and_drops_the_given_part(p):
    torch.manual_seed(0)
    states = torch.ones(1001, 999, requires_grad=True)
    dropped = attention_albef.dropped(states, p, training=True)
    assert dropped.eq(0).float().mean().item() == pytest.approx(p, abs=2e-3)
    assert dropped.mean().item() == pytest.approx(float(p < 1), abs=5e-3)
    assert len(dropped.unique()) == (1 if p == 1 else 2)
    # Neighbours share a random number, but not its bits: no two columns of four go together.
    kept = (dropped.detach().flatten()[: 4 * 249_000] != 0).float().view(-1, 4)
    if p < 1:
        assert torch.corrcoef(kept.T).fill_diagonal_(0).abs().max() < 0.01
    dropped.sum().backward()
    assert torch.equal(states.grad, dropped)
    assert attention_albef.dropped(states, p, training=False) is states


def cross(calls, layer: int) -> list[tuple[str, int]]:
    name = f"text_model.layers.{layer}.cross_attention"
    return [(kind, rows) for kind, where, rows in calls if where.removeprefix("albef.") == name]


def test_evaluation_copies_no_keys_but_those_of_the_explained_layer(config, calls):
    torch.manual_seed(0)
    model = named(AlbefModel._from_config(config, attn_implementation="sdpa").eval())
    image_index = torch.tensor([0, 1, 1, 0, 1, 1])
    gradcam(albef(model, torch.randn(2, 3, 32, 32), torch.randint(1, 40, (6, 4)), None, image_index))
    for layer in range(FUSION, LAYERS):
        expected = [("leaf", 6)] if layer == EXPLAINED else [("sdpa", 2)]
        assert cross(calls, layer) == expected
    assert all(kind == "sdpa" for kind, name, _ in calls if "cross" not in name)
    assert [rows for _, name, rows in calls if "vision" in name] == [2, 2], "each image once"


def test_training_writes_out_only_what_is_differentiated_twice(config, calls):
    torch.manual_seed(0)
    model = named(AlbefForPreTraining._from_config(config, attn_implementation="sdpa").train())
    ids, labels = torch.randint(1, 40, (3, 5)), torch.full((3, 5), -100)
    labels[:, 2] = 7
    output = model(
        torch.randn(3, 3, 32, 32), ids, torch.ones_like(ids), mlm_input_ids=ids, mlm_labels=labels, output_heatmaps=True
    )
    student = [kind for kind, name, _ in calls if "vision" in name and "momentum" not in name]
    assert student == ["sdpa", "sdpa"], "each image once, for all passes"
    # The true pairs, then the negatives and the masked phrases in one pass that shares the images' keys.
    for layer in range(FUSION, LAYERS):
        first = "twice" if layer >= EXPLAINED else "eager"
        assert cross(calls, layer) == [(first, 3), ("eager", 3)]
    calls.clear()
    output.heatmaps.sum().backward()
    assert {kind for kind, _, _ in calls} == {"eager"}, "no kernel of a CPU has dropout: only that is computed again"
    assert not any("vision" in name for _, name, _ in calls)


def test_shared_keys_give_what_copied_ones_give(config, monkeypatch):
    torch.manual_seed(0)
    model = AlbefModel._from_config(config, attn_implementation="sdpa").double().eval()
    images, ids = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.randint(1, 40, (6, 4))
    image_index = torch.tensor([2, 0, 2, 2, 0, 1])
    shared = model(images, ids, None, image_index, output_heatmaps=True)
    monkeypatch.setattr(module, "group_by_image", lambda index, num_images: None)
    copied = model(images, ids, None, image_index, output_heatmaps=True)
    assert copied.heatmaps.max() > 0
    torch.testing.assert_close(shared.heatmaps, copied.heatmaps, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shared.itm_logits, copied.itm_logits, rtol=1e-9, atol=1e-12)
