"""Reading and writing of checkpoint files: no code in them is run, and what is written appears whole or not at all."""

import argparse
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import ADAPTER_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..configuration_albef import AlbefConfig
from ..families.checkpoint_checks import check_safetensors, naming_damage, read_object
from .albef_checkpoint_layout import ConversionError, Weights, listing

# The names that training scripts give to the state dictionary among what they save; the first that is there is read.
WEIGHTS = "model", "state_dict", "model_state_dict", "module"
MAX_WRAPPINGS = 4


@contextmanager
def refusing() -> Iterator[None]:
    """Errors of reading become a `ConversionError`."""
    try:
        yield
    except (ValueError, OSError, SafetensorError) as error:
        raise ConversionError(str(error).splitlines()[0]) from error


@refusing()
def load_original(path: Path) -> tuple[Weights, list[str]]:
    """The state dictionary of a file or of its shards, and lines that say what else they hold; no code of it runs."""
    parts = [read_weights(file) for file in weight_files(path)]
    content, lines = {}, []
    if all(isinstance(part, dict) for part in parts):
        content, lines = state_dictionary({name: value for part in parts for name, value in part.items()})
    if not content:
        raise ConversionError("it holds no state dictionary: expected {'model': {name: tensor}}.")
    strangers = [
        str(name)[:80]
        for name, value in content.items()
        if not (is_named_tensor(name, value) and is_plain_tensor(value))
    ]
    if strangers:
        raise ConversionError(
            f"its state dictionary holds more than tensors: {listing(strangers)}. Save tensors alone."
        )
    for name, tensor in content.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ConversionError(f"{name[:80]} has the shape {tuple(tensor.shape)}, for which the file is too small.")
    return {name: tensor.detach() for name, tensor in content.items()}, lines


def weight_files(path: Path) -> list[Path]:
    """The files of weights that a file, an index of shards, or a folder stands for."""
    if path.is_dir():
        if (path / "config.json").is_file():
            raise ConversionError("a folder with a config.json is no original: to convert it back, pass --to_original.")
        return folder_files(path)
    if not path.is_file():
        raise ConversionError(f"no such file: {path}.")
    if re.search(r"-\d+-of-\d+\.\w+$", path.name):
        raise ConversionError("it is one of several shards: pass the .index.json beside it.")
    return [path.parent / name for name in shards(path)] if path.suffix == ".json" else [path]


def folder_files(folder: Path) -> list[Path]:
    """The files that transformers reads: the whole one, beside which an index is of an earlier save, or the shards."""
    whole, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    return [folder / name for name in shards(index)] if index.is_file() and not whole.is_file() else [whole]


def read_weights(path: Path) -> Any:
    """The content of a file of `torch.save` or safetensors, mapped where that is possible."""
    if not path.is_file():
        raise ConversionError(f"no such file: {path}.")
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" or head[8:] == b"{":
        check_safetensors(path)
        return load_file(path)
    try:
        # The one class beside torch's own that checkpoints hold: it consists of attributes, and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Files of torch before 1.6 are no archives, and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=head[:4] == b"PK\x03\x04")
    except Exception as error:  # whatever damaged bytes make torch and pickle stumble over
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise ConversionError(
                f"it carries code ({found[1]}), which is never run. Where the file was made, save the weights alone: "
                "torch.save({'model': model.state_dict()}, path)."
            ) from error
        kind = type(error).__name__
        raise ConversionError(f"it is damaged, cut off or no file of torch.save: get it again ({kind}).") from error


def state_dictionary(content: dict) -> tuple[dict, list[str]]:
    """What is the state dictionary in what a training script saved, and lines that name what is left aside."""
    beside, tensors_beside = [], []
    for _ in range(MAX_WRAPPINGS):
        states = [name for name, value in content.items() if isinstance(name, str) and holds_tensors(value)]
        named = [name for name in WEIGHTS if name in states]
        if len(states) > 1 and not named:
            names = listing([name[:80] for name in states])
            raise ConversionError(f"it holds several state dictionaries: {names}. Save one of them alone.")
        found = named or states or [name for name in WEIGHTS if isinstance(content.get(name), dict)]
        if not found:
            break
        for name in content:
            if name != found[0]:
                (tensors_beside if name in states else beside).append(str(name)[:80])
        content = content[found[0]]
    lines = [f"Left aside, as no weights: {', '.join(beside)}"] if beside else []
    if tensors_beside:
        lines.append(f"Left aside, other weights (to convert them, save them alone): {', '.join(tensors_beside)}")
    return content, lines


def holds_tensors(state: Any) -> bool:
    return isinstance(state, dict) and len(state) > 0 and all(map(is_named_tensor, state, state.values()))


def is_named_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def is_plain_tensor(value: torch.Tensor) -> bool:
    return value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized


@refusing()
def load_folder(folder: Path) -> tuple[AlbefConfig, Weights]:
    """Configuration and weights, under the names of `AlbefForPreTraining`, of a folder of either model class."""
    if (folder / ADAPTER_CONFIG_NAME).is_file() and not (folder / "config.json").is_file():
        raise ConversionError(f"it has LoRA adapters alone: albef-amc merge {folder} --output FOLDER first.")
    if not (folder / "config.json").is_file():
        raise ConversionError("no folder with a config.json: pass one that save_pretrained wrote.")
    with naming_damage(folder):
        model_type = read_object(folder / "config.json").get("model_type")
        if model_type != AlbefConfig.model_type:
            raise ConversionError(f"its config.json is of a model of type {model_type!r:.80}, not 'albef'.")
        files = folder_files(folder)
        for file in files:
            check_safetensors(file)
        config = AlbefConfig.from_pretrained(folder)
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    if "temperature" in weights:  # of AlbefModel
        weights = {f"albef.{name}": tensor for name, tensor in weights.items()}
    return config, weights


def shards(index: Path) -> list[str]:
    """The names of the files of weights that an index lists."""
    weight_map = read_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    is_name = re.compile(r"[\w.-]+\.(safetensors|bin)")
    if not names or not all(isinstance(name, str) and is_name.fullmatch(name) for name in names):
        raise ConversionError(f"its {index.name} is damaged: weight_map has no files of this folder.")
    return sorted(set(names))


def check_output(source: Path, output: Path, overwrite: bool, is_folder: bool) -> None:
    """ConversionError: something is in the place of the output that is not to be replaced."""
    if output == source or output in source.parents:
        raise ConversionError(f"the output {output} would replace it: choose another place.")
    if not output.exists() or (is_folder and output.is_dir() and not any(output.iterdir())):
        return
    if output.is_dir() != is_folder:
        raise ConversionError(f"the output {output} is a {'file' if is_folder else 'folder'}: choose another place.")
    if not overwrite:
        raise ConversionError(f"the output {output} exists: choose another place, or pass --overwrite to replace it.")
    if is_folder and not (output / "config.json").is_file():
        raise ConversionError(f"the output {output} is no folder of a model: choose another place.")


@contextmanager
def appearing(output: Path) -> Iterator[Path]:
    """A path beside `output` to write to. At the end it takes the place of `output`, or vanishes if anything failed."""
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
