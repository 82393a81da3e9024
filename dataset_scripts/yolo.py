"""YOLO: a text file for each image, a line for each object: a box or a polygon in shares of the image.

The phrase is the name of a class, its region all objects of it in the image. Names are in `data.yaml` or other YAML
(`names`, a list or a mapping), or in `classes.txt`, `*.names` or `_darknet.labels`, one a line. A line is
`class x y width height` about a box's centre, or a polygon, `class x y x y x y …`, as for segmentation and turned
boxes; of key points (`kpt_shape` in `data.yaml`) the box is read. Boxes and key points may have a confidence, as
predictions do.

Splits are what `data.yaml` says (`train`, `val`, `test`: folders of images, or lists of images in text files; another
one where the folder has its name), wherever it was written; or else folders that are named so. An image is found by the
name of its text file, in the folder that matches best: `train/images` for `train/labels`.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .builder import SPLITS, Unusable, unusable_if, walk
from .coco_format import read_number, read_whole
from .features import PhraseFields
from .json_files import read_text
from .objects import ObjectConfig, Photo, PhotoFileBuilder, words_of_labels
from .options import YoloOptions
from .segmentations import (
    segmentation_to_mask,  # noqa: F401 - `objects` needs it (see `builder`)
)
from .shapes import Instance, polygon

_OTHER_FILES = ("classes", "train", "val", "valid", "test", "trainval", "requirements", "license")


@dataclass
class YoloConfig(YoloOptions, ObjectConfig):
    """The options, checked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images_dir is None:
            raise ValueError("yolo needs images_dir: its boxes are shares of the images, whose sizes it does not say")


class Yolo(PhotoFileBuilder):
    """`datasets` builder of YOLO's labels; rows as in `features.FEATURES`, trouble as of `RegionBuilder`.

    Without names, or with several files of them that differ, it raises a `ValueError`. An object of a class that has no
    name is dropped and counted.
    """

    BUILDER_CONFIG_CLASS = YoloConfig
    source = "Images and YOLO's labels that the builder was given, images stored byte for byte as they were."
    suffix = ".txt"

    def listed(self) -> Iterator[tuple[str | None, str, str]]:
        settings = self._settings()
        self.names = _names(settings["names"]) if settings else self._listed_names()
        self.words = words_of_labels(self.names.values())
        shape = settings.get("kpt_shape")
        points = [read_whole(each) or 0 for each in shape] if isinstance(shape, list) else []
        # Those that a model has found have a confidence, and a number where they are followed over images.
        self.lengths_of_poses = [4 + points[0] * points[1] + more for more in range(3)] if len(points) == 2 else []
        listed = list(super().listed())
        if any("labels" in path.split("/")[:-1] for *_, path in listed):
            listed = [each for each in listed if "labels" in each[2].split("/")[:-1]]
        listed = [each for each in listed if not self._is_no_label(each[1])]
        named = self._named_splits(settings, {stem for _, stem, _ in listed})
        return ((named.get(stem, split), stem, path) for split, stem, path in listed)

    def photo(self, record: str) -> Photo:
        try:
            lines = read_text(f"{self.config.data_dir}/{record}").splitlines()
        except ValueError as error:
            raise Unusable("no text that can be read") from error
        instances = []
        for number, line in enumerate(lines, start=1):
            place = f"{record}, line {number}"
            if not (words := line.split()):
                continue
            index = read_whole(words[0])
            if index not in self.names:
                self.drop("instances: of a class that has no name", place)
                continue
            try:
                instances.append(self._instance(words[1:], place, self.names[index]))
            except Unusable as reason:
                instances.append(Instance(place, self.names[index], trouble=str(reason)))
        photo = self.photo_of(record, "", instances)
        return photo._replace(name=self.image_files.find(photo.files, photo.near) or photo.name)

    def known_size(self, photo: Photo) -> tuple[float, float]:
        return 1, 1

    def phrases(self, content: Photo, size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        """Rows of the objects in pixels."""
        instances = []
        for each in content.instances:
            box = each.box and [value * size[axis % 2] for axis, value in enumerate(each.box)]
            outline = each.segmentation and [[value * size[i % 2] for i, value in enumerate(each.segmentation[0])]]
            instances.append(each._replace(box=box, segmentation=outline))
        return self.label_rows(instances, size)

    def _instance(self, words: list[str], record: str, label: str) -> Instance:
        numbers = [read_number(word) for word in words]
        unusable_if(None in numbers, "with a coordinate that is no finite number")
        if len(numbers) in (4, 5, *self.lengths_of_poses):
            x, y, width, height = numbers[:4]
            return Instance(record, label, [x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        unusable_if(len(numbers) % 2 or len(numbers) < 6, "neither a box nor a polygon")
        is_followed = len(numbers) == 6 and read_whole(words[4]) is None and (read_whole(words[5]) or 0) >= 1
        unusable_if(is_followed, "a triangle, or a box with a confidence and a number: write its box alone")
        return polygon(record, label, [list(point) for point in zip(numbers[::2], numbers[1::2])])

    def _is_no_label(self, stem: str) -> bool:
        """Whether a text file is of another kind: those that no image is called like, known by their name."""
        folder, _, name = stem.rpartition("/")
        if name.lower() not in _OTHER_FILES and not name.lower().startswith("readme"):
            return False
        with suppress(Unusable):
            image = self.image_files.find((name,), f"{folder}/" if folder else "")
            return image is None or not ("labels" in folder.split("/") or image.rpartition("/")[0] == folder)
        return False

    def _settings(self) -> dict[str, Any]:
        """What the YAML file that has names says, all of it as texts; nothing if there is none."""
        found = {}
        for path in walk(self.config.data_dir):
            if path.lower().endswith((".yaml", ".yml")):
                text = read_text(Path(self.config.data_dir, path))
                if "names" not in text:
                    continue
                try:
                    content = yaml.BaseLoader(text).get_single_data()  # all as text: a class may be called "no"
                except (yaml.YAMLError, RecursionError) as error:
                    raise ValueError(f"{path} is not YAML, or was cut off: {str(error)[:200]}") from error
                if isinstance(content, dict) and "names" in content:
                    found[path] = content
        if len({str(_names(content["names"])) for content in found.values()}) > 1:
            raise ValueError(f"{self.config.data_dir}: the names of classes differ: {', '.join(found)}")
        return next(iter(found.values()), {})

    def _listed_names(self) -> dict[int, str]:
        """The names of a list, one a line."""
        found = {}
        for path in walk(self.config.data_dir):
            if re.search(r"(^|/)(classes\.txt|[^/]*\.names|_darknet\.labels)$", path.lower()):
                lines = read_text(Path(self.config.data_dir, path)).rstrip().splitlines()
                found[path] = {number: line.strip() for number, line in enumerate(lines)}
        if len(set(map(str, found.values()))) != 1:
            trouble = f"the names of classes differ: {', '.join(found)}" if found else "there are no names of classes"
            raise ValueError(f"{self.config.data_dir}: {trouble}: data.yaml with names is needed, or one classes.txt")
        return next(iter(found.values()))

    def _named_splits(self, settings: dict[str, Any], stems: set[str]) -> dict[str, str]:
        """Labels, without suffix → the split that the settings name for their images."""
        named: dict[str, str] = {}
        others = {key: key for key, entry in settings.items() if str(entry).rstrip("/").rpartition("/")[2] == key}
        for key, split in (others | SPLITS).items():
            entries = settings.get(key) or []
            for entry in entries if isinstance(entries, list) else [entries]:
                own = self._labels_of(str(entry), stems)
                if again := sum(named.get(stem, split) != split for stem in own):
                    self.report.kept[f"images of {split} that are in another split of data.yaml, and left there"] += (
                        again
                    )
                named = dict.fromkeys(own, split) | named
        return named

    def _labels_of(self, entry: str, stems: set[str]) -> set[str]:
        """The labels, without suffix, of the images in a folder or in a list, wherever its path begins."""
        root = Path(self.config.data_dir)
        path = next((path for path in _endings(entry) if (root / path).exists()), None)
        if path is None:
            return set()
        if (root / path).is_dir():
            folders = {f"{path}/", f"{_to_labels(path)}/"} if path != "." else {""}
            return {stem for stem in stems if stem.startswith(tuple(folders))}
        lines = filter(None, map(str.strip, read_text(root / path).splitlines()))
        return {
            stem
            for line in lines
            for stem in [
                next((each for each in map(_to_labels, _endings(line.rpartition(".")[0])) if each in stems), None)
            ]
            if stem is not None
        }


def _names(names: Any) -> dict[int, str]:
    """Names of classes by their number."""
    pairs = names.items() if isinstance(names, dict) else enumerate(names if isinstance(names, list) else ())
    found = {read_whole(number): name for number, name in pairs}
    if not found or None in found or not all(isinstance(name, str) and name.strip() for name in found.values()):
        raise ValueError(
            f"data.yaml: names are no list of names, nor a mapping of numbers to names: {str(names)[:100]}"
        )
    return found  # type: ignore[return-value]


def _endings(path: str) -> list[str]:
    """A path that may begin on another machine: itself without what leads out of the folder, and ever less of it."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return ["/".join(parts[start:]) for start in range(len(parts))] or ["."]


def _to_labels(path: str) -> str:
    """Where YOLO looks for the labels of images: in `labels` for the last `images`."""
    before, images, after = f"/{path}/".rpartition("/images/")
    return f"{before}/labels/{after}".strip("/") if images else path
