"""Every builder as a loading script with datasets 3.6, in a process of its own: the rows are those it gives here.

What the rows must be, the builders' own tests say.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_scripts.build import builder_class
from dataset_scripts.features import FEATURES
from dataset_scripts.options import BUILDERS
from tests.helpers.builders import HEIGHT, MISSING, TREES, WIDTH, read_all, write
from tests.helpers.flickr30k_tree import draw_images, write_processed

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
REQUIREMENTS = "datasets==3.6.0", "dill<0.3.9", "fsspec<=2025.3.0", "huggingface_hub<1", "multiprocess<0.70.17"


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """A folder with datasets 3.6 and what it needs older than it is here; the rest is used as it is here."""
    folder = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    done = subprocess.run([*pip, "--no-deps", "--target", folder, *REQUIREMENTS], capture_output=True, text=True)
    if done.returncode and "connection broken by" in done.stderr:
        pytest.skip("datasets 3.6.0 cannot be installed: pip does not reach the package registry")
    assert done.returncode == 0, done.stderr
    return folder


class Loaded:
    """What datasets 3.6 made of the builders: calls by name, and the folder of their rows."""

    def __init__(self, packages: Path, folder: Path):
        self.folder = folder
        self.calls = {name: (name, tree(folder / name)) for name, tree in TREES.items()}
        write_processed(folder / "processed", {"test": list(draw_images(3, 0))})
        self.calls["flickr30k_processed"] = "flickr30k_entities", {"data_dir": str(folder / "processed")}
        coco = self.calls["coco"][1]
        self.calls["no folder"] = "coco", {}
        self.calls["no image"] = "coco", coco | {"images_dir": str(folder / "processed")}
        self.calls["strict"] = "albef_json", {"data_dir": coco["data_dir"], "annotations": "list.json", "strict": True}
        write(Path(coco["data_dir"]) / "list.json", [{"image": "1.png", "caption": "a dog"}, {"image": "2.png"}])
        write(folder / "calls.json", self.calls)
        environment = {"PYTHONPATH": str(packages), "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
        environment = {**os.environ, **environment, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        worker = [sys.executable, "tests/helpers/loading_scripts_worker.py", folder]
        done = subprocess.run(worker, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.log = done.stderr
        found = json.loads((folder / "found.json").read_text())
        assert found["version"] == "3.6.0"
        self.found = found["calls"]

    def table(self, name: str, split: str) -> pa.Table:
        return pq.read_table(self.folder / f"{name}-{split}.parquet")


@pytest.fixture(scope="module")
def loaded(packages, tmp_path_factory) -> Loaded:
    return Loaded(packages, tmp_path_factory.mktemp("loaded"))


@pytest.mark.parametrize("name", [*BUILDERS, "flickr30k_processed"])
def test_rows_are_those_of_the_builder_here(loaded, name):
    assert "error" not in loaded.found[name]
    builder, options = loaded.calls[name]
    here, _ = read_all(builder_class(builder)(cache_dir=str(loaded.folder / "cache"), **options))
    expected = {split: pa.Table.from_pylist(rows, FEATURES.arrow_schema) for split, rows in here.items() if rows}
    assert loaded.found[name]["splits"] == list(expected) and expected
    for split, rows in expected.items():
        found = loaded.table(name, split)
        assert found.schema.remove_metadata().equals(rows.schema.remove_metadata())
        assert found.to_pylist() == rows.to_pylist()
        assert loaded.found[name]["streamed"][split] == rows["phrase"].to_pylist()


def test_the_rows_have_something_in_every_column_that_a_source_has_and_are_read_by_newer_datasets(loaded, tmp_path):
    tables = [loaded.table(name, split) for name in TREES for split in loaded.found[name]["splits"]]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [column for column in FEATURES if not any(row[column] for row in rows)] == ["absent"]
    newer = datasets.Dataset.from_parquet(str(loaded.folder / "coco-train.parquet"), cache_dir=str(tmp_path))
    assert newer.features == FEATURES and newer[0]["image"].size == (WIDTH, HEIGHT)


def test_splits_without_a_row_are_left_out_and_what_was_dropped_is_told(loaded):
    assert loaded.found["refcoco"]["splits"] == ["train", "testA"]
    report = loaded.log.partition("coco\nkept")[2].partition("flickr30k_entities\nkept")[0]
    assert f"dropped          1  {MISSING}" in report.splitlines()


@pytest.mark.parametrize(
    "name, message",
    [
        ("no folder", "CocoConfig needs data_dir"),
        ("no image", f"coco: not one row came out\ndropped          8  {MISSING}"),
        ("strict", "list.json, record 1: captions: missing"),
    ],
)
def test_refused_with_the_reason(loaded, name, message):
    assert message in loaded.found[name]["error"]
