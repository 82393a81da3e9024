"""Checkpoints as users load them: in shards, in another precision, spread over devices, with a chosen attention."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining

from modeling_albef_amc import AlbefForPreTraining, AlbefModel
from modeling_albef_amc.families.auto import AutoModelForVisualGrounding, load_model
from tests.helpers import forked
from tests.helpers.models import tiny_batch, tiny_config
from tests.helpers.versions import needs

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkpoint(tmp_path):
    """(folder, the model in it, its output)"""
    model = AlbefModel(tiny_config()).eval()
    model.save_pretrained(tmp_path / "checkpoint", max_shard_size="20KB")
    return tmp_path / "checkpoint", model, model(**tiny_batch(), output_heatmaps=True)


def check_equal(output, expected):
    for name in ("itm_logits", "heatmaps", "image_features", "text_features"):
        torch.testing.assert_close(output[name], expected[name])


def test_shards(checkpoint):
    folder, model, expected = checkpoint
    assert len(list(folder.glob("model-*.safetensors"))) > 3 and not (folder / "model.safetensors").exists()
    loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    check_equal(loaded(**tiny_batch(), output_heatmaps=True), expected)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/none", ValueError, "there is no folder /none, and a Hub id has the form name or owner/name"),
        ("outputs/a/b", ValueError, "there is no folder outputs/a/b, and a Hub id has"),
        ("outputs/none", OSError, "there is no folder outputs/none, and it cannot be had from the Hub: We couldn't"),
    ],
)
def test_a_folder_that_is_missing_is_not_called_a_hub_id(path, error, message):
    for load in (load_model, AutoModelForVisualGrounding.from_pretrained)[: 1 + (error is ValueError)]:
        with pytest.raises(error, match=message):
            load(path)


def test_device_map_auto(checkpoint):
    folder, _, expected = checkpoint
    loaded = AutoModel.from_pretrained(folder, device_map="auto")
    assert isinstance(loaded, AlbefModel) and not any(p.is_meta for p in loaded.parameters())
    check_equal(loaded(**tiny_batch(), output_heatmaps=True), expected)


@pytest.mark.filterwarnings("ignore:The following device_map keys")  # of a parameter that is in no submodule
def test_parts_on_disk(checkpoint, tmp_path):
    """Every part that may lie elsewhere is fetched for its turn, and heatmaps are differentiated through it."""
    folder, model, expected = checkpoint
    device_map = {name: "cpu" for name, _ in model.named_children()} | {"temperature": "cpu"}
    for name in ("vision_model", "text_model"):
        del device_map[name]
        parts = [f"{name}.{child}" for child, _ in getattr(model, name).named_children() if child != "layers"]
        parts += [f"{name}.layers.{index}" for index in range(len(getattr(model, name).layers))]
        device_map |= dict.fromkeys(parts, "disk")
    loaded = AutoModel.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path / "offloaded")
    assert sum(parameter.device.type == "meta" for parameter in loaded.parameters()) > 100
    check_equal(loaded(**tiny_batch(), output_heatmaps=True), expected)
    check_equal(
        loaded(**tiny_batch(), output_heatmaps=True, explanation="itc"),
        model(**tiny_batch(), output_heatmaps=True, explanation="itc"),
    )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_is_chosen_for_all_parts(checkpoint, implementation):
    folder, _, expected = checkpoint
    loaded = AutoModel.from_pretrained(folder, attn_implementation=implementation)
    for part in (loaded, loaded.vision_model, loaded.text_model):
        assert part.config._attn_implementation == implementation
    check_equal(loaded(**tiny_batch(), output_heatmaps=True), expected)
    mixed = AutoModel.from_pretrained(
        folder, attn_implementation={"vision_config": "sdpa", "text_config": implementation}
    )
    assert mixed.vision_model.config._attn_implementation == "sdpa"
    check_equal(mixed(**tiny_batch(), output_heatmaps=True), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "auto"])
def test_precision_is_chosen(tmp_path, dtype):
    AlbefForPreTraining(tiny_config()).to(torch.bfloat16).save_pretrained(tmp_path)
    expected = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    for auto_class in (AutoModel, AutoModelForPreTraining):
        loaded = auto_class.from_pretrained(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
        assert loaded.config.vision_config.dtype == expected


FULL_DISK = """
import resource, signal, sys
from modeling_albef_amc import AlbefForPreTraining

model = AlbefForPreTraining.from_pretrained(sys.argv[1])
model.albef.temperature.data.fill_(0.5)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # a file can grow no further than on a full disk
model.save_pretrained(sys.argv[1])
"""


@needs("safetensors>=0.8", "writing a file beside that it takes the place of")
def test_a_disk_that_fills_while_saving_leaves_what_was_there(tmp_path):
    model = AlbefForPreTraining(tiny_config())
    model.save_pretrained(tmp_path / "checkpoint")
    before = (tmp_path / "checkpoint" / "model.safetensors").read_bytes()
    assert len(before) > 100_000
    done = forked.run(["-c", FULL_DISK, tmp_path / "checkpoint"], ROOT, os.environ)
    assert done.returncode != 0 and "File too large" in done.stderr.splitlines()[-1]
    assert (tmp_path / "checkpoint" / "model.safetensors").read_bytes() == before
    loaded = AlbefForPreTraining.from_pretrained(tmp_path / "checkpoint")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_file_cut_short_is_named(checkpoint):
    folder, _, _ = checkpoint
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"incomplete|InvalidHeader|MetadataIncompleteBuffer|not entirely covered"):
        AutoModel.from_pretrained(folder)
