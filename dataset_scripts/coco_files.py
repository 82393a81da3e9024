"""Where people keep COCO's annotation files."""

import mmap
import os
from pathlib import Path

from .builder import file_split, files_like

# In the order in which they are looked for: exporters' own, Roboflow's, COCO's and CVAT's, then anybody's.
_NAMES = ("instances.json", "_annotations.coco*.json", "instances_*.json", "*.json")
_PLACES = ("", "*/", "*/annotations/")
_KEYS = b'"images"', b'"annotations"'


def annotation_files(folder: Path, names: str | None) -> list[Path]:
    """The annotation files in a folder: those named, with commas between them, or all that one data set has.

    Args:
        names: of files, of folders to look in, or patterns (`annotations/captions_*.json`).

    Raises:
        ValueError: there is none, or several that need not be of one data set.
    """
    if names is None:
        return _found_in(folder)
    words = [names] if (folder / names).is_file() else [word.strip() for word in names.split(",") if word.strip()]
    found: list[Path] = []
    for word in words:
        path = folder / word
        if path.is_dir():
            found += _found_in(path)
        elif path.is_file() or Path(word).is_absolute():
            found.append(path)
        else:
            found += files_like(folder, word) or [path]  # of one that is missing the reader says so
    return list(dict.fromkeys(found))


def _found_in(folder: Path) -> list[Path]:
    for name in _NAMES:
        for places in _PLACES[:1], _PLACES[1:]:
            found = sorted(path for place in places for path in files_like(folder, place + name))
            if name == _NAMES[-1]:
                found = [path for path in found if _has_lists(path)]
            if len(found) > 1:
                _check_splits(folder, found)
            if found:
                return found
    raise ValueError(
        f"{folder / _NAMES[0]}: No such file or directory, nor another JSON file with the lists images and annotations "
        "there or a folder below; name it by --annotations"
    )


def _check_splits(folder: Path, files: list[Path]) -> None:
    """Each must be named for a split of its own."""
    splits = [file_split(str(path.relative_to(folder))) for path in files]
    if None in splits or len(set(splits)) < len(splits):
        listed = ", ".join(str(path.relative_to(folder)) for path in files)
        raise ValueError(
            f"{folder}: {listed} are not named for a split each (train, valid, test): name those to take by "
            "--annotations, with commas between them"
        )


def _has_lists(path: Path) -> bool:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(key) >= 0 for key in _KEYS)
