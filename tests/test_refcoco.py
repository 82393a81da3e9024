"""Referring expressions in the refer toolkit's layout, on files made by hand and on the sample of real ones."""

import copy
import io
import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from dataset_scripts.refcoco import RefCoco, read_proposals
from tests.image_ids import name_in_source

HEIGHT, WIDTH = 6, 8
SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]  # covers the pixels 1 to 3 in both directions
SQUARE_MASK = np.zeros((HEIGHT, WIDTH), bool)
SQUARE_MASK[1:4, 1:4] = True
# Down the columns: the square, and its column at x = 2 alone, as ReferIt writes them, in a list.
SQUARE_RUNS = {"size": [HEIGHT, WIDTH], "counts": [7, 3, 3, 3, 3, 3, 26]}
COLUMN_RUNS = {"size": [HEIGHT, WIDTH], "counts": [13, 3, 32]}
BOX = [1.0, 1.0, 4.0, 4.0]


def sentences(*texts):
    return [{"sent": text, "raw": text.upper(), "tokens": text.split(), "sent_id": i} for i, text in enumerate(texts)]


def ref(id_: int, *texts: str, **changes):
    plain = {
        "ref_id": id_,
        "ann_id": 100,
        "image_id": 1,
        "category_id": 3,
        "file_name": "COCO_train2014_000000000001_100.jpg",
        "split": "train",
        "sent_ids": list(range(len(texts))),
        "sentences": sentences(*texts or ["left dog"]),
    }
    return plain | changes


def image(id_: int, **changes):
    return {"id": id_, "file_name": f"COCO_train2014_{id_:012d}.jpg", "width": WIDTH, "height": HEIGHT} | changes


def annotation(id_, **changes):
    plain = {"id": id_, "image_id": 1, "category_id": 3, "bbox": [1, 1, 3, 3], "segmentation": [SQUARE], "iscrowd": 0}
    return plain | changes


def instances(*annotations, images=None):
    return {
        "images": images or [image(1), image(2), image(3)],
        "categories": [{"id": 3, "name": "dog", "supercategory": "animal"}],
        "annotations": list(annotations) or [annotation(100), annotation(200, image_id=2), annotation(300, image_id=3)],
    }


class Workshop:
    """Writes a data folder in the toolkit's layout and runs the builder over it."""

    def __init__(self, folder):
        self.folder = folder / "refcoco"
        self.folder.mkdir()
        self.images = folder / "images"

    def image(self, name: str, size=(WIDTH, HEIGHT)) -> bytes:
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        return path.read_bytes()

    def write(self, refs, content=None, splits_by="unc", protocol=2) -> None:
        (self.folder / f"refs({splits_by}).p").write_bytes(pickle.dumps(refs, protocol))
        (self.folder / "instances.json").write_text(json.dumps(content or instances()))

    def builder(self, **options) -> RefCoco:
        return RefCoco(cache_dir=str(self.folder / "cache"), data_dir=str(self.folder), **options)

    def build(self, refs, content=None, **options):
        """All rows by split, and the report."""
        self.write(refs, content)
        return self.rows(**options)

    def rows(self, **options):
        builder = self.builder(**options)
        rows = {
            split: [row for job in builder.jobs(split) for row in builder.rows(split, job)]
            for split in builder.split_names()
        }
        return rows, builder.report


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


def image_of(row: dict) -> int:
    """Its number, by its file's name."""
    return int(re.fullmatch(r"(?:COCO_train2014_)?(\d+)\.jpg", name_in_source(row["image_id"]))[1])


def decoded(mask: dict) -> np.ndarray:
    pixels = np.asarray(Image.open(io.BytesIO(mask["bytes"])))
    assert pixels.dtype == np.uint8 and set(np.unique(pixels)) <= {0, 255}
    return pixels == 255


# Rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_row_for_each_expression(workshop, protocol):
    workshop.write([ref(7, "left dog", " the  big dog ")], protocol=protocol)
    rows, report = workshop.rows()
    assert [row["phrase"] for row in rows["train"]] == ["left dog", "the big dog"]
    for row in rows["train"]:
        assert (row["image"], image_of(row), row["boxes"], row["categories"]) == (None, 1, [BOX], ["dog"])
        assert (row["caption"], row["caption_span"], row["proposals"]) == (None, [], [])
        assert np.array_equal(decoded(row["masks"][0]), SQUARE_MASK) and len(row["masks"]) == 1
    assert report.kept == {"images": 1, "objects": 1, "expressions": 2} and not report.dropped


def test_rows_of_a_image_follow_each_other_whatever_the_order_of_refs(workshop):
    refs = [
        ref(1, "a"),
        ref(2, "b", image_id=2, ann_id=200),
        ref(3, "c"),
        ref(4, "d", image_id=2, ann_id=200, split="val"),
        ref(5, "e", image_id=2, ann_id=200),
    ]
    rows, _ = workshop.build(refs)
    assert [(image_of(row), row["phrase"]) for row in rows["train"]] == [
        (1, "a"),
        (1, "c"),
        (2, "b"),
        (2, "e"),
    ]
    assert [(image_of(row), row["phrase"]) for row in rows["validation"]] == [(2, "d")]


def test_splits_and_their_names(workshop):
    names = ["testB", "val", "train", "test", "testA", "testAB", "testC", "testBC"]
    rows, _ = workshop.build([ref(i, name, split=name) for i, name in enumerate(names)])
    assert {split: [row["phrase"] for row in rows[split]] for split in rows} == {
        "train": ["train"],
        "validation": ["val"],
        "test": ["test"],
        "testA": ["testA", "testAB"],
        "testB": ["testB", "testAB", "testBC"],
        "testC": ["testC", "testBC"],
    }
    assert list(rows) == ["train", "validation", "test", "testA", "testB", "testC"]


@pytest.mark.parametrize("name", ["valA", "testD", "testAX", "A", "validation", "", "Train", "testX\n"])
def test_refs_of_an_unknown_split_are_counted(workshop, name):
    rows, report = workshop.build([ref(1, "a", "b", split=name), ref(2)])
    assert len(rows["train"]) == 1 and list(rows) == ["train"]
    assert report.dropped == {f"expressions: of an unknown split, {name!r}": 2}


def test_referit_in_the_toolkits_layout(workshop):
    """Text as ids of annotations, refs without file_name, plain file names, run lengths in lists."""
    refs = [ref(1, "the dog", ann_id="19579_2", image_id=19579, split="test")]
    del refs[0]["file_name"]
    content = instances(
        annotation("19579_2", image_id=19579, segmentation=[SQUARE_RUNS]),
        annotation("19579_1", image_id=19579),
        images=[image(19579, file_name="19579.jpg")],
    )
    data = workshop.image("19579.jpg", size=(WIDTH, HEIGHT))
    workshop.write(refs, content, splits_by="berkeley")
    rows, _ = workshop.rows(images_dir=str(workshop.images))
    (row,) = rows["test"]
    assert (image_of(row), row["boxes"], row["image"]["bytes"]) == (19579, [BOX], data)
    assert np.array_equal(decoded(row["masks"][0]), SQUARE_MASK)


@pytest.mark.parametrize(
    ("segmentation", "columns"),
    [
        ([SQUARE], (1, 4)),
        ([[1, 1, 3, 1, 3, 4, 1, 4], [3, 1, 4, 1, 4, 4, 3, 4]], (1, 4)),
        (SQUARE_RUNS, (1, 4)),
        ([COLUMN_RUNS, SQUARE_RUNS], (1, 4)),
        ([SQUARE_RUNS, {}], (1, 4)),
        ([SQUARE, [7, 7]], (1, 4)),
        ([SQUARE_RUNS, SQUARE], (1, 4)),
        (SQUARE, (1, 4)),
    ],
)
def test_masks_of_every_form(workshop, segmentation, columns):
    rows, _ = workshop.build([ref(1)], instances(annotation(100, segmentation=segmentation)))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[1:4, slice(*columns)] = True
    assert np.array_equal(decoded(rows["train"][0]["masks"][0]), expected)


@pytest.mark.parametrize(
    "segmentation", [None, [], [[1, 1, 4]], [[]], {}, "", [{}], "square", [[30, 30, 40, 30, 40, 40]]]
)
def test_a_row_goes_by_its_box_where_the_mask_cannot_be_had(workshop, segmentation):
    rows, report = workshop.build([ref(1, "a", "b")], instances(annotation(100, segmentation=segmentation)))
    assert [(row["boxes"], row["masks"]) for row in rows["train"]] == [([BOX], []), ([BOX], [])]
    assert report.kept["expressions by a box alone, for want of a mask"] == 2
    is_bad = segmentation not in (None, [])
    assert sum(report.dropped.values()) == is_bad
    assert all(reason.startswith("mask") for reason in report.dropped)
    if is_bad:
        with pytest.raises(ValueError, match="ref 1, annotation 100: mask"):
            workshop.rows(strict=True)


def test_a_mask_that_contradicts_its_box_is_left_out(workshop):
    """The published results are told by the box."""
    rows, report = workshop.build([ref(1)], instances(annotation(100, bbox=[5, 3, 3, 3])))
    assert [(row["boxes"], row["masks"]) for row in rows["train"]] == [([[5, 3, 8, 6]], [])]
    reason = "masks: contradict their box (IoU below 0.5), which is taken alone"
    assert report.dropped == {reason: 1} and report.examples[reason] == ["ref 1, annotation 100"]
    with pytest.raises(ValueError, match="ref 1, annotation 100: masks: contradict their box"):
        workshop.rows(strict=True)


@pytest.mark.parametrize("bbox", [None, []])
def test_an_object_without_a_box_has_its_masks(workshop, bbox):
    rows, report = workshop.build([ref(1)], instances(annotation(100, bbox=bbox)))
    assert [(row["boxes"], len(row["masks"])) for row in rows["train"]] == [([BOX], 1)] and not report.dropped
    rows, report = workshop.build([ref(1), ref(2)], instances(annotation(100, bbox=bbox, segmentation=None)))
    assert not rows["train"] and report.dropped == {"expressions: of an object with neither a box nor a mask": 2}


def test_numbers_and_ids_may_be_text(workshop):
    expected, _ = workshop.build([ref(1)], instances(annotation(100)), strict=True)
    written = annotation("100", image_id="1", category_id="3", bbox=["1", "1.0", 3, 3.0])
    content = instances(written, images=[image(1, id="1", width=float(WIDTH), height=f"{HEIGHT}")])
    content["categories"] = [{"id": "3", "name": "dog"}] * 2
    assert workshop.build([ref(1)], content, strict=True)[0] == expected
    assert workshop.build([ref(1, ann_id="100")], content, strict=True)[0] == expected


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([-2, -1.5, 5, 4], [0, 0, 3, 2.5]),
        ([6.5, 4, 10, 10], [6.5, 4, 8, 6]),
        ([8, 0, 3, 3], None),
        ([2, 2, 0, 3], None),
        ([4, 4, -2, 1], None),
    ],
)
def test_boxes_are_cut_to_the_image_or_dropped(workshop, bbox, expected):
    content = instances(annotation(100, bbox=bbox, segmentation=None))
    rows, report = workshop.build([ref(1, "a", "b"), ref(2, ann_id=100)], content)
    assert [row["boxes"] for row in rows["train"]] == ([[expected]] * 3 if expected else [])
    assert report.dropped == ({} if expected else {"expressions: box without area in the image": 3})


def test_an_object_of_no_listed_category_has_none(workshop):
    rows, _ = workshop.build([ref(1)], instances(annotation(100, category_id=9)))
    assert rows["train"][0]["categories"] == []


# Photos ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "train2014/"])
def test_images_lie_in_the_folder_or_in_cocos_folder_in_it(workshop, folder):
    name = "COCO_train2014_000000000001.jpg"
    data = workshop.image(folder + name)
    rows, report = workshop.build([ref(1, "a", "b")], images_dir=str(workshop.images))
    assert [row["image"] for row in rows["train"]] == [{"bytes": data, "path": None}] * 2
    assert report.kept["images"] == 1


def test_images_that_cannot_be_used_are_counted_with_their_expressions(workshop):
    names = ["good.png", "cut.png", "large.png", "missing.png", "../out.png"]
    for name in names[:3] + names[4:]:
        workshop.image(name, size=(WIDTH + (name == "large.png"), HEIGHT))
    cut = workshop.images / "cut.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    ids = range(1, 6)
    content = instances(
        *(annotation(i, image_id=i) for i in ids),
        images=[image(i, file_name=name) for i, name in zip(ids, names, strict=True)],
    )
    refs = [ref(i, "a", "b", ann_id=i, image_id=i) for i in ids]
    rows, report = workshop.build(refs, content, images_dir=str(workshop.images))
    assert [name_in_source(row["image_id"]) for row in rows["train"]] == ["good.png", "good.png"]
    assert report.dropped == {
        "images: cannot be decoded": 1,
        "images: have another size than their record says": 1,
        "images: not in the folder of the images": 1,
        "images: their name leads out of the folder of the images": 1,
        "expressions: of an image that cannot be used": 8,
    }
    with pytest.raises(ValueError, match=r"image 2 \(cut\.png\): images: cannot be decoded"):
        workshop.rows(images_dir=str(workshop.images), strict=True)


# What is dropped ------------------------------------------------------------------------------------------------------

DROPPED = {
    "of an annotation that is not in instances.json": ({"ann_id": 999}, "ref 1"),
    "of an annotation in another image": ({"ann_id": 200}, "ref 1"),
    "of an image that is not in instances.json": ({"ann_id": 900, "image_id": 9}, "ref 1"),
    "of an unknown split, 'trainA'": ({"split": "trainA"}, "ref 1"),
    "box without area in the image": ({"ann_id": 800}, "ref 1"),
}


@pytest.mark.parametrize("reason", DROPPED)
def test_expressions_of_no_use_are_counted_and_named_in_strict_mode(workshop, reason):
    changes, record = DROPPED[reason]
    content = instances(
        annotation(100),
        annotation(200, image_id=2),
        annotation(800, bbox=[1, 1, 0, 0], segmentation=None),
        annotation(900, image_id=9),
    )
    refs = [ref(1, "a", "b") | changes, ref(2, "c")]
    rows, report = workshop.build(refs, content)
    assert [row["phrase"] for row in rows["train"]] == ["c"]
    assert report.dropped == {f"expressions: {reason}": 2}
    with pytest.raises(ValueError, match=f"{record}: expressions: {re.escape(reason)}"):
        workshop.rows(strict=True)


def test_expressions_without_a_word_are_counted(workshop):
    rows, report = workshop.build([ref(1, "a", " ", "", "b")])
    assert [row["phrase"] for row in rows["train"]] == ["a", "b"]
    assert report.dropped == {"expressions: without a word": 2} and report.kept["expressions"] == 2
    with pytest.raises(ValueError, match="ref 1, sentence 1: expressions: without a word"):
        workshop.rows(strict=True)


# Whose splits ---------------------------------------------------------------------------------------------------------


def test_the_one_pickle_is_taken_and_of_several_the_named_one(workshop):
    workshop.write([ref(1, "of unc")], splits_by="unc")
    assert workshop.rows()[0]["train"][0]["phrase"] == "of unc"
    workshop.write([ref(1, "of google")], splits_by="google")
    assert workshop.rows(splits_by="google")[0]["train"][0]["phrase"] == "of google"
    with pytest.raises(ValueError, match="several splits, say which: splits_by may be google, unc"):
        workshop.rows()
    with pytest.raises(ValueError, match="no split by umd: splits_by may be google, unc"):
        workshop.rows(splits_by="umd")


def test_missing_files_are_named(workshop):
    with pytest.raises(ValueError, match=r"refcoco has no file refs\("):
        workshop.rows()
    workshop.write([ref(1)])
    (workshop.folder / "instances.json").unlink()
    with pytest.raises(ValueError, match=r"instances\.json: No such file"):
        workshop.rows()
    with pytest.raises(ValueError, match="there is no folder"):
        RefCoco(cache_dir=str(workshop.folder), data_dir=str(workshop.folder / "none"))
    with pytest.raises(ValueError, match="needs data_dir"):
        RefCoco(cache_dir=str(workshop.folder))


# Broken files ---------------------------------------------------------------------------------------------------------

BROKEN_REFS = {
    "no list": ({"refs": []}, "is not a list of refs"),
    "ref id twice": ([ref(1), ref(1)], r"ref 1 \(number 1 in the file\): its id occurs twice"),
    "ref id missing": ([{}], r"ref None \(number 0 in the file\): ref_id is not a whole number"),
    "ref id is a bool": ([ref(1, ref_id=True)], "ref_id is not a whole number"),
    "no annotation": ([ref(1, ann_id=None)], "ann_id is neither"),
    "image id is text": ([ref(1, image_id="1")], "image_id is not a whole number"),
    "no split": ([ref(1, split=None)], "split is not text"),
    "no sentences": ([ref(1, sentences=None)], "sentences is not a list"),
    "sentence is text": ([ref(1, sentences=["left dog"])], "sentences is not a list"),
    "sentence without sent": ([ref(1, sentences=[{"raw": "left dog"}])], "sentences is not a list"),
    "a set": ([ref(1, sent_ids={1})], r"refs\(unc\)\.p is not read: it asks for"),
    "numpy's number": ([ref(1, ann_id=np.int64(100))], r"refs\(unc\)\.p is not read: it asks for numpy"),
}


@pytest.mark.parametrize("case", BROKEN_REFS)
def test_a_broken_pickle_is_refused_with_its_ref(workshop, case):
    refs, message = BROKEN_REFS[case]
    with pytest.raises(ValueError, match=message):
        workshop.build(refs)


def changed(change):
    data = copy.deepcopy(instances())
    change(data)
    return data


BROKEN_INSTANCES = {
    "no images": (changed(lambda d: d.pop("images")), "needs the lists images, categories and annotations"),
    "list of text": (
        changed(lambda d: d["annotations"].append("a")),
        "annotation without a whole number as id, or a text: a",
    ),
    "image twice": (changed(lambda d: d["images"].append(image(1))), "image id 1 occurs twice"),
    "image without name": (changed(lambda d: d["images"][0].pop("file_name")), "image 1: file_name is missing"),
    "image of no width": (changed(lambda d: d["images"][0].update(width=0)), "image 1: width cannot be '0'"),
    "annotation twice": (changed(lambda d: d["annotations"].append(annotation(100))), "annotation id 100 occurs twice"),
    "short box": (changed(lambda d: d["annotations"][0].update(bbox=[1, 2, 3])), "annotation 100: bbox cannot be"),
    "NaN in a box": (changed(lambda d: d["annotations"][0].update(bbox=[1, 2, 3, float("nan")])), "annotation 100"),
}


@pytest.mark.parametrize("case", BROKEN_INSTANCES)
def test_broken_instances_are_refused_with_their_record(workshop, case):
    content, message = BROKEN_INSTANCES[case]
    with pytest.raises(ValueError, match=message):
        workshop.build([ref(1)], content)


def test_instances_cut_off_are_refused(workshop):
    workshop.write([ref(1)])
    path = workshop.folder / "instances.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"instances\.json is not JSON, or was cut off"):
        workshop.rows()


# Proposals ------------------------------------------------------------------------------------------------------------

CUT_OUT = "COCO_train2014_000000000001_{}.jpg".format
LAYOUTS = {
    "by image": {"1": [[1, 1, 3, 3, 0.9, 17], [2.5, 0, 4, 5]], "77": []},
    "by detection": [
        {"det_id": 1, "image_id": 1, "box": [1, 1, 3, 3], "score": 0.9, "category_id": 17},
        {"det_id": 2, "image_id": 1, "box": [2.5, 0, 4, 5], "score": 0.8, "category_id": 1},
    ],
    "by expression": [
        {"sent": "a", "gt_box": [1, 1, 3, 3], "pred_boxes": boxes, "pred_boxes_img_id": names}
        for boxes, names in [
            ([[1, 1, 3, 3], [2.5, 0, 4, 5]], [CUT_OUT(0), CUT_OUT(1)]),
            ([[2.5, 0, 4, 5]], [CUT_OUT(1)]),
        ]
    ],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_proposals_are_joined_by_image(workshop, layout):
    (workshop.folder / "dets.json").write_text(json.dumps(LAYOUTS[layout]))
    refs = [ref(1, "a", "b"), ref(2, "c", "d", "e", image_id=2, ann_id=200, split="testA")]
    rows, report = workshop.build(refs, proposals="dets.json")
    assert [row["proposals"] for row in rows["train"]] == [[[1, 1, 4, 4], [2.5, 0, 6.5, 5]]] * 2
    assert [row["proposals"] for row in rows["testA"]] == [[]] * 3
    assert report.kept["expressions without proposals"] == 3 and not report.dropped


def test_proposals_stay_as_the_detector_gave_them_unless_they_have_no_area(workshop):
    boxes = [[-1, -1, 20, 3], [8, 0, 3, 3], [2, 2, 0, 3], [0, 0, 1, 1]]
    path = workshop.folder.parent / "dets.json"  # by its whole path
    path.write_text(json.dumps({"1": boxes}))
    rows, report = workshop.build([ref(1, "a", "b")], proposals=str(path))
    assert [row["proposals"] for row in rows["train"]] == [[[-1, -1, 19, 2], [0, 0, 1, 1]]] * 2
    assert report.dropped == {"proposals: box without area in the image": 2}
    with pytest.raises(ValueError, match=r"image 1 .*: proposals: box without area"):
        workshop.rows(proposals=str(path), strict=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"9": [[1, 1, 3, 3]]}, "has no box for any image .*COCO_train2014_000000000001.jpg.*another data set"),
        ({"1": [[1, 1, 3]]}, r"image 1: '\[1, 1, 3\]' is not a box"),
        ({"1": [[1, 1, 3, "3"]]}, "image 1: .* is not a box"),
        ({"1": None}, "image 1: .* is not a box"),
        ([{"image_id": 1, "box": {"x": 1}}], "detection 0: .* is not a box"),
        ([{"image_id": 1, "bbox": [1, 1, 3, 3]}], "in no known layout of proposals"),
        ("boxes", "in no known layout of proposals"),
        ([{"pred_boxes": [[1, 1, 3, 3]], "pred_boxes_img_id": []}], "expression 0: .* not one name for each"),
        ([{"pred_boxes": [[1, 1, 3, 3]], "pred_boxes_img_id": ["x.jpg"]}], "'x.jpg' is not a cut-out's name"),
        (
            [{"pred_boxes": [[1, 1, 3, side]], "pred_boxes_img_id": [CUT_OUT(0)]} for side in (3, 4)],
            "expression 1: .*another box",
        ),
    ],
)
def test_bad_proposals_are_refused(workshop, content, message):
    (workshop.folder / "dets.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        workshop.build([ref(1)], proposals="dets.json")
    with pytest.raises(ValueError, match=r"none\.json: No such file"):
        workshop.build([ref(1)], proposals="none.json")


# Work in parallel -----------------------------------------------------------------------------------------------------


def test_jobs_are_whole_images_and_a_copied_builder_makes_the_same_rows(workshop):
    count = 1203
    content = instances(
        *(annotation(i, image_id=i) for i in range(1, count + 1)), images=[image(i) for i in range(1, count + 1)]
    )
    refs = [ref(i, f"dog {i}", ann_id=1 + i % count, image_id=1 + i % count) for i in range(2 * count)]
    workshop.write(refs, content)
    builder = workshop.builder()
    assert builder.split_names() == ["train"]
    jobs = list(builder.jobs("train"))
    assert [len(job) for job in jobs] == [500, 500, 203]
    ids = [{image.id for image, *_ in job} for job in jobs]
    assert set.union(*ids) == set(range(1, count + 1)) and sum(map(len, ids)) == count
    copied = pickle.dumps(builder)
    assert len(copied) < 20_000  # the images' records come in the jobs
    twin = pickle.loads(copied)
    assert list(twin.rows("train", jobs[2])) == list(builder.rows("train", jobs[2]))
    assert twin.report.kept["expressions"] == 406


# Real files -----------------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_the_sample_of_real_proposals(workshop, shared_dir):
    """Its expressions and boxes, put into the toolkit's layout, with its proposals."""
    sample = shared_dir / "data" / "refcoco" / "testA_refcoco_unc_dets.json"
    records = json.loads(sample.read_text())
    assert len(records) == 50
    content, refs = instances(images=[]), {}
    content["images"], content["annotations"] = [], []
    for record in records:
        name = record["pred_boxes_img_id"][0].rsplit("_", 1)[0] + ".jpg"
        id_ = int(name[-16:-4])
        if id_ not in [known["id"] for known in content["images"]]:
            content["images"].append(image(id_, file_name=name, width=640, height=640))
        key = (id_, *record["gt_box"])
        if key not in refs:
            refs[key] = ref(len(refs), image_id=id_, ann_id=len(refs), split="testA", sentences=[])
            box = annotation(len(refs) - 1, image_id=id_, bbox=record["gt_box"], segmentation=None)
            content["annotations"].append(box)
        refs[key]["sentences"] += sentences(record["sent"])
    rows, report = workshop.build(list(refs.values()), content, proposals=str(sample))
    assert list(rows) == ["testA"] and len(rows["testA"]) == 50
    assert sum(len(row["proposals"]) for row in rows["testA"]) == 427
    assert len({tuple(row["boxes"][0]) for row in rows["testA"]}) == 17
    for row, record in zip(rows["testA"], records, strict=True):
        assert row["phrase"] == record["sent"]
        expected = [[x, y, x + w, y + h] for x, y, w, h in record["pred_boxes"]]
        assert np.allclose(row["proposals"], expected, rtol=0, atol=1e-9)
        x, y, w, h = record["gt_box"]
        assert np.allclose(row["boxes"], [[x, y, x + w, y + h]], rtol=0, atol=1e-9)
    assert report.kept["expressions"] == 50 and not report.dropped
    assert {name: len(boxes) for name, boxes in read_proposals(sample).items()} == {
        record["pred_boxes_img_id"][0].rsplit("_", 1)[0] + ".jpg": len(record["pred_boxes"]) for record in records
    }
