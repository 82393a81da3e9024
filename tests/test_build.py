"""`dataset_scripts.build`: the folder it writes, and what `load_dataset` reads from it."""

import dataclasses
import errno
import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset_scripts import build as build_module
from dataset_scripts.build import builder_class, main
from dataset_scripts.features import FEATURES, encode_png, mask_to_box
from dataset_scripts.options import BUILDERS
from tests.helpers.builders import name_in_source

build = partial(build_module.build, num_proc=1)  # these are small; test_parquet_writer.py has several processes
COUNTS = {"train": 12, "validation": 3, "test": 3, "test_relations": 3, "test_unseen": 3, "captions": 3}
SIZES = [word for split, count in COUNTS.items() for word in (f"--{split}", str(count))]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "scenes"
    return folder, build("scenes", folder, **COUNTS)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.mode == other.mode and np.array_equal(one, other)


# Reading back ---------------------------------------------------------------------------------------------------------


def test_load_dataset_reads_the_folder(built, tmp_path):
    folder, builder = built
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    assert list(loaded) == list(COUNTS)
    assert loaded["train"].features == FEATURES
    assert {split: len(loaded[split]) for split in loaded} == {
        s: i.num_examples for s, i in builder.info.splits.items()
    }
    direct = builder_class("scenes")(cache_dir=str(tmp_path / "direct"), **COUNTS)
    direct.download_and_prepare()
    for split in COUNTS:
        rows = direct.as_dataset(split=split)
        assert len(rows) == len(loaded[split])
        for mine, theirs in zip(loaded[split], rows):
            assert same_pixels(mine.pop("image"), theirs.pop("image"))
            assert all(same_pixels(a, b) for a, b in zip(mine.pop("masks"), theirs.pop("masks"), strict=True))
            assert mine == theirs

    streamed = datasets.load_dataset(str(folder), split="test", streaming=True)
    assert streamed.features == FEATURES and streamed.info.splits["test"].num_examples == len(loaded["test"])
    for row, same in zip(streamed, loaded["test"], strict=True):
        assert mask_to_box(np.asarray(row["masks"][0]) > 0) == row["boxes"][0] == same["boxes"][0]


def test_bytes_are_embedded_and_an_images_rows_share_them(built):
    folder, builder = built
    file = pq.ParquetFile(folder / "data" / "train-00000.parquet")
    table = file.read()
    assert all(value["bytes"] and value["path"] is None for value in table["image"].to_pylist())
    assert all(mask["bytes"] and mask["path"] is None for masks in table["masks"].to_pylist() for mask in masks)
    once = sum(map(len, {value["bytes"] for value in table["image"].to_pylist()}))
    every_time = sum(len(value["bytes"]) for value in table["image"].to_pylist())
    group = file.metadata.row_group(0)
    (column,) = (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "image.bytes")
    assert once < column.total_uncompressed_size < 1.05 * once < every_time / 2
    assert builder.info.download_size == sum(path.stat().st_size for path in (folder / "data").iterdir())


# The folder -----------------------------------------------------------------------------------------------------------


def test_the_same_options_give_the_same_bytes(built, tmp_path):
    folder, _ = built
    build("scenes", tmp_path / "again", **COUNTS)
    assert files_of(tmp_path / "again") == files_of(folder)
    build("scenes", tmp_path / "other", seed=1, **COUNTS)
    assert files_of(tmp_path / "other")["data/test-00000.parquet"] != files_of(folder)["data/test-00000.parquet"]


def test_the_card_tells_the_counts_and_no_path(built, tmp_path):
    folder, builder = built
    card = (folder / "README.md").read_text()
    for split, info in builder.info.splits.items():
        assert f"| {split} | {info.num_examples} |" in card
        assert f"path: data/{split}-*.parquet" in card
    assert f"| scenes of train | {builder.report.kept['scenes of train']} |" in card
    assert "No record was dropped." in card
    assert all(f"| `{column}` |" in card for column in FEATURES)
    assert "license: apache-2.0" in card and "Drawn by `dataset_scripts/scenes.py`" in card
    sizes = " ".join(f"--{split} {count}" for split, count in COUNTS.items())
    assert f"`albef-amc build scenes {sizes}`" in card
    assert str(folder.parent) not in card


def test_only_the_splits_that_are_asked_for_are_built(built, tmp_path):
    folder, _ = built
    command = ["scenes", "--output", str(tmp_path / "out"), *SIZES, "--num-proc", "1", "--splits"]
    with pytest.raises(SystemExit, match=r"error: scenes: there is no split 'dev', but train, .*captions"):
        main([*command, "test", "dev"])
    assert not list(tmp_path.iterdir())
    main([*command, "test", "validation"])
    written, whole = files_of(tmp_path / "out"), files_of(folder)
    assert [name for name in written if name != "README.md"] == [
        "data/test-00000.parquet",
        "data/validation-00000.parquet",
    ]
    assert all(written[name] == whole[name] for name in written if name != "README.md")
    assert "--splits test validation`" in (tmp_path / "out" / "README.md").read_text()
    assert list(datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "c"))) == ["validation", "test"]


def test_an_output_is_not_overwritten_unless_asked(tmp_path):
    output = tmp_path / "deep" / "out"
    build("scenes", output, limit=1, **COUNTS)
    before = files_of(output)
    with pytest.raises(FileExistsError, match="--overwrite"):
        build("scenes", output, limit=2, **COUNTS)
    assert files_of(output) == before
    build("scenes", output, limit=2, overwrite=True, **COUNTS)
    assert files_of(output) != before
    (output / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        build("scenes", output, overwrite=True, **COUNTS)
    assert (output / "thesis.txt").read_text() == "mine"
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    (output / "thesis.txt").unlink()
    (output / "data" / "precious.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"data/precious\.jpg"):
        build("scenes", output, overwrite=True, **COUNTS)
    (output / "data" / "precious.jpg").unlink()
    (output / "README.md").write_text("My own files.")
    with pytest.raises(FileExistsError, match=r"no README\.md that a build wrote"):
        build("scenes", output, overwrite=True, **COUNTS)
    assert (output / "README.md").read_text() == "My own files." and len(files_of(output)) > 1
    with pytest.raises(ValueError, match="for patterns; choose another folder"):
        build("scenes", tmp_path / "scenes [1]", **COUNTS)
    with pytest.raises(FileExistsError, match="is a file"):
        build("scenes", output / "README.md", **COUNTS)
    (tmp_path / "empty").mkdir()
    build("scenes", tmp_path / "empty", limit=1, **COUNTS)
    assert (tmp_path / "empty" / "README.md").exists()


def test_a_link_stays_one(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to("large")
    for limit in (1, 2):
        build("scenes", tmp_path / "out", limit=limit, overwrite=limit == 2, **COUNTS)
    assert (tmp_path / "out").is_symlink() and (tmp_path / "large" / "README.md").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "out"]


def test_what_was_being_replaced_when_a_build_was_killed_comes_back(tmp_path, monkeypatch):
    output, rename = tmp_path / "out", Path.rename
    build("scenes", output, limit=1, **COUNTS)
    before = files_of(output)

    def killed(self, to):
        if to == output and self.parent.name == ".out.building" and (self / "README.md").exists():
            raise KeyboardInterrupt
        return rename(self, to)

    with monkeypatch.context() as patches, pytest.raises(KeyboardInterrupt):
        patches.setattr(Path, "rename", lambda self, to: killed(self, to) if self.name != "probe" else rename(self, to))
        build("scenes", output, limit=2, overwrite=True, **COUNTS)
    assert not output.exists()
    with pytest.raises(FileExistsError, match="--overwrite"):
        build("scenes", output, limit=2, **COUNTS)
    assert files_of(output) == before
    build("scenes", output, limit=2, overwrite=True, **COUNTS)
    assert files_of(output) != before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cannot_be_replaced_is_found_out_before_the_work(tmp_path, monkeypatch):
    """As a mount point; the system says so of a folder when it is renamed."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "rename", Mock(side_effect=OSError(errno.EBUSY, "Device or resource busy")))
    monkeypatch.setattr(builder_class("scenes"), "rows", Mock(side_effect=AssertionError))
    with pytest.raises(
        FileExistsError, match=r"out cannot be replaced \(Device or resource busy\): choose a folder in"
    ):
        build("scenes", tmp_path / "out", **COUNTS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_builds_of_one_folder_do_not_mix(tmp_path, monkeypatch):
    def start_again(self, split, job):
        with pytest.raises(FileExistsError, match="out is being built by another call"):
            build("scenes", tmp_path / "out", **COUNTS)
        return rows(self, split, job)

    scenes = builder_class("scenes")
    rows = scenes.rows
    monkeypatch.setattr(scenes, "rows", start_again)
    build("scenes", tmp_path / "out", **COUNTS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_left_of_a_build_that_fails(tmp_path, monkeypatch):
    def fail(self, split, job):
        yield next(iter(rows(self, split, job)))
        raise ValueError("scene 1 cannot be drawn")

    scenes = builder_class("scenes")
    rows = scenes.rows
    monkeypatch.setattr(scenes, "rows", fail)
    with pytest.raises(ValueError, match="scene 1 cannot be drawn"):
        build("scenes", tmp_path / "out", **COUNTS)
    assert not list(tmp_path.iterdir())


def test_a_build_without_rows_is_an_error(tmp_path):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    (data / "instances.json").write_text('{"images": [], "categories": [], "annotations": []}')
    with pytest.raises(ValueError, match="coco: not one row came out"):
        build("coco", tmp_path / "out", data_dir=str(data))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


# The command line -----------------------------------------------------------------------------------------------------


def test_the_command_line_builds_and_tells_what_it_kept(tmp_path, capsys):
    command = ["scenes", "--output", str(tmp_path / "out"), "--limit", "5", "--num-proc", "1", *SIZES]
    main(command)
    told = capsys.readouterr()
    assert "kept             2  scenes of train" in told.out and "wrote            5  rows of train" in told.out
    assert "Building train" in told.err  # the progress bar
    with pytest.raises(SystemExit, match=r"error: .*--overwrite"):
        main(command)


def test_help_imports_nothing_heavy():
    """It comes up in less than half a second only so."""
    code = "import sys; sys.argv[1:] = ['coco', '--help']; import runpy\n"
    code += "try: runpy.run_module('dataset_scripts.build', run_name='__main__')\n"
    code += "except SystemExit: print([n for n in ('datasets', 'pyarrow', 'PIL', 'numpy') if n in sys.modules])"
    root = Path(build_module.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "--data_dir" in done.stdout and done.stdout.splitlines()[-1] == "[]"


def test_help_names_the_datasets_and_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text and each.__doc__ in text for name, (_, each) in BUILDERS.items())
    for name, (_, options) in BUILDERS.items():
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        text = capsys.readouterr().out
        assert end.value.code == 0 and all(f"--{field.name}" in text for field in dataclasses.fields(options))
        assert "--output" in text and "--limit" in text


def test_bad_arguments_end_with_a_message(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["images", "--output", "x"])
    assert "invalid choice: 'images'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="error: seed must not be negative"):
        main(["scenes", "--output", str(tmp_path / "out"), "--seed", "-1"])
    with pytest.raises(SystemExit, match=r"error: .*instances\.json: No such file"):
        main(["coco", "--output", str(tmp_path / "out"), "--data-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: limit must be at least 1"):
        main(["scenes", "--output", str(tmp_path / "out"), "--limit", "0"])
    with pytest.raises(ValueError, match="no builder 'images'"):
        builder_class("images")


# Helpers of the builders ----------------------------------------------------------------------------------------------


def test_encode_png_keeps_pixels_and_refuses_the_rest():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(Image.open(io.BytesIO(encode_png(pixels)["bytes"])), pixels)
    mask = pixels[..., 0] > 100
    assert np.array_equal(Image.open(io.BytesIO(encode_png(mask)["bytes"])), mask * np.uint8(255))
    for bad in (pixels.astype(np.float32), pixels[..., :2], pixels[0, 0], pixels > 9, np.zeros((0, 3), bool)):
        with pytest.raises(ValueError, match="expected bool or uint8 pixels"):
            encode_png(bad)
    with pytest.raises(ValueError, match="empty mask"):
        mask_to_box(np.zeros((6, 9), bool))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (480, 640)])
def test_masks_are_whole_png_files(size):
    draw = np.random.default_rng(0)
    masks = [np.zeros(size, bool), np.ones(size, bool), *(draw.random(size) < share for share in (0.001, 0.5, 0.999))]
    masks += [np.asfortranarray(masks[3]), masks[3][:, ::2]]
    for mask in masks:
        data = encode_png(mask)["bytes"]
        Image.open(io.BytesIO(data)).verify()  # the chunks' checksums
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode) == ("PNG", "L") and np.array_equal(image, mask * np.uint8(255))


# Real images ----------------------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_real_images_are_accounted_for(shared_dir, tmp_path):
    folder = shared_dir / "data" / "coco_photos"
    content = json.loads((folder / "instances.json").read_text())
    assert len(content["images"]) == 32 and len(content["annotations"]) == 247
    # The annotations number their categories otherwise than the file's own list of them: each gets a name here instead.
    names = [{"id": i, "name": f"category {i}"} for i in sorted({a["category_id"] for a in content["annotations"]})]
    (tmp_path / "names.json").write_text(json.dumps(names))
    options = dict(data_dir=str(folder), images_dir=str(folder / "images"), categories=str(tmp_path / "names.json"))
    builder = build("coco", tmp_path / "all", **options)
    assert builder.report.kept["images"] == 31 and builder.report.kept["instances"] == 247
    assert builder.report.dropped == {"images without annotation": 1}
    loaded = datasets.load_dataset(str(tmp_path / "all"), cache_dir=str(tmp_path / "cache"))
    files = {image["id"]: image["file_name"] for image in content["images"]}
    wanted = {(files[a["image_id"]], f"category {a['category_id']}") for a in content["annotations"]}
    rows = [row for split in ("train", "validation") for row in loaded[split]]
    assert {(name_in_source(row["image_id"]), row["phrase"]) for row in rows} == wanted and len(rows) == len(wanted)
    assert len({row["phrase"] for row in rows}) == 44
    assert sum(len(row["boxes"]) for row in rows) == sum(len(row["masks"]) for row in rows) == 247
    missing = []
    for row in rows:
        for box, mask in zip(row["boxes"], row["masks"]):
            assert mask.size == row["image"].size
            # An outline covers the pixels whose centres it contains: of a thin one the tips are lost, nothing is added.
            beyond = np.subtract(mask_to_box(np.asarray(mask) > 0), box) * [-1, -1, 1, 1]
            assert beyond.max() <= 1
            missing.append(-beyond.min())
    assert np.quantile(missing, 0.9) <= 2
    streamed = datasets.load_dataset(str(tmp_path / "all"), split="validation", streaming=True)
    assert [row["phrase"] for row in streamed] == loaded["validation"]["phrase"][:]


@pytest.mark.shared
def test_real_images_with_the_categories_of_their_file(shared_dir, tmp_path):
    builder = build("coco", tmp_path / "out", data_dir=str(shared_dir / "data" / "coco_photos"), split="test")
    dropped = {reason: n for reason, n in builder.report.dropped.items() if reason.startswith("instances")}
    assert builder.report.kept["instances"] + sum(dropped.values()) == 247
    assert list(dropped) == ["instances: of a category that is not listed (see --categories)"]
    images = builder.report.kept["images"] + builder.report.dropped["images without annotation"]
    assert images == 32 and list(builder.info.splits) == ["test"]
