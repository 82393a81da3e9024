"""COCO annotations, on files made by hand: what comes out, what is dropped and counted, what is refused."""

import hashlib
import json
import pickle
import re
from itertools import pairwise

import numpy as np
import pytest

from dataset_scripts.coco import Coco
from tests.helpers.builders import (
    HEIGHT,
    MISSING,
    SQUARE,
    SQUARE_MASK,
    SQUARE_RUNS,
    WIDTH,
    Workshop,
    decoded,
    name_in_source,
)

SECOND = dict(bbox=[5, 0, 2, 2], segmentation=[[5, 0, 7, 0, 7, 2, 5, 2]])


def annotation(id_: int, **changes):
    plain = {"id": id_, "image_id": 1, "category_id": 3, "bbox": [1, 1, 3, 3], "segmentation": [SQUARE]}
    return plain | {"area": 9, "iscrowd": 0} | changes


def image(id_, name: str | None = None, **changes):
    return {"id": id_, "file_name": f"{id_}" if name is None else name, "width": WIDTH, "height": HEIGHT} | changes


def content(*annotations, images=None):
    return {
        "images": images or [image(1, "one.png")],
        "categories": [{"id": 3, "name": "traffic light"}, {"id": 2, "name": "dog"}],
        "annotations": list(annotations),
    }


class CocoWorkshop(Workshop):
    def __init__(self, folder):
        super().__init__(Coco, folder)
        self.image("one.png")

    def of(self, data, images=True, **options):
        """All rows by split of an annotation file, and the report."""
        self.write("instances.json", data)
        return self.build(images, **{"split": "train"} | options)

    def rows(self, *annotations, **options):
        rows, report = self.of(content(*annotations), **options)
        return rows["train"], report


@pytest.fixture
def workshop(tmp_path):
    return CocoWorkshop(tmp_path)


# Rows -----------------------------------------------------------------------------------------------------------------


def test_one_row_per_category_with_all_its_instances(workshop):
    rows, report = workshop.rows(annotation(10), annotation(11, category_id=2), annotation(12, **SECOND))
    names = [(name_in_source(row["image_id"]), row["phrase"]) for row in rows]
    assert names == [("one.png", "traffic light"), ("one.png", "dog")]
    assert rows[0]["boxes"] == [[1, 1, 4, 4], [5, 0, 7, 2]]
    assert [int(decoded(mask).sum()) for mask in rows[0]["masks"]] == [9, 4]
    assert np.array_equal(decoded(rows[0]["masks"][0]), SQUARE_MASK)
    assert report.kept == {"instances": 3, "images": 1, "rows (an image and a category)": 2} and not report.dropped


@pytest.mark.parametrize(
    ("names", "phrases"),
    [
        (["bow_(weapon)", "lamp"], ["bow", "lamp"]),
        (["bow_(weapon)", "bow_(decorative_ribbons)"], ["bow (weapon)", "bow (decorative ribbons)"]),
        (["cell", "Cell (damaged)"], ["cell", "Cell (damaged)"]),
        (["cell (healthy)", "Cell_(Healthy)"], ["cell"]),
    ],
)
def test_brackets_are_said_where_they_alone_tell_categories_apart(workshop, names, phrases):
    data = content(annotation(1), annotation(2, category_id=2, **SECOND))
    data["categories"] = [{"id": 3, "name": names[0]}, {"id": 2, "name": names[1]}]
    rows, _ = workshop.of(data)
    assert [row["phrase"] for row in rows["train"]] == phrases
    assert [box for row in rows["train"] for box in row["boxes"]] == [[1, 1, 4, 4], [5, 0, 7, 2]]


@pytest.mark.parametrize("other", ["Traffic Light", "traffic-light", "traffic_light"])
def test_categories_that_are_read_the_same_have_one_row(workshop, other):
    data = content(annotation(10), annotation(12, category_id=2, **SECOND))
    data["categories"][1]["name"] = other
    (row,) = workshop.of(data)[0]["train"]
    assert row["phrase"] == "traffic light" and len(row["boxes"]) == 2


@pytest.mark.parametrize("crowd", [1, "1", True])
def test_a_crowd_is_part_of_the_region(workshop, crowd):
    runs = {"size": [HEIGHT, WIDTH], "counts": [0, 6, 42]}
    rows, report = workshop.rows(annotation(1), annotation(2, iscrowd=crowd, segmentation=runs, bbox=[0, 0, 1, 6]))
    assert rows[0]["boxes"] == [[1, 1, 4, 4], [0, 0, 1, 6]]
    assert [decoded(mask).sum() for mask in rows[0]["masks"]] == [9, 6]
    assert report.kept["instances that are crowds"] == 1 and report.kept["instances"] == 2


@pytest.mark.parametrize("segmentation", [None, [], [[]], "square", [[20, 20, 24, 20, 24, 24]]])
def test_a_row_goes_by_boxes_where_a_mask_cannot_be_had(workshop, segmentation):
    """The trouble is the mask's: no instance is lost, and its reason is counted, or fatal."""
    bad = [annotation(1, segmentation=segmentation), annotation(2), annotation(3, category_id=2)]
    rows, report = workshop.rows(*bad)
    assert [(len(row["boxes"]), len(row["masks"])) for row in rows] == [(2, 0), (1, 1)]
    assert report.kept["rows by boxes alone, for want of a segmentation"] == 1 and report.kept["instances"] == 3
    if segmentation not in (None, []):
        ((reason, count),) = report.dropped.items()
        assert reason.startswith("mask") and count == 1 and report.examples[reason] == ["annotation 1"]
        with pytest.raises(ValueError, match="annotation 1: mask"):
            workshop.rows(*bad, strict=True)


OWN = "instances without a box, which have their mask's own"
NO_AREA = "boxes: box without area in the image; the mask's own is taken"
NO_BOX = "boxes: not four finite numbers; the mask's own is taken"
CONTRADICTION = "boxes: contradict their mask (IoU below 0.5); the mask's own is taken"


@pytest.mark.parametrize(
    ("bbox", "kept", "dropped"),
    [
        *((none, OWN, None) for none in (None, [], ...)),
        *((flat, None, NO_AREA) for flat in ([8, 0, 3, 3], [2, 2, 0, 3], [4, 4, -2, 1])),
        *((other, None, CONTRADICTION) for other in ([5, 3, 3, 3], [1, 1, 4, 5])),
        *((broken, None, NO_BOX) for broken in ([1, 2, 3], [None] * 4, [1, 2, 3, float("nan")], {"x": 1}, "1")),
    ],
)
def test_an_instance_has_its_masks_box_where_its_own_is_of_no_use(workshop, bbox, kept, dropped):
    plain = annotation(1, bbox=bbox)
    if bbox is ...:
        del plain["bbox"]
    (row,), report = workshop.rows(plain, annotation(2))
    assert row["boxes"] == [[1, 1, 4, 4]] * 2
    assert [np.array_equal(decoded(mask), SQUARE_MASK) for mask in row["masks"]] == [True, True]
    assert report.dropped == ({dropped: 1} if dropped else {}) and (kept is None or report.kept[kept] == 1)
    if dropped:
        assert report.examples[dropped] == ["annotation 1"]
        with pytest.raises(ValueError, match=re.escape(f"annotation 1: {dropped}")):
            workshop.rows(plain, strict=True)


@pytest.mark.parametrize(
    ("degrees", "box", "pixels"),
    [(90, [2, 2, 5, 4], [(2, 2), (4, 3)]), (-270.0, [2, 2, 5, 4], [(2, 2), (4, 3)]), ("180", [3, 1, 4, 4], [(3, 1)])],
)
def test_a_box_that_is_turned_is_a_mask(workshop, degrees, box, pixels):
    """As CVAT writes it: a box of 2 x 3 pixels about (3.5, 3), whose own corners say nothing of where the object is."""
    turned = annotation(1, bbox=[2.5, 1.5, 2, 3], segmentation=[], attributes={"rotation": degrees})
    (row,), report = workshop.rows(turned)
    (mask,), (found,) = row["masks"], row["boxes"]
    assert report.kept["instances whose box is turned, which have their mask's own"] == 1 and not report.dropped
    if degrees == "180":  # the same box again
        assert np.allclose(found, [2.5, 1.5, 4.5, 4.5], atol=0.6)
        return
    assert found == box and all(decoded(mask)[y, x] for x, y in pixels) and decoded(mask).sum() == 6
    for bbox, reason in (
        ([8, -2, 2, 10], "box that is mostly outside of the image"),
        ([20, 1, 6, 4], "box without area in"),
    ):
        rows, report = workshop.rows(turned, turned | {"id": 2, "bbox": bbox})  # as if it were straight
        assert len(rows) == ("without" in reason) and any(f"instances: {reason}" in each for each in report.dropped)
    straight, _ = workshop.rows(annotation(1, segmentation=[], attributes={"rotation": 0.0}))
    assert straight[0]["boxes"] == [[1, 1, 4, 4]] and straight[0]["masks"] == []


def test_a_box_over_the_edge_is_cut_and_counted(workshop):
    (row,), report = workshop.rows(annotation(1, bbox=[-1, -1, 5, 4], segmentation=None))
    assert row["boxes"] == [[0, 0, 4, 3]] and report.kept["boxes over the edge of the image, cut"] == 1


def test_a_box_does_not_give_way_to_a_mask_that_lost_a_part(workshop):
    """Of the object's two halves one cannot be read: the box is of both, and the other one's own would be too small."""
    lost = annotation(1, bbox=[1, 1, 6, 3], segmentation=[SQUARE, [5, 1, 7, 1, 7, 4, 5]])
    (row,), report = workshop.rows(lost)  # the square's IoU with its box is exactly a half: both are kept
    assert row["boxes"] == [[1, 1, 7, 4]] and len(row["masks"]) == 1
    lost["bbox"] = [1, 1, 7, 3]
    (row,), report = workshop.rows(lost)
    assert row["boxes"] == [[1, 1, 8, 4]] and not row["masks"]
    assert report.dropped == {
        "mask parts: polygon with an odd number of coordinates": 1,
        "masks: contradict their box (IoU below 0.5) for want of a part; the box is taken alone": 1,
    }


LOST = {"no width": [2, 2, 0, 3], "no height": [2, 2, 3, 0], "a negative side": [4, 4, -2, 1], "no box": None}


@pytest.mark.parametrize("case", LOST)
def test_a_row_that_lost_an_instance_is_left_out(workshop, case):
    """It would not be of all instances: pointing at the lost one would be wrong, and heat be pushed off it."""
    lost = annotation(2, bbox=LOST[case], segmentation=[[]] if case == "no box" else None)
    rows, report = workshop.rows(annotation(1), lost, annotation(3), annotation(4, category_id=2))
    assert [row["phrase"] for row in rows] == ["dog"]
    beside = "instances: beside one that was lost, without which the row would not be of all"
    reason = "instances: neither a box nor a mask" if case == "no box" else "instances: box without area in the image"
    assert report.dropped[beside] == 2 and report.dropped[reason] == 1 and report.kept["instances"] == 1


def test_an_instance_that_is_mostly_outside_of_the_image_is_lost(workshop):
    """Of its area just a half is enough. Where there is a mask, this tells what the image shows."""
    half, less = annotation(2, bbox=[6, 0, 4, 3], segmentation=None), dict(bbox=[6, 0, 5, 3], segmentation=None)
    (row,), report = workshop.rows(annotation(1), half)
    assert row["boxes"] == [[1, 1, 4, 4], [6, 0, 8, 3]] and not report.dropped
    rows, report = workshop.rows(annotation(1), annotation(2, **less))
    assert not rows and report.dropped["instances: box that is mostly outside of the image"] == 1
    (row,), report = workshop.rows(annotation(1, bbox=less["bbox"]))
    assert row["boxes"] == [[1, 1, 4, 4]] and list(report.dropped) == [
        "boxes: box that is mostly outside of the image; the mask's own is taken"
    ]


def test_an_instance_beside_the_image_is_not_of_it(workshop):
    (row,), report = workshop.rows(annotation(1), annotation(2, bbox=[8, 0, 3, 3], segmentation=None))
    assert row["boxes"] == [[1, 1, 4, 4]] and len(row["masks"]) == 1
    assert report.dropped == {"instances: box without area in the image": 1}


# LVIS's files ---------------------------------------------------------------------------------------------------------


def lvis(*annotations, **changes):
    """An image as in LVIS 1.0: no name of a file, but an address."""
    data = content(*annotations)
    del data["images"][0]["file_name"]
    data["images"][0].update(coco_url="http://images.cocodataset.org/val2017/one.png", neg_category_ids=[], **changes)
    return data


def test_an_image_without_a_name_is_in_cocos_folder(workshop):
    workshop.image("val2017/one.png")
    (row,) = workshop.of(lvis(annotation(1)), strict=True)[0]["train"]
    assert name_in_source(row["image_id"]) == "val2017/one.png" and row["image"]["bytes"]


def test_a_category_that_is_marked_in_part_has_no_row(workshop):
    """Its other instances would be taken for background. The name counts: of two categories called so, too."""
    data = lvis(annotation(1), annotation(2, category_id=2), annotation(3), not_exhaustive_category_ids=["3", 99])
    rows, report = workshop.of(data, images=False, strict=True)
    reason = "instances: of a category not all of whose instances are marked (not_exhaustive_category_ids)"
    assert [row["phrase"] for row in rows["train"]] == ["dog"] and report.dropped == {reason: 2}
    data["categories"][1]["name"] = "Traffic-Light"
    rows, report = workshop.of(data, images=False)
    assert not rows["train"] and report.dropped == {reason: 3}
    data["images"].append(data["images"][0] | {"id": 2, "not_exhaustive_category_ids": [2]})
    data["images"][0]["not_exhaustive_category_ids"] = []
    data["categories"][1]["name"] = "dog"
    rows, report = workshop.of(data, images=False)  # of both listings of an image, what either says
    assert [row["phrase"] for row in rows["train"]] == ["traffic light"] and report.dropped == {reason: 1}


# MDETR's and GoldG's files --------------------------------------------------------------------------------------------

CAPTION = "Two  guys with shaggy hair look , two guys"


def captioned(*tokens, caption=CAPTION):
    """An image with an annotation for each `tokens_positive`; every second one is to the right of the first."""
    boxes = [[1, 1, 3, 3], [4, 1, 3, 3]]
    parts = enumerate(tokens)
    return content(
        *(annotation(i, bbox=boxes[i % 2], tokens_positive=places, segmentation=None) for i, places in parts),
        images=[image(1, "one.png", **({} if caption is None else {"caption": caption}))],
    )


def test_phrases_are_words_of_the_caption(workshop):
    places = [[15, 26]], [[0, 9]], [[0.0, "9"]], [[34, 42]], [[22, 26], [0, 3]], [[15, 26], [22, 26]]
    rows, report = workshop.of(captioned(*places))
    words = "Two guys with shaggy hair look , two guys"
    assert [(row["phrase"], row["boxes"], row["caption"], row["caption_span"]) for row in rows["train"]] == [
        ("shaggy hair", [[1, 1, 4, 4], [4, 1, 7, 4]], words, [3, 5]),
        ("Two guys", [[4, 1, 7, 4], [1, 1, 4, 4]], words, [0, 2]),
        ("two guys", [[4, 1, 7, 4]], words, [7, 9]),
        ("Two hair", [[1, 1, 4, 4]], None, []),
    ]
    assert not report.dropped and report.kept["rows (an image and a phrase)"] == 4


@pytest.mark.parametrize(
    "tokens", [None, [], "0", [[0]], [[3, 2]], [[0, 99]], [[-1, 3]], [["0", "a"]], [[0.5, 3]], [[3, 5]]]
)
def test_places_that_are_none_are_dropped(workshop, tokens):
    rows, report = workshop.of(captioned([[15, 26]], tokens))
    assert [row["phrase"] for row in rows["train"]] == ["shaggy hair"]
    ((reason, count),) = report.dropped.items()
    assert reason.startswith("instances: tokens_positive") and count == 1
    with pytest.raises(ValueError, match="annotation 1: instances: tokens_positive"):
        workshop.of(captioned([[15, 26]], tokens), strict=True)


def test_a_caption_of_the_refcoco_sets_is_an_expression_without_places_too(workshop):
    data = captioned([[0, 3]])
    data["images"][0]["dataset_name"] = "refcoco"
    del data["annotations"][0]["tokens_positive"]
    assert [row["phrase"] for row in workshop.of(data)[0]["train"]] == [" ".join(CAPTION.split())]


def test_expressions_for_one_image_stay_apart_without_places(workshop):
    """Each is of its own box; the categories need not be listed."""
    images = [image(i, "one.png", caption=f"the {i}", dataset_name="refcoco+") for i in range(3)]
    parts = [annotation(i, image_id=i, bbox=[i, 1, 3, 3], segmentation=None, category_id=9) for i in range(3)]
    rows, report = workshop.of(content(*parts, images=images), strict=True)
    assert [(row["phrase"], row["boxes"]) for row in rows["train"]] == [
        (f"the {i}", [[i, 1, i + 3, 4]]) for i in range(3)
    ]
    assert not report.dropped


def test_words_of_captions_need_no_category(workshop):
    data = captioned([[15, 26]], [[0, 9]])
    expected = workshop.of(data)[0]
    assert len(expected["train"]) == 2
    data["annotations"][1]["category_id"] = 9
    assert workshop.of(data, strict=True)[0] == expected
    data["categories"] = []
    assert workshop.of(data, strict=True)[0] == expected


def test_places_need_a_caption_and_a_caption_places(workshop):
    with pytest.raises(ValueError, match=r"instances\.json: image 1 has no caption, though .* MDETR's and GoldG's"):
        workshop.of(captioned([[0, 3]], caption=None))
    data = captioned([[0, 3]])
    del data["annotations"][0]["tokens_positive"]
    assert [row["phrase"] for row in workshop.of(data)[0]["train"]] == ["traffic light"]


def test_captions_of_one_image_are_in_one_split(workshop):
    data = content(
        *(annotation(i, image_id=i, tokens_positive=[[0, 3]]) for i in range(60)),
        images=[image(i, f"{i // 5}", caption=f"One {i}") for i in range(60)],
    )
    rows, _ = workshop.of(data, images=False, split=None, validation_fraction=0.3)
    ids = {split: {row["image_id"] for row in rows[split]} for split in rows}
    assert sum(map(len, ids.values())) == 12 and len(ids) == 2
    assert sum(len(rows[split]) for split in rows) == 60


# Written otherwise ----------------------------------------------------------------------------------------------------


def changed(*changes):
    """Updates of the first record of a list: (list, fields), a field's None for none at all."""

    def change(data):
        for name, fields in changes:
            data[name][0].update(fields)
            for key in [key for key, value in fields.items() if value is ...]:
                del data[name][0][key]

    return change


OTHERWISE = {
    "ids as text": changed(("annotations", dict(id="7", image_id="1", category_id="3"))),
    "ids of letters": changed(
        ("images", dict(id="a-1")),
        ("categories", dict(id="lamp")),
        ("annotations", dict(id="x", image_id="a-1", category_id="lamp")),
    ),
    "ids of more than 64 bits": changed(
        ("images", dict(id=2**127 + 1)),
        ("categories", dict(id=2**127 + 1)),
        ("annotations", dict(id=2**127 + 1, image_id=2**127 + 1, category_id=f"{2**127 + 1}")),
    ),
    "ids with a point": changed(("annotations", dict(image_id=1.0, category_id=3.0))),
    "no id": changed(("annotations", dict(id=...))),
    "id null": changed(("annotations", dict(id=None))),
    "numbers as text": changed(
        ("images", dict(width=f"{WIDTH}", height=f"{HEIGHT}.0")),
        ("annotations", dict(bbox=["1", "1.0", "3", "3e0"], iscrowd="0")),
    ),
    "size with a point": changed(("images", dict(width=float(WIDTH), height=float(HEIGHT)))),
    "iscrowd null": changed(("annotations", dict(iscrowd=None))),
    "iscrowd missing": changed(("annotations", dict(iscrowd=...))),
    "iscrowd false": changed(("annotations", dict(iscrowd=False))),
    "category twice": lambda data: data["categories"].append(data["categories"][0]),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_what_means_the_same_gives_the_same(workshop, case):
    data = content(annotation(7))
    expected, _ = workshop.of(data)
    OTHERWISE[case](data)
    rows, report = workshop.of(data, strict=True)
    assert rows == expected and not report.dropped and len(rows["train"]) == 1


def test_annotations_of_what_is_not_listed_are_counted_and_those_without_an_id_named_by_number(workshop):
    others = annotation(2, category_id=9), annotation(None, image_id=9), annotation(None, segmentation=[[]])
    (row,), report = workshop.rows(annotation(None), *others)
    assert len(row["boxes"]) == 2 and report.examples == {
        "instances: of a category that is not listed (see --categories)": ["annotation 2"],
        "instances: of an image that is not listed": ["annotation number 2 (without id)"],
        "mask parts: empty": ["annotation number 3 (without id)"],
    }


def test_ids_of_images_are_by_name_and_bytes_whatever_their_number(workshop):
    (row,), _ = workshop.rows(annotation(1))
    mark = hashlib.sha256((workshop.images / "one.png").read_bytes()).hexdigest()[:12]
    renumbered = content(annotation(1, image_id=5), images=[image(5, "one.png")])
    assert row["image_id"] == f"coco/one.png#{mark}" == workshop.of(renumbered)[0]["train"][0]["image_id"]
    workshop.image("one.png", compress_level=0)
    assert workshop.rows(annotation(1))[0][0]["image_id"] != row["image_id"]


def test_names_of_images_as_other_machines_write_them(workshop):
    """A path of Windows; an absolute path, of which no folder of the machine is told."""
    workshop.image("below/two.png")
    for name in "below\\two.png", str(workshop.images / "below" / "two.png"):
        (row,) = workshop.of(content(annotation(1), images=[image(1, name)]))[0]["train"]
        assert row["image"]["bytes"] == (workshop.images / "below" / "two.png").read_bytes()
        assert str(workshop.images) not in row["image_id"]
    places = "/home/me/two.png", "/home/you/two.png", "C:\\\\me\\\\two.png", "D:/me/two.png"
    data = content(
        *(annotation(i, image_id=i) for i in range(4)), images=[image(i, name) for i, name in enumerate(places)]
    )
    ids = {row["image_id"] for row in workshop.of(data, images=False)[0]["train"]}
    assert len(ids) == 4 and {name_in_source(id_) for id_ in ids} == {"two.png"}
    own = [each.rows(annotation(1), images=False)[0] for each in (workshop, CocoWorkshop(workshop.images))]
    assert [name_in_source(row["image_id"]) for (row,) in own] == ["one.png"] * 2
    assert own[0][0]["image_id"] != own[1][0]["image_id"]  # of data folders of one name


@pytest.mark.parametrize("other", ["below\\one.png", "./below/one.png", ".\\below\\one.png", "below//one.png"])
def test_names_of_one_image_are_one(workshop, other):
    workshop.image("below/one.png")
    images = [image(1, "below/one.png"), image(2, other)]
    for order in images, images[::-1]:
        data = content(annotation(1), annotation(2, image_id=2, **SECOND), images=order)
        for has_images in True, False:
            (row,) = workshop.of(data, has_images)[0]["train"]
            assert len(row["boxes"]) == 2 and name_in_source(row["image_id"]) == "below/one.png"


def test_an_image_named_by_an_address_must_be_downloaded(workshop):
    names = "https://images.org/one.png", "https://images.org/gone.png"
    marked = [annotation(i, image_id=i) for i in range(2)]
    rows, report = workshop.of(content(*marked, images=[image(i, name) for i, name in enumerate(names)]))
    assert [row["image"]["bytes"] for row in rows["train"]] == [(workshop.images / "one.png").read_bytes()]
    assert report.dropped["images: named by an address; download them, and name the files instead"] == 1


def test_other_categories_replace_those_of_the_file(workshop):
    workshop.write("names.json", [{"id": 3, "name": "lamp"}])
    rows, report = workshop.rows(annotation(1), annotation(2, category_id=2), categories="names.json")
    assert [row["phrase"] for row in rows] == ["lamp"] and sum(report.dropped.values()) == 1
    whole = content(annotation(1))
    del whole["categories"]
    workshop.write("names.json", {"info": {}, "categories": [{"id": 3, "name": "lamp"}]})
    assert workshop.of(whole, categories="names.json")[0]["train"][0]["phrase"] == "lamp"
    workshop.write("names.json", {})
    with pytest.raises(ValueError, match=r"names\.json is not a list of categories"):
        workshop.rows(annotation(1), categories="names.json")


@pytest.mark.parametrize("sides", [dict(width=0, height=0), dict(width=..., height=...), dict(width=None)])
def test_a_size_that_the_file_does_not_say_is_the_images_own(workshop, sides):
    data = content(annotation(1), annotation(2, image_id=2), images=[image(1, "one.png"), image(2, "gone.png")])
    expected = workshop.of(data)[0]
    for each in data["images"]:
        changed(("images", sides))({"images": [each]})
    rows, report = workshop.of(data)
    assert rows == expected and len(rows["train"][0]["masks"]) == 1
    assert report.dropped[MISSING] == 1
    corners = [annotation(i, bbox=box, segmentation=None) for i, box in enumerate(CORNERS)]
    with pytest.raises(ValueError, match=r"are \[x, y, width, height\]"):
        workshop.of(data | {"annotations": corners})


def test_a_name_outside_of_the_folder_may_be_of_a_file_in_it(workshop):
    """As Label Studio writes it; not where two images are called so."""
    out = r"..\..\label-studio\media\upload\4"
    workshop.image("two.png")
    workshop.image("below/three.png")
    names = rf"{out}\one.png", rf"{out}\three.png", "/home/me/two.png", r"D:\other\two.png", r"C:\me\four.png"
    data = content(
        *(annotation(i, image_id=i) for i in range(len(names))), images=[image(i, name) for i, name in enumerate(names)]
    )
    rows, report = workshop.of(data)
    stored = {name_in_source(row["image_id"]): row["image"]["bytes"] for row in rows["train"]}
    assert stored == {
        name: (workshop.images / place).read_bytes()
        for name, place in (("one.png", "one.png"), ("three.png", "below/three.png"))
    }
    assert report.dropped["instances: of an image that cannot be used"] == 3


def test_another_folder_than_that_of_the_name_may_have_the_image_unless_another_is_called_so(workshop):
    """As of Objects365, whose names and downloads have other folders; and of videos of which one is not there."""
    names = "images/v2/patch16/1.png", "day1/cam/0.png", "day2/cam/0.png", "day1/2.png", "3.png", "x/3.png"
    for place in "train/patch16/1.png", "day1/cam/0.png", "mine/day1/2.png", "day3/3.png":
        workshop.image(place)
    marked = [annotation(i, image_id=i) for i in range(len(names))]
    rows, report = workshop.of(content(*marked, images=[image(i, name) for i, name in enumerate(names)]))
    stored = {name_in_source(row["image_id"]): row["image"]["bytes"] for row in rows["train"]}
    assert {name: (workshop.images / place).read_bytes() for name, place in (
        (names[0], "train/patch16/1.png"), (names[1], names[1]), (names[3], "mine/day1/2.png"), ("3.png", "day3/3.png")
    )} == stored  # fmt: skip
    assert report.dropped[MISSING] == 2


# Splits ---------------------------------------------------------------------------------------------------------------


def few(*ids):
    return content(*(annotation(i, image_id=i) for i in ids), images=[image(i) for i in ids])


def test_images_are_split_by_their_name_alone(workshop):
    data = few(*range(1, 201))
    options = dict(images=False, split=None, validation_fraction=0.25)
    rows, _ = workshop.of(data, **options)
    ids = {split: [name_in_source(row["image_id"]) for row in rows[split]] for split in rows}
    assert set(ids) == {"train", "validation"} and not set(ids["train"]) & set(ids["validation"])
    assert len(ids["train"]) + len(ids["validation"]) == 200 and 30 <= len(ids["validation"]) <= 70
    fewer = few(*range(101, 201))
    fewer["annotations"] = data["annotations"]
    rows, _ = workshop.of(fewer, **options)
    assert [name_in_source(row["image_id"]) for row in rows["validation"]] == [
        i for i in ids["validation"] if int(i) > 100
    ]
    again = [image(1000 + i, f"{i}", caption="A light") for i in range(1, 201)]  # with captions, and other ids
    marked = [annotation(1000 + i, image_id=1000 + i, tokens_positive=[[2, 7]]) for i in range(1, 201)]
    for images, own in (again, marked), ([*data["images"], *again], [*data["annotations"], *marked]):
        rows, _ = workshop.of(content(*own, images=images), **options)
        assert {split: {name_in_source(row["image_id"]) for row in rows[split]} for split in rows} == {
            split: set(own) for split, own in ids.items()
        }
    assert set(workshop.of(data, **options | {"validation_fraction": 0})[0]) == {"train"}
    rows, _ = workshop.of(data, images=False, split="test")
    assert {split: len(rows[split]) for split in rows} == {"test": 200}


OF_ONE_PHOTO = ["{}.jpg", "train2017/{}.jpg", "C:\\me\\{}.jpg", "COCO_train2014_{}.jpg", "{}_jpg.rf.0a9f{}.jpg"]


@pytest.mark.parametrize("name", OF_ONE_PHOTO)
def test_a_photo_is_in_the_same_split_whatever_an_export_calls_it(workshop, name):
    splits = {}
    for form in OF_ONE_PHOTO[0], name:
        numbers = [f"{i:012}" for i in range(100)]
        data = content(
            *(annotation(i, image_id=i) for i in range(100)),
            images=[image(i, form.format(number, number)) for i, number in enumerate(numbers)],
        )
        rows, _ = workshop.of(data, images=False, split=None, validation_fraction=0.3)
        assert 15 <= len(rows["validation"]) <= 45
        splits[form] = {re.search(r"\d{12}", row["image_id"])[0] for row in rows["validation"]}
    assert splits[name] == splits[OF_ONE_PHOTO[0]]


def test_an_image_that_is_listed_twice_is_one(workshop):
    """Each of two rows of it would be of a part of its instances, and chance could put it in both splits."""
    workshop.image("two.png")
    listed = [image(1, "one.png"), image("b", "one.png"), image("c", "two.png")]
    captioned = [each | {"caption": "two squares"} for each in listed]
    for images in listed, listed[::-1], captioned:
        parts = annotation(1), annotation(2, image_id="b", **SECOND), annotation(3, image_id="c")
        rows, report = workshop.of(content(*parts, images=images))
        boxes = {name_in_source(row["image_id"]): row["boxes"] for row in rows["train"]}
        assert boxes == {"one.png": [[1, 1, 4, 4], [5, 0, 7, 2]], "two.png": [[1, 1, 4, 4]]} and not report.dropped
        assert report.kept["images that are listed again, taken together with the first"] == 1
        assert (len(rows["train"]), report.kept["images"]) == (2, 2)


@pytest.mark.parametrize("again", ["below/two.png", ".\\below\\two.png", "Two.PNG", "two.png"])
@pytest.mark.parametrize("is_one_file", [True, False])
def test_an_image_that_is_listed_by_another_spelling_or_file_is_one(workshop, again, is_one_file):
    """But an image of its name in another folder is another, though it is not there."""
    workshop.image("below/two.png")
    images = [image(i, name) for i, name in enumerate(["two.png", again, "other/two.png"])]
    parts = [annotation(0, image_id=0), annotation(1, image_id=1, **SECOND), annotation(2, image_id=2)]
    bounds = (0, 3) if is_one_file else (0, 1, 3)
    for start, end in pairwise(bounds):
        workshop.write(f"job{start}/a.json", content(*parts[start:end], images=images[start:end]))
    rows, report = workshop.build(True, split="train", annotations="job*/a.json")
    assert [row["boxes"] for row in rows["train"]] == [[[1, 1, 4, 4], [5, 0, 7, 2]]]
    assert report.kept["images that are listed again, taken together with the first"] == 1
    assert report.dropped == {MISSING: 1, "instances: of an image that cannot be used": 1}


@pytest.mark.parametrize("count", [2, 11])
@pytest.mark.parametrize("fraction", [1e-9, 0.1, 1 - 1e-9])
def test_few_images_leave_neither_train_nor_validation_without_one(workshop, count, fraction):
    options = dict(images=False, split=None, validation_fraction=fraction)
    rows, report = workshop.of(few(*range(100, 100 + count)), **options)
    sizes = {split: len(rows[split]) for split in rows}
    assert set(sizes) == {"train", "validation"} and sum(sizes.values()) == count
    if fraction != 0.1:
        moved = "validation" if fraction < 0.5 else "train"
        assert report.kept[f"images moved to {moved}, for which none was drawn"] == 1
        assert sizes["validation" if fraction < 0.5 else "train"] == 1


@pytest.mark.parametrize("fraction", [0.1, 1 - 1e-9])
def test_a_single_image_is_for_training(workshop, fraction):
    data = few(1, 2, 3)
    del data["annotations"][1]  # an image without annotation is no image for validation
    data["annotations"][1].update(bbox=[2, 2, 0, 0], segmentation=None)  # nor one without a row
    rows, report = workshop.of(data, images=False, split=None, validation_fraction=fraction)
    assert [row["image_id"][:7] for row in rows["train"]] == ["coco/1#"] and not rows.get("validation")
    assert report.dropped == {"images without annotation": 1, "instances: box without area in the image": 1}
    assert report.kept["images"] == 2  # each once: a look at the few counts nothing
    data["annotations"][0]["segmentation"] = [[]]  # nor does it stop at anything: strictly built, a split does
    with pytest.raises(ValueError, match="annotation 1: mask parts"):
        workshop.of(data, images=False, split=None, strict=True)


def test_the_order_of_the_file_makes_no_difference_but_among_the_instances_of_a_row(workshop):
    data = content(
        *(annotation(i, image_id=1 + i % 7, category_id=2 + i % 2) for i in range(40)),
        images=[image(i) for i in (5, 1, 4, 7, 3, 2, 6)],
    )
    expected, _ = workshop.of(data, images=False)
    assert [name_in_source(row["image_id"]) for row in expected["train"]] == [i for i in "5147326" for _ in range(2)]
    assert [row["phrase"] for row in expected["train"]] == ["traffic light", "dog"] * 7
    assert sum(len(row["boxes"]) for row in expected["train"]) == 40
    backwards = dict(reversed([*data.items(), ("licenses", [{"id": 1}]), ("info", {"annotations": [1]})]))
    assert workshop.of(json.dumps(backwards, indent=1), images=False)[0] == expected
    data["annotations"].reverse()
    again = workshop.of(data, images=False)[0]["train"]
    assert [len(row["boxes"]) for row in again] == [len(row["boxes"]) for row in expected["train"]]


def test_jobs_hold_no_outline(workshop):
    long = [1, 1, 4, 1, 4, 4, *[1, 4] * 2000]
    workshop.write("instances.json", content(*(annotation(i, segmentation=[long]) for i in range(50))))
    builder = workshop.builder(split="train")
    builder.split_names()
    assert len(pickle.dumps(list(builder.jobs("train")))) < 5000


# What is refused ------------------------------------------------------------------------------------------------------

# A list, what becomes of its first record (or records to add, or None for no list), and what is said.
REFUSED = [
    ("annotations", None, "needs the lists images, categories and annotations"),
    ("images", [image(1, "one.png")], "image id 1 occurs twice"),
    ("annotations", [annotation(7)], "annotation id 7 occurs twice"),
    ("annotations", [annotation("a"), annotation("a")], "annotation id a occurs twice"),
    ("categories", [{"id": "3", "name": "b"}], "category id 3 occurs twice, as 'tr"),
    ("annotations", ["a"], "annotation without a whole number as id, .*a"),
    ("images", dict(id=...), "image without a whole number as id"),
    ("images", dict(file_name=...), "image 1: file_name is missing"),
    ("images", dict(width=0), "image 1: width cannot be 0"),
    ("images", dict(not_exhaustive_category_ids=3), "image 1: not_exhaustive_category_ids cannot be 3"),
    ("categories", dict(name=" "), "category 3: name cannot be"),
    ("annotations", dict(image_id=...), "annotation 7: image_id is missing"),
    *(
        ("annotations", dict(bbox=bbox, segmentation=None), "annotation 7: bbox cannot be")
        for bbox in (["1", "a", "3", "3"], [1, 2, 3], [1, 2, 3, float("nan")], [1, 2, 3, 10**400])
    ),
    ("annotations", dict(id=10**200), "annotation without a whole number"),
    ("annotations", dict(image_id=10**200), "annotation 7: image_id cannot be"),
    ("annotations", dict(iscrowd=2), "annotation 7: iscrowd cannot be 2"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_a_broken_file_is_refused_with_its_record(workshop, name, change, message):
    data = content(annotation(7))
    if change is None:
        del data[name]
    elif isinstance(change, list):
        data[name] += change
    else:
        changed((name, change))(data)
    with pytest.raises(ValueError, match=rf"instances\.json.*{message}"):
        workshop.of(data, images=False)


@pytest.mark.parametrize(
    "shares",
    [{"segmentation": None}, {"segmentation": [[0.2, 0.2, 1, 0.2, 1, 0.9]]}, {"segmentation": ["0.2", 0.2] * 3}],
)
def test_shares_of_the_image_are_no_pixels(workshop, shares):
    """They would be a box and a mask of the pixel at the top left."""
    bad = annotation(1, bbox=[0.2, "0.2", 0.8, 0.7], **shares), annotation(2, bbox=None, segmentation=[[]])
    with pytest.raises(ValueError, match=r"instances\.json: no coordinate of 1 of 1 annotations is above 1: .* pixels"):
        workshop.rows(*bad)
    with pytest.raises(ValueError, match="no coordinate of 1 of 2 annotations"):  # the other one is a rounding above
        workshop.rows(*bad, annotation(3, bbox=[0.2, 0.2, 0.8, 1.00001], segmentation=None))
    for pixels in {"segmentation": [SQUARE]}, {"segmentation": SQUARE_RUNS}:
        (row,), _ = workshop.rows(annotation(1, bbox=[0.2, 0.2, 0.8, 0.7], **pixels))
        assert row["boxes"] == [[1, 1, 4, 4]]  # the mask's own
    (row,), report = workshop.rows(annotation(1, segmentation=[[0.1, 0.1, 0.6, 0.1, 0.6, 0.9]]))
    assert row["boxes"] == [[1, 1, 4, 4]] and row["masks"] == []  # the box in pixels
    assert report.dropped == {"mask parts: polygon in shares of the image, not pixels": 1}


CORNERS = [[1, 1, 4, 4], [5, 3, 8, 6], [2, 1, 7, 3], [0, 0, 8, 6]]  # of an image of 8 x 6


@pytest.mark.parametrize("images_first", [True, False])
def test_corners_are_no_sizes(workshop, images_first):
    """As sizes two of the four end beyond the image, and would be cut to boxes that are too large."""
    data = content(*(annotation(i, bbox=box, segmentation=None) for i, box in enumerate(CORNERS)))
    if not images_first:
        data["images"] = data.pop("images")
    message = r"instances\.json: 2 boxes \(annotation 1, annotation 2\) end beyond .* are \[x, y, width, height\]"
    with pytest.raises(ValueError, match=message):
        workshop.of(data)


def test_sizes_over_the_edge_are_sizes(workshop):
    """Beyond the right edge, beyond all edges, rounded; and a single one that could be corners."""
    over = [[5, 3, 4, 2], [-1, -1, 10, 8], [1, 1, 7.2, 5.2], [5, 3, 8, 6], [1, 1, 2, 2]]
    rows, report = workshop.rows(*(annotation(i, bbox=box, segmentation=None) for i, box in enumerate(over[:3])))
    assert rows[0]["boxes"] == [[5, 3, 8, 5], [0, 0, 8, 6], [1, 1, 8, 6]]
    assert report.kept["boxes over the edge of the image, cut"] == 3
    assert workshop.rows(*(annotation(i, bbox=box) for i, box in enumerate(over)))[0]


def test_bad_options_are_named(workshop):
    with pytest.raises(ValueError, match=r"other\.json: No such file"):
        workshop.of(content(), annotations="other.json")
    for split in "my-split", "all", "train+x", "train[:5]", "", "a..b":
        with pytest.raises(ValueError, match=f"split: {re.escape(repr(split))} is no name of a split"):
            workshop.rows(annotation(1), split=split)


def test_phrases_are_made_by_a_template(workshop):
    data = content(annotation(1), annotation(2, category_id=2, **SECOND))
    rows, _ = workshop.of(data, phrase_template="a photo of a {}")
    assert [row["phrase"] for row in rows["train"]] == ["a photo of a traffic light", "a photo of a dog"]
    for template in "a photo", "{} and {}", "{0}":
        with pytest.raises(ValueError, match=r"phrase_template: .* needs \{\} once"):
            workshop.of(data, phrase_template=template)
