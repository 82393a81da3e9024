"""Programs for serving, in each format: equal to the model, for all sizes, without autograd or this project."""

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoProcessor

from benchmarks.serving import latencies
from modeling_albef_amc import AlbefModel
from modeling_albef_amc.tools import export_albef as export
from tests.helpers.data import PHRASES, save_with_adapters, tiny_albef, tiny_processor
from tests.helpers.models import tiny_blip
from tests.helpers.versions import needs

pytestmark = [pytest.mark.slow, needs("torch>=2.13", "export")]
ROOT = Path(__file__).parents[1]
# Programs of every further layer take seconds more to trace and to compile.
VISION = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.2)
TEXT = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, initializer_range=0.2)
SMALL = dict(
    vision_config=dict(**VISION, image_size=32, patch_size=8),
    text_config=dict(**TEXT, fusion_layer=1, max_position_embeddings=20),
    grounding_layer=1,
)
OUTPUTS = "itm_logits", "heatmaps", "token_heatmaps", "text_features"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_albef(**SMALL).save_pretrained(folder)
    processor = tiny_processor()
    processor.image_processor.size = {"height": 40, "width": 48}  # another than the model began with
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["torch", "onnx"])
def folder(checkpoint, tmp_path_factory, request) -> Path:
    for package in ("onnxruntime", "onnxscript") if request.param == "onnx" else ():
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp(request.param) / "new" / "serving"
    export.export(str(checkpoint), folder, format=request.param)
    return folder


def of(format: str) -> pytest.MarkDecorator:
    """A test of one format."""
    return pytest.mark.parametrize("folder", [format], indirect=True)


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """A program takes seconds to load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "load", cache(torch.export.load))
        yield


@pytest.fixture(scope="module")
def programs(folder) -> tuple[export.Program, export.Program]:
    return export.load_programs(folder)


@pytest.fixture(scope="module")
def model(checkpoint) -> AlbefModel:
    return AlbefModel.from_pretrained(checkpoint).eval()


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ("mode", "num_images", "num_phrases", "num_tokens", "grid"),
    [
        (torch.no_grad, 1, 1, 6, (4, 4)),
        (torch.inference_mode, 1, 14, 7, (4, 4)),
        (torch.no_grad, 3, 5, 20, (2, 6)),
        (torch.inference_mode, 2, 1, 1, (7, 3)),
        (torch.inference_mode, 4, 2, 3, (2, 2)),
    ],
)
def test_programs_equal_the_model(programs, model, mode, num_images, num_phrases, num_tokens, grid):
    encode_images, ground = programs
    pixel_values, phrases = export.random_inputs(model, num_images, num_phrases, num_tokens, grid)
    with mode():
        images = encode_images(pixel_values=pixel_values)
        found = ground(**phrases, **images)
    expected = model(pixel_values, **phrases, output_heatmaps=True, output_token_heatmaps=True)
    assert (images["rows"], images["columns"]) == grid
    assert relative_difference(images["image_features"], expected.image_features) < 1e-5
    for name in OUTPUTS:
        assert relative_difference(found[name], expected[name]) < 1e-5, name
        assert not found[name].requires_grad
    own_image = expected.image_features[phrases["image_index"]]
    itc_logits = (own_image * expected.text_features).sum(dim=-1) / model.temperature
    assert relative_difference(found["itc_logits"], itc_logits) < 1e-5
    padding = phrases["attention_mask"] == 0
    assert not found["token_heatmaps"][padding].any() and found["heatmaps"].amax(dim=(1, 2)).min() > 0


@of("torch")
def test_another_grounding_layer(programs, checkpoint, model):
    encode_images, ground = programs
    ground_other = export.export_phrase_grounder(export.load_for_export(str(checkpoint)), 2).module()
    pixel_values, phrases = export.random_inputs(model, 2, 5, 6, (4, 4))
    with torch.no_grad():
        images = encode_images(pixel_values=pixel_values)
        found, configured = (run(**phrases, **images)["heatmaps"] for run in (ground_other, ground))
    expected = model(pixel_values, **phrases, output_heatmaps=True, grounding_layer=2).heatmaps
    assert relative_difference(found, expected) < 1e-5
    assert relative_difference(configured, expected) > 0.1


def test_images_from_a_cache(programs, model):
    """Images encoded one by one and joined, in whatever layout in memory."""
    encode_images, ground = programs
    pixel_values, phrases = export.random_inputs(model, 3, 5, 6, (4, 4))
    with torch.inference_mode():
        single = [encode_images(pixel_values=image[None]) for image in pixel_values]
        names = "image_keys", "image_values", "image_features"
        images = single[0] | {name: torch.cat([image[name] for image in single]) for name in names}
        other_layout = images | {name: images[name].mT.contiguous().mT for name in names[:2]}
        other_layout |= {name: images[name].transpose(0, 4).contiguous().transpose(0, 4) for name in names[:1]}
        phrases_too = phrases | {name: phrases[name].T.contiguous().T for name in ("input_ids", "attention_mask")}
        channels_last = encode_images(pixel_values=pixel_values.contiguous(memory_format=torch.channels_last))
        found = [ground(**phrases, **images), ground(**phrases_too, **other_layout), ground(**phrases, **channels_last)]
    expected = model(pixel_values, **phrases, output_heatmaps=True)
    for outputs in found:
        assert relative_difference(outputs["heatmaps"], expected.heatmaps) < 1e-5
        assert relative_difference(outputs["itm_logits"], expected.itm_logits) < 1e-5


TORCH_ALONE = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "modeling_albef_amc", "huggingface_hub"):
            raise ImportError(name)

sys.meta_path.insert(0, Nothing())
import torch

encode_images, ground = (torch.export.load(name).module() for name in ("image_encoder.pt2", "phrase_grounder.pt2"))
inputs = torch.load(sys.argv[1])
with torch.inference_mode():
    images = encode_images(pixel_values=inputs.pop("pixel_values"))
    torch.save(ground(**inputs, **images), sys.argv[2])
"""


@of("torch")
def test_torch_alone_is_enough(folder, model, tmp_path):
    pixel_values, phrases = export.random_inputs(model, 2, 5, 6, (3, 5))
    torch.save({"pixel_values": pixel_values, **phrases}, tmp_path / "inputs.pt")
    paths = [str(tmp_path / name) for name in ("inputs.pt", "outputs.pt")]
    subprocess.run([sys.executable, "-I", "-c", TORCH_ALONE, *paths], cwd=folder, check=True)
    found = torch.load(paths[1])
    expected = model(pixel_values, **phrases, output_heatmaps=True, output_token_heatmaps=True)
    for name in OUTPUTS:
        assert relative_difference(found[name], expected[name]) < 1e-5, name


def test_what_is_written_and_described(programs, folder, model):
    facts = json.loads((folder / export.DESCRIPTION).read_text())
    assert set(facts["largest_differences"]) == {*OUTPUTS, "itc_logits", "image_features"}
    assert all(0 <= difference < 1e-4 for difference in facts["largest_differences"].values())
    assert list(folder.parent.iterdir()) == [folder]  # no scratch folder stays
    pixel_values, phrases = export.random_inputs(model, 2, 5, 6, (3, 7))
    assert facts["format"] in folder.parts[-3] and facts.get("opset") == (20 if facts["format"] == "onnx" else None)
    sizes = {"num_images": 2, "num_phrases": 5, "num_tokens": 6, "rows": 3, "columns": 7}
    with torch.no_grad():
        images = programs[0](pixel_values=pixel_values)
        outputs = programs[1](**phrases, **images)
    for program, given, returned in (
        ("image_encoder", {"pixel_values": pixel_values}, images),
        ("phrase_grounder", phrases | images, outputs),
    ):
        program += export.FORMATS[facts["format"]]
        assert list(facts[program]["inputs"]) == list(given) and set(facts[program]["outputs"]) == set(returned)
        for kind, tensors in (("inputs", given), ("outputs", returned)):
            for name, tensor in tensors.items():
                dtype, _, shape = facts[program][kind][name].partition(" ")
                assert dtype == ("int" if isinstance(tensor, int) else str(tensor.dtype).removeprefix("torch."))
                shape = [eval(size, {}, sizes) for size in shape.strip("()").split(", ") if size]
                assert shape == ([] if isinstance(tensor, int) else list(tensor.shape)), name
    assert facts["image_size"] == [40, 48] and facts["grounding_layer"] == 1 and facts["max_num_tokens"] == 20


def documented(number: int) -> str:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)[number]
    assert len(code.splitlines()) <= 30
    for phrase, own in zip(re.findall(r'"the [^"]*"', code), PHRASES, strict=False):
        code = code.replace(phrase, f'"{own}"')
    return code


@pytest.fixture
def photo(folder, tmp_path, monkeypatch) -> Image.Image:
    """A photo, which lies beside the programs in the folder that one is in."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    (tmp_path / "serving").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    return photo


@of("torch")
def test_the_documented_code_runs(folder, model, photo, capsys):
    """docs/serving.md, with the folder that the command wrote."""
    exec(documented(0), names := {})
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(images=photo, text=PHRASES[:2], return_tensors="pt")
    expected = model(**inputs, output_heatmaps=True)
    assert relative_difference(names["outputs"]["heatmaps"], expected.heatmaps) < 1e-5
    answers = processor.post_process_grounding(expected.heatmaps, (40, 56))
    assert all(str(answer["point"]) in capsys.readouterr().out for answer in answers[:1])
    exec(documented(0).replace(f', "{PHRASES[1]}"', ""), names)
    assert relative_difference(names["outputs"]["heatmaps"], expected.heatmaps[:1]) < 1e-5  # of one phrase


@of("onnx")
def test_onnx_needs_neither_torch_nor_transformers(folder, checkpoint, model, photo):
    """The code of docs/serving.md, for phrases as people write them, without the two in its process."""
    asked = PHRASES[0].title() + "?!", f"<person>-{PHRASES[1]}"
    code = documented(1).replace(PHRASES[0], asked[0]).replace(PHRASES[1], asked[1])
    without = "import sys\nsys.modules |= dict.fromkeys(('torch', 'transformers', 'modeling_albef_amc'))\n"
    subprocess.run([sys.executable, "-I", "-c", f"{without}{code}\nnp.save('found.npy', heatmaps)"], check=True)
    inputs = AutoProcessor.from_pretrained(checkpoint)(images=photo, text=list(asked), return_tensors="pt")
    found, expected = torch.tensor(np.load("found.npy")), model(**inputs, output_heatmaps=True).heatmaps
    assert relative_difference(found, expected) < 1e-4


@of("onnx")
def test_int8_is_what_was_exported_with_smaller_weights(folder, checkpoint, model, tmp_path, monkeypatch):
    onnx_albef = pytest.importorskip("modeling_albef_amc.tools.onnx_albef")
    for name in "image_encoder", "phrase_grounder":
        monkeypatch.setattr(export, f"export_{name}", lambda *model, path=folder / f"{name}.onnx": path)
    monkeypatch.setattr(onnx_albef, "save_onnx", lambda program, path, facts: shutil.copy(program, path))
    differences = export.export(str(checkpoint), tmp_path / "int8", format="onnx-int8")
    facts = json.loads((tmp_path / "int8" / export.DESCRIPTION).read_text())
    assert facts["format"] == "onnx-int8" and facts["largest_differences"] == differences
    assert 1e-4 < differences["heatmaps"] < 0.5
    pixel_values, phrases = export.random_inputs(model)
    encode_images, ground = export.load_programs(tmp_path / "int8")
    found = ground(**phrases, **encode_images(pixel_values=pixel_values))["heatmaps"]
    expected = model(pixel_values, **phrases, output_heatmaps=True).heatmaps
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.98
    found = iter([0.0, float("nan")])  # before and after
    monkeypatch.setattr(export, "largest_differences", lambda *arguments: {"heatmaps": next(found)})
    with pytest.raises(ArithmeticError, match="nan"):
        export.export(str(checkpoint), tmp_path / "broken", format="onnx-int8")
    assert not (tmp_path / "broken").exists()


def test_cleaned_phrases_stay_as_they_are(folder, checkpoint):
    """The tokenizer's file cleans by itself; as part of the processor it comes after the cleaning."""
    phrases = [*PHRASES, "A <person>'s two-story ... House/", "Ünï\tcode, 星", "don't"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    processor, exported = (AutoProcessor.from_pretrained(path) for path in (checkpoint, folder))
    for phrase in phrases:
        (expected,) = processor(text=phrase)["input_ids"]
        assert [tokenizer.encode(phrase).ids] == exported(text=phrase)["input_ids"] == [expected]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 3}, "rows|reshape"),
        ({"image_index": torch.tensor([0, 2])}, "out of bounds|invalid index"),
        ({"attention_mask": torch.ones(2, 5, dtype=torch.long)}, "input_ids|same as input"),
        ({"image_values": torch.zeros(2, 2, 2, 17, 11)}, "image_values"),
        (dict.fromkeys(("input_ids", "attention_mask"), torch.ones(2, 21, dtype=torch.long)), "20"),
    ],
)
def test_programs_refuse_what_does_not_fit(programs, folder, model, change, message):
    pixel_values, phrases = export.random_inputs(model, 2, 2, 6, (4, 4))
    with torch.no_grad():
        images = programs[0](pixel_values=pixel_values)
        with pytest.raises(Exception, match=message):  # ONNX Runtime's own derive from nothing else
            programs[1](**phrases | images | change)
    if not (folder / "image_encoder.pt2").exists():
        return  # ONNX has no checks: what is over at the edges is cut off
    for height, width in ((36, 32), (32, 36), (8, 32)):  # of no whole patches, or of too few
        with pytest.raises(AssertionError, match="pixel_values"):
            programs[0](pixel_values=torch.zeros(1, 3, height, width))


@of("torch")
def test_the_check_sees_a_difference(folder, checkpoint):
    model = export.load_for_export(str(checkpoint))
    with torch.no_grad():
        model.itm_head.bias += 2e-4
        model.temperature.fill_(torch.nan)
    differences = export.largest_differences(folder, model, 1)
    assert differences["itm_logits"] == pytest.approx(2e-4, rel=0.1) and differences["heatmaps"] < 1e-5
    assert np.isnan(differences["itc_logits"])


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_programs_that_differ_are_not_handed_out(checkpoint, tmp_path, monkeypatch, difference):
    monkeypatch.setattr(export, "export_image_encoder", lambda model: None)
    monkeypatch.setattr(export, "export_phrase_grounder", lambda model, layer: None)
    monkeypatch.setattr(torch.export, "save", lambda program, path: path.touch())
    monkeypatch.setattr(export, "largest_differences", lambda *arguments: {"heatmaps": difference})
    with pytest.raises(ArithmeticError, match="heatmaps"):
        export.export(str(checkpoint), tmp_path / "serving")
    assert not list(tmp_path.iterdir())


def refused(checkpoint: Path, output: Path, message: str, **options) -> None:
    before = sorted(output.parent.iterdir())
    with pytest.raises((ValueError, OSError), match=message):
        export.export(str(checkpoint), output, **options)
    assert sorted(output.parent.iterdir()) == before


def test_what_cannot_be_exported(checkpoint, tmp_path):
    output = tmp_path / "serving"
    tiny_blip().save_pretrained(tmp_path / "blip")
    refused(tmp_path / "blip", output, r"blip holds a model of type 'blip': only 'albef'")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept.txt").write_text("kept")
    for taken in (tmp_path / "full", tmp_path / "full" / "kept.txt"):
        refused(checkpoint, taken, f"{taken} exists")
    assert (tmp_path / "full" / "kept.txt").read_text() == "kept"
    refused(checkpoint, output, r"grounding_layer 0 .*1\.\.2", grounding_layer=0)
    refused(checkpoint, output, "format 'int8' is unknown: choose one of torch, onnx, onnx-int8", format="int8")
    model = AlbefModel.from_pretrained(checkpoint)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("itm_head")}
    model.save_pretrained(tmp_path / "headless", state_dict=weights)
    refused(tmp_path / "headless", output, r"of AlbefModel, without weights such as itm_head\.bias")
    refused(tmp_path / "nowhere", output, "nowhere")
    pytest.importorskip("peft")
    save_with_adapters(tmp_path / "base", tmp_path / "lora")
    refused(tmp_path / "lora", output, "lora has LoRA adapters alone: albef-amc merge")


def test_the_benchmark_of_serving_runs(model, folder):
    assert [row["phrases"] for row in latencies(model, {"it": folder}, repeats=1)] == [1, 5, 14]
