"""COCO's format as people have it: files of several splits, absent and ignored categories, captions, panoptic."""

import json

import numpy as np
import pytest
from PIL import Image

from dataset_scripts.build import build, main
from dataset_scripts.coco import Coco
from dataset_scripts.coco_format import TEXT_NAMES
from tests.helpers.builders import HEIGHT, SQUARE, SQUARE_MASK, WIDTH, Workshop, decoded, name_in_source
from trainer.columns import PHRASE_NAMES

BOX, SECOND = [1, 1, 4, 4], [5, 0, 7, 2]


def annotation(id_: int, category: int = 3, image: int = 0, **changes):
    plain = {"id": id_, "image_id": image, "category_id": category, "bbox": [1, 1, 3, 3], "segmentation": [SQUARE]}
    return plain | {"area": 9, "iscrowd": 0} | changes


def image(id_: int, name: str, **changes):
    return {"id": id_, "license": 1, "file_name": name, "height": HEIGHT, "width": WIDTH} | changes


def content(*annotations, images, categories=((3, "traffic light"), (2, "dog"))):
    names = [{"id": id_, "name": name, "supercategory": "none"} for id_, name in categories]
    return {"info": {"year": "2024"}, "images": images, "categories": names, "annotations": list(annotations)}


def told(rows):
    """By split: the image, phrase and boxes of each row."""
    return {
        split: [(name_in_source(row["image_id"]), row["phrase"], row["boxes"]) for row in own]
        for split, own in rows.items()
    }


@pytest.fixture
def workshop(tmp_path):
    return Workshop(Coco, tmp_path)


# Several files --------------------------------------------------------------------------------------------------------


def roboflow(workshop, *splits: str, name="_annotations.coco.json"):
    """As it is downloaded: ids and names of images start anew in each folder, which has the images, too."""
    categories = (0, "animals"), (1, "cat"), (2, "dog")
    for number, split in enumerate(splits):
        own = [annotation(0, 1 + number % 2), annotation(1, 2, 1, bbox=[5, 0, 2, 2], segmentation=[])]
        images = [image(i, f"{i}_jpg.rf.5e0a.jpg", extra={"name": f"{i}.jpg"}) for i in (0, 1)]
        workshop.write(f"{split}/{name}", content(*own, images=images, categories=categories))
        for each in images:
            workshop.image(f"../data/{split}/{each['file_name']}", quality=90 - number)
    (workshop.folder / "README.roboflow.txt").write_text("pets")


@pytest.mark.parametrize("name", ["_annotations.coco.json", "_annotations.coco-segmentation.json"])
def test_roboflows_folders_are_one_data_set(workshop, tmp_path, capsys, name):
    roboflow(workshop, "train", "valid", "test", name=name)
    rows, report = workshop.build(images_dir=str(workshop.folder), strict=True)
    assert told(rows) == {
        split: [(f"{folder}/0_jpg.rf.5e0a.jpg", phrase, [BOX]), (f"{folder}/1_jpg.rf.5e0a.jpg", "dog", [SECOND])]
        for split, folder, phrase in (
            ("train", "train", "cat"),
            ("validation", "valid", "dog"),
            ("test", "test", "cat"),
        )
    }
    for folder, split in ("train", "train"), ("valid", "validation"), ("test", "test"):
        places = [workshop.folder / folder / f"{i}_jpg.rf.5e0a.jpg" for i in (0, 1)]
        assert [row["image"]["bytes"] for row in rows[split]] == [place.read_bytes() for place in places]
    assert report.kept["images"] == 6 and not report.dropped
    without, _ = workshop.build()
    assert told(without) == told(rows)
    ids = [row["image_id"] for own in without.values() for row in own]
    assert len(set(ids)) == 6
    folder, output = str(workshop.folder), str(tmp_path / "o")
    main(["coco", "--data-dir", folder, "--images-dir", folder, "--output", output, "--num-proc", "1"])
    assert "wrote            2  rows of validation" in capsys.readouterr().out


def test_where_no_split_is_named_for_validation_it_is_drawn_from_train(workshop):
    roboflow(workshop, "train", "test")
    rows, _ = workshop.build()
    assert {split: len(own) for split, own in rows.items()} == {"train": 1, "validation": 1, "test": 2}
    assert {split: len(own) for split, own in workshop.build(validation_fraction=0.0)[0].items()} == {
        "train": 2,
        "test": 2,
    }
    assert {split: len(own) for split, own in workshop.build(split="all_of_it")[0].items()} == {"all_of_it": 4}


@pytest.mark.parametrize("place", ["{}/", "images/{}/", "images/", ""])
def test_cocos_own_folders(workshop, place):
    for split, name in ("train2017", "000000000009.jpg"), ("val2017", "000000000139.jpg"):
        workshop.image(place.format(split) + name)
        data = content(annotation(1), images=[image(0, name)])
        workshop.write(f"annotations/instances_{split}.json", data)
        captions = {"images": data["images"], "annotations": [{"image_id": 0, "id": 5, "caption": "A dog. "}]}
        workshop.write(f"annotations/captions_{split}.json", captions)
        workshop.write(f"annotations/person_keypoints_{split}.json", data)
    rows, _ = workshop.build(True, strict=True)
    assert told(rows) == {
        "train": [("000000000009.jpg", "traffic light", [BOX])],
        "validation": [("000000000139.jpg", "traffic light", [BOX])],
    }
    assert all(row["image"] for own in rows.values() for row in own)
    only, _ = workshop.build(True, annotations="annotations/instances_val2017.json")
    assert told(only) == {"validation": told(rows)["validation"]}
    both, report = workshop.build(True, annotations="annotations/instances_*.json, annotations/captions_*.json")
    assert [(phrase, boxes) for _, phrase, boxes in told(both)["train"]] == [("A dog.", []), ("traffic light", [BOX])]
    assert report.kept["images"] == 2
    assert told(workshop.build(True, annotations="annotations")[0]) == told(rows)


def test_the_card_tells_which_files_of_the_data_folder_were_taken(workshop, tmp_path):
    workshop.write("annotations/instances_val2017.json", content(annotation(1), images=[image(0, "0.jpg")]))
    names = "annotations/instances_val2017.json"
    for given in names, str(workshop.folder / names):
        build("coco", tmp_path / "out", data_dir=str(workshop.folder), annotations=given, num_proc=1, overwrite=True)
        told = names if given == names else "instances_val2017.json"
        card = (tmp_path / "out" / "README.md").read_text()
        assert f"`albef-amc build coco --data_dir data --annotations {told}" in card and str(tmp_path) not in card


LAYOUTS = {
    "CVAT": ("annotations/instances_Train.json", "images/Train/0.jpg", "annotations/instances_Validation.json"),
    "DETR": ("annotations/custom_train.json", "train2017/0.jpg", "annotations/custom_val.json"),
    "images by split": ("training.json", "images/train/0.jpg", "validation.json"),
    "two files": ("train.json", "images/0.jpg", "val.json"),
    "LVIS": ("lvis_v1_train.json", "train2017/0.jpg", "lvis_v1_val.json"),
    "a folder each": ("train/annotations.json", "train/images/0.jpg", "val/annotations.json"),
    "annotations in a folder each": (
        "train/annotations/instances.json",
        "train/images/0.jpg",
        "val/annotations/instances.json",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_are_found(workshop, layout):
    train, place, val = LAYOUTS[layout]
    name = {"coco_url": "http://images.cocodataset.org/train2017/0.jpg", "file_name": None} if layout == "LVIS" else {}
    workshop.write(train, content(annotation(1), images=[image(0, "0.jpg") | name]))
    workshop.write(val, content(annotation(1, 2), images=[image(0, "1.jpg")]))
    workshop.write("settings.json", {"images": 3})
    (workshop.folder / "empty.json").touch()
    stored = workshop.image(place)
    rows, _ = workshop.build(True)
    assert [row["image"]["bytes"] for row in rows["train"]] == [stored] and not rows["validation"]
    rows, _ = workshop.build()
    assert {split: [row["phrase"] for row in own] for split, own in rows.items()} == {
        "train": ["traffic light"],
        "validation": ["dog"],
    }


def test_files_of_one_split_are_taken_together_unless_their_images_lie_apart(workshop):
    """By the same name they may be one image or two: where they lie tells."""
    for part, category, box in ("one", 3, [1, 1, 3, 3]), ("two", 3, [5, 0, 2, 2]):
        own = annotation(1, category, bbox=box, segmentation=None)
        workshop.write(f"train_{part}.json", content(own, images=[image(0, "0.jpg")]))
    names = "train_one.json,train_two.json"
    workshop.image("0.jpg")
    rows, report = workshop.build(True, annotations=names)
    (rows,) = (own for own in told(rows).values() if own)
    assert rows == [("0.jpg", "traffic light", [BOX, SECOND])] and report.kept["images"] == 1
    for part in "one", "two":
        workshop.image(f"{part}/0.jpg", quality=50 + len(part) if part == "one" else 90)
    rows, report = workshop.build(True, annotations=names, split="train")
    assert [boxes for *_, boxes in told(rows)["train"]] == [[BOX], [SECOND]] and report.kept["images"] == 2
    assert len({row["image_id"] for row in rows["train"]}) == 2


@pytest.mark.parametrize(
    ("others", "splits", "said"),
    [
        (["val", "testA", "testB"], ["validation", "testA", "testB"], []),  # as MDETR's RefCOCO
        (["val", "extra"], ["validation", "train"], ["extra"]),
        (["test", "trainval"], ["test", "train"], ["trainval"]),
    ],
)
def test_beside_files_that_name_a_split_none_is_strewn_over_train_and_validation(workshop, others, splits, said):
    """Of 20 images each, of which a draw would take some for validation: where none is named, they are train's."""
    for name in ("train", *others):
        images = [image(i, f"{name}{i}.jpg") for i in range(20)]
        data = content(*(annotation(i, image=i) for i in range(20)), images=images)
        workshop.write(f"finetune_refcoco_{name}.json", data)
    names = ",".join(f"finetune_refcoco_{name}.json" for name in ("train", *others))
    rows, report = workshop.build(annotations=names)
    places = {name: {s for s, own in told(rows).items() if any(each.startswith(name) for each, *_ in own)}
              for name in others}  # fmt: skip
    drawn = {"train", "validation"} if "validation" not in splits else {"train"}
    assert places == {name: {split} if split != "train" else drawn for name, split in zip(others, splits)}
    assert [kept for kept in report.kept if kept.startswith("files that no split is named for")] == [
        f"files that no split is named for, in train: finetune_refcoco_{name}.json" for name in said
    ]


def test_files_that_need_not_be_of_one_data_set_are_asked_for(workshop):
    data = content(annotation(1), images=[image(0, "0.jpg")])
    for names in (["a.json", "b.json"], ["instances_train2014.json", "instances_train2017.json"]):
        for name in names:
            workshop.write(name, data)
        with pytest.raises(ValueError, match=rf"{', '.join(names)} are not named for a split each .* --annotations"):
            workshop.build()
    assert len(workshop.build(annotations="a.json,b.json", split="train")[0]["train"]) == 1
    with pytest.raises(ValueError, match=r"none\.json: No such file"):
        workshop.build(annotations="a.json,none.json")
    with pytest.raises(ValueError, match=r"instances\.json: No such file or directory, nor another .*--annotations"):
        workshop.build(annotations=str(workshop.images))


def test_messages_name_the_file_among_several(workshop):
    for split in "train", "val":
        parts = annotation(1, segmentation=[[]]), annotation(2, 9), annotation(3, 2, bbox=None, segmentation=None)
        workshop.write(f"{split}.json", content(*parts[: 1 if split == "train" else 3], images=[image(0, "0.jpg")]))
    _, report = workshop.build()
    assert report.examples == {
        "instances: of a category that is not listed (see --categories)": ["val.json: annotation 2"],
        "mask parts: empty": ["train.json: annotation 1", "val.json: annotation 1"],
        "instances: neither a box nor a mask": ["val.json: annotation 3"],
    }


def test_names_that_lead_out_of_the_folder_are_told_apart_by_where_their_files_are(workshop):
    """As of Label Studio; by the name of a file that another split's image may mean no image is found."""
    own = {"train": ["a.jpg", "b.jpg"], "val": ["a.jpg", "c.jpg", "b.jpg"]}
    for split, names in own.items():
        images = [image(i, rf"..\..\media\{split}\{name}") for i, name in enumerate(names)]
        parts = [annotation(i, image=i) for i in range(len(names))]
        workshop.write(f"annotations/{split}.json", content(*parts, images=images))
    stored = {place: workshop.image(place) for place in ("train/a.jpg", "val/a.jpg", "b.jpg", "images/c.jpg")}
    rows, report = workshop.build(True, annotations="annotations/*.json", split=None)
    assert {split: [row["image"]["bytes"] for row in each] for split, each in rows.items()} == {
        "train": [stored["train/a.jpg"]],
        "validation": [stored["val/a.jpg"], stored["images/c.jpg"]],
    }
    assert report.dropped["instances: of an image that cannot be used"] == 2
    workshop.write("annotations/train.json", content(annotation(1), images=[image(0, "../images/c.jpg")]))
    workshop.image("annotations/c.jpg")
    ((row,),) = workshop.build(True, annotations="annotations/train.json", split="train")[0].values()
    assert row["image"]["bytes"] == stored["images/c.jpg"]


def test_brackets_tell_categories_of_several_files_apart(workshop):
    for split, name in ("train", "mouse_(computer_equipment)"), ("val", "mouse_(animal)"):
        data = content(annotation(1, 1), annotation(2, 2), images=[image(0, f"{split}.jpg")])
        data["categories"] = [{"id": 1, "name": name}, {"id": 2, "name": "bow_(weapon)"}]
        workshop.write(f"{split}.json", data)
    assert {split: {phrase for _, phrase, _ in own} for split, own in told(workshop.build()[0]).items()} == {
        "train": {"mouse (computer equipment)", "bow"},
        "validation": {"mouse (animal)", "bow"},
    }


# LVIS and Objects365 --------------------------------------------------------------------------------------------------

LVIS = (1, "bow_(weapon)"), (2, "Bow (weapon)"), (3, "cow"), (4, "traffic_light"), (5, "dog")


def test_what_somebody_looked_for_in_vain_is_absent(workshop):
    """As in LVIS 1.0; a name of two categories only one of which is absent says nothing."""
    images = [image(0, "0.jpg", neg_category_ids=[1, 3, 4], not_exhaustive_category_ids=[]), image(1, "1.jpg")]
    images[1] |= {"neg_category_ids": [1, "2", 3, 3], "not_exhaustive_category_ids": []}
    images += [image(2, "2.jpg", neg_category_ids=[]), image(3, "3.jpg", neg_category_ids=[9])]
    data = content(annotation(1, 5), images=images, categories=LVIS)
    workshop.write("instances.json", data)
    rows, report = workshop.build(split="train")
    assert [
        (*row, absent["absent"], absent["masks"]) for row, absent in zip(told(rows)["train"][1:], rows["train"][1:])
    ] == [
        ("0.jpg", "cow", [], True, []),
        ("0.jpg", "traffic light", [], True, []),
        ("1.jpg", "bow", [], True, []),
        ("1.jpg", "cow", [], True, []),
    ]
    assert told(rows)["train"][0] == ("0.jpg", "dog", [BOX]) and not rows["train"][0]["absent"]
    assert report.kept["absent phrases (neg_category_ids)"] == 4 and report.dropped == {
        "absent phrases: of a name of several categories, not all of which are absent": 1,
        "absent phrases: of a category that is not listed (see --categories)": 1,
        "images without annotation": 2,
    }
    with pytest.raises(ValueError, match=r"image 3 \(3\.jpg\): absent phrases: of a category that is not listed"):
        workshop.build(split="train", strict=True)
    rows, _ = workshop.build(split="train", phrase_template="a photo of a {}")
    assert [row["phrase"] for row in rows["train"]][:2] == ["a photo of a dog", "a photo of a cow"]
    assert len(rows["train"]) == 5


def test_a_category_that_is_absent_and_marked_has_its_row_alone(workshop):
    images = [image(0, "0.jpg", neg_category_ids=[5, 3], not_exhaustive_category_ids=[3])]
    workshop.write("instances.json", content(annotation(1, 5), images=images, categories=LVIS))
    rows, report = workshop.build(split="train")
    assert told(rows)["train"] == [("0.jpg", "dog", [BOX])]
    assert report.dropped == {"absent phrases: of a category that is marked in the image": 2}
    with pytest.raises(ValueError, match="image 0: absent phrases: of a category that is marked"):
        workshop.build(split="train", strict=True)
    images[0]["neg_category_ids"] = 5
    workshop.write("instances.json", content(images=images, categories=LVIS))
    with pytest.raises(ValueError, match="image 0: neg_category_ids cannot be 5"):
        workshop.build()


@pytest.mark.parametrize("place", ["val2017/000000266409.jpg", "000000266409.jpg"])
def test_images_of_lvis_are_named_by_their_address(workshop, place):
    """In LVIS 0.5 beside the name of another edition, in 1.0 alone."""
    stored = workshop.image(place)
    address = "http://images.cocodataset.org/val2017/000000266409.jpg"
    for name in "COCO_val2014_000000266409.jpg", None:
        images = [image(0, name, coco_url=address, neg_category_ids=[], not_exhaustive_category_ids=[])]
        workshop.write("lvis_val_100.json", content(annotation(1, 5), images=images, categories=LVIS))
        ((row,),) = workshop.build(True, strict=True)[0].values()
        assert row["image"]["bytes"] == stored
        assert name_in_source(row["image_id"]) == name or "val2017/000000266409.jpg"


@pytest.mark.parametrize("ignore", [1, True, "1", 1.0])
def test_a_category_with_an_object_to_be_ignored_has_no_row_in_its_image(workshop, ignore):
    """Neither region nor background: pointing at it would be neither right nor wrong."""
    parts = annotation(1), annotation(2, ignore=ignore), annotation(3, 2, ignore=0), annotation(4, 3, 1, ignore=False)
    images = [image(0, "objects365_v1_00000000.jpg"), image(1, "1.jpg")]
    fake = {"isfake": 0, "isreflected": 0}
    workshop.write("instances.json", content(*(each | fake for each in parts), images=images))
    rows, report = workshop.build(split="train", strict=True)
    assert [row[1:] for row in told(rows)["train"]] == [("dog", [BOX]), ("traffic light", [BOX])]
    reason = "instances: of a category of which one in the image is to be ignored (ignore)"
    assert report.dropped == {reason: 2}
    workshop.write("instances.json", content(annotation(1, ignore="perhaps"), images=images))
    with pytest.raises(ValueError, match="annotation 1: ignore cannot be 'perhaps'"):
        workshop.build()


# Captions -------------------------------------------------------------------------------------------------------------


def test_captions_are_rows_without_a_region(workshop):
    """As in COCO's files, which have no categories."""
    captions = ["A dog sits\n on a car. ", "Two traffic lights", " ", None]
    own = [{"image_id": 0, "id": 40 + i, "caption": caption} for i, caption in enumerate(captions)]
    data = {"info": {}, "licenses": [], "images": [image(0, "0.jpg"), image(1, "1.jpg")], "annotations": own}
    workshop.write("captions_val2017.json", data)
    rows, report = workshop.build()
    assert told(rows) == {"validation": [("0.jpg", "A dog sits on a car.", []), ("0.jpg", "Two traffic lights", [])]}
    assert not any(row["masks"] or row["absent"] or row["caption"] for row in rows["validation"])
    assert report.kept["captions, as rows without a region"] == 2
    assert report.dropped == {"captions: without a word": 2, "images without annotation": 1}
    with pytest.raises(ValueError, match="annotation 42: captions: without a word"):
        workshop.build(strict=True)
    data["annotations"].append(annotation(1))
    workshop.write("captions_val2017.json", data)
    with pytest.raises(ValueError, match="needs the lists images, categories and annotations"):
        workshop.build()


@pytest.mark.parametrize("is_list", [False, True])
@pytest.mark.parametrize(
    "key", ["caption", "phrase", "expression", "expressions", "sentence", "Referring_Expression", "text"]
)
def test_annotations_with_a_text_of_their_own_are_of_that_phrase(workshop, key, is_list):
    """As GRiT's of Visual Genome, all of whose objects are of one category; with equal texts they are one row."""
    texts = ["a red  hat", None, "a shoe", "a red hat"]
    plain = {"segmentation": []}
    own = [
        annotation(i, bbox=[i, 1, 4, 5], **plain, **({key: [text] if is_list else text} if text else {}))
        for i, text in enumerate(texts)
    ]
    own[2].pop("category_id")
    workshop.write("train.json", content(*own, images=[image(0, "0.jpg")]))
    rows, _ = workshop.build()
    boxes = {name: [row["boxes"] for row in rows["train"] if row["phrase"] == name] for name in ("a red hat", "a shoe")}
    assert boxes == {"a red hat": [[[0, 1, 4, 6], [3, 1, 7, 6]]], "a shoe": [[[2, 1, 6, 6]]]}
    assert len(rows["train"]) == 3


@pytest.mark.parametrize(
    "text",
    [
        {"expressions": [{"raw": "A red hat"}]},
        {"sentences": [{"tokens": ["a"], "raw": "A Red hat", "sent_id": 3, "sent": "a red hat"}]},
        {"attributes": {"occluded": False, "rotation": 0.0, "description": "a red hat"}},
        {"caption": " ", "query": "a red hat"},
        {"description": "a worn hat", "phrase": "a red hat"},
    ],
)
def test_texts_of_annotations_are_found_as_tools_write_them(workshop, text):
    """The refer toolkit's records and CVAT's attributes; of several the most telling name counts."""
    workshop.write("train.json", content(annotation(0, bbox=[0, 1, 4, 5], **text), images=[image(0, "0.jpg")]))
    rows, _ = workshop.build(split="train")
    assert [row["phrase"].lower() for row in rows["train"]] == ["a red hat"]


@pytest.mark.parametrize(
    "text", [{"texts": 3}, {"text_id": "a"}, {"expressions": [{"raw": None}, [], 1]}, {"attributes": []}]
)
def test_what_is_no_text_of_an_annotation_leaves_its_category(workshop, text):
    own = annotation(0, 1, bbox=[0, 1, 4, 5], **text)
    workshop.write("train.json", content(own, images=[image(0, "0.jpg")], categories=[(1, "cow")]))
    rows, _ = workshop.build(split="train")
    assert [row["phrase"] for row in rows["train"]] == ["cow"]


def test_texts_are_called_as_in_tables():
    assert all(PHRASE_NAMES.fullmatch(name) for name in TEXT_NAMES)


def test_a_category_is_of_all_its_instances_also_of_those_with_a_text(workshop):
    """Nor is it absent where they are all that it has."""
    images = [image(i, f"{i}.jpg", neg_category_ids=[1], not_exhaustive_category_ids=[]) for i in range(3)]
    own = [annotation(i, 1, image=i // 2, bbox=[i, 1, 4, 5], segmentation=[]) for i in range(5)]
    own[0]["caption"], own[4]["phrase"] = "the cow on the mat", "a cow"
    own[3]["ignore"], own[2]["caption"] = 1, "another cow"
    workshop.write("train.json", content(*own, images=images, categories=[(1, "cow")]))
    rows, report = workshop.build(split="train")
    assert told(rows)["train"] == [
        ("0.jpg", "the cow on the mat", [[0, 1, 4, 6]]),
        ("0.jpg", "cow", [[1, 1, 5, 6], [0, 1, 4, 6]]),
        ("1.jpg", "another cow", [[2, 1, 6, 6]]),
        ("2.jpg", "a cow", [[4, 1, 8, 6]]),
    ]
    assert report.dropped == {
        "instances: of a category of which one in the image is to be ignored (ignore)": 2,
        "absent phrases: of a category that is marked in the image": 3,
    }


def test_a_text_that_is_a_categorys_name_is_of_its_row(workshop):
    """Whosever text it is, in whatever spelling; of a category that is called so by its texts alone, too."""
    texts = ["Traffic-light", None, ["a lamp", "traffic light"], "a lamp", "DOG", "a puppy"]
    own = [
        annotation(i, 2 if i > 3 else 1, bbox=[i, 1, 3, 5], segmentation=[], **({"phrase": text} if text else {}))
        for i, text in enumerate(texts)
    ]
    own[2]["category_id"] = 2
    workshop.write(
        "train.json", content(*own, images=[image(0, "0.jpg")], categories=[(1, "traffic_light"), (2, "dog")])
    )
    rows, _ = workshop.build()
    assert {row["phrase"]: sorted(row["boxes"]) for row in rows["train"]} == {
        "traffic light": [[i, 1, i + 3, 6] for i in range(4)],
        "a lamp": [[i, 1, i + 3, 6] for i in (2, 3)],
        "dog": [[i, 1, i + 3, 6] for i in (2, 4, 5)],
        "a puppy": [[5, 1, 8, 6]],
    }
    assert len(rows["train"]) == 4


def test_a_text_that_is_an_absent_categorys_name_says_that_it_is_there(workshop):
    images = [image(0, "0.jpg", neg_category_ids=[2], not_exhaustive_category_ids=[])]
    own = annotation(0, bbox=[0, 1, 4, 5], segmentation=[], phrase="Cow")
    workshop.write("train.json", content(own, images=images, categories=[(1, "animal"), (2, "cow")]))
    rows, report = workshop.build()
    assert told(rows)["train"] == [("0.jpg", "Cow", [[0, 1, 4, 6]])]
    assert report.dropped == {"absent phrases: of a category that is marked in the image": 1}


def test_texts_that_are_read_the_same_are_one(workshop):
    images = [image(0, "0.jpg"), image(1, "1.jpg", expressions=["red hat", "Red-hat", "hat"])]
    texts = [["a t-shirt", "A T-shirt"], "a t shirt", None]
    own = [annotation(i, image=i // 2, bbox=[i, 1, 4, 5], segmentation=[]) for i in range(3)]
    own = [{**each, "caption": text} if text else each for each, text in zip(own, texts)]
    workshop.write("train.json", content(*own, images=images))
    rows, _ = workshop.build(split="train")
    assert told(rows)["train"] == [
        ("0.jpg", "a t-shirt", [[0, 1, 4, 6], [1, 1, 5, 6]]),
        ("1.jpg", "red hat", [[2, 1, 6, 6]]),
        ("1.jpg", "hat", [[2, 1, 6, 6]]),
    ]


def test_expressions_of_an_image_are_each_of_all_that_is_marked(workshop):
    """As in UNINEXT's files, which list an image anew for each object."""
    images = [image(0, "0.jpg") | {"expressions": ["red hat", "hat"]}, image(1, "0.jpg") | {"expressions": "shoe"}]
    images[0]["dataset_name"] = "refcoco"
    own = [annotation(i, image=i, bbox=[i, 1, 4, 5], segmentation=[]) for i in range(2)]
    workshop.write("train.json", content(*own, images=images))
    rows, _ = workshop.build()
    expected = [("red hat", [[0, 1, 4, 6]]), ("hat", [[0, 1, 4, 6]]), ("shoe", [[1, 1, 5, 6]])]
    assert [(row["phrase"], row["boxes"]) for row in rows["train"]] == expected


def test_captions_of_data_sets_of_expressions_are_these(workshop):
    """Whosever splits they are; of another image that has a caption, nothing says where its words are."""
    names = ["refcoco", "refcoco+-unc", "refcocog_umd", "mine"]
    images = [image(i, "0.jpg") | {"caption": f"hat {i}", "dataset_name": name} for i, name in enumerate(names)]
    own = [annotation(i, image=i, bbox=[i, 1, 4, 5], segmentation=[]) for i in range(4)]
    workshop.write("train.json", content(*own, images=images))
    rows, report = workshop.build()
    assert [row["phrase"] for row in rows["train"]][:3] == ["hat 0", "hat 1", "hat 2"] and len(rows["train"]) == 4
    assert [name for name in report.kept if "caption is not read" in name]


# Panoptic -------------------------------------------------------------------------------------------------------------

STUFF = [(1, "person", 1, "person"), (184, "tree-merged", 0, "plant"), (199, "wall-other-merged", 0, "wall")]
STUFF += [(175, "wall-brick", 0, "wall"), (196, "food-other-merged", 0, "food-stuff"), (52, "banana", 1, "food")]
PERSON, CROWD, TREE, WALL = 3937500, 3153362, 10025880, 2330219


def segments(*of: tuple[int, int], **changes):
    """(number, category) of each, as in COCO's file; of the person the box is the square's."""
    plain = {"area": 9, "iscrowd": 0, "bbox": [1, 1, 3, 3]}
    return [{**plain, "id": id_, "category_id": category} | changes for id_, category in of]


def panoptic(workshop, infos, ids: np.ndarray | None, place="annotations/panoptic_val2017/0.png", mode="RGB"):
    named = [{"id": id_, "name": name, "isthing": thing, "supercategory": kind} for id_, name, thing, kind in STUFF]
    own = {"segments_info": infos, "file_name": "0.png", "image_id": 0}
    data = {"info": {}, "licenses": [], "images": [image(0, "0.jpg")], "annotations": [own], "categories": named}
    workshop.write("annotations/panoptic_val2017.json", data)
    if ids is not None:
        path = workshop.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1) if mode == "RGB" else ids
        Image.fromarray(colours.astype(np.uint8)).save(path)
    return data


def numbered(*rest: tuple[int, tuple[slice, slice]]) -> np.ndarray:
    """The square is the person's; nothing is below it on the left."""
    ids = np.zeros((HEIGHT, WIDTH), np.int64)
    for id_, place in rest:
        ids[place] = id_
    ids[SQUARE_MASK] = PERSON
    return ids


TOP, RIGHT = np.s_[:1, :], np.s_[:, 5:]


@pytest.mark.parametrize("place", ["annotations/panoptic_val2017/", "panoptic_val2017/", "annotations/"])
def test_segments_are_instances_of_things_and_stuff(workshop, place):
    infos = (
        segments((PERSON, 1)) + segments((CROWD, 1), iscrowd=1, bbox=[5, 0, 3, 6]) + segments((TREE, 184), bbox=None)
    )
    panoptic(workshop, infos, numbered((TREE, TOP), (CROWD, RIGHT)), place + "0.png")
    rows, report = workshop.build(strict=True)
    assert told(rows) == {"validation": [("0.jpg", "person", [BOX, [5, 0, 8, 6]]), ("0.jpg", "tree", [[0, 0, 5, 1]])]}
    person, tree = rows["validation"]
    assert np.array_equal(decoded(person["masks"][0]), SQUARE_MASK)
    assert [decoded(mask).sum() for mask in (*person["masks"], *tree["masks"])] == [9, 18, 5]
    assert report.kept["instances that are crowds"] == 1 and report.kept["instances"] == 3
    assert json.loads((workshop.folder / "annotations/panoptic_val2017.json").read_text())["annotations"][0].keys() == {
        *("segments_info", "file_name", "image_id")
    }


def test_the_rest_of_a_kind_is_left_out_beside_others_of_it(workshop):
    infos = segments((PERSON, 1)) + segments((WALL, 199), (7, 196), bbox=None)
    ids = numbered((WALL, TOP), (7, RIGHT))
    panoptic(workshop, infos, ids)
    rows, _ = workshop.build(strict=True)
    assert [row["phrase"] for row in rows["validation"]] == ["person", "wall", "food"]
    ids[5, :2], ids[5, 2:4] = 8, 9
    panoptic(workshop, infos + segments((8, 175), (9, 52), bbox=None), ids)
    rows, report = workshop.build(strict=True)
    assert [row["phrase"] for row in rows["validation"]] == ["person", "wall-brick", "banana"]
    assert report.dropped == {"instances: of a category of the rest (-other) beside another of its kind": 2}


def test_trouble_with_the_png_file_is_not_trouble_with_the_segments(workshop):
    infos = segments((PERSON, 1)) + segments((TREE, 184), bbox=[0, 0, 8, 1])
    expected = [("0.jpg", "person", [BOX]), ("0.jpg", "tree", [[0, 0, 8, 1]])]
    path = workshop.folder / "annotations/panoptic_val2017/0.png"
    for ids, reason in (
        (None, "PNG file of the segments that is missing"),
        (np.zeros((HEIGHT, WIDTH + 1), np.int64), "PNG file of the segments of another size"),
    ):
        panoptic(workshop, infos, ids)
        rows, report = workshop.build()
        assert told(rows)["validation"] == expected and not any(row["masks"] for row in rows["validation"])
        assert report.dropped == {f"masks: {reason}": 1}
        assert report.examples == {f"masks: {reason}": ["annotation number 0 (without id)"]}
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert list(workshop.build()[1].dropped) == ["masks: PNG file of the segments that cannot be decoded"]
    Image.new("LA", (WIDTH, HEIGHT)).save(path)
    assert list(workshop.build()[1].dropped) == ["masks: segment that no pixel of the PNG file is of"]
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert list(workshop.build()[1].dropped) == [
        "masks: PNG file of the segments that cannot be read, or is outside of the data folder"
    ]
    path.unlink()
    panoptic(workshop, infos, numbered())
    rows, report = workshop.build()
    assert [len(row["masks"]) for row in rows["validation"]] == [1, 0]
    name = f"annotation number 0 (without id), segment {TREE}"
    assert report.examples == {"masks: segment that no pixel of the PNG file is of": [name]}
    panoptic(workshop, segments((1, 1), (2, 184), (3, 77)), np.where(SQUARE_MASK, 1, 2), mode="L")
    rows, report = workshop.build()
    assert [decoded(row["masks"][0]).sum() for row in rows["validation"]] == [9, WIDTH * HEIGHT - 9]
    assert report.dropped["instances: of a category that is not listed (see --categories)"] == 1


@pytest.mark.parametrize(
    ("infos", "message"),
    [
        (None, "segments_info cannot be None"),
        ([7], "segments_info cannot be"),
        (segments((1, 1), (1, 184)), "segment number 1: id cannot be 1"),
        (segments((1, 1), id="a"), "segment number 0: id cannot be 'a'"),
        (segments((1, 1), category_id=None), "segment number 0: category_id cannot be None"),
        (segments((1, 1), bbox=[1, 2]), "segment number 0: bbox cannot be"),
    ],
)
def test_a_broken_record_of_segments_is_refused(workshop, infos, message):
    panoptic(workshop, infos, None)
    with pytest.raises(ValueError, match=rf"panoptic_val2017\.json: annotation number 0 \(without id\).*{message}"):
        workshop.build()
