"""What the documentation shows runs."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import PretrainedConfig

from modeling_albef_amc import gradcam, groundable
from modeling_albef_amc.families.training import with_own_forward
from tests.conftest import tiny_batch

ROOT = Path(__file__).parents[1]
TRAINED = str(ROOT / "space" / "checkpoints" / "with_amc")


def code_of(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    ("page", "place", "lines"),
    [("README.md", 0, 2), *(("docs/grounding.md", place, lines) for place, lines in enumerate((2, 0, 3)))],
    ids=["readme", "pipeline", "grounder", "tensors"],
)
def test_what_the_pages_show_runs(page, place, lines, tmp_path, monkeypatch, capsys):
    """But for what runs against a Space and the Hub, in tests/test_space.py and tests/test_publishing.py."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "photo.png"):
        Image.open(ROOT / "space" / "examples" / "scene_1.png").convert("RGB").save(name)
    code = code_of(page)[place]
    exec(re.sub('"(outputs/scenes/with_amc|Salesforce/blip-itm-base-coco|org/albef-amc)"', repr(TRAINED), code), {})
    assert len(capsys.readouterr().out.splitlines()) == lines


def test_a_family_of_ones_own_is_a_function_of_a_few_lines():
    (code,), names = code_of("docs/families.md"), {}
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
