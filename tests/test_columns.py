"""Data sets with other columns and units: read as they are meant, and said, or an error that proposes the option."""

import csv
import io
import json
import logging
import threading
from decimal import Decimal
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Image, List, Value
from PIL import Image as PilImage
from PIL.PngImagePlugin import PngInfo

from modeling_albef_amc.images import open_image
from tests.helpers.data import BROKEN_EXIF, picture, tiny_albef, tiny_processor
from trainer import evaluate_grounding, ground_dataset, sweep_layers, training
from trainer.box_units import fits_images, image_size
from trainer.columns import Columns
from trainer.data_collator import GroundingCollator
from trainer.phrase_rows import PhraseRows
from trainer.regions import BOX_FORMATS, Region
from trainer.splits import open_split, split_names
from trainer.streaming import StreamedRows

WIDTH, HEIGHT = 200, 100
# Corners, of which as corner and size, or as centre and size, some are not in an image of that size; and so on round.
CORNERS = [[10, 10, 60, 60], [120, 20, 190, 90], [0, 0, 50, 30], [150, 50, 200, 100]]
NUMBER, TEXT, COUNT = Value("float32"), Value("string"), Value("int64")
LABELS = ClassLabel(names=["dog", "traffic_light", "bow_(weapon)"])


def as_format(box: list[float], box_format: str) -> list[float]:
    """By hand, of corners in pixels."""
    x1, y1, x2, y2 = box
    found = {
        "xyxy": [x1, y1, x2, y2],
        "xywh": [x1, y1, x2 - x1, y2 - y1],
        "cxcywh": [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1],
    }[box_format.removesuffix("_normalized")]
    scale = (WIDTH, HEIGHT, WIDTH, HEIGHT) if box_format.endswith("_normalized") else (1, 1, 1, 1)
    return [value / by for value, by in zip(found, scale)]


def png() -> bytes:
    buffer = io.BytesIO()
    picture(WIDTH, HEIGHT).save(buffer, "PNG")
    return buffer.getvalue()


def photos(folder: Path, count: int = 4) -> Path:
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(WIDTH, HEIGHT).save(folder / "photos" / f"{number}.png")
    return folder


def write_rows(file: Path, rows: list[dict]) -> str:
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows, indent=1))
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        with file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, rows[0], delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(file)


def write_hub(folder: Path, rows: list[dict], **features) -> str:
    """A folder as of the Hub: Parquet files that say what their columns are."""
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=Features(features)).to_parquet(folder / "train.parquet")
    return str(folder)


def records(path: str, columns: Columns | None = None, streaming: bool = False) -> list[dict]:
    """All records, a phrase each, by both ways that data are read."""
    columns = columns or Columns()
    if streaming:
        return list(StreamedRows.open(path, None, "train", False, columns))
    return list(training.load_split(path, None, "train", columns=columns, needs_regions=True))


def boxes_of(found: list[dict]) -> list:
    return [np.round(record["boxes"] or [], 4).tolist() for record in found]


# Columns --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_a_file_is_a_data_set(tmp_path, monkeypatch, kind):
    """Paths are relative to it, wherever one is."""
    photos(tmp_path)
    rows = [{"image": f"photos/{n}.png", "phrase": f"dog {n}", **dict(zip(("x1", "y1", "x2", "y2"), box))}
            for n, box in enumerate(CORNERS)]  # fmt: skip
    path = write_rows(tmp_path / f"mine{kind}", rows)
    monkeypatch.chdir("/")
    found = records(path)
    assert [record["phrase"] for record in found] == [f"dog {n}" for n in range(4)]
    assert boxes_of(found) == [[box] for box in CORNERS]
    assert [record["image"]["path"] for record in found] == [str(tmp_path / f"photos/{n}.png") for n in range(4)]
    assert open_split(path, None, "test").num_rows == 4  # it is the split that is asked for
    (part,) = open_split(path, None, "validation[3:]")
    assert part["phrase"] == "dog 3"
    if kind in (".jsonl", ".parquet"):
        assert records(path, streaming=True) == found


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".tsv"])
def test_paths_may_be_percent_encoded(tmp_path, kind):
    photos(tmp_path)
    files = [tmp_path / "photos" / name for name in ("my photo.png", "a%20b.png", "c%20d.png", "c d.png")]
    for number, file in enumerate(files):
        (tmp_path / f"photos/{number}.png").rename(file)
    names = ["my%20photo.png", "a%20b.png", "c%20d.png", "c d.png"]
    rows = [{"image": f"photos/{name}", "phrase": "a dog", "bbox": box} for name, box in zip(names, CORNERS)]
    found = records(write_rows(tmp_path / f"mine{kind}", rows), Columns(box_format="xyxy"))
    assert [record["image"]["path"] for record in found] == [*map(str, files)]


NAMES = [
    {"img": 0, "caption": 1, "bbox": 2},
    {"image_path": 0, "text": 1, "box": 2},
    {"file_name": 0, "expression": 1, "bboxes": 3},
    {"filename": 0, "width": WIDTH, "height": HEIGHT, "class": 1, "xmin": 4, "ymin": 5, "xmax": 6, "ymax": 7},
    {"image": 0, "Sentence": 1, "bbox_x1": 4, "bbox_y1": 5, "bbox_x2": 6, "bbox_y2": 7},
    {"image": 0, "phrase": 1, "bbox": 8},
    {"image": 0, "phrase": 1, "boxes": 8},
    {"filename": 0, "width": WIDTH, "height": HEIGHT, "label": 1, "x": 4, "y": 5, "w": 9, "h": 10},
    {"file": 0, "bbox_x": 4, "bbox_y": 5, "bbox_width": 9, "bbox_height": 10, "phrase": 1}
    | {"width": WIDTH, "height": HEIGHT},
]


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_names_that_are_guessed(tmp_path, names, kind, caplog):
    photos(tmp_path)
    given = [
        [f"photos/{n}.png", f"a dog {n}", box, [box], *box, json.dumps([box]), *as_format(box, "xywh")[2:]]
        for n, box in enumerate(CORNERS)
    ]
    rows = [{name: row[at] if at < len(row) else at for name, at in names.items()} for row in given]
    expected = [as_format(box, "xywh") if {9, 10} <= {*names.values()} else box for box in CORNERS]
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        found = records(write_rows(tmp_path / f"mine{kind}", rows))
    assert boxes_of(found) == [[box] for box in expected]
    assert [record["phrase"] for record in found] == [f"a dog {n}" for n in range(4)]
    said = [record.message for record in caplog.records if "Guessed" in record.message]
    assert len(said) == ({"image", "phrase", "boxes"} != {*names})
    for ours, at in {"image": 0, "phrase": 1}.items():
        (name,) = (name for name, each in names.items() if each == at)
        assert (name == ours) or f"{ours}={name}" in said[0]


@pytest.mark.parametrize(
    "other",
    [{"polygons": [[[150, 50, 200, 50, 180, 100]]]}, {"scribbles": [[170, 70]], "scribble_radius": 3.0}],
    ids=["polygons", "scribbles"],
)
def test_boxes_are_found_beside_other_regions(tmp_path, other):
    """In rows of their own, too; where the first rows have none, they are left out, and that is said."""
    photos(tmp_path)
    rows = [{"image": f"photos/{n}.png", "phrase": f"dog {n}", "bbox": box} for n, box in enumerate(CORNERS)]
    rows = [row | dict.fromkeys(other) for row in rows[:3]] + [rows[3] | other]
    found = records(write_rows(tmp_path / "mixed.jsonl", rows))
    assert boxes_of(found) == [[box] for box in CORNERS] and found[3][min(other)] == other[min(other)]
    columns = Columns()
    for row in rows:
        row["bbox"] = []
    assert "boxes" not in records(write_rows(tmp_path / "none.jsonl", rows), columns)[3]


SIDED = {"x": 10, "y": 10, "width": 50, "height": 50}
SIZE = {"w": 5, "h": 5}
TWO = [[10, 10, 60, 60], [5, 5, 9, 9]]


@pytest.mark.parametrize(
    ("kind", "place", "row"),
    [
        (".csv", "rotation", lambda angle: {"phrase": "dog", **SIDED, "rotation": angle}),
        (".jsonl", "rotation", lambda angle: {"phrase": "dog", **SIDED, "rotation": angle}),
        (".jsonl", "bbox.angle", lambda angle: {"text": "dog", "bbox": {"cx": 60, "cy": 60, **SIZE, "angle": angle}}),
        (".jsonl", "Angle_deg", lambda angle: {"phrase": "dog", "bbox": TWO[0], "Angle_deg": angle}),
        (".jsonl", "angles", lambda angle: {"phrase": "dog", "boxes": TWO, "angles": [0, angle]}),
        (".jsonl", "angles", lambda angle: {"phrase": ["a", "b"], "boxes": [TWO, TWO], "angles": [[0, angle], [0]]}),
        (".parquet", "objects.theta", lambda angle: {"objects": [{**SIDED, "label": "dog", "theta": angle}]}),
    ],
)  # fmt: skip
def test_turned_boxes_are_not_read_as_upright_ones(tmp_path, kind, place, row):
    photos(tmp_path)

    def found(angles, streaming):
        rows = [{"image": f"photos/{number}.png", **row(angle)} for number, angle in enumerate(angles)]
        return records(write_rows(tmp_path / f"mine{kind}", rows), Columns(box_format="xywh"), streaming)

    for streaming in (False, True) if kind != ".csv" else (False,):
        with pytest.raises(ValueError, match=rf"are turned by {place}, such as 45, .* polygons .* drop this column"):
            found([0, None, 45], streaming)
        assert len({record["image"]["path"] for record in found([0, None, 0], streaming)}) == 3


def test_turned_boxes_that_nobody_needs_are_left_out(tmp_path, caplog):
    photos(tmp_path)
    path = write_rows(tmp_path / "mine.csv", [{"image": "photos/0.png", "label": "dog", **SIDED, "rotation": 45}])
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        assert "boxes" not in open_split(path, None, "train").column_names
    assert "Boxes are left out." in caplog.text
    with pytest.raises(ValueError, match="are turned by rotation"):
        open_split(path, None, "train", columns=Columns({"boxes": "x,y,width,height"}))


def test_an_angle_that_is_of_the_image_turns_no_box(tmp_path):
    photos(tmp_path)
    row = {"image": "photos/0.png", "rotation": 90, "objects": [{"bbox": [10, 10, 60, 60], "label": "dog"}]}
    assert len(records(write_rows(tmp_path / "a.jsonl", [row]), Columns(box_format="xyxy"))) == 1
    row = {"image": "photos/0.png", "rotation": 90, "phrase": "dog", "boxes": [[10, 10, 60, 60]]}
    assert len(records(write_rows(tmp_path / "b.jsonl", [row]))) == 1
    row = {"image": "photos/0.png", "rotation": 90, "phrase": "dog", "polygons": [[[1, 1, 9, 1, 9, 9]]]}
    assert len(records(write_rows(tmp_path / "c.jsonl", [row]))) == 1


def test_corners_of_quadrilaterals_are_no_boxes(tmp_path):
    photos(tmp_path)
    corners = dict(zip(("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4"), (100, 50, 190, 55, 188, 95, 98, 90)))
    for first in (1, 0):
        named = {f"{name[0]}{int(name[1]) - 1 + first}": value for name, value in corners.items()}
        path = write_rows(tmp_path / "skewed.csv", [{"image": "photos/0.png", "phrase": "a sign", **named}] * 4)
        with pytest.raises(ValueError, match=f"not understood: x{first}, y{first}, .* Say which has its regions"):
            records(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_images_of_another_size_than_columns_say(tmp_path, streaming):
    """As after resizing them. Of shares of an image it does not matter."""
    photos(tmp_path)
    rows = [{"image": f"photos/{n}.png", "width": 2 * WIDTH, "height": 2 * HEIGHT, "phrase": "a dog", "bbox": box}
            for n, box in enumerate(CORNERS)]  # fmt: skip
    message = r"4 of the first 4 images are of another .*0\.png: the image has 200 x 100 pixels, not 400 x 200"
    for times in (2,) if streaming else (2, 1):  # of the size that is told; of the image's, and in doubt
        each = [row | {"bbox": [times * value for value in row["bbox"]]} for row in rows]
        with pytest.raises(ValueError, match=message):
            records(write_rows(tmp_path / "resized.jsonl", each), streaming=streaming)
    for row in rows:
        row["bbox"] = as_format(row["bbox"], "xyxy_normalized")
    assert len(records(write_rows(tmp_path / "shares.jsonl", rows), streaming=streaming)) == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_a_record_that_contradicts_the_size_of_its_image_cannot_be_used(tmp_path, streaming):
    photos(tmp_path)
    picture(HEIGHT, WIDTH).save(tmp_path / "photos/1.png")  # turned
    rows = [{"image": f"photos/{n % 4}.png", "width": WIDTH, "height": HEIGHT, "phrase": f"dog {n}", "bbox": box}
            for n, box in enumerate(CORNERS)]  # fmt: skip
    rows += [{**rows[0], "width": None}]
    columns = Columns()
    found = records(write_rows(tmp_path / "mine.jsonl", rows), columns, streaming=streaming)
    assert columns.box_format == "xyxy"  # though the second is not in its image
    found[1]["boxes"] = [[10, 10, 60, 60]]
    collator = GroundingCollator(tiny_processor(), strict=False, spare=found[0])
    (reason,) = collator(found)["unusable"]
    assert "1.png', phrase 'dog 1': the image has 100 x 200 pixels, not 200 x 100 as its row says" in reason
    assert not collator.changed(box_format="xyxy_normalized")([found[1] | {"boxes": [[0.1, 0.1, 0.6, 0.6]]}])[
        "unusable"
    ]


@pytest.mark.parametrize(
    ("header", "many", "last", "name", "expected"),
    [
        ("x1,y1,x2,y2", "10,10,60,60", "10.5,10,60,60", "boxes", [[10.5, 10, 60, 60]]),
        ("x1,y1,x2,y2,image_id", "10,10,60,60,7", "10,10,60,60,b7", "image_id", "b7"),
        ("x1,y1,x2,y2,caption", "10,10,60,60,", "10,10,60,60,a star", "caption", "a star"),
        ("x1,y1,x2,y2,absent", "10,10,60,60,", ",,,,True", "absent", True),
        ("x1,y1,x2,y2,absent", "10,10,60,60,", "10,10,60,60,", "absent", None),
        ("bbox", "", '"[10, 10, 60, 99]"', "boxes", [[10, 10, 60, 99]]),
    ],
)
def test_columns_of_csv_are_of_one_kind_in_all_rows(tmp_path, header, many, last, name, expected):
    """More rows than datasets reads at once."""
    photos(tmp_path)
    lines = [f"image,phrase,{header}", *[f"photos/0.png,star,{many}"] * 10_001, f"photos/0.png,star,{last}"]
    (tmp_path / "long.csv").write_text("\n".join(lines))
    rows = open_split(str(tmp_path / "long.csv"), None, "train")
    assert len(rows) == 10_002 and rows[10_001][name] == expected


def test_columns_of_csv_are_of_one_kind_in_all_files(tmp_path):
    photos(tmp_path)
    header = "image,phrase,image_id,x1,y1,x2,y2"
    for number, line in enumerate(("7,10,10,60,60", "b7,10.5,10,60,60", "8,,,,")):
        (tmp_path / f"train-{number}.csv").write_text(f"{header}\nphotos/0.png,star,{line}\n")
    rows = open_split(str(tmp_path), None, "train")
    assert rows["image_id"][:] == ["7", "b7", "8"]
    assert rows["boxes"][:] == [[[10, 10, 60, 60]], [[10.5, 10, 60, 60]], []]


def test_ids_of_csv_keep_their_zeros(tmp_path):
    photos(tmp_path)
    rows = [{"image": f"photos/{n}.png", "phrase": "a dog", "image_id": each, "boxes": str(CORNERS[:1])}
            for n, each in enumerate(("7", "007", ""))]  # fmt: skip
    path = write_rows(tmp_path / "mine.csv", rows)
    assert [row["image_id"] for row in open_split(path, None, "train")] == ["7", "007", None]


@pytest.mark.parametrize("mark", ["\t", ";"])
def test_what_parts_columns_in_files_of_a_folder(tmp_path, mark):
    photos(tmp_path / "beside")
    (tmp_path / "own").mkdir()
    lines = ["image,phrase,x1,y1,x2,y2", *(f"../beside/photos/{n}.png,dog {n},10,10,60,6{n}" for n in range(4))]
    kind = "tsv" if mark == "\t" else "csv"
    (tmp_path / "own" / f"train-0.{kind}").write_text("\n".join(lines).replace(",", mark))
    (tmp_path / "own" / f"validation.{kind}").write_text("\n".join(lines[:2]))
    found = records(str(tmp_path / "own"))
    assert [(record["phrase"], record["boxes"]) for record in found] == [
        (f"dog {n}", [[10, 10, 60, 60 + n]]) for n in range(4)
    ]
    assert len(open_split(str(tmp_path / "own"), None, "validation")) == 1
    (tmp_path / "own" / f"train-1.{kind}").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"parted by '.*' in .*train-0\.{kind}, and by ',' in .*train-1\.{kind}"):
        records(str(tmp_path / "own"))


def test_phrases_that_pandas_takes_for_missing_values(tmp_path):
    """In a column of numbers they are missing values."""
    photos(tmp_path)
    lines = ["image,phrase,x1,y1,x2,y2", *(f"photos/0.png,{text},1,1,9,9" for text in ("None", "NA", "null", "", "7"))]
    path = tmp_path / "mine.csv"
    path.write_text("\n".join([*lines, "photos/0.png,nan,NA,NA,null,"]))
    found = records(str(path), Columns(box_format="xyxy"))
    assert [record["phrase"] for record in found] == ["None", "NA", "null", None, "7", "nan"]
    assert found[0]["boxes"] == [[1, 1, 9, 9]] and not found[5]["boxes"]


@pytest.mark.parametrize("streaming", [False, True])
def test_decimal_numbers_and_views_of_texts(tmp_path, streaming):
    photos(tmp_path)
    columns = {"image": pa.array([f"photos/{n}.png" for n in range(4)], pa.string_view())}
    columns["phrases"] = pa.array([["a dog", "it"]] * 4, pa.list_(pa.string_view()))
    for name, values in zip(("x1", "y1", "x2", "y2"), zip(*CORNERS)):
        columns[name] = pa.array([Decimal(f"{value}.0") for value in values])
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    found = records(str(tmp_path / "mine.parquet"), None, streaming)
    assert [record["phrase"] for record in found] == ["a dog", "it"] * 4
    assert boxes_of(found) == [[box] for box in CORNERS for _ in range(2)]


@pytest.mark.parametrize("text", ["null\n{}", " [ null, {}]", "null", "\ufeffnull"])
def test_a_first_record_of_null_is_named(tmp_path, text):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ValueError, match=r"the first record of .*mine\.json is null: remove it"):
        records(str(tmp_path / "mine.json"))


def test_objects_of_detection_sets(tmp_path):
    """Both ways that `datasets` stores lists of structs, and texts; equal names are one phrase with all its boxes."""
    rows = [
        {"image": {"bytes": png(), "path": None}, "objects": {"bbox": [as_format(b, "xywh") for b in CORNERS],
         "category": [0, 1, 0, 2]}},
        {"image": {"bytes": png(), "path": None}, "objects": {"bbox": [], "category": []}},
        {"image": {"bytes": png(), "path": None}, "objects": None},
    ]  # fmt: skip
    of_lists = {"bbox": List(List(NUMBER, length=4)), "category": List(LABELS)}
    of_structs = List({"bbox": List(NUMBER, length=4), "category": LABELS})
    turned = [
        {
            **row,
            "objects": row["objects"]
            and [dict(zip(("bbox", "category"), values)) for values in zip(*row["objects"].values())],
        }
        for row in rows
    ]
    texts = [
        {
            **row,
            "objects": row["objects"]
            and {
                "bbox": row["objects"]["bbox"],
                "categories": [LABELS.names[number] for number in row["objects"]["category"]],
            },
        }
        for row in rows
    ]
    of_texts = {"bbox": of_lists["bbox"], "categories": List(TEXT)}
    for name, objects, given in (
        ("lists", of_lists, rows),
        ("structs", of_structs, turned),
        ("texts", of_texts, texts),
    ):
        path = write_hub(tmp_path / name, given, image=Image(), objects=objects)
        for streaming in (False, True):
            columns = Columns()
            found = records(path, columns, streaming)
            assert columns.box_format == "xywh"
            assert [record["phrase"] for record in found] == ["dog", "traffic light", "bow"]
            expected = [[CORNERS[0], CORNERS[2]], [CORNERS[1]], [CORNERS[3]]]
            assert boxes_of(found) == [[as_format(box, "xywh") for box in boxes] for boxes in expected]
            assert all(record["image"]["bytes"] == png() for record in found)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("again", ["a cat", "A  cat ", "a_cat"])
def test_equal_phrases_of_a_row_are_one(tmp_path, streaming, is_whole, again):
    """Whatever their regions are written as: an instance each, or a list of instances each."""
    picture(WIDTH, HEIGHT).save(tmp_path / "0.png")
    one, other, third = CORNERS[:3]
    row = {"image": "0.png", "phrase": ["a cat", "dog", again], "absent": [False, True, False]}
    each = {**row, "boxes": [[one], [], [other, third]] if is_whole else [one, None, other]}
    found = records(write_rows(tmp_path / "mine.jsonl", [each]), streaming=streaming)
    assert [record["phrase"] for record in found] == ["a cat", "dog"]
    assert found[0]["boxes"] == ([one, other, third] if is_whole else [one, other])
    assert not found[0]["absent"] and found[1]["absent"]


@pytest.mark.parametrize("streaming", [False, True])
def test_several_expressions_of_one_box_and_several_objects_with_several(tmp_path, streaming):
    """As of jxu124, lmms-lab and moondream."""
    image = {"bytes": png(), "path": None}
    common = {"question_id": "1", "image": image, "question": "Please carefully observe", "file_name": "1.png"}
    rows = [{**common, "answer": ["left dog", "dog on the left"], "segmentation": [1.0, 1, 2, 2, 3, 1], "iscrowd": 0,
             "bbox": as_format(box, "xywh")} for box in CORNERS]  # fmt: skip
    path = write_hub(
        tmp_path / "lmms", rows, question_id=TEXT, image=Image(), question=TEXT, answer=List(TEXT),
        segmentation=List(NUMBER), bbox=List(NUMBER), iscrowd=Value("int8"), file_name=TEXT,
    )  # fmt: skip
    columns = Columns()
    found = records(path, columns, streaming)
    assert columns.box_format == "xywh" and len(found) == 8
    assert [record["phrase"] for record in found[:2]] == ["left dog", "dog on the left"]
    assert boxes_of(found) == [[as_format(box, "xywh")] for box in CORNERS for _ in range(2)]

    photos(tmp_path)
    rows = [
        {"sent_ids": [1], "file_name": "COCO_1.jpg", "ann_id": 1, "ref_id": 1, "image_id": n, "split": "train",
         "sentences": [{"raw": "x", "sent": "x", "sent_id": 1, "tokens": ["x"]}], "category_id": 1, "raw_anns": "{}",
         "raw_image_info": "{}", "raw_sentences": "{}", "image_path": f"photos/{n}.png", "bbox": list(map(float, box)),
         "captions": ["a dog", "it"], "global_image_id": "coco.1", "anns_id": "1"} for n, box in enumerate(CORNERS)
    ]  # fmt: skip
    columns = Columns()
    found = records(write_rows(tmp_path / "jxu.parquet", rows), columns, streaming)
    assert columns.box_format == "xyxy" and [record["phrase"] for record in found] == ["a dog", "it"] * 4
    assert boxes_of(found) == [[box] for box in CORNERS for _ in range(2)]
    assert [record["image_id"] for record in found] == [0, 0, 1, 1, 2, 2, 3, 3]

    samples = [{"category": "dog", "sentences": [f"dog {n}", "a dog"], "bbox": as_format(box, "xywh")}
               for n, box in enumerate(CORNERS)]  # fmt: skip
    objects = List({"category": TEXT, "sentences": List(TEXT), "bbox": List(NUMBER)})
    path = write_hub(tmp_path / "moon", [{"image": image, "samples": samples}], image=Image(), samples=objects)
    found = records(path, None, streaming)
    assert [record["phrase"] for record in found] == ["dog 0", "a dog", "dog 1", "dog 2", "dog 3"]
    assert [len(record["boxes"]) for record in found] == [1, 4, 1, 1, 1]


def test_columns_that_are_told(tmp_path):
    photos(tmp_path)
    rows = [{"a": f"photos/{n}.png", "b": {"words": "a dog", "at": as_format(box, "xywh")}, "text": "x", "phrase": "y"}
            for n, box in enumerate(CORNERS)]  # fmt: skip
    path = write_rows(tmp_path / "mine.jsonl", rows)
    names = {"image": "a", "phrase": "b.words", "boxes": "b.at", "caption": "b.words"}
    found = records(path, Columns(names, "xywh"))
    assert boxes_of(found) == [[as_format(box, "xywh")] for box in CORNERS]
    assert {(record["phrase"], record["caption"]) for record in found} == {("a dog", "a dog")}
    rows = [{"image": f"photos/{n}.png", "phrase": "y", "l": b[0], "t": b[1], "r": b[2], "b": b[3]}
            for n, b in enumerate(CORNERS)]  # fmt: skip
    path = write_rows(tmp_path / "four.csv", rows)
    assert boxes_of(records(path, Columns({"boxes": "l,t,r,b"}))) == [[box] for box in CORNERS]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"phrase": "captoin"}, r"mine\.jsonl has no column captoin; it has image, caption, text, at\.x, bbox\.$"),
        ({"phrase": "at"}, r"has no column at; it has image, caption, text, at\.x"),
        ({"box": "bbox"}, r"--columns box=bbox: there is no box here, only image, image_id, phrase"),
        ({"phrase": "text", "boxes": "text,caption"}, "a column is one, a box also four"),
        ({}, r"in doubt what phrase is\. Say --columns phrase=caption or phrase=text\."),
    ],
)
def test_columns_that_are_not_there_or_in_doubt(tmp_path, names, message):
    photos(tmp_path)
    rows = [{"image": "photos/0.png", "caption": "a", "text": "b", "at": {"x": 1}, "bbox": CORNERS[0]}]
    with pytest.raises(ValueError, match=message):
        records(write_rows(tmp_path / "mine.jsonl", rows), Columns(names))


@pytest.mark.parametrize(
    ("phrase", "odd", "told"),
    [
        ({}, {"crowd": 0}, r"record 2 has {'bbox': .*'crowd': 0}, which is unlike {'bbox': .*} in 'crowd': give all"),
        ({"phrase": ["a dog", "a cat"]}, {"crowd": 0}, r"record 2 has .* in 'crowd': give all"),
        (
            {},
            {"label": 7},
            r"record 2 has {.*'label': 7, .*}, which is unlike {.*'label': 'cat'.*} in 'label': give all",
        ),
    ],
)
def test_objects_of_which_one_has_another_key_or_type_are_named(tmp_path, phrase, odd, told):
    photos(tmp_path)
    objects = [{"bbox": corners, "label": "cat", "note": None} for corners in CORNERS[:2]]
    rows = [{"image": "photos/0.png", "objects": objects, **phrase} for _ in range(3)]
    rows[2] = rows[2] | {"objects": [objects[0] | {"note": "big"}, objects[1] | odd]}
    path = write_rows(tmp_path / "mine.jsonl", rows)
    missing = "none of the columns boxes" if phrase else "no column phrase"
    with pytest.raises(ValueError, match=rf"{missing}.* objects\S* cannot be looked into: {told}"):
        open_split(str(path), None, "train", needs_regions=True)
    columns = Columns({"phrase": "objects.name"})
    with pytest.raises(ValueError, match=rf"no column objects\.name; .* objects\S* cannot be looked into: {told}"):
        open_split(str(path), None, "train", columns=columns)


def test_doubts_about_boxes(tmp_path, caplog):
    photos(tmp_path)
    row = {"image": "photos/0.png", "phrase": "a dog", "bbox": CORNERS[0], "box": CORNERS[1]}
    path = write_rows(tmp_path / "two.jsonl", [row])
    with pytest.raises(ValueError, match=r"in doubt what boxes is. Say --columns boxes=bbox or boxes=box\."):
        records(path)
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        assert "boxes" not in open_split(path, None, "train").column_names  # which nobody needs here
    assert "Regions are left out." in caplog.text
    row = {"image": "photos/0.png", "caption": "a cat on a mat", "label": "mat", "bbox": CORNERS[0]}
    with pytest.raises(ValueError, match=r"Say --columns phrase=caption or phrase=label\."):  # whose box is it?
        records(write_rows(tmp_path / "flat.jsonl", [row]))
    objects = {"bbox": [CORNERS[0], CORNERS[1]], "category": ["dog", "cat"]}
    path = write_rows(tmp_path / "caption.jsonl", [{"image": "photos/0.png", "phrase": "x", "objects": objects}])
    with pytest.raises(ValueError, match=r"Say --columns phrase=phrase or phrase=objects\.category\."):
        records(path)
    columns = Columns({"phrase": "objects.category", "boxes": "objects.bbox"}, "xyxy")
    assert boxes_of(records(path, columns)) == [[CORNERS[0]], [CORNERS[1]]]
    row = {"image": "photos/0.png", "phrase": ["a", "b", "c"], "boxes": [CORNERS[0], CORNERS[1]]}
    path = write_rows(tmp_path / "uneven.jsonl", [row])
    with pytest.raises(ValueError, match=r"Column boxes of .* holds 2 instances for the 3 phrases"):
        records(path)
    rows = [{"image": "photos/0.png", "class": "x", **dict(zip(("x1", "y1", "x2", "y2", *"xywh"), range(8)))}]
    with pytest.raises(ValueError, match=r"Say --columns boxes=x1,y1,x2,y2 or boxes=x,y,w,h\."):
        records(write_rows(tmp_path / "fours.csv", rows))


CALLED = ["a cat", "a remote"]
BY_NAME = [dict(zip(("x1", "y1", "x2", "y2"), box)) for box in CORNERS[:2]]
# May be labels where a text is beside them, but are not taken for such by themselves.
NO_GUESS = ["at.name", "names", "class_names", "label_names", "tags", "objects", "entities", "gt_classes"]


@pytest.mark.parametrize("text", ["text", "description", "caption", "phrase", "prompt"])
@pytest.mark.parametrize(
    ("beside", "label"),
    [
        ({"boxes": CORNERS[:2], "labels": CALLED}, "labels"),
        ({"bbox": CORNERS[:2], "text_labels": CALLED}, "text_labels"),
        ({"objects": {"bbox": CORNERS[:2], "category": CALLED}}, "objects.category"),
        ({"at": [{"bbox": box, "name": name} for box, name in zip(CORNERS, CALLED)]}, "at.name"),
        ({"boxes": str(CORNERS[:2]), "labels": str(CALLED)}, "labels"),
        ({"boxes": CORNERS[:2], "categories": CALLED}, "categories"),
        ({"boxes": CORNERS[:2], "category_ids": [1, 2]}, "category_ids"),
        ({"objects": {"bbox": CORNERS[:2], "category": [1, 2]}}, "objects.category"),
        ({"boxes": [at | {"label": name} for at, name in zip(BY_NAME, CALLED)]}, "boxes.label"),
        ({"bbox": [at | {"class": name} for at, name in zip(BY_NAME, CALLED)]}, "bbox.class"),
        (
            {"objects": [{"bbox": box, "category": {"id": 1, "name": name}} for box, name in zip(CORNERS, CALLED)]},
            "objects.category.name",
        ),
        (
            {"objects": [{"box": {"position": at}, "label": name} for at, name in zip(BY_NAME, CALLED)]},
            "objects.label",
        ),
        ({"objects": {"boxes": CORNERS[:2]}, "labels": CALLED}, "labels"),
        *(({"boxes": CORNERS[:2], name: CALLED}, name) for name in NO_GUESS[1:]),
        ({"boxes": BY_NAME, "names": CALLED}, "names"),
    ],
)
def test_boxes_with_a_label_each_are_not_silently_of_a_text_of_the_whole_row(tmp_path, beside, label, text):
    photos(tmp_path)
    path = write_rows(tmp_path / "mine.jsonl", [{"image": "photos/0.png", text: "a cat. a remote.", **beside}])
    is_number = "[1, 2]" in str(beside)
    read = {name: records(path, Columns({"phrase": name}, "xyxy")) for name in (text, label)[: 1 if is_number else 2]}
    assert boxes_of(read[text]) == [CORNERS[:2]]
    if not is_number:
        assert boxes_of(read[label]) == [[box] for box in CORNERS[:2]]
        assert [record["phrase"] for record in read[label]] == CALLED
    if text == "prompt" and not is_number and label not in NO_GUESS:
        assert [(each["phrase"], each["boxes"]) for each in records(path)] == [
            (each["phrase"], each["boxes"]) for each in read[label]
        ]
    elif (text, label) == ("phrase", "categories"):  # kinds of the phrase, by our names
        assert records(path) == read[text]
    else:
        told = f"{label} has numbers: for phrases, write" if is_number else ""
        doubt = "no column phrase" if text == "prompt" else rf"Say --columns phrase={text} or phrase={label}\."
        with pytest.raises(ValueError, match=rf"{doubt}.*{told}"):
            records(path)


@pytest.mark.parametrize(
    "beside",
    [
        {"text": "dogs", "boxes": CORNERS[:2], "area": [1, 2]},
        {"text": "a dog", "bbox": CORNERS[0], "label": "animal", "labels": ["animal", "pet"]},
        {"phrases": ["a dog", "a cat"], "boxes": CORNERS[:2], "labels": ["animal", "animal"]},
        {"caption": "dogs", "objects": {"bbox": CORNERS[:2], "id": ["a", "b"], "area": [1, 2]}},
        {"caption": "dogs", "boxes": [at | {"id": "a", "area": 1} for at in BY_NAME], "about": {"label": "animal"}},
        {"objects": [{"text": "a dog", "box": at, "label": "animal"} for at in BY_NAME], "labels": ["animal"]},
    ],
)
def test_labels_that_are_of_no_box_are_no_doubt(tmp_path, beside):
    photos(tmp_path)
    path = write_rows(tmp_path / "mine.jsonl", [{"image": "photos/0.png", **beside}])
    assert "dog" in records(path, Columns(box_format="xyxy"))[0]["phrase"]


def test_a_label_of_the_whole_row_is_in_doubt_where_boxes_have_names_of_their_own(tmp_path):
    photos(tmp_path)
    objects = [{"bbox": box, "name": name} for box, name in zip(CORNERS, CALLED)]
    for row, other in ({"objects": objects}, "objects.name"), ({"boxes": CORNERS[:2], "names": CALLED}, "names"):
        path = write_rows(tmp_path / "mine.jsonl", [{"image": "photos/0.png", "label": "indoors", **row}])
        with pytest.raises(ValueError, match=rf"Say --columns phrase=label or phrase={other}\."):
            records(path)


def test_polygons_with_a_label_each_are_in_doubt_too(tmp_path):
    photos(tmp_path)
    objects = [{"outline": [[10, 10, 60, 10, 60, 60]], "kind": name} for name in CALLED]
    path = write_rows(tmp_path / "mine.jsonl", [{"image": "photos/0.png", "caption": "a scene", "objects": objects}])
    with pytest.raises(ValueError, match=r"Say --columns phrase=caption or phrase=objects\.kind\."):
        records(path, Columns({"polygons": "objects.outline"}))


def test_names_in_categories_are_categories(tmp_path):
    """In words; and of one image they are one phrase, also of two rows."""
    photos(tmp_path)
    rows = [{"image": "photos/0.png", "bbox": box, "category": {"id": 3, "name": "traffic_light"}} for box in CORNERS]
    (found,) = records(write_rows(tmp_path / "mine.jsonl", rows))
    assert (found["phrase"], found["boxes"]) == ("traffic light", CORNERS)


def test_texts_that_are_boxes(tmp_path):
    photos(tmp_path)
    texts = "[1, 2, 3, 4]", "(1, 2, 3, 4)", "1,2,3,4", "[[1,2,3,4],[5,6,7,8]]", "", "[]"
    rows = [{"Image": "photos/0.png", "Phrase": "x", "bbox": text} for text in texts]
    found = records(write_rows(tmp_path / "texts.csv", rows), Columns(box_format="xyxy"))
    assert boxes_of(found) == [[[1, 2, 3, 4]]] * 3 + [[[1, 2, 3, 4], [5, 6, 7, 8]], [], []]


# Each is CORNERS of four rows.
NUMBERS_AS_TEXTS = [
    ("bbox", [list(map(str, box)) for box in CORNERS]),
    ("boxes", [list(map(str, box)) if n else box for n, box in enumerate(CORNERS)]),
    ("bbox", [[box] if n % 2 else box for n, box in enumerate(CORNERS)]),
    ("boxes", [box if n % 2 else [box] for n, box in enumerate(CORNERS)]),
    ("bbox", [json.dumps(box) if n % 2 else f" {tuple(box)}" for n, box in enumerate(CORNERS)]),
    ("at", [{**dict(zip(("x1", "y1", "x2"), map(str, box))), "y2": box[3]} for box in CORNERS]),
]


@pytest.mark.parametrize(("name", "boxes"), NUMBERS_AS_TEXTS, ids=str)
@pytest.mark.parametrize("streaming", [False, True])
def test_numbers_as_texts_and_boxes_beside_lists_of_them(tmp_path, name, boxes, streaming):
    photos(tmp_path)
    rows = [{"image": f"photos/{n}.png", "phrase": f"dog {n}", name: box} for n, box in enumerate(boxes)]
    assert boxes_of(records(write_rows(tmp_path / "mine.jsonl", rows), None, streaming)) == [[box] for box in CORNERS]


PHRASES = [["a cat", "it's a dog"], ["a cat"], None, ["the [red] one", "a, b"]]
OF_PHRASES_ = [[CORNERS[:1], CORNERS[1:3]], [CORNERS[:2]], None, [[], CORNERS[3:]]]


@pytest.mark.parametrize("write", [str, json.dumps])
@pytest.mark.parametrize(
    "more",
    [
        {"boxes": OF_PHRASES_},
        {"bbox": [[CORNERS[0], CORNERS[1]], [CORNERS[0]], None, CORNERS[2:]]},  # one each
        {"bbox": CORNERS},  # one of all
        {"boxes": OF_PHRASES_, "absent": [[False, False], [False], None, [True, False]]},
        {"polygons": [[[[[1, 1, 9, 1, 9, 9.5]]], []], [[]], None, [[], []]]},
        {"masks": [[["photos/0.png"], []], [[]], None, [[], ["photos/1.png"]]]},
    ],
    ids=str,
)
def test_lists_are_the_same_from_csv_as_from_json_lines(tmp_path, write, more):
    """As pandas writes them, which has Python's texts, and as JSON."""
    photos(tmp_path)
    rows = [{"image": f"photos/{n}.png", "phrases": PHRASES[n], **{name: more[name][n] for name in more}}
            for n in range(4)]  # fmt: skip
    columns = {"box_format": "xyxy"}
    expected = records(write_rows(tmp_path / "mine.jsonl", rows), Columns(**columns))
    texts = [{**{name: write(value) if value else "" for name, value in row.items()}, "image": row["image"]}
             for row in rows]  # fmt: skip
    assert records(write_rows(tmp_path / "mine.csv", texts), Columns(**columns)) == expected
    assert [record["phrase"] for record in expected] == [*PHRASES[0], *PHRASES[1], None, *PHRASES[3]]


def test_phrases_in_brackets_are_no_lists(tmp_path):
    photos(tmp_path)
    phrases = ["[red] car", "[]", '["sic"] he said', "[a, b]"]
    rows = [{"image": f"photos/{n}.png", "phrase": phrases[n], "bbox": str(CORNERS[n])} for n in range(4)]
    assert [record["phrase"] for record in records(write_rows(tmp_path / "mine.csv", rows))] == phrases


@pytest.mark.parametrize("kind", [".csv", ".jsonl"])
def test_numbers_where_texts_are_wanted(tmp_path, kind):
    """As they are written, where that is known: zeros in front are."""
    for name in ("0", "1", "01", "2"):
        picture(WIDTH, HEIGHT).save(tmp_path / name, "PNG")
    names = ["0", "1", "01", "2"] if kind == ".csv" else [0, 1, 1, 2]
    rows = [{"image": names[n], "phrase": names[n], "image_id": n or "", "bbox": CORNERS[n]} for n in range(4)]
    if kind == ".jsonl":
        rows = [{**row, "image_id": row["image_id"] if n % 2 else str(n)} for n, row in enumerate(rows)]
    found = records(write_rows(tmp_path / f"mine{kind}", rows))
    assert [record["phrase"] for record in found] == list(map(str, names))
    assert [Path(record["image"]["path"]) for record in found] == [tmp_path / str(name) for name in names]
    assert [record["image_id"] for record in found] == [None if kind == ".csv" else "0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("bbox", ["[1, 2, 3"] * 2, r"Column bbox of .*must hold four numbers a box, .* it has '\[1, 2, 3'\. Write"),
        ("bbox", ['["a", 2, 3, 4]'] * 2, r"Column bbox .*; it has '\[\"a\", 2, 3, 4\]'\. Write .*--columns boxes=…"),
        ("bbox", [["10,5", "10,5", "60,5", "60,5"]] * 2, r"Column bbox .* such as \[10\.5, .*it has \['10,5', '10,5'"),
        ("box", [{**dict.fromkeys(("x1", "y1", "x2"), "1"), "y2": "9,5"}] * 2, r"Column box\.x1,.* it has '9,5'\."),
        ("polygons", ["[[1, 'a']]"] * 2, r"Column polygons .*each a list of parts \[x, y, x, y, …\] or .*; it has "),
        (
            "phrase",
            ["['a cat' 'a dog']"] * 2,
            r"Column phrase .* such as \[\"a cat\", \"a dog\"\]; it has .*'a cat' 'a dog'",
        ),
        ("phrase", ["['a cat', 'a dog']", "a cow"], r"Column phrase .*in every row a list of texts, .*it has 'a cow'"),
        ("phrase", ["['a cat', {'b': 7}]", "['a']"], r"Column phrase .* must hold a text, or in every row a list"),
        ("phrase", [{"a": "cat"}] * 2, r"Column phrase .* must hold a text, .*it has \{'a': 'cat'\}"),
        ("phrase", [{"a": "cat"}, "a cat"], r"Column phrase .* must hold a text, .*it has"),
        ("absent", ["no"] * 2, r"Column absent .* must hold true or false; it has 'no'\. .*rename or drop it"),
        ("scribble_radius", ["5 px"] * 2, r"Column scribble_radius .* must hold a number; it has '5 px'"),
    ],
)
def test_what_cannot_be_read_is_shown(tmp_path, column, values, message):
    photos(tmp_path)
    boxes = {} if column in ("bbox", "box") else {"boxes": [CORNERS[0]]}
    rows = [{"image": f"photos/{n}.png", "phrase": "x", **boxes, column: value} for n, value in enumerate(values)]
    with pytest.raises(ValueError, match=message):
        records(write_rows(tmp_path / "mine.jsonl", rows), Columns(box_format="xyxy"))


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_a_box_and_whole_numbers_in_the_first(tmp_path, streaming):
    photos(tmp_path)
    given = [None, [], [10, 10, 60, 60], [10.5, 10, 60, 60]]
    rows = [{"image": f"photos/{n}.png", "phrase": "a dog", "bbox": box} for n, box in enumerate(given)]
    found = records(write_rows(tmp_path / "mine.jsonl", rows), Columns(box_format="xyxy"), streaming)
    assert boxes_of(found) == [[], [], [given[2]], [given[3]]]


def test_masks_and_polygons_of_objects(tmp_path):
    image = {"bytes": png(), "path": None}
    outlines = [[[0.0, 0, 9, 0, 9, 9]], [[1.0, 1, 9, 1, 9, 9]], [[2.0] * 6]]
    objects = {"category": ["dog", "cat", "dog"], "outline": outlines}
    kinds = {"category": List(TEXT), "outline": List(List(List(NUMBER)))}
    path = write_hub(tmp_path, [{"image": image, "objects": objects}], image=Image(), objects=kinds)
    columns = Columns({"phrase": "objects.category", "polygons": "objects.outline"})
    first, second = records(path, columns)
    assert (first["phrase"], second["phrase"]) == ("dog", "cat")
    assert first["polygons"] == [outlines[0], outlines[2]]
    assert second["polygons"] == [outlines[1]]
    flat = {"category": ["dog", "Cat", "cat "], "outline": [outline[0] for outline in outlines]}  # of one part each
    path = write_hub(
        tmp_path / "flat",
        [{"image": image, "objects": flat}],
        image=Image(),
        objects={"category": List(TEXT), "outline": List(List(NUMBER))},
    )
    first, second = records(path, columns)
    assert (first["phrase"], second["phrase"]) == ("dog", "Cat")
    assert first["polygons"] == [outlines[0]] and second["polygons"] == [outlines[1], outlines[2]]
    rows = [{"image": image, "phrase": ["dog", "cat"], "polygons": flat["outline"]}]
    path = write_hub(tmp_path / "listed", rows, image=Image(), phrase=List(TEXT), polygons=List(List(NUMBER)))
    with pytest.raises(ValueError, match="holds 3 instances for the 2 phrases"):
        records(path)
    path = write_hub(
        tmp_path / "one", [{"image": image, "text": "dog", "mask": image}], image=Image(), text=TEXT, mask=Image()
    )
    (record,) = records(path, Columns({"image": "image", "masks": "mask"}))
    assert record["masks"] == [image]


@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_polygons_of_points(tmp_path, kind, depth):
    """As LabelMe and shapely have them, in however many lists."""
    photos(tmp_path)
    polygon = [[10, 10], [60, 10.5], [60, 60]]
    for _ in range(depth - 2):
        polygon = [polygon]
    rows = [{"image": f"photos/{n}.png", "phrase": "a dog", "outline": polygon} for n in range(2)]
    found = records(write_rows(tmp_path / f"mine{kind}", rows), Columns({"polygons": "outline"}))
    regions = [Region.from_record(record, HEIGHT, WIDTH) for record in found]
    assert [region.boxes.tolist() for region in regions] == [[[10, 10, 60, 60]]] * 2
    assert regions[0].polygons[0][0].tolist() == [[10, 10], [60, 10.5], [60, 60]]
    rows = [{**row, "outline": [[[[1, 2, 3, 4, 5, 6]]]]} for row in rows]
    with pytest.raises(ValueError, match=r"Column outline .* must hold a list of objects, .* or of points"):
        records(write_rows(tmp_path / f"deep{kind}", rows), Columns({"polygons": "outline"}))


@pytest.mark.parametrize(("place", "streaming"), [("root", False), ("split", False), ("root", True), ("split", True)])
def test_an_imagefolder_with_metadata(tmp_path, place, streaming):
    for split in ("train", "validation"):
        photos(tmp_path / split)
        lines = [{"file_name": f"{'' if place == 'split' else split + '/'}photos/{n}.png", "text": f"{split} {n}",
                  "bbox": box} for n, box in enumerate(CORNERS)]  # fmt: skip
        with ((tmp_path / split if place == "split" else tmp_path) / "metadata.jsonl").open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    found = records(str(tmp_path), Columns(), streaming)
    assert [record["phrase"] for record in found] == [f"train {n}" for n in range(4)]
    assert boxes_of(found) == [[box] for box in CORNERS]
    assert [Path(record["image"]["path"]) for record in found] == [tmp_path / f"train/photos/{n}.png" for n in range(4)]
    assert {*split_names(str(tmp_path), None)} == {"train", "validation"}
    (row, *_) = open_split(str(tmp_path), None, "validation", columns=Columns(box_format="xyxy"))
    assert row["phrase"] == "validation 0"
    with pytest.raises(ValueError, match=r"Split test of .* cannot be had"):
        open_split(str(tmp_path), None, "test")
    if place == "root":
        (tmp_path / "test").mkdir()
        with pytest.raises(ValueError, match=r"no file_name in its table begins with test/"):
            open_split(str(tmp_path), None, "test")


@pytest.mark.parametrize("feature", [Image(), {"bytes": Value("binary"), "path": TEXT}, Value("binary")], ids=str)
def test_rows_of_a_box_each_whose_images_are_in_the_file(tmp_path, monkeypatch, feature):
    """Two images of as many bytes; a row without one stays alone. No image is written again."""
    monkeypatch.setattr(datasets.Dataset, "flatten_indices", Mock(side_effect=AssertionError))
    images = [io.BytesIO() for _ in range(2)]
    for image, color in zip(images, ("red", "blue")):
        PilImage.new("RGB", (WIDTH, HEIGHT), color).save(image, "BMP")
    images = [image.getvalue() for image in images]
    assert len(images[0]) == len(images[1])
    given = [images[0], images[1], images[0], images[1], None, None]
    stored = [image if isinstance(feature, Value) else image and {"bytes": image, "path": f"{n}.bmp"}
              for n, image in enumerate(given)]  # fmt: skip
    labels, boxes = ["dog"] * 3 + ["cat"] + ["dog"] * 2, [*CORNERS, *CORNERS[:2]]
    rows = [dict(zip(("image", "label", "bbox"), row)) for row in zip(stored, labels, boxes)]
    path = write_hub(tmp_path, rows, image=feature, label=TEXT, bbox=List(NUMBER))
    found = records(path, Columns(box_format="xyxy"))
    assert [(record["phrase"], record["image"] and record["image"]["bytes"]) for record in found] == [
        ("dog", images[0]), ("dog", images[1]), ("cat", images[1]), ("dog", None), ("dog", None),
    ]  # fmt: skip
    expected = [[CORNERS[0], CORNERS[2]], [CORNERS[1]], [CORNERS[3]], [CORNERS[0]], [CORNERS[1]]]
    assert boxes_of(found) == expected


def test_rows_of_a_box_each_are_one_of_an_image_and_a_category(tmp_path, caplog):
    """As tables of detectors are written; expressions stay apart."""
    photos(tmp_path)
    rows = [{"image_path": f"photos/{n // 3}.png", "class": name, **dict(zip(("xmin", "ymin", "xmax", "ymax"), box))}
            for n, (name, box) in enumerate(zip(["red_dog", "cat", "Red dog", "red_dog"], CORNERS))]  # fmt: skip
    path = write_rows(tmp_path / "mine.csv", rows)
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        found = records(path)
    assert "4 boxes in 3 rows, one for each image and class" in caplog.text
    assert [(record["phrase"], record["image"]["path"][-5:]) for record in found] == [
        ("red dog", "0.png"), ("cat", "0.png"), ("red dog", "1.png"),
    ]  # fmt: skip
    assert boxes_of(found) == [[CORNERS[0], CORNERS[2]], [CORNERS[1]], [CORNERS[3]]]
    rows = [{"expression" if name == "class" else name: value for name, value in row.items()} for row in rows]
    assert len(records(write_rows(tmp_path / "texts.csv", rows))) == 4
    with caplog.at_level("WARNING"):
        path = write_rows(tmp_path / "mine.jsonl", [{**row, "class": "dog"} for row in rows])
        assert len(records(path, Columns({"phrase": "class"}), True)) == 4
    assert "streamed rows stay apart" in caplog.text


@pytest.mark.parametrize("kind", ["polygons", "masks", "boxes"])
@pytest.mark.parametrize("feature", [TEXT, Image()], ids=["path", "bytes"])
def test_rows_of_an_instance_each_are_one_of_an_image_and_a_category(tmp_path, kind, feature):
    """Of what one row has and another lacks, None: the others are not all that the phrase means."""
    photos(tmp_path)
    (tmp_path / "m.png").write_bytes(png())
    mask = "m.png" if feature == TEXT else {"bytes": png(), "path": "m.png"}
    outlines = [[[x1, y1, x2, y1, x2, y2]] for x1, y1, x2, y2 in map(lambda box: map(float, box), CORNERS)]
    of_kind = {"polygons": [*outlines[:3], None], "masks": [mask] * 3 + [None], "boxes": [None] * 4}[kind]
    rows = [{"image": f"photos/{n // 2}.png", "label": "a_dog", "bbox": box, "region": of_kind[n]}
            for n, box in enumerate(CORNERS)]  # fmt: skip
    kinds = {"polygons": List(List(NUMBER)), "masks": feature, "boxes": NUMBER}
    path = write_hub(tmp_path / "hub", rows, image=TEXT, label=TEXT, bbox=List(NUMBER), region=kinds[kind])
    (tmp_path / "hub" / "photos").symlink_to(tmp_path / "photos")
    (tmp_path / "hub" / "m.png").symlink_to(tmp_path / "m.png")
    names = {} if kind == "boxes" else {kind: "region"}
    found = records(path, Columns({"boxes": "bbox", **names}, "xyxy"))
    assert [record["phrase"] for record in found] == ["a dog"] * 2
    assert [record["boxes"] for record in found] == [CORNERS[:2], CORNERS[2:]]
    if kind == "polygons":
        assert [record[kind] for record in found] == [outlines[:2], [outlines[2], None]]
    if kind == "masks":
        masks = [each for record in found for each in record[kind]]
        assert masks[3] is None and all(open_image(each).size == (WIDTH, HEIGHT) for each in masks[:3])


@pytest.mark.parametrize(
    ("name", "phrase", "count"), [("LabelName", "red dog", 2), ("name", "red_dog", 2), ("caption", "red_dog", 4)]
)
def test_phrases_that_are_told_are_put_together_but_for_expressions(tmp_path, name, phrase, count):
    photos(tmp_path)
    rows = [{"image": f"photos/{n // 2}.png", name: "red_dog", "boxes": [box]} for n, box in enumerate(CORNERS)]
    found = records(write_rows(tmp_path / "mine.jsonl", rows), Columns({"phrase": name}))
    assert [record["phrase"] for record in found] == [phrase] * count
    assert [box for boxes in boxes_of(found) for box in boxes] == CORNERS


@pytest.mark.parametrize(
    "spelled",
    [
        ("a.png", "./a.png"),
        ("x/a.png", "x\\a.png"),
        ("my a.png", "my%20a.png"),
        ("café.png", "cafe\u0301.png"),
        ("a.png", "{folder}/a.png"),
        ("{folder}/a.png", "{folder}/./a.png"),
        ("{folder}/my a.png", "{folder}/my%20a.png"),
        ("a.png", "{link}/a.png"),
        ("gone.png", "./gone.png"),
    ],
)
def test_an_image_is_one_however_its_path_is_spelled(tmp_path, spelled):
    folder, link = tmp_path / "mine", tmp_path / "link"
    (folder / "x").mkdir(parents=True)
    link.symlink_to(folder)
    image = spelled[0].format(folder=folder)
    for name in {image, "b.png"} - {"gone.png"}:
        picture(WIDTH, HEIGHT).save(folder / name)
    images = [*(each.format(folder=folder, link=link) for each in spelled), "b.png"]
    rows = [{"image": name, "label": "dog", "bbox": str(box)} for name, box in zip(images, CORNERS)]
    found = records(write_rows(folder / "mine.csv", rows), Columns(box_format="xyxy"))
    assert boxes_of(found) == [CORNERS[:2], CORNERS[2:3]]
    if "link" not in spelled[1]:  # whose rows are not moved
        rows = [{"image": name, "text": "a dog", "bbox": str(box)} for name, box in zip(images, CORNERS)]
        found = records(write_rows(folder / "texts.csv", rows), Columns(box_format="xyxy"))
        assert [record["image"]["path"] for record in found] == [str(folder / name) for name in (image, image, "b.png")]


def test_a_path_that_can_be_of_no_file_is_of_an_image_of_its_own(tmp_path):
    photos(tmp_path)
    names = "photos/0.png", "\0", "p" * 5000, "photos/0.png"
    rows = [{"image": name, "label": "dog", "bbox": box} for name, box in zip(names, CORNERS)]
    found = records(write_rows(tmp_path / "mine.jsonl", rows), Columns(box_format="xyxy"))
    assert boxes_of(found) == [[CORNERS[0], CORNERS[3]], [CORNERS[1]], [CORNERS[2]]]


def test_phrases_that_are_read_the_same_are_one(tmp_path):
    """Of rows of an image and a category, and in a row with a list of them; as the first is spelled."""
    photos(tmp_path)
    labels = ["T-shirt", "t shirt", "t_Shirt", "shirt"]
    rows = [{"image": "photos/0.png", "label": label, "bbox": box} for label, box in zip(labels, CORNERS)]
    listed = [{"image": "photos/0.png", "phrase": labels, "boxes": [[box] for box in CORNERS]}]
    for found in records(write_rows(tmp_path / "rows.jsonl", rows)), records(write_rows(tmp_path / "a.jsonl", listed)):
        assert [record["phrase"] for record in found] == ["T-shirt", "shirt"]
        assert boxes_of(found) == [CORNERS[:3], CORNERS[3:]]


@pytest.mark.parametrize("kind", [".csv", ".jsonl"])
def test_our_names_in_other_cases(tmp_path, kind):
    photos(tmp_path)
    outline = [[[1, 1, 9, 1, 9, 9]]]
    rows = [{"Image_ID": "a", "Image": "photos/0.png", "Phrase": f"dog {n}", " absent": absent, "POLYGONS ": polygons}
            for n, (absent, polygons) in enumerate([(False, outline), (True, None)])]  # fmt: skip
    path = write_rows(tmp_path / f"mine{kind}", rows)
    found = records(path)
    assert [(record["image_id"], record["phrase"], record["absent"]) for record in found] == [
        ("a", "dog 0", False), ("a", "dog 1", True),
    ]  # fmt: skip
    assert found[0]["polygons"] == outline
    assert "absent" in records(write_rows(tmp_path / "both.jsonl", [{**rows[0], "absent": True}]))[0]
    with pytest.raises(ValueError, match=r"in doubt what absent is\. Say --columns absent= absent or absent=Absent\."):
        records(write_rows(tmp_path / "two.jsonl", [{**rows[0], "Absent": True}]))


@pytest.mark.parametrize("kind", [".csv", ".json", ".parquet", ".label.parquet"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_column_says_the_splits_of_a_file_or_of_a_folder_that_is_one(tmp_path, kind, is_folder, caplog):
    """What is no split's usual name is a split of its own: no row of it is in another's."""
    logging.getLogger("transformers").propagate = True
    photos(tmp_path)
    splits = ["train", "test", "Val", "train", "train", "", "eval", "Rest-val"]
    rows = [{"image": f"photos/{n % 4}.png", "phrase": f"dog {n}", "boxes": str(CORNERS[:1]), "split": split}
            for n, split in enumerate(splits)]  # fmt: skip
    if is_folder:
        (tmp_path / "tables").mkdir()
        rows = [{**row, "image": f"../{row['image']}"} for row in rows]
    file = tmp_path / (f"tables/mine{kind}" if is_folder else f"mine{kind}")
    path = str(file.parent if is_folder else file)
    write_rows(file, rows)
    if "label" in kind:
        labels = ClassLabel(names=["other", "Val", "test", "train", "", "eval", "Rest-val"])
        datasets.Dataset.from_list(rows).cast_column("split", labels).to_parquet(file)
    assert split_names(path, None) == ["train", "test", "validation", "eval", "Rest_val"]
    for split, expected in {
        "train": [0, 3, 4], "validation": [2], "test": [1], "train[1:]": [3, 4], "test+train[:1]": [1, 0],
        "eval": [6], "Rest_val": [7],
    }.items():  # fmt: skip
        assert open_split(path, None, split)["phrase"][:] == [f"dog {n}" for n in expected]
    if kind != ".csv":
        assert [row["phrase"] for row in open_split(path, None, "train", True)] == ["dog 0", "dog 3", "dog 4"]
    assert len({row["image"]["path"] for row in open_split(path, None, "train")}) == 2
    assert (
        "of split test, of train, test, validation, eval, Rest_val. 1 rows that name none are left out" in caplog.text
    )
    with pytest.raises(ValueError, match=r"its column split has only train, test, validation, .*, not testA"):
        open_split(path, None, "testA")
    for others, said in ((["train"] * 8, ""), (["b", "a"] * 4, "whatever its column split says (a, b)")):
        caplog.clear()  # a file of one, and no splits at all
        write_rows(file, [{**row, "split": other} for row, other in zip(rows, others)])
        assert split_names(path, None) == (["train"] if is_folder else [])
        assert len(open_split(path, None, "train")) == 8
        assert said in caplog.text and ("whatever" in caplog.text) == bool(said)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_split_without_boxes_among_some_with_them(tmp_path, streaming):
    photos(tmp_path)
    rows = [
        {"image": f"photos/{n}.png", "phrase": f"dog {n}", "boxes": [box] if n % 2 else None, "split": split}
        for n, (box, split) in enumerate(zip(CORNERS, ["test", "train", "train", "test"]))
    ]
    found = records(write_rows(tmp_path / "mine.jsonl", rows), streaming=streaming)
    assert boxes_of(found) == [[CORNERS[1]], []]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_says_the_splits_of_an_imagefolder(tmp_path, streaming):
    photos(tmp_path)
    rows = [{"file_name": f"{n}.png", "phrase": f"dog {n}", **dict(zip(("x1", "y1", "x2", "y2"), box)), "split": split}
            for n, (box, split) in enumerate(zip(CORNERS, ["train", "test", "train", "unused"]))]  # fmt: skip
    write_rows(tmp_path / "photos/metadata.csv", rows)
    path = str(tmp_path / "photos")
    assert split_names(path, None) == ["train", "test", "unused"]
    for split, expected in {"train": [0, 2], "test": [1], "unused": [3]}.items():
        found = list(open_split(path, None, split, streaming, needs_regions=True))
        assert [row["phrase"] for row in found] == [f"dog {n}" for n in expected]
        assert boxes_of(found) == [[CORNERS[n]] for n in expected]
        assert [Path(row["image"]["path"]).name for row in found] == [f"{n}.png" for n in expected]


NAMED = [dict(zip(("x1", "y1", "x2", "y2"), box)) for box in CORNERS]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"phrase": "dogs", "bbox": NAMED}, [CORNERS]),
        ({"phrase": "dogs", "boxes": NAMED}, [CORNERS]),
        ({"phrase": "dogs", **{name: [box[name] for box in NAMED] for name in NAMED[0]}}, [CORNERS]),
        ({"phrases": ["a dog", "a cat"], "boxes": [NAMED[:2], NAMED[2:]]}, [CORNERS[:2], CORNERS[2:]]),
        ({"phrases": ["a dog", "a cat"], "boxes": NAMED[:2]}, [[CORNERS[0]], [CORNERS[1]]]),
        (
            {"regions": [{"phrase": "a dog", "boxes": NAMED[:2]}, {"phrase": "a cat", "boxes": NAMED[2:]}]},
            [CORNERS[:2], CORNERS[2:]],
        ),
    ],
)
def test_lists_of_boxes_of_four_numbers_by_name(tmp_path, row, expected, streaming):
    photos(tmp_path)
    path = write_rows(tmp_path / "mine.jsonl", [{"image": "photos/0.png", **row}])
    assert boxes_of(records(path, streaming=streaming)) == expected
    uneven = {"image": "photos/0.png", "phrase": "dogs", "x1": [1], "y1": [2], "x2": [50, 60], "y2": [60]}
    with pytest.raises(ValueError, match=r"Column x1,y1,x2,y2 of .* must hold four numbers .*50\.0, 60\.0"):
        records(write_rows(tmp_path / "uneven.jsonl", [uneven]), streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("lost", [None, []])
def test_a_phrase_without_a_box_among_some_with_one(tmp_path, lost, streaming):
    photos(tmp_path)
    dog, whale = {"phrase": "a dog", "bbox": CORNERS[1]}, {"phrase": "a whale", "bbox": lost}
    listed = {"phrases": ["a dog", "a whale"], "bboxes": [CORNERS[1], lost], "absent": [False, True]}
    for rows in ([listed, {**listed, "bboxes": lost}], [{"objects": [dog, whale]}, {"objects": lost}]):
        found = records(
            write_rows(tmp_path / "mine.jsonl", [{"image": "photos/0.png", **row} for row in rows]),
            Columns(box_format="xyxy"),
            streaming=streaming,
        )
        assert boxes_of(found)[:2] == [[CORNERS[1]], []]
        assert [record["phrase"] for record in found] == ["a dog", "a whale"] * (2 if "phrases" in rows[0] else 1)


# Cards ----------------------------------------------------------------------------------------------------------------


def test_a_card_says_it_once_and_options_win(tmp_path):
    photos(tmp_path)
    rows = [{"image": f"photos/{n}.png", "a": "dog", "b": "cat", "at": as_format(CORNERS[0], "xywh")} for n in range(4)]
    path = write_rows(tmp_path / "mine.jsonl", rows)
    (tmp_path / "README.md").write_text(
        "---\nlicense: mit\nalbef_amc:\n  columns:\n    phrase: a\n    boxes: at\n  box_format: xywh\n---\n# Mine\n"
    )
    columns = Columns()
    assert {record["phrase"] for record in records(path, columns)} == {"dog"} and columns.box_format == "xywh"
    columns = Columns({"phrase": "b"}, "cxcywh")
    assert {record["phrase"] for record in records(path, columns)} == {"cat"} and columns.box_format == "cxcywh"
    for wrong, message in (
        ("[a]", "takes columns"),
        ("{column: a}", "takes columns"),
        ("{box_format: x}", "one of xyxy"),
    ):
        (tmp_path / "README.md").write_text(f"---\nalbef_amc: {wrong}\n---\n")
        with pytest.raises(ValueError, match=message):
            records(path)
    (tmp_path / "README.md").write_text("---\nalbef_amc: [\n---\n")
    with pytest.raises(ValueError, match=r"README\.md: its YAML cannot be read"):
        records(path)
    (tmp_path / "README.md").write_text("# Mine\n\n---\nalbef_amc: [\n---\n")  # no card
    assert records(path, Columns({"phrase": "a", "boxes": "at"}, "xywh"))


# Units ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("box_format", BOX_FORMATS)
@pytest.mark.parametrize("streaming", [False, True])
def test_the_first_boxes_decide_what_all_are(tmp_path, box_format, streaming):
    """Of each format some of these boxes are impossible as any other."""
    path = photos(tmp_path)
    rows = [{"image": f"photos/{n}.png", "phrase": "a dog", "bbox": as_format(box, box_format)}
            for n, box in enumerate(CORNERS)]  # fmt: skip
    columns = Columns()
    found = records(write_rows(path / "mine.jsonl", rows), columns, streaming)
    assert columns.box_format == box_format
    assert boxes_of(found) == [np.round([as_format(box, box_format)], 4).tolist() for box in CORNERS]


@pytest.mark.parametrize("box_format", ["xywh", "cxcywh", "xywh_normalized", "cxcywh_normalized"])
def test_x_y_width_height_is_a_corner_unless_only_a_centre_fits(tmp_path, box_format):
    photos(tmp_path)
    rows = [{"image": f"photos/{n}.png", "phrase": "a dog", **dict(zip(("x", "y", "width", "height"), box))}
            for n, box in enumerate(as_format(box, box_format) for box in CORNERS)]  # fmt: skip
    columns = Columns()
    records(write_rows(tmp_path / "mine.csv", rows), columns)
    assert columns.box_format == box_format


def test_proposals_that_are_not_as_the_boxes_are_guessed_to_be(tmp_path):
    """Proposals are read in the boxes' format: corners beside boxes that only fit as sizes are an error."""
    photos(tmp_path)
    rows = [{"image": f"photos/{n}.png", "phrase": "a dog", "bbox": as_format(box, "xywh"), "proposals": [box]}
            for n, box in enumerate(CORNERS)]  # fmt: skip
    path = write_rows(tmp_path / "mine.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"boxes are xywh, and proposals, which must be so, too, do not fit their imag"
    ):
        records(path)
    path = write_rows(tmp_path / "alike.jsonl", [{**row, "proposals": [row["bbox"]]} for row in rows])
    assert boxes_of(records(path)) == [[row["bbox"]] for row in rows]


def test_splits_with_boxes_of_other_formats(tmp_path):
    """What was guessed of one is not taken for the other; in doubt by itself, the other is as the one."""
    photos(tmp_path)
    names = {
        "train": ("x1", "y1", "x2", "y2"),
        "validation": ("x", "y", "width", "height"),
        "test": ("x1", "y1", "x2", "y2"),
    }
    for split, four in names.items():
        boxes = CORNERS if split != "validation" else [as_format(box, "xywh") for box in CORNERS]
        rows = [{"image": f"photos/{n}.png", "phrase": "a dog", **dict(zip(four, box))} for n, box in enumerate(boxes)]
        write_rows(tmp_path / f"{split}.csv", rows)
    columns = Columns()
    for split in ("train", "test"):
        open_split(str(tmp_path), None, split, columns=columns, needs_regions=True)
        assert columns.box_format == "xyxy"
    with pytest.raises(
        ValueError, match=r"boxes \(x,y,width,height\) are xywh, and those of a split before \(x1,y1,x2,y2"
    ):
        open_split(str(tmp_path), None, "validation", columns=columns, needs_regions=True)
    columns = Columns(box_format="xyxy")
    open_split(str(tmp_path), None, "validation", columns=columns, needs_regions=True)


def test_splits_whose_column_of_boxes_has_other_formats(tmp_path):
    photos(tmp_path)
    for split, box_format in {"train": "xyxy", "validation": "xywh"}.items():
        rows = [{"image": f"photos/{n}.png", "phrase": "a dog", "bbox": as_format(box, box_format)}
                for n, box in enumerate(CORNERS)]  # fmt: skip
        write_rows(tmp_path / f"{split}.jsonl", rows)
    columns = Columns()
    open_split(str(tmp_path), None, "train", columns=columns, needs_regions=True)
    with pytest.raises(ValueError, match=r"boxes \(bbox\) are xywh, and those of a split before \(bbox\) xyxy"):
        open_split(str(tmp_path), None, "validation", columns=columns, needs_regions=True)


def test_a_category_one_of_whose_boxes_is_missing_cannot_be_used(tmp_path):
    photos(tmp_path)
    cells = [("0", "cat", *CORNERS[0]), ("0", "cat", *[""] * 4), ("1", "cat", *CORNERS[1]), ("2", "dog", *[""] * 4)]
    rows = [
        {"image": f"photos/{n}.png", "label": label, **dict(zip(("x1", "y1", "x2", "y2"), box))}
        for n, label, *box in cells
    ]
    found = records(write_rows(tmp_path / "mine.csv", rows))
    row = {"image": "photos/0.png", "phrase": ["cat", "cat"]}
    found += records(
        write_rows(tmp_path / "mine.jsonl", [row | {"boxes": [[CORNERS[0]], lost]} for lost in ([], None)])
    )
    collator, is_usable = GroundingCollator(tiny_processor(), strict=False, spare=found[1]), []
    for record in found:
        is_usable.append(not collator([record])["unusable"])
    assert is_usable == [False, True, True, False, False]


@pytest.mark.parametrize("streaming", [False, True])
def test_categories_of_a_row_of_several_phrases_are_of_each(tmp_path, streaming):
    photos(tmp_path)
    row = {"image": "photos/0.png", "phrase": ["a dog", "a cat"], "boxes": [[CORNERS[0]], [CORNERS[1]]]}
    path = write_rows(tmp_path / "mine.jsonl", [row | {"categories": [["dog"], ["cat"]]}])
    assert [record["categories"] for record in records(path, streaming=streaming)] == [["dog"], ["cat"]]
    path = write_rows(tmp_path / "of_all.jsonl", [row | {"categories": ["dog", "cat"]}])
    with pytest.raises(ValueError, match=r"categories.*one entry for each of the row's phrases"):
        records(path, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_path_that_is_spelled_in_two_ways_is_of_one_image(tmp_path, streaming):
    photos(tmp_path)
    rows = [{"image": f"{start}photos/0.png", "phrase": "a dog", "boxes": [CORNERS[0]]} for start in ("", "./")]
    found = records(write_rows(tmp_path / "mine.jsonl", rows), streaming=streaming)
    assert len({record["image"]["path"] for record in found}) == 1


def test_units_in_doubt(tmp_path, caplog):
    photos(tmp_path)
    row = {"image": "photos/0.png", "phrase": "a dog", "bbox": [40, 40, 60, 60]}
    path = write_rows(tmp_path / "mine.jsonl", [row])
    message = (
        r"boxes \(bbox\) may be xyxy or xywh or cxcywh, by 1 of them; the first is \[40.*Say which: --box_format "
        r"xyxy or xywh or cxcywh; or, if they are in other columns, --columns boxes=…\."
    )
    with pytest.raises(ValueError, match=message):
        records(path)
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        assert "boxes" not in open_split(path, None, "train").column_names
    assert "Boxes are left out." in caplog.text
    with pytest.raises(ValueError, match=message):
        open_split(path, None, "train", columns=Columns({"boxes": "bbox"}))
    assert boxes_of(records(path, Columns(box_format="xywh"))) == [[row["bbox"]]]
    assert boxes_of(records(path, Columns({"boxes": "bbox"}, "xyxy"))) == [[row["bbox"]]]
    path = write_rows(tmp_path / "far.jsonl", [{**row, "bbox": [400, 400, 900, 900]}])
    with pytest.raises(ValueError, match="are none of xyxy, xywh, cxcywh, xyxy_normalized"):
        records(path)
    row |= {"image": {"bytes": png(), "path": None}, "bbox": []}
    path = write_hub(tmp_path / "none", [row], image=Image(), phrase=TEXT, bbox=List(NUMBER))
    with pytest.raises(ValueError, match=r"the first rows have none\. Say --box_format"):
        records(path)
    corners = {"image": "far.png", "text": "dog", "bbox": [[10, 20], [30, 40]]}
    with pytest.raises(ValueError, match=r"Each must be four numbers, not as in \[\[10"):
        records(write_rows(tmp_path / "corners.jsonl", [corners]))
    missing = {"image": "missing.png", "text": "dog", "bbox": [12, 30, 18, 14]}
    with pytest.raises(
        ValueError, match=r"no image of the first rows with boxes can be read; of the first: there is .*missing"
    ):
        records(write_rows(tmp_path / "missing.jsonl", [missing]))


def test_other_scales_are_not_taken_for_pixels(tmp_path):
    """Of 16 boxes or more, in images that are larger, if not all are."""
    picture(640, 480).save(tmp_path / "large.png")
    picture(190, 150).save(tmp_path / "small.png")
    rows = [{"image": "large.png", "phrase": "a dog", "bbox": [n + 10, 2, 10, 90.1]} for n in range(16)]
    rows += [{"image": "small.png", "phrase": "a dog", "bbox": [10, 40, 90.1, 60]}]
    path = write_rows(tmp_path / "percent.jsonl", rows)
    with pytest.raises(ValueError, match=r"seem to be counted to 100 in .*--box_format xywh"):
        records(path, Columns({"boxes": "bbox"}))
    assert len(records(path, Columns(box_format="xywh"))) == 17
    ours = [
        {"image": row["image"], "phrase": "a dog", "boxes": [[x, y, x + width, y + height]]}
        for row in rows
        for x, y, width, height in [row["bbox"]]
    ]
    path = write_rows(tmp_path / "ours.jsonl", ours)
    with pytest.raises(ValueError, match=r"boxes \(boxes\) seem to be counted to 100 in .*--box_format xyxy"):
        records(path)
    assert len(records(path, Columns(box_format="xyxy"))) == 17
    assert len(records(write_rows(tmp_path / "fewer.jsonl", ours[2:]))) == 15
    assert len(records(write_rows(tmp_path / "few.jsonl", rows[2:]))) == 15
    picture(1600, 1200).save(tmp_path / "wide.png")
    corners = "x1", "y1", "x2", "y2"

    def wide(boxes):
        rows = [{"image": "wide.png", "phrase": f"dog {n}", **dict(zip(corners, box))} for n, box in enumerate(boxes)]
        return write_rows(tmp_path / "wide.jsonl", rows)

    boxes = [[20 + 20 * n, 250 + 10 * n, 500 + 20 * n, 500 + 20 * n] for n in range(16)]
    with pytest.raises(ValueError, match=r"seem to be counted to 1000 in images of any size"):
        records(wide(boxes))
    # In the middle; one beyond; the same of many phrases; all in a corner.
    centred = [[600 + n, 300, 1000 - n, 900] for n in range(20)]
    for each in (centred, [*boxes, [0, 0, 1010, 90]], 2 * boxes[1:], (np.array(boxes) * 0.9).tolist()):
        assert boxes_of(records(wide(each))) == [[box] for box in each]


@pytest.mark.parametrize(("kind", "streaming"), [(".jsonl", False), (".jsonl", True), (".csv", False)])
def test_phrases_without_a_target_are_absent(tmp_path, kind, streaming):
    """As gRefCOCO has it."""
    photos(tmp_path)
    names = "x1", "y1", "x2", "y2"
    rows = [
        {"image": f"photos/{n}.png", "phrase": f"dog {n}", **dict(zip(names, box or [None] * 4)), "no_target": not box}
        for n, box in enumerate([CORNERS[0], None, CORNERS[2], None])
    ]
    found = records(write_rows(tmp_path / f"mine{kind}", rows), streaming=streaming)
    assert [bool(record["absent"]) for record in found] == [False, True, False, True]
    assert boxes_of(found) == [[CORNERS[0]], [], [CORNERS[2]], []]
    rows = [row | {"absent": not row["no_target"]} for row in rows]  # by our own name before
    found = records(write_rows(tmp_path / f"both{kind}", rows), streaming=streaming)
    assert [bool(record["absent"]) for record in found] == [True, False, True, False]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_that_are_rejected_in_prodigy_are_left_out(tmp_path, caplog, streaming):
    photos(tmp_path)
    logging.getLogger("transformers").propagate = True
    sides = "x", "y", "width", "height"

    def found(*answers):
        rows = [
            {
                "image": f"photos/{n}.png",
                "width": WIDTH,
                "height": HEIGHT,
                "spans": [{"label": f"DOG {n}", **dict(zip(sides, as_format(CORNERS[n], "xywh")))}],
                "answer": answer,
            }
            for n, answer in enumerate(answers)
        ]
        return [record["phrase"] for record in records(write_rows(tmp_path / "mine.jsonl", rows), None, streaming)]

    with caplog.at_level("WARNING"):
        assert found("accept", "reject", None, "ignore") == ["DOG 0", "DOG 2"]
    count = "rows" if streaming else "2 of 4 rows"
    assert f"{count} are left out, of which the column answer says reject or ignore" in caplog.text
    assert len(found("accept", "reject", "no idea", "ignore")) == 4  # of something else
    assert len(found("accept", "accept")) == 2


@pytest.mark.parametrize("scale", [100, 1000])
def test_corners_of_other_scales_that_may_be_corner_and_size_too(tmp_path, scale, caplog):
    """A doubt between formats of pixels hides none about the scale; a format that is said is followed, with a line."""
    picture(16 * scale // 10, 12 * scale // 10).save(tmp_path / "photo.png")
    corners = [[4 + n, 1 + n, 82 + n, 71 + n] for n in range(16)]
    rows = [
        {"image": "photo.png", "phrase": f"dog {n}", "bbox": [value * scale // 100 for value in box]}
        for n, box in enumerate(corners)
    ]
    path = write_rows(tmp_path / "mine.jsonl", rows)
    with pytest.raises(ValueError, match=rf"seem to be counted to {scale} in .* pixels or .*--box_format xyxy or xywh"):
        records(path)
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        assert boxes_of(records(path, Columns(box_format="xywh"))) == [[row["bbox"]] for row in rows]
    assert "counted" not in caplog.text  # as corner and size, many end beyond
    with caplog.at_level("WARNING"):
        assert boxes_of(records(path, Columns(box_format="xyxy"))) == [[row["bbox"]] for row in rows]
    assert f"counted to {scale} in" in caplog.text
    picture(scale // 2, scale // 2).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"are none of .* counted to 100 or 1000, make pixels or shares first"):
        records(path)


def test_a_file_that_is_no_table(tmp_path):
    (tmp_path / "labels.xml").write_text("<a/>")
    with pytest.raises(ValueError, match=r"labels\.xml is no table of \.jsonl, .*albef-amc build"):
        records(str(tmp_path / "labels.xml"))


def test_boxes_that_fit_by_hand():
    sizes = np.array([[200, 100]] * 4)
    for box_format in BOX_FORMATS:
        boxes = np.array([as_format(box, box_format) for box in CORNERS])
        assert [each for each in BOX_FORMATS if fits_images(boxes, sizes, each)] == [box_format]
    boxes = np.tile([10.0, 10, 60, 60], (200, 1))
    boxes[0] = 0  # one of two hundred
    assert fits_images(boxes, np.tile([200, 100], (200, 1)), "xyxy")
    boxes[1:3] = 0
    assert not fits_images(boxes, np.tile([200, 100], (200, 1)), "xyxy")
    assert fits_images(boxes[3:], np.zeros((197, 2), int), "xywh")  # of images that nobody has seen


def test_sizes_are_of_the_upright_image(tmp_path):
    exif = picture().getexif()
    exif[0x0112] = 6
    xmp = PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    picture(40, 36).save(tmp_path / "plain.png")
    picture(40, 36).save(tmp_path / "turned.png", pnginfo=xmp)
    data = (tmp_path / "turned.png").read_bytes()
    at = data.index(b"iTXt") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    (tmp_path / "behind.png").write_bytes(data[:at] + data[end:-12] + data[at:end] + data[-12:])  # as exiftool has it
    for name in ("turned.jpg", "turned.tiff"):
        picture(40, 36).save(tmp_path / name, exif=exif)
    for name in ("turned.jpg", "turned.tiff", "turned.png", "behind.png"):
        assert image_size({"bytes": None, "path": str(tmp_path / name)}) == (36, 40)
        assert open_image(tmp_path / name).size == (36, 40)
    for broken in BROKEN_EXIF:
        picture(40, 36).save(tmp_path / "broken.png", exif=broken)
        assert image_size({"bytes": (tmp_path / "broken.png").read_bytes(), "path": None}) == (40, 36)
    assert image_size({"bytes": (tmp_path / "plain.png").read_bytes(), "path": None}) == (40, 36)
    for nothing in (None, {"bytes": b"no", "path": None}, {"bytes": None, "path": "/no/where.png"}):
        assert image_size(nothing) == (0, 0)


# Addresses, and what is held out --------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    photos(tmp_path / "served", 2)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "served")) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("streaming", [False, True])
def test_addresses_are_fetched_only_when_that_is_asked_for(tmp_path, server, streaming):
    rows = [{"image": f"{server}/photos/{n}.png", "phrase": "a dog", "boxes": [CORNERS[0]]} for n in range(3)]
    path = write_rows(tmp_path / "mine.jsonl", rows)
    collate = GroundingCollator(tiny_processor())
    with pytest.raises(ValueError, match=r"/0\.png: of a data set no address is fetched, .*--download_images"):
        collate(records(path, Columns(), streaming))
    found = records(path, Columns(download_images=True), streaming)
    assert collate(found[:2])["image_sizes"].tolist() == [[HEIGHT, WIDTH]] * 2
    with pytest.raises(ValueError, match=r"no image .*/2\.png"):
        collate(found)


SETTINGS = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--use_cpu", "true", "--report_to", "none"]
SETTINGS += ["--save_strategy", "no", "--num_logged_heatmaps", "0", "--mask_size", "16", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    for part in (tiny_albef(), tiny_processor()):
        part.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("listed", [False, True])
def test_what_is_held_out_shares_no_image(tmp_path, listed):
    photos(tmp_path, 10)
    rows = [
        {"image": f"photos/{n}.png", "phrase": f"dog {n}", "boxes": [CORNERS[0]]} for n in range(10) for _ in (1, 2)
    ]
    rows = [{**row, "phrase": [row["phrase"], "it"], "boxes": [row["boxes"]] * 2} for row in rows] if listed else rows
    dataset = training.load_split(write_rows(tmp_path / "mine.jsonl", rows), None, "train")
    assert isinstance(dataset, PhraseRows) == listed
    train, held = training.hold_out(dataset, 0.3)
    images = [{record["image"]["path"] for record in part} for part in (train, held)]
    assert not images[0] & images[1] and list(map(len, images)) == [7, 3]
    assert len(train) + len(held) == len(dataset) == 20 * (1 + listed)
    again = training.hold_out(dataset, 0.3)[1]
    assert [record["image"] for record in again] == [record["image"] for record in held]
    assert list(map(len, training.hold_out(dataset, 0.01))) == [18 * (1 + listed), 2 * (1 + listed)]
    with pytest.raises(ValueError, match="all rows have the same image"):
        training.hold_out(dataset.select([0, 1]), 0.5)


def test_a_table_of_ones_own_is_trained_on_evaluated_and_grounded(tmp_path, model):
    photos(tmp_path)
    rows = [{"file": f"photos/{n}.png", "text": "red square", **dict(zip(("x", "y", "w", "h"), as_format(box, "xywh")))}
            for n, box in enumerate(CORNERS)]  # fmt: skip
    path = write_rows(tmp_path / "mine.csv", rows)
    config = tmp_path / "run.yaml"
    config.write_text(f"dataset: {path}\nmodel: {model}\ncolumns:\n  boxes: x,y,w,h\nvalidation_fraction: 0.25\n")
    metrics = training.main([str(config), "--output_dir", str(tmp_path / "run"), *SETTINGS])
    assert metrics["validation_num_phrases"] == 1
    assert training.main(["--dataset", path, "--model", model, "--output_dir", str(tmp_path / "b"), *SETTINGS]) == {}
    result = sweep_layers.main(
        ["--model", model, "--dataset", path, "--split", "train", "--cpu", "--columns", "phrase=text"]
    )
    assert result["best"]["accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    ground_dataset.main(["--model", model, "--dataset", path, "--cpu", "--output", str(tmp_path / "rows")])
    assert pq.read_table(tmp_path / "rows" / "data")["error"].null_count == 4
    for more, message in (
        (["--eval_splits", "validation"], "is a file, of one split"),
        (["--eval_splits", "train[:1]", "--validation_fraction", "0.5"], "there are eval_splits"),
        (["--validation_fraction", "1"], "validation_fraction must be below 1: nothing"),
        (["--validation_fraction", "0.5", "--streaming", "true"], "leave out streaming"),
        (["--columns", "text"], "--columns takes OURS=THEIRS pairs"),
    ):
        with pytest.raises(ValueError, match=message):
            training.main(["--dataset", path, "--model", model, "--output_dir", str(tmp_path / "c"), *SETTINGS, *more])


def test_splits_of_a_files_column_are_trained_on_and_scored(tmp_path, model):
    photos(tmp_path)
    corners, said = ("x1", "y1", "x2", "y2"), ["train", "val", "test", "train"]
    rows = [{"image": f"photos/{n}.png", "phrase": f"dog {n}", **dict(zip(corners, CORNERS[n])), "split": said[n]}
            for n in range(4)]  # fmt: skip
    settings = ["--dataset", write_rows(tmp_path / "mine.csv", rows), "--model", model, *SETTINGS]
    assert training.main([*settings, "--output_dir", str(tmp_path / "a")])["validation_num_phrases"] == 1
    found = training.main([*settings, "--output_dir", str(tmp_path / "b"), "--eval_splits", "test", "validation"])
    assert found["test_num_phrases"] == found["validation_num_phrases"] == 1
    with pytest.raises(ValueError, match="has a split validation; leave it out"):
        training.main([*settings, "--output_dir", str(tmp_path / "c"), "--validation_fraction", "0.5"])
    options = ["--models", f"mine={model}", *settings[:2], "--cpu", "--output", str(tmp_path / "scores")]
    assert [*evaluate_grounding.main([*options, "--splits", "validation", "test"])["mine"]] == ["validation", "test"]
    records = [pq.read_table(tmp_path / f"scores/records/mine/{split}.parquet") for split in ("validation", "test")]
    assert [table.num_rows for table in records] == [1, 1]
