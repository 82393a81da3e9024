"""Checkpoints of a run that are whole or not there: written beside, and given their name when they are complete."""

import os
import re
import shutil
import uuid
from pathlib import Path

from accelerate.utils import broadcast_object_list, gather_object
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

# Beside the checkpoints, and no checkpoint by its name: what is being written, or deleted. Nothing that begins with an
# underscore is pushed to the Hub.
UNFINISHED = "_unfinished"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, by their steps."""
    names = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if names.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def publish(written: Path, folder: Path) -> Path:
    """Gives a complete checkpoint its place in the run's folder; another one of the same step makes room.

    Args:
        written: `folder/_unfinished/checkpoint-N`.

    Returns: `folder/checkpoint-N`.
    """
    for path in (*written.rglob("*"), written):  # before its name does: a machine may lose its power
        sync(path)
    place = folder / written.name
    if place.exists():
        discard(place)
    written = written.rename(place)
    sync(folder)
    return written


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def discard(checkpoint: Path) -> None:
    """Deletes a checkpoint, which has lost its name before the first of its files."""
    doomed = checkpoint.parent / UNFINISHED / f"deleted-{checkpoint.name}"
    doomed.parent.mkdir(exist_ok=True)
    clear(doomed)
    clear(checkpoint.rename(doomed))


def clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def rotate(folder: Path, limit: int | None, *spared: str | Path | None) -> None:
    """Deletes the oldest checkpoints until `limit` are left, but never the newest one.

    Args:
        limit: none or 0 for no limit. spared: neither these, if there are such: the best one, one being uploaded.
    """
    found = checkpoints(folder)
    spared = {Path(path).resolve() for path in (*found[-1:], *spared) if path}
    surplus = len(found) - max(limit, len(spared)) if limit else 0
    for checkpoint in [path for path in found if path.resolve() not in spared][: max(surplus, 0)]:
        discard(checkpoint)


def resumed(folder: Path, wanted: str | None) -> str | None:
    """The checkpoint that a run goes on from; none if it begins.

    Args:
        wanted: a folder; "true" for the newest one; "auto" for the newest one if there is one.

    Raises:
        ValueError: there is none; or processes, of several machines, find different ones.
    """
    if wanted is None or wanted.lower() not in ("true", "auto"):
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
    return newest and str(newest)


def check_shared(folder: Path, is_main: bool) -> None:
    """That all processes, of however many machines, write into the same folder.

    Raises:
        ValueError: one does not see what the main process wrote.
    """
    name = [f"{UNFINISHED}-{uuid.uuid4().hex}"]
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
