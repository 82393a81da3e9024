"""Annotations of well-known tools, by how their files are called or begin, and the command that builds them."""

import os
import re
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

IMAGE_FILES = tuple(ImageFolder.EXTENSIONS)
TABLES = "jsonl", "csv", "tsv", "parquet", "arrow"  # a folder with one of them is a data set as it is
# Builder → names of its files; those of yolo's lists of names lie beside other tools' files, too.
NAMES = {"coco": r"instances.*\.json|_annotations\.coco.*\.json", "yolo": r"data\.ya?ml"}
LISTS = r"classes\.txt|obj\.names"
# By a file's ending: builder → what is at the beginning of its files. The first that fits is it.
KEYS = {
    ".xml": {"cvat": r"<annotations>", "voc": r"<annotation\b.*<(filename|object|size)>"},
    ".json": {
        "via": r'"_via_|"shape_attributes"\s*:',
        "labelme": r'"shapes"\s*:\s*\[.*"(shape_type|imagePath)"\s*:',
        "label_studio": r'"original_width"\s*:|"(rectangle|polygon|brush|ellipse)labels"\s*:',
        "createml": r'"annotations?"\s*:\s*\[\s*\{[^\[\]]*"coordinates"\s*:\s*\{',
        "coco": r'^\s*\{.*"images"\s*:\s*\[\s*\{[^\[\]]*"(file_name|coco_url)"\s*:',
    },
}
# Builder → another that it is where there is something else beside the file.
BESIDE = {"coco": ("refcoco", "*refs(*).*"), "voc": ("flickr30k_entities", "../Sentences")}
BEGINNING, MOST_READ, MOST_LISTED = 65_536, 20, 100_000  # bytes; files of a folder that are read, and looked at
BESIDE_IMAGES = r"(?i)annotations?|labels"  # folders whose images lie in the folder around them
WHOLE = "yolo", "voc", "labelme", "refcoco", "flickr30k_entities"  # builders of folders, which are told no file


def refuse_known(path: str) -> None:
    """Raises ValueError: a file or folder has annotations in a known format, which has to be built."""
    if builder := known_format(path):
        raise ValueError(
            f"{path} has annotations that are no rows of a data set yet: {command_of(builder, path)}, then --dataset "
            "data/mine."
        )


def known_format(path: str) -> str | None:
    """Which builder reads a file, or a folder without a table of its own; None: none, or it is not on this machine."""
    if os.path.isfile(path):
        return builder_of(iter([Path(path)]))
    if any(next(Path(path).glob(f"{depth}*.{kind}"), None) for kind in TABLES for depth in ("", "*/")):
        return None
    return builder_of(files_below(Path(path)))


def command_of(builder: str, path: str) -> str:
    """What builds it. Images are looked for in its folder, and in the one around a folder of annotations."""
    file = Path(path)
    folder = file if file.is_dir() else file.parent
    words = ["albef-amc", "build", builder, "--data_dir", str(folder)]
    words += ["--annotations", file.name] if file.is_file() and builder not in WHOLE else []
    places = [folder, folder.parent] if re.fullmatch(BESIDE_IMAGES, folder.name) else [folder]
    near = (place for place in places if any(map(is_image, files_below(place))))
    return shlex.join([*words, "--images_dir", str(next(near, "IMAGES")), "--output", "data/mine"])


def builder_of(files: Iterator[Path]) -> str | None:
    """By the first file that tells; of those that have to be read, MOST_READ are."""
    num_read, found = 0, None
    for file in files:
        builder = next((builder for builder, names in NAMES.items() if re.fullmatch(names, file.name)), None)
        keys = KEYS.get(file.suffix.lower(), {})
        if builder is None and keys and num_read < MOST_READ:
            num_read += 1
            with file.open("rb") as opened:
                text = opened.read(BEGINNING).decode("utf-8-sig", errors="replace")
            builder = next((builder for builder, key in keys.items() if re.search(key, text, re.DOTALL)), None)
        if builder:
            other, beside = BESIDE.get(builder, (builder, ""))
            return other if beside and any(file.parent.glob(beside)) else builder
        found = "yolo" if re.fullmatch(LISTS, file.name) else found
    return found


def files_below(folder: Path) -> Iterator[Path]:
    """MOST_LISTED at most, in the order of their names, those of a folder before those in its folders."""

    def walk() -> Iterator[Path]:
        for place, folders, names in os.walk(folder):
            folders.sort()
            yield from (Path(place, name) for name in sorted(names))

    return islice(walk(), MOST_LISTED)


def is_image(file: Path) -> bool:
    return file.name.lower().endswith(IMAGE_FILES)
