"""Reading and writing of checkpoint files: no code in them is run, and what is written appears whole or not at all."""

import os
import pickle
import re
import shutil
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .albef_checkpoint_layout import ConversionError, Weights, listing
from .albef_checkpoint_pickle import check_program
from .checkpoint_checks import check_safetensors, read_object
from .configuration_albef import AlbefConfig

# What is raised by torch and by those who read beside it, for bytes that make no sense.
_SENSELESS = (pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, OSError, ArithmeticError)
_SENSELESS += (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def load_original(path: Path) -> tuple[Weights, list[str]]:
    """The state dictionary of a `.pth` file, and the names of what else it holds. No code in it is ever run.

    Raises:
        ConversionError: no such file, not written by `torch.save`, damaged, or with something else than tensors.
    """
    if not path.is_file():
        raise ConversionError("no such file.")
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    try:
        check_program(path)
        # A mapped file takes memory only where it is read; files of torch before 1.6 cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except ConversionError:
        raise
    except _SENSELESS as error:
        kind = "it is cut off or damaged: get it again" if is_zip else "it is damaged, or no file of torch.save"
        raise ConversionError(f"{kind} ({type(error).__name__}).") from error
    beside = []
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        beside, content = [str(name)[:80] for name in content if name != "model"], content["model"]
    if not isinstance(content, dict) or not content:
        raise ConversionError("it holds no state dictionary: expected {'model': {name: tensor}}.")
    strangers = [str(name)[:80] for name, value in content.items() if not _is_plain_tensor(name, value)]
    if strangers:
        raise ConversionError(
            f"its state dictionary holds more than tensors: {listing(strangers)}. Save the state dictionary alone."
        )
    for name, tensor in content.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConversionError(f"{name[:80]} has the shape {tuple(tensor.shape)}, for which the file is too small.")
    return content, beside


def _is_plain_tensor(name: Any, value: Any) -> bool:
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        return False
    return value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized


def load_folder(folder: Path) -> tuple[AlbefConfig, Weights]:
    """Configuration and weights, under the names of `AlbefForPreTraining`, of a folder of either model class.

    Raises:
        ConversionError: no such folder, or not of ALBEF, or its weights are missing or damaged.
    """
    if not (folder / "config.json").is_file():
        raise ConversionError("no folder with a config.json: pass one that save_pretrained wrote.")
    try:
        model_type = read_object(folder / "config.json").get("model_type")
        if model_type != AlbefConfig.model_type:
            raise ConversionError(f"its config.json is of a model of type {model_type!r:.80}, not 'albef'.")
        shards = _shards(folder)
        for shard in shards:
            check_safetensors(folder / shard)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    try:
        config = AlbefConfig.from_pretrained(folder)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConversionError(f"its config.json is damaged ({error}).") from error
    weights = {name: tensor for shard in shards for name, tensor in load_file(folder / shard).items()}
    if "temperature" in weights:  # of AlbefModel
        weights = {f"albef.{name}": tensor for name, tensor in weights.items()}
    return config, weights


def _shards(folder: Path) -> list[str]:
    """The names of the files of weights."""
    if not (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        return [SAFE_WEIGHTS_NAME]
    shards = read_object(folder / SAFE_WEIGHTS_INDEX_NAME).get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else []
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise ConversionError(f"its {SAFE_WEIGHTS_INDEX_NAME} is damaged: weight_map has no files of this folder.")
    return sorted(set(names))


def check_output(source: Path, output: Path, overwrite: bool, is_folder: bool) -> None:
    """
    Raises:
        ConversionError: something is in the place of the output that is not to be replaced.
    """
    if output == source or output in source.parents:
        raise ConversionError(f"the output {output} would replace it: choose another place.")
    if not output.exists() or (is_folder and output.is_dir() and not any(output.iterdir())):
        return
    if output.is_dir() != is_folder:
        raise ConversionError(f"the output {output} is a {'file' if is_folder else 'folder'}: choose another place.")
    if not overwrite:
        raise ConversionError(f"the output {output} exists: choose another place, or pass --overwrite to replace it.")
    if is_folder and not (output / "config.json").is_file():
        raise ConversionError(
            f"the output {output} is no folder of a model, and so not replaced: choose another place."
        )


@contextmanager
def appearing(output: Path) -> Iterator[Path]:
    """A path beside `output` to write to. At the end it takes the place of `output`, or vanishes if anything failed.

    Raises:
        ConversionError: the disk is full, say.
    """
    partial, old = (output.with_name(f".{output.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if output.is_dir():
            output.rename(old)
        partial.replace(output)
    except (OSError, SafetensorError) as error:
        is_kept = output.exists() or old.exists()
        kept = "What was there before is as it was." if is_kept else "Nothing was left behind."
        raise ConversionError(f"could not write {output}: {error}. {kept}") from error
    finally:
        if old.exists() and not output.exists():  # stopped between the two renamings
            old.rename(output)
        for leftover in (partial, old):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            leftover.unlink(missing_ok=True)
