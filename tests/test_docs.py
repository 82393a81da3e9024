"""What the documentation shows runs."""

import re
from pathlib import Path

import torch
from transformers import PretrainedConfig

from modeling_albef_amc import gradcam, groundable
from modeling_albef_amc.families.training import with_own_forward
from tests.conftest import tiny_batch

DOCS = Path(__file__).parents[1] / "docs"


def code_of(name: str) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
    return block


def test_a_family_of_ones_own_is_a_function_of_a_few_lines():
    code, names = code_of("families.md"), {}
    assert len(code[code.index("class Toy") :].strip().splitlines()) <= 25
    exec(code, names)
    model, batch = names["Toy"](PretrainedConfig()), tiny_batch()
    heatmaps = gradcam(names["toy"](model, **batch))
    assert heatmaps.shape == (4, 4, 4) and (heatmaps.amax(dim=(1, 2)) > 0).all()
    swapped = {name: value.flip(0) for name, value in batch.items()}
    torch.testing.assert_close(gradcam(names["toy"](model, **swapped)).flip(0), heatmaps)
    forward = model.forward
    output = groundable(model, names["toy"])(**batch, output_heatmaps=True)
    assert torch.equal(gradcam(with_own_forward(names["toy"])(model, **batch)), heatmaps) and model.forward != forward
    (output.loss + output.heatmaps.square().sum()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in (model.words.weight, model.patches.weight))
