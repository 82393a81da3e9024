"""ReferIt as lists of images and a JSON file a region, on files made by hand and on the real lists and records."""

import json

import pytest

from dataset_scripts.referit import ReferIt, read_image_list
from tests.helpers.builders import Workshop, name_in_source


class ReferItWorkshop(Workshop):
    def __init__(self, folder):
        super().__init__(ReferIt, folder)
        self.lists("1\n2\n30\n", "4\n", "5\n")

    def lists(self, train: str, val: str, test: str) -> None:
        for name, text in (("train", train), ("val", val), ("test", test)):
            self.write(f"referit_{name}_imlist.txt", text)

    def record(self, image: int, region: int, *query: str, folder=".", **changes) -> None:
        record = {"img_id": f"{image}.jpg", "ann_id": f"{image}_{region}", "bbox": [1.0, 2.0, 4.0, 6.0]}
        record |= {"split": "train", "query": list(query), "ewiser": []}
        self.write(f"{folder}/{image}_{region}.json", record | changes)


@pytest.fixture
def workshop(tmp_path):
    return ReferItWorkshop(tmp_path)


def phrases(rows):
    return {split: [(name_in_source(row["image_id"]), row["phrase"]) for row in rows[split]] for split in rows}


def test_the_lists_decide_and_the_rows_are_in_their_order(workshop):
    workshop.record(5, 2, "dog..!", " The  dog", split="train")
    workshop.record(30, 10, "ten")
    workshop.record(30, 9, "nine")
    workshop.record(1, 1, "one")
    workshop.record(4, 1, "four")
    rows, report = workshop.build()
    assert phrases(rows) == {
        "train": [("1", "one"), ("30", "nine"), ("30", "ten")],
        "validation": [("4", "four")],
        "test": [("5", "dog..!"), ("5", "The dog")],
    }
    row = rows["test"][0]
    assert (row["boxes"], row["masks"], row["image"], row["proposals"]) == ([[1, 2, 4, 6]], [], None, [])
    assert report.kept == {"images": 4, "records": 5, "expressions": 6}
    assert report.dropped == {"images: listed, but without a record": 1}


def test_expressions_without_a_word_and_images_in_no_list_are_counted(workshop):
    workshop.record(1, 1, "", "good", " ")
    workshop.record(77, 1, "a")
    rows, report = workshop.build()
    assert phrases(rows) == {"train": [("1", "good")]}
    assert report.dropped["expressions: without a word"] == 2
    assert report.dropped["records: of an image in no list"] == 1
    with pytest.raises(ValueError, match="image 77: records: of an image in no list"):
        workshop.build(strict=True)


def test_boxes_are_cut_to_images_of_which_only_the_file_knows_the_size(workshop):
    workshop.image("1.jpg")
    workshop.record(1, 1, "right", bbox=[-3, 1.5, 9, 4], folder="regions")
    workshop.record(1, 2, "away", bbox=[8, 0, 9, 4], folder="regions")
    rows, report = workshop.build(images=True, records="regions")
    assert [(row["phrase"], row["boxes"]) for row in rows["train"]] == [("right", [[0, 1.5, 8, 4]])]
    assert report.dropped["records: box without area in the image"] == 1


BAD_RECORDS = {
    "that are no JSON object": [],
    "that name another image (img_id) than their file does": {"img_id": "2.jpg"},
    "without a box of four numbers (bbox)": {"bbox": [1, 2, 3]},
    "box without area in the image": {"bbox": [3, 3, 1, 1]},
    "without a list of expressions (query)": {"query": "the dog"},
    "that are no JSON, or were cut off": None,
}


@pytest.mark.parametrize("reason", BAD_RECORDS)
def test_bad_records_are_counted_and_named_in_strict_mode(workshop, reason):
    workshop.record(1, 1, "good")
    workshop.record(1, 2, "bad")
    path, change = workshop.folder / "1_2.json", BAD_RECORDS[reason]
    if change is None:
        path.write_text(path.read_text()[:-9])
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change if change else change))
    rows, report = workshop.build()
    assert phrases(rows) == {"train": [("1", "good")]}
    assert report.dropped == {f"records: {reason}": 1, "images: listed, but without a record": 4}
    with pytest.raises(ValueError, match=r"1_2\.json: records: "):
        workshop.build(strict=True)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (("1\n1\n", "4", "5"), r"referit_train_imlist\.txt, line 2: image 1 is listed twice"),
        (("1\n", "4\n1", "5"), "image 1 is in the lists of train and of validation"),
        (("1\n2.jpg\n", "4", "5"), r"train_imlist\.txt, line 2: '2\.jpg' is not an image's number"),
    ],
)
def test_bad_lists_are_refused(workshop, lists, message):
    workshop.record(1, 1, "one")
    workshop.lists(*lists)
    with pytest.raises(ValueError, match=message):
        workshop.build()


def test_what_is_missing_is_named(workshop):
    with pytest.raises(ValueError, match=r"data has no record, <image>_<region>\.json"):
        workshop.build()
    with pytest.raises(ValueError, match=r"records: there is no folder .*regions"):
        workshop.build(records="regions")
    (workshop.folder / "referit_val_imlist.txt").unlink()
    with pytest.raises(ValueError, match=r"referit_val_imlist\.txt: No such file"):
        workshop.build()


@pytest.mark.shared
def test_the_real_lists_and_records(tmp_path, shared_dir):
    folder = shared_dir / "data" / "referit"
    lists = {split: read_image_list(folder / f"referit_{split}_imlist.txt") for split in ("train", "val", "test")}
    assert {split: len(images) for split, images in lists.items()} == {"train": 9_000, "val": 1_000, "test": 10_000}
    assert lists["test"][0] == 9007 and lists["val"][-1] == 25628
    builder = ReferIt(cache_dir=str(tmp_path), data_dir=str(folder))
    assert builder.split_names() == ["test"]
    (job,) = builder.jobs("test")
    rows = list(builder.rows("test", job))
    assert [(name_in_source(row["image_id"]), row["phrase"], row["boxes"]) for row in rows] == [
        ("10000", "the ground that's not grass", [[0, 78, 360, 480]]),
        ("10000", "dog..!", [[49, 246, 256, 418]]),
        ("10000", "owner is color blind. the dog", [[49, 246, 256, 418]]),
    ]
    assert builder.report.kept == {"images": 1, "records": 2, "expressions": 3}
    assert builder.report.dropped == {"images: listed, but without a record": 19_999}
