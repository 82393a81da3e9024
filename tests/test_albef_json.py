"""ALBEF's lists of captions, made by hand and a real one: rows, boxes, counts, what is refused."""

import json

import pytest

from dataset_scripts.albef_json import AlbefJson
from dataset_scripts.features import make_row
from tests.helpers.builders import Workshop, id_without_image, name_in_source


class AlbefWorkshop(Workshop):
    def __init__(self, folder):
        super().__init__(AlbefJson, folder)

    def of(self, content, images=False, **options):
        """The rows, and the report."""
        self.write("train.json", content)
        return self.rows(images, **options)


@pytest.fixture
def workshop(tmp_path):
    return AlbefWorkshop(tmp_path)


def record(caption="a dog", image="1.png", **more) -> dict:
    return {"image": image, "caption": caption} | more


@pytest.mark.shared
def test_the_real_list_is_all_there(shared_dir):
    folder = shared_dir / "data" / "albef_json"
    builder = AlbefJson(data_dir=str(folder), annotations="flickr30k_test.json", split="test")
    assert builder.split_names() == ["test"]
    jobs = list(builder.jobs("test"))
    assert [len(job) for job in jobs] == [500, 500]
    rows = [row for job in jobs for row in builder.rows("test", job)]
    assert builder.report.kept == {"images": 1000, "rows without region": 5000} and not builder.report.dropped
    raw = json.loads((folder / "flickr30k_test.json").read_text())
    expected = [(r["image"], caption) for r in raw for caption in r["caption"]]
    assert [(name_in_source(row["image_id"]), row["phrase"]) for row in rows] == expected


def test_captions_and_boxes_in_every_form(workshop):
    one, two = [1, 2, 10, 20], [5.5, 6, 7.25, 8]
    records = [
        record("a dog", bbox=[one, two]),
        record(["a  cat ", "two cats"], "2.png", bbox=one),
        record("a tree", "2.png"),
        record("a bush", "3/3.png", bbox=[]),
        record("a wall", "3/3.png", bbox=None),
    ]
    rows, report = workshop.of(records)
    expected = [("1", "a dog", [one, two]), ("2", "a cat", [one]), ("2", "two cats", [one]), ("2", "a tree", [])]
    expected += [("3/3", "a bush", []), ("3/3", "a wall", [])]
    assert rows == [
        make_row(None, id_without_image("albef_json", workshop.folder, f"{name}.png"), phrase, boxes)
        for name, phrase, boxes in expected
    ]
    assert report.kept == {
        "images": 3,
        "rows with boxes": 3,
        "rows without region": 3,
        "captions with stray blanks, cleaned": 1,
    }
    assert not report.dropped


def test_boxes_are_cut_to_the_image_where_there_is_one(workshop):
    workshop.image("1.png")
    for images, expected in (True, [0, 0, 8, 6]), (False, [0, 0, 9, 7]):
        rows, report = workshop.of([record(bbox=[[-1, -1, 9, 7]])], images)
        assert [row["boxes"] for row in rows] == [[expected]]
        assert report.kept["boxes over the edge of the image, cut"] == 1


NO_BOXES = [[1, 2, 3], ["1a", 2, 3, 4], [True, 2, 3, 4], [1, 2, float("nan"), 4], "box", {}, [[]], [3, [1]]]
NO_BOXES += [[1, 2, 3, 10**20], [1, 2, 3, 10**400]]


@pytest.mark.parametrize("bbox", NO_BOXES, ids=lambda bbox: str(bbox)[:30])
def test_a_broken_box_is_counted_or_fatal(workshop, bbox):
    rows, report = workshop.of([record(["a dog", "an animal"], bbox=bbox), record("a cat")])
    assert [row["phrase"] for row in rows] == ["a cat"]
    assert report.dropped == {"boxes: not four numbers of pixels": 1, "captions: none of their boxes is of use": 2}
    with pytest.raises(ValueError, match=r"train\.json, record 0: boxes: not four numbers"):
        workshop.of([record(bbox=bbox)], strict=True)


WHOLE = record("a cat", bbox=[[1, 2, 3, 4]] * 3)


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([0.1, 0.2, 0.5, 1], "box in shares of the image"),
        (["0.1", "0.2", "0.5", "1"], "box in shares of the image"),
        ([5, 4, 3, 2], "box without area in the image"),  # x, y, width, height
    ],
)
def test_boxes_of_another_format_are_refused_where_they_are_many(workshop, bbox, reason):
    """A quarter of them may be a mistake, which is counted."""
    rows, report = workshop.of([record(bbox=bbox), WHOLE])
    assert [row["phrase"] for row in rows] == ["a cat"] and report.dropped[f"boxes: {reason}"] == 1
    message = rf"train\.json: 2 of 5 boxes are none \(record 0, .*: {reason}; record 2, .*\): bbox is expected to be"
    with pytest.raises(ValueError, match=message):
        workshop.of([record(bbox=bbox), WHOLE, record(bbox=[bbox])])


def test_a_whole_image_in_shares_is_not_its_first_pixel(workshop):
    with pytest.raises(
        ValueError, match=r"1 of 1 boxes are none \(record 0, \[0, 0, 1, 1\]: box in shares of the image"
    ):
        workshop.of([record(bbox=[0, 0, 1, 1])])


def test_numbers_may_be_text(workshop):
    rows, _ = workshop.of([record(bbox=["1", "2.5", " 3 ", "4e0"]), record(bbox=[["1", 2, 3, "4"]])], strict=True)
    assert [row["boxes"] for row in rows] == [[[1, 2.5, 3, 4]], [[1, 2, 3, 4]]]


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, [[1, 2, 3, 4]]) for name in ("box", "boxes", "segmentation", "polygon")), ("x1", 0), ("mask", "m.png")],
)
def test_regions_by_another_name_are_not_passed_over(workshop, name, value):
    with pytest.raises(ValueError, match=f"train.json: record 1 has {name}, which is not understood: call it bbox"):
        workshop.of([record("a cat"), record(**{name: value})])
    assert workshop.of([record(**{name: []}), record(bbox=[1, 2, 3, 4], **{name: [[1, 2, 3, 4]]})])[0]


def test_absent_is_what_the_image_does_not_show(workshop):
    absent = record(["a cow", "a cat"], absent=True, bbox=[]), record(absent=True, bbox=[1, 2, 3, 4])
    rows, report = workshop.of([*absent, record(absent="no"), record(absent=False), WHOLE])
    found = [(row["phrase"], row["absent"]) for row in rows]
    assert found == [("a cow", True), ("a cat", True), (record()["caption"], False), ("a cat", False)]
    assert report.kept["rows of absent phrases"] == 2 and report.dropped == {
        "captions: absent, and yet with a box": 1,
        "captions: absent is neither true nor false": 1,
    }


@pytest.mark.parametrize(
    ("other", "is_lost"), [([1, 2, 3], True), ([5, 5, 5, 9], True), ([-9, 2, 3, 4], True), ([-9, 2, -3, 4], False)]
)
def test_a_caption_that_lost_a_box_is_left_out(workshop, other, is_lost):
    """Its row would not be of all that it says; a box beside the image leaves the others."""
    rows, report = workshop.of([record(bbox=[other, [1, 2, 3, 4]]), WHOLE])
    assert [row["boxes"] for row in rows] == ([] if is_lost else [[[1, 2, 3, 4]]]) + [WHOLE["bbox"]]
    assert report.dropped["captions: one of their boxes is lost"] == is_lost
    assert sum(report.dropped.values()) == 1 + is_lost


GROUNDING = [
    {"image": "train2014/1.jpg", "text": "the lady with the blue shirt", "ref_id": 0},
    {"image": "train2014/1.jpg", "caption": "", "text": "lady", "ref_id": "7"},
    {"image": "train2014/2.jpg", "text": ["a cat", "the  cat"], "bbox": [1, 2, 3, 4]},
]
JSON_LINES = "\n".join(map(json.dumps, GROUNDING))
FORMS = {
    "list": json.dumps(GROUNDING),
    "JSON Lines of Windows": "\ufeff" + JSON_LINES.replace("\n", "\r\n") + "\r\n",
    "JSON Lines with blank lines": "\n" + JSON_LINES.replace("\n", "\n\n") + "\n\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_lists_for_grounding(workshop, form):
    rows, report = workshop.of(FORMS[form], strict=True)
    assert [(row["phrase"], row["boxes"]) for row in rows] == [
        ("the lady with the blue shirt", []),
        ("lady", []),
        ("a cat", [[1, 2, 3, 4]]),
        ("the cat", [[1, 2, 3, 4]]),
    ]
    assert report.kept["images"] == 2


def test_captions_and_images_that_are_none_are_counted_or_fatal(workshop):
    captions = [record(["a dog", " ", 7]), record(None), record(""), record([]), {"image": "2.png"}]
    captions += [{"image": "3.png", "text": []}, *(record(none) | {"text": "a cat"} for none in (None, "", []))]
    images = [{"caption": "a cat"}, record(image=3), record(image="")]
    rows, report = workshop.of(captions + images)
    assert [row["phrase"] for row in rows] == ["a dog", "a cat", "a cat", "a cat"]
    assert report.dropped == {"captions: missing, empty or no text": 7, "records without image": 3}
    for data, reason in (captions, "captions: missing"), (images, "records without image"):
        with pytest.raises(ValueError, match=rf"train\.json, record 0: {reason}"):
            workshop.of(data, strict=True)


def test_a_prefix_of_the_names_can_be_taken_off(workshop):
    whole = workshop.image("1.png")
    data = [record(image="/export/share/images/1.png"), record(image="/other/1.png")]
    for prefix in "/export/share/images/", "/export/share/images":
        rows, report = workshop.of(data, images=True, image_prefix=prefix)
        assert [(name_in_source(row["image_id"]), row["image"]["bytes"]) for row in rows] == [("1.png", whole)]
        assert report.dropped["images: their name does not begin with image_prefix"] == 1
        assert report.dropped["records of images that cannot be used"] == 1
    assert not workshop.of(data, images=True)[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image": "1.png", "caption": "a"}, {"image"', "not JSON, or was cut off, after 1 records"),
        ('{"image": "1.png", "caption": "a"}\n{"image"', "not JSON, or was cut off, after 1 records"),
        ('{"image": "1.png", "caption": "a"}, {}', "not JSON, or was cut off, after 1 records"),
        ('{"image": "1.png", "caption": "a"}\n"1.png"', "record 1 is no record with image and caption or text: 1.png"),
        ('["1.png"]', "record 0 is no record with image and caption or text: 1.png"),
        ("image,caption", r"does not begin with '\[' or '{'"),
        ("", r"does not begin with '\['"),
    ],
)
def test_a_broken_file_is_refused_by_name(workshop, content, message):
    with pytest.raises(ValueError, match=r"train\.json.*" + message):
        workshop.of(content)
    with pytest.raises(ValueError, match=r"other\.json"):
        workshop.of([record()], annotations="other.json")
