"""Formats of a file for each image, YOLO, VOC and LabelMe, on files made by hand; and what all object formats share."""

import base64
import hashlib
import io
import re
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from dataset_scripts.builder import ImageFiles, Unusable, file_split, folder_split, telling_ends
from dataset_scripts.labelme import Labelme
from dataset_scripts.shapes import place_mask
from dataset_scripts.voc import Voc
from dataset_scripts.yolo import Yolo
from tests.helpers.builders import MISSING, Workshop, decoded, labelme_json, name_in_source, voc_xml, write

BESIDE = "instances: beside one that was lost, without which the row would not be of all"
MARK = b"\xef\xbb\xbf"


def found(rows):
    return [(row["phrase"], row["boxes"]) for row in rows]


# VOC ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def voc(tmp_path):
    return Workshop(Voc, tmp_path)


def test_voc_corners_are_of_pixels_counted_from_one(voc):
    """`xmin` 1 to `xmax` 8 is the whole width; a 0 or half a pixel is of a tool that counts from 0."""
    voc.write("a.xml", voc_xml(("traffic_light", 1, 1, 8, 6), ("Dog", 2, 3, 4, 5), ("dog", 5, 2, 6, 3)))
    rows, report = voc.rows(split="train", strict=True)
    assert found(rows) == [("traffic light", [[0, 0, 8, 6]]), ("Dog", [[1, 2, 4, 5], [4, 1, 6, 3]])]
    assert report.kept["instances"] == 3 and not report.dropped
    voc.write("a.xml", voc_xml(("dog", 0, 1, 8, 6), ("cat", 2, 2, 4, 4)))
    assert found(voc.rows(split="train")[0]) == [("dog", [[0, 1, 8, 6]]), ("cat", [[2, 2, 4, 4]])]
    voc.write("a.xml", voc_xml(("dog", 1.5, 1, 7, 6)))
    assert found(voc.rows(split="train")[0]) == [("dog", [[1.5, 1, 7, 6]])]


def test_voc_parts_of_objects_are_none_and_what_has_no_box_loses_its_row(voc):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    text = voc_xml(("person", 2, 2, 4, 4), ("dog", "nan", 2, 4, 4), ("dog", 5, 2, 6, 3), ("", 1, 1, 2, 2))
    voc.write("a.xml", text.replace("</bndbox></object>", f"</bndbox>{part}</object>", 1))
    rows, report = voc.rows(split="train")
    assert found(rows) == [("person", [[1, 1, 4, 4]])]
    reason = "instances: without a box of four numbers (bndbox)"
    assert report.dropped == {reason: 1, BESIDE: 1, "instances: without a label": 1}
    assert report.examples[reason] == ["a.xml, object 1"]
    with pytest.raises(ValueError, match=re.escape("a.xml, object 3: instances: without a label")):
        voc.rows(split="train", strict=True)


def test_voc_objects_with_a_description_are_of_that_phrase(voc):
    """As DIOR-RSVG's; a name has a row, of all its objects, where one has no description of its own."""
    text = voc_xml(("car", 1, 1, 4, 4), ("car", 5, 1, 8, 4), ("dog", 1, 4, 4, 6), ("dog", 5, 4, 8, 6))
    first, second, third, last = text.split("</object>", 3)
    described = "<description>A gray  car on the left</description>"
    attribute = "<attributes><attribute><name>caption</name><value>a wet dog</value></attribute></attributes>"
    parts = [first + described, second + "<description>the other car</description>", third + attribute, last]
    voc.write("a.xml", "</object>".join(parts))
    rows, report = voc.rows(split="train", strict=True, phrase_template="a photo of a {}")
    assert found(rows) == [
        ("a photo of a dog", [[0, 3, 4, 6], [4, 3, 8, 6]]),
        ("A gray car on the left", [[0, 0, 4, 4]]),
        ("the other car", [[4, 0, 8, 4]]),
        ("a wet dog", [[0, 3, 4, 6]]),
    ]
    assert report.kept["rows (an image and a phrase)"] == 3 and report.kept["rows (an image and a label)"] == 1


def test_an_object_with_a_text_needs_no_label(voc):
    texts = "<description>a red hat</description><description>a hat</description>"
    voc.write("a.xml", voc_xml(("", 1, 1, 4, 4)).replace("</object>", f"{texts}</object>"))
    rows, _ = voc.rows(split="train", strict=True)
    assert found(rows) == [("a red hat", [[0, 0, 4, 4]]), ("a hat", [[0, 0, 4, 4]])]


def test_voc_boxes_that_rolabelimg_has_turned(voc):
    box = "<robndbox><cx>3.5</cx><cy>3</cy><w>2</w><h>3</h><angle>1.5707963</angle></robndbox>"
    voc.write("a.xml", re.sub("<bndbox>.*</bndbox>", box, voc_xml(("ship", 1, 1, 2, 2))))
    (row,), report = voc.rows(split="train")
    assert row["boxes"] == [[2, 2, 5, 4]] and decoded(row["masks"][0]).sum() == 6 and not report.dropped


def test_voc_boxes_that_cvat_has_turned(voc):
    """Of pixels 2 to 5 and 3 to 4: 4 wide and 2 high about (3, 3), turned by 90 degrees."""
    said = "<attributes><attribute><name>rotation</name><value>{}</value></attribute></attributes></object>"
    for degrees, boxes in (("90.0", [[2, 1, 4, 5]]), ("0.0", [[1, 2, 5, 4]])):
        voc.write("a.xml", voc_xml(("pen", 2, 3, 5, 4)).replace("</object>", said.format(degrees)))
        (row,), report = voc.rows(split="train")
        assert row["boxes"] == boxes and not report.dropped


def test_a_mask_beside_the_annotations_is_not_the_image(voc):
    for name in ("images/a.jpg", "annotations/trimaps/a.png"):
        voc.image(name)
    voc.write("annotations/xmls/a.xml", voc_xml(("dog", 1, 1, 2, 2), name="a.jpg"))
    (row,), _ = voc.rows(images=True, split="train")
    assert row["image"]["bytes"] == (voc.images / "images/a.jpg").read_bytes()


def test_voc_splits_are_those_of_image_sets(voc):
    for top in "VOC2007", "VOC2012":
        for name in "1", "2", "3", "4":
            voc.write(f"{top}/Annotations/{name}.xml", voc_xml(("dog", 1, 1, 2, 2), name=f"{name}.jpg"))
        sets = f"{top}/ImageSets/Main"
        for name, lines in {"train": "1.png\n", "val": "2\r\n1\n", "trainval": "1\n2\n", "dog_train": "4  1"}.items():
            voc.write(f"{sets}/{name}.txt", lines)
    voc.write("VOC2007/ImageSets/Main/test.txt", "3\n9\n")
    rows, report = voc.build()
    names = {split: [name_in_source(row["image_id"]) for row in own] for split, own in rows.items()}
    assert names == {
        "train": ["VOC2007/Annotations/1.jpg", "VOC2012/Annotations/1.jpg"],
        "validation": ["VOC2007/Annotations/2.jpg", "VOC2012/Annotations/2.jpg"],
        "test": ["VOC2007/Annotations/3.jpg"],
    }
    assert report.dropped == {
        "files: in no list of ImageSets/Main": 3,
        "image sets: images without an XML file": 1,
        "image sets: images of validation that are in another split, too": 2,
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (voc_xml(("dog", 1, 1, 2, 2))[:-20], "no XML that can be read"),
        ("", "no XML that can be read"),
        (b"\xff\xfe\x00", "in another encoding than they say (save them as UTF-8)"),
        (voc_xml(("狗", 1, 1, 2, 2)).encode("gbk"), "in another encoding than they say (save them as UTF-8)"),
        (
            f'<?xml version="1.0" encoding="utf-16"?>{voc_xml()}',
            "in another encoding than they say (save them as UTF-8)",
        ),
        ('<!DOCTYPE a [<!ENTITY a "dog">]>' + voc_xml(("&a;", 1, 1, 2, 2)), "no XML that can be read"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "no XML that can be read"),
        ("<html/>", "no annotation of Pascal VOC"),
    ],
)
def test_voc_files_that_cannot_be_read_are_counted(voc, content, reason):
    voc.write("bad.xml", content)
    voc.write("ä ö/good one.xml", MARK + voc_xml(("Hündchen", 1, 1, 2, 2)).encode())
    rows, report = voc.rows(split="train")
    assert found(rows) == [("Hündchen", [[0, 0, 2, 2]])]
    assert report.dropped == {f"files: {reason}": 1} and report.examples[f"files: {reason}"] == ["bad.xml"]
    with pytest.raises(ValueError, match=r"bad\.xml: files: "):
        voc.rows(split="train", strict=True)


@pytest.mark.parametrize("encoding", ["gb2312", "GBK", "gb18030", "Big5", "shift_jis", "utf-16", "utf-8-sig"])
def test_voc_of_any_encoding(voc, encoding):
    voc.write("a.xml", f'<?xml version="1.0" encoding="{encoding}"?>{voc_xml(("犬", 1, 1, 2, 2))}'.encode(encoding))
    assert found(voc.rows(split="train", strict=True)[0]) == [("犬", [[0, 0, 2, 2]])]


def test_voc_sizes_that_are_none_are_not_believed(voc):
    voc.write("a.xml", voc_xml(("dog", 1, 1, 99, 99), size=(0, 0)))
    assert found(voc.rows(split="train")[0]) == [("dog", [[0, 0, 99, 99]])]


def test_an_image_is_found_by_the_name_of_its_file_or_what_that_states(voc):
    """`filename` often is what the image was called before."""
    for name in ("pairs/a.png", "pairs/old.png", "b name.png", "train/c.png", "valid/c.png"):
        voc.image(name)
    voc.write("a.xml", voc_xml(("dog", 1, 1, 2, 2), name="old.png"))
    voc.write("other.xml", voc_xml(("dog", 1, 1, 2, 2), name="C:\\photos\\b name.png"))
    voc.write("train/c.xml", voc_xml(("dog", 1, 1, 2, 2), name="c"))
    voc.write("test/c.xml", voc_xml(("dog", 1, 1, 2, 2), name="c.png"))  # train's and valid's are other images
    voc.write("c.xml", voc_xml(("dog", 1, 1, 2, 2), name="c.png"))
    rows, report = voc.build(images=True)
    stored = {name_in_source(row["image_id"]): row["image"]["bytes"] for own in rows.values() for row in own}
    assert stored == {
        "a.png": (voc.images / "pairs/a.png").read_bytes(),
        "other.png": (voc.images / "b name.png").read_bytes(),
        "train/c": (voc.images / "train/c.png").read_bytes(),
    }
    several = "images: several files in images_dir are called so: leave one, or name its folder"
    assert report.examples[several] == ["c.xml (is it train/c.png or valid/c.png?)"]
    assert report.dropped[MISSING] == 1
    assert report.kept["images that no split is named for, in train"] == 3


def test_several_files_of_one_image_are_none_of_it(voc):
    """Each would claim that its objects are all."""
    for name in ("a.png", "b.png", "cam1/c.png", "cam2/c.png"):
        voc.image(name)
    for name in ("first/a", "second/a", "first/b", "cam1/c", "cam2/c"):
        voc.write(f"{name}.xml", voc_xml(("dog", 1, 1, 2, 2), name=f"{name[-1]}.png"))
    rows, report = voc.rows(split="train", images=True)
    assert [name_in_source(row["image_id"]) for row in rows] == ["cam1/c.png", "cam2/c.png", "first/b.png"]
    several = "files: several of one image: keep one, or put their objects into one"
    assert report.dropped == {several: 2} and report.examples[several] == ["first/a.xml and second/a.xml"]
    with pytest.raises(ValueError, match=r"first/a\.xml and second/a\.xml: files: several of one image"):
        voc.rows(split="train", images=True, strict=True)
    assert len(voc.rows(split="train")[0]) == 5  # without images nobody can tell


def test_boxes_in_other_units_or_of_larger_images_are_refused(voc):
    for i in range(4):
        voc.write(f"{i}.xml", voc_xml(("dog", 10, 10, 40, 40) if i else ("dog", 1, 1, 2, 2)))
    with pytest.raises(ValueError, match=r"3 of 4 boxes that were looked at are beyond .*1\.xml, object 0: \[9.0, 9.0"):
        voc.rows()
    voc.write("only.xml", voc_xml(("dog", 0.1, 0.1, 0.5, 0.5)))
    for i in range(4):
        (voc.folder / f"{i}.xml").unlink()
    rows, report = voc.rows(split="train")
    assert not rows and report.dropped == {"instances: box in shares of the image": 1}


def test_a_folder_without_files_is_refused(voc):
    voc.write("a.txt", "")
    with pytest.raises(ValueError, match=r"has no file \*\.xml"):
        voc.rows()


def test_phrases_of_labels_are_made_by_a_template(voc):
    voc.write("a.xml", voc_xml(("traffic_light", 1, 1, 2, 2), ("Traffic-Light", 3, 3, 4, 4)))
    rows, _ = voc.rows(split="train", phrase_template="a photo of a {}")
    assert found(rows) == [("a photo of a traffic light", [[0, 0, 2, 2], [2, 2, 4, 4]])]


# LabelMe --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def labelme(tmp_path):
    return Workshop(Labelme, tmp_path)


def shape(kind, points, label="dog", **changes):
    return {"label": label, "points": points, "shape_type": kind} | changes


def png(mask) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PICTURE = png(np.array([[True, False], [False, True]]))


@pytest.mark.parametrize(
    ("drawn", "box", "pixels"),
    [
        (shape("rectangle", [[4, 4.5], [1, 1]]), [1, 1, 4, 4.5], None),
        (shape("rectangle", [[1, 1], [4, 1], [4, 4], [1, 4]]), [1, 1, 4, 4], None),  # X-AnyLabeling's
        (shape("polygon", [[1, 1], [4, 1], [4, 4], [1, 4]]), [1, 1, 4, 4], 9),
        (shape(None, [[1, 1], [4, 1], [4, 4], [1, 4]]), [1, 1, 4, 4], 9),  # older files name no shape
        (shape("circle", [[3, 3], [3, 5]]), [1, 1, 5, 5], None),
        (shape("rotation", [[3, 1], [5, 3], [3, 5], [1, 3]], direction=0.8), None, None),
        (shape("mask", [[2, 3], [3, 4]], mask=PICTURE), [2, 3, 4, 5], 2),
    ],
)
def test_labelme_shapes(labelme, drawn, box, pixels):
    labelme.write("1.json", labelme_json(drawn))
    (row,), report = labelme.rows(split="train", validation_fraction=0)
    assert (row["boxes"] == [box] or box is None) and row["phrase"] == "dog"
    assert len(row["masks"]) == (drawn["shape_type"] != "rectangle")
    if pixels:
        assert decoded(row["masks"][0]).sum() == pixels
    assert not report.dropped


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        (shape("point", [[1, 1]]), "a point or a line, which has no area"),
        (shape("cuboid", [[1, 1], [2, 2]]), "of a shape that LabelMe does not have"),
        (shape("linestrip", [[1, 1], [2, 2]]), "a point or a line, which has no area"),
        (shape("rectangle", [[1, 1]]), "rectangle of fewer than two points"),
        (shape("polygon", [[1, 1], [2, 2]]), "polygon of fewer than three points"),
        (shape("polygon", [[1, 1], [2, "x"], [3, 3]]), "with points that are none"),
        (shape("polygon", None), "with points that are none"),
        (shape("mask", [[1, 1], [2, 2]], mask=None), "mask without a picture or its two corners"),
    ],
)
def test_labelme_shapes_without_a_region_lose_their_row(labelme, drawn, reason):
    labelme.write(
        "1.json", labelme_json(drawn, shape("rectangle", [[1, 1], [2, 2]]), shape("rectangle", [[1, 1], [2, 2]], "cat"))
    )
    rows, report = labelme.rows(split="train")
    assert found(rows) == [("cat", [[1, 1, 2, 2]])]
    assert report.dropped == {f"instances: {reason}": 1, BESIDE: 1}
    assert report.examples[f"instances: {reason}"] == ["1.json, shape 0"]


PLACES = [((1, 2), [[2, 1], [3, 2]]), ((-1, -1), [[0, 0]]), ((7, 4), [[4, 7]]), ((9, 9), []), ((-5, 1), [])]


@pytest.mark.parametrize(("place", "pixels"), PLACES)
def test_a_part_of_a_mask_may_lie_outside_of_the_image(place, pixels):
    mask = place_mask(np.eye(2, dtype=bool), *place, (8, 6))
    assert mask.shape == (6, 8) and np.argwhere(mask).tolist() == pixels


def test_labelme_mask_that_cannot_be_read_leaves_the_box(labelme):
    labelme.write("1.json", labelme_json(shape("mask", [[2, 3], [3, 4]], mask="aGVsbG8=")))
    (row,), report = labelme.rows(split="train")
    assert row["boxes"] == [[2, 3, 4, 5]] and not row["masks"]
    assert report.dropped == {"mask parts: mask that is no PNG picture": 1}


def test_labelme_shapes_of_a_group_are_one_object(labelme):
    """Of the last triangle, the mask is one pixel, which does not contradict the box around it."""
    parts = [
        [[1, 1], [3, 1], [3, 3]],
        [[5, 3], [7, 3], [7, 5]],
        [[1, 4], [3, 4], [3, 6]],
    ]
    drawn = [shape("polygon", points, group_id=group) for points, group in zip(parts, (1, 1, 2))]
    labelme.write("1.json", labelme_json(*drawn))
    (row,), _ = labelme.rows(split="train", strict=True)
    assert row["boxes"] == [[1, 1, 7, 5], [1, 4, 3, 6]] and len(row["masks"]) == 2


def test_labelme_descriptions_are_phrases(labelme):
    """Of a group, whichever part has it; it is a label's row where it is read as the label."""
    parts = [[[1, 1], [3, 1], [3, 3]], [[5, 3], [7, 3], [7, 5]], [[1, 4], [3, 4], [3, 6]]]
    texts = ["", "the split dog", "Cat"]
    drawn = [
        shape("polygon", points, label, group_id=group, description=text)
        for points, label, group, text in zip(parts, ("dog", "dog", "pet"), (1, 1, 2), texts)
    ]
    labelme.write("1.json", labelme_json(*drawn, shape("rectangle", [[5, 1], [6, 2]], "cat")))
    rows, _ = labelme.rows(split="train", strict=True)
    assert found(rows) == [("cat", [[5, 1, 6, 2], [1, 4, 3, 6]]), ("the split dog", [[1, 1, 7, 5]])]


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize(
    ("kind", "points", "reason"),
    [
        ("polygon", [[5, 3], [7, 3]], "polygon of fewer than three points"),
        ("polygon", [[5, 3], [7, None], [7, 5]], "with points that are none"),
        ("circle", [[5, 3]], "circle of other than two points"),
        ("point", [[2, 2]], "a point or a line, which has no area"),
    ],
)
def test_a_bad_part_of_a_labelme_group_costs_no_object(labelme, kind, points, reason, is_first):
    parts = [shape("polygon", [[1, 1], [3, 1], [3, 3]], group_id=1), shape(kind, points, group_id=1)]
    labelme.write("1.json", labelme_json(*(parts[::-1] if is_first else parts)))
    (row,), report = labelme.rows(split="train")
    assert row["boxes"] == [[1, 1, 3, 3]] and len(row["masks"]) == 1
    assert report.dropped == {f"mask parts: {reason}": 1}


def test_a_labelme_group_without_a_good_part_loses_its_row(labelme):
    bad = shape("polygon", [[5, 3], [7, 3]], group_id=1)
    labelme.write("1.json", labelme_json(bad, bad, shape("rectangle", [[1, 1], [2, 2]], group_id=1)))
    rows, report = labelme.rows(split="train")
    reason = "polygon of fewer than three points"
    assert not rows and report.dropped[f"mask parts: {reason}"] == report.dropped[f"instances: {reason}"] == 1


def test_labelme_files_of_other_kinds_are_counted_and_windows_paths_are_read(labelme):
    labelme.image("photos/one.png")
    text = labelme_json(shape("rectangle", [[1, 1], [2, 2]]), imagePath="..\\photos\\one.png", imageHeight=None)
    labelme.write("json/1.json", text)
    labelme.write("list.json", [])
    labelme.write("cut.json", '{"shapes": [')
    labelme.write("none.json", labelme_json(imagePath="none.png"))
    rows, report = labelme.rows(images=True, split="train")
    assert found(rows) == [("dog", [[1, 1, 2, 2]])] and name_in_source(rows[0]["image_id"]) == "json/1.png"
    assert report.dropped == {
        "files: without LabelMe's shapes": 1,
        "files: no JSON that can be read": 1,
        "images without annotation": 1,
    }


# YOLO -----------------------------------------------------------------------------------------------------------------


class YoloWorkshop(Workshop):
    """Images 8 by 6 pixels and labels in one folder, `a.png` and its label."""

    def __init__(self, folder):
        super().__init__(Yolo, folder)
        self.images = self.folder
        self.image("images/a.png")

    def of(self, lines, names="names: [dog, traffic_light]\n", **options):
        self.write("labels/a.txt", lines)
        if names is not None:
            self.write("data.yaml", names)
        return self.rows(images=True, **{"split": "train"} | options)


@pytest.fixture
def yolo(tmp_path):
    return YoloWorkshop(tmp_path)


@pytest.mark.parametrize(
    ("line", "box", "pixels"),
    [
        ("0 0.5 0.5 0.5 0.5", [2, 1.5, 6, 4.5], None),
        ("0 0.5 0.5 0.5 0.5 0.93", [2, 1.5, 6, 4.5], None),  # with a confidence
        ("0.0\t0.5 0.5  5e-1 0.5", [2, 1.5, 6, 4.5], None),
        ("0 0.24 0.5 0.5 0.5", [0, 1.5, 3.92, 4.5], None),
        ("0 0.25 0.5 0.75 0.5 0.75 1 0.25 1", [2, 3, 6, 6], 12),
        ("0 0 0 1 0 1 1", [0, 0, 8, 6], None),
    ],
)
def test_yolo_lines(yolo, line, box, pixels):
    (row,), report = yolo.of(line)
    assert row["phrase"] == "dog" and np.allclose(row["boxes"], [box]) and not report.dropped
    assert len(row["masks"]) == (len(line.split()) > 6)
    if pixels:
        assert decoded(row["masks"][0]).sum() == pixels


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.5", "neither a box nor a polygon"),
        ("0", "neither a box nor a polygon"),
        ("0 0.5 0.5 0.5 nan", "with a coordinate that is no finite number"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.3", "neither a box nor a polygon"),
        ("0 0.5 0.5 0 0.5", "box without area in the image"),
    ],
)
def test_yolo_lines_that_are_no_region_lose_their_row(yolo, line, reason):
    rows, report = yolo.of(f"0 0.5 0.5 0.5 0.5\n\n{line}\n1 0.5 0.5 1 1\r\n")
    assert found(rows) == [("traffic light", [[0, 0, 8, 6]])]
    assert report.dropped[f"instances: {reason}"] == 1 and report.dropped[BESIDE] == 1
    assert report.examples[f"instances: {reason}"] == ["labels/a.txt, line 3"]


def test_yolo_names_that_brackets_tell_apart_keep_them(yolo):
    lines = "0 0.5 0.5 0.5 0.5\n1 0.5 0.5 1 1\n2 0.5 0.5 1 1"
    rows, _ = yolo.of(lines, names="names: [cell (healthy), cell_(damaged), mouse_(toy)]\n")
    assert [row["phrase"] for row in rows] == ["cell (healthy)", "cell (damaged)", "mouse"]


def test_yolo_key_points_leave_their_box(yolo):
    names = "names: [dog, cat]\nkpt_shape: [2, 3]\n"
    for more in ("", " 0.9", " 0.9 1"):
        rows, report = yolo.of(f"0 0.5 0.5 0.5 0.5 0.4 0.4 2 0.6 0.6 1{more}\n", names)
        assert found(rows) == [("dog", [[2, 1.5, 6, 4.5]])] and not report.dropped and not rows[0]["masks"]


def test_yolo_boxes_that_are_followed_are_no_triangles(yolo):
    rows, report = yolo.of("0 0.3 0.4 0.2 0.2 0.93 1\n1 0.1 0.1 0.9 0.1 0.5 0.9\n", "names: [dog, cat]\n")
    assert [row["phrase"] for row in rows] == ["cat"] and rows[0]["masks"]
    (reason,) = report.dropped
    assert "a triangle, or a box with a confidence and a number" in reason


@pytest.mark.parametrize(
    "names",
    [
        "nc: 2\nnames: ['dog', 'no']\n",
        "names:\n  0: dog\n  1: no\n",
        "names: {1: no, 0: dog}\n",
        "names:\n- dog\n- no\n",
    ],
)
def test_yolo_names(yolo, names):
    """Of YAML 1.1 a plain `no` is false."""
    rows, report = yolo.of("1 0.5 0.5 0.5 0.5\n0 0.5 0.5 1 1\n2 0.5 0.5 1 1\n-1 0.5 0.5 1 1", names)
    assert [row["phrase"] for row in rows] == ["no", "dog"]
    assert report.dropped == {"instances: of a class that has no name": 2}
    assert report.examples["instances: of a class that has no name"] == ["labels/a.txt, line 3", "labels/a.txt, line 4"]


def test_yolo_names_in_a_list(yolo):
    yolo.write("labels/classes.txt", MARK + b"dog\r\ntraffic_light\r\n\r\n")
    rows, report = yolo.of("1 0.5 0.5 0.5 0.5", None)
    assert found(rows) == [("traffic light", [[2, 1.5, 6, 4.5]])] and not report.dropped
    yolo.write("obj.names", "cat\ndog")
    with pytest.raises(ValueError, match=r"the names of classes differ: obj\.names, labels/classes\.txt"):
        yolo.of("1 0.5 0.5 0.5 0.5", None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "there are no names of classes: data.yaml with names is needed"),
        ("names: 3\n", "names are no list of names"),
        ("names: {a: dog}\n", "names are no list of names"),
        ("names: [dog, '']\n", "names are no list of names"),
        ("names: [dog\n", "data.yaml is not YAML, or was cut off"),
    ],
)
def test_yolo_without_names_is_refused(yolo, names, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        yolo.of("0 0.5 0.5 0.5 0.5", names)


@pytest.mark.parametrize("line", ["0 320 240 100 50", "0 0.1 0.1 0.9 0.9"])
def test_yolo_in_pixels_or_corners_is_refused(yolo, line):
    with pytest.raises(ValueError, match=r"1 of 1 boxes that were looked at are beyond their image .*other units"):
        yolo.of(line)


PATHS = {
    "ultralytics": "path: ../datasets/mine\ntrain: images/one\nval: images/two\ntest: # none\n",
    "roboflow": "train: ../images/one\nval: ../images/two\n",
    "elsewhere": "train: /content/datasets/mine/images/one/\nval: C:\\data\\images\\two\n",
    "lists": "train: [images/one]\nval: lists/second.txt\n",
}


@pytest.mark.parametrize("kind", PATHS)
def test_yolo_splits_are_those_of_data_yaml(yolo, kind):
    for folder in "one", "two":
        yolo.image(f"images/{folder}/b.png")
        yolo.write(f"labels/{folder}/b.txt", "0 0.5 0.5 0.5 0.5")
    yolo.write("lists/second.txt", "./images/two/b.png\n/data/images/none.png\n")
    yolo.write("data.yaml", f"{PATHS[kind]}names: [dog]\n")
    rows, report = yolo.build(images=True)
    names = {split: [name_in_source(row["image_id"]) for row in own] for split, own in rows.items()}
    assert names == {"train": ["images/one/b.png"], "validation": ["images/two/b.png"]} and not report.dropped


def test_yolo_images_are_drawn_like_those_of_coco(yolo):
    """By the name of the image's file, and of Roboflow's versions by the photo's."""
    expected = set()
    for i in range(40):
        version = f"{i}_png.rf.0a9f" if i % 2 else f"{i}"
        yolo.image(f"images/{version}.png")
        yolo.write(f"labels/{version}.txt", "0 0.5 0.5 0.5 0.5")
        if int.from_bytes(hashlib.sha256(f"{i}.png".encode()).digest()[:4], "big") < 0.3 * 2**32:
            expected.add(f"images/{version}.png")
    yolo.write("data.yaml", "names: [dog]")
    rows, _ = yolo.build(True, validation_fraction=0.3)
    assert {name_in_source(row["image_id"]) for row in rows["validation"]} == expected and 5 <= len(expected) <= 20


def test_yolo_images_of_both_splits_are_in_one(yolo):
    """As in coco128, whose validation is its training images."""
    yolo.write("labels/a.txt", "0 0.5 0.5 0.5 0.5")
    yolo.write("data.yaml", "train: images\nval: images\nnames: [dog]\n")
    rows, report = yolo.build(images=True)
    assert list(rows) == ["train"]
    assert report.kept["images of validation that are in another split of data.yaml, and left there"] == 1


def test_yolo_files_beside_the_images(yolo):
    """As CVAT's YOLO 1.1 and LabelImg have them, among texts of other kinds."""
    for name in ("classes", "obj_train_data/x", "obj_train_data/train"):
        yolo.write(f"{name}.txt", "0 0.5 0.5 0.5 0.5" if "/" in name else "dog")
        if "/" in name:
            yolo.image(f"{name}.png")
    yolo.write("train.txt", "data/obj_train_data/x.png")
    yolo.write("README.roboflow.txt", "about")
    rows, _ = yolo.rows(images=True, split="train", strict=True)
    assert [name_in_source(row["image_id"]) for row in rows] == ["obj_train_data/train.png", "obj_train_data/x.png"]


# What they share ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train/a.xml", "train"),
        ("data/valid/labels/a.txt", "validation"),
        ("labels/val2017/a.txt", "validation"),
        ("Test_images/a.json", "test"),
        ("testB/a.json", "testB"),
        ("dev/", "validation"),
        ("train_station/a.json", None),
        ("train.json", None),
        ("a/b.json", None),
    ],
)
def test_folders_are_named_for_splits(path, split):
    assert folder_split(path) == split


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("instances_val2017.json", "validation"),
        ("my-Train.xml", "train"),
        ("finetune_refcoco+_testA.json", "testA"),
        ("refer_miniv.json", "miniv"),
        ("trainval.json", None),
        ("train_test.json", None),
        ("valid/_annotations.createml.json", "validation"),
        ("constraint.json", None),
    ],
)
def test_files_are_named_for_splits(path, split):
    assert file_split(path) == split


def test_files_are_found_by_what_annotations_call_them(tmp_path):
    places = (
        "A.JPG train/b.png x/train/c.png x/c.png y/d.png z/d.png .hidden/e.png f.tar.png train2014/COCO_train2014_1.jpg"
    )
    places += " scan.tif.jpg thumbs/g.png images/g.png g/h.png G/h.png train/i.png val/i.png one/j.png two/j.png j.png"
    parted = normalize("NFD", "sets/한é.png")
    for name in (
        *places.split(),
        parted,
        "my photo (1).jpg",
        "p 0.jpg",
        "q%201.png",
        "q 1.png",
        "a b.png",
        "a_(b).png",
        "c d.png",
        "c_d.png",
        "k.JFIF",
    ):
        write(tmp_path / name, "")
    files = ImageFiles(str(tmp_path))
    for names, near, expected in (
        (["a.jpg"], "", "A.JPG"),
        (["a"], "elsewhere/", "A.JPG"),
        (["../b.png"], "train/labels/", "train/b.png"),
        (["../b.png"], "train/train.json", None),
        (["c.png"], "train/", "x/train/c.png"),
        (["c.png"], "", "x/c.png"),
        (["train/c.png"], "", "x/train/c.png"),
        (["z/c.png"], "", None),  # in another folder it is another image
        (["/data/b.png"], "", None),
        (["y\\d.png"], "", "y/d.png"),
        (["none.png", "b.png"], "", "train/b.png"),
        (["b.png"], "valid/", None),
        (["b.png"], "lists/val.json", None),
        (["b.png"], "lists/test.json", "train/b.png"),  # here images have no folder of that split
        (["COCO_train2014_1.jpg"], "finetune_refcoco_val.json", "train2014/COCO_train2014_1.jpg"),
        (["train/b.png"], "lvis_v1_val.json", "train/b.png"),
        (["i.png"], "instances_val2017.json", "val/i.png"),
        (["j.png"], "train_two.json", "two/j.png"),
        (["j.png"], "train_three.json", "j.png"),
        (["e.png"], "", None),
        (["f.tar"], "", "f.tar.png"),
        (["scan.tif"], "", "scan.tif.jpg"),
        (["g.png"], "", "images/g.png"),
        (["G/h.png"], "", "G/h.png"),
        ([normalize("NFC", "한É.png")], "", parted),
        (["my_photo_1.jpg"], "", "my photo (1).jpg"),
        (["other/my_photo_1.jpg"], "", None),
        (["https://host/p%200.jpg", "p%200.jpg"], "", "p 0.jpg"),
        (["q%201.png"], "", "q%201.png"),
        (["k"], "labels/", "k.JFIF"),
        (["c_d.png"], "", "c_d.png"),
    ):
        assert files.find(names, near) == expected, (names, near)
    for name in ("d.png", "a_b.png"):
        with pytest.raises(Unusable, match="several files"):
            files.find([name], "")
    with pytest.raises(Unusable) as error:  # of an upload, which may be of either
        files.find(["0123abcd-c_d.png", "c_d.png"], "")
    assert "c d.png" in error.value.detail and "c_d.png" in error.value.detail
    assert files.find(["d.png", "b.png"], "") == "train/b.png"


def test_as_much_of_a_name_as_tells_it_from_others():
    names = "a.png", "x/b.png", "y/b.png", "xy/b.png", "1/z/c.png", "2/z/c.png", "../../3/z/d.png", "e.png", "q/e.png"
    ends = "a.png", "x/b.png", "y/b.png", "xy/b.png", "1/z/c.png", "2/z/c.png", "d.png", "e.png", "q/e.png"
    assert telling_ends(names) == dict(zip(names, ends))
