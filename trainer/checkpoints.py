"""Checkpoints of a run, complete or not counted: what Trainer writes last marks a complete one.

A checkpoint is complete when `trainer_state.json`, which Trainer writes last, is JSON, and when the state of the random
numbers of every process is whole. To delete one begins with that mark, so a kill leaves no half one that counts.
"""

import json
import os
import re
import shutil
import uuid
import zipfile
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling_albef_amc.families.auto import GROUNDING
from modeling_albef_amc.families.checkpoint_checks import read_object

STATE = "trainer_state.json"
WEIGHTS = "model.safetensors"


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, complete or not, by their steps."""
    names = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if names.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a run's folder, by their steps."""
    return [path for path in all_checkpoints(folder) if is_complete(path)]


def is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError):
        return False
    return all(map(zipfile.is_zipfile, checkpoint.glob("rng_state*.pth")))  # the format of torch.save


def begin(checkpoint: Path, num_processes: int) -> None:
    """Makes room for a checkpoint, which is incomplete until that many processes have written their random state."""
    discard(checkpoint)
    checkpoint.mkdir(parents=True)
    for process in range(num_processes if num_processes > 1 else 0):
        (checkpoint / f"rng_state_{process}.pth").touch()


def sync(folder: Path) -> None:
    """Waits until a checkpoint and its name are on the disk: a machine may lose its power."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def discard(checkpoint: Path) -> None:
    (checkpoint / STATE).unlink(missing_ok=True)
    if checkpoint.exists():
        shutil.rmtree(checkpoint)


def rotate(folder: Path, limit: int | None, *spared: str | Path | None) -> None:
    """Deletes the oldest checkpoints until `limit` are left; None or 0 for no limit.

    Args:
        spared: deleted in no case: the newest one, the best one, one that is being uploaded.
    """
    found = checkpoints(folder)
    spared = {Path(path).resolve() for path in spared if path}
    surplus = len(found) - max(limit, len(spared)) if limit else 0
    for checkpoint in [path for path in found if path.resolve() not in spared][: max(surplus, 0)]:
        discard(checkpoint)


def resumed(folder: Path, wanted: str | None) -> str | None:
    """The checkpoint that a run goes on from; None if it begins. Every process must call this.

    Args:
        wanted: a folder; "true" for the newest complete one; "auto" for the newest complete one if there is one;
            "false" for none.

    Raises:
        ValueError: there is none; or processes, of several machines, find different ones.
    """
    if wanted is None or wanted.lower() == "false":
        return None
    if wanted.lower() not in ("true", "auto"):
        return wanted
    newest = next(iter(checkpoints(folder)[::-1]), None)
    found = gather_object([newest and newest.name])
    if len(set(found)) > 1:
        raise ValueError(
            f"resume_from_checkpoint: processes see different checkpoints, {found}. Put output_dir on storage that all "
            "machines share."
        )
    if newest is None and wanted.lower() == "true":
        raise ValueError(f"resume_from_checkpoint: there is no checkpoint in {folder} to go on from.")
    if PartialState().is_main_process:
        for checkpoint in set(all_checkpoints(folder)) - set(checkpoints(folder)):
            discard(checkpoint)
    return str(newest) if newest else None


def check_whole(checkpoint: Path) -> None:
    """ValueError: no folder, or weights alone, from which a run would go on with another schedule and optimizer."""
    if not checkpoint.is_dir():
        raise ValueError(f"resume_from_checkpoint: there is no folder {checkpoint}.")
    if not ((checkpoint / "scheduler.pt").is_file() and any(checkpoint.glob("optimizer*"))):
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} has no optimizer and schedule to go on with (save_only_model saves "
            "none). Begin a new run from its weights, or go on from another checkpoint."
        )


def check_grounding(model: PreTrainedModel, checkpoint: Path) -> None:
    """ValueError: a checkpoint was trained by heatmaps of another score, layer or method than the model's now."""
    of_adapters, whole = checkpoint / GROUNDING, checkpoint / "config.json"
    saved = read_object(whole).get("grounding", {}) if whole.is_file() else {}
    saved = read_object(of_adapters) if of_adapters.is_file() else saved
    saved, now = ({"method": "gradcam"} | each for each in (saved, vars(model.config).get("grounding", {})))
    for name, option in (("explanation", "explanation"), ("layer", "grounding_layer"), ("method", "method")):
        if saved.get(name) != now.get(name):
            raise ValueError(
                f"{checkpoint} was trained with {option} {saved.get(name)!r}, this run has {now.get(name)!r}: set it "
                "as it was, or begin a new run in another output_dir."
            )


def load_weights(model: PreTrainedModel, checkpoint: Path) -> None:
    """Loads a checkpoint of whole weights into the model that it is of.

    ValueError: it is of another model, which the message tells from this one.
    """
    advice = "go on with the model that the run began with, or begin a new run in another output_dir."
    model_type, own = read_object(checkpoint / "config.json").get("model_type"), model.state_dict()
    if model_type != model.config.model_type:
        raise ValueError(f"{checkpoint} is of type {model_type!r}, the model of {model.config.model_type!r}: {advice}")
    weights = load_file(checkpoint / WEIGHTS) if (checkpoint / WEIGHTS).is_file() else {}
    if not weights or weights.keys() - own.keys():  # in parts; or transformers has other names for it in files
        weights = type(model).from_pretrained(checkpoint, dtype=torch.float32).state_dict()
    for name, value in weights.items():
        there, here = tuple(value.shape), tuple(own[name].shape) if name in own else "absent"
        if there != here:
            raise ValueError(f"{checkpoint} is of another model: {name} is {there} there and {here} here: {advice}")
    model.load_state_dict(weights, strict=False)  # tied weights are in the file once


def numbers(settings: dict[str, Any]) -> list[str]:
    """Names of what an optimizer is set to, such as betas: neither learning rates nor switches, nor what is not set."""
    return [name for name, value in settings.items() if type(value) in (int, float, tuple) and not name.endswith("lr")]


def check_optimizer(optimizer: Optimizer, checkpoint: Path) -> None:
    """ValueError: the checkpoint is of another optimizer, or of one of other weights: what differs, what to set."""
    file = checkpoint / "optimizer.pt"
    if not file.is_file():  # FSDP's has another name
        return
    is_mapped = zipfile.is_zipfile(file)  # else all of it is read
    groups = torch.load(file, map_location="cpu", weights_only=True, mmap=is_mapped)["param_groups"]
    was, now = ([len(group["params"]) for group in each] for each in (groups, optimizer.param_groups))
    begin_new = f"or begin a new run from its weights (--model {checkpoint})."
    if was != now:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} trained {sum(was)} tensors ({was} with and without weight decay), "
            f"and this run trains {sum(now)} ({now}): set model, freeze and lora_* as they were, {begin_new}"
        )
    there, here = numbers(groups[0]), numbers(optimizer.defaults)
    if not {*here} <= groups[0].keys():
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} is of an optimizer with {', '.join(there)}, and this run's "
            f"{type(optimizer).__name__} has {', '.join(here)}: set optim as it was, {begin_new}"
        )


def check_unused(folder: Path) -> None:
    """ValueError: a run that begins in this folder could later go on from checkpoints of the run before it."""
    found = checkpoints(folder)
    if found:
        raise ValueError(
            f"output_dir: {found[-1]} is of an earlier run, which resume_from_checkpoint goes on with. To begin anew, "
            "choose another output_dir, or delete the checkpoints there."
        )


def check_kind(folder: Path, has_adapters: bool) -> None:
    """ValueError: whole weights and adapters would lie side by side, where the latter are put into the former."""
    if has_adapters and (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds a whole model (config.json), and this run trains LoRA adapters: choose another "
            "output_dir, or leave lora_rank out."
        )
    if not has_adapters and (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} holds LoRA adapters (adapter_config.json), and this run trains whole weights: choose another "
            "output_dir, or set lora_* as they were to go on with the adapters."
        )


def check_shared(folder: Path, is_main: bool) -> None:
    """Makes sure that all processes, of however many machines, write into the same folder."""
    name = [f"_shared-{uuid.uuid4().hex}"]
    broadcast_object_list(name)
    mark = folder / name[0]
    if is_main:
        mark.mkdir(parents=True)
    gather_object([None])  # it is there
    seen = gather_object([mark.is_dir()])
    if is_main:
        mark.rmdir()
    if not all(seen):
        blind = ", ".join(str(process) for process, sees in enumerate(seen) if not sees)
        raise ValueError(
            f"output_dir: process {blind} does not see what process 0 writes into {folder}, and a checkpoint needs "
            "files of all. Put it on storage that all machines share."
        )
