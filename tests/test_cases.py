"""Small files that strangers' tools wrote, each with what it must give: rows, boxes, masks, report, and strictly."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataset_scripts.build import build
from tests.helpers.builders import decoded, id_without_image

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
    folder, (phrase, boxes, has_masks, dropped) = shared_dir / "cases" / "coco", CASES[name]
    (row,), report = rows_of(folder, tmp_path / "out", name)
    assert (row["phrase"], row["boxes"], row["image_id"]) == (phrase, boxes, id_without_image("coco", folder, "a.jpg"))
    square = np.zeros((30, 40), bool)
    square[5:15, 5:15] = True
    assert len(row["masks"]) == has_masks and all(np.array_equal(decoded(mask), square) for mask in row["masks"])
    assert report.dropped == dropped and report.kept["instances"] == len(boxes)
    strictly = partial(rows_of, folder, tmp_path / "strict", name, strict=True)
    if not dropped:
        assert strictly()[0] == [row]
        return
    (reason,) = dropped
    (record,) = report.examples[reason]
    assert record == f"annotation {1 if name == 'one_of_two' else 0}"
    with pytest.raises(ValueError, match=re.escape(f"{record}: {reason}")):
        strictly()


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
