"""`albef-amc export-annotations`: by hand, there and back, what is refused, the loop of docs/annotate.md."""

import io
import json
import re
import shlex
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from datasets import load_dataset
from PIL import Image

from tests.helpers.data import BROKEN_EXIF
from tests.helpers.evaluation import save_checkpoint
from trainer import export_annotations
from trainer.commands import ANNOTATIONS, main
from trainer.record_store import RecordStore, record_schema

ROOT = Path(__file__).parents[1]
ALONE = ["--num_proc", "1"]  # builds so small are not worth further processes


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def photo(name: str, size: tuple[int, int] = (100, 50), **options) -> None:
    path = Path("photos", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)


def answer(image: str, phrase: str, box: list[int] | None, score: float | None = 0.75, **more) -> dict:
    row = {"image_id": image, "phrase": phrase, "score": score, "point": box and box[:2], "box": box, "categories": []}
    return row | {"absent": False, "error": None} | more


def found(rows: list[dict], split: str = "train", folder: str = "found") -> None:
    """Rows as `ground_dataset` leaves them, two a block, and the data set that they are of."""
    store = RecordStore(Path(folder), split, (len(rows) + 1) // 2, record_schema(()))
    store.prepare({"blocks": store.num_blocks})
    for block in range(store.num_blocks):
        store.write(block, [rows[2 * block : 2 * block + 2]])
    Path("photos").mkdir(exist_ok=True)
    lines = [{"image": row["image_id"], **{name: row[name] for name in ("image_id", "phrase")}} for row in rows]
    Path("photos", f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def export(form: str, *more: str, data: str = "photos") -> Path:
    main(["export-annotations", "found", "--dataset", data, "--format", form, "--output", form, *more])
    return Path(form)


def three_images() -> list[dict]:
    photo("a.png")
    photo("b.jpg", (40, 80))
    photo("c.png")
    rows = [answer("a.png", "a dog", [10, 5, 60, 30]), answer("a.png", "two cats", [0, 0, 100, 50], 0.25)]
    rows += [answer("b.jpg", "a dog", [0, 0, 20, 80]), answer("b.jpg", "a cow", [1, 1, 2, 2], absent=True)]
    return [*rows, answer("c.png", "a hat", None, None, error="it was cut off")]


def test_coco_by_hand(capsys):
    found(three_images())
    folder = export("coco")
    data = json.loads((folder / "annotations" / "instances_train.json").read_text())
    assert data["categories"] == [{"id": 1, "name": "a dog"}, {"id": 2, "name": "two cats"}]
    assert data["images"] == [
        {"id": 1, "file_name": "a.png", "width": 100, "height": 50},
        {"id": 2, "file_name": "b.jpg", "width": 40, "height": 80},
    ]
    values = [[each[name] for name in ("id", "image_id", "category_id", "area")] for each in data["annotations"]]
    assert values == [[1, 1, 1, 1250], [2, 1, 2, 5000], [3, 2, 1, 1600]]
    assert [each["bbox"] for each in data["annotations"]] == [[10, 5, 50, 25], [0, 0, 100, 50], [0, 0, 20, 80]]
    assert [each["score"] for each in data["annotations"]] == [0.75, 0.25, 0.75]
    assert all(each["iscrowd"] == 0 for each in data["annotations"])
    for name in ("a.png", "b.jpg"):
        assert (folder / "images" / "train" / name).read_bytes() == Path("photos", name).read_bytes()
    printed = capsys.readouterr().out
    assert "train: 3 boxes in 2 images" in printed and "left out: 1 phrases without an answer" in printed
    assert "left out: 1 phrases that are marked absent" in printed and "coco written: 2 categories" in printed


def test_yolo_by_hand(capsys):
    found(three_images())
    photo("d.png")
    found([answer("d.png", "a dog: no", [0, 0, 50, 50], 0.5)], "validation")
    folder = export("yolo", "--threshold", "0.5")
    settings = yaml.safe_load((folder / "data.yaml").read_text())
    names = {0: "a dog", 1: "a dog: no"}
    assert settings == {"train": "images/train", "val": "images/validation", "names": names}
    labels = {path.stem: path.read_text() for path in folder.glob("labels/*/*.txt")}
    assert labels == {
        "a": "0 0.3500000000 0.3500000000 0.5000000000 0.5000000000\n",
        "b": "0 0.2500000000 0.5000000000 0.5000000000 1.0000000000\n",
        "d": "1 0.2500000000 0.5000000000 0.5000000000 1.0000000000\n",
    }
    printed = capsys.readouterr().out
    assert "left out: 1 phrases below the threshold" in printed and "Detectors want" not in printed


@pytest.mark.parametrize("form", ANNOTATIONS)
def test_there_and_back_the_boxes_are_the_same(form):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(9):
        photo(name := f"{number}.png", (97 + number, 61))
        corners = np.sort(rng.integers(0, 60, (3, 2, 2)), axis=1) + np.array([[0, 0], [1, 1]])
        phrases = ["a dog", "das schöne Tor", 'the "red": one #1']
        rows += [answer(name, phrase, box.reshape(-1).tolist()) for phrase, box in zip(phrases, corners)]
    found(rows[:18])
    found(rows[18:], "validation")
    export(form)
    main(["build", form, "--data_dir", form, "--images_dir", f"{form}/images", "--output", "again", "--strict", *ALONE])
    again = load_dataset("again")
    assert {split: len(part) for split, part in again.items()} == {"train": 18, "validation": 9}
    boxes = {
        (re.search(r"(\d+\.png)#", row["image_id"])[1], row["phrase"]): row["boxes"]
        for part in again.values()
        for row in part.remove_columns("image")
    }
    assert len(boxes) == len(rows)
    for row in rows:
        np.testing.assert_allclose(boxes[row["image_id"], row["phrase"]], [row["box"]], atol=1e-4)


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_each_split_comes_back_as_itself(form, capsys):
    """None as train; where COCO has no place for its name, that is said."""
    splits = ["test", "test_unseen", "train", *(["held_out"] if form == "yolo" else [])]
    for number, split in enumerate(splits):
        photo(f"data/{split}.png", (90 + number, 50))
        found([answer(f"{split}.png", "a dog", [1, 2, 30, 40])], split)
        Path("photos", f"{split}.jsonl").rename(Path("photos", "data", f"{split}-00000-of-00001.jsonl"))
    export(form)
    main(["build", form, "--data_dir", form, "--images_dir", f"{form}/images", "--output", "again", *ALONE])
    again = load_dataset("again")
    assert again.keys() == {*splits, "validation"} or again.keys() == {*splits}
    assert all(split in row["image_id"] for split in splits for row in again[split].remove_columns("image"))
    found([answer("test.png", "a dog", [1, 2, 30, 40])], "held_out", "found")
    if form == "coco":
        with pytest.raises(SystemExit):
            main(["export-annotations", "found", "--dataset", "photos", "--format", form, "--output", "more"])
        assert "held_out: COCO has no place for a split but the name of its file" in capsys.readouterr().err


def test_rows_of_a_stream():
    """Rows of a box each stay apart there."""
    photo("a.png")
    rows = [answer("a.png", phrase, [1, 2, 30, 40]) for phrase in ("a cat", "a cat", "a dog")]
    lines = [{"image": "a.png", "image_id": "a.png", "category": row["phrase"], "bbox": [1, 2, 3, 4]} for row in rows]
    found(rows)
    Path("photos", "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = Path("found", "train.json")
    with pytest.raises(SystemExit):
        export("coco", data="photos/train.jsonl")
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"streaming": True}))
    data = json.loads((export("coco", data="photos/train.jsonl") / "annotations/instances_train.json").read_text())
    assert len(data["images"]) == 1 and len(data["annotations"]) == 2


def test_images_of_every_kind_are_what_the_boxes_are_of():
    """Turned by Exif, a kind that detectors do not read, no file, names that file systems would take for one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo("turned.jpg", exif=exif)
    photo("kind.gif")
    photo("x/same.png")
    photo("y/Same.png", (30, 30))
    names = ["turned.jpg", "kind.gif", "x/same.png", "y/Same.png"]
    found([answer(name, "a dog", [0, 0, 20, 30]) for name in names])
    images = export("yolo") / "images" / "train"
    assert sorted(path.name for path in images.iterdir()) == ["Same-2.png", "kind.png", "same.png", "turned.png"]
    with Image.open(images / "turned.png") as image:
        assert image.size == (50, 100) and not image.getexif()
    shares = (Path("yolo") / "labels" / "train" / "turned.txt").read_text().split()[1:]
    assert [float(share) for share in shares] == [0.2, 0.15, 0.4, 0.3]


def test_what_an_image_file_is_called():
    names: set[str] = set()
    ids = ["coco/val/one.png#0123456789ab", "../..", None, "a b/ü:1.JPG", "A b/Ü_1", 7]
    assert [export_annotations.new_name({"image": {"path": None}, "image_id": id_}, names) for id_ in ids] == [
        "one", "image", "image-2", "ü_1", "Ü_1-2", "7",
    ]  # fmt: skip
    assert export_annotations.new_name({"image": "below/two.jpg", "image_id": None}, names) == "two"
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, format="BMP")
    assert export_annotations.content({"bytes": file.getvalue(), "path": None}) == (file.getvalue(), ".bmp", (3, 2))
    assert export_annotations.content(Image.new("RGB", (3, 2)))[1:] == (".png", (3, 2))


@pytest.mark.parametrize("exif", BROKEN_EXIF)
def test_a_photo_whose_exif_cannot_be_read_is_exported_as_it_is(exif):
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, format="WEBP", exif=exif)
    assert export_annotations.content({"bytes": file.getvalue(), "path": None}) == (file.getvalue(), ".webp", (3, 2))


def test_the_first_rows_alone():
    rows = three_images()
    found(rows, folder="all")
    lines = Path("photos", "train.jsonl").read_text()
    found(rows[:1])
    Path("photos", "train.jsonl").write_text(lines)
    data = json.loads((export("coco") / "annotations" / "instances_train.json").read_text())
    assert len(data["images"]) == len(data["annotations"]) == 1


def other_data() -> None:
    lines = Path("photos", "train.jsonl").read_text()
    Path("photos", "train.jsonl").write_text(lines.replace("two cats", "2 cats"))


def fewer_data() -> None:
    lines = Path("photos", "train.jsonl").read_text().splitlines(keepends=True)
    Path("photos", "train.jsonl").write_text("".join(lines[:3]))


def evaluated() -> None:
    path = Path("found", "data", "train-00000-of-00003.parquet")
    pa.parquet.write_table(pa.table({"phrase": ["a dog"]}), path)


@pytest.mark.parametrize(
    ("damage", "more", "message"),
    [
        (lambda: None, ["--threshold", "50"], "--threshold is a probability, 0 to 1"),
        (lambda: Path("coco").touch(), [], "--output coco must be a folder, and a file is in its place"),
        (lambda: photo("../coco/x.png"), [], "--output coco has something in it: choose a new folder"),
        (lambda: None, ["--threshold", "0.9"], "found has no box to write: 3 below the threshold"),
        (lambda: Path("found/train.json").unlink(), [], "found has no rows of albef-amc ground-dataset"),
        (
            lambda: Path("found/train.json").write_text("{}"),
            [],
            "train.json is not of rows of albef-amc ground-dataset",
        ),
        (lambda: Path("found/train.json").write_text("{"), [], "train.json is damaged"),
        (lambda: Path("found/data/train-00001-of-00003.parquet").unlink(), [], "1 of 3 blocks are missing: let"),
        (lambda: Path("found/data/train-00001-of-00003.parquet").write_bytes(b"PAR1"), [], "is damaged"),
        (evaluated, [], "has no column absent, box, error, image_id, score"),
        (other_data, [], "has the phrase 'two cats' of image 'a.png', the data set has '2 cats' of 'a.png'"),
        (fewer_data, [], "found has more rows of train than photos: they are of another data set"),
        (lambda: Path("photos/b.jpg").unlink(), [], "there is no image"),
        (lambda: Path("photos/b.jpg").write_bytes(b"no image"), [], "b.jpg is not a readable image"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(damage, more, message, capsys):
    found(three_images())
    damage()
    with pytest.raises(SystemExit) as end:
        export("coco", *more)
    *bars, line = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and message in line and all("examples" in bar or not bar.strip() for bar in bars)
    assert "--" in message or not Path("coco").exists()  # it can be tried again


def test_one_image_id_is_one_image(capsys):
    rows = three_images()
    found([rows[0], rows[2], {**rows[1], "image_id": "a.png"}])
    data = json.loads((export("coco") / "annotations" / "instances_train.json").read_text())
    assert [each["image_id"] for each in data["annotations"]] == [1, 1, 2]
    lines = Path("photos", "train.jsonl").read_text().splitlines()
    lines[2] = lines[2].replace('"image": "a.png"', '"image": "c.png"')
    Path("photos", "train.jsonl").write_text("\n".join(lines))
    with pytest.raises(SystemExit):
        export("yolo")
    assert "two different images of photos have the image_id 'a.png'" in capsys.readouterr().err


def test_the_loop_of_the_page():
    """Every command of docs/annotate.md, in order, by a tiny model on six images."""
    save_checkpoint(Path("my-albef-checkpoint"))
    lines = ["image,phrase"]
    for number in range(6):
        photo(f"{number}.png", (60 + number, 50))
        lines += [f"photos/{number}.png,red square", f"photos/{number}.png,the blue square on the left"]
    Path("my_photos.csv").write_text("\n".join(lines) + "\n")
    train = {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"}
    more = {
        "ground-dataset": ["--cpu"],
        "build": ALONE,
        "train": [f"--{name}={value}" for name, value in train.items()],
    }
    text = "\n".join(re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "annotate.md").read_text(), re.DOTALL))
    for line in filter(None, text.splitlines()):
        _, command, *rest = shlex.split(line)
        # What an untrained model finds probable is a matter of chance.
        rest = ["0" if word == "0.5" else word for word in rest]
        main([command, *rest, *more.get(command, [])])
    boxes = [sum(load_dataset(name).num_rows.values()) for name in ("data/corrected", "data/corrected_coco")]
    again = load_dataset("outputs/found_again")["train"]
    assert again.num_rows == 12 and again["error"][:] == [None] * 12 and boxes == [12, 12]
    assert len(list(Path("outputs/boxes/images/train").iterdir())) == 6
