"""Where people keep COCO's annotation files, and the images that these name."""

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from .features import plain_name
from .objects import file_split, folder_split

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
            found += sorted(folder.glob(word)) or [path]  # of one that is missing the reader says so
    return list(dict.fromkeys(found))


def _found_in(folder: Path) -> list[Path]:
    for name in _NAMES:
        for places in _PLACES[:1], _PLACES[1:]:
            found = sorted(path for place in places for path in folder.glob(place + name) if path.is_file())
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


def image_folders(root: str, annotations: str) -> list[str]:
    """The folders in `root` where files may lie that are named by an annotation file, the likeliest first.

    Those are its own, the one above and the root, each by itself and in it `images` and `data`; and before them what is
    in any of these and called as the file's name ends (`train2017` of `annotations/instances_train2017.json`) or for
    its split.

    Args:
        annotations: path of the annotation file from the data folder.
    """
    own, name = os.path.split(plain_name(annotations))
    stem = os.path.splitext(name)[0]
    ends = [stem.split("_", count)[-1] for count in range(stem.count("_") + 1)]
    bases = [os.path.join(base, inner) for base in (own, os.path.dirname(own), "") for inner in ("", "images", "data")]
    bases = [base for base in dict.fromkeys(bases) if os.path.isdir(os.path.join(root, base))]
    folders = [os.path.join(base, end) for end in ends for base in bases]
    if split := file_split(annotations):
        for base in bases:
            names = sorted(entry.name for entry in os.scandir(os.path.join(root, base)) if entry.is_dir())
            folders += [os.path.join(base, name) for name in names if folder_split(f"{name}/_") == split]
    return [folder for folder in dict.fromkeys((*folders, *bases)) if os.path.isdir(os.path.join(root, folder))]


def find_file(root: str, folders: Iterable[str], name: str) -> str | None:
    """Where in `root` the first of these folders has a file of this name, which other systems may have written."""
    for folder in folders:
        for place in dict.fromkeys((os.path.join(folder, name), os.path.join(folder, plain_name(name)))):
            if os.path.isfile(os.path.join(root, place)):
                return place
    return None
