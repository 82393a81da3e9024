"""Tiny checkpoints in the original layout, their conversion, and what comes of it: for the tests of the converter."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_albef_amc.tools.albef_checkpoint_layout import ConversionError
from modeling_albef_amc.tools.convert_albef_checkpoint import convert_checkpoint

TINY = {"vision_heads": 2, "text_heads": 2, "grounding_layer": 3}
GOLDEN = {"vision_heads": 4, "text_heads": 4, "grounding_layer": 4}
MOMENTUM = re.compile(r"^\w+_m\.")
QUEUE = re.compile(r"queue")
HEAD = re.compile(r"\.cls\.")


def original_state() -> dict[str, torch.Tensor]:
    """An AMC state dictionary, written down by hand: two image layers of width 16, five text layers of width 24 of
    which three see the image, images of 32 x 32 pixels in patches of 8, 40 word pieces, queues of 12."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int | None = None) -> None:
        shapes[f"{name}.weight"] = (outputs,) if inputs is None else (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    for suffix in ("", "_m"):
        vision, text = f"visual_encoder{suffix}", f"text_encoder{suffix}"
        shapes |= {f"{vision}.cls_token": (1, 1, 16), f"{vision}.pos_embed": (1, 17, 16)}
        shapes |= {f"{vision}.patch_embed.proj.weight": (16, 3, 8, 8), f"{vision}.patch_embed.proj.bias": (16,)}
        for block in (f"{vision}.blocks.0", f"{vision}.blocks.1"):
            for name, *size in (("norm1", 16), ("norm2", 16), ("attn.qkv", 48, 16), ("attn.proj", 16, 16)):
                linear(f"{block}.{name}", *size)
            linear(f"{block}.mlp.fc1", 32, 16)
            linear(f"{block}.mlp.fc2", 16, 32)
        linear(f"{vision}.norm", 16)
        for table, rows in (("word", 40), ("position", 20), ("token_type", 2)):
            shapes[f"{text}.bert.embeddings.{table}_embeddings.weight"] = (rows, 24)
        linear(f"{text}.bert.embeddings.LayerNorm", 24)
        for index in range(5):
            layer = f"{text}.bert.encoder.layer.{index}"
            for block, width in (("attention", 24), ("crossattention", 16)) if index > 1 else (("attention", 24),):
                linear(f"{layer}.{block}.self.query", 24, 24)
                linear(f"{layer}.{block}.self.key", 24, width)
                linear(f"{layer}.{block}.self.value", 24, width)
                linear(f"{layer}.{block}.output.dense", 24, 24)
                linear(f"{layer}.{block}.output.LayerNorm", 24)
            linear(f"{layer}.intermediate.dense", 48, 24)
            linear(f"{layer}.output.dense", 24, 48)
            linear(f"{layer}.output.LayerNorm", 24)
        linear(f"{text}.cls.predictions.transform.dense", 24, 24)
        linear(f"{text}.cls.predictions.transform.LayerNorm", 24)
        shapes[f"{text}.cls.predictions.bias"] = (40,)
        linear(f"vision_proj{suffix}", 8, 16)
        linear(f"text_proj{suffix}", 8, 24)
    linear("itm_head", 2, 24)
    shapes |= {"image_queue": (8, 12), "text_queue": (8, 12)}
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    for text in ("text_encoder", "text_encoder_m"):
        head = f"{text}.cls.predictions"
        state[f"{head}.decoder.weight"] = state[f"{text}.bert.embeddings.word_embeddings.weight"]
        state[f"{head}.decoder.bias"] = state[f"{head}.bias"].clone()
        state[f"{text}.bert.embeddings.position_ids"] = torch.arange(20)[None]
    return state | {"temp": torch.tensor(0.05), "queue_ptr_img": torch.tensor([4]), "queue_ptr_txt": torch.tensor([4])}


def without(state: dict[str, torch.Tensor], *patterns: re.Pattern) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not any(pattern.search(name) for pattern in patterns)}


def with_one_pointer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return without(state, re.compile("queue_ptr")) | {"queue_ptr": state["queue_ptr_img"]}


def fine_tuned(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As ALBEF saves after retrieval and grounding; nothing in the queue yet."""
    state = {name.replace(".bert.", "."): tensor for name, tensor in with_one_pointer(without(state, HEAD)).items()}
    return state | {"idx_queue": torch.full((1, 12), -100)}


def write_vocabulary(folder: Path, size: int) -> Path:
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "a", "black", "cat"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words + [f"word{index}" for index in range(size - len(words))]) + "\n")
    return folder


def save(state, path: Path) -> Path:
    torch.save({"model": state}, path)
    return path


def assert_equal_states(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def weights_of(source: Path, tmp_path: Path) -> tuple[dict[str, torch.Tensor], str]:
    out = tmp_path / f"{source.name}.out"
    report = convert_checkpoint(source, out, tokenizer=tmp_path / "tokenizer", **TINY)
    return load_file(out / "model.safetensors"), report


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def refused(source: Path, tmp_path: Path, message: str, **options) -> None:
    with pytest.raises(ConversionError, match=message) as error:
        convert_checkpoint(source, tmp_path / "out", **{"tokenizer": tmp_path / "tokenizer", **TINY, **options})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
