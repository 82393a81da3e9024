"""Formats of files of many images, VIA, CVAT, Label Studio and CreateML, on files made by hand."""

import json
import re

import numpy as np
import pytest

from dataset_scripts.createml import Createml
from dataset_scripts.cvat import Cvat
from dataset_scripts.label_studio import LabelStudio
from dataset_scripts.via import Via
from tests.helpers.builders import HEIGHT, MISSING, SQUARE_MASK, WIDTH, Workshop, decoded, name_in_source

BESIDE = "instances: beside one that was lost, without which the row would not be of all"
SIZE = {"original_width": WIDTH, "original_height": HEIGHT}


def found(rows):
    return [(row["phrase"], row["boxes"]) for row in rows]


class ListWorkshop(Workshop):
    """A builder with one annotation file, and an image 8 by 6 pixels."""

    def of(self, content, images=True, name="a.json", **options):
        self.image("1.png")
        self.write(name, content)
        return self.rows(images, **{"split": "train"} | options)


# CreateML -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def createml(tmp_path):
    return ListWorkshop(Createml, tmp_path)


def centred(label, x, y, width, height):
    return {"label": label, "coordinates": {"x": x, "y": y, "width": width, "height": height}}


def test_createml_boxes_are_about_their_centre(createml):
    """In older files the list is called `annotation`, the image `imagefilename`."""
    boxes = [centred("dog", 3, 2, 4, 2), centred("cat", 7, 5, 2.2, 2), centred("dog", "6.5", 1, 1, 1)]
    rows, report = createml.of([{"image": "1.png", "annotations": boxes}, {"image": "2.png", "annotations": []}])
    assert found(rows) == [("dog", [[1, 1, 5, 3], [6, 0.5, 7, 1.5]]), ("cat", [[5.9, 4, 8, 6]])]
    assert report.kept["boxes over the edge of the image, cut"] == 1
    assert report.dropped == {"images without annotation": 1}
    rows, _ = createml.of([{"imagefilename": "1.png", "annotation": boxes[:1]}])
    assert found(rows) == [("dog", [[1, 1, 5, 3]])]


def test_createml_texts_are_phrases(createml):
    own = [centred("dog", 3, 2, 4, 2) | {"caption": "a wet dog"}, centred("cat", 6.5, 1, 1, 1), 3]
    rows, report = createml.of([{"image": "1.png", "annotations": own}])
    assert found(rows) == [("cat", [[6, 0.5, 7, 1.5]]), ("a wet dog", [[1, 1, 5, 3]])]
    assert report.dropped == {"instances: without a label": 1}


def test_createml_labels_that_brackets_tell_apart_keep_them(createml):
    """Also where an image has one of them alone."""
    labels = "cell (healthy)", "cell_(damaged)", "mouse_(toy)"
    data = [{"image": f"{i}.png", "annotations": [centred(name, 4, 3, 4, 3)]} for i, name in enumerate(labels)]
    createml.write("a.json", data)
    rows = createml.build(split="train")[0]["train"]
    assert [row["phrase"] for row in rows] == ["cell (healthy)", "cell (damaged)", "mouse"]


def test_createml_splits_are_files_and_folders(createml):
    record = {"image": "x.jpg", "annotations": [centred("dog", 3, 2, 4, 2)]}
    for split in "train", "valid":
        createml.write(f"{split}/_annotations.createml.json", [record])
    rows, _ = createml.build()
    assert {split: [name_in_source(row["image_id"]) for row in own] for split, own in rows.items()} == {
        "train": ["train/x.jpg"],
        "validation": ["valid/x.jpg"],
    }


def test_createml_images_of_one_name_are_told_apart_by_their_folders(createml):
    """Of two videos one is not there: its frames are not those of the other."""
    for place in "frames/one/0.png", "frames/1.png":
        createml.image(place)
    names = "one/0.png", "two/0.png", "two/1.png"
    rows, report = createml.of([{"image": name, "annotations": [centred("dog", 3, 2, 4, 2)]} for name in names])
    assert [name_in_source(row["image_id"]) for row in rows] == ["one/0.png", "two/1.png"]
    assert report.dropped[MISSING] == 1


@pytest.mark.parametrize("name", [".\\1.png", "below/1.png", "1%2Epng"])
@pytest.mark.parametrize("files", [["a.json"] * 2, ["a.json", "b.json"], ["job1/a.json", "job2/a.json"]])
def test_createml_images_that_are_listed_again_are_one(createml, name, files):
    """Whatever they are called, but not in two splits."""
    createml.image("below/1.png")
    given, boxes = {}, ([1, 1, 5, 3], [2, 2, 4, 4])
    for file, image, box in zip(files, ("1.png", name), (centred("dog", 3, 2, 4, 2), centred("dog", 3, 3, 2, 2))):
        given.setdefault(file, []).append({"image": image, "annotations": [box]})
    for file, data in given.items():
        createml.write(file, data)
    rows, report = createml.build(True, split="train")
    assert found(rows["train"]) == [("dog", [*boxes])]
    assert report.kept["images that are listed again, taken together with the first"] == 1
    if len(given) == 2:
        (createml.folder / files[1]).rename(createml.folder / "valid.json")
        rows, _ = createml.build(True)
        assert {split: found(own) for split, own in rows.items()} == {
            "train": [("dog", [boxes[0]])], "validation": [("dog", [boxes[1]])],
        }  # fmt: skip


@pytest.mark.parametrize(
    "broken",
    [{}, [1], [{"image": "1.png"}], [{"annotations": []}], [{"image": 3, "annotations": []}], '[{"image": "1.png"', ""],
)
def test_createml_files_of_another_form_are_refused(createml, broken):
    with pytest.raises(ValueError, match=r"a\.json"):
        createml.of(broken)


def test_createml_boxes_that_cannot_be_read_lose_their_row(createml):
    bad = [centred("dog", None, 1, 1, 1), {"label": "cat"}, centred(None, 1, 1, 1, 1), 3, centred("cow", 1, 1, 1, 1)]
    rows, report = createml.of([{"image": "1.png", "annotations": [*bad, centred("dog", 3, 2, 4, 2)]}])
    assert [row["phrase"] for row in rows] == ["cow"]
    reason = "instances: with a coordinate that is no finite number"
    assert report.dropped == {reason: 2, "instances: without a label": 2, BESIDE: 1}
    assert report.examples[reason] == ["a.json, 1.png, annotation 0", "a.json, 1.png, annotation 1"]


# VIA ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def via(tmp_path):
    return ListWorkshop(Via, tmp_path)


def region(shape, **attributes):
    return {"shape_attributes": shape, "region_attributes": attributes or {"kind": "dog"}}


def rect(x=1, y=1, width=3, height=3):
    return {"name": "rect", "x": x, "y": y, "width": width, "height": height}


def images(*regions, file="1.png"):
    return {f"{file}123": {"filename": file, "size": 123, "regions": list(regions), "file_attributes": {}}}


POLYGON = {"name": "polygon", "all_points_x": [1, 4, 4, 1], "all_points_y": [1, 1, 4, 4]}


@pytest.mark.parametrize(
    ("shape", "box", "pixels"),
    [
        (rect(), [1, 1, 4, 4], None),
        (POLYGON, [1, 1, 4, 4], 9),
        ({"name": "circle", "cx": 3, "cy": 3, "r": 2}, [1, 1, 5, 5], 12),
        ({"name": "ellipse", "cx": 4, "cy": 3, "rx": 3, "ry": 1}, [1, 2, 7, 4], None),
        ({"name": "ellipse", "cx": 4, "cy": 3, "rx": 2, "ry": 1, "theta": np.pi / 2}, [3, 1, 5, 5], None),
    ],
)
def test_via_shapes(via, shape, box, pixels):
    (row,), report = via.of(images(region(shape)))
    assert np.allclose(row["boxes"], [box]) and row["phrase"] == "dog" and not report.dropped
    assert len(row["masks"]) == (shape["name"] != "rect")
    if pixels:
        assert decoded(row["masks"][0]).sum() == pixels
    (bare,), _ = via.of(images(region(shape)), images=False)
    assert np.allclose(bare["boxes"], [box]) and not bare["masks"]


def test_via_projects_and_older_annotations(via):
    """VIA 1 has the regions as a mapping."""
    listed = images(region(rect()))
    project = {"_via_settings": {}, "_via_img_metadata": listed, "_via_attributes": {"region": {}, "file": {}}}
    older = {key: {**image, "regions": {"0": image["regions"][0]}} for key, image in listed.items()}
    for content in listed, project, older:
        assert found(via.of(content)[0]) == [("dog", [[1, 1, 4, 4]])]
    unlabelled = images(region(rect(), kind=""), {"shape_attributes": rect(), "region_attributes": {}})
    assert via.of(listed | {"2": unlabelled["1.png123"]})[1].dropped == {"instances: without a label": 2}
    with pytest.raises(ValueError, match=r"no region says what it is: region_attributes are empty"):
        via.of(unlabelled)


def test_via_attribute_that_names_objects(via):
    several = images(region(rect(), kind="dog", colour="red"))
    with pytest.raises(ValueError, match=r"a\.json: regions .* 'colour', 'kind': say --label_attribute"):
        via.of(several)
    assert found(via.of(several, label_attribute="colour")[0]) == [("red", [[1, 1, 4, 4]])]
    with pytest.raises(ValueError, match=r"the attribute 'name' \(label_attribute\), but 'colour', 'kind'"):
        via.of(several, label_attribute="name")
    ticked = images(region(rect(), kind={"dog": True, "pet": True, "cat": False}))
    assert [row["phrase"] for row in via.of(ticked)[0]] == ["dog", "pet"]
    attributes = {"region": {"kind": {"type": "dropdown", "options": {"1": "fire truck", "dog": "Animal", "2": ""}}}}
    numbered = {"_via_img_metadata": images(*(region(rect(), kind=kind) for kind in ("1", "dog", "2")))}
    rows, _ = via.of(numbered | {"_via_attributes": attributes})
    assert [row["phrase"] for row in rows] == ["fire truck", "dog", "2"]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"name": "point", "cx": 1, "cy": 1}, "a point or a line, which has no area"),
        ({"name": "polyline", "all_points_x": [1], "all_points_y": [1]}, "a point or a line, which has no area"),
        (rect(width=None), "with a coordinate that is no finite number"),
        ({"name": "star"}, "of a shape that VIA does not have"),
        (None, "of a shape that VIA does not have"),
        ({"name": "polygon"}, "polygon without points"),
        ({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1]}, "polygon with an odd number of coordinates"),
        ({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]}, "polygon of fewer than three points"),
    ],
)
def test_via_shapes_without_a_region_lose_their_row(via, shape, reason):
    rows, report = via.of(images(region(shape), region(rect()), region(rect(), kind="cat")))
    assert found(rows) == [("cat", [[1, 1, 4, 4]])] and report.dropped == {f"instances: {reason}": 1, BESIDE: 1}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([], "is no JSON of VIA 2"),
        ({}, "is no JSON of VIA 2"),
        ({"images": [], "annotations": []}, "is no JSON of VIA 2"),
        ({"1": {"regions": []}}, "an image without filename"),
        ({"project": {}, "config": {}, "metadata": {}}, "is of VIA 3"),
        ('{"1.png1": {"filename"', "is not JSON, or was cut off"),
    ],
)
def test_via_files_of_another_form_are_refused(via, broken, message):
    with pytest.raises(ValueError, match=rf"a\.json.*{message}"):
        via.of(broken)


def test_the_annotation_file_can_be_named(via):
    via.write("other.json", {"about": "something else"})
    with pytest.raises(ValueError, match=r"other\.json is no JSON of VIA 2.* \(--annotations names the one file"):
        via.of(images(region(rect())))
    assert len(via.of(images(region(rect())), annotations="a.json")[0]) == 1
    with pytest.raises(ValueError, match=r"none\.json: No such file"):
        via.of(images(region(rect())), annotations="none.json")


# CVAT -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cvat(tmp_path):
    return ListWorkshop(Cvat, tmp_path)


def cvat_xml(*shapes, subset=None, name="1.png"):
    subset = f' subset="{subset}"' if subset else ""
    return f'<image id="0" name="{name}"{subset} width="{WIDTH}" height="{HEIGHT}">\n{"".join(shapes)}\n</image>'


def annotations(*images_):
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><job><labels><label>'
    return f"{head}<name>dog</name></label></labels></job></meta>{''.join(images_)}</annotations>"


BOX = '<box label="dog" source="manual" occluded="0" xtl="1.00" ytl="1.00" xbr="4.00" ybr="4.00" z_order="0"></box>'


@pytest.mark.parametrize(
    ("shape", "box", "pixels"),
    [
        (BOX, [1, 1, 4, 4], None),
        ('<box label="dog" xtl="2.5" ytl="1.5" xbr="4.5" ybr="4.5" rotation="90.0"/>', [2, 2, 5, 4], None),
        ('<polygon label="dog" points="1.0,1.0;4.0,1.0;4.0,4.0;1.0,4.0"/>', [1, 1, 4, 4], 9),
        ('<ellipse label="dog" cx="3" cy="3" rx="2" ry="2"/>', [1, 1, 5, 5], 12),
        ('<ellipse label="dog" cx="4" cy="3" rx="2" ry="1" rotation="90"/>', [3, 1, 5, 5], None),
        ('<mask label="dog" rle="0, 3, 1, 2" left="2" top="3" width="3" height="2"/>', [2, 3, 5, 5], 5),
    ],
)
def test_cvat_shapes(cvat, shape, box, pixels):
    (row,), report = cvat.of(annotations(cvat_xml(shape)), name="a.xml")
    assert np.allclose(row["boxes"], [box]) and row["phrase"] == "dog"
    assert len(row["masks"]) == ("<box" not in shape)
    if pixels:
        assert decoded(row["masks"][0]).sum() == pixels
    if "mask" in shape:  # row by row
        assert np.argwhere(decoded(row["masks"][0])).tolist() == [[3, 2], [3, 3], [3, 4], [4, 3], [4, 4]]
    assert not report.dropped


def test_cvat_attributes_called_as_texts_are_phrases(cvat):
    wet = BOX.replace("></box>", '><attribute name="description">a wet dog</attribute></box>')
    dry = BOX.replace(
        "></box>", '><attribute name="description"></attribute><attribute name="dry">yes</attribute></box>'
    )
    rows, _ = cvat.of(annotations(cvat_xml(wet)), name="a.xml")
    assert found(rows) == [("a wet dog", [[1, 1, 4, 4]])]
    rows, _ = cvat.of(annotations(cvat_xml(wet, dry)), name="a.xml")
    assert found(rows) == [("dog", [[1, 1, 4, 4]] * 2), ("a wet dog", [[1, 1, 4, 4]])]


NO_REGION = "a point, line, skeleton or cuboid, which outlines no region"


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ('<points label="dog" points="1,1;2,2"/>', NO_REGION),
        ('<polyline label="dog" points="1,1;2,2"/>', NO_REGION),
        ('<cuboid label="dog" xtl1="1"/>', NO_REGION),
        ('<skeleton label="dog"><points label="nose" points="1,1"/></skeleton>', NO_REGION),
        ('<box label="dog" xtl="1" ytl="1" xbr="4"/>', "with a coordinate that is no finite number"),
        ('<polygon label="dog" points="1,1;2,2"/>', "polygon of fewer than three points"),
        ('<polygon label="dog"/>', "with points that are none"),
        ('<star label="dog"/>', "of a shape that CVAT does not have"),
    ],
)
def test_cvat_shapes_without_a_region_lose_their_row(cvat, shape, reason):
    shapes = shape, BOX, BOX.replace("dog", "cat"), '<tag label="day"/>'
    rows, report = cvat.of(annotations(cvat_xml(*shapes)), name="a.xml")
    assert found(rows) == [("cat", [[1, 1, 4, 4]])]
    assert report.dropped == {f"instances: {reason}": 1, BESIDE: 1, "tags of whole images": 1}


def test_cvat_boxes_that_are_turned_are_masks(cvat):
    """A square with sides of the root of 8, turned by 45 degrees about (4, 3): its corners are 2 pixels from there."""
    side = 2**0.5
    corners = f'xtl="{4 - side}" ytl="{3 - side}" xbr="{4 + side}" ybr="{3 + side}"'
    (row,), report = cvat.of(annotations(cvat_xml(f'<box label="dog" {corners} rotation="45"/>')), name="a.xml")
    mask = decoded(row["masks"][0])
    assert mask[2, 2:6].all() and mask[1:4, 3:5].all() and not mask[:, :2].any() and 6 <= mask.sum() <= 10
    assert report.kept["instances whose box is turned, which have their mask's own"] == 1


@pytest.mark.parametrize("runs", ["", "a", "1,2", "-1, 7", "1, 2, 4", "1" * 50])
def test_cvat_run_lengths_that_cannot_be_read_leave_the_box(cvat, runs):
    shape = f'<mask label="dog" rle="{runs}" left="2" top="3" width="3" height="2"/>'
    (row,), report = cvat.of(annotations(cvat_xml(shape)), name="a.xml")
    assert row["boxes"] == [[2, 3, 5, 5]] and not row["masks"]
    assert [reason.startswith("mask parts: run lengths that") for reason in report.dropped] == [True]


def test_cvat_in_gbk(cvat):
    text = annotations(cvat_xml(BOX.replace("dog", "狗"))).replace("utf-8", "gbk")
    rows, _ = cvat.of(text.encode("gbk"), name="a.xml")
    assert [row["phrase"] for row in rows] == ["狗"]


def test_cvat_subsets_are_splits(cvat):
    subsets = {"Train": "1.png", "Validation": "2.png", "Test": "3.png", "default": "sub dir/4.png"}
    cvat.write("annotations.xml", annotations(*(cvat_xml(BOX, subset=key, name=name) for key, name in subsets.items())))
    rows, report = cvat.build()
    assert {split: [name_in_source(row["image_id"]) for row in own] for split, own in rows.items()} == {
        "train": ["1.png", "sub dir/4.png"],
        "validation": ["2.png"],
        "test": ["3.png"],
    }
    assert report.kept["images that no split is named for, in train"] == 1


def test_cvat_images_of_one_name_in_several_subsets(cvat):
    """CVAT writes each into a folder of its subset, and asks for names that differ within one alone."""
    boxes = {"Train": BOX, "Validation": BOX.replace('"dog"', '"cat"')}
    shapes = [cvat_xml(shape, subset=subset, name="1.png") for subset, shape in boxes.items()]
    cvat.write("annotations.xml", annotations(*shapes))
    cvat.image("images/Train/1.png")
    rows, report = cvat.build(images=True)
    phrases = {split: [phrase for phrase, _ in found(own)] for split, own in rows.items()}
    assert phrases == {"train": ["dog"], "validation": []} and report.dropped[MISSING] == 1
    cvat.image("images/Validation/1.png")
    rows, _ = cvat.build(images=True)
    phrases = {split: [(name_in_source(row["image_id"]), row["phrase"]) for row in own] for split, own in rows.items()}
    assert phrases == {"train": [("Train/1.png", "dog")], "validation": [("Validation/1.png", "cat")]}


ENTITIES = [f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi")]
BOMB = f'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">{"".join(ENTITIES)}]>'


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (annotations(cvat_xml(BOX))[:-20], "is not XML, or was cut off"),
        ("", "is not XML, or was cut off"),
        (f"{BOMB}<annotations>&i;</annotations>", "defines entities"),
        (f"{BOMB}<annotations>&i;</annotations>".encode("utf-16"), "defines entities"),
        (annotations(cvat_xml(BOX.replace("dog", "狗"))).encode("gbk"), "is not in the encoding .*save it as UTF-8"),
        ('<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotations>&a;</annotations>', "defines entities"),
        ("<annotation/>", "is no XML of CVAT for images"),
        (annotations('<track id="0" label="dog"/>'), "is CVAT's XML for videos"),
        (annotations('<image id="0" name="1.png" width="8"/>'), "image 0 without name, width or height"),
    ],
)
def test_cvat_files_of_another_form_are_refused(cvat, broken, message):
    with pytest.raises(ValueError, match=rf"a\.xml.*{message}"):
        cvat.of(broken, name="a.xml")


# Label Studio ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def studio(tmp_path):
    return ListWorkshop(LabelStudio, tmp_path)


def result(kind, label="dog", id_="a", **value):
    value = value if label is None else {**value, f"{kind}labels": [label]}
    return {"id": id_, "type": f"{kind}labels", "image_rotation": 0, "value": value, **SIZE}


def task(*results, image="/data/upload/1/0123abcd-1.png", **annotation):
    plain = {"id": 1, "was_cancelled": False, "ground_truth": False, "result": list(results)}
    return {"id": 7, "data": {"image": image}, "annotations": [plain | annotation], "predictions": []}


def packed(mask: np.ndarray) -> list[int]:
    """A mask as Label Studio's brushes have it: RGBA values in runs, of one value or of several."""
    values = np.repeat(mask.reshape(-1, 1) * 255, 4, axis=1).ravel().tolist()
    lengths = (3, 4, 8, 16)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in lengths)
    at = 0
    while at < len(values):
        end = at + 1
        while end < len(values) and values[end] == values[at] and end - at < 2**16:
            end += 1
        if end - at > 4:
            bits += f"1{2:02b}{end - at - 1:08b}{values[at]:08b}"
        else:
            end = min(at + 8, len(values))
            bits += f"0{0:02b}{end - at - 1:03b}" + "".join(f"{value:08b}" for value in values[at:end])
        at = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


RECTANGLE = result("rectangle", x=12.5, y=50, width=25, height=50, rotation=0)


@pytest.mark.parametrize(
    ("each", "box", "pixels"),
    [
        (RECTANGLE, [1, 3, 3, 6], None),
        # Turned about its upper left corner, (5, 2): 2 wide and 3 high.
        (result("rectangle", x=62.5, y=100 / 3, width=25, height=50, rotation=90), [2, 2, 5, 4], None),
        (result("polygon", points=[[12.5, 0], [50, 0], [50, 50], [12.5, 50]], closed=True), [1, 0, 4, 3], 9),
        (result("ellipse", x=50, y=50, radiusX=25, radiusY=100 / 3, rotation=0), [2, 1, 6, 5], None),
        (result("brush", format="rle", rle=packed(SQUARE_MASK)), [1, 1, 4, 4], 9),
    ],
)
def test_label_studio_shapes(studio, each, box, pixels):
    (row,), report = studio.of([task(each)])
    assert np.allclose(row["boxes"], [box]) and row["phrase"] == "dog" and not report.dropped
    assert name_in_source(row["image_id"]) == "0123abcd-1.png"
    if pixels:
        assert decoded(row["masks"][0]).sum() == pixels
    flat = {**each["value"], **SIZE}
    (again,), _ = studio.of([{"image": "/data/upload/1/0123abcd-1.png", "id": 7, "label": [flat], "annotator": 1}])
    assert again["boxes"] == row["boxes"]


def test_label_studio_uploads_of_one_name_are_not_mixed_up(studio):
    """Each has a name of its own since; what was called so before may be either."""
    tasks = [task(RECTANGLE, image=f"/data/upload/1/0123abc{i}-1.png") for i in range(2)]
    rows, report = studio.of(tasks)
    assert not rows and report.dropped[MISSING] == 2
    for i in range(2):
        studio.image(f"0123abc{i}-1.png")
    rows, _ = studio.of(tasks)
    assert len({row["image"]["bytes"] for row in rows}) == 2


def test_label_studio_labels_may_stand_beside_the_shape(studio):
    """As with a Rectangle and Labels in the labelling interface; choices are of the whole image, or no shape at all."""
    bare = result("rectangle", None, x=12.5, y=50, width=25, height=50) | {"type": "rectangle"}
    named = {"id": "a", "type": "labels", "value": {**bare["value"], "labels": ["dog", "pet"]}, **SIZE}
    choice = {"id": "c", "type": "choices", "value": {"choices": ["day"]}}
    rows, report = studio.of([task(bare, named, choice)])
    assert found(rows) == [("dog", [[1, 3, 3, 6]]), ("pet", [[1, 3, 3, 6]])] and not report.dropped
    rows, report = studio.of([task(bare, RECTANGLE | {"id": "b"})])
    assert found(rows) == [("dog", [[1, 3, 3, 6]])] and report.dropped == {"instances: without a label": 1}


def typed(text, name, id_="a"):
    return {"id": id_, "type": "textarea", "from_name": name, "to_name": "image", "value": {"text": text}, **SIZE}


def test_label_studio_texts_of_regions_are_phrases(studio):
    """Of a region of several labels, too, once; texts of other fields and of the whole image are counted."""
    bare = result("rectangle", None, x=12.5, y=50, width=25, height=50) | {"type": "rectangle"}
    named = {"id": "a", "type": "labels", "value": {**bare["value"], "labels": ["dog", "pet"]}, **SIZE}
    others = [typed(["seen"], "comment"), typed(["a street"], "caption", "z")]
    rows, report = studio.of([task(bare, named, typed(["a wet dog", "Fido"], "caption"), *others)])
    assert found(rows) == [("a wet dog", [[1, 3, 3, 6]]), ("Fido", [[1, 3, 3, 6]])] and not report.dropped
    unread = "texts not read: of no region, or of a field not called caption, phrase, …"
    assert report.kept[unread] == 2
    rows, report = studio.of([task(bare, named, typed(["pet"], "caption"))])
    assert found(rows) == [("pet", [[1, 3, 3, 6]])] and unread not in report.kept
    rows, report = studio.of([task(bare, typed(["a wet dog"], "phrase"))])
    assert found(rows) == [("a wet dog", [[1, 3, 3, 6]])] and not report.dropped


def test_label_studio_annotation_that_is_taken(studio):
    cat = RECTANGLE | {"value": {**RECTANGLE["value"], "rectanglelabels": ["cat"]}}
    one = {"result": [RECTANGLE], "was_cancelled": False, "updated_at": "2026-01-02T00:00:00Z"}
    two = {"result": [cat], "was_cancelled": False, "updated_at": "2026-01-01T00:00:00Z"}
    for annotations_, phrase, several in (
        ([one, two], "dog", 1),
        ([one, two | {"ground_truth": True}], "cat", 0),
        ([one | {"was_cancelled": True}, two], "cat", 0),
    ):
        (row,), report = studio.of([task() | {"annotations": annotations_}])
        assert row["phrase"] == phrase
        assert report.kept["tasks with several annotations, the last of which is taken"] == several
    rows, report = studio.of([task() | {"annotations": []}])
    assert not rows and report.dropped == {"images without annotation": 1}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/upload/1/0123abcd-my%20dog.png", "my dog.png"),
        ("/data/upload/0123abcd-dog.png", "0123abcd-dog.png"),
        ("/data/local-files/?d=photos/below/dog.png", "below/dog.png"),
        ("/data/local-files/?d=photos%5Cbelow%5Cdog.png", "below/dog.png"),
        ("s3://bucket/below/dog.png", "below/dog.png"),
        ("https://example.org/a/dog.png?token=a/b.jpg", "dog.png"),
        ("below/dog.png", "below/dog.png"),
        ("C:\\photos\\dog.png", "dog.png"),
    ],
)
@pytest.mark.parametrize("key", ["image", "photo"])
def test_label_studio_images_are_found_behind_their_address(studio, address, name, key):
    content = studio.image(name)
    each = task(RECTANGLE) | {"data": {key: address, "text": "a dog", "id": 3}}
    (row,), _ = studio.of([each])
    assert row["image"]["bytes"] == content


@pytest.mark.parametrize(
    ("each", "reason"),
    [
        (result("bitmask", imageDataURL="data:image/png;base64,"), "of a shape that is not read"),
        (result("keypoint", x=1, y=1, width=0.3), "a key point or a line, which has no area"),
        (result("rectangle", x=1, y=1, width=None, height=2), "with a coordinate that is no finite number"),
        (result("polygon", points=[[1, 1], [2, 2]]), "polygon of fewer than three points"),
        (result("brush", format="rle", rle=["a"]), "brush without run lengths"),
        (RECTANGLE | {"image_rotation": 90}, "of an image that was turned to label it"),
        (RECTANGLE | {"original_width": None}, "without the size of its image (original_width, original_height)"),
        (result("brush", format="rle", rle=packed(SQUARE_MASK[1:])), "neither a box nor a mask"),
        (result("brush", format="rle", rle=packed(SQUARE_MASK)[:-9]), "neither a box nor a mask"),
        (result("brush", format="rle", rle=[]), "neither a box nor a mask"),
    ],
)
def test_label_studio_shapes_without_a_region_lose_their_row(studio, each, reason):
    cat = RECTANGLE | {"id": "c", "value": {**RECTANGLE["value"], "rectanglelabels": ["cat"]}}
    rows, report = studio.of([task(each, RECTANGLE | {"id": "b"}, cat)])
    assert found(rows) == [("cat", [[1, 3, 3, 6]])]
    assert report.dropped[f"instances: {reason}"] == 1 and report.dropped[BESIDE] == 1
    assert report.examples[f"instances: {reason}"] == ["a.json, task 7, region a"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([1], "record 0 is no task of Label Studio"),
        ([{"data": {"text": "a"}}], "record 0 has no image in its data"),
        ([{"data": {"a": "a.png", "b": "b.png"}}], "record 0 has no image in its data"),
        ([task(*(RECTANGLE | {"to_name": name} for name in "ab"))], "has regions of several images (to_name a, b)"),
        (json.dumps([task(RECTANGLE)])[:-9], "was cut off"),
        ({"id": 1}, "an array of records is expected"),
    ],
)
def test_label_studio_files_of_another_form_are_refused(studio, broken, message):
    with pytest.raises(ValueError, match=rf"a\.json.*{re.escape(message)}"):
        studio.of(broken)
