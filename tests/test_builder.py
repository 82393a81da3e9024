"""What all builders share: images that cannot be used, boxes that are cut, splits, jobs, storable rows."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dataset_scripts.build import builder_class
from dataset_scripts.builder import OutsideImage, Unusable, clip_box, seeming_scale
from dataset_scripts.features import FEATURES, make_row, why_not_storable
from dataset_scripts.options import BUILDERS
from tests.helpers.builders import AN_IMAGE, HEIGHT, MISSING, TREES, WIDTH, json_lines, read_all, write, write_image
from tests.helpers.data import BROKEN_EXIF, odd_exif
from trainer import box_units

OBJECTS = ("yolo", "voc", "labelme", "via", "cvat", "label_studio", "createml")
LOST = {
    "coco": "instances: of an image that cannot be used",
    "visual_genome": "attributes: of {}",
    "flickr30k_entities": "phrases: of an image that cannot be used",
    "refcoco": "expressions: of an image that cannot be used",
    "referit": "records: of an image that cannot be used",
    **dict.fromkeys(
        ("albef_json", "odvg", "chat", "phrasecut", "xvlm", "narratives"), "records of images that cannot be used"
    ),
}
LOST |= dict.fromkeys(OBJECTS, "instances: of an image that cannot be used")
# Their annotations do not say how large an image is.
NO_SIZE = {"referit", "albef_json", "yolo", "via", "createml", "xvlm", "narratives"}


@pytest.fixture(params=AN_IMAGE)
def tree(request, tmp_path):
    """A builder's name, its options for a small tree, and an image of it."""
    options = TREES[request.param](tmp_path / "data")
    return request.param, options, Path(options["images_dir"]) / AN_IMAGE[request.param]


def made(name, options, **more):
    options = options | more
    return builder_class(name)(cache_dir=f"{options.get('data_dir')}/cache", **options)


def spoil(kind: str, path: Path) -> str:
    """Makes an image one that cannot be used. Returns why."""
    if kind == "missing":
        path.unlink()
        return MISSING
    if kind == "of another size":
        write_image(path, (WIDTH + 1, HEIGHT))
        return "images: have another size than their record says"
    path.write_bytes(path.read_bytes()[:-40] if kind == "cut off" else b"this is no image")
    return "images: cannot be decoded"


@pytest.mark.parametrize("kind", ["missing", "cut off", "words", "of another size"])
def test_images_that_cannot_be_used_are_counted_with_what_is_lost_or_fatal(tree, kind):
    name, options, path = tree
    if kind == "of another size" and name in NO_SIZE:
        return
    before, whole = read_all(made(name, options))
    reason = spoil(kind, path)
    rows, report = read_all(made(name, options))
    assert sum(map(len, rows.values())) < sum(map(len, before.values()))
    assert report.dropped[reason] == 1 + whole.dropped[reason] and report.examples[reason]
    lost = LOST[name].format(reason)
    assert report.dropped[lost] > whole.dropped[lost]
    assert report.kept["images"] == whole.kept["images"] - 1
    with pytest.raises(ValueError, match=": images: "):
        read_all(made(name, options, strict=True))


def test_an_image_may_lie_in_any_folder_unless_there_are_two(tree):
    """At the one place that ends as its path does: in a folder with another copy nobody knows which is meant."""
    name, options, path = tree
    place = path.relative_to(options["images_dir"])
    elsewhere = Path(options["images_dir"], "in", "here", place)
    before = path.read_bytes()
    elsewhere.parent.mkdir(parents=True)
    path.rename(elsewhere)

    def stored(named):
        builder = made(name, options)
        return builder.load_image(builder.find_image((named,))).stored["bytes"]

    assert stored(str(place)) == before
    for named in f"x/{place}", f"n/here/{place}", f"{place}x", "\0", "a" * 5000, "":
        with pytest.raises(Unusable, match="images: "):
            stored(named)
    write_image(Path(options["images_dir"], "or", "here", place))
    with pytest.raises(Unusable, match="images: several files in images_dir are called so") as error:
        stored(str(place))
    assert error.value.detail == f" (is it in/here/{place} or or/here/{place}?)"
    path.write_bytes(before)
    assert stored(str(place)) == before


def in_coco(name, size, boxes):
    images = [{"id": i, "file_name": f"{i}.png", **size} for i in range(len(boxes))]
    own = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [x, y, u - x, v - y]} for i, (x, y, u, v) in enumerate(boxes)
    ]
    return {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": own}


def in_createml(name, size, boxes):
    """About the centre."""
    found = [((x + u) / 2, (y + v) / 2, u - x, v - y) for x, y, u, v in boxes]
    return [
        {"image": f"{i}.png", "annotations": [{"label": "cat", "coordinates": dict(zip(("x", "y", *size), box))}]}
        for i, box in enumerate(found)
    ]


def in_odvg(name, size, boxes):
    own = [{"instances": [{"bbox": box, "label": 0, "category": "cat"}]} for box in boxes]
    return json_lines([{"filename": f"{i}.png", **size, "detection": each} for i, each in enumerate(own)])


def in_xvlm(name, size, boxes):
    own = [[{"caption": "cat", "bb": [x, y, u - x, v - y]}] for x, y, u, v in boxes]
    return json_lines([{"image": f"{i}.png", "elems": each} for i, each in enumerate(own)])


def in_albef_json(name, size, boxes):
    return [{"image": f"{i}.png", "caption": "cat", "bbox": box} for i, box in enumerate(boxes)]


def in_voc(name, size, boxes):
    """Of one image; a file for each."""
    sides, corners = (
        "".join(f"<{key}>{value}</{key}>" for key, value in each.items())
        for each in (size, dict(zip(("xmin", "ymin", "xmax", "ymax"), boxes[int(name[:-4])])))
    )
    thing = f"<object><name>cat</name><bndbox>{corners}</bndbox></object>"
    return f"<annotation><size>{sides}</size>{thing}</annotation>"


SCALED = {"coco": in_coco, "createml": in_createml, "odvg": in_odvg, "xvlm": in_xvlm, "albef_json": in_albef_json}
SCALED |= {"voc": in_voc}


@pytest.mark.parametrize("name", SCALED)
def test_boxes_in_percent_are_not_taken_for_pixels(tmp_path, name):
    """Of 640 pixels a side 20 boxes would end beyond 100 if mirrored, and one ends at 99. Those of photos of 100 pixels
    are pixels, and so are others, where somebody says so.
    """
    boxes = [[4 + n, 20, 40 + n, 60 + n] for n in range(20)] + [[1, 2, 99, 98]]
    files = (
        [f"{n}.xml" for n in range(21)]
        if name == "voc"
        else ["train.jsonl" if name in ("odvg", "xvlm") else "train.json"]
    )
    for side, place in (640, "large"), (100, "small"), (1000, "part"):
        options = {"data_dir": str(tmp_path / place), "images_dir": str(tmp_path / place / "images")}
        own = [[10 * value for value in box] for box in boxes] if place == "part" else boxes
        for file in files:
            write(tmp_path / place / file, SCALED[name](file, {"width": side, "height": side}, own))
        for n in range(21):
            write_image(tmp_path / place / "images" / f"{n}.png", (side, side))
        if place == "large":
            with pytest.raises(ValueError, match=r"seem to be counted to 100 in images of any size.*--in_pixels"):
                read_all(made(name, options))
            options["in_pixels"] = True
        rows, _ = read_all(made(name, options, strict=True))
        found = [row["boxes"] for rows_of_split in rows.values() for row in rows_of_split]
        one = name == "voc"  # which counts pixels from 1
        expected = [[[max(box[0] - one, 0), max(box[1] - one, 0), *box[2:]]] for box in own]
        assert sorted(found) == sorted(expected), place


def test_seeming_scales_are_the_same_in_builds_and_in_rows():
    rng, found = np.random.default_rng(0), []
    for number in range(300):
        sizes = rng.integers(90, 2000, (20, 2)).astype(float)
        sizes = sizes[:1].repeat(20, axis=0) if number % 2 else sizes
        corners = np.sort(rng.uniform(0, 1, (20, 2, 2)), axis=1).reshape(20, 4) * (100, 1000, 200)[number % 3]
        found.append(seeming_scale(corners, sizes))
        assert found[-1] == box_units.seeming_scale(corners, sizes)
    assert {*found} == {None, 100, 1000}


def test_rows_of_an_image_share_its_bytes_and_id(tree):
    name, options, path = tree
    rows, _ = read_all(made(name, options))
    stored = [row for own in rows.values() for row in own if row["image"]["bytes"] == path.read_bytes()]
    assert stored and len({row["image_id"] for row in stored}) == 1
    assert all(row["image_id"].startswith(f"{name}/") for own in rows.values() for row in own)
    if name == "yolo":  # its boxes are shares of the images
        with pytest.raises(ValueError, match="yolo needs images_dir"):
            made(name, options, images_dir=None)
        return
    bare, report = read_all(made(name, options, images_dir=None))
    assert all(row["image"] is None and name in row["image_id"] for own in bare.values() for row in own)
    assert report.kept["images"]


def test_an_image_that_is_turned_when_read_has_the_size_of_its_reader(tree):
    name, options, path = tree
    exif = odd_exif(6)  # turn by 90 degrees
    write_image(path, (WIDTH, HEIGHT) if name != "flickr30k_entities" else (500, 375), exif=exif)
    builder = made(name, options)
    relative = str(path.relative_to(options["images_dir"]))
    assert builder.load_image(relative).size == ((HEIGHT, WIDTH) if name != "flickr30k_entities" else (375, 500))
    for broken in BROKEN_EXIF:
        write_image(path, (WIDTH, HEIGHT), exif=broken)
        assert builder.load_image(relative).size == (WIDTH, HEIGHT)


def test_jobs_are_of_whole_images_and_a_copied_builder_makes_the_same_rows(tree, monkeypatch):
    name, options, _ = tree
    builder = made(name, options)
    split = builder.split_names()[0]
    (together,) = builder.jobs(split)
    monkeypatch.setattr(type(builder), "images_per_job", 1)
    jobs = list(builder.jobs(split))
    assert [len(job) for job in jobs] == [1] * len(together)
    copied = pickle.dumps(builder)
    assert len(copied) < 20_000  # records come in the jobs
    twin = pickle.loads(copied)
    rows = [row for job in jobs for row in twin.rows(split, pickle.loads(pickle.dumps(job)))]
    assert rows == list(builder.rows(split, together)) and rows and twin.report.kept


def test_bad_options_are_named(tree):
    name, options, _ = tree
    if name in ("coco", "visual_genome"):
        for fraction in -0.1, 1.0, float("nan"):
            with pytest.raises(ValueError, match="validation_fraction must be"):
                made(name, options, validation_fraction=fraction)
    for folder in "data_dir", "images_dir":
        with pytest.raises(ValueError, match=f"{folder}: there is no folder none"):
            made(name, options, **{folder: "none"})
    with pytest.raises(ValueError, match=f"{BUILDERS[name][0]}Config needs data_dir"):
        made(name, {})


@pytest.mark.parametrize(
    ("box", "expected", "unknown_size"),
    [
        ([-2, -2, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]),
        ([30, 20, 50, 30], [30, 20, 40, 30], [30, 20, 50, 30]),
        ([1.5, 2.5, 3.5, 5.5], [1.5, 2.5, 3.5, 5.5], [1.5, 2.5, 3.5, 5.5]),
        ([41, 0, 50, 10], OutsideImage, [41, 0, 50, 10]),
        ([40, 0, 50, 10], OutsideImage, [40, 0, 50, 10]),
        ([-9, 2, -3, 4], OutsideImage, OutsideImage),
        ([10, 10, 5, 20], Unusable, Unusable),
        ([10, 10, 10, 20], Unusable, Unusable),
        ([float("nan"), 5, 10, 10], Unusable, Unusable),
        ([5, 5, 10, float("nan")], Unusable, Unusable),
    ],
)
def test_boxes_are_cut_to_what_is_known_of_the_image(box, expected, unknown_size):
    for size, cut in ((40, 30), expected), (None, unknown_size):
        if isinstance(cut, list):
            assert clip_box(box, size) == cut
        else:
            with pytest.raises(Unusable, match="box without area in the image") as error:
                clip_box(box, size)
            assert type(error.value) is cut


@pytest.mark.parametrize(
    ("box", "size"), [([20, 20, 41, 61], (40, 30)), ([-11, 0, 10, 10], None), ([0, 0, 10.0, 10**300], (40, 30))]
)
def test_a_box_with_most_of_its_area_outside_is_none(box, size):
    """Nobody knows whether the image shows the object."""
    with pytest.raises(Unusable, match="mostly outside of the image") as error:
        clip_box(box, size)
    assert type(error.value) is Unusable


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"caption": "a \udfff b"}, "half a character"),
        ({"categories": ["\ud800"]}, "half a character"),
        ({"image_id": "\udc80"}, "half a character"),
        ({"phrase": " \u200b\ufeff"}, "nothing to see"),
        ({"phrase": "é"}, None),
        ({"phrase": "👩\u200d🚀"}, None),
        ({"boxes": [[0, 0, 1, 1], [0, 0, 1, float("nan")]]}, "a coordinate that is no number"),
        ({"proposals": [[0, 0, float("inf"), 1]]}, "a coordinate that is no number"),
        ({"boxes": [[-(10**400), 0, 1, 1]]}, "a coordinate that is no number"),
        ({"boxes": [[0, 0, 16777217, 1]]}, "a coordinate that is no number"),
        ({"boxes": [[-0.5, 0, 1.5e7, 2**24]], "caption": "é 😀"}, None),
    ],
)
def test_why_a_row_cannot_be_stored(changes, reason):
    row = make_row(None, "1", "a dog") | changes
    found = why_not_storable(row)
    assert found is None if reason is None else reason in found
    if reason is None:
        assert pa.Table.from_pylist([row], schema=FEATURES.arrow_schema).num_rows == 1


def test_by_itself_a_builder_drops_what_no_file_can_hold(tmp_path):
    """A lone surrogate is JSON, and no text in UTF-8."""
    options = TREES["albef_json"](tmp_path / "data")
    captions = "a dog", "half \ud83d", "é 漢 😀"
    write(tmp_path / "data" / "train.json", [{"image": "1.png", "caption": caption} for caption in captions])
    builder = made("albef_json", options)
    builder.download_and_prepare()
    assert builder.as_dataset(split="train")["phrase"][:] == ["a dog", "é 漢 😀"]
    assert builder.report.dropped == {"rows: half a character (a lone surrogate) in its text": 1}
    assert r"phrase 'half \ud83d' of 'albef_json/1.png#" in str(builder.report) and str(builder.report).encode()
    strict = made("albef_json", options, strict=True)
    with pytest.raises(ValueError, match=r"phrase 'half .ud83d' of 'albef_json/1\.png#.*': rows: half a character"):
        list(strict.storable_rows("train", next(strict.jobs("train"))))


@pytest.mark.parametrize("box", [[0.1, 0.2, 0.5, 0.6], [-0.5, 0, 1, 1]])
def test_a_box_in_shares_of_the_image_is_none(box):
    """Of whole numbers it could be the first pixel."""
    with pytest.raises(Unusable, match="shares of the image"):
        clip_box(box, (WIDTH, HEIGHT))
    assert clip_box([0, 0, 1, 1], (WIDTH, HEIGHT)) == [0, 0, 1, 1]
