"""ALBEF's lists of captions, made by hand and a real one: rows, boxes, counts, what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset_scripts.albef_json import AlbefJson
from dataset_scripts.features import FEATURES, make_row, why_not_storable
from dataset_scripts.shards import write_splits
from tests.image_ids import name_in_source

WIDTH, HEIGHT = 40, 30


class Workshop:
    """Writes a data folder and runs the builder over it."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "photos").mkdir()

    def photo(self, name: str, size=(WIDTH, HEIGHT), **options) -> bytes:
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(self.folder / "photos" / name, **options)
        return (self.folder / "photos" / name).read_bytes()

    def builder(self, photos=False, **options) -> AlbefJson:
        if photos:
            options["images_dir"] = str(self.folder / "photos")
        return AlbefJson(cache_dir=str(self.folder / "cache"), data_dir=str(self.folder), **options)

    def rows(self, content, **options):
        """The rows, and the report."""
        text = content if isinstance(content, str) else json.dumps(content)
        (self.folder / "train.json").write_text(text, encoding="utf-8")
        builder = self.builder(**options)
        (split,) = builder.split_names()
        return [row for job in builder.jobs(split) for row in builder.rows(split, job)], builder.report


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


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
    rows, report = workshop.rows(
        [
            record("a dog", bbox=[one, two]),
            record(["a  cat ", "two cats"], "2.png", bbox=one),
            record("a tree", "2.png"),
            record("a bush", "3/3.png", bbox=[]),
            record("a wall", "3/3.png", bbox=None),
        ]
    )
    assert rows == [
        make_row(None, f"albef_json/1.png#{workshop.folder.name}", "a dog", boxes=[one, two]),
        make_row(None, f"albef_json/2.png#{workshop.folder.name}", "a cat", boxes=[one]),
        make_row(None, f"albef_json/2.png#{workshop.folder.name}", "two cats", boxes=[one]),
        make_row(None, f"albef_json/2.png#{workshop.folder.name}", "a tree"),
        make_row(None, f"albef_json/3/3.png#{workshop.folder.name}", "a bush"),
        make_row(None, f"albef_json/3/3.png#{workshop.folder.name}", "a wall"),
    ]
    assert report.kept == {
        "images": 3,
        "rows with boxes": 3,
        "rows without region": 3,
        "captions with stray blanks, cleaned": 1,
    }
    assert not report.dropped


@pytest.mark.parametrize(
    ("box", "in_photo", "without_photo"),
    [
        ([-5, -5, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]),
        ([30, 20, 50, 60], [30, 20, 40, 30], [30, 20, 50, 60]),
        ([0, 0, 40, 30], [0, 0, 40, 30], [0, 0, 40, 30]),
        ([41, 0, 50, 10], None, [41, 0, 50, 10]),
        ([10, 10, 5, 20], None, None),
        ([10, 10, 10, 20], None, None),
    ],
)
def test_boxes_are_cut_to_what_is_known_of_the_photo(workshop, box, in_photo, without_photo):
    workshop.photo("1.png")
    for photos, expected in ((True, in_photo), (False, without_photo)):
        rows, report = workshop.rows([record(bbox=[box])], photos=photos)
        assert [row["boxes"] for row in rows] == ([[expected]] if expected else [])
        assert report.kept["boxes over the edge of the photo, cut"] == (expected not in (None, box))
        dropped = {"boxes: box without area in the photo": 1, "captions: none of their boxes is of use": 1}
        assert report.dropped == ({} if expected else dropped)


def test_the_size_of_a_photo_is_that_of_its_reader(workshop):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    workshop.photo("1.png", exif=exif)
    rows, _ = workshop.rows([record(bbox=[0, 0, 100, 100])], photos=True)
    assert rows[0]["boxes"] == [[0, 0, HEIGHT, WIDTH]]


INFINITE, NAN = float("inf"), float("nan")
NO_BOXES = [[1, 2, 3], ["1", 2, 3, 4], [True, 2, 3, 4], [INFINITE, 2, 3, 4], [1, 2, NAN, 4], "box", {}, [[]], [3, [1]]]


@pytest.mark.parametrize("bbox", NO_BOXES, ids=str)
def test_a_broken_box_is_counted_or_fatal(workshop, bbox):
    rows, report = workshop.rows([record(["a dog", "an animal"], bbox=bbox), record("a cat")])
    assert [row["phrase"] for row in rows] == ["a cat"]
    assert report.dropped == {
        "boxes: not four numbers of pixels": 1,
        "captions: none of their boxes is of use": 2,
    }
    with pytest.raises(ValueError, match=r"train\.json, record 0: boxes: not four numbers"):
        workshop.rows([record(bbox=bbox)], strict=True)


@pytest.mark.parametrize("bad", [[1, 2, 3], [5, 5, 5, 9]])
def test_a_caption_that_lost_a_box_is_left_out(workshop, bad):
    """Its row would not be of all that it says."""
    rows, report = workshop.rows([record(bbox=[bad, [1, 2, 3, 4]]), record("a cat")])
    assert [row["phrase"] for row in rows] == ["a cat"]
    assert report.dropped["captions: one of their boxes is lost"] == 1 and sum(report.dropped.values()) == 2


def test_a_box_beside_the_photo_leaves_the_others(workshop):
    rows, report = workshop.rows([record(bbox=[[-9, 2, -3, 4], [1, 2, 3, 4]])])
    assert [row["boxes"] for row in rows] == [[[1, 2, 3, 4]]]
    assert report.dropped == {"boxes: box without area in the photo": 1}


GROUNDING = [
    {"image": "train2014/1.jpg", "text": "the lady with the blue shirt", "ref_id": 0},
    {"image": "train2014/1.jpg", "text": "lady", "ref_id": "7"},
    {"image": "train2014/2.jpg", "text": ["a cat", "the  cat"], "bbox": [1, 2, 3, 4]},
]
JSON_LINES = "\n".join(map(json.dumps, GROUNDING))
FORMS = {
    "list": json.dumps(GROUNDING),
    "list with a byte order mark": "\ufeff" + json.dumps(GROUNDING),
    "JSON Lines": JSON_LINES,
    "JSON Lines of Windows": "\ufeff" + JSON_LINES.replace("\n", "\r\n") + "\r\n",
    "JSON Lines with blank lines": "\n" + JSON_LINES.replace("\n", "\n\n") + "\n\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_lists_for_grounding(workshop, form):
    rows, report = workshop.rows(FORMS[form], strict=True)
    assert [(row["phrase"], row["boxes"]) for row in rows] == [
        ("the lady with the blue shirt", []),
        ("lady", []),
        ("a cat", [[1, 2, 3, 4]]),
        ("the cat", [[1, 2, 3, 4]]),
    ]
    assert report.kept["images"] == 2


def test_captions_that_are_none_are_counted_or_fatal(workshop):
    data = [record(["a dog", " ", 7]), record(None), record(""), {"image": "2.png"}]
    data += [record([]), {"image": "3.png", "text": []}]
    data += [record(none) | {"text": "a cat"} for none in (None, "", [])]
    rows, report = workshop.rows(data)
    assert [row["phrase"] for row in rows] == ["a dog", "a cat", "a cat", "a cat"]
    assert report.dropped == {"captions: missing, empty or no text": 7}
    with pytest.raises(ValueError, match=r"train\.json, record 0: captions: missing"):
        workshop.rows(data, strict=True)


def test_records_without_image_are_counted_or_fatal(workshop):
    data = [record(), {"caption": "a cat"}, record(image=3), record(image="")]
    rows, report = workshop.rows(data)
    assert len(rows) == 1 and report.dropped == {"records without image": 3}
    with pytest.raises(ValueError, match=r"train\.json, record 1: records without image"):
        workshop.rows(data, strict=True)


def test_photos_are_stored_once_an_image_and_bad_ones_counted(workshop):
    whole = workshop.photo("1.png")
    workshop.photo("cut.png")
    (workshop.folder / "photos" / "cut.png").write_bytes(whole[: len(whole) // 2])
    data = [record(), record("a cat"), record(image="cut.png"), record(image="cut.png"), record(image="no.png")]
    data.append(record(image="../train.json"))
    rows, report = workshop.rows(data, photos=True)
    assert [row["image"] for row in rows] == [{"bytes": whole, "path": None}] * 2
    assert report.kept["images"] == 1
    assert report.dropped == {
        "photos: cannot be decoded": 1,
        "photos: not in the folder of the photos": 1,
        "photos: their name leads out of the folder of the photos": 1,
        "records of photos that cannot be used": 4,
    }
    with pytest.raises(ValueError, match=r"record 2 \(cut\.png\): photos: cannot be decoded"):
        workshop.rows(data, photos=True, strict=True)


def test_a_prefix_of_the_names_can_be_taken_off(workshop):
    whole = workshop.photo("1.png")
    data = [record(image="/export/share/photos/1.png"), record(image="/other/1.png")]
    rows, report = workshop.rows(data, photos=True, image_prefix="/export/share/photos/")
    assert [(name_in_source(row["image_id"]), row["image"]["bytes"]) for row in rows] == [("1.png", whole)]
    assert report.dropped["photos: their name does not begin with image_prefix"] == 1
    assert not workshop.rows(data, photos=True)[0]


def test_jobs_are_of_whole_images_and_always_the_same(workshop, monkeypatch):
    monkeypatch.setattr(AlbefJson, "images_per_job", 2)
    names = ["1", "1", "2", "3", "3", "3", "4", "1"]
    workshop.rows([record(f"caption {i}", name) for i, name in enumerate(names)])
    jobs = [list(workshop.builder().jobs("train")) for _ in range(2)]
    assert jobs[0] == jobs[1]
    assert [[(image, len(records)) for image, records in job] for job in jobs[0]] == [
        [("1", 2), ("2", 1)],
        [("3", 3), ("4", 1)],
        [("1", 1)],
    ]


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
        workshop.rows(content)


def test_bad_options_are_named(workshop):
    with pytest.raises(ValueError, match="needs data_dir"):
        AlbefJson(cache_dir=str(workshop.folder))
    with pytest.raises(ValueError, match=r"other\.json"):
        workshop.rows([record()], annotations="other.json")


# What JSON can say and a file cannot hold -----------------------------------------------------------------------------


def test_half_a_character_drops_its_row_alone(workshop):
    """A lone surrogate is JSON, and no text in UTF-8."""
    half = "dog \ud83d"
    builder = written(workshop, [record("a dog"), record(half), record("é 漢 😀"), record(image="half\udc00.png")])
    table = pq.read_table(workshop.folder / "out" / "data").to_pylist()
    assert [row["phrase"] for row in table] == ["a dog", "é 漢 😀"]
    reason = "rows: half a character (a lone surrogate) in its text"
    assert builder.report.dropped == {reason: 2}
    assert r"phrase 'dog \ud83d' of 'albef_json/1.png#" in str(builder.report) and str(builder.report).encode()
    with pytest.raises(ValueError, match=r"phrase 'dog .ud83d' of 'albef_json/1\.png#.*': rows: half a character"):
        written(workshop, [record("a dog"), record(half)], "strict", strict=True)


def test_by_itself_the_builder_drops_it_too(workshop):
    (workshop.folder / "train.json").write_text(json.dumps([record("a dog"), record("\ud83d")]))
    builder = workshop.builder()
    builder.download_and_prepare()
    assert builder.as_dataset(split="train")["phrase"][:] == ["a dog"]


def test_a_photo_of_an_impossible_name_is_counted(workshop):
    rows, report = workshop.rows([record(image="\ud83d.png"), record(image="a\0.png")], photos=True)
    assert not rows and report.dropped["photos: their name is none that a file can have"] == 2
    assert str(report).encode()


@pytest.mark.parametrize("digits", [20, 400])
def test_a_number_beyond_64_bits_is_counted(workshop, digits):
    builder = written(workshop, [record("a dog"), record("far", bbox=[1, 2, 3, 10**digits])])
    assert builder.report.kept["rows without region"] == 1
    assert builder.report.dropped["boxes: not four numbers of pixels"] == 1


def test_a_number_of_thousands_of_digits_names_the_file(workshop):
    with pytest.raises(ValueError, match=r"train\.json: record 1 has too long a number"):
        workshop.rows(f'[{json.dumps(record())}, {{"bbox": [{"7" * 5000}]}}]')


def written(workshop, content, folder="out", **options) -> AlbefJson:
    """The builder after its rows were written to the folder."""
    (workshop.folder / "train.json").write_text(json.dumps(content))
    builder = workshop.builder(**options)
    write_splits(builder, workshop.folder / folder)
    return builder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"caption": "a \udfff b"}, "half a character"),
        ({"categories": ["\ud800"]}, "half a character"),
        ({"image_id": "\udc80"}, "half a character"),
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
