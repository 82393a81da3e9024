"""Annotations of well-known tools, by how their files are called or begin, and the rows that their builders make."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from .columns import Columns
from .commands import of_builds

IMAGE_FILES = tuple(ImageFolder.EXTENSIONS)
TABLES = "jsonl", "csv", "tsv", "parquet", "arrow"  # a folder with one of them is a data set as it is
# Builder → names of its files; lists of yolo's names but data.yaml lie beside other tools' files, too.
OF_YOLO_ALONE = r"data\.ya?ml"
NAMES = {
    "coco": r"instances.*\.json|_annotations\.coco.*\.json",
    "yolo": rf"{OF_YOLO_ALONE}|classes\.txt|.*\.names|_darknet\.labels",
}
# By a file's ending: builder → what is at the beginning of its files. The first that fits is it.
RECORDS = {
    "odvg": r'"grounding"\s*:\s*\{|"detection"\s*:\s*\{\s*"instances"|"referring"\s*:\s*\[\s*\{',
    "chat": r'"(conversations|messages)"\s*:\s*\[\s*\{\s*"(from|value|role|content)"|"suffix"\s*:\s*"[^"]*<loc_?\d',
    "phrasecut": r'"instance_boxes"\s*:',
    "xvlm": r'"elems"\s*:\s*\[\s*\{\s*"(caption|bb|attributes)"\s*:',
    "narratives": r'"timed_caption"\s*:\s*\[',
}
# Keys of a record with numbers, texts, lists, or as `skeleton` lists of lists in their values.
VALUES = r"([^\[\]]|\[([^\[\]]|\[[^\[\]]*\])*\])*"
CUT_OFF = "…"  # at the end of what is read of a longer file
# A file that lists images, or may: beside labels of YOLO, Label Studio writes the categories alone.
WITH_IMAGES = rf'^(?=.*("(images|annotations)"\s*:|{CUT_OFF}$))'
NAMES_IN_YAML = {"yolo": r"(?m)^names\s*:"}
KEYS = {
    ".yaml": NAMES_IN_YAML,
    ".yml": NAMES_IN_YAML,
    ".xml": {"cvat": r"<annotations>", "voc": r"<annotation\b.*<(filename|object|size)>"},
    ".jsonl": RECORDS,
    ".json": {
        "via": r'^\s*\{.*"_via_|^\s*\{\s*"[^"]*"\s*:\s*\{[^{}]*"filename"\s*:[^{}]*"(regions|file_attributes)"\s*:',
        "labelme": r'"shapes"\s*:\s*\[.*"(shape_type|imagePath)"\s*:',
        "label_studio": r'"(rectangle|polygon|brush|ellipse)labels"\s*:'
        r'|:\s*\[\s*\{[^{}]*("value"\s*:\s*\{[^{}]*\}[^{}]*)?"original_width"\s*:'
        r'|"annotation_id"\s*:\s*\d+\s*,\s*"created_at"\s*:[^,{}]*,\s*"updated_at"\s*:[^,{}]*,\s*"lead_time"\s*:'
        r'|"annotations"\s*:\s*\[\s*\{[^\[\]]*"result"\s*:\s*\[|"drafts"\s*:\s*\[.*"predictions"\s*:\s*\[',
        "createml": r'"annotations?"\s*:\s*\[\s*\{[^\[\]]*"coordinates"\s*:\s*\{',
        "coco": rf'^\s*\{{.*"images"\s*:\s*\[\s*\{{{VALUES}"(file_name|coco_url)"\s*:'
        r'|^\s*\{\s*("(info|licenses|categories)".*)?"annotations"\s*:\s*\[\s*\{.*"image_id"\s*:'
        rf'|{WITH_IMAGES}\s*\{{\s*("(info|licenses)".*)?"categories"\s*:\s*\[\s*\{{{VALUES}"(id|name)"\s*:',
        **RECORDS,
        "visual_genome": r'^\s*\[\s*\{.*("(region|relationship)_id"\s*:|"object_id"\s*:.*"names"\s*:\s*\['
        r'|"regions"\s*:\s*\[\s*\{[^\[\]{}]*"image(_id)?"\s*:)',
    },
}
# Builder → another that it is where there is something else beside the file.
BESIDE = {"coco": ("refcoco", "*refs(*).*"), "voc": ("flickr30k_entities", "../Sentences")}
BEGINNING, MOST_READ, MOST_LISTED = 65_536, 20, 100_000  # bytes; files of an ending that are read; all looked at
BESIDE_IMAGES = r"(?i)annotations?|labels"  # folders whose images lie in the folder around them
HIDDEN_FOLDERS = ".", "__"  # how they begin: of notebooks, of macOS
WHOLE = "yolo", "voc", "labelme", "visual_genome", "refcoco", "flickr30k_entities"  # those that are told no file
IN_ONE_FOLDER = "visual_genome", "refcoco"  # those that look in no folder below theirs


def rows_of(path: str, columns: Columns, strict: bool = False) -> str:
    """What to open for a path: itself, or of annotations in a known format their build in datasets' cache.

    Args:
        columns: as told; what has columns that somebody named is a table.
        strict: stop at a record that cannot be used.

    Raises ValueError: how to build it is in doubt, and the command with options is named; or the build fails.
    """
    if not path:
        raise ValueError("the data set has an empty name: is a variable of the shell not set?")
    found = {} if columns.names else known_formats(path)
    if not found:
        return path
    options = {builder: options_of(builder, path, folders) for builder, folders in found.items()}
    commands = " or ".join(map(command_of, options, options.values()))
    by_hand = f"{commands}, then --dataset data/mine. Of a table, name the --columns."
    builder = next(iter(found))
    is_apart = builder in IN_ONE_FOLDER and len(found[builder]) > 1
    is_part = os.path.isfile(path) and builder in WHOLE and builder != "yolo"
    if len(found) > 1 or is_apart or is_part or "images_dir" not in options[builder]:
        raise ValueError(f"{path} has annotations that are no rows of a data set yet: {by_hand}")
    if columns.box_format:
        told = f"{path} has annotations as albef-amc build {builder} reads them, which needs no box_format"
        raise ValueError(f"{told}: leave it out. Of a table, name the --columns, too.")
    try:
        folder, dropped = of_builds("build_in_cache")(builder, **options[builder], strict=strict)
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}, which builds need: pip install 'albef-amc[train]'.") from error
    except ValueError as error:
        told = f"{path} was read as albef-amc build {builder} reads it: {error}"
        raise ValueError(f"{told}. With other options: {by_hand}") from error
    columns.say(f"{path}: annotations as albef-amc build {builder} reads them; their rows are in {folder}.")
    if dropped:
        columns.say(dropped)
    return str(folder)


def known_formats(path: str) -> dict[str, list[Path]]:
    """Builder → the folders of its files, of a file, or of a folder without a table; none of what is not here."""
    if os.path.isfile(path):
        return formats_of(iter([Path(path)]))
    places = (f"{folder}[!.]*.{kind}" for kind in TABLES for folder in ("", "[!.]*/"))
    tables = (file for place in places for file in Path(path).glob(place))
    return formats_of(files_below(Path(path))) if all(map(format_of, tables)) else {}


def formats_of(files: Iterator[Path]) -> dict[str, list[Path]]:
    """Of all files those that are called so, and of each ending the first MOST_READ."""
    found, others, num_read = {}, {}, Counter()
    for file in files:
        suffix = file.suffix.lower()
        num_read[suffix] += suffix in KEYS
        builder = format_of(file, is_read=num_read[suffix] <= MOST_READ)
        if builder:
            is_list = builder == "yolo" and not re.fullmatch(OF_YOLO_ALONE, file.name)
            (others if is_list else found).setdefault(builder, {})[file.parent] = None
    return {builder: list(folders) for builder, folders in (found or others).items()}


def format_of(file: Path, is_read: bool = True) -> str | None:
    """Which builder's a file is, by its name and, if it is read, by its beginning."""
    builder = next((builder for builder, names in NAMES.items() if re.fullmatch(names, file.name)), None)
    keys = KEYS.get(file.suffix.lower(), {})
    if builder is None and keys and is_read:
        with file.open("rb") as opened:
            text = opened.read(BEGINNING).decode("utf-8-sig", errors="replace") + CUT_OFF * len(opened.read(1))
        builder = next((builder for builder, key in keys.items() if re.search(key, text, re.DOTALL)), None)
    other, beside = BESIDE.get(builder, (None, ""))
    return other if other and any(file.parent.glob(beside)) else builder


def options_of(builder: str, path: str, folders: list[Path]) -> dict[str, str]:
    """What builds it. Images are looked for in its folder, and in the one around a folder of annotations."""
    top = Path(path) if os.path.isdir(path) else Path(path).parent
    options = {"data_dir": str(folders[0] if builder in IN_ONE_FOLDER else top)}
    if os.path.isfile(path) and builder not in WHOLE:
        options["annotations"] = Path(path).name
    places = [top, top.parent] if re.fullmatch(BESIDE_IMAGES, top.name) else [top]
    near = [str(place) for place in places if any(map(is_image, files_below(place)))]
    return options | ({"images_dir": near[0]} if near else {})


def command_of(builder: str, options: dict[str, str]) -> str:
    told = options | {"images_dir": options.get("images_dir", "IMAGES"), "output": "data/mine"}
    return shlex.join(["albef-amc", "build", builder, *(word for name in told for word in (f"--{name}", told[name]))])


def files_below(folder: Path, most: int | None = MOST_LISTED) -> Iterator[Path]:
    """In the order of their names, those of a folder before those in its folders; none that is hidden."""

    def walk() -> Iterator[Path]:
        for place, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN_FOLDERS))
            yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))

    return islice(walk(), most)


def is_image(file: Path) -> bool:
    return file.name.lower().endswith(IMAGE_FILES)
