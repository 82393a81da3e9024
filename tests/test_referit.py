"""ReferIt as lists of images and a JSON file a region, on files made by hand and on the real lists and records."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from dataset_scripts.referit import ReferIt, read_image_list
from tests.image_ids import name_in_source

HEIGHT, WIDTH = 6, 8


class Workshop:
    """Writes lists and records, and runs the builder over them."""

    def __init__(self, folder):
        self.folder = folder / "referit"
        self.folder.mkdir()
        self.images = folder / "images"
        self.images.mkdir()
        self.lists("1\n2\n30\n", "4\n", "5\n")

    def lists(self, train: str, val: str, test: str) -> None:
        for name, text in (("train", train), ("val", val), ("test", test)):
            (self.folder / f"referit_{name}_imlist.txt").write_text(text)

    def record(self, image: int, region: int, *query: str, folder="", **changes) -> None:
        record = {
            "img_id": f"{image}.jpg",
            "ann_id": f"{image}_{region}",
            "bbox": [1.0, 2.0, 4.0, 6.0],
            "split": "train",
            "query": list(query),
            "ewiser": [],
        }
        path = self.folder / folder / f"{image}_{region}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record | changes))

    def image(self, number: int, size=(WIDTH, HEIGHT)) -> bytes:
        path = self.images / f"{number}.jpg"
        Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path)
        return path.read_bytes()

    def builder(self, **options) -> ReferIt:
        return ReferIt(cache_dir=str(self.folder / "cache"), data_dir=str(self.folder), **options)

    def rows(self, **options):
        """All rows by split, and the report."""
        builder = self.builder(**options)
        rows = {
            split: [row for job in builder.jobs(split) for row in builder.rows(split, job)]
            for split in builder.split_names()
        }
        return rows, builder.report


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


def phrases(rows):
    return {split: [(name_in_source(row["image_id"]), row["phrase"]) for row in rows[split]] for split in rows}


def test_the_lists_decide_and_the_rows_are_in_their_order(workshop):
    workshop.record(5, 2, "dog..!", " The  dog", split="train")
    workshop.record(30, 10, "ten")
    workshop.record(30, 9, "nine")
    workshop.record(1, 1, "one")
    workshop.record(4, 1, "four")
    rows, report = workshop.rows()
    assert phrases(rows) == {
        "train": [("1", "one"), ("30", "nine"), ("30", "ten")],
        "validation": [("4", "four")],
        "test": [("5", "dog..!"), ("5", "The dog")],
    }
    row = rows["test"][0]
    assert (row["boxes"], row["masks"], row["image"], row["proposals"]) == ([[1, 2, 4, 6]], [], None, [])
    assert report.kept == {"images": 4, "records": 5, "expressions": 6}
    assert report.dropped == {"images: listed, but without a record": 1}


def test_images_and_boxes_cut_to_them(workshop):
    data = workshop.image(1)
    workshop.image(2)
    (workshop.images / "2.jpg").write_bytes(b"no image")
    workshop.record(1, 1, "right", bbox=[-3, 1.5, 9, 4], folder="regions")
    workshop.record(1, 2, "away", bbox=[8, 0, 9, 4], folder="regions")
    workshop.record(2, 1, "lost", folder="regions")
    workshop.record(30, 1, "missing", folder="regions")
    rows, report = workshop.rows(images_dir=str(workshop.images), records="regions")
    (row,) = rows["train"]
    assert (row["phrase"], row["boxes"], row["image"]["bytes"]) == ("right", [[0, 1.5, 8, 4]], data)
    assert report.dropped == {
        "images: listed, but without a record": 2,
        "images: cannot be decoded": 1,
        "images: not in the folder of the images": 1,
        "records: of an image that cannot be used": 2,
        "records: box without area in the image": 1,
    }


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
    path = workshop.folder / "1_2.json"
    change = BAD_RECORDS[reason]
    if change is None:
        path.write_text(path.read_text()[:-9])
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change if change else change))
    rows, report = workshop.rows()
    assert phrases(rows) == {"train": [("1", "good")]}
    assert report.dropped == {f"records: {reason}": 1, "images: listed, but without a record": 4}
    with pytest.raises(ValueError, match=r"1_2\.json: records: "):
        workshop.rows(strict=True)


def test_expressions_without_a_word_and_images_in_no_list_are_counted(workshop):
    workshop.record(1, 1, "", "good", " ")
    workshop.record(77, 1, "a")
    workshop.record(77, 2, "b")
    rows, report = workshop.rows()
    assert phrases(rows) == {"train": [("1", "good")]}
    assert report.dropped["expressions: without a word"] == 2
    assert report.dropped["records: of an image in no list"] == 2
    with pytest.raises(ValueError, match="image 77: records: of an image in no list"):
        workshop.rows(strict=True)


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
        workshop.rows()


def test_what_is_missing_is_named(workshop):
    with pytest.raises(ValueError, match=r"referit has no record, <image>_<region>\.json"):
        workshop.rows()
    with pytest.raises(ValueError, match=r"records: there is no folder .*regions"):
        workshop.rows(records="regions")
    (workshop.folder / "referit_val_imlist.txt").unlink()
    with pytest.raises(ValueError, match=r"referit_val_imlist\.txt: No such file"):
        workshop.rows()


def test_jobs_are_whole_images_and_a_copied_builder_makes_the_same_rows(workshop):
    workshop.lists("".join(f"{i}\n" for i in range(10, 1110)), "4\n", "5\n")
    for i in range(10, 1110):
        workshop.record(i, 1, f"number {i}")
    builder = workshop.builder()
    assert builder.split_names() == ["train"]
    jobs = list(builder.jobs("train"))
    assert [len(job) for job in jobs] == [500, 500, 100]
    copied = pickle.dumps(builder)
    assert len(copied) < 20_000
    rows = list(pickle.loads(copied).rows("train", jobs[2]))
    assert [row["phrase"] for row in rows] == [f"number {i}" for i in range(1010, 1110)]


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
