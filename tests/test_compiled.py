"""ALBEF under torch.compile: the same scores, heatmaps and gradients, with what lies below the explanation compiled.

The backends trace as the default one does, and write no machine code, which takes minutes; tracing gradients (AOT), for
training alone, takes most of the time.
"""

import pytest
import torch
from torch._dynamo.utils import counters

from modeling_albef_amc import AlbefForPreTraining, AlbefModel
from tests.helpers.models import masked_batch, tiny_batch, tiny_config
from tests.helpers.versions import needs

pytestmark = pytest.mark.slow
SHALLOW = dict(num_hidden_layers=3, fusion_layer=1, hidden_size=24, intermediate_size=48, num_attention_heads=2)


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()
    counters.clear()


def shallow_config():
    text = dict(**SHALLOW, vocab_size=40, initializer_range=0.2, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    return tiny_config(text_config=text, grounding_layer=1)


@needs("torch>=2.8", "compiling all of it")
def test_scoring_is_one_graph():
    model, batch = AlbefModel(shallow_config()).eval(), tiny_batch()
    expected, compiled = model(**batch), torch.compile(model, backend="eager", fullgraph=True)
    for mode in (torch.enable_grad, torch.inference_mode):
        with mode():
            output = compiled(**{name: value.clone() for name, value in batch.items()})
        for name in ("itm_logits", "image_features", "text_features"):
            torch.testing.assert_close(output[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("mode", "explanation"), [(torch.inference_mode, "itm"), (torch.no_grad, "itc")])
def test_heatmaps(mode, explanation):
    model = AlbefModel._from_config(shallow_config(), attn_implementation="eager").eval()
    batch = tiny_batch()
    options = dict(output_heatmaps=True, explanation=explanation, output_hidden_states=True, output_attentions=True)
    expected = model(**batch, **options)
    with mode():
        inputs = {name: value.clone() for name, value in batch.items()}
        output = torch.compile(model, backend="eager")(**inputs, **options)
    assert expected.heatmaps.amax(dim=(1, 2)).min() > 0
    torch.testing.assert_close(output.heatmaps, expected.heatmaps, rtol=1e-4, atol=1e-8)
    for name in ("itm_logits", "hidden_states", "attentions", "cross_attentions"):
        torch.testing.assert_close(output[name], expected[name], rtol=1e-4, atol=1e-6)
    assert not output.heatmaps.requires_grad
    # The image encoder and the text layers are among it.
    assert counters["stats"]["calls_captured"] > 100


@needs("torch>=2.8", "compiling all of it")
def test_training_with_heatmaps_gives_the_same_gradients():
    state, batch, results = AlbefForPreTraining(shallow_config()).state_dict(), masked_batch(), []
    for compiled in (False, True):
        model = AlbefForPreTraining(shallow_config()).train()
        model.load_state_dict(state)
        run = torch.compile(model, backend="aot_eager") if compiled else model
        torch.manual_seed(0)  # the negatives are drawn
        output = run(**batch, image_ids=torch.arange(4), output_heatmaps=True)
        (output.loss + output.heatmaps.square().sum().sqrt()).backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        results.append((output.loss.detach(), output.heatmaps.detach(), gradients))
    assert counters["stats"]["calls_captured"] > 100
    assert len(results[0][2]) > 60
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-5)
