"""Conversion of original checkpoints to folders and back: what is kept, what is said, what is refused."""

import errno
import json
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
import transformers.modeling_utils
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel

from modeling_albef_amc import AlbefForPreTraining, AlbefModel
from modeling_albef_amc.tools.albef_checkpoint_layout import ConversionError, original_names
from modeling_albef_amc.tools.convert_albef_checkpoint import convert_checkpoint, write_original
from tests.helpers.original_checkpoints import (
    GOLDEN,
    HEAD,
    MOMENTUM,
    QUEUE,
    TINY,
    assert_equal_states,
    fine_tuned,
    original_state,
    refused,
    save,
    with_one_pointer,
    without,
    write_vocabulary,
)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return original_state()


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    return write_vocabulary(tmp_path / "tokenizer", 40)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def deviation(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item()


# The recorded model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared_dir) -> Path:
    return shared_dir / "golden"


@pytest.fixture(scope="module")
def converted(golden, tmp_path_factory) -> Path:
    """The released file."""
    folder = tmp_path_factory.mktemp("golden")
    vocabulary = write_vocabulary(folder / "tokenizer", 200)
    convert_checkpoint(golden / "model.pth", folder / "albef", tokenizer=vocabulary, **GOLDEN)
    return folder / "albef"


@pytest.mark.shared
def test_logits_and_heatmaps_of_the_converted_file_are_the_recorded_ones(golden, converted):
    inputs, expected = load_file(golden / "inputs.safetensors"), load_file(golden / "eval_cam.safetensors")
    forward = load_file(golden / "forward.safetensors")
    mask = inputs["b0.attention_mask"]
    batch = {"pixel_values": inputs["b0.images"].float(), "input_ids": inputs["b0.input_ids"], "attention_mask": mask}
    model = AutoModel.from_pretrained(converted).eval()
    assert type(model) is AlbefModel
    output = model(**batch, output_heatmaps=True)
    assert deviation(output.itm_logits, expected["itm_logits_res64"]) < 1e-4
    # The original divides by all token slots, padding included.
    share = mask.float().mean(dim=1)[:, None, None]
    assert deviation(output.heatmaps * share, expected["itm_cam_res64_layer4"]) < 1e-4

    pretraining, info = AlbefForPreTraining.from_pretrained(converted, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        states = pretraining.eval().albef(**batch).last_hidden_state
        assert deviation(pretraining.mlm_head(states), forward["mlm_logits"]) < 1e-4
        image_embeds = pretraining.momentum_encoder.vision_model(batch["pixel_values"]).last_hidden_state
    assert deviation(image_embeds, forward["image_embeds_m"]) < 1e-4
    weights = load_file(golden / "model.safetensors")
    assert torch.equal(pretraining.image_queue, weights["image_queue"].T)
    assert pretraining.queue_pointer == weights["queue_ptr_img"]


@pytest.mark.shared
def test_configuration_is_inferred(golden, converted):
    recorded = json.loads((golden / "config.json").read_text())
    config = AlbefModel.from_pretrained(converted).config
    for ours, name in (
        ("image_size", "image_res"),
        ("hidden_size", "vision_width"),
        ("num_hidden_layers", "vit_depth"),
    ):
        assert getattr(config.vision_config, ours) == recorded["model"][name]
    for name in ("hidden_size", "intermediate_size", "max_position_embeddings", "num_hidden_layers", "fusion_layer"):
        assert getattr(config.text_config, name) == recorded["bert"][name]
    assert config.text_config.vocab_size == recorded["bert"]["vocab_size"]
    assert config.text_config.encoder_hidden_size == recorded["bert"]["encoder_width"]
    assert (config.projection_dim, config.queue_size, config.temperature) == (16, 32, 0.07)
    assert (config.vision_config.intermediate_size, config.vision_config.patch_size) == (256, 16)


@pytest.mark.shared
def test_positions_are_interpolated_like_the_original(golden, converted, tmp_path):
    expected = load_file(golden / "pos_embed.safetensors")
    tokenizer = converted.parent / "tokenizer"
    report = convert_checkpoint(golden / "model.pth", tmp_path / "out", image_size=96, tokenizer=tokenizer, **GOLDEN)
    assert "images of 96 × 96 pixels, interpolated from 64 × 64, in patches of 16" in report
    model, info = AlbefForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    for encoder, name in ((model.albef, "out_6x6"), (model.momentum_encoder, "out_m_6x6")):
        assert deviation(encoder.vision_model.embeddings.position_embeddings, expected[name]) < 1e-5
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert dict(processor.image_processor.size) == {"height": 96, "width": 96}


@pytest.mark.shared
def test_the_released_file_comes_back_bit_for_bit(golden, converted, tmp_path):
    before = (golden / "model.pth").read_bytes()
    write_original(converted, tmp_path / "back.pth")
    expected = torch.load(golden / "model.pth", weights_only=True)["model"]
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == {"model"}
    assert list(back["model"]) == list(expected)  # in the same order
    assert_equal_states(back["model"], expected)
    assert (golden / "model.pth").read_bytes() == before


# Layouts --------------------------------------------------------------------------------------------------------------

# What is made of the state dictionary, its class here, what the report says is absent, and the layout to get it back.
EVERYTHING = ["MLM head", "momentum MLM head", "momentum encoders", "queues"]
VARIANTS = {
    "amc": (lambda state: state, AlbefForPreTraining, [], "amc"),
    "albef": (with_one_pointer, AlbefForPreTraining, [], "albef"),
    "no queues": (lambda state: without(state, QUEUE), AlbefForPreTraining, ["queues"], "amc"),
    "no momentum": (lambda state: without(state, MOMENTUM), AlbefForPreTraining, EVERYTHING[1:3], "amc"),
    "head only": (lambda state: without(state, MOMENTUM, QUEUE), AlbefForPreTraining, EVERYTHING[1:], "amc"),
    "no head": (lambda state: with_one_pointer(without(state, HEAD)), AlbefForPreTraining, EVERYTHING[:2], "albef"),
    "fine-tuned": (fine_tuned, AlbefForPreTraining, EVERYTHING[:2], "retrieval"),
    "bare": (lambda state: without(state, MOMENTUM, QUEUE, HEAD), AlbefModel, EVERYTHING, "amc"),
    "bare, fine-tuned": (lambda s: without(fine_tuned(s), MOMENTUM, QUEUE), AlbefModel, EVERYTHING, "retrieval"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layout_is_converted_loaded_and_written_back(state, tokenizer, tmp_path, variant):
    change, model_class, absent, layout = VARIANTS[variant]
    state = change(state)
    source = save(state, tmp_path / "source.pth")
    before = source.read_bytes()
    report = convert_checkpoint(source, tmp_path / "out", tokenizer=tokenizer, **TINY)
    assert source.read_bytes() == before
    assert f"of {model_class.__name__}" in report
    assert re.findall(r"^  ([\w ]+): (?:training starts|not needed)", report, re.MULTILINE) == absent
    # Every tensor is counted once, and those dropped are named.
    counts = [int(re.search(rf"^{word}: (\d+) tensors", report, re.MULTILINE)[1]) for word in ("Converted", "Dropped")]
    assert sum(counts) == len(state)
    assert counts[1] == len(
        [line for line in report.splitlines() if line.startswith("  ") and line[2:].split(":")[0] in state]
    )

    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == [model_class.__name__]
    for loaded_class in (AlbefModel, AlbefForPreTraining):
        _, info = loaded_class.from_pretrained(tmp_path / "out", output_loading_info=True)
        # Only the MLM head is worth a complaint.
        is_head_new = loaded_class is AlbefForPreTraining and "MLM head" in absent
        assert is_head_new == bool(info["missing_keys"])
        assert all(name.startswith("mlm_head.") for name in info["missing_keys"])
        assert not info["unexpected_keys"] and not info["mismatched_keys"]

    write_original(tmp_path / "out", tmp_path / "back.pth", layout=layout)
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True)["model"], state)


def test_tensors_arrive_under_their_names(state, tokenizer, tmp_path):
    convert_checkpoint(save(state, tmp_path / "a.pth"), tmp_path / "out", tokenizer=tokenizer, **TINY)
    model = AlbefForPreTraining.from_pretrained(tmp_path / "out")
    layer = model.momentum_encoder.text_model.layers[4].cross_attention
    assert torch.equal(layer.key.weight, state["text_encoder_m.bert.encoder.layer.4.crossattention.self.key.weight"])
    assert torch.equal(
        model.albef.vision_model.layers[1].intermediate.bias, state["visual_encoder.blocks.1.mlp.fc1.bias"]
    )
    assert torch.equal(model.text_queue, state["text_queue"].T)
    assert model.albef.temperature == state["temp"]
    assert model.mlm_head.decoder.weight is model.albef.text_model.embeddings.word_embeddings.weight


def test_half_precision_stays_as_it_is(state, tokenizer, tmp_path):
    state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    report = convert_checkpoint(save(state, tmp_path / "a.pth"), tmp_path / "out", tokenizer=tokenizer, **TINY)
    assert "tensors of float16" in report
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float16"
    assert AlbefModel.from_pretrained(tmp_path / "out").dtype == torch.float16
    write_original(tmp_path / "out", tmp_path / "back.pth")
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True)["model"], state)


def test_processor_is_saved_along(state, tokenizer, tmp_path):
    convert_checkpoint(save(state, tmp_path / "a.pth"), tmp_path / "out", tokenizer=tokenizer, **TINY)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer("a black cat")["input_ids"] == [1, 5, 6, 7]  # no [SEP] at the end
    assert dict(processor.image_processor.size) == {"height": 32, "width": 32}
    assert all(b".partial" not in content for content in files_of(tmp_path / "out").values())
    # A tokenizer.json alone will do, too.
    (tmp_path / "json").mkdir()
    (tmp_path / "out/tokenizer.json").rename(tmp_path / "json/tokenizer.json")
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "again", tokenizer=tmp_path / "json", **TINY)
    again = AutoProcessor.from_pretrained(tmp_path / "again")
    assert again.tokenizer("a black cat")["input_ids"] == [1, 5, 6, 7]


# Files that are refused -----------------------------------------------------------------------------------------------


class Code:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_file_is_never_run(state, tokenizer, tmp_path, is_zip):
    trap = {"model": state, "config": Code(tmp_path / "trap")}
    torch.save(trap, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    refused(tmp_path / "a.pth", tmp_path, r"carries code \(\w+\.mkdir\)")
    (tmp_path / "a.pth").write_bytes(pickle.dumps(trap["config"]))
    refused(tmp_path / "a.pth", tmp_path, "no file of torch.save|carries code")
    assert not (tmp_path / "trap").exists()


def test_files_that_are_no_checkpoints(state, tokenizer, tmp_path):
    source = save(state, tmp_path / "a.pth")
    content = source.read_bytes()
    for length in (len(content) // 2, len(content) - 10, 100):
        source.write_bytes(content[:length])
        refused(source, tmp_path, "damaged, cut off or no file of torch.save")
    torch.save({"model": state}, source, _use_new_zipfile_serialization=False)
    source.write_bytes(source.read_bytes()[:-50])
    refused(source, tmp_path, "damaged, cut off or no file of torch.save")
    for text in (b"", b"hello", b"version https://git-lfs.github.com/spec/v1\n", bytes(range(256))):
        source.write_bytes(text)
        refused(source, tmp_path, "damaged, cut off or no file of torch.save")
    refused(tmp_path / "none.pth", tmp_path, "no such file")
    for content, message in (
        ([1, 2], "no state dictionary"),
        ({"model": {}}, "no state dictionary"),
        ({"model": {"temp": 0.07}}, "more than tensors: temp"),
    ):
        torch.save(content, source)
        refused(source, tmp_path, message)


def test_a_file_of_another_model(tokenizer, tmp_path):
    bert = BertModel(BertConfig(vocab_size=40, hidden_size=24, num_hidden_layers=1, num_attention_heads=2))
    refused(save(bert.state_dict(), tmp_path / "a.pth"), tmp_path, "no ALBEF or AMC checkpoint: it has no temp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cls_head.weight": torch.ones(2)}, r"1 too many: cls_head\.weight\."),
        ({"visual_encoder.blocks.1.norm1.bias": None}, r"1 missing: visual_encoder\.blocks\.1\.norm1\.bias\."),
        ({"visual_encoder_m.blocks.1.norm1.bias": None}, r"1 missing: visual_encoder_m\.blocks\.1\.norm1\.bias\."),
        ({"text_queue": None}, r"1 missing: text_queue\."),
        ({"itm_head.weight": torch.ones(3, 24)}, r"itm_head\.weight has the shape \(3, 24\), not \(2, 24\)"),
        ({"text_queue": torch.ones(8, 13)}, r"text_queue has the shape"),
        ({"itm_head.bias": torch.ones(2).long()}, r"itm_head\.bias is of torch\.int64"),
        ({"visual_encoder.pos_embed": torch.ones(1, 16, 16)}, "15 patch positions: not a square grid"),
        ({"vision_proj.weight": torch.ones(8)}, r"vision_proj\.weight has the shape \(8,\): expected 2 axes"),
        ({"queue_ptr_txt": torch.tensor([5])}, "queue_ptr_txt and queue_ptr_img should be equal copies"),
        ({"text_encoder.cls.predictions.decoder.bias": torch.ones(40)}, r"equal copies, and differ"),
        ({"text_encoder_m.cls.predictions.decoder.weight": torch.ones(40, 24)}, r"equal copies, and differ"),
        ({"text_encoder.embeddings.LayerNorm.bias": torch.ones(24)}, r"equal copies, and differ"),
    ],
)
def test_tensors_that_do_not_fit(state, tokenizer, tmp_path, change, message):
    for name, tensor in change.items():
        state.pop(name) if tensor is None else state.update({name: tensor})
    refused(save(state, tmp_path / "a.pth"), tmp_path, message)


def test_whole_layers_that_are_missing(state, tokenizer, tmp_path):
    fewer = without(state, re.compile(r"text_encoder_m\.bert\.encoder\.layer\.4\."))
    refused(save(fewer, tmp_path / "a.pth"), tmp_path, r"26 missing: text_encoder_m\.bert\.encoder\.layer\.4\.")
    gap = without(state, re.compile(r"text_encoder\.bert\.encoder\.layer\.3\.cross"))
    refused(
        save(gap, tmp_path / "a.pth"), tmp_path, r"10 missing: text_encoder\.bert\.encoder\.layer\.3\.crossattention"
    )
    no_fusion = without(state, re.compile("crossattention"))
    refused(save(no_fusion, tmp_path / "a.pth"), tmp_path, "no layer of text_encoder has a crossattention")


def test_options_that_the_tensors_contradict(state, tokenizer, tmp_path):
    source = save(state, tmp_path / "a.pth")
    refused(source, tmp_path, "--vision_heads", vision_heads=None)  # 12 heads of width 16 / 12
    refused(source, tmp_path, "--text_heads", text_heads=5)
    refused(source, tmp_path, r"choose one of 2\.\.4 with --grounding_layer", grounding_layer=None)
    refused(source, tmp_path, "--grounding_layer", grounding_layer=1)
    refused(source, tmp_path, "--image_size 33", image_size=33)
    refused(source, tmp_path, "--image_size 0", image_size=0)
    refused(source, tmp_path, "pass --tokenizer a folder", tokenizer="bert-base-uncased")  # offline, and not cached
    (tmp_path / "empty").mkdir()
    refused(source, tmp_path, "neither vocab.txt nor tokenizer.json", tokenizer=tmp_path / "empty")
    refused(source, tmp_path, "41 tokens, the weights 40", tokenizer=write_vocabulary(tmp_path / "other", 41))


# Output ---------------------------------------------------------------------------------------------------------------


def test_an_existing_output_is_replaced_only_when_asked(state, tokenizer, tmp_path):
    source, out = save(state, tmp_path / "a.pth"), tmp_path / "out"
    out.mkdir()  # empty: welcome
    convert_checkpoint(source, out, tokenizer=tokenizer, **TINY)
    first = files_of(out)
    with pytest.raises(ConversionError, match="exists: choose another place, or pass --overwrite"):
        convert_checkpoint(source, out, tokenizer=tokenizer, **TINY)
    assert files_of(out) == first
    (out / "old.txt").write_text("of the old model")
    convert_checkpoint(source, out, tokenizer=tokenizer, overwrite=True, **TINY)
    assert files_of(out) == first
    # Neither what is no model, nor the folder in which the source lies.
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_bytes(b"")
    for place, message in (
        (tmp_path / "photos", "no folder of a model"),
        (tmp_path, "would replace it"),
        (source, "would replace it"),
        (tokenizer / "vocab.txt", "is a file"),
    ):
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(source, place, tokenizer=tokenizer, overwrite=True, **TINY)
    assert source.is_file() and (tmp_path / "photos/cat.jpg").is_file()

    write_original(out, tmp_path / "back.pth")
    with pytest.raises(ConversionError, match="exists"):
        write_original(out, tmp_path / "back.pth")
    write_original(out, tmp_path / "back.pth", overwrite=True)


@pytest.mark.parametrize("has_previous", [True, False])
def test_a_disk_that_fills_leaves_all_as_it_was(state, tokenizer, tmp_path, monkeypatch, has_previous):
    source, out, back = save(state, tmp_path / "a.pth"), tmp_path / "out", tmp_path / "back.pth"
    if has_previous:
        convert_checkpoint(source, out, tokenizer=tokenizer, **TINY)
        write_original(out, back)
    before = files_of(out) if has_previous else None
    everything = sorted(path.name for path in tmp_path.iterdir())

    def full(tensors, filename, **kwargs):
        (path := Path(filename)).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(transformers.modeling_utils, "safe_save_file", full)
        kept = "as it was" if has_previous else "Nothing was left behind"
        with pytest.raises(ConversionError, match=rf"No space left on device.*{kept}"):
            convert_checkpoint(source, out, tokenizer=tokenizer, overwrite=True, **TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == everything
    if not has_previous:
        return
    assert files_of(out) == before
    content = back.read_bytes()

    def full_stream(value, stream):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full_stream)
    with pytest.raises(ConversionError, match=r"No space left on device.*as it was"):
        write_original(out, back, overwrite=True)
    assert back.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == everything


def test_an_interruption_at_the_last_moment_keeps_the_previous_folder(state, tokenizer, tmp_path, monkeypatch):
    source, out = save(state, tmp_path / "a.pth"), tmp_path / "out"
    convert_checkpoint(source, out, tokenizer=tokenizer, **TINY)
    before = files_of(out)

    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, out, tokenizer=tokenizer, overwrite=True, **TINY)
    assert files_of(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "out", "tokenizer"]


# Back -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(state, tokenizer, tmp_path) -> Path:
    convert_checkpoint(save(state, tmp_path / "a.pth"), tmp_path / "out", tokenizer=tokenizer, **TINY)
    return tmp_path / "out"


def test_a_trained_folder_goes_back_and_says_what_stays_behind(folder, tmp_path):
    model = AlbefForPreTraining.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.save_pretrained(tmp_path / "trained", max_shard_size="50KB")  # in several files
    assert not (tmp_path / "trained/model.safetensors").exists()
    report = write_original(tmp_path / "trained", tmp_path / "back.pth")
    assert "Left out, as the original has no place for it:\n  image_id_queue, text_id_queue" in report
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert list(back) == original_names(model.config, "amc")
    assert torch.equal(back["visual_encoder.cls_token"], model.albef.vision_model.embeddings.cls_token)
    assert torch.equal(back["text_encoder.cls.predictions.bias"], model.mlm_head.decoder.bias)
    report = write_original(tmp_path / "trained", tmp_path / "retrieval.pth", layout="retrieval")
    assert "mlm_head.dense.weight" in report
    back = torch.load(tmp_path / "retrieval.pth", weights_only=True)["model"]
    assert back["idx_queue"].tolist() == [[-100] * 12]
    assert back.keys() == fine_tuned(original_state()).keys()


def test_momentum_encoders_for_the_released_scripts(folder, tmp_path):
    AlbefModel.from_pretrained(folder).save_pretrained(tmp_path / "small")
    report = write_original(tmp_path / "small", tmp_path / "small.pth")
    assert "--momentum_copies" in report
    small = torch.load(tmp_path / "small.pth", weights_only=True)["model"]
    assert not any("_m." in name for name in small)
    report = write_original(tmp_path / "small", tmp_path / "whole.pth", momentum_copies=True)
    assert "Written as copies: momentum encoders" in report
    whole = torch.load(tmp_path / "whole.pth", weights_only=True)["model"]
    copies = {name for name in original_state() if MOMENTUM.match(name) and not HEAD.search(name)}
    assert whole.keys() == small.keys() | copies
    for name in copies:
        assert torch.equal(whole[name], whole[name.replace("_m.", ".", 1)])


def test_folders_that_are_refused(folder, tmp_path):
    def refused_folder(message: str, source: Path = folder) -> None:
        with pytest.raises(ConversionError, match=message):
            write_original(source, tmp_path / "back.pth")
        assert not (tmp_path / "back.pth").exists()

    refused_folder("no folder with a config.json", tmp_path / "none")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "text_config": {**config["text_config"], "num_hidden_layers": 6}})
    )
    refused_folder(r"52 missing: albef\.text_model\.layers\.5\.")
    (folder / "config.json").write_text(json.dumps({**config, "projection_dim": 9}))
    refused_folder(r"has the shape \(8, 16\), not \(9, 16\)")
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    refused_folder("'bert', not 'albef'")
    (folder / "config.json").write_text("{")
    refused_folder("config.json is missing or damaged")
    (folder / "config.json").write_text(json.dumps({**config, "projection_dim": "eight"}))
    refused_folder("its config.json is no configuration of the model")
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "adapter.weight": torch.ones(1)}, folder / "model.safetensors")
    refused_folder(r"1 too many: adapter\.weight")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    refused_folder("model.safetensors is missing or damaged")
    (folder / "model.safetensors").unlink()
    refused_folder("model.safetensors is missing or damaged")
