"""COCO annotations, on files made by hand: what comes out, what is dropped and counted, what is refused."""

import copy
import hashlib
import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dataset_scripts.coco import Coco, in_words
from dataset_scripts.segmentations import contradict, segmentation_to_mask
from tests.image_ids import name_in_source

HEIGHT, WIDTH = 6, 8
SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]  # covers the pixels 1 to 3 in both directions
SQUARE_MASK = np.zeros((HEIGHT, WIDTH), bool)
SQUARE_MASK[1:4, 1:4] = True
# The same square down the columns: 7 zeros, 3 ones, 3 zeros, 3 ones, 3 zeros, 3 ones and 26 zeros.
SQUARE_COUNTS = [7, 3, 3, 3, 3, 3, 26]


def annotation(id_: int, **changes):
    plain = {
        "id": id_,
        "image_id": 1,
        "category_id": 3,
        "bbox": [1, 1, 3, 3],
        "segmentation": [SQUARE],
        "area": 9,
        "iscrowd": 0,
    }
    return plain | changes


def content(*annotations):
    return {
        "images": [{"id": 1, "file_name": "one.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 3, "name": "traffic light"}, {"id": 2, "name": "dog"}],
        "annotations": list(annotations),
    }


class Workshop:
    """Writes a data folder and runs the builder over it."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "images").mkdir()
        self.photo("one.png")

    def photo(self, name: str, size=(WIDTH, HEIGHT), **options) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(self.folder / "images" / name, **options)

    def build(self, data, **options):
        """All rows by split, and the report."""
        text = data if isinstance(data, str) else json.dumps(data)
        (self.folder / "instances.json").write_text(text)
        folders = {"data_dir": str(self.folder), "images_dir": str(self.folder / "images")}
        options = {"split": "train"} | folders | options
        builder = Coco(cache_dir=str(self.folder / "cache"), **options)
        rows = {
            split: [row for job in builder.jobs(split) for row in builder.rows(split, job)]
            for split in builder.split_names()
        }
        return rows, builder.report

    def rows(self, *annotations):
        rows, report = self.build(content(*annotations))
        return rows["train"], report


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


def read_mask(segmentation, height=HEIGHT, width=WIDTH):
    """The mask, and why parts of it were left out."""
    reasons = []
    return segmentation_to_mask(segmentation, height, width, reasons.append), reasons


def decoded(mask: dict) -> np.ndarray:
    image = Image.open(io.BytesIO(mask["bytes"]))
    assert image.mode == "L" and image.format == "PNG"
    return np.asarray(image)


def compressed(counts: list[int], height: int = HEIGHT, width: int = WIDTH) -> str:
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"].decode()


# Segmentations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "segmentation",
    [
        [SQUARE],
        [[1, 1, 3, 1, 3, 4, 1, 4], [3, 1, 4, 1, 4, 4, 3, 4]],  # in two parts
        {"size": [HEIGHT, WIDTH], "counts": SQUARE_COUNTS},
        {"size": [HEIGHT, WIDTH], "counts": compressed(SQUARE_COUNTS)},
        SQUARE,
        [list(map(str, SQUARE))],
        [[1, 1, 3, 1, 3, 4, 1, 4], {"size": [HEIGHT, WIDTH], "counts": SQUARE_COUNTS}],
        {"size": [float(HEIGHT), str(WIDTH)], "counts": list(map(str, SQUARE_COUNTS))},
    ],
    ids=["polygon", "two polygons", "run lengths", "compressed", "flat", "text", "both kinds", "run lengths as text"],
)
def test_every_form_of_the_square_is_the_square(segmentation):
    mask, reasons = read_mask(segmentation)
    assert not reasons and mask.dtype == bool and np.array_equal(mask, SQUARE_MASK)


def test_compressed_run_lengths_agree_with_pycocotools():
    rng = np.random.default_rng(1)
    for _ in range(60):
        height, width = rng.integers(1, 90, size=2)
        expected = rng.random((height, width)) < rng.random()
        expected[rng.integers(height) :] ^= True  # long runs as well as short ones
        expected[0, 0] = True
        encoded = coco_mask.encode(np.asfortranarray(expected.astype(np.uint8)))
        segmentation = {"size": [int(height), int(width)], "counts": encoded["counts"].decode()}
        assert np.array_equal(read_mask(segmentation, int(height), int(width))[0], expected)


def test_a_polygon_over_the_edge_is_cut_to_the_photo():
    mask, _ = read_mask([[5, 3, 20, 3, 20, 20, 5, 20]])
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[3:, 5:] = True
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 1, 4, 1, 4, 4, 1]], "odd number"),
        ([[1, 1, 4, 1]], "fewer than three points"),
        ([[1, 1, 4, 1, 4, "four"]], "no finite number"),
        ([[1, 1, 4, 1, 4, float("nan")]], "no finite number"),
        ([[1, 1, 4e9, 1, 4, 4]], "far outside"),
        ([[20, 20, 24, 20, 24, 24]], "covers no pixel"),
        ([1, 1, 3, 3], "fewer than three points"),
        ([[7, 7]], "fewer than three points"),
        ([[]], "empty"),
        ({}, "empty"),
        ("", "empty"),
        ("square", "neither polygon nor run lengths"),
        (7, "neither polygon nor run lengths"),
        ([[[1, 1], [4, 1], [4, 4], [1, 4], [1, 1], [2, 2]]], "no finite number"),
        ({"size": [WIDTH, HEIGHT], "counts": SQUARE_COUNTS}, "another image size"),
        ({"counts": SQUARE_COUNTS}, "another image size"),
        ({"size": [HEIGHT, WIDTH]}, "cannot be read"),
        ({"size": [HEIGHT, WIDTH], "counts": [7, -3, 44]}, "cannot be read"),
        ({"size": [HEIGHT, WIDTH], "counts": [7.5, 40.5]}, "cannot be read"),
        ({"size": [HEIGHT, WIDTH], "counts": [7, 3]}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": [48]}, "covers no pixel"),
        ({"size": [HEIGHT, WIDTH], "counts": compressed(SQUARE_COUNTS)[:-1]}, "do not add up|cannot be read"),
        ({"size": [HEIGHT, WIDTH], "counts": compressed(SQUARE_COUNTS) + "o"}, "cannot be read"),
        ({"size": [HEIGHT, WIDTH], "counts": "é!"}, "cannot be read"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "do not add up"),
    ],
)
def test_of_a_bad_segmentation_the_box_stays(workshop, segmentation, reason):
    """The trouble is the mask's: no instance is lost, and its reason is counted, or fatal."""
    data = [annotation(1, segmentation=segmentation), annotation(2, category_id=2)]
    rows, report = workshop.rows(*data)
    assert [(row["phrase"], row["boxes"], len(row["masks"])) for row in rows] == [
        ("traffic light", [[1, 1, 4, 4]], 0),
        ("dog", [[1, 1, 4, 4]], 1),
    ]
    assert report.kept["instances"] == 2 and report.kept["rows by boxes alone, for want of a segmentation"] == 1
    (dropped,) = report.dropped
    assert dropped.startswith("mask") and report.dropped[dropped] == 1
    assert report.examples[dropped] == ["annotation 1"]
    assert any(word in dropped for word in reason.split("|"))
    with pytest.raises(ValueError, match=rf"annotation 1: mask.*({reason})"):
        workshop.build(content(*data), strict=True)


@pytest.mark.parametrize(
    "bad", [[7, 7], [], {}, "", [1, 1, 3, 3], {"size": [WIDTH, HEIGHT], "counts": SQUARE_COUNTS}, None, 7]
)
def test_of_a_bad_part_the_others_stay(workshop, bad):
    data = annotation(1, segmentation=[bad, SQUARE, bad])
    (row,), report = workshop.rows(data)
    assert row["boxes"] == [[1, 1, 4, 4]] and np.array_equal(decoded(row["masks"][0]) == 255, SQUARE_MASK)
    ((reason, count),) = report.dropped.items()
    assert reason.startswith("mask parts: ") and count == 2
    with pytest.raises(ValueError, match="annotation 1: mask parts: "):
        workshop.build(content(data), strict=True)


# Rows -----------------------------------------------------------------------------------------------------------------


def test_one_row_per_category_with_all_its_instances(workshop):
    second = [5, 0, 7, 0, 7, 2, 5, 2]
    rows, report = workshop.rows(
        annotation(10),
        annotation(11, category_id=2),
        annotation(12, bbox=[5, 0, 2, 2], segmentation=[second]),
    )
    assert [(name_in_source(row["image_id"]), row["phrase"]) for row in rows] == [
        ("one.png", "traffic light"),
        ("one.png", "dog"),
    ]
    assert rows[0]["boxes"] == [[1, 1, 4, 4], [5, 0, 7, 2]]
    assert [int((decoded(mask) == 255).sum()) for mask in rows[0]["masks"]] == [9, 4]
    assert np.array_equal(decoded(rows[0]["masks"][0]) == 255, SQUARE_MASK)
    assert rows[0]["image"]["bytes"] == (workshop.folder / "images" / "one.png").read_bytes()
    assert report.kept == {"instances": 3, "photos": 1, "rows (a photo and a category)": 2}
    assert not report.dropped


def test_a_crowd_is_part_of_the_region(workshop):
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 6, 42]}
    rows, report = workshop.rows(annotation(1), annotation(2, iscrowd=1, segmentation=crowd, bbox=[0, 0, 1, 6]))
    assert rows[0]["boxes"] == [[1, 1, 4, 4], [0, 0, 1, 6]]
    assert [(decoded(mask) == 255).sum() for mask in rows[0]["masks"]] == [9, 6]
    assert report.kept["instances that are crowds"] == 1 and report.kept["instances"] == 2


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        ([-2, -1, 5, 4], [0, 0, 3, 3]),
        ([6.5, 4, 10, 10], [6.5, 4, 8, 6]),
        ([8, 0, 3, 3], None),
        ([-5, 0, 5, 3], None),
        ([2, 2, 0, 3], None),
        ([4, 4, -2, 1], None),
    ],
)
def test_boxes_are_cut_to_the_photo_or_dropped(workshop, bbox, expected):
    rows, report = workshop.rows(annotation(1, bbox=bbox, segmentation=None))
    assert [row["boxes"] for row in rows] == ([[expected]] if expected else [])
    assert report.dropped == ({} if expected else {"instances: box without area in the photo": 1})
    assert report.kept["boxes over the edge of the photo, cut"] == bool(expected)


@pytest.mark.parametrize("segmentation", [None, []])
def test_a_row_goes_by_boxes_where_a_segmentation_is_missing(workshop, segmentation):
    rows, report = workshop.rows(annotation(1), annotation(2, segmentation=segmentation), annotation(3, category_id=2))
    assert [len(row["boxes"]) for row in rows] == [2, 1]
    assert [len(row["masks"]) for row in rows] == [0, 1]
    assert report.kept["rows by boxes alone, for want of a segmentation"] == 1


@pytest.mark.parametrize(
    ("box", "mask_box", "expected"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], False),
        ([0, 0, 2, 2], [0, 0, 2, 1], False),  # an IoU of a half, exactly
        ([0, 0, 2, 2], [0, 0, 2, 0.9], True),
        ([0, 0, 2, 2], [1, 0, 3, 2], True),  # of a third
        ([0, 0, 2, 2], [5, 5, 6, 6], True),
    ],
)
def test_what_a_contradiction_is(box, mask_box, expected):
    assert contradict(box, mask_box) == contradict(mask_box, box) == expected


@pytest.mark.parametrize("bbox", [[5, 3, 3, 3], [1, 1, 4, 5]])
def test_a_box_that_contradicts_its_mask_gives_way_to_the_masks_own(workshop, bbox):
    (row,), report = workshop.rows(annotation(1, bbox=bbox), annotation(2))
    assert row["boxes"] == [[1, 1, 4, 4]] * 2
    assert [np.array_equal(decoded(mask) == 255, SQUARE_MASK) for mask in row["masks"]] == [True, True]
    reason = "boxes: contradict their mask (IoU below 0.5); the mask's own is taken"
    assert report.dropped == {reason: 1} and report.examples[reason] == ["annotation 1"]
    with pytest.raises(ValueError, match="annotation 1: boxes: contradict their mask"):
        workshop.build(content(annotation(1, bbox=bbox)), strict=True)


def test_a_box_does_not_give_way_to_a_mask_that_lost_a_part(workshop):
    """Of the object's two halves one cannot be read: the box is of both, and the other one's own would be too small."""
    right = [5, 1, 7, 1, 7, 4, 5]
    lost = annotation(1, bbox=[1, 1, 6, 3], segmentation=[SQUARE, right])
    (row,), report = workshop.rows(lost)  # the square's IoU with its box is exactly a half: both are kept
    assert row["boxes"] == [[1, 1, 7, 4]] and len(row["masks"]) == 1
    lost["bbox"] = [1, 1, 7, 3]
    (row,), report = workshop.rows(lost)
    assert row["boxes"] == [[1, 1, 8, 4]] and not row["masks"]
    assert report.dropped == {
        "mask parts: polygon with an odd number of coordinates": 1,
        "masks: contradict their box (IoU below 0.5) for want of a part; the box is taken alone": 1,
    }


@pytest.mark.parametrize("bbox", [None, [], "missing"])
def test_without_a_box_an_instance_has_its_masks(workshop, bbox):
    plain = annotation(1, bbox=bbox)
    if bbox == "missing":
        del plain["bbox"]
    rows, report = workshop.build(content(plain), strict=True)
    assert rows["train"][0]["boxes"] == [[1, 1, 4, 4]] and len(rows["train"][0]["masks"]) == 1
    assert report.kept["instances without a box, which have their mask's own"] == 1


@pytest.mark.parametrize("bbox", [[8, 0, 3, 3], [2, 2, 0, 3], [4, 4, -2, 1]])
def test_of_a_box_without_area_in_the_photo_the_mask_stays(workshop, bbox):
    (row,), report = workshop.rows(annotation(1, bbox=bbox))
    assert row["boxes"] == [[1, 1, 4, 4]] and len(row["masks"]) == 1
    assert report.dropped == {"boxes: box without area in the photo; the mask's own is taken": 1}


LOST = {"no width": [2, 2, 0, 3], "no height": [2, 2, 3, 0], "a negative side": [4, 4, -2, 1], "no box": None}


@pytest.mark.parametrize("case", LOST)
def test_a_row_that_lost_an_instance_is_left_out(workshop, case):
    """It would not be of all instances: pointing at the lost one would be wrong, and heat be pushed off it."""
    lost = annotation(2, bbox=LOST[case], segmentation=[[]] if case == "no box" else None)
    rows, report = workshop.rows(annotation(1), lost, annotation(3), annotation(4, category_id=2))
    assert [row["phrase"] for row in rows] == ["dog"]
    beside = "instances: beside one that was lost, without which the row would not be of all"
    reason = "instances: neither a box nor a mask" if case == "no box" else "instances: box without area in the photo"
    assert report.dropped[beside] == 2 and report.dropped[reason] == 1 and report.kept["instances"] == 1


def test_an_instance_beside_the_photo_is_not_of_it(workshop):
    (row,), report = workshop.rows(annotation(1), annotation(2, bbox=[8, 0, 3, 3], segmentation=None))
    assert row["boxes"] == [[1, 1, 4, 4]] and len(row["masks"]) == 1
    assert report.dropped == {"instances: box without area in the photo": 1}


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("bow_(weapon)", "bow"),
        ("traffic light", "traffic light"),
        ("mouse_(computer_equipment)", "mouse"),
        ("record_(vinyl)_player", "record player"),
        (" Cell  Phone ", "Cell Phone"),
        ("t-shirt", "t-shirt"),
        ("(weapon)", "(weapon)"),
        ("pan_(for", "pan (for"),
    ],
)
def test_categories_in_words(name, phrase):
    assert in_words(name) == phrase


def test_categories_of_one_name_have_one_row(workshop):
    data = content(annotation(1), annotation(2, category_id=2))
    data["categories"] = [{"id": 3, "name": "bow_(weapon)"}, {"id": 2, "name": "bow_(decorative_ribbons)"}]
    (row,) = workshop.build(data)[0]["train"]
    assert row["phrase"] == "bow" and len(row["boxes"]) == 2


# LVIS's files ---------------------------------------------------------------------------------------------------------


def lvis(*annotations, **image):
    """A photo as in LVIS 1.0: no name of a file, but an address."""
    data = content(*annotations)
    del data["images"][0]["file_name"]
    data["images"][0].update(coco_url="http://images.cocodataset.org/val2017/one.png", neg_category_ids=[], **image)
    return data


def test_a_photo_without_a_name_is_in_cocos_folder(workshop):
    (workshop.folder / "images" / "val2017").mkdir()
    workshop.photo("val2017/one.png")
    (row,) = workshop.build(lvis(annotation(1)), strict=True)[0]["train"]
    assert name_in_source(row["image_id"]) == "val2017/one.png" and row["image"]["bytes"]


def test_a_category_that_is_marked_in_part_has_no_row(workshop):
    """Its other instances would be taken for background. The name counts: of two categories called so, too."""
    data = lvis(annotation(1), annotation(2, category_id=2), annotation(3), not_exhaustive_category_ids=["3", 99])
    rows, report = workshop.build(data, images_dir=None, strict=True)
    reason = "instances: of a category not all of whose instances are marked (not_exhaustive_category_ids)"
    assert [row["phrase"] for row in rows["train"]] == ["dog"] and report.dropped == {reason: 2}
    data["categories"][1]["name"] = "traffic_light_(toy)"
    rows, report = workshop.build(data, images_dir=None)
    assert not rows["train"] and report.dropped == {reason: 3}


# MDETR's and GoldG's files --------------------------------------------------------------------------------------------

CAPTION = "Two  guys with shaggy hair look , two guys"


def captioned(*tokens, caption=CAPTION, **image):
    """A photo with an annotation for each `tokens_positive`; every second one is to the right of the first."""
    boxes = [[1, 1, 3, 3], [4, 1, 3, 3]]
    plain = dict(segmentation=None)
    data = content(
        *(annotation(i, bbox=boxes[i % 2], tokens_positive=places, **plain) for i, places in enumerate(tokens))
    )
    data["images"][0].update(image | ({} if caption is None else {"caption": caption}))
    return data


def test_phrases_are_words_of_the_caption(workshop):
    rows, report = workshop.build(captioned([[15, 26]], [[0, 9]], [[0, 9]], [[34, 42]], [[0, 3], [22, 26]]))
    words = "Two guys with shaggy hair look , two guys"
    assert [(row["phrase"], row["boxes"], row["caption"], row["caption_span"]) for row in rows["train"]] == [
        ("shaggy hair", [[1, 1, 4, 4]], words, [3, 5]),
        ("Two guys", [[4, 1, 7, 4], [1, 1, 4, 4]], words, [0, 2]),
        ("two guys", [[4, 1, 7, 4]], words, [7, 9]),
        ("Two hair", [[1, 1, 4, 4]], None, []),
    ]
    assert not report.dropped and report.kept["rows (a photo and a phrase)"] == 4


@pytest.mark.parametrize(
    "tokens", [None, [], "0", [[0]], [[3, 2]], [[0, 99]], [[-1, 3]], [[0, 1.5]], [["0", "3"]], [[3, 5]]]
)
def test_places_that_are_none_are_dropped(workshop, tokens):
    rows, report = workshop.build(captioned([[15, 26]], tokens))
    assert [row["phrase"] for row in rows["train"]] == ["shaggy hair"]
    ((reason, count),) = report.dropped.items()
    assert reason.startswith("instances: tokens_positive") and count == 1
    with pytest.raises(ValueError, match="annotation 1: instances: tokens_positive"):
        workshop.build(captioned([[15, 26]], tokens), strict=True)


def test_places_need_a_caption(workshop):
    with pytest.raises(ValueError, match=r"instances\.json: image 1 has no caption, though .* MDETR's and GoldG's"):
        workshop.build(captioned([[0, 3]], caption=None))


def test_a_caption_alone_makes_no_phrases(workshop):
    data = content(annotation(1))
    data["images"][0]["caption"] = CAPTION
    assert [row["phrase"] for row in workshop.build(data)[0]["train"]] == ["traffic light"]


def test_captions_of_one_photo_are_in_one_split(workshop):
    data = content(*(annotation(i, image_id=i, tokens_positive=[[0, 3]]) for i in range(60)))
    data["images"] = [data["images"][0] | {"id": i, "file_name": f"{i // 5}", "caption": f"One {i}"} for i in range(60)]
    rows, _ = workshop.build(data, images_dir=None, split=None, validation_fraction=0.3)
    ids = {split: {row["image_id"] for row in rows[split]} for split in rows}
    assert sum(map(len, ids.values())) == 12 and len(ids) == 2
    assert sum(len(rows[split]) for split in rows) == 60


# Written otherwise ----------------------------------------------------------------------------------------------------

OTHERWISE = {
    "ids as text": lambda d: d["annotations"][0].update(id="7", image_id="1", category_id="3"),
    "ids of letters": lambda d: (
        d["images"][0].update(id="a-1"),
        d["categories"][0].update(id="lamp"),
        d["annotations"][0].update(id="x", image_id="a-1", category_id="lamp"),
    ),
    "ids with a point": lambda d: d["annotations"][0].update(image_id=1.0, category_id=3.0),
    "no id": lambda d: d["annotations"][0].pop("id"),
    "id null": lambda d: d["annotations"][0].update(id=None),
    "numbers as text": lambda d: (
        d["images"][0].update(width=f"{WIDTH}", height=f"{HEIGHT}.0"),
        d["annotations"][0].update(bbox=["1", "1.0", "3", "3e0"], iscrowd="0"),
    ),
    "size with a point": lambda d: d["images"][0].update(width=float(WIDTH), height=float(HEIGHT)),
    "iscrowd null": lambda d: d["annotations"][0].update(iscrowd=None),
    "iscrowd missing": lambda d: d["annotations"][0].pop("iscrowd"),
    "iscrowd false": lambda d: d["annotations"][0].update(iscrowd=False),
    "category twice": lambda d: d["categories"].append(d["categories"][0]),
    "flat polygon": lambda d: d["annotations"][0].update(segmentation=SQUARE),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_what_means_the_same_gives_the_same(workshop, case):
    data = content(annotation(7))
    expected, _ = workshop.build(data)
    OTHERWISE[case](data)
    rows, report = workshop.build(data, strict=True)
    assert rows == expected and not report.dropped and len(rows["train"]) == 1


def test_a_crowd_may_be_written_otherwise(workshop):
    for crowd in (1, "1", 1.0, True):
        assert workshop.rows(annotation(1, iscrowd=crowd))[1].kept["instances that are crowds"] == 1


def test_annotations_without_an_id_are_named_by_their_number(workshop):
    data = content(annotation(None), annotation(None, segmentation=[[]]), annotation(None, image_id=9))
    _, report = workshop.build(data)
    assert [name for names in report.examples.values() for name in names] == [
        "annotation number 2 (without id)",
        "annotation number 1 (without id)",
    ]


def test_ids_tell_photos_apart_and_are_the_same_for_the_same(workshop, tmp_path_factory):
    """By the file's name and its bytes, whatever number a photo has; without photos by the data folder's name."""
    renumbered = content(annotation(1, image_id=5))
    renumbered["images"][0]["id"] = 5
    other = Workshop(tmp_path_factory.mktemp("other"))
    other.photo("one.png", compress_level=0)

    def id_of(workshop, data, **options):
        return workshop.build(data, **options)[0]["train"][0]["image_id"]

    first = id_of(workshop, content(annotation(1)))
    mark = hashlib.sha256((workshop.folder / "images" / "one.png").read_bytes()).hexdigest()[:12]
    assert first == f"coco/one.png#{mark}" == id_of(workshop, renumbered)
    assert id_of(other, content(annotation(1))) != first
    bare = id_of(workshop, content(annotation(1)), images_dir=None)
    assert bare == f"coco/one.png#{workshop.folder.name}" != id_of(other, content(annotation(1)), images_dir=None)


def test_annotations_of_what_is_not_listed_are_counted(workshop):
    rows, report = workshop.rows(annotation(1), annotation(2, image_id=9), annotation(3, category_id=9))
    assert len(rows) == 1 and len(rows[0]["boxes"]) == 1
    assert report.dropped == {
        "instances: of a photo that is not listed": 1,
        "instances: of a category that is not listed (see --categories)": 1,
    }


def test_other_categories_replace_those_of_the_file(workshop):
    (workshop.folder / "names.json").write_text('[{"id": 3, "name": "lamp"}]')
    rows, report = workshop.build(content(annotation(1), annotation(2, category_id=2)), categories="names.json")
    assert [row["phrase"] for row in rows["train"]] == ["lamp"]
    assert sum(report.dropped.values()) == 1


def test_bad_photos_are_dropped_with_their_instances(workshop):
    data = content(*(annotation(i, image_id=i) for i in range(1, 6)))
    names = ["one.png", "cut.jpg", "words.png", "large.png", "bare.png"]
    data["images"] = [data["images"][0] | {"id": i + 1, "file_name": name} for i, name in enumerate(names)]
    data["annotations"][4]["image_id"] = 4
    workshop.photo("cut.jpg")
    whole = (workshop.folder / "images" / "cut.jpg").read_bytes()
    (workshop.folder / "images" / "cut.jpg").write_bytes(whole[:-40])
    (workshop.folder / "images" / "words.png").write_text("this is no photo")
    workshop.photo("large.png", size=(WIDTH + 1, HEIGHT))
    workshop.photo("bare.png")
    rows, report = workshop.build(data)
    assert [name_in_source(row["image_id"]) for row in rows["train"]] == ["one.png"]
    assert report.dropped == {
        "photos: cannot be decoded": 2,
        "photos: have another size than their record says": 1,
        "photos without annotation": 1,
        "instances: of a photo that cannot be used": 4,
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("two.png", "not in the folder of the photos"),
        ("../secret.png", "leads out of the folder"),
        ("/etc/hostname", "leads out of the folder"),
        ("link.png", "leads out of the folder"),
    ],
)
def test_a_photo_that_is_not_in_the_folder_is_counted_or_named(workshop, name, reason):
    (workshop.folder / "secret.png").write_bytes((workshop.folder / "images" / "one.png").read_bytes())
    (workshop.folder / "images" / "link.png").symlink_to(workshop.folder / "secret.png")
    data = content(annotation(7))
    data["images"][0]["file_name"] = name
    rows, report = workshop.build(data)
    assert not rows["train"]
    (dropped,) = (key for key in report.dropped if key.startswith("photos"))
    assert reason in dropped and report.examples[dropped] == [f"photo 1 ({name})"]
    assert f"photo 1 ({name})" in str(report)
    with pytest.raises(ValueError, match=rf"photo 1 \({name}\): photos: .*{reason}"):
        workshop.build(data, strict=True)


def test_without_photos_there_are_annotations(workshop):
    rows, report = workshop.build(content(annotation(7)), images_dir=None)
    assert rows["train"][0]["image"] is None and rows["train"][0]["boxes"] == [[1, 1, 4, 4]]
    assert report.kept["photos"] == 1


def test_a_photo_that_is_turned_when_read_has_the_wrong_size(workshop):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    workshop.photo("one.png", exif=exif)
    rows, report = workshop.rows(annotation(1))
    assert not rows and report.dropped["photos: have another size than their record says"] == 1


def test_photos_are_split_by_their_id_alone(workshop):
    data = content(*(annotation(i, image_id=i) for i in range(1, 201)))
    data["images"] = [data["images"][0] | {"id": i, "file_name": f"{i}"} for i in range(1, 201)]
    options = dict(images_dir=None, split=None, validation_fraction=0.25)
    rows, _ = workshop.build(data, **options)
    ids = {split: [name_in_source(row["image_id"]) for row in rows[split]] for split in rows}
    assert set(ids) == {"train", "validation"} and not set(ids["train"]) & set(ids["validation"])
    assert len(ids["train"]) + len(ids["validation"]) == 200 and 30 <= len(ids["validation"]) <= 70
    fewer = copy.deepcopy(data)
    fewer["images"] = fewer["images"][100:]
    rows, _ = workshop.build(fewer, **options)
    assert [name_in_source(row["image_id"]) for row in rows["validation"]] == [
        i for i in ids["validation"] if int(i) > 100
    ]
    rows, _ = workshop.build(data, **options | {"validation_fraction": 0})
    assert set(rows) == {"train"}
    rows, _ = workshop.build(data, images_dir=None, split="test")
    assert {split: len(rows[split]) for split in rows} == {"test": 200}


def test_a_photo_that_is_listed_twice_is_one(workshop):
    """Each of two rows of it would be of a part of its instances, and chance could put it in both splits."""
    second = dict(bbox=[5, 0, 2, 2], segmentation=[[5, 0, 7, 0, 7, 2, 5, 2]])
    data = content(annotation(1), annotation(2, image_id="b", **second), annotation(3, image_id="c"))
    data["images"] += [data["images"][0] | {"id": "b"}, data["images"][0] | {"id": "c", "file_name": "two.png"}]
    workshop.photo("two.png")
    for images in data["images"], data["images"][::-1]:
        data["images"] = images
        rows, report = workshop.build(data)
        boxes = {name_in_source(row["image_id"]): row["boxes"] for row in rows["train"]}
        assert boxes == {"one.png": [[1, 1, 4, 4], [5, 0, 7, 2]], "two.png": [[1, 1, 4, 4]]} and not report.dropped
        assert report.kept["photos that are listed again, taken together with the first"] == 1
        assert (len(rows["train"]), report.kept["photos"]) == (2, 2)


def few(*ids):
    data = content(*(annotation(i, image_id=i) for i in ids))
    data["images"] = [data["images"][0] | {"id": i, "file_name": f"{i}"} for i in ids]
    return data


@pytest.mark.parametrize("count", range(2, 12))
@pytest.mark.parametrize("fraction", [1e-9, 0.1, 1 - 1e-9])
def test_few_photos_leave_neither_train_nor_validation_without_one(workshop, count, fraction):
    data = few(*range(100, 100 + count))
    rows, _ = workshop.build(data, images_dir=None, split=None, validation_fraction=fraction)
    sizes = {split: len(rows[split]) for split in rows}
    assert set(sizes) == {"train", "validation"} and sum(sizes.values()) == count
    if fraction == 1e-9:
        assert sizes["validation"] == 1
    if fraction == 1 - 1e-9:
        assert sizes["train"] == 1
    again, _ = workshop.build(data, images_dir=None, split=None, validation_fraction=fraction)
    assert again == rows


@pytest.mark.parametrize("fraction", [0.1, 1 - 1e-9])
def test_a_single_photo_is_for_training(workshop, fraction):
    data = few(1, 2, 3)
    del data["annotations"][1]  # a photo without annotation is no photo for validation
    data["annotations"][1].update(bbox=[2, 2, 0, 0], segmentation=None)  # nor one without a row
    rows, report = workshop.build(data, images_dir=None, split=None, validation_fraction=fraction)
    assert [row["image_id"][:7] for row in rows["train"]] == ["coco/1#"] and not rows.get("validation")
    assert report.dropped == {"photos without annotation": 1, "instances: box without area in the photo": 1}


def test_a_look_at_few_photos_stops_at_nothing_and_counts_nothing(workshop):
    """Strictly built, what is wrong is said when its split is."""
    data = few(1, 2)
    builder_says = workshop.build(data, images_dir=None, split=None)[1]
    assert builder_says.kept["photos"] == 2 and not builder_says.dropped
    data["annotations"][0]["segmentation"] = [[]]
    with pytest.raises(ValueError, match="annotation 1: mask parts"):
        workshop.build(data, images_dir=None, split=None, strict=True)


def test_the_order_of_the_file_makes_no_difference_but_among_the_instances_of_a_row(workshop):
    data = content(*(annotation(i, image_id=1 + i % 7, category_id=2 + i % 2) for i in range(40)))
    data["images"] = [data["images"][0] | {"id": i, "file_name": f"{i}"} for i in (5, 1, 4, 7, 3, 2, 6)]
    expected, _ = workshop.build(data, images_dir=None)
    assert [name_in_source(row["image_id"]) for row in expected["train"]] == [i for i in "5147326" for _ in range(2)]
    assert [row["phrase"] for row in expected["train"]] == ["traffic light", "dog"] * 7
    assert sum(len(row["boxes"]) for row in expected["train"]) == 40
    backwards = dict(reversed([*data.items(), ("licenses", [{"id": 1}]), ("info", {"annotations": [1]})]))
    assert workshop.build(json.dumps(backwards, indent=1), images_dir=None)[0] == expected
    data["annotations"].reverse()
    again = workshop.build(data, images_dir=None)[0]["train"]
    assert [len(row["boxes"]) for row in again] == [len(row["boxes"]) for row in expected["train"]]


def test_jobs_hold_no_outline_and_a_copied_builder_makes_the_same_rows(workshop):
    long = [1, 1, 4, 1, 4, 4, *[1, 4] * 2000]
    data = content(*(annotation(i, segmentation=[long]) for i in range(50)))
    workshop.build(data)
    builder = Coco(cache_dir=str(workshop.folder / "cache"), data_dir=str(workshop.folder), split="train")
    builder.split_names()
    (job,) = builder.jobs("train")
    assert len(pickle.dumps(job)) < 5000 and len(pickle.dumps(builder)) < 20_000
    twin = pickle.loads(pickle.dumps(builder))
    assert list(twin.rows("train", job)) == list(builder.rows("train", job)) != []


# What is refused ------------------------------------------------------------------------------------------------------


def broken(change):
    data = content(annotation(7))
    change(data)
    return data


REFUSED = {
    "no JSON": ("{", "instances.json is not JSON"),
    "a list": ("[]", "needs the lists images, categories and annotations"),
    "no annotations": (broken(lambda d: d.pop("annotations")), "needs the lists"),
    "image twice": (broken(lambda d: d["images"].append(d["images"][0])), "image id 1 occurs twice"),
    "category twice": (
        broken(lambda d: d["categories"].append({"id": "3", "name": "b"})),
        "category id 3 occurs twice, as 'tr",
    ),
    "annotation twice": (
        broken(lambda d: d["annotations"].append(d["annotations"][0])),
        "annotation id 7 occurs twice",
    ),
    "image without id": (broken(lambda d: d["images"][0].pop("id")), "image without a whole number as id"),
    "image without name": (broken(lambda d: d["images"][0].pop("file_name")), "image 1: file_name is missing"),
    "marked in part, no list": (
        broken(lambda d: d["images"][0].update(not_exhaustive_category_ids=3)),
        "image 1: not_exhaustive_category_ids cannot be '3'",
    ),
    "image of no width": (broken(lambda d: d["images"][0].update(width=0)), "image 1: width cannot be '0'"),
    "category without name": (broken(lambda d: d["categories"][1].update(name=" ")), "category 2: name cannot be"),
    "no image id": (broken(lambda d: d["annotations"][0].pop("image_id")), "annotation 7: image_id is missing"),
    "annotation twice, as text": (
        broken(lambda d: d["annotations"].extend([annotation("a"), annotation("a")])),
        "annotation id a occurs twice",
    ),
    "bbox of words": (broken(lambda d: d["annotations"][0].update(bbox=["1", "a", "3", "3"])), "7: bbox cannot be"),
    "short bbox": (broken(lambda d: d["annotations"][0].update(bbox=[1, 2, 3])), "annotation 7: bbox cannot be"),
    "NaN bbox": (broken(lambda d: d["annotations"][0].update(bbox=[1, 2, 3, float("nan")])), "annotation 7: bbox"),
    "id beyond 64 bits": (broken(lambda d: d["annotations"][0].update(id=2**63)), "annotation without a whole number"),
    "photo's id beyond 64 bits": (
        broken(lambda d: d["annotations"][0].update(image_id=2**63)),
        "annotation 7: image_id cannot be",
    ),
    "box of hundreds of digits": (broken(lambda d: d["annotations"][0].update(bbox=[1, 2, 3, 10**400])), "7: bbox can"),
    "number of thousands of digits": ('{"images": [' + "7" * 5000, r"instances\.json: record 0 has too long a number"),
    "list twice": ('{"images": [], "images": []}', "has the list images twice"),
    "iscrowd 2": (broken(lambda d: d["annotations"][0].update(iscrowd=2)), "annotation 7: iscrowd cannot be '2'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_file_is_refused_with_its_record(workshop, case):
    data, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        workshop.build(data)


@pytest.mark.parametrize(
    "shares",
    [{"segmentation": None}, {"segmentation": [[0.2, 0.2, 1, 0.2, 1, 0.9]]}, {"segmentation": ["0.2", 0.2] * 3}],
)
def test_shares_of_the_photo_are_no_pixels(workshop, shares):
    """They would be a box and a mask of the pixel at the top left."""
    data = content(annotation(1, bbox=[0.2, "0.2", 0.8, 0.7], **shares), annotation(2, bbox=None, segmentation=[[]]))
    with pytest.raises(ValueError, match=r"instances\.json: no coordinate of the 2 annotations is above 1: .* pixels"):
        workshop.build(data)
    for pixels in {"segmentation": [SQUARE]}, {"segmentation": {"size": [HEIGHT, WIDTH], "counts": SQUARE_COUNTS}}:
        (row,), _ = workshop.rows(annotation(1, bbox=[0.2, 0.2, 0.8, 0.7], **pixels))
        assert row["boxes"] == [[1, 1, 4, 4]]  # the mask's own


def test_bad_options_are_named(workshop):
    with pytest.raises(ValueError, match="CocoConfig needs data_dir"):
        Coco(cache_dir=str(workshop.folder))
    with pytest.raises(ValueError, match="validation_fraction"):
        workshop.build(content(), validation_fraction=1.0)
    with pytest.raises(ValueError, match=r"other\.json: No such file"):
        workshop.build(content(), annotations="other.json")
    with pytest.raises(ValueError, match="Split name"):
        workshop.build(content(annotation(1)), split="my-split")
