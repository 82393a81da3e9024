"""Conversion of original checkpoints to folders and back: what is kept, what is said, what is refused."""

import errno
import json
import os
import pickle
import re
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers.modeling_utils
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoProcessor

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
    prefixed,
    refused,
    save,
    weights_of,
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


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, torch.Tensor]:
    """What comes of the same tensors in a plain file."""
    folder = tmp_path_factory.mktemp("plain")
    write_vocabulary(folder / "tokenizer", 40)
    torch.manual_seed(0)
    return weights_of(save(original_state(), folder / "plain.pth"), folder)[0]


# Files as training scripts save them ----------------------------------------------------------------------------------


def compiled_inside(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One encoder compiled, the other distributed, some layers checkpointed, each on its own."""
    for part, wrapper in (("visual_encoder.", "_orig_mod."), ("text_encoder.", "module.")):
        state = {name.replace(part, part + wrapper, 1): tensor for name, tensor in state.items()}
    return {re.sub(r"(layer\.[34]\.)", r"\1_checkpoint_wrapped_module.", name): state[name] for name in state}


EMPTY_OPTIMIZER = {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.98), "params": [0, 1]}]}
# What training scripts save, and what the report says of it.
FILES = {
    "state dictionary alone": (lambda state: state, []),
    "ordered": (lambda state: OrderedDict(state), []),
    "more beside": (
        lambda state: {
            "model": state,
            "optimizer": EMPTY_OPTIMIZER,
            "epoch": 3,
            "args": Namespace(lr=1e-4, nested=Namespace(seeds=[1, 2])),
            "model_ema": {name: tensor * 0 if tensor.ndim else tensor for name, tensor in state.items()},
        },
        [
            "Left aside, as no weights: optimizer, epoch, args",
            "Left aside, other weights (to convert them, save them alone): model_ema",
        ],
    ),
    "model_state_dict": (lambda state: {"epoch": 3, "model_state_dict": state}, ["Left aside, as no weights: epoch"]),
    "a configuration called model": (
        lambda state: {"model": {"a": 1}, "state_dict": state},
        ["Left aside, as no weights: model"],
    ),
    "only an EMA copy": (lambda state: {"ema": state, "loss": torch.tensor(1.0)}, ["Left aside, as no weights: loss"]),
    "nested": (
        lambda state: {"state_dict": {"model": state, "optimizer": EMPTY_OPTIMIZER}, "epoch": 3},
        ["Left aside, as no weights: epoch, optimizer"],
    ),
    "deepspeed": (lambda state: {"module": state, "dp_world_size": 1}, ["Left aside, as no weights: dp_world_size"]),
    "DDP": (lambda state: {"model": prefixed("module.", state)}, ["Names without their prefix: module."]),
    "compiled": (lambda state: prefixed("_orig_mod.", state), ["Names without their prefix: _orig_mod."]),
    "both": (lambda state: prefixed("module._orig_mod.", state), ["Names without their prefix: module._orig_mod."]),
    "lightning": (
        lambda state: {
            "pytorch-lightning_version": "2.5",
            "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.5), "dirpath": "a"}},
            "optimizer_states": [EMPTY_OPTIMIZER],
            "hyper_parameters": {"lr": 1e-4},
            "state_dict": prefixed("model._orig_mod.", state),
        },
        [
            "Names without their prefix: model._orig_mod.",
            "Left aside, as no weights: pytorch-lightning_version, callbacks, optimizer_states, hyper_parameters",
        ],
    ),
    "averaged": (
        lambda state: {"model": {"n_averaged": torch.tensor(7), **prefixed("module.", state)}},
        ["  n_averaged: how many models were averaged", "Names without their prefix: module."],
    ),
    "compiled inside": (compiled_inside, []),
    "parameters": (
        lambda state: {name: nn.Parameter(state[name], state[name].is_floating_point()) for name in state},
        [],
    ),
    "queue as a parameter": (lambda state: state | {"image_queue": nn.Parameter(state["image_queue"])}, []),
    "other strides": (
        lambda state: {name: tensor.T.contiguous().T if tensor.ndim == 2 else tensor for name, tensor in state.items()},
        [],
    ),
}


OLD = [(kind, False) for kind in ("more beside", "both", "queue as a parameter")]


@pytest.mark.usefixtures("tokenizer")
@pytest.mark.parametrize(("kind", "is_zip"), [*((kind, True) for kind in FILES), *OLD])
def test_what_training_scripts_save(state, expected, tmp_path, kind, is_zip):
    change, lines = FILES[kind]
    torch.save(change(state), tmp_path / "a.bin", _use_new_zipfile_serialization=is_zip)
    before = (tmp_path / "a.bin").read_bytes()
    actual, report = weights_of(tmp_path / "a.bin", tmp_path)
    assert_equal_states(actual, expected)
    said = "Left aside", "Names without", "  n_averaged"
    assert [line for line in report.splitlines() if line.startswith(said)] == lines
    assert (tmp_path / "a.bin").read_bytes() == before


def shared_in_one_storage(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    numbers = torch.cat([tensor.flatten() for tensor in state.values() if tensor.is_floating_point()])
    views, start = {}, 0
    for name, tensor in state.items():
        if tensor.is_floating_point():
            views[name] = numbers[start : start + tensor.numel()].view(tensor.shape)
            start += tensor.numel()
    return state | views


def overlapping(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The momentum encoders are the encoders themselves, and the second queue begins within the first."""
    rows = torch.randn(9, 12)
    momentum = {name: state[name.replace("_m.", ".", 1)] for name in state if MOMENTUM.match(name)}
    return state | momentum | {"image_queue": rows[:8], "text_queue": rows[1:]}


@pytest.mark.parametrize("change", [shared_in_one_storage, overlapping])
@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_in_shared_memory(state, tokenizer, tmp_path, change, is_zip):
    state = change(state)
    torch.save(state, tmp_path / "shared.pth", _use_new_zipfile_serialization=is_zip)
    words = re.compile(r"cls\.predictions\.decoder\.weight")  # tied, and so again one
    apart = {name: tensor.clone() for name, tensor in without(state, words).items()}
    actual = weights_of(tmp_path / "shared.pth", tmp_path)[0]
    assert_equal_states(actual, weights_of(save(apart, tmp_path / "apart.pth"), tmp_path)[0])
    assert torch.equal(actual["image_queue"], state["image_queue"].T)
    assert torch.equal(actual["text_queue"], state["text_queue"].T)


def save_shards(state: dict[str, torch.Tensor], folder: Path, stem: str, suffix: str) -> Path:
    """As transformers and accelerate write them. Returns the index."""
    folder.mkdir()
    names = [f"{stem}-0000{number}-of-00003.{suffix}" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        part = {key: state[key].clone() for key in list(state)[number::3]}
        save_file(part, folder / name) if suffix == "safetensors" else torch.save(part, folder / name)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {key: names[i % 3] for i, key in enumerate(state)}}))
    return index


@pytest.mark.usefixtures("tokenizer")
def test_safetensors_and_shards(state, expected, tmp_path):
    whole = {name: tensor.clone() for name, tensor in prefixed("module.", state).items()}
    for name in ("a.safetensors", "safetensors.bin"):
        save_file(whole, tmp_path / name, {"format": "pt"})
        before = (tmp_path / name).read_bytes()
        actual, report = weights_of(tmp_path / name, tmp_path)
        assert_equal_states(actual, expected)
        assert "Names without their prefix: module." in report
        assert (tmp_path / name).read_bytes() == before
    index = save_shards(state, tmp_path / "shards", "model", "safetensors")
    bin_index = save_shards(state, tmp_path / "bins", "pytorch_model", "bin")
    for source in (index, index.parent, bin_index):
        actual, report = weights_of(source, tmp_path)
        assert_equal_states(actual, expected)
        megabytes = sum(file.stat().st_size for file in source.parent.glob("*-of-*") or source.glob("*-of-*")) / 1e6
        assert source.is_dir() or f"{source.name}: {megabytes:,.1f} MB" in report

    refused(index.parent / "model-00002-of-00003.safetensors", tmp_path, "one of several shards: pass the .index.json")
    refused(bin_index.parent, tmp_path, r"no such file: .*model\.safetensors")
    refused(tmp_path / "a.safetensors.out", tmp_path, "config.json is no original: to convert it back")
    content = (tmp_path / "a.safetensors").read_bytes()
    for damaged in (content[:-1], content[:1000], content[:7], b""):
        (tmp_path / "a.safetensors").write_bytes(damaged)
        refused(tmp_path / "a.safetensors", tmp_path, r"a\.safetensors is missing or damaged")
    for odd in (torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2, dtype=torch.int64)):
        save_file({**whole, "module.itm_head.bias": odd}, tmp_path / "a.safetensors")
        refused(tmp_path / "a.safetensors", tmp_path, f"itm_head.bias is of {odd.dtype}, unlike torch.float32")
    refused(
        tmp_path / "a.safetensors.out/model.safetensors",
        tmp_path,
        "of a converted model: pass --to_original its folder",
    )
    torch.save([1], bin_index.parent / "pytorch_model-00002-of-00003.bin")
    refused(bin_index, tmp_path, "no state dictionary")
    (index.parent / "model-00002-of-00003.safetensors").unlink()
    refused(index, tmp_path, r"no such file: .*model-00002-of-00003\.safetensors")
    refused(index.parent, tmp_path, r"no such file: .*model-00002-of-00003\.safetensors")
    index.write_text(json.dumps({"weight_map": {"temp": "../a.safetensors"}}))
    refused(index, tmp_path, "index.json is damaged: weight_map")
    index.write_text("{")
    refused(index, tmp_path, "index.json is missing or damaged: it is no JSON")
    save_file(whole, index.parent / "model.safetensors")  # a later save: the index and its shards are old
    assert_equal_states(weights_of(index.parent.rename(tmp_path / "saved again"), tmp_path)[0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("part", ["", "visual_encoder"])
def test_other_precisions(state, tokenizer, tmp_path, dtype, part):
    """Each tensor keeps the numbers and the type it has, mixed or not."""
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() and part in name else tensor
        for name, tensor in state.items()
    }
    actual, report = weights_of(save(state, tmp_path / "a.pth"), tmp_path)
    assert str(dtype).removeprefix("torch.") in report
    config = json.loads((tmp_path / "a.pth.out/config.json").read_text())
    assert config["dtype"] == (str(dtype).removeprefix("torch.") if part == "" or dtype == torch.float64 else "float32")
    write_original(tmp_path / "a.pth.out", tmp_path / "back.pth")
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True)["model"], state)
    assert actual["albef.vision_model.embeddings.cls_token"].dtype == dtype


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
        ({"model": nn.Linear(2, 2).state_dict()}, "no ALBEF or AMC checkpoint: it has no temp"),
    ):
        torch.save(content, source)
        refused(source, tmp_path, message)


def removed(pattern: str) -> Callable[[dict], dict]:
    return lambda state: without(state, re.compile(pattern))


# What is changed in the state dictionary, or instead put into the file, and what is said of it.
REFUSED = [
    ({"cls_head.weight": torch.ones(2)}, r"1 too many: cls_head\.weight\."),
    (removed(r"visual_encoder\.blocks\.1\.norm1\.bias"), r"1 missing: visual_encoder\.blocks\.1\.norm1\.bias\."),
    (removed(r"visual_encoder_m\.blocks\.1\.norm1\.bias"), r"1 missing: visual_encoder_m\.blocks\.1\.norm1\.bias\."),
    (removed("text_queue"), r"1 missing: text_queue\."),
    (removed(r"text_encoder_m\.bert\.encoder\.layer\.4\."), r"26 missing: text_encoder_m\.bert\.encoder\.layer\.4\."),
    (removed(r"text_encoder\.bert\.encoder\.layer\.3\.cross"), r"10 missing: text_encoder\..*\.3\.crossattention"),
    (removed("crossattention"), "no layer of text_encoder has a crossattention"),
    ({"itm_head.weight": torch.ones(3, 24)}, r"itm_head\.weight has the shape \(3, 24\), not \(2, 24\)"),
    ({"text_queue": torch.ones(8, 13)}, r"text_queue has the shape"),
    ({"itm_head.bias": torch.ones(2).long()}, r"itm_head\.bias is of torch\.int64"),
    ({"itm_head.bias": torch.ones(2, dtype=torch.int8)}, r"itm_head\.bias is of torch\.int8"),
    ({"itm_head.bias": torch.ones(2) + 1j}, r"itm_head\.bias is of torch\.complex64"),
    ({"visual_encoder.pos_embed": torch.ones(1, 16, 16)}, "15 patch positions: not a square grid"),
    ({"vision_proj.weight": torch.ones(8)}, r"vision_proj\.weight has the shape \(8,\): expected 2 axes"),
    ({"queue_ptr_txt": torch.tensor([5])}, "queue_ptr_txt and queue_ptr_img should be equal copies"),
    ({"text_encoder.cls.predictions.decoder.bias": torch.ones(40)}, r"equal copies, and differ"),
    ({"text_encoder_m.cls.predictions.decoder.weight": torch.ones(40, 24)}, r"equal copies, and differ"),
    ({"text_encoder.embeddings.LayerNorm.bias": torch.ones(24)}, r"equal copies, and differ"),
    (
        lambda s: {**s, "visual_encoder.module.cls_token": s["visual_encoder.cls_token"] + 1},
        r"visual_encoder\.module\.cls_token and visual_encoder\.cls_token should be equal copies, and differ",
    ),
    ({"temp": torch.ones(2).to_sparse()}, "more than tensors: temp"),
    ({"epoch": 3}, "more than tensors: epoch"),
    ({3: torch.ones(1)}, "more than tensors: 3"),
    ({"loss": np.float64(1)}, r"carries code \(numpy\..*scalar\), which is never run"),
    (lambda s: {"model": s, "folder": Path("a")}, r"carries code \(pathlib[\w.]*\.PosixPath\), which is never run"),
    (lambda s: {"model": nn.Linear(2, 2)}, r"carries code \(torch\.nn\.modules\.linear\.Linear\), which is never run"),
    (
        lambda s: {"module.temp": s.pop("temp"), **s},
        r"its names have no prefix, but not module\.temp: save the model's own state dictionary",
    ),
    (
        lambda s: {**prefixed("model.", s), "loss.weight": s["temp"], "temp": s["temp"]},
        r"its names begin with 'model\.', but not loss\.weight, temp: save",
    ),
    (
        lambda s: prefixed("student.", s) | prefixed("teacher.", without(s, MOMENTUM)),
        r"begin with 'student\.', but not teacher\..* and \d+ more: save",
    ),
    (lambda s: prefixed("module.", {**s, "x.weight": s["temp"]}), r"1 too many: module\.x\.weight\."),
    (lambda s: {"student": s, "teacher": s}, "several state dictionaries: student, teacher. Save one of them"),
    (lambda s: {"ema": s, 3: s, torch.ones(2): s, "a": s}, "several state dictionaries: ema, a. Save one of them"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_cannot_be_read_and_tensors_that_do_not_fit(state, tokenizer, tmp_path, change, message):
    torch.save(change(state) if callable(change) else state | change, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", tmp_path, message)


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


@pytest.mark.parametrize("are_shards_left", [False, True])
def test_a_folder_that_was_saved_into_again_goes_back_as_transformers_reads_it(folder, tmp_path, are_shards_left):
    """The index of the first save, in several files, stays."""
    model = AlbefForPreTraining.from_pretrained(folder)
    model.save_pretrained(tmp_path / "trained", max_shard_size="50KB")
    old = {file: file.read_bytes() for file in (tmp_path / "trained").glob("*-of-*")}
    with torch.no_grad():
        model.albef.vision_model.embeddings.cls_token.add_(1)
    model.save_pretrained(tmp_path / "trained")
    assert (tmp_path / "trained/model.safetensors.index.json").exists()
    for file, content in old.items() if are_shards_left else ():
        file.write_bytes(content)
    write_original(tmp_path / "trained", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    read = AlbefForPreTraining.from_pretrained(tmp_path / "trained")
    for each in (model, read):
        assert torch.equal(back["visual_encoder.cls_token"], each.albef.vision_model.embeddings.cls_token)


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
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    refused_folder("it has LoRA adapters alone: albef-amc merge", tmp_path / "lora")
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
