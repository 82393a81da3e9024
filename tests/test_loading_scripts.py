"""Every builder as a loading script with datasets 3.6, in an environment of its own: the rows are those it gives here.

What the rows must be, the builders' own tests say.
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset_scripts.build import builder_class
from dataset_scripts.features import FEATURES
from dataset_scripts.options import BUILDERS
from tests.flickr30k_tree import draw_images, write_original, write_processed

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 40, 30
SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]
RUNS = {"size": [HEIGHT, WIDTH], "counts": [31, 3, WIDTH * HEIGHT - 34]}
REQUIREMENTS = "datasets==3.6.0", "pillow", "pycocotools"


# Small trees, a function a builder; each returns the builder's options ------------------------------------------------


def write_json(folder: Path, **files: Any) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def write_images(folder: Path, *names: str) -> str:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return str(folder)


def scenes(folder: Path) -> dict[str, Any]:
    return dict(train=3, validation=1, test=1, test_relations=1, test_unseen=0, captions=2, image_size=64)


def coco(folder: Path) -> dict[str, Any]:
    """Eight images; of the last one the file is missing."""
    plain = {"category_id": 3, "bbox": [1, 1, 3, 3], "iscrowd": 0}
    write_json(
        folder,
        instances={
            "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(8)],
            "categories": [{"id": 3, "name": "traffic light"}, {"id": 2, "name": "dog"}],
            "annotations": [
                {**plain, "id": i, "image_id": i, "segmentation": [SQUARE] if i % 2 else RUNS} for i in range(8)
            ]
            + [{**plain, "id": 10, "image_id": 1, "category_id": 2, "segmentation": RUNS}],
        },
    )
    images = write_images(folder / "images", *(f"{i}.png" for i in range(7)))
    return dict(data_dir=str(folder), images_dir=images, validation_fraction=0.5)


def visual_genome(folder: Path) -> dict[str, Any]:
    box, place = {"x": 1, "y": 2, "width": 10, "height": 20}, {"x": 1, "y": 2, "w": 10, "h": 20}
    car = {"object_id": 1, "names": ["car"], "attributes": ["red", "parked"], **place}
    tree = {"object_id": 2, "names": ["tree"], **place}
    sizes = {"width": WIDTH, "height": HEIGHT, "coco_id": None, "flickr_id": None}
    write_json(
        folder,
        image_data=[{"image_id": i, "url": f"https://cs.stanford.edu/VG_100K/{i}.jpg", **sizes} for i in (1, 2)],
        region_descriptions=[{"id": i, "regions": [{"phrase": "a  red car", "image_id": i, **box}]} for i in (1, 2)],
        attributes=[{"image_id": 1, "attributes": [car]}],
        relationships=[
            {"image_id": 1, "relationships": [{"predicate": "next to", "subject": car, "object": tree}]},
        ],
    )
    return dict(data_dir=str(folder))


def flickr30k_entities(folder: Path) -> dict[str, Any]:
    images = {split: list(draw_images(3, seed)) for seed, split in enumerate(("train", "val", "test"))}
    write_original(folder, images)
    write_processed(folder / "processed", images)
    return dict(data_dir=str(folder), keep_unboxed=True)


def refcoco(folder: Path) -> dict[str, Any]:
    """Three images in the splits train, testA and val; what val has is not to be used."""
    write_json(
        folder,
        instances={
            "images": [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in (1, 2, 3)],
            "categories": [{"id": 3, "name": "dog"}],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 3, "bbox": box, "segmentation": RUNS}
                for i, box in ((1, [1, 1, 3, 3]), (2, [1.5, 2, 3, 3]), (3, [2 * WIDTH, 1, 3, 3]))
            ],
        },
        dets={"1": [[0, 0, 5, 5], [3, 3, 4, 4]]},
    )
    refs = [
        {"ref_id": i, "ann_id": i, "image_id": i, "split": split, "sentences": [{"sent": "left dog", "sent_id": i}]}
        for i, split in ((1, "train"), (2, "testA"), (3, "val"))
    ]
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    return dict(
        data_dir=str(folder),
        images_dir=write_images(folder / "images", "1.jpg", "2.jpg", "3.jpg"),
        proposals="dets.json",
    )


def referit(folder: Path) -> dict[str, Any]:
    record = {"img_id": "1.jpg", "bbox": [1.0, 2.0, 4.0, 6.0], "query": ["dog..!", " the  dog"]}
    write_json(folder, **{"1_1": record, "4_2": {**record, "img_id": "4.jpg"}})
    for split, image in (("train", "1"), ("val", "4"), ("test", "5")):
        (folder / f"referit_{split}_imlist.txt").write_text(image)
    return dict(data_dir=str(folder), images_dir=write_images(folder / "images", "1.jpg", "4.jpg"))


def albef_json(folder: Path) -> dict[str, Any]:
    one, two = [1, 2, 10, 20], [5.5, 6, 7.25, 8]
    write_json(
        folder,
        train=[
            {"image": "1.png", "caption": ["a dog", "zwei Hündchen"], "bbox": [one, two]},
            {"image": "2.png", "caption": "a tree"},
        ],
    )
    return dict(data_dir=str(folder), images_dir=write_images(folder / "images", "1.png", "2.png"))


TREES = dict(
    scenes=scenes,
    coco=coco,
    visual_genome=visual_genome,
    flickr30k_entities=flickr30k_entities,
    refcoco=refcoco,
    referit=referit,
    albef_json=albef_json,
)


# datasets 3.6 ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment with datasets 3.6."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    done = subprocess.run([*pip, *REQUIREMENTS], capture_output=True, text=True)
    if done.returncode and "connection broken by" in done.stderr:
        pytest.skip("datasets 3.6.0 cannot be installed: pip does not reach the package registry")
    assert done.returncode == 0, done.stderr
    return python


class Loaded:
    """What datasets 3.6 made of the builders: calls by name, and the folder of their rows."""

    def __init__(self, python: Path, folder: Path):
        self.folder = folder
        self.calls = {name: (name, tree(folder / name)) for name, tree in TREES.items()}
        processed = {"data_dir": str(folder / "flickr30k_entities" / "processed")}
        self.calls["flickr30k_processed"] = "flickr30k_entities", processed
        coco = self.calls["coco"][1]
        self.calls["no folder"] = "coco", {}
        self.calls["no image"] = "coco", coco | {"images_dir": coco["data_dir"]}
        self.calls["strict"] = "albef_json", {"data_dir": coco["data_dir"], "annotations": "list.json", "strict": True}
        write_json(Path(coco["data_dir"]), list=[{"image": "1.png", "caption": "a dog"}, {"image": "2.png"}])
        write_json(folder, calls=self.calls)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {
            "HF_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        worker = [python, "tests/loading_scripts_worker.py", folder]
        done = subprocess.run(worker, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.log = done.stderr
        found = json.loads((folder / "found.json").read_text())
        assert found["version"] == "3.6.0"
        self.found = found["calls"]

    def table(self, name: str, split: str) -> pa.Table:
        return pq.read_table(self.folder / f"{name}-{split}.parquet")

    def rows_here(self, name: str) -> dict[str, pa.Table]:
        """By split, if it has a row."""
        builder, options = self.calls[name]
        made = builder_class(builder)(cache_dir=str(self.folder / "cache"), **options)
        rows = {name: [row for job in made.jobs(name) for row in made.rows(name, job)] for name in made.split_names()}
        schema = FEATURES.arrow_schema
        return {split: pa.Table.from_pylist(own, schema=schema) for split, own in rows.items() if own}


@pytest.fixture(scope="module")
def loaded(python, tmp_path_factory) -> Loaded:
    return Loaded(python, tmp_path_factory.mktemp("loaded"))


@pytest.mark.parametrize("name", [*BUILDERS, "flickr30k_processed"])
def test_rows_are_those_of_the_builder_here(loaded, name):
    assert "error" not in loaded.found[name]
    expected = loaded.rows_here(name)
    assert loaded.found[name]["splits"] == list(expected) and expected
    for split, rows in expected.items():
        found = loaded.table(name, split)
        assert found.schema.remove_metadata().equals(rows.schema.remove_metadata())
        assert found.to_pylist() == rows.to_pylist()
        assert loaded.found[name]["streamed"][split] == rows["phrase"].to_pylist()


def test_the_rows_have_something_in_every_column_that_a_source_has(loaded):
    tables = [loaded.table(name, split) for name in TREES for split in loaded.found[name]["splits"]]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [column for column in FEATURES if not any(row[column] for row in rows)] == ["absent"]


def test_what_it_wrote_has_the_schema_of_the_newer_datasets(loaded, tmp_path):
    rows = datasets.Dataset.from_parquet(str(loaded.folder / "coco-train.parquet"), cache_dir=str(tmp_path))
    assert rows.features == FEATURES and rows[0]["image"].size == (WIDTH, HEIGHT)


def test_a_split_without_a_row_is_left_out(loaded):
    assert loaded.found["refcoco"]["splits"] == ["train", "testA"]


def test_what_was_dropped_is_told(loaded):
    report = loaded.log.partition("coco\nkept")[2].partition("flickr30k_entities\nkept")[0]
    assert "dropped          1  images: not in the folder of the images" in report.splitlines()


@pytest.mark.parametrize(
    "name, message",
    [
        ("no folder", "CocoConfig needs data_dir"),
        ("no image", "coco: not one row came out\ndropped          9  instances: of an image that cannot be used"),
        ("strict", "list.json, record 1: captions: missing"),
    ],
)
def test_refused_with_the_reason(loaded, name, message):
    assert message in loaded.found[name]["error"]
