"""The table of docs/data.md, "zero lines of glue": every layout as its tool writes it, by the command beside it.

Four photos of 200 x 100 pixels, the last one for validation where a layout has splits. Boxes overlap the images so that
no two of them fit every format.
"""

import csv
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Features, Image, List, Value

from dataset_scripts.build import build
from tests.helpers.builders import TREES, labelme_json, voc_xml
from tests.helpers.data import picture, tiny_albef, tiny_processor
from trainer import training
from trainer.columns import Columns
from trainer.commands import main
from trainer.known_formats import known_formats, rows_of
from trainer.splits import split_names

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = SIZE = 200, 100
BOXES = [[10, 10, 60, 60], [120, 20, 190, 90], [0, 0, 50, 30], [150, 50, 200, 100]]
LABELS = ["dog", "traffic light", "dog", "traffic light"]
SPLITS = ["train", "train", "train", "valid"]
XYWH = [[10, 10, 50, 50], [120, 20, 70, 70], [0, 0, 50, 30], [150, 50, 50, 50]]
SHARES = [[0.05, 0.1, 0.3, 0.6], [0.6, 0.2, 0.95, 0.9], [0, 0, 0.25, 0.3], [0.75, 0.5, 1, 1]]
CENTRES = [[0.175, 0.35, 0.25, 0.5], [0.775, 0.55, 0.35, 0.7], [0.125, 0.15, 0.25, 0.3], [0.875, 0.75, 0.25, 0.5]]
FOUND = [(label, [box]) for label, box in zip(LABELS, BOXES)]  # what every layout is

LAYOUTS: dict[str, Callable[[Path], str | None]] = {}


def layout(name: str):
    def add(write: Callable[[Path], str | None]) -> Callable[[Path], str | None]:
        LAYOUTS[name] = write
        return write

    return add


def photo(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture(*SIZE).save(file)


def photos(folder: Path, place: str = "images/{number}.png") -> None:
    for number, split in enumerate(SPLITS):
        photo(folder / place.format(number=number, split=split))


def write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_of_boxes(boxes: list, column: str = "bbox", phrase: str = "caption") -> list[dict]:
    photos_ = [f"images/{number}.png" for number in range(4)]
    return [{"image": each, phrase: label, column: box} for each, label, box in zip(photos_, LABELS, boxes)]


# Rows -----------------------------------------------------------------------------------------------------------------


@layout("`imagefolder`, one `metadata.jsonl`")
def _(folder):
    photos(folder, "{split}/{number}.png")
    rows = [{"file_name": f"{split}/{n}.png", "text": LABELS[n], "bbox": BOXES[n]} for n, split in enumerate(SPLITS)]
    write(folder / "metadata.jsonl", lines(rows))


@layout("`imagefolder`, a `metadata.jsonl` in each split")
def _(folder):
    photos(folder, "{split}/{number}.png")
    rows = [{"file_name": f"{n}.png", "text": LABELS[n], "bbox": BOXES[n]} for n in range(4)]
    write(folder / "train" / "metadata.jsonl", lines(rows[:3]))
    write(folder / "valid" / "metadata.jsonl", lines(rows[3:]))


@layout("JSON Lines: `caption`, `bbox`")
def _(folder):
    photos(folder)
    write(folder / "mine.jsonl", lines(rows_of_boxes(BOXES)))


@layout("CSV: `filename,width,height,class,xmin,ymin,xmax,ymax`")
def _(folder):
    photos(folder, "{number}.png")
    with (folder / "mine.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        writer.writerows([f"{n}.png", *SIZE, LABELS[n], *BOXES[n]] for n in range(4))


@layout("boxes `[x, y, width, height]`")
def _(folder):
    photos(folder)
    write(folder / "mine.jsonl", lines(rows_of_boxes(XYWH)))


@layout("boxes as shares of the image")
def _(folder):
    photos(folder)
    write(folder / "mine.jsonl", lines(rows_of_boxes(SHARES, "box", "expression")))


@layout("`phrases` and `boxes` of an image, as lists")
def _(folder):
    photos(folder)
    row = {"image": "images/0.png", "phrases": ["dog", "traffic light"], "boxes": BOXES[:2]}
    write(folder / "mine.jsonl", lines([row, row | {"image": "images/1.png", "boxes": BOXES[2:]}]))


def hub(folder: Path, rows: list[dict], **features: object) -> None:
    (folder / "data").mkdir()
    found = datasets.Dataset.from_list(rows, features=Features(features))
    found.to_parquet(folder / "data" / "train-00000-of-00001.parquet")


def png(folder: Path) -> dict:
    photo(folder / "0.png")
    content = {"bytes": (folder / "0.png").read_bytes(), "path": "0.png"}
    (folder / "0.png").unlink()
    return content


@layout("`objects: {bbox, category}` of the Hub's detection sets")
def _(folder):
    label = datasets.ClassLabel(names=["traffic_light", "dog"])
    objects = {"id": List(Value("int64")), "bbox": List(List(Value("float32"))), "category": List(label)}
    image = png(folder)
    rows = [
        {"image_id": i, "image": image, "width": WIDTH, "height": HEIGHT, "objects": {"id": [1, 2], "bbox": boxes}}
        for i, boxes in enumerate((XYWH[:2], XYWH[2:]))
    ]
    for row in rows:
        row["objects"]["category"] = [1, 0]
    numbers = dict.fromkeys(("image_id", "width", "height"), Value("int64"))
    hub(folder, rows, image=Image(), objects=objects, **numbers)


@layout("lmms-lab's RefCOCO: `answer`, `bbox`")
def _(folder):
    image, text, number = png(folder), Value("string"), Value("float32")
    rows = [{"question_id": str(n), "image": image, "question": "Please carefully observe the area …",
             "answer": [LABELS[n], "it"], "segmentation": [1.0, 1, 2, 2, 3, 1], "bbox": XYWH[n], "iscrowd": 0,
             "file_name": f"COCO_train2014_{n}.jpg"} for n in range(4)]  # fmt: skip
    hub(folder, rows, question_id=text, image=Image(), question=text, answer=List(text), segmentation=List(number),
        bbox=List(number), iscrowd=Value("int8"), file_name=text)  # fmt: skip


# Annotations ----------------------------------------------------------------------------------------------------------


def coco_of(numbers: list[int], name: str = "{}.png", **more: object) -> dict:
    images = [{"id": n, "license": 1, "file_name": name.format(n), "height": HEIGHT, "width": WIDTH} for n in numbers]
    names = ("things", "none"), ("dog", "things"), ("traffic light", "things")
    categories = [{"id": i, "name": label, "supercategory": above} for i, (label, above) in enumerate(names)]
    plain = {"area": 1500, "segmentation": [], "iscrowd": 0}
    marks = [{"id": n, "image_id": n, "category_id": 1 + n % 2, "bbox": XYWH[n], **plain} for n in numbers]
    return {"info": {"year": "2024"}, "licenses": [], "categories": categories, "images": images, "annotations": marks}


@layout("a Roboflow download, COCO")
def _(folder):
    photos(folder, "{split}/{number}_png.rf.5e0a.png")
    for split, numbers in ("train", [0, 1, 2]), ("valid", [3]):
        write(folder / split / "_annotations.coco.json", coco_of(numbers, "{}_png.rf.5e0a.png"))
    write(folder / "README.roboflow.txt", "pets")


@layout("COCO's own folders")
def _(folder):
    for numbers, split in ([0, 1, 2], "train2017"), ([3], "val2017"):
        write(folder / "annotations" / f"instances_{split}.json", coco_of(numbers))
        for number in numbers:
            photo(folder / split / f"{number}.png")


@layout("YOLO: `data.yaml`, `images`, `labels`")
def _(folder):
    photos(folder, "{split}/images/{number}.png")
    for n, split in enumerate(SPLITS):
        write(folder / split / "labels" / f"{n}.txt", f"{n % 2} {' '.join(map(str, CENTRES[n]))}\n")
    names = "names: ['dog', 'traffic light']"
    write(folder / "data.yaml", f"train: ../train/images\nval: ../valid/images\n\nnc: 2\n{names}\n")


@layout("Pascal VOC: `Annotations`, `JPEGImages`")
def _(folder):
    """Whose pixels are counted from 1, the last one included."""
    photos(folder, "JPEGImages/{number}.png")
    for n, (x1, y1, x2, y2) in enumerate(BOXES):
        mark = LABELS[n], x1 + 1, y1 + 1, x2, y2
        write(folder / "Annotations" / f"{n}.xml", voc_xml(mark, name=f"{n}.png", size=SIZE))
    write(folder / "ImageSets" / "Main" / "train.txt", "0\n1\n2\n")
    write(folder / "ImageSets" / "Main" / "val.txt", "3\n")


@layout("LabelMe: a JSON file beside each photo")
def _(folder):
    photos(folder, "{number}.png")
    for n, (x1, y1, x2, y2) in enumerate(BOXES):
        shape = {"label": LABELS[n], "points": [[x1, y1], [x2, y2]], "shape_type": "rectangle"}
        content = labelme_json(shape, imagePath=f"{n}.png", imageHeight=HEIGHT, imageWidth=WIDTH)
        write(folder / f"{n}.json", content)


@layout("VIA: a project")
def _(folder):
    photos(folder)
    images = {}
    for n, (x, y, width, height) in enumerate(XYWH):
        shape = {"name": "rect", "x": x, "y": y, "width": width, "height": height}
        region = {"shape_attributes": shape, "region_attributes": {"type": LABELS[n]}}
        images[f"{n}.png{9 + n}"] = {"filename": f"{n}.png", "size": 9 + n, "regions": [region], "file_attributes": {}}
    names = list(images)
    write(folder / "via_project.json", {"_via_settings": {}, "_via_img_metadata": images, "_via_image_id_list": names})


@layout("CVAT: XML for images 1.1")
def _(folder):
    photos(folder)
    images = []
    for n, (x1, y1, x2, y2) in enumerate(BOXES):
        box = f'<box label="{LABELS[n]}" source="manual" occluded="0" xtl="{x1}.00" ytl="{y1}.00" xbr="{x2}.00" '
        subset = "Train" if SPLITS[n] == "train" else "Validation"
        named = f'id="{n}" name="{n}.png" subset="{subset}" width="{WIDTH}" height="{HEIGHT}"'
        images.append(f'<image {named}>{box}ybr="{y2}.00" z_order="0"></box></image>')
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta></meta>'
    write(folder / "annotations.xml", f"{head}{''.join(images)}</annotations>")


@layout("Label Studio: JSON")
def _(folder):
    """In hundredths of the image; names of uploads begin with eight letters."""
    photos(folder)
    tasks = []
    for n, (x, y, width, height) in enumerate(XYWH):
        value = {"x": x / 2, "y": y, "width": width / 2, "height": height, "rotation": 0}
        value["rectanglelabels"] = [LABELS[n]]
        place = {"from_name": "label", "to_name": "image", "original_width": WIDTH, "original_height": HEIGHT}
        result = {"id": f"r{n}", "type": "rectanglelabels", "image_rotation": 0, "value": value, **place}
        made = {"id": n, "was_cancelled": False, "ground_truth": False, "result": [result]}
        tasks.append({"id": n, "annotations": [made], "data": {"image": f"/data/upload/1/0123abcd-{n}.png"}})
    write(folder / "project-1.json", tasks)


@layout("CreateML: JSON")
def _(folder):
    photos(folder, "{split}/{number}.png")
    records = []
    for n, (x, y, width, height) in enumerate(XYWH):
        place = {"x": x + width / 2, "y": y + height / 2, "width": width, "height": height}
        records.append({"image": f"{n}.png", "annotations": [{"label": LABELS[n], "coordinates": place}]})
    write(folder / "train" / "_annotations.createml.json", records[:3])
    write(folder / "valid" / "_annotations.createml.json", records[3:])


@layout("MDETR's JSON: captions with `tokens_positive`")
def _(folder):
    photos(folder)
    content = coco_of([0, 1, 2, 3])
    for image, mark, label in zip(content["images"], content["annotations"], LABELS):
        image["caption"] = f"a {label} here"
        mark["tokens_positive"] = [[2, 2 + len(label)]]
    write(folder / "final_train.json", content)


# The table ------------------------------------------------------------------------------------------------------------


def table() -> dict[str, list[str]]:
    """What one has → the commands."""
    text = (ROOT / "docs" / "data.md").read_text().split("## Zero lines of glue")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")][2:]
    return {what.strip(): re.findall(r"`(albef-amc [^`]+)`", command) for what, command in rows}


ROWS = table()


def test_every_row_is_tried():
    assert ROWS.keys() == LAYOUTS.keys()


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """A folder, a cache of its own, one process."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def records(dataset: str, columns: Columns | None = None) -> list[tuple[str, list]]:
    """Phrases and boxes of all splits, as corners in pixels."""
    columns, found = columns or Columns(), []
    dataset = rows_of(dataset, columns)
    for split in split_names(dataset, None) or ["train"]:
        for record in training.load_split(dataset, None, split, columns=columns):
            boxes = np.asarray(record["boxes"], dtype=float).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2] if "xywh" in (columns.box_format or "") else 0
            boxes *= (WIDTH, HEIGHT) * 2 if "normalized" in (columns.box_format or "") else 1
            found.append((record["phrase"], np.round(boxes, 3).tolist()))
    return sorted(found)


@pytest.mark.parametrize("what", LAYOUTS)
def test_the_command_of_the_table(what, capsys):
    """It alone reads what the tool wrote and finds no trouble: the phrases and boxes, none lost."""
    LAYOUTS[what](Path("D"))
    (command,) = ROWS[what]
    program, *words = shlex.split(command)
    main([*words, "--strict"])
    assert program == "albef-amc" and "Train on it: albef-amc train" in capsys.readouterr().out
    assert [each for each in records(words[1]) if each[0] != "it"] == sorted(FOUND)


def litter(folder: Path) -> None:
    """What notebooks and macOS leave beside each file, and in archives that it makes."""
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        copy = file.parent / ".ipynb_checkpoints" / f"{file.stem}-checkpoint{file.suffix}"
        for place in copy, folder / ".ipynb_checkpoints" / copy.name:
            place.parent.mkdir(exist_ok=True)
            shutil.copy(file, place)
        mark = f"._{file.name}"
        for place in folder / "__MACOSX" / file.parent.relative_to(folder) / mark, file.parent / mark:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")


@pytest.mark.parametrize("what", LAYOUTS)
def test_hidden_files_are_passed_over(what):
    LAYOUTS[what](Path("D"))
    litter(Path("D"))
    dataset = shlex.split(ROWS[what][0])[2]
    assert [each for each in records(dataset) if each[0] != "it"] == sorted(FOUND)


# Annotations ----------------------------------------------------------------------------------------------------------

# A file of each layout, and whether it alone says what to read.
A_FILE = {
    "a Roboflow download, COCO": ("train/_annotations.coco.json", True),
    "COCO's own folders": ("annotations/instances_train2017.json", True),
    "YOLO: `data.yaml`, `images`, `labels`": ("data.yaml", True),
    "Pascal VOC: `Annotations`, `JPEGImages`": ("Annotations/0.xml", False),
    "LabelMe: a JSON file beside each photo": ("0.json", False),
    "VIA: a project": ("via_project.json", True),
    "CVAT: XML for images 1.1": ("annotations.xml", True),
    "Label Studio: JSON": ("project-1.json", True),
    "CreateML: JSON": ("train/_annotations.createml.json", True),
    "MDETR's JSON: captions with `tokens_positive`": ("final_train.json", True),
}
NOT_ROWS = r"has annotations that are no rows of a data set yet: (.*), then --dataset data/mine\. Of a table"


def refused(dataset: str) -> list[list[str]]:
    """The words of the commands that its error names."""
    with pytest.raises(ValueError, match=NOT_ROWS) as error:
        rows_of(dataset, Columns())
    return [shlex.split(each)[1:] for each in re.search(NOT_ROWS, str(error.value))[1].split(" or ")]


@pytest.mark.parametrize("what", A_FILE)
def test_a_file_of_annotations(what):
    """It gives its part of the rows; one of many that are one data set is told the command for all of them."""
    LAYOUTS[what](Path("my photos"))
    file, is_whole = A_FILE[what]
    if not is_whole:
        (words,) = refused(f"my photos/{file}")
        main([*words, "--strict"])
    found = records(f"my photos/{file}" if is_whole else "data/mine")
    assert found and all(each in FOUND for each in found)


@pytest.mark.parametrize("name", [name for name in TREES if name not in ("scenes", "referit", "albef_json")])
def test_every_format_is_recognised_and_read_as_by_its_builder(name, caplog):
    options = TREES[name](Path("D"))
    report = build(name, "built", data_dir=options["data_dir"], images_dir=options["images_dir"]).report
    assert records("D") == records("built") != []
    (folder,) = filter(Path.is_dir, Path("cache", "albef_amc").glob(f"{name}-*"))
    told = f"D: annotations as albef-amc build {name} reads them; their rows are in {folder.absolute()}."
    said = [told, *([str(report)] if report.dropped else [])]
    assert [each.message for each in caplog.records] == said
    caplog.clear()
    assert records("D") and [each.message for each in caplog.records] == said  # of what is in the cache, too


def test_annotations_are_built_once_for_all_commands_until_a_file_changes():
    TREES["xvlm"](Path("D"))
    first, at = rows_of("D", Columns()), os.stat(rows_of("D/train.jsonl", Columns())).st_mtime_ns
    assert rows_of(str(Path("D").absolute()), Columns()) == first != rows_of("D/train.jsonl", Columns())
    assert os.stat(rows_of("D/train.jsonl", Columns())).st_mtime_ns == at
    Path(f"{first}.txt").unlink()  # as where a build was killed before its report was written
    assert rows_of("D", Columns()) == first and Path(f"{first}.txt").exists()
    photo(Path("D/images/1.png"))
    assert rows_of("D", Columns()) not in (first, rows_of("D", Columns(), strict=True))


def test_every_command_says_what_was_dropped(caplog):
    write(Path("D/instances.json"), coco_of([*range(4)]))
    for number in range(2):
        photo(Path(f"D/{number}.png"))
    for _ in range(2):
        caplog.clear()
        assert len(records("D")) == 2
        assert any("dropped          2  " in each.message for each in caplog.records)


def test_columns_that_are_named_win(caplog):
    """Of a table that has a tool's keys, too; without them a `box_format` is none that a builder would ask for."""
    photos(Path("D"))
    turns = {"conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "There."}]}
    write(Path("D/mine.jsonl"), lines([row | turns for row in rows_of_boxes(XYWH, "bbox", "words")]))
    columns = {"phrase": "words", "boxes": "bbox"}
    assert records("D/mine.jsonl", Columns(columns, "xywh")) == sorted(FOUND) and not caplog.records
    with pytest.raises(ValueError, match=r"as albef-amc build chat reads them, .*box_format.*name the --columns"):
        records("D/mine.jsonl", Columns(box_format="xywh"))
    with pytest.raises(ValueError, match=r"no answer has boxes .*: albef-amc build chat --data_dir .*--columns"):
        records("D/mine.jsonl")


def test_what_builds_need_beside_evaluation_is_named(monkeypatch):
    """`albef-amc[eval]` comes without pycocotools."""
    TREES["coco"](Path("D"))
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.delitem(sys.modules, "dataset_scripts.segmentations")
    monkeypatch.delitem(sys.modules, "dataset_scripts.objects")
    monkeypatch.delitem(sys.modules, "dataset_scripts.coco")
    with pytest.raises(ImportError, match=r"pycocotools.*pip install 'albef-amc\[train\]'"):
        rows_of("D", Columns())


def test_what_is_in_doubt_is_told_the_commands():
    """Formats of two tools; a builder's files in two folders, of which it reads one; images that are elsewhere."""
    LAYOUTS["YOLO: `data.yaml`, `images`, `labels`"](Path("D"))
    write(Path("D/instances.json"), coco_of([0]))
    assert [words[:6] for words in refused("D")] == [
        ["build", name, "--data_dir", "D", "--images_dir", "D"] for name in ("yolo", "coco")
    ]
    for split in "train", "val":
        TREES["refcoco"](Path("E", split))
    assert [words[:4] for words in refused("E")] == [["build", "refcoco", "--data_dir", "E/train"]]
    write(Path("F/instances.json"), coco_of([0, 1, 2, 3]))
    (words,) = refused("F")
    photos(Path("far away"))
    main([word.replace("IMAGES", "far away") for word in words])
    assert records("data/mine") == sorted(FOUND)


def test_every_command_takes_them_and_says_what_is_missing(capsys):
    for part in (tiny_albef(), tiny_processor()):
        part.save_pretrained("model")
    commands = (
        ["inspect"],
        ["train", "--model", "model", "--output_dir", "run", "--use_cpu", "--max_steps", "1", "--report_to", "none",
         "--strict", "--dataset"],
        ["evaluate", "--models", "mine=model", "--output", "scores", "--splits", "train", "--cpu", "--dataset"],
        ["sweep", "--model", "model", "--cpu", "--dataset"],
        ["ground-dataset", "--model", "model", "--output", "rows", "--cpu", "--streaming", "--dataset"],
        ["export-annotations", "rows", "--format", "coco", "--output", "boxes", "--dataset"],
    )  # fmt: skip
    photos(Path("D"))
    write(Path("D/labels.json"), coco_of([0, 1, 2, 3]))
    for words in commands:
        main([*words, "D/labels.json"])
    told = json.loads(Path("scores/report.json").read_text())["dataset"], capsys.readouterr().out
    assert told[0] == "D/labels.json" and "--model CHECKPOINT --dataset D/labels.json --output_dir" in told[1]
    assert len(json.loads(Path("boxes/annotations/instances_train.json").read_text())["images"]) == 3
    write(Path("E/labels.json"), coco_of([0]))
    command = "albef-amc build coco --data_dir E --annotations labels.json --images_dir IMAGES --output data/mine"
    for words in commands:
        with pytest.raises((SystemExit, ValueError)) as error:
            main([word.replace("boxes", "more") for word in (*words, "E/labels.json")])
        assert command in capsys.readouterr().err + str(error.value)


def known(path: Path | str) -> list[str]:
    return list(known_formats(str(path)))


def test_rows_are_not_taken_for_annotations(tmp_path):
    """Whatever lies beside them, and however much their columns are called like those of a tool."""
    photos(tmp_path)
    objects = {"objects": [{"label": "dog", "coordinates": [1, 2]}], "images": ["1.png"], "categories": ["dog"]}
    objects |= {"regions": [{"phrase": "dog"}], "grounding": True, "messages": ["hi"], "suffix": "a dog", "elems": 3}
    objects |= {"file_attributes": {}, "shape_attributes": {}, "filename": "1.png", "size": 3, "original_width": 40}
    write(tmp_path / "mine.json", [row | objects for row in rows_of_boxes(BOXES)])
    write(tmp_path / "settings.json", "{")
    write(tmp_path / "info.json", {"info": "mine", "annotations": [{"text": "a dog"}], "categories": ["dog"]})
    write(tmp_path / "pom.xml", "<project/>")
    assert known(tmp_path) == known(tmp_path / "mine.json") == []
    write(tmp_path / "lines.json", lines([row | objects for row in rows_of_boxes(BOXES)]))
    assert known(tmp_path / "lines.json") == []
    write(tmp_path / "instances.json", coco_of([0]))
    assert known(tmp_path) == ["coco"]
    write(tmp_path / "train.jsonl", lines([row | objects for row in rows_of_boxes(BOXES)]))
    assert known(tmp_path) == known("org/on-the-hub") == []
    assert records(str(tmp_path / "train.jsonl")) == sorted(FOUND)


@pytest.mark.parametrize("first", ["info", "annotations", "images"])
def test_cocos_lists_come_in_any_order(first, tmp_path):
    """LVIS has annotations first, and lists in its records of images."""
    content = coco_of([0])
    content["images"][0] = {"neg_category_ids": [1, 2], "coco_url": "http://a/val2017/0.png"}
    write(tmp_path / "lvis.json", {first: content[first]} | content)
    assert known(tmp_path) == ["coco"]


@pytest.mark.parametrize(
    ("builder", "content"),
    [
        (
            "coco",
            {
                "info": {"year": 2024},
                "licenses": [{"id": 1, "name": "none"}],
                "categories": [
                    {"keypoints": ["head", "tail"], "skeleton": [[1, 2], [2, 1]], "id": k, "name": f"thing {k}"}
                    for k in range(1500)
                ],
                **{name: content for name, content in coco_of([0]).items() if name != "categories"},
            },
        ),
        (
            "label_studio",
            [
                {"id": k, "annotations": [{"id": k, "completed_by": 1, "result": [], "was_cancelled": False}] * (k % 2)}
                | {"drafts": [], "predictions": [], "data": {"image": f"/data/upload/1/{k:08x}-photo.jpg"}}
                for k in range(1000)
            ],
        ),
        (
            "label_studio",
            [
                {"image": f"/data/upload/1/{k:08x}-photo.jpg", "id": k, "annotator": 1, "annotation_id": k}
                | {"created_at": "2024-05-01T10:00:00Z", "updated_at": "2024-05-01T10:00:00Z", "lead_time": 3.2}
                for k in range(1000)
            ],
        ),
        (
            "via",
            {
                f"{k}.jpg99": {"filename": f"{k}.jpg", "size": 99, "regions": [], "file_attributes": {}}
                for k in range(1000)
            },
        ),
    ],
    ids=["coco", "label_studio", "label_studio_min", "via"],
)
@pytest.mark.parametrize("indent", [None, 4])
def test_annotations_are_known_though_nothing_is_marked_in_their_beginning(builder, content, indent, tmp_path):
    text = json.dumps(content, indent=indent)
    (tmp_path / "export.json").write_text(text)
    assert len(text) > 65_536 and known(tmp_path) == known(tmp_path / "export.json") == [builder]
    if builder == "label_studio" and "annotations" in content[0]:
        (tmp_path / "export.json").write_text(json.dumps([task for task in content if not task["annotations"]]))
        assert known(tmp_path) == [builder]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.txt", "dog\n"),
        ("train/_darknet.labels", "dog\n"),
        ("coco.names", "dog\n"),
        ("dataset.yaml", "path: .\ntrain: images\nnames:\n  0: dog\n"),
    ],
)
def test_a_list_of_names_is_yolos_where_nothing_else_is(file, content):
    """X-AnyLabeling has one beside the files of LabelMe."""
    photo(Path("D/train/a.png"))
    write(Path("D/train/a.txt"), "0 0.5 0.5 0.5 0.5\n")
    write(Path("D/settings.yaml"), "model:\n  names: none\n")
    with pytest.raises(ValueError, match=r"took lines of text files for rows\. Of YOLO's labels, name .*classes\.txt"):
        records("D")
    write(Path("D", file), content)
    assert records("D") == [("dog", [[50, 25, 150, 75]])]
    shape = {"label": "dog", "points": [[1, 1], [4, 4]], "shape_type": "rectangle"}
    Path("D/photo.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(labelme_json(shape)).encode())
    assert known("D") == ["labelme"]


def test_label_studios_list_of_categories_is_no_coco(tmp_path):
    """It lies beside YOLO's labels, which it says nothing of that classes.txt does not."""
    notes = {"categories": [{"id": 0, "name": "dog"}], "info": {"year": 2024, "contributor": "Label Studio"}}
    write(tmp_path / "notes.json", notes)
    assert known(tmp_path) == []
    write(tmp_path / "classes.txt", "dog\n")
    assert known(tmp_path) == ["yolo"]
    write(tmp_path / "result.json", notes | {"annotations": [], "images": []})
    assert known(tmp_path) == ["coco"]
