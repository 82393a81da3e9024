"""Files of phrases with boxes (ODVG, PhraseCut, X-VLM, Localized Narratives), written as their tools write them."""

import json

import pytest

from dataset_scripts import phrase_files
from dataset_scripts.build import builder_class
from dataset_scripts.phrase_files import span_of
from tests.helpers.builders import MISSING, Workshop, decoded, json_lines, name_in_source

SIZE = {"height": 480, "width": 640}


@pytest.fixture
def workshop(tmp_path):
    return lambda name: Workshop(builder_class(name), tmp_path)


def told(rows):
    return [(name_in_source(row["image_id"]), row["phrase"], row["boxes"]) for row in rows]


# What all have in common ----------------------------------------------------------------------------------------------


def grounding(*regions, filename="1.jpg", caption="two dogs run", **more):
    regions = [{"phrase": phrase, "bbox": bbox} for phrase, bbox in regions]
    return {"filename": filename, **SIZE, "grounding": {"caption": caption, "regions": regions}, **more}


DOG = grounding(("two dogs", [10, 20, 30, 40]))


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train", "train"),
        ("coco_val2017_odvg", "validation"),
        ("valid", "validation"),
        ("refcoco.testA", "testA"),
        ("valid/annotations", "validation"),
        ("my-TEST", "test"),
        ("instances_train2017_vg", "train"),
    ],
)
def test_a_files_name_says_its_split(workshop, file, split):
    odvg = workshop("odvg")
    odvg.write(f"{file}.jsonl", json_lines([DOG]))
    assert list(odvg.build()[0]) == [split]
    assert list(odvg.build(split="mine")[0]) == ["mine"]


@pytest.mark.parametrize("file", ["data", "constrain", "train_val", "contest"])
def test_without_a_word_for_it_validation_is_drawn(workshop, file):
    odvg = workshop("odvg")
    odvg.write(f"{file}.jsonl", json_lines([DOG | {"filename": f"{i}.jpg"} for i in range(20)]))
    rows, _ = odvg.build(validation_fraction=0.2)
    assert list(rows) == ["train", "validation"] and rows["validation"]
    assert sorted(name for own in rows.values() for name, *_ in told(own)) == sorted(f"{i}.jpg" for i in range(20))
    assert list(odvg.build(validation_fraction=0.0)[0]) == ["train"]


def test_where_one_name_says_a_split_the_others_are_of_train(workshop):
    odvg = workshop("odvg")
    for name in "extra", "val":
        odvg.write(f"{name}.jsonl", json_lines([DOG | {"filename": f"{name}.jpg"}]))
    rows, report = odvg.build()
    assert {split: told(own)[0][0] for split, own in rows.items()} == {"train": "extra.jpg", "validation": "val.jpg"}
    assert report.kept["files that no split is named for, in train: extra.jsonl"] == 1
    assert list(odvg.build(annotations=" val.jsonl")[0]) == ["validation"]


def test_files_of_another_kind_are_passed_over_and_none_is_refused(workshop, monkeypatch):
    odvg = workshop("odvg")
    odvg.write("label_map.json", {"0": "dog"})
    odvg.write("instances.json", {"images": [], "annotations": []})
    with pytest.raises(
        ValueError, match=r"data has no \.json or \.jsonl file of records with grounding or detection or"
    ):
        odvg.build()
    odvg.write("below/train.json", [DOG])
    assert told(odvg.rows()[0]) == [("below/1.jpg", "two dogs", [[10, 20, 30, 40]])]
    monkeypatch.setattr(phrase_files, "_BEGINNING", 400)
    odvg.write("instances.json", '{"images": [' + 99 * '{"id": 1}, ')  # of gigabytes: what is longer is not read
    assert told(odvg.rows()[0])
    odvg.write("other.json", "7")
    with pytest.raises(ValueError, match=r"other\.json does not begin .* \(annotations names the files to read\)"):
        odvg.build()


def test_images_of_files_of_several_splits_lie_in_folders_of_theirs(workshop):
    """As COCO's and Roboflow's do: by one name there are several."""
    odvg = workshop("odvg")
    for file, folder in ("instances_train2017_od", "train2017"), ("b/valid/data", "b/valid"), ("test", "test"):
        odvg.write(f"{file}.jsonl", json_lines([DOG | {"filename": f"{i}.jpg"} for i in range(2)]))
        odvg.image(f"{folder}/0.jpg", (640, 480), quality=50 + len(folder))
    rows, report = odvg.build(True)
    assert {split: [row["image"]["bytes"] for row in own] for split, own in rows.items()} == {
        split: [(odvg.images / folder / "0.jpg").read_bytes()]
        for split, folder in (("test", "test"), ("train", "train2017"), ("validation", "b/valid"))
    }
    assert report.dropped[MISSING] == 3
    odvg.image("train2017/sub/1.jpg", (640, 480))  # which is no image of another split
    assert {split: len(own) for split, own in odvg.build(True)[0].items()} == {"test": 1, "train": 2, "validation": 1}


OTHER = DOG | {"filename": "ö.jpg"}
FORMS = {
    "Windows": "\ufeff" + json_lines([DOG, OTHER, DOG]).replace("\n", "\r\n"),
    "a list": json.dumps([DOG, OTHER, DOG], indent=1, ensure_ascii=False),
    "no line at the end": json_lines([DOG, OTHER]) + json.dumps(DOG),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_file(workshop, form):
    odvg = workshop("odvg")
    odvg.write("train.jsonl", FORMS[form])
    rows, report = odvg.rows(strict=True)
    again = "images that are listed again, taken together with the first"
    assert len(rows) == 2 and report.kept == {"images": 2, "rows with boxes": 2, again: 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json_lines([DOG])[:-20], r"train\.jsonl is not JSON, or was cut off, after 0 records"),
        (json_lines([DOG]) + "{", r"train\.jsonl is not JSON, or was cut off, after 1 records"),
        (json_lines([DOG]) + "7\n", r"train\.jsonl: record 1 is none with grounding or detection or referring: 7"),
        ("", r"train\.jsonl does not begin with"),
        ("a,b", r"train\.jsonl does not begin with"),
        (json_lines([DOG]).encode("utf-16"), r"train\.jsonl is UTF-16, .*: save it as UTF-8"),
    ],
)
def test_a_broken_file_is_refused_by_name(workshop, content, message):
    odvg = workshop("odvg")
    odvg.write("train.jsonl", content)
    with pytest.raises(ValueError, match=message):
        odvg.build()
    with pytest.raises(ValueError, match=r"other\.jsonl: No such file"):
        odvg.build(annotations="other.jsonl")


def test_names_of_images_of_windows_and_of_other_machines(workshop):
    odvg = workshop("odvg")
    whole = odvg.image("a b/ö.jpg", (640, 480))
    names = ["a b\\ö.jpg", "/data/a b/ö.jpg", "/other/1.jpg", "../1.jpg", "https://x.org/1.jpg"]
    odvg.write("train.jsonl", json_lines([DOG | {"filename": name} for name in names]))
    rows, report = odvg.rows(True)
    assert [row["image"]["bytes"] == whole for row in rows] == [True]
    remedy = "name them as they are there (albef_json: --image_prefix)"
    assert report.dropped == {
        f"images: their name leads out of the folder of the images: {remedy}": 3,
        "images: named by an address; download them, and name the files instead": 1,
        "records of images that cannot be used": 4,
    }
    rows, report = odvg.rows(True, image_prefix="/data/")
    assert [row["image"]["bytes"] == whole for row in rows] == [True]
    assert report.dropped == {"images: their name does not begin with image_prefix": 4}


@pytest.mark.parametrize("lost", [{"bbox": None}, {"bbox": []}, {}])
def test_a_phrase_one_of_whose_boxes_is_missing_is_lost(workshop, lost):
    """Elsewhere its other one would count as all that it means. In whatever case the phrase is written."""
    odvg, instance = workshop("odvg"), {"label": 0, "category": "cat"}
    parts = [instance | {"bbox": [1, 2, 3, 4]}, instance | lost | {"category": "Cat"}]
    whole = [instance | {"bbox": [1, 2, 3, 4]}, instance | {"bbox": [5, 2, 7, 4], "category": "Cat"}]
    records = [
        {"filename": f"{i}.jpg", **SIZE, "detection": {"instances": own}} for i, own in enumerate((parts, whole))
    ]
    odvg.write("train.jsonl", json_lines(records))
    rows, report = odvg.rows()
    assert told(rows) == [("1.jpg", "cat", [[1, 2, 3, 4], [5, 2, 7, 4]])]
    assert report.dropped["phrases: one of their boxes is lost"] == 1


def test_what_is_lost_is_counted_and_named(workshop):
    odvg = workshop("odvg")
    records = [
        grounding(("one", [1, 2, 3, 4]), ("one", [-9, 2, -3, 4]), ("two", [1, 2, 3, 4]), ("two", [5, 5, 5, 9])),
        grounding(("", [1, 2, 3, 4]), (7, [1, 2, 3, 4]), ("cut", [600, 2, 650, 4]), ("far", [1, 2, "x", 4])),
        {"filename": "1.jpg", **SIZE},
        grounding(filename=""),
        grounding(("a", None)),
        *[grounding(("good", [1, 2, 3, 4]))] * 3,
    ]
    odvg.write("train.jsonl", json_lines(records))
    rows, report = odvg.rows()
    assert [row["phrase"] for row in rows] == ["one", "cut", "good"]
    assert rows[0]["boxes"] == [[1, 2, 3, 4]] and rows[1]["boxes"] == [[600, 2, 640, 4]]
    assert report.dropped == {
        "boxes: box without area in the image": 2,  # one of them beside the image
        "phrases: one of their boxes is lost": 1,
        "phrases: missing, empty or no text": 2,
        "boxes: not four numbers of pixels": 2,
        "phrases: none of their boxes is of use": 2,
        "records: without a list of regions": 1,
        "records without image (filename)": 1,
    }
    assert report.examples["phrases: one of their boxes is lost"] == ["train.jsonl, record 0 (two)"]
    with pytest.raises(ValueError, match=r"train\.jsonl, record 1: phrases: missing, empty"):
        odvg.rows(strict=True)


def test_where_a_phrase_is_in_its_caption():
    caption = "Two dogs , a small dog and a cat."
    assert span_of("two dogs", caption) == (0, 2) and span_of("a cat", caption) == (7, 9)
    assert span_of("a", caption) is span_of("a bird", caption) is span_of("", caption) is None


def detection(filename, *instances):
    listed = [{"bbox": box, "label": 0, "category": category} for category, box in instances]
    return {"filename": filename, **SIZE, "detection": {"instances": listed}}


CAT, SECOND, THIRD = [1, 2, 30, 40], [5, 6, 70, 80], [9, 9, 11, 11]
AGAIN = {
    "neighbours": {"train.jsonl": ["1.jpg", "1.jpg", "2.jpg"]},
    "apart": {"train.jsonl": ["1.jpg", "2.jpg", "1.jpg"]},
    "two files": {"coco_train.jsonl": ["1.jpg"], "lvis_train.jsonl": ["1.jpg", "2.jpg"]},
    "folders": {"a/train.jsonl": ["1.jpg"], "b/train.jsonl": ["2.jpg", "1.jpg"]},
    "another spelling": {"train.jsonl": ["1.jpg", "2.jpg", "./1.jpg"]},
    "another name": {"train.jsonl": ["1.jpg", "2.jpg", "1"]},
}


@pytest.mark.parametrize("is_drawn", [False, True])
@pytest.mark.parametrize("form", AGAIN)
def test_a_photo_that_is_listed_again_has_one_row_a_phrase(workshop, form, is_drawn):
    """With the boxes of all, wherever it is listed; as in formats of labels."""
    odvg = workshop("odvg")
    for name in "1.jpg", "2.jpg":
        odvg.image(name, (640, 480))
    boxes = {"1.jpg": iter((CAT, SECOND)), "2.jpg": iter((THIRD,))}
    names = {"1": "1.jpg", "./1.jpg": "1.jpg"}
    spelled = iter(["t-shirt", "T shirt", "t_shirt"])
    for file, listed in AGAIN[form].items():
        records = [detection(each, (next(spelled), next(boxes[names.get(each, each)]))) for each in listed]
        odvg.write(file.replace("train", "set") if is_drawn else file, json_lines(records))
    rows, report = odvg.build(True, strict=True, **({"validation_fraction": 0.0} if is_drawn else {}))
    rows = {row["image"]["bytes"]: row["boxes"] for row in rows["train"]}, len(rows["train"])
    one, two = ((odvg.images / name).read_bytes() for name in ("1.jpg", "2.jpg"))
    assert rows == ({one: [CAT, SECOND], two: [THIRD]}, 2)
    assert report.kept["images"] == 2


def test_a_photo_of_several_splits_is_in_each_of_them(workshop):
    odvg = workshop("odvg")
    for split, box in ("train", CAT), ("val", SECOND):
        odvg.write(f"{split}.jsonl", json_lines([detection("1.jpg", ("cat", box))]))
    rows, _ = odvg.build()
    assert {split: told(own) for split, own in rows.items()} == {
        "train": [("1.jpg", "cat", [CAT])], "validation": [("1.jpg", "cat", [SECOND])]
    }  # fmt: skip


def test_a_phrase_in_captions_has_a_row_for_each_of_them(workshop):
    """As Flickr30k has five captions an image; the same caption twice is one, and so is the same box."""
    odvg = workshop("odvg")
    records = [grounding(("a dog", CAT), caption="a dog runs"), grounding(("a dog", SECOND), caption="here is a dog")]
    records += [grounding(("a dog", box), caption="a dog runs") for box in (CAT, THIRD)]
    odvg.write("train.jsonl", json_lines(records))
    rows, _ = odvg.rows()
    assert [(row["caption"], row["caption_span"], row["boxes"]) for row in rows] == [
        ("a dog runs", [0, 2], [CAT, THIRD]), ("here is a dog", [2, 4], [SECOND])
    ]  # fmt: skip


def test_a_box_that_is_lost_is_named_with_all_records_of_its_phrase(workshop):
    odvg = workshop("odvg")
    records = [detection(name, ("cat", box)) for name, box in (("1.jpg", CAT), ("2.jpg", CAT), ("1.jpg", [9, 9, 9, 9]))]
    odvg.write("train.jsonl", json_lines([*records, detection("1.jpg", ("dog", CAT))]))
    rows, report = odvg.rows()
    assert told(rows) == [("1.jpg", "dog", [CAT]), ("2.jpg", "cat", [CAT])]
    named = ["train.jsonl, record 0 and train.jsonl, record 2 (cat)"]
    assert report.examples["phrases: one of their boxes is lost"] == named


# ODVG -----------------------------------------------------------------------------------------------------------------


def test_odvg_as_open_groundingdino_writes_it(workshop):
    """Of its README: COCO's instances, GRIT's phrases; and both in one record."""
    odvg = workshop("odvg")
    instances = [
        {"bbox": [382.48, 0.0, 639.28, 474.31], "label": 0, "category": "person"},
        {"bbox": [234.06, 406.61, 454.0, 449.28], "label": 43, "category": "table_knife"},
        {"bbox": [0.0, 316.04, 406.65, 473.53], "label": 0, "category": "person"},
    ]
    detection = {"filename": "000000522418.jpg", **SIZE, "detection": {"instances": instances}}
    grit = {
        "filename": "012378809.jpg",
        "height": 252,
        "width": 450,
        "grounding": {
            "caption": "naive : Heart graphics in a notebook background",
            "regions": [
                {"bbox": [93.8, 47.59, 126.19, 77.01], "phrase": "Heart graphics"},
                {"bbox": [2.49, 1.44, 448.74, 251.1], "phrase": "a notebook background"},
            ],
        },
    }
    again = grit | {"filename": "2.jpg", "detection": {"instances": []}}
    odvg.write("coco2017_train_odvg.jsonl", json_lines([detection, grit, again]))
    rows, report = odvg.rows(strict=True)
    assert told(rows[:2]) == [
        ("000000522418.jpg", "person", [instances[0]["bbox"], instances[2]["bbox"]]),
        ("000000522418.jpg", "table knife", [instances[1]["bbox"]]),
    ]
    assert told(rows[2:]) == [
        (name, *own)
        for name in ("012378809.jpg", "2.jpg")
        for own in (
            ("Heart graphics", [[93.8, 47.59, 126.19, 77.01]]),
            ("a notebook background", [[2.49, 1.44, 448.74, 251.1]]),
        )
    ]
    assert [row["caption_span"] for row in rows] == [[], [], *[[2, 4], [5, 8]] * 2]
    assert rows[0]["caption"] is None and rows[2]["caption"] == grit["grounding"]["caption"]
    assert report.kept == {"images": 3, "rows with boxes": 6}


def test_odvg_as_mmdetection_writes_it(workshop):
    """Several boxes of a phrase, a phrase of several pieces, expressions of RefCOCO, labels by a map."""
    odvg = workshop("odvg")
    mixed = grounding(
        ("dogs", [[1, 2, 3, 4], [5, 6, 7, 8]]), (["a", "cat"], [9, 9, 11, 11]), caption="dogs and a big cat"
    )
    referring = {"filename": "2.jpg", **SIZE, "referring": [{"bbox": [1, 2, 3, 4], "phrase": ["left dog", "the dog"]}]}
    odvg.write("goldg_train_vg.json", json_lines([mixed, referring]))
    rows, _ = odvg.rows(strict=True)
    assert told(rows) == [
        ("1.jpg", "dogs", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("1.jpg", "a cat", [[9, 9, 11, 11]]),
        ("2.jpg", "left dog", [[1, 2, 3, 4]]),
        ("2.jpg", "the dog", [[1, 2, 3, 4]]),
    ]


def test_labels_of_odvg_have_their_names_from_the_label_map(workshop):
    odvg = workshop("odvg")
    instances = [{"bbox": [1, 2, 3, 4], "label": label} for label in (1, "1", 7, "cat")]
    odvg.write("train.jsonl", json_lines([{"filename": "1.jpg", **SIZE, "detection": {"instances": instances}}]))
    with pytest.raises(ValueError, match=r"train\.jsonl, record 0: its instances have labels without category: give"):
        odvg.build()
    odvg.write("my_label_map.json", {"0": "person", "1": "traffic_light"})
    rows, report = odvg.rows()
    assert [row["phrase"] for row in rows] == ["traffic light", "cat"]
    assert report.dropped == {"detection: without category, and of a label that the label map has not": 1}
    odvg.write("names.json", {"1": "lamp", "7": "dog"})
    assert [row["phrase"] for row in odvg.rows(label_map="names.json")[0]] == ["lamp", "dog", "cat"]
    for bad in ["person"], {"a": "person"}, {"0": 7}, {}:
        odvg.write("names.json", bad)
        with pytest.raises(ValueError, match=r"names\.json is no label map"):
            odvg.rows(label_map="names.json")


@pytest.mark.parametrize("box", [[300, 200, 50, 60], [0.1, 0.2, 0.5, 0.9]])
def test_odvg_of_another_box_format_is_refused(workshop, box):
    odvg = workshop("odvg")
    odvg.write("train.jsonl", json_lines([grounding(("a dog", box), ("a cat", [1, 2, 3, 4]))]))
    with pytest.raises(
        ValueError, match=r"train\.jsonl: 1 of 2 boxes are none .* bbox is expected to be \[x1, y1, x2, y2"
    ):
        odvg.build()


# X-VLM ----------------------------------------------------------------------------------------------------------------


def test_xvlm(workshop):
    xvlm = workshop("xvlm")
    elems = [
        {"caption": "the big dog", "bb": [1, 1, 3, 4]},
        {"caption": ["dog", "an animal"], "bb": [1, 1, 3, 4]},
        {"caption": "dog", "bb": ["5", 2, 2.5, 3]},
        {"caption": "car", "attributes": ["red", "old"], "bb": [0, 0, 2, 2]},
        {"caption": "tree", "attributes": "green", "bb": [0, 0, 2, 2]},
        {"caption": "", "bb": [0, 0, 2, 2]},
        {"bb": [0, 0, 2, 2]},
        7,
    ]
    records = [
        {"image": "1.png", "caption": ["a dog", "dogs and a car"], "elems": elems},
        {"binary": "aGk=", "elems": elems},
        {"elems": elems},
        {"image": "2.png", "elems": None},
        {"image": "2.png", "elems": []},
    ]
    xvlm.image("1.png")
    xvlm.image("2.png")
    xvlm.write("vg_train.jsonl", json_lines(records))
    for images in True, False:
        rows, report = xvlm.rows(images)
        assert [(row["phrase"], row["boxes"]) for row in rows] == [
            ("a dog", []),
            ("dogs and a car", []),
            ("the big dog", [[1, 1, 4, 5]]),
            ("dog", [[1, 1, 4, 5], [5, 2, 7.5, 5]]),
            ("an animal", [[1, 1, 4, 5]]),
            ("red car", [[0, 0, 2, 2]]),
            ("old car", [[0, 0, 2, 2]]),
            ("green tree", [[0, 0, 2, 2]]),
        ]
        assert report.dropped == {
            "phrases: missing, empty or no text": 2,
            "elems: that are no records": 1,
            "records with the image itself (binary): write it to a file": 1,
            "records without image": 1,
            "records: without a list of regions (elems)": 1,
        }


def test_captions_of_xvlm_in_several_records_have_the_regions_of_all(workshop):
    xvlm = workshop("xvlm")
    elems = [[{"caption": caption, "bb": box}] for caption, box in (("dog", [1, 1, 3, 4]), ("Dog", [5, 2, 2.5, 3]))]
    records = [{"image": name, "elems": own} for name, own in zip(("1.png", "./1.png"), elems)]
    xvlm.write("vg_train.jsonl", json_lines([records[0], {"image": "2.png", "elems": elems[0]}, records[1]]))
    rows, _ = xvlm.rows()
    assert told(rows) == [("1.png", "dog", [[1, 1, 4, 5], [5, 2, 7.5, 5]]), ("2.png", "dog", [[1, 1, 4, 5]])]


def test_xvlm_with_corners_is_refused_where_images_tell(workshop):
    xvlm = workshop("xvlm")
    xvlm.image("1.png")
    elems = [{"caption": "dog", "bb": [4, 3, 8, 6]}, {"caption": "cat", "bb": [1, 1, 2, 2]}]
    xvlm.write("train.jsonl", json_lines([{"image": "1.png", "elems": elems}]))
    message = r"train\.jsonl: 1 of 2 boxes .* would not as corners .*: bb is expected to be \[x, y, width, height\]"
    with pytest.raises(ValueError, match=message):
        xvlm.build(True)
    few = [*elems, *[{"caption": f"cat {i}", "bb": [1, 1, 2, 2]} for i in range(3)]]
    xvlm.write("train.jsonl", json_lines([{"image": "1.png", "elems": few}]))
    rows, report = xvlm.rows(True)
    assert "dog" not in [row["phrase"] for row in rows] and len(rows) == 4
    assert report.dropped["phrases: none of their boxes is of use"] == 1


# PhraseCut ------------------------------------------------------------------------------------------------------------


def task(phrase, boxes, polygons, image=7):
    return {
        "task_id": f"{image}__1",
        "image_id": image,
        "ann_ids": [1],
        "phrase": phrase,
        "phrase_structure": {"name": "dog", "attributes": [], "type": "name"},
        "instance_boxes": boxes,
        "Polygons": polygons,
    }


SQUARE = [[1, 1], [4, 1], [4, 4], [1, 4]]
OTHER = [[5, 2], [7, 2], [7, 5], [5, 5]]
AGAINST = "boxes: contradict their mask (IoU below 0.5); the mask's own is taken"


def test_phrasecut_with_corners_is_refused_where_images_tell(workshop):
    phrasecut = workshop("phrasecut")
    phrasecut.image("7.jpg")
    phrasecut.write("refer_train.json", [task("dog", [[5, 1, 7, 4]], [[]])])
    with pytest.raises(ValueError, match=r"1 of 1 boxes .* would not as corners .*: instance_boxes is expected to be"):
        phrasecut.build(True)


def test_phrasecut(workshop):
    phrasecut = workshop("phrasecut")
    phrasecut.image("VG_100K_2/7.jpg")
    two = task("two dogs", [[1, 1, 3, 3], [5, 2, 2, 3]], [[SQUARE], [OTHER]])
    phrasecut.write("refer_train.json", [two, task("dogs in one piece", [[1, 1, 6, 4]], [[SQUARE, OTHER]])])
    phrasecut.write("refer_val.json", [task("dog", [[1, 1, 3, 3]], [[SQUARE]])])
    phrasecut.write("refer_miniv.json", [task("dog", [[1, 1, 3, 3]], [[SQUARE]])])
    phrasecut.write("refer_input_train.json", [{"task_id": "7__1", "image_id": 7, "phrase": "two dogs"}])
    rows, report = phrasecut.build(True, strict=True)
    assert list(rows) == ["miniv", "train", "validation"] and report.kept["rows (an image and a phrase)"] == 4
    first, second = rows["train"]
    assert told([first]) == [("7.jpg", "two dogs", [[1, 1, 4, 4], [5, 2, 7, 5]])]
    assert [decoded(mask).sum() for mask in first["masks"]] == [9, 6]
    assert decoded(first["masks"][1])[2:5, 5:7].all()
    assert [decoded(mask).sum() for mask in second["masks"]] == [15]


def test_a_phrase_of_phrasecut_in_several_records_has_the_instances_of_all(workshop):
    """One that both have once."""
    phrasecut = workshop("phrasecut")
    phrasecut.image("7.jpg")
    phrasecut.image("8.jpg")
    records = [task("a Dog", [[1, 1, 3, 3]], [[SQUARE]]), task("cat", [[5, 2, 2, 3]], [[OTHER]], image=8)]
    records.append(task("a dog", [[1, 1, 3, 3], [5, 2, 2, 3]], [[SQUARE], [OTHER]]))
    phrasecut.write("refer_train.json", records)
    rows, _ = phrasecut.rows(True, strict=True)
    assert told(rows) == [("7.jpg", "a Dog", [[1, 1, 4, 4], [5, 2, 7, 5]]), ("8.jpg", "cat", [[5, 2, 7, 5]])]
    assert [len(row["masks"]) for row in rows] == [2, 1]


def test_phrasecut_without_images_has_its_sizes_from_the_list(workshop):
    phrasecut = workshop("phrasecut")
    phrasecut.write("refer_val.json", [task("dog", [[1, 1, 3, 3]], [[SQUARE]])])
    rows, report = phrasecut.build()
    assert rows["validation"][0]["masks"] == [] and rows["validation"][0]["boxes"] == [[1, 1, 4, 4]]
    assert report.kept["rows by boxes alone, for want of a segmentation"] == 1
    phrasecut.write("image_data_split3000.json", [{"image_id": 7, "width": 8, "height": 6, "split": "val"}])
    assert decoded(phrasecut.build(strict=True)[0]["validation"][0]["masks"][0]).sum() == 9


@pytest.mark.parametrize(
    ("changes", "reason", "box"),
    [
        (
            {"Polygons": [[OTHER]]},
            "boxes: contradict their mask (IoU below 0.5); the mask's own is taken",
            [5, 2, 7, 5],
        ),
        ({"instance_boxes": ["x"]}, "boxes: not four finite numbers; the mask's own is taken", [1, 1, 4, 4]),
        ({"Polygons": [[SQUARE], [SQUARE]]}, "masks: not as many as boxes (Polygons)", None),
        ({"Polygons": [[[[1, 1]]]]}, "mask parts: polygon of fewer than three points", None),
        ({"Polygons": None}, None, None),
    ],
)
def test_phrasecuts_boxes_and_polygons_stand_in_for_each_other(workshop, changes, reason, box):
    """`box`: of the mask; none where there is no mask."""
    phrasecut = workshop("phrasecut")
    phrasecut.image("7.jpg")
    phrasecut.write("refer_train.json", [task("dog", [[1, 1, 3, 3]], [[SQUARE]]) | changes])
    rows, report = phrasecut.rows(True)
    assert rows[0]["boxes"] == [box or [1, 1, 4, 4]] and len(rows[0]["masks"]) == bool(box)
    assert list(report.dropped) == ([reason] if reason else [])
    if reason:
        with pytest.raises(ValueError, match=r"refer_train\.json, record 0: (mask|boxes)"):
            phrasecut.rows(True, strict=True)


# Localized Narratives -------------------------------------------------------------------------------------------------


def narrative(said, traces, caption=None, **more):
    """`said`: (utterance, start, end); `traces`: lists of (t, x, y)."""
    return {
        "dataset_id": "mscoco_val2017",
        "image_id": "137576",
        "annotator_id": 93,
        "caption": caption or " ".join(utterance for utterance, *_ in said),
        "timed_caption": [{"utterance": text, "start_time": start, "end_time": end} for text, start, end in said],
        "traces": [[{"x": x, "y": y, "t": t} for t, x, y in trace] for trace in traces],
        "voice_recording": "coco_val/coco_val_137576_93.ogg",
        **more,
    }


COWS = [
    ("In this", 0.0, 0.4),
    ("image", 0.4, 0.8),
    ("there are", 1.0, 1.2),
    ("group of cows", 1.2, 2.0),
    ("standing.", 2.0, 2.5),
    ("In the background,", 3.0, 3.5),
    ("we can see", 3.5, 4.0),
    ("trees", 4.0, 5.0),
    ("and the sky.", 5.0, 6.0),
]
MOUSE = [
    [(0.5, 0.9, 0.9), (1.2, 0.25, 0.5), (1.9, 0.5, 0.75)],
    [(2.4, 0.5, 1.1), (4.0, 0, 0), (5.5, 1, 0.25), (9, 1, 1)],
]


def test_narratives(workshop):
    narratives = workshop("narratives")
    narratives.image("val2017/000000137576.jpg")
    narratives.write("coco_val_localized_narratives.jsonl", json_lines([narrative(COWS, MOUSE)]))
    rows, report = narratives.build(True, strict=True)
    caption = "In this image there are group of cows standing. In the background, we can see trees and the sky."
    assert [
        (row["phrase"], row["boxes"], row["caption"] == caption, row["caption_span"]) for row in rows["validation"]
    ] == [
        ("group of cows standing", [[2, 3, 4, 6]], True, [5, 9]),
        ("trees and the sky", [[0, 0, 8, 1.5]], True, [15, 19]),
    ]
    assert report.dropped == {"clauses: that only lead in, as «In this image» does": 1}


def test_narratives_that_cannot_be_used(workshop):
    narratives = workshop("narratives")
    for name in "0a1b", "0a1c":
        narratives.image(f"train/{name}.jpg")
    good = narrative(COWS, MOUSE, dataset_id="open_images_train", image_id="0a1b")
    records = [
        good,
        good | {"caption": "In this image there are sheep."},
        good | {"traces": [[{"x": 1, "y": None, "t": 1}]]},
        good | {"traces": None},
        good | {"timed_caption": [{"utterance": "In"}]},
        good | {"caption": " "},
        good | {"traces": [], "image_id": "0a1c"},
        good | {"image_id": None},
    ]
    narratives.write("train.jsonl", json_lines(records))
    rows, report = narratives.rows(True)
    assert [row["phrase"] for row in rows] == ["group of cows standing", "trees and the sky"]
    assert report.dropped == {
        "clauses: that only lead in, as «In this image» does": 2,
        "records: whose timed words are not those of the caption": 1,
        "records: whose traces are no lists of points {x, y, t}": 2,
        "records: with words without a time": 1,
        "records: without a caption": 1,
        "boxes: no trace at the time of the phrase": 2,
        "phrases: none of their boxes is of use": 2,
        "records without image (image_id)": 1,
    }
    rows, report = narratives.rows()
    assert not rows and report.dropped["records: of an image whose size is not known: give images_dir"] == 4
