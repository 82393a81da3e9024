"""Referring expressions in the refer toolkit's layout, on files made by hand and on the sample of real ones."""

import json
import pickle
import re

import numpy as np
import pytest

from dataset_scripts.refcoco import RefCoco, read_proposals
from tests.helpers.builders import HEIGHT, SQUARE, SQUARE_MASK, SQUARE_RUNS, WIDTH, Workshop, decoded, name_in_source
from trainer.regions import read_boxes

BOX = [1.0, 1.0, 4.0, 4.0]


def ref(id_: int, *texts: str, **changes):
    sentences = [{"sent": text, "sent_id": i} for i, text in enumerate(texts or ["left dog"])]
    plain = {"ref_id": id_, "ann_id": 100, "image_id": 1, "category_id": 3, "split": "train", "sentences": sentences}
    return plain | {"file_name": "COCO_train2014_000000000001_100.jpg"} | changes


def image(id_, **changes):
    return {"id": id_, "file_name": f"COCO_train2014_{id_:012}.jpg", "width": WIDTH, "height": HEIGHT} | changes


def annotation(id_, **changes):
    plain = {"id": id_, "image_id": 1, "category_id": 3, "bbox": [1, 1, 3, 3], "segmentation": [SQUARE], "iscrowd": 0}
    return plain | changes


def instances(*annotations, images=None):
    return {
        "images": images or [image(1), image(2)],
        "categories": [{"id": 3, "name": "dog", "supercategory": "animal"}],
        "annotations": list(annotations) or [annotation(100), annotation(200, image_id=2)],
    }


class RefCocoWorkshop(Workshop):
    def __init__(self, folder):
        super().__init__(RefCoco, folder)

    def put(self, refs, content=None, splits_by="unc", protocol=2) -> None:
        self.write(f"refs({splits_by}).p", pickle.dumps(refs, protocol))
        self.write("instances.json", content or instances())

    def of(self, refs, content=None, **options):
        """All rows by split, and the report."""
        self.put(refs, content)
        return self.build(**options)


@pytest.fixture
def workshop(tmp_path):
    return RefCocoWorkshop(tmp_path)


def image_of(row: dict) -> int:
    """Its number, by its file's name."""
    return int(re.fullmatch(r"(?:COCO_train2014_)?(\d+)\.jpg", name_in_source(row["image_id"]))[1])


# Rows -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, float])
def test_ids_of_every_kind_mean_the_same(workshop, kind):
    expected = workshop.of([ref(7)])[0]["train"]
    ids = {"ref_id": kind(7), "ann_id": kind(100), "image_id": kind(1)}
    assert workshop.of([ref(7) | ids], strict=True)[0]["train"] == expected and len(expected) == 1
    with pytest.raises(ValueError, match="its id occurs twice"):
        workshop.of([ref(7), ref(kind(7))])


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_row_for_each_expression(workshop, protocol):
    workshop.put([ref(7, "left dog", " the  big dog ")], protocol=protocol)
    rows, report = workshop.build()
    assert [row["phrase"] for row in rows["train"]] == ["left dog", "the big dog"]
    for row in rows["train"]:
        assert (row["image"], image_of(row), row["boxes"], row["categories"]) == (None, 1, [BOX], ["dog"])
        assert (row["caption"], row["caption_span"], row["proposals"]) == (None, [], [])
        assert np.array_equal(decoded(row["masks"][0]), SQUARE_MASK) and len(row["masks"]) == 1
    assert report.kept == {"images": 1, "objects": 1, "expressions": 2} and not report.dropped


def test_rows_of_an_image_follow_each_other_whatever_the_order_of_refs(workshop):
    second = dict(image_id=2, ann_id=200)
    refs = [ref(1, "a"), ref(2, "b", **second), ref(3, "c"), ref(4, "d", split="val", **second), ref(5, "e", **second)]
    rows, _ = workshop.of(refs)
    assert [(image_of(row), row["phrase"]) for row in rows["train"]] == [(1, "a"), (1, "c"), (2, "b"), (2, "e")]
    assert [(image_of(row), row["phrase"]) for row in rows["validation"]] == [(2, "d")]


def test_splits_and_their_names(workshop):
    names = ["testB", "val", "train", "test", "testA", "testAB", "testC", "testBC"]
    rows, _ = workshop.of([ref(i, name, split=name) for i, name in enumerate(names)])
    assert {split: [row["phrase"] for row in rows[split]] for split in rows} == {
        "train": ["train"],
        "validation": ["val"],
        "test": ["test"],
        "testA": ["testA", "testAB"],
        "testB": ["testB", "testAB", "testBC"],
        "testC": ["testC", "testBC"],
    }
    assert list(rows) == ["train", "validation", "test", "testA", "testB", "testC"]


def test_referit_in_the_toolkits_layout(workshop):
    """Text as ids of annotations, refs without file_name, plain file names, run lengths in lists."""
    refs = [ref(1, "the dog", ann_id="19579_2", image_id=19579, split="test")]
    del refs[0]["file_name"]
    plain = annotation("19579_2", image_id=19579, segmentation=[SQUARE_RUNS]), annotation("19579_1", image_id=19579)
    data = workshop.image("19579.jpg")
    workshop.put(refs, instances(*plain, images=[image(19579, file_name="19579.jpg")]), splits_by="berkeley")
    rows, _ = workshop.build(images=True)
    (row,) = rows["test"]
    assert (image_of(row), row["boxes"], row["image"]["bytes"]) == (19579, [BOX], data)
    assert np.array_equal(decoded(row["masks"][0]), SQUARE_MASK)


LEFT_OUT = "masks: contradict their box (IoU below 0.5), which is taken alone"


@pytest.mark.parametrize(
    ("changes", "box", "dropped"),
    [
        ({"segmentation": None}, BOX, None),
        ({"segmentation": []}, BOX, None),
        ({"segmentation": [[1, 1, 4]]}, BOX, "mask parts: polygon with an odd number of coordinates"),
        ({"segmentation": [[30, 30, 40, 30, 40, 40]]}, BOX, "masks: segmentation that covers no pixel of the image"),
        ({"bbox": [5, 3, 3, 3]}, [5, 3, 8, 6], LEFT_OUT),  # the published results are told by the box
    ],
)
def test_a_row_goes_by_its_box_where_the_mask_is_of_no_use(workshop, changes, box, dropped):
    rows, report = workshop.of([ref(1, "a", "b")], instances(annotation(100, **changes)))
    assert [(row["boxes"], row["masks"]) for row in rows["train"]] == [([box], []), ([box], [])]
    assert report.kept["expressions by a box alone, for want of a mask"] == 2
    assert report.examples == ({dropped: ["ref 1, annotation 100"]} if dropped else {})
    if dropped:
        with pytest.raises(ValueError, match=re.escape(f"ref 1, annotation 100: {dropped}")):
            workshop.build(strict=True)


@pytest.mark.parametrize("bbox", [None, []])
def test_an_object_without_a_box_has_its_masks(workshop, bbox):
    rows, report = workshop.of([ref(1)], instances(annotation(100, bbox=bbox)))
    assert [(row["boxes"], len(row["masks"])) for row in rows["train"]] == [([BOX], 1)] and not report.dropped
    rows, report = workshop.of([ref(1)], instances(annotation(100, bbox=[1, 1, 0, 0])))
    assert [(row["boxes"], len(row["masks"])) for row in rows["train"]] == [([BOX], 1)]
    assert report.dropped == {"boxes: box without area in the image; the mask's own is taken": 1}
    rows, report = workshop.of([ref(1), ref(2)], instances(annotation(100, bbox=bbox, segmentation=None)))
    assert not rows["train"] and report.dropped == {"expressions: of an object with neither a box nor a mask": 2}


def test_numbers_and_ids_may_be_text(workshop):
    expected, _ = workshop.of([ref(1)], instances(annotation(100)), strict=True)
    written = annotation("100", image_id="1", category_id="3", bbox=["1", "1.0", 3, 3.0])
    content = instances(written, images=[image(1) | {"id": "1", "width": float(WIDTH), "height": f"{HEIGHT}"}])
    content["categories"] = [{"id": "3", "name": "dog"}] * 2
    assert workshop.of([ref(1)], content, strict=True)[0] == expected
    assert workshop.of([ref(1, ann_id="100")], content, strict=True)[0] == expected


def test_a_box_is_cut_to_the_image_and_an_unlisted_category_left_out(workshop):
    plain = annotation(100, bbox=[-1, -0.5, 5, 4], segmentation=None, category_id=9)
    (row,) = workshop.of([ref(1)], instances(plain))[0]["train"]
    assert (row["boxes"], row["categories"]) == ([[0, 0, 4, 3.5]], [])


@pytest.mark.parametrize("folder", ["", "train2014/"])
def test_images_lie_in_the_folder_or_in_cocos_folder_in_it(workshop, folder):
    data = workshop.image(folder + "COCO_train2014_000000000001.jpg")
    rows, report = workshop.of([ref(1, "a", "b")], images=True)
    assert [row["image"] for row in rows["train"]] == [{"bytes": data, "path": None}] * 2
    assert report.kept["images"] == 1


# gRefCOCO -------------------------------------------------------------------------------------------------------------

SECOND = annotation(101, category_id=4, bbox=[5, 0, 2, 2], segmentation=[[5, 0, 7, 0, 7, 2, 5, 2]])


def gref(id_: int, targets, *texts: str, **changes):
    """As in `grefs(unc).json`: `file_name` is a cut-out's name or the image's."""
    sentences = [{"sent": text, "raw": text, "sent_id": i, "tokens": text.split()} for i, text in enumerate(texts)]
    categories = [-1 if target == -1 else 3 for target in targets] if isinstance(targets, list) else targets
    plain = {"ref_id": id_, "ann_id": targets, "category_id": categories, "image_id": 1, "split": "val"}
    more = {"file_name": "COCO_train2014_000000000001.jpg", "sentences": sentences, "sent_ids": [0]}
    return plain | more | {"no_target": targets in ([-1], -1)} | changes


def of_grefs(workshop, refs, *annotations, **options):
    workshop.write("grefs(unc).json", refs)
    content = instances(annotation(100), SECOND, annotation(200, image_id=2), *annotations)
    content["categories"].append({"id": 4, "name": "cat"})
    workshop.write("instances.json", content)
    rows, report = workshop.build(**options)
    return rows.get("validation"), report


def test_an_expression_has_the_boxes_and_masks_of_all_its_targets_and_one_without_is_absent(workshop):
    refs = [gref(7, [100, 101], "two pets", "both of them"), gref(135, [-1], "the black keyboard"), gref(8, [101], "a")]
    rows, report = of_grefs(workshop, refs, strict=True)
    assert [(row["phrase"], row["boxes"], row["categories"], row["absent"]) for row in rows] == [
        *((phrase, [BOX, [5, 0, 7, 2]], ["dog", "cat"], False) for phrase in ("two pets", "both of them")),
        ("the black keyboard", [], [], True),
        ("a", [[5, 0, 7, 2]], ["cat"], False),
    ]
    assert [[decoded(mask).sum() for mask in row["masks"]] for row in rows] == [[9, 4], [9, 4], [], [4]]
    without = "expressions without a target, as absent phrases"
    assert report.kept == {"images": 1, "objects": 3, "expressions": 4, without: 1} and not report.dropped
    # Written otherwise: alone, as text, without no_target, an id twice, as a pickle, whose file is then taken.
    refs = [
        gref(7, ["100", 101, 101], "two pets", "both of them"),
        gref(7, -1, "the black keyboard"),
        gref(8, 101, "a"),
    ]
    refs = [{key: value for key, value in ref.items() if key != "no_target"} for ref in refs]
    assert of_grefs(workshop, refs, strict=True)[0] == rows
    workshop.write("grefs(unc).p", pickle.dumps(refs, 2))
    assert of_grefs(workshop, [], strict=True)[0] == rows


def test_an_expression_that_lost_a_target_is_left_out_but_not_for_one_beside_the_image(workshop):
    flat, beside = annotation(300, bbox=[1, 1, 0, 0], segmentation=None), annotation(301, bbox=[9, 1, 3, 3])
    boxes = annotation(302, segmentation=None), beside | {"segmentation": None}
    refs = [gref(1, [100, 300], "a", "b"), gref(2, [100, 302], "c"), gref(3, [100, 301], "d"), gref(4, [301], "e")]
    rows, report = of_grefs(workshop, refs, flat, *boxes)
    assert [(row["phrase"], row["boxes"], len(row["masks"])) for row in rows] == [("c", [BOX] * 2, 0), ("d", [BOX], 1)]
    assert report.dropped == {
        "expressions: box without area in the image": 3,
        "objects: box without area in the image": 1,
    }
    assert report.kept["objects"] == 3 and report.kept["expressions by a box alone, for want of a mask"] == 1


def test_targets_that_cannot_be_are_counted_or_refused(workshop):
    refs = [
        gref(1, [100, -1], "a"),
        gref(2, [100, 200], "b"),
        gref(3, [100], "c", no_target=True),
        gref(4, [-1], "d", no_target=False),
        gref(5, [], "e", no_target=True),
    ]
    rows, report = of_grefs(workshop, refs)
    assert [(row["phrase"], row["absent"]) for row in rows] == [("e", True)]
    assert report.dropped == {
        "expressions: of an annotation that is not in instances.json": 1,
        "expressions: of an annotation in another image": 1,
        "expressions: whose ann_id and no_target contradict each other": 2,
    }
    for broken, message in (
        (gref(1, [None], "a"), "ann_id is neither .* nor a list"),
        (gref(1, [100], "a", no_target="no"), "no_target is neither"),
    ):
        with pytest.raises(ValueError, match=rf"grefs\(unc\)\.json: ref 1 \(number 0 in the file\): {message}"):
            of_grefs(workshop, [broken])
    workshop.write("grefs(unc).json", "[{")
    with pytest.raises(ValueError, match=r"grefs\(unc\)\.json is not JSON, or was cut off"):
        workshop.build()


def test_refs_and_grefs_of_one_name_are_told_apart(workshop):
    workshop.put([ref(1, "of refs")])
    with pytest.raises(ValueError, match=r"several splits, say which: splits_by may be grefs\(unc\), refs\(unc\)"):
        of_grefs(workshop, [gref(1, [100], "of grefs")])
    assert of_grefs(workshop, [gref(1, [100], "of grefs")], splits_by="grefs(unc)")[0][0]["phrase"] == "of grefs"
    assert workshop.build(splits_by="refs(unc)")[0]["train"][0]["phrase"] == "of refs"


# What is dropped ------------------------------------------------------------------------------------------------------

DROPPED = {
    "of an annotation that is not in instances.json": {"ann_id": 999},
    "of an annotation that is not in instances.json ": {"ann_id": []},  # and not absent, as gRefCOCO's [-1] are
    "of an annotation in another image": {"ann_id": 200},
    "of an image that is not in instances.json": {"ann_id": 900, "image_id": 9},
    **{f"of an unknown split, {name!r}": {"split": name} for name in ("valA", "testD", "testAX", "validation", "")},
    "box without area in the image": {"ann_id": 800},
}


@pytest.mark.parametrize("reason", DROPPED)
def test_expressions_of_no_use_are_counted_and_named_in_strict_mode(workshop, reason):
    flat = annotation(800, bbox=[1, 1, 0, 0], segmentation=None)
    content = instances(annotation(100), annotation(200, image_id=2), flat, annotation(900, image_id=9))
    rows, report = workshop.of([ref(1, "a", "b") | DROPPED[reason], ref(2, "c")], content)
    assert [row["phrase"] for row in rows["train"]] == ["c"]
    assert report.dropped == {f"expressions: {reason.strip()}": 2}
    with pytest.raises(ValueError, match=f"ref 1: expressions: {re.escape(reason.strip())}"):
        workshop.build(strict=True)


def test_expressions_without_a_word_are_counted(workshop):
    rows, report = workshop.of([ref(1, "a", " ", "", "b")])
    assert [row["phrase"] for row in rows["train"]] == ["a", "b"]
    assert report.dropped == {"expressions: without a word": 2} and report.kept["expressions"] == 2
    with pytest.raises(ValueError, match="ref 1, sentence 1: expressions: without a word"):
        workshop.build(strict=True)


# Files ----------------------------------------------------------------------------------------------------------------


def test_the_one_pickle_is_taken_and_of_several_the_named_one(workshop):
    with pytest.raises(ValueError, match=r"data has no file refs\("):
        workshop.build()
    workshop.put([ref(1, "of unc")], splits_by="unc")
    assert workshop.build()[0]["train"][0]["phrase"] == "of unc"
    workshop.put([ref(1, "of google")], splits_by="google")
    assert workshop.build(splits_by="google")[0]["train"][0]["phrase"] == "of google"
    with pytest.raises(ValueError, match="several splits, say which: splits_by may be google, unc"):
        workshop.build()
    with pytest.raises(ValueError, match="no split by umd: splits_by may be google, unc"):
        workshop.build(splits_by="umd")


BROKEN_REFS = {
    "no list": ({"refs": []}, "is not a list of refs"),
    "ref id twice": ([ref(1), ref(1)], r"ref 1 \(number 1 in the file\): its id occurs twice"),
    "ref id missing": ([{}], r"ref None \(number 0 in the file\): ref_id is not a whole number"),
    "no annotation": ([ref(1, ann_id=None)], "ann_id is neither"),
    "image id is a name": ([ref(1, image_id="one")], "image_id is not a whole number"),
    "no split": ([ref(1, split=None)], "split is not text"),
    "no sentences": ([ref(1, sentences=None)], "sentences is not a list"),
    "sentence is text": ([ref(1, sentences=["left dog"])], "sentences is not a list"),
    "a set": ([ref(1, sent_ids={1})], r"refs\(unc\)\.p is not read: it asks for"),
    "numpy's number": ([ref(1, ann_id=np.int64(100))], r"refs\(unc\)\.p is not read: it asks for numpy"),
}


@pytest.mark.parametrize("case", BROKEN_REFS)
def test_a_broken_pickle_is_refused_with_its_ref(workshop, case):
    refs, message = BROKEN_REFS[case]
    with pytest.raises(ValueError, match=message):
        workshop.of(refs)


def test_broken_instances_are_refused_unless_no_ref_asks_for_them(workshop):
    """What else test_coco.py has of broken files: it is one reader."""
    broken = annotation(200, bbox=[1, 2, 3], segmentation=None)
    assert workshop.of([ref(1)], instances(annotation(100), broken, broken))[0]["train"]
    with pytest.raises(ValueError, match=r"instances\.json: annotation 200: bbox cannot be"):
        workshop.of([ref(1), ref(2, ann_id=200)], instances(annotation(100), broken))
    with pytest.raises(ValueError, match=r"instances\.json: annotation id 100 occurs twice"):
        workshop.of([ref(1)], instances(annotation(100), annotation(100)))


# Proposals ------------------------------------------------------------------------------------------------------------

CUT_OUT = "COCO_train2014_000000000001_{}.jpg".format
TWO = [[1, 1, 3, 3], [2.5, 0, 4, 5]]
LAYOUTS = {
    "by image": {"1": [[1, 1, 3, 3, 0.9, 17], [2.5, 0, 4, 5]], "77": []},
    "by detection": [
        {"det_id": 1, "image_id": 1, "box": TWO[0], "score": 0.9, "category_id": 17},
        {"det_id": 2, "image_id": 1, "box": TWO[1], "score": 0.8, "category_id": 1},
    ],
    "by detection, ids with a point": [{"image_id": 1.0, "box": box} for box in TWO],
    "by expression": [
        {"sent": "a", "gt_box": TWO[0], "pred_boxes": TWO, "pred_boxes_img_id": [CUT_OUT(0), CUT_OUT(1)]},
        {"sent": "b", "gt_box": TWO[0], "pred_boxes": TWO[1:], "pred_boxes_img_id": [CUT_OUT(1)]},
    ],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_proposals_are_joined_by_image(workshop, layout):
    workshop.write("dets.json", LAYOUTS[layout])
    refs = [ref(1, "a", "b"), ref(2, "c", "d", "e", image_id=2, ann_id=200, split="testA")]
    rows, report = workshop.of(refs, proposals="dets.json")
    assert [row["proposals"] for row in rows["train"]] == [[[1, 1, 4, 4], [2.5, 0, 6.5, 5]]] * 2
    assert [row["proposals"] for row in rows["testA"]] == [[]] * 3
    assert report.kept["expressions without proposals"] == 3 and not report.dropped


@pytest.mark.parametrize("boxes", [[[1, 1, 5, 4], [4, 2, 8, 6], [5, 1, 7, 5]], [[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]]])
def test_proposals_in_other_units_are_refused(workshop, boxes):
    """Corners, some of which would fit as sizes; and shares."""
    workshop.write("dets.json", {"1": boxes})
    with pytest.raises(
        ValueError, match=r"dets\.json: . of . boxes end beyond .* are \[x, y, width, height\] in pixels"
    ):
        workshop.of([ref(1)], proposals="dets.json")


def test_proposals_stay_as_the_detector_gave_them_unless_evaluation_would_refuse_them(workshop):
    boxes = [
        [-1, -1, 9, 4],
        [8, 0, 3, 3],
        [2, 2, 0, 3],
        [0, 0, 1, 1],
        [6, 0, 6, 3],
    ]  # of the last one a third is inside
    path = workshop.write("../dets.json", {"1": boxes})
    rows, report = workshop.of([ref(1, "a", "b")], proposals=str(path))
    assert [row["proposals"] for row in rows["train"]] == [[[-1, -1, 8, 3], [0, 0, 1, 1]]] * 2
    assert report.dropped == {
        "proposals: box without area in the image": 2,
        "proposals: box that is mostly outside of the image": 1,
    }
    for proposal in rows["train"][0]["proposals"]:
        assert len(read_boxes([proposal], "proposal", HEIGHT, WIDTH, "xyxy"))
    with pytest.raises(ValueError, match="proposal 0 lies outside the image"):
        read_boxes([[6, 0, 12, 3]], "proposal", HEIGHT, WIDTH, "xyxy")
    with pytest.raises(ValueError, match=r"image 1 .*: proposals: box without area"):
        workshop.build(proposals=str(path), strict=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"9": [[1, 1, 3, 3]]}, "has no box for any image .*COCO_train2014_000000000001.jpg.*another data set"),
        ({"1": [[1, 1, 3]]}, r"image 1: '\[1, 1, 3\]' is not a box"),
        ({"1": [[1, 1, 3, "3px"]]}, "image 1: .* is not a box"),
        ({"1": None}, "image 1: .* is not a box"),
        ([{"image_id": 1, "box": {"x": 1}}], "detection 0: .* is not a box"),
        ([{"image_id": 1, "bbox": [1, 1, 3, 3]}], "in no known layout of proposals"),
        ('"boxes"', "in no known layout of proposals"),
        ([{"pred_boxes": [[1, 1, 3, 3]], "pred_boxes_img_id": []}], "expression 0: .* not one name for each"),
        ([{"pred_boxes": [[1, 1, 3, 3]], "pred_boxes_img_id": ["x.jpg"]}], "'x.jpg' is not a cut-out's name"),
        (
            [{"pred_boxes": [[1, 1, 3, side]], "pred_boxes_img_id": [CUT_OUT(0)]} for side in (3, 4)],
            "expression 1: .*another box",
        ),
    ],
)
def test_bad_proposals_are_refused(workshop, content, message):
    workshop.write("dets.json", content)
    with pytest.raises(ValueError, match=message):
        workshop.of([ref(1)], proposals="dets.json")
    with pytest.raises(ValueError, match=r"none\.json: No such file"):
        workshop.of([ref(1)], proposals="none.json")


@pytest.mark.shared
def test_the_sample_of_real_proposals(workshop, shared_dir):
    """Its expressions and boxes, put into the toolkit's layout, with its proposals."""
    sample = shared_dir / "data" / "refcoco" / "testA_refcoco_unc_dets.json"
    records = json.loads(sample.read_text())
    assert len(records) == 50
    images, annotations, refs = {}, [], {}
    for record in records:
        name = record["pred_boxes_img_id"][0].rsplit("_", 1)[0] + ".jpg"
        id_ = int(name[-16:-4])
        images[id_] = image(id_, file_name=name, width=640, height=640)
        key = (id_, *record["gt_box"])
        if key not in refs:
            refs[key] = ref(len(refs), image_id=id_, ann_id=len(refs), split="testA", sentences=[])
            annotations.append(annotation(len(refs) - 1, image_id=id_, bbox=record["gt_box"], segmentation=None))
        refs[key]["sentences"].append({"sent": record["sent"]})
    content = instances(*annotations, images=list(images.values()))
    rows, report = workshop.of(list(refs.values()), content, proposals=str(sample))
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
    assert sum(map(len, read_proposals(sample).values())) == len({n for r in records for n in r["pred_boxes_img_id"]})
