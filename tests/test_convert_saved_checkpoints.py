"""Checkpoints as people's training scripts save them: all come to what a plain file does, or to a one-line error."""

import json
import re
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from modeling_albef_amc.tools.convert_albef_checkpoint import write_original
from tests.helpers.original_checkpoints import (
    MOMENTUM,
    assert_equal_states,
    original_state,
    prefixed,
    refused,
    save,
    weights_of,
    without,
    write_vocabulary,
)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return original_state()


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    return write_vocabulary(tmp_path / "tokenizer", 40)


@pytest.fixture
def expected(state, tokenizer, tmp_path) -> dict[str, torch.Tensor]:
    """What comes of the same tensors in a plain file."""
    return weights_of(save(state, tmp_path / "plain.pth"), tmp_path)[0]


# Files that are read --------------------------------------------------------------------------------------------------


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
    refused(bin_index.parent, tmp_path, r"no such file: .*model\.safetensors\.index\.json")
    refused(tmp_path / "a.safetensors.out", tmp_path, "config.json is no original: to convert it back")
    content = (tmp_path / "a.safetensors").read_bytes()
    for damaged in (content[:-1], content[:1000], content[:7], b""):
        (tmp_path / "a.safetensors").write_bytes(damaged)
        refused(tmp_path / "a.safetensors", tmp_path, r"a\.safetensors is missing or damaged")
    for odd in (torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2, dtype=torch.complex64)):
        save_file({**whole, "module.itm_head.bias": odd}, tmp_path / "a.safetensors")
        refused(tmp_path / "a.safetensors", tmp_path, f"itm_head.bias is of {odd.dtype}, unlike torch.float32")
    refused(
        tmp_path / "plain.pth.out/model.safetensors", tmp_path, "of a converted model: pass --to_original its folder"
    )
    torch.save([1], bin_index.parent / "pytorch_model-00002-of-00003.bin")
    refused(bin_index, tmp_path, "no state dictionary")
    (index.parent / "model-00002-of-00003.safetensors").unlink()
    refused(index, tmp_path, r"no such file: .*model-00002-of-00003\.safetensors")
    index.write_text(json.dumps({"weight_map": {"temp": "../plain.pth"}}))
    refused(index, tmp_path, "index.json is damaged: weight_map")
    index.write_text("{")
    refused(index, tmp_path, "index.json is missing or damaged: it is no JSON")


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
    write_original(tmp_path / "a.pth.out", tmp_path / "back.pth")
    assert_equal_states(torch.load(tmp_path / "back.pth", weights_only=True)["model"], state)
    assert actual["albef.vision_model.embeddings.cls_token"].dtype == dtype


# Files that are refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
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
        (
            lambda s: {**s, "visual_encoder.module.cls_token": s["visual_encoder.cls_token"] + 1},
            r"visual_encoder\.module\.cls_token and visual_encoder\.cls_token should be equal copies, and differ",
        ),
        (lambda s: {"student": s, "teacher": s}, "several state dictionaries: student, teacher. Save one of them"),
        (lambda s: {"ema": s, 3: s, torch.ones(2): s, "a": s}, "several state dictionaries: ema, a. Save one of them"),
        (lambda s: {"model": {**s, "epoch": 3}}, "more than tensors: epoch"),
        (lambda s: {"model": {**s, 3: s["temp"]}}, "more than tensors: 3"),
        (lambda s: {"model": {**s, "loss": np.float64(1)}}, r"carries code \(numpy\..*scalar\), which is never run"),
        (lambda s: {"model": s, "folder": Path("a")}, r"carries code \(pathlib\.PosixPath\), which is never run"),
        (
            lambda s: {"model": nn.Linear(2, 2)},
            r"carries code \(torch\.nn\.modules\.linear\.Linear\), which is never run",
        ),
        (lambda s: {**s, "temp": torch.ones(2).to_sparse()}, "more than tensors: temp"),
        (lambda s: {**s, "itm_head.bias": torch.ones(2, dtype=torch.int8)}, r"itm_head\.bias is of torch\.int8"),
        (lambda s: {**s, "itm_head.bias": torch.ones(2) + 1j}, r"itm_head\.bias is of torch\.complex64"),
    ],
)
def test_what_training_scripts_save_and_cannot_be_read(state, tokenizer, tmp_path, change, message):
    torch.save(change(state), tmp_path / "a.pth")
    refused(tmp_path / "a.pth", tmp_path, message)


def test_another_pickle_protocol(state, expected, tmp_path):
    torch.save(state, tmp_path / "3.pth", pickle_protocol=3)
    assert_equal_states(weights_of(tmp_path / "3.pth", tmp_path)[0], expected)
