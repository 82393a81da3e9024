"""Annotations made to hurt: names that lead out of folders, what is no file, masks and lists beyond memory."""

import json
import os
import re
import signal
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dataset_scripts.build import builder_class
from dataset_scripts.coco import Coco
from dataset_scripts.features import encode_png
from dataset_scripts.segmentations import segmentation_to_mask
from dataset_scripts.visual_genome import read_ids
from tests.fuzz.run import TARGETS
from tests.helpers.builders import AN_IMAGE, TREES, read_all, write

# Of the builders whose annotations name files of images: the annotations.
NAMING = {"coco": "instances.json", "refcoco": "instances.json", "albef_json": "train.json"}
OUTSIDE = "images: their name leads out of the folder of the images"
DEEP = "[" * 10**6


@pytest.fixture(autouse=True)
def never_hangs():
    """Whatever waits for a pipe is woken by an error, be the machine as busy as it may."""

    def give_up(*_: object) -> None:
        raise AssertionError("more than ten minutes")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def tree(name: str, folder: Path):
    """A builder and its tree, a secret image beside its images, and the place of an image."""
    options = TREES[name](folder / "data")
    secret = write(folder / "data" / "secret.png", encode_png(np.full((6, 8, 3), 77, np.uint8))["bytes"])
    builder = builder_class(name)(cache_dir="unused", **options)
    return builder, secret, Path(options["images_dir"]) / AN_IMAGE[name]


def stored(builder) -> list[bytes]:
    """The images of all rows."""
    return [row["image"]["bytes"] for rows in read_all(builder)[0].values() for row in rows]


def naming(name: str, folder: Path, image: str):
    """As `tree`, of annotations that name another image than there is."""
    builder, secret, _ = tree(name, folder)
    path = folder / "data" / NAMING[name]
    path.write_text(path.read_text().replace(json.dumps(AN_IMAGE[name]), json.dumps(image)))
    return builder, secret


@pytest.mark.parametrize("name", NAMING)
@pytest.mark.parametrize("image", ["../secret.png", "absolute", "../../../../../../etc/passwd", "a/../../secret.png"])
def test_no_name_leads_out_of_the_folder_of_the_images(name, image, tmp_path):
    secret = tmp_path / "data" / "secret.png"
    builder, secret = naming(name, tmp_path, str(secret) if image == "absolute" else image)
    assert secret.read_bytes() not in stored(builder)
    assert builder.report.dropped[OUTSIDE] == 1


@pytest.mark.parametrize("name", NAMING)
@pytest.mark.parametrize("image", ["a" * 300, "a/" * 10**6, "\0", "\ud800", "images\0.png", "."])
def test_names_that_no_file_has(name, image, tmp_path):
    builder, _ = naming(name, tmp_path, image)
    stored(builder)
    assert sum(count for reason, count in builder.report.dropped.items() if reason.startswith("images: ")) >= 1
    assert str(builder.report).encode()


@pytest.mark.parametrize("kind", ["link out", "link to itself", "ring of links", "folder", "pipe", "device"])
@pytest.mark.parametrize("name", AN_IMAGE)
def test_what_is_no_file_is_not_opened(name, kind, tmp_path):
    builder, secret, place = tree(name, tmp_path)
    place.unlink()
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to({"link out": secret, "device": "/dev/zero", "ring of links": "other"}.get(kind, place.name))
        if kind == "ring of links":
            (place.parent / "other").symlink_to(place.name)
    assert secret.read_bytes() not in stored(builder)
    reason = OUTSIDE if kind in ("link out", "device") else "images: not in the folder of the images"
    assert builder.report.dropped[reason] >= 1


# Memory and time ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segmentation", "size", "message"),
    [
        ([[0, 0, 60_000, 60_000] * 500], (60_000, 1000), "longer outline than any"),
        ([[0, 0, 4000, 4000] * 100] * 50, (4000, 4000), "longer outline than any"),
        ({"size": [480, 640], "counts": "o" * 10**6}, (480, 640), "cannot be read"),
        ({"size": [480, 640], "counts": "o" * 12 + "0"}, (480, 640), r"cannot be read|add up"),
        ({"size": [480, 640], "counts": [10**4000, 1]}, (480, 640), "add up"),
        ([[0, 0, 1, 0, 1, 1]], (2**20, 2**20), "more pixels than any"),
    ],
)
def test_outlines_and_run_lengths_that_hurt(segmentation, size, message):
    before, reasons = time.process_time(), []
    segmentation_to_mask(segmentation, *size, reasons.append)
    assert re.search(message, reasons[0])
    assert time.process_time() - before < 2


def test_many_masks_of_a_large_image_take_the_memory_of_one(tmp_path):
    """Without images nothing says that an annotation file's sizes are true."""
    side = 2048
    whole = {"size": [side, side], "counts": [0, side * side]}
    found = {"image_id": 1, "category_id": 3, "bbox": [0, 0, side, side], "segmentation": [whole] * 4}
    listed = {
        "images": [{"id": 1, "file_name": "a", "width": side, "height": side}],
        "annotations": [{**found, "id": number} for number in range(8)],
        "categories": [{"id": 3, "name": "a"}],
    }
    write(tmp_path / "instances.json", listed)
    builder = Coco(cache_dir="unused", data_dir=str(tmp_path), split="train")
    tracemalloc.start()
    try:
        ((row,),) = read_all(builder)[0].values()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(row["masks"]) == 8
    assert peak < 8 * side * side  # of 32 masks of a byte a pixel


def test_lists_of_a_million_images(tmp_path):
    builder, *_ = tree("flickr30k_entities", tmp_path)
    before = time.process_time()
    for text, message in ((range(10, 300_000), "299999 occurs twice"), (["9" * 5000], "'9+ is not the number of an")):
        write(tmp_path / "data" / "train.txt", "\n".join([*map(str, text), str(text[-1])]))
        with pytest.raises(ValueError, match=rf"train\.txt: {message}"):
            builder.split_names()
    assert time.process_time() - before < 10


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 10**5, '{"annotations": ' + DEEP, '[{"id": 1, "regions": ' + DEEP])
@pytest.mark.parametrize("target", [name for name in TARGETS if name.endswith(".json")])
def test_annotations_nested_a_million_times(target, text, tmp_path):
    """Each says so in a ValueError that names the file, or drops the record: what fuzz targets let pass."""
    TARGETS[target](tmp_path)[0](text.encode())


def test_lists_of_ids_nested_a_million_times(tmp_path):
    for text in (DEEP, '{"images": ' + DEEP):
        write(tmp_path / "ids.json", text)
        with pytest.raises(ValueError, match=r"ids\.json: record 0 is nested too deep"):
            read_ids(tmp_path / "ids.json")
