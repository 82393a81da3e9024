"""Reading and writing of checkpoint files: no code in them is run, and what is written appears whole or not at all."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .albef_checkpoint_layout import ConversionError, Weights, listing
from .configuration_albef import AlbefConfig


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
        # A mapped file takes memory only where it is read; files of torch before 1.6 cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # whatever the bytes of the file happen to mean
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise ConversionError(
                f"it carries code ({code[1]}), which is never run. Where the file was made, save the weights alone: "
                "torch.save({'model': model.state_dict()}, path)."
            ) from error
        kind = "it is cut off or damaged: get it again" if is_zip else "it is damaged, or no file of torch.save"
        raise ConversionError(f"{kind} ({type(error).__name__}).") from error
    beside = []
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        beside, content = [name for name in content if name != "model"], content["model"]
    if not isinstance(content, dict) or not content:
        raise ConversionError("it holds no state dictionary: expected {'model': {name: tensor}}.")
    strangers = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise ConversionError(
            f"its state dictionary holds more than tensors: {listing(strangers)}. Save the state dictionary alone."
        )
    return content, beside


def load_folder(folder: Path) -> tuple[AlbefConfig, Weights]:
    """Configuration and weights, under the names of `AlbefForPreTraining`, of a folder of either model class.

    Raises:
        ConversionError: no such folder, or not of ALBEF, or its weights are missing or damaged.
    """
    if not (folder / "config.json").is_file():
        raise ConversionError("no folder with a config.json: pass one that save_pretrained wrote.")
    try:
        model_type = json.loads((folder / "config.json").read_text()).get("model_type")
        if model_type != AlbefConfig.model_type:
            raise ConversionError(f"its config.json is of a model of type {model_type!r}, not 'albef'.")
        config = AlbefConfig.from_pretrained(folder)
        index = folder / SAFE_WEIGHTS_INDEX_NAME
        shards = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {SAFE_WEIGHTS_NAME}
    except (json.JSONDecodeError, StrictDataclassError) as error:
        raise ConversionError(f"its config.json or {SAFE_WEIGHTS_INDEX_NAME} is damaged ({error}).") from error
    weights = {}
    for shard in sorted(shards):
        try:
            weights |= load_file(folder / shard)
        except (OSError, SafetensorError) as error:
            raise ConversionError(f"its weights {shard} are missing or damaged ({error}).") from error
    if "temperature" in weights:  # of AlbefModel
        weights = {f"albef.{name}": tensor for name, tensor in weights.items()}
    return config, weights


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
