"""Data sets as `open_split` takes them: columns of the right kinds, or an error that names the column."""

import io
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, load_from_disk

from dataset_scripts.build import build
from dataset_scripts.features import FEATURES
from modeling_albef_amc.images import open_image
from tests.helpers.builders import coco
from tests.helpers.data import picture, tiny_records, write_folder
from trainer.columns import Columns
from trainer.known_formats import rows_of
from trainer.splits import COLUMNS, data_files, fits, open_split, split_names
from trainer.streaming import StreamedRows

TEXT, NUMBER, COUNT = Value("string"), Value("float32"), Value("int64")


RIGHT = [
    ("image", Value("binary")),
    ("image", TEXT),
    ("image", {"bytes": Value("binary"), "path": TEXT}),
    ("image_id", COUNT),
    ("phrase", Value("large_string")),
    ("boxes", List(List(COUNT))),
    ("boxes", Array2D(shape=(2, 4), dtype="float64")),
    ("boxes", Value("null")),
    ("boxes", List(Value("null"))),
    ("polygons", List(List(List(Value("float64"))))),
    ("scribble_radius", COUNT),
    ("absent", COUNT),
    ("masks", List(Image())),
]
WRONG = [
    ("image", COUNT),
    ("image", {"url": TEXT}),
    ("image", List(Image())),
    ("phrase", COUNT),
    ("phrase", ClassLabel(names=["cat"])),
    ("boxes", List(NUMBER)),
    ("boxes", List(List(TEXT))),
    ("boxes", List({"x": NUMBER, "y": NUMBER})),
    ("boxes", TEXT),
    ("masks", Image()),
    ("polygons", List(List(NUMBER))),
    ("absent", TEXT),
    ("absent", NUMBER),
    ("scribble_radius", TEXT),
    ("caption_span", COUNT),
    ("categories", TEXT),
]


def test_kinds_that_fit_and_that_do_not():
    assert set(FEATURES) < set(COLUMNS)
    assert [kind for kind in [*FEATURES.items(), *RIGHT] if not fits(kind[1], COLUMNS[kind[0]])] == []
    assert [(column, feature) for column, feature in WRONG if fits(feature, COLUMNS[column])] == []


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("column", "feature"), [WRONG[1], WRONG[2], WRONG[7], WRONG[12], WRONG[14]])
def test_a_file_of_another_schema_is_refused_by_the_name_of_the_column(tmp_path, column, feature, streaming):
    features = Features({**FEATURES, column: feature})
    pq.write_table(pa.Table.from_pylist([{}], schema=features.arrow_schema), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=rf"Column {column} of {tmp_path} must hold .*rename or drop"):
        open_split(str(tmp_path), None, "train", streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_are_broken_or_not_there(tmp_path, streaming):
    for nowhere in ("nowhere", "nowhere.jsonl"):
        with pytest.raises(ValueError, match=rf"There is no file or folder .*/{nowhere}\."):
            open_split(str(tmp_path / nowhere), None, "train", streaming)
    (tmp_path / "train.parquet").write_bytes(b"PAR1, and no more")
    with pytest.raises(ValueError, match=r"Split train of .* cannot be had: Parquet magic bytes not found"):
        open_split(str(tmp_path), None, "train", streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_contradict_each_other(tmp_path, streaming):
    """The second file has texts for boxes: found when it is read, not taken for something else."""
    write_folder(tmp_path, train=tiny_records(2))
    table = pa.table({"image": pa.array([b"x"]), "phrase": pa.array(["a"]), "boxes": pa.array([[["a"]]])})
    pq.write_table(table, tmp_path / "data" / "train-00001.parquet")
    with pytest.raises((ValueError, TypeError), match=r"cannot be had|Couldn't cast array"):
        list(open_split(str(tmp_path), None, "train", streaming))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("first", "later", "advice"),
    [
        (
            {"bbox": None},
            {"bbox": [1, 2, 3, 4]},
            r"have nothing in a column that has list<item: int64> later: put a row",
        ),
        ({"image_id": 1}, {"image_id": "x7"}, r"has the text \W*x7\W* later: write all of it as text"),
        ({}, {"extra": 1}, r"only some of its rows have the keys extra: write"),
    ],
)
def test_json_lines_of_which_later_files_have_other_columns(tmp_path, first, later, advice, streaming):
    for number, own in enumerate((first, later)):
        picture().save(tmp_path / f"{number}.png")
        row = {"image": f"{number}.png", "phrase": "a dog", "boxes": [[1, 2, 30, 40]], **own}
        row |= {} if "bbox" in own else {"bbox": row.pop("boxes")[0]}
        (tmp_path / f"train-{number}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"^Split train of {tmp_path} cannot be had: .*{advice}"):
        StreamedRows.open(str(tmp_path), None, "train") if streaming else open_split(str(tmp_path), None, "train")


def test_a_configuration_is_asked_for(tmp_path):
    configs = [f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in "ab"]
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"image": "0.png", "phrase": "a dog"}\n')
    with pytest.raises(ValueError, match=r"several configurations; say --dataset_config, one of 'a', 'b'$"):
        open_split(str(tmp_path), None, "train")
    assert len(open_split(str(tmp_path), "a", "train")) == 1


def test_undecoded_pictures_of_a_plain_parquet_file(tmp_path):
    """No word in the file says that they are pictures."""
    records = tiny_records(2)
    table = pa.Table.from_pylist([{key: record[key] for key in ("image", "phrase", "boxes")} for record in records])
    pq.write_table(table, tmp_path / "train.parquet")
    for streaming in (False, True):
        rows = list(open_split(str(tmp_path), None, "train", streaming))
        assert [row["image"]["bytes"] for row in rows] == [record["image"]["bytes"] for record in records]
        np.testing.assert_equal(rows[0]["boxes"], records[0]["boxes"])


def test_what_a_file_holds_is_not_written_again_to_be_left_undecoded(tmp_path, monkeypatch):
    """A table of 1,000 rows would be written at a time, and of phone photos cannot be: it has more than 2 GiB."""
    records = [{**record, "masks": [record["image"]]} for record in tiny_records(3)]
    write_folder(tmp_path, train=records)
    monkeypatch.setattr(Dataset, "map", Mock(side_effect=AssertionError))
    for split, expected in ("train", records), ("train[1:]", records[1:]):
        rows = open_split(str(tmp_path), None, split)
        assert [row["masks"][0]["bytes"] for row in rows] == [record["image"]["bytes"] for record in expected]
        assert rows[0]["image"] == {"bytes": expected[0]["image"]["bytes"], "path": None}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["csv", "parquet", "imagefolder"])
def test_a_folder_that_is_called_like_a_loader(tmp_path, monkeypatch, name, streaming):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / name, train=tiny_records(3))
    pq.write_table(pa.table({"phrase": ["another"]}), tmp_path / "other.parquet")
    (tmp_path / "other.csv").write_text("phrase\nanother\n")
    assert len(list(open_split(name, None, "train", streaming))) == 3
    assert split_names(name, None) == ["train"]
    assert data_files(name, None, "train") == [str(tmp_path / name / "data" / "train-00000.parquet")]


def test_images_that_hide_a_table(tmp_path):
    """datasets takes the kind of files that there are most of."""
    (tmp_path / "images").mkdir()
    for number in range(3):
        picture().save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "notes.jsonl").write_text('{"image": "images/0.png", "phrase": "a dog"}\n')
    with pytest.raises(ValueError, match=r"no column phrase; it has image\. datasets .* passed over notes\.jsonl: put"):
        open_split(str(tmp_path), None, "train")
    (tmp_path / "notes.jsonl").rename(tmp_path / "notes.ndjson")
    with pytest.raises(ValueError, match=r"passed over notes\.ndjson: put"):
        open_split(str(tmp_path), None, "train")
    assert next(iter(open_split(str(tmp_path / "notes.ndjson"), None, "train")))["phrase"] == "a dog"
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "notes.jsonl").write_text('{"image": "../images/0.png", "phrase": "a dog"}\n')
    (row,) = open_split(str(tmp_path / "apart"), None, "train")
    assert row["phrase"] == "a dog" and Path(row["image"]["path"]).resolve() == tmp_path / "images" / "0.png"


@pytest.mark.parametrize("name", ["output.manifest", "labels.xlsx", "train/_annotations.txt"])
def test_images_that_hide_what_is_no_table(tmp_path, name):
    (tmp_path / "train").mkdir()
    for number in range(3):
        picture().save(tmp_path / "train" / f"{number}.png")
    (tmp_path / "README.dataset.txt").write_text("dogs")
    (tmp_path / name).write_text("train/0.png 1,2,30,40,0\n")
    with pytest.raises(ValueError, match=rf"no column phrase; it has image\. datasets .* passed over {name}\. If"):
        open_split(str(tmp_path), None, "train")


CARD = "---\nlicense: mit\nalbef_amc:\n  box_format: xyxy\n---\n# Pets\n"


@pytest.mark.parametrize(
    ("number", "beside"),
    [
        (1, {}),
        (3, {}),
        (3, {"README.md": "# Pets"}),
        (3, {"README.md": CARD}),
        (3, {"README.roboflow.txt": "Pets"}),
        (3, {"train/.ipynb_checkpoints/_annotations-checkpoint.csv": "filename,class\n0.png,no\n"}),
        (3, {"__MACOSX/train/._0.png": "\0\5", "__MACOSX/train/._annotations.csv": "\0\5", "train/._a.csv": "\0\5"}),
    ],
    ids=str,
)
def test_a_table_in_each_folder_of_a_split_beside_images(tmp_path, number, beside):
    """As of Roboflow's CSV; datasets would take images for the data set, or each split for another kind of files."""
    for folder, most in {"train": 3, "valid": 3, "test": number}.items():
        (tmp_path / folder).mkdir()
        text = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
        for n in range(most):
            picture().save(tmp_path / folder / f"{n}.png")
            text += f"{n}.png,{picture().width},{picture().height},{folder},1,2,3,4\n"
        (tmp_path / folder / "_annotations.csv").write_text(text)
    for name, text in beside.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert rows_of(str(tmp_path), Columns()) == str(tmp_path)
    assert split_names(str(tmp_path), None) == ["train", "validation", "test"]
    for split, folder, most in ("train", "train", 3), ("validation", "valid", 3), ("test", "test", number):
        rows = list(open_split(str(tmp_path), None, split))
        assert [(row["phrase"], row["boxes"]) for row in rows] == [(folder, [[1, 2, 3, 4]])] * most
        assert Path(rows[0]["image"]["path"]) == tmp_path / folder / "0.png"
    (tmp_path / "train" / "more.csv").write_text("image\n")
    message = r"passed over test/_annotations\.csv: .*--dataset .*/test/_annotations\.csv"
    with pytest.raises(ValueError, match=message if number > 2 else "of different kinds: name a table, such as"):
        open_split(str(tmp_path), None, "train")


def test_builds_are_put_together_without_their_readmes(tmp_path):
    for name in "first", "second":
        build("coco", tmp_path / name, **coco(tmp_path / f"source of {name}"), num_proc=1)
    shutil.copy(tmp_path / "second/data/train-00000.parquet", tmp_path / "first/data/train-00001.parquet")
    with pytest.raises(ValueError, match=r"other rows than its README\.md counts.* remove the README\.md"):
        open_split(str(tmp_path / "first"), None, "train")
    (tmp_path / "first" / "README.md").unlink()
    counts = [len(open_split(str(tmp_path / name), None, "train")) for name in ("first", "second")]
    assert counts[0] == 2 * counts[1] > 0 and len(open_split(str(tmp_path / "first"), None, "validation"))


def test_files_of_builds_say_the_split_that_they_are_of(tmp_path):
    """By key words datasets would know no testA, take test_unseen for test, and pass over captions."""
    names, (record,) = ["captions", "test", "testA", "test_unseen", "train", "val.2"], tiny_records(1)
    first, second = (
        write_folder(tmp_path / part, **{name: [record | {"phrase": f"{name} {part}"}] for name in names}) / "data"
        for part in ("first", "second")
    )
    for name in names:
        shutil.copy(second / f"{name}-00000.parquet", first / f"{name}-00001.parquet")
    path = str(tmp_path / "first")
    assert sorted(split_names(path, None)) == names
    for name in names:
        for streaming in False, True:
            phrases = [row["phrase"] for row in open_split(path, None, name, streaming)]
            assert phrases == [f"{name} first", f"{name} second"]
        assert [Path(file).name for file in data_files(path, None, name)] == [f"{name}-{i:05d}.parquet" for i in (0, 1)]


def test_paths_as_other_machines_write_them(tmp_path):
    (tmp_path / "below").mkdir()
    picture().save(tmp_path / "below" / "0.png")
    (tmp_path / "train.csv").write_text("image,phrase\nbelow\\0.png,a\nbelow/0.png,b\nhttps://host/0.png,c\n")
    for data in (tmp_path, tmp_path / "train.csv"):
        paths = [row["image"]["path"] for row in open_split(str(data), None, "train")]
        assert [Path(path) for path in paths[:2]] == [tmp_path / "below" / "0.png"] * 2
        assert paths[2] == "https://host/0.png"
    for path, message in (("file:///a/0.png", "leave out file://"), ("iVBO/" * 200, r"iVBO.*….*\(base64\)")):
        with pytest.raises(FileNotFoundError, match=message) as error:
            open_image(path)
        assert len(str(error.value)) < 200


def test_why_splits_are_not_known_is_said(tmp_path):
    (tmp_path / "train").mkdir()
    picture().save(tmp_path / "train" / "0.png")
    (tmp_path / "train" / "metadata.jsonl").write_text('{"image": "0.png", "text": "a dog"}\n')
    with pytest.raises(ValueError, match=r"cannot be had: `file_name`, .* must be present"):
        split_names(str(tmp_path), None)


def of_keys(row: dict, number: int) -> dict:
    return {f"{n}.png": row for n in range(number)}


ROW = {"image": "0.png", "caption": "a dog", "bbox": [1, 1, 9, 9]}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("whole", "keys"),
    [
        ({"version": "1", "data": [ROW]}, "version, data:"),
        ({"train": [ROW], "val": [ROW]}, "train, val:"),
        (of_keys({"caption": "a dog", "bbox": [1, 1, 9, 9]}, 500), r"0\.png, .* 29\.png … \(500 in all\):"),
        ({"image": {"0": "0.png"}, "caption": {"0": "a dog"}}, "image, caption:"),
        ({"columns": ["image"], "index": [0], "data": [["0.png"]]}, "columns, index, data:"),
    ],
    ids=["data", "splits", "keyed", "pandas", "pandas_split"],
)
def test_a_file_that_is_one_object_is_told_to_be_made_rows(tmp_path, whole, keys, streaming):
    (tmp_path / "mine.json").write_text(json.dumps(whole))
    message = rf"mine\.json is one object, of the keys {keys} make it a list of rows, or JSON Lines"
    with pytest.raises(ValueError, match=message) as error:
        open_split(str(tmp_path / "mine.json"), None, "train", streaming, needs_regions=True)
    assert len(str(error.value)) < 1000


def test_one_row_is_no_object_and_messages_name_a_part_of_many_columns(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({**ROW, "text": "a cat"}))
    with pytest.raises(ValueError, match=r"in doubt what phrase is"):
        open_split(str(tmp_path / "mine.json"), None, "train")
    (tmp_path / "mine.json").write_text(json.dumps({"image": "0.png", **{f"c{n}": n for n in range(500)}}))
    for columns in (Columns(), Columns({"phrase": "words"})):
        with pytest.raises(ValueError, match=r"it has image, c0, .*, c28 … \(501 in all\)"):
            open_split(str(tmp_path / "mine.json"), None, "train", columns=columns)


def image_folder(folder: Path, names: list[str], below: str = "") -> Path:
    """Of these pictures, with a metadata file in the folder `below`."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(folder / name)
    rows = [{"file_name": str(Path(name).relative_to(below)), "phrase": name} for name in names]
    (folder / below / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_image_folders(tmp_path, streaming):
    """With a missing picture, which its row tells of; in an archive; and with names that say splits to datasets."""
    names = ["train/0.png", "train/COCO_val2014_1.png"]
    folder = image_folder(tmp_path / "folder", names, "train")
    (folder / names[0]).unlink()
    rows = list(open_split(str(folder), None, "train", streaming))
    assert [row["phrase"] for row in rows] == names and open_image(rows[1]["image"]).size == picture().size
    with pytest.raises(FileNotFoundError, match=r"no image .*train/0\.png"):
        open_image(rows[0]["image"])
    source = image_folder(tmp_path / "source", ["0.png"])
    (tmp_path / "zipped").mkdir()
    shutil.make_archive(str(tmp_path / "zipped" / "train"), "zip", source)
    (row,) = open_split(str(tmp_path / "zipped"), None, "train", streaming)
    assert row["phrase"] == "0.png" and np.array_equal(open_image(row["image"]), picture())
    assert row["image"] == {"bytes": (source / "0.png").read_bytes(), "path": "0.png"}
    (source / "0.png").write_bytes(b"broken")
    shutil.make_archive(str(tmp_path / "zipped" / "train"), "zip", source)
    (row,) = open_split(str(tmp_path / "zipped"), None, "train", streaming)
    with pytest.raises(ValueError, match=r"^0\.png is not a readable image"):
        open_image(row["image"])
    with pytest.raises(ValueError, match=r"passed over metadata\.jsonl: words such as train .* below one folder"):
        open_split(str(image_folder(tmp_path / "coco", ["COCO_train2014_0.png"])), None, "train", streaming)
    objects = {"file_name": "0.png", "objects": {"bbox": [[1, 2, 3, 4]], "categories": [0]}}
    (source / "metadata.jsonl").write_text(json.dumps(objects))
    with pytest.raises(ValueError, match=r"objects\.categories has numbers: .* write the categories' names there\. Re"):
        open_split(str(source), None, "train", streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_file_without_rows_is_named(tmp_path, streaming):
    rows = Dataset.from_list(tiny_records(3), features=FEATURES)
    for number, count in enumerate((3, 0, 3)):
        pq.write_table(rows.data.table.slice(0, count), tmp_path / f"train-{number}.parquet")
    with pytest.raises(ValueError, match=r"cannot be had: .*(train-1\.parquet|a file of it) has no row: remove it"):
        StreamedRows.open(str(tmp_path), None, "train") if streaming else open_split(str(tmp_path), None, "train")


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_that_datasets_has_saved(tmp_path, streaming):
    """Beside their files, `map` leaves its own."""
    rows = Dataset.from_list(tiny_records(3), features=FEATURES)
    DatasetDict(train=rows, test=rows.select([2])).save_to_disk(tmp_path / "several")
    rows.save_to_disk(tmp_path / "one")
    load_from_disk(tmp_path / "several")["train"].map(lambda row: {"phrase": f"not {row['phrase']}"})
    load_from_disk(tmp_path / "one").filter(lambda row: True)
    for name in ("several", "one"):
        found = list(open_split(str(tmp_path / name), None, "train", streaming))
        assert [row["phrase"] for row in found] == rows["phrase"][:]
    assert split_names(str(tmp_path / "several"), None) == ["train", "test"]
    assert len(list(open_split(str(tmp_path / "several"), None, "test", streaming))) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_names_of_categories_in_a_readme(tmp_path, streaming):
    (tmp_path / "data").mkdir()
    picture().save(content := io.BytesIO(), "PNG")
    table = pa.table({"image": [{"bytes": content.getvalue(), "path": None}], "label": [1], "boxes": [[[1, 1, 5, 5]]]})
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    label = {"name": "label", "dtype": {"class_label": {"names": {"0": "cat", "1": "red_car"}}}}
    boxes = {"name": "boxes", "list": {"list": "int64"}}
    card = {"dataset_info": {"features": [{"name": "image", "dtype": "image"}, label, boxes]}}
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    (row,) = open_split(str(tmp_path), None, "train", streaming, columns=Columns({"phrase": "label"}))
    assert row["phrase"] == "red car"


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_with_columns_of_their_own(tmp_path, streaming):
    for split, regions in (
        ("train", {"polygons": [[[1, 1, 9, 1, 9, 9]]]}),
        ("validation", {"boxes": [[1, 1, 9, 9.5]]}),
    ):
        row = {"image": "0.png", "phrase": split, **regions}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    for split, column in (("train", "polygons"), ("validation", "boxes")):
        (row,) = open_split(str(tmp_path), None, split, streaming)
        assert row["phrase"] == split and set(row) == {"image", "phrase", column}
    if not streaming:
        assert len(open_split(str(tmp_path), None, "train[:50%]+train")) == 1
    (tmp_path / "train.jsonl").write_text('{"image": "0.png", "phrase": \n')
    with pytest.raises(ValueError, match=r"Split train of .* cannot be had: (JSON parse error|Expected object)"):
        open_split(str(tmp_path), None, "train", streaming)
    (tmp_path / "README.md").write_text("---\npretty_name: my data: dogs\n---\n")
    with pytest.raises(ValueError, match=r"/README\.md: its YAML cannot be read: mapping values"):
        open_split(str(tmp_path), None, "train", streaming)


def test_a_line_that_is_not_utf_8_is_named(tmp_path):
    rows = [json.dumps({"image": "0.png", "phrase": f"café {i}"}, ensure_ascii=i < 2) for i in range(4)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="cp1252")
    message = r"Line 3 of .*train\.jsonl cannot be had: it is not in UTF-8"
    with pytest.raises(ValueError, match=message):
        open_split(str(tmp_path), None, "train")
    with pytest.raises(ValueError, match=message):
        StreamedRows.open(str(tmp_path), None, "train")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path, suffix, encoding):
    text = "image,phrase\n0.png,café\n" if suffix == "csv" else json.dumps({"image": "0.png", "phrase": "café"})
    (tmp_path / f"train.{suffix}").write_text("\ufeff" + text, encoding=encoding)
    for opened in (open_split, StreamedRows.open):
        with pytest.raises(ValueError, match=rf"train\.{suffix} cannot be had: it is in UTF-16, .*: save the file as"):
            opened(str(tmp_path / f"train.{suffix}"), None, "train")


@pytest.mark.parametrize("place", ["run[2]", "run[2]/x.jsonl", "run[2]/deeper"])
def test_a_path_that_datasets_would_take_for_a_pattern(tmp_path, monkeypatch, place):
    """It would read those of the folder run2, without a word."""
    for name in ("run[2]", "run2", "run[2]/deeper"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "x.jsonl").write_text(json.dumps({"image": "0.png", "phrase": name}) + "\n")
    with pytest.raises(ValueError, match=r"datasets takes \[ in a path for a pattern"):
        open_split(str(tmp_path / place), None, "train")
    if not place.endswith("jsonl"):
        with pytest.raises(ValueError, match=r"datasets takes \[ in a path for a pattern"):
            split_names(str(tmp_path / place), None)
    if place == "run[2]/deeper":
        monkeypatch.chdir(tmp_path / place)
        with pytest.raises(ValueError, match="in a path for a pattern"):
            open_split("x.jsonl", None, "train")
