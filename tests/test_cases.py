"""Small files that strangers' tools wrote, each with what it must give: rows, boxes, masks, report, and strictly."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset_scripts.build import build

pytestmark = pytest.mark.shared

BOX, SECOND = [5, 5, 15, 15], [20, 5, 30, 15]
EMPTY = "mask parts: empty"
CONTRADICTION = "boxes: contradict their mask (IoU below 0.5); the mask's own is taken"
# By file: the phrase, its boxes, whether they have masks, and what is counted, which is fatal in a strict build.
CASES = {
    "part_point": ("dog", [BOX], True, {"mask parts: polygon of fewer than three points": 1}),
    "seg_empty_dict": ("dog", [BOX], False, {EMPTY: 1}),
    "one_of_two": ("dog", [BOX, SECOND], False, {EMPTY: 1}),
    "contradict": ("dog", [BOX], True, {CONTRADICTION: 1}),
    "str_image_id": ("dog", [BOX], True, {}),
    "twice_category": ("dog", [BOX], True, {}),
    "flat_seg": ("dog", [BOX], True, {}),
    "bom": ("dog", [BOX], True, {}),
    "float_size": ("dog", [BOX], True, {}),
    "iscrowd_null": ("dog", [BOX], True, {}),
    "no_bbox": ("dog", [BOX], True, {}),
    "underscore": ("bow", [BOX], True, {}),
}


def rows_of(folder: Path, output: Path, name: str, **options):
    """The rows as they were written, and the report."""
    options = dict(data_dir=str(folder), annotations=f"{name}.json", split="train", num_proc=1) | options
    report = build("coco", output, **options).report
    return pq.read_table(output / "data").to_pylist(), report


def test_there_is_a_case_for_every_file(shared_dir):
    assert {path.stem for path in (shared_dir / "cases" / "coco").glob("*.json")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_what_a_file_gives(shared_dir, tmp_path, name):
    phrase, boxes, has_masks, dropped = CASES[name]
    (row,), report = rows_of(shared_dir / "cases" / "coco", tmp_path / "out", name)
    assert (row["phrase"], row["boxes"], row["image_id"]) == (phrase, boxes, "coco/a.jpg#coco")
    square = np.zeros((30, 40), np.uint8)
    square[5:15, 5:15] = 255
    masks = [np.asarray(Image.open(io.BytesIO(mask["bytes"]))) for mask in row["masks"]]
    assert len(masks) == has_masks and all(np.array_equal(mask, square) for mask in masks)
    assert report.dropped == dropped and report.kept["instances"] == len(boxes)
    for reason in dropped:
        assert report.examples[reason] == [f"annotation {1 if name == 'one_of_two' else 0}"]


@pytest.mark.parametrize("name", CASES)
def test_what_a_file_gives_strictly(shared_dir, tmp_path, name):
    folder, dropped = shared_dir / "cases" / "coco", CASES[name][3]
    if not dropped:
        assert rows_of(folder, tmp_path / "out", name, strict=True)[0]
        return
    with pytest.raises(ValueError, match=r"annotation [01]: ") as error:
        rows_of(folder, tmp_path / "out", name, strict=True)
    assert str(error.value).endswith(next(iter(dropped)))


def test_words_of_captions(shared_dir, tmp_path):
    rows, report = rows_of(shared_dir / "cases" / "mdetr", tmp_path / "out", "final_flickr_separateGT_val", strict=True)
    caption = "Two young guys with shaggy hair look at their hands ."
    assert [(row["phrase"], row["boxes"], row["caption"], row["caption_span"]) for row in rows] == [
        ("Two young guys", [[10, 10, 60, 60]], caption, [0, 3]),
        ("shaggy hair", [[100, 10, 150, 60]], caption, [4, 6]),
    ]
    assert report.kept["rows (an image and a phrase)"] == 2


def test_captions_that_are_expressions(shared_dir, tmp_path):
    (row,), _ = rows_of(shared_dir / "cases" / "mdetr", tmp_path / "out", "finetune_refcoco_train", strict=True)
    assert row["phrase"] == "bowl behind the others can only see part"
    assert np.allclose(row["boxes"], [[468.3, 0.91, 640, 117.03]], rtol=0, atol=1e-4)
