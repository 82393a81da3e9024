"""Targets of the builders: each puts the fuzzed file where its builder looks for it, and reads all rows there are.

Rows must fit the columns that they are written to, and an error must be a ValueError that says where it is.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dataset_scripts.albef_json import AlbefJson
from dataset_scripts.builder import GroundingBuilder
from dataset_scripts.coco import Coco
from dataset_scripts.features import FEATURES, BuildReport, encode_png
from dataset_scripts.flickr30k_entities import Flickr30kEntities
from dataset_scripts.refcoco import RefCoco
from dataset_scripts.referit import ReferIt
from dataset_scripts.visual_genome import VisualGenome, read_ids

from . import seeds

Run = Callable[[bytes], None]
SCHEMA = FEATURES.arrow_schema
# Photos of 8 x 6 pixels by these names, in the folder `photos`.
PHOTOS = ("1.jpg", "2.jpg", "a.png", "VG_100K/1.jpg", "COCO_train2014_000000000001.jpg")


class Fault(AssertionError):
    """A target found what may not be, other than by an error of its own: a wrong message, a row that does not fit."""


def located(folder: Path, read: Callable[[], Any]) -> None:
    """Lets a reader raise a ValueError, and nothing else, whose message names a file in the folder."""
    try:
        read()
    except ValueError as error:
        if type(error) is not ValueError or str(folder) not in str(error):
            raise Fault(f"an error that does not say where it is: {error!r}") from error
        if len(str(error)) > 2000:
            raise Fault(f"an error of {len(str(error))} characters") from error


def read_all(builder: GroundingBuilder) -> None:
    """All rows of all splits, as they are written to Parquet."""
    builder.report = BuildReport()
    for split in builder.split_names():
        for job in builder.jobs(split):
            rows = list(builder.storable_rows(split, job))
            pa.Table.from_pylist(rows, schema=SCHEMA)
    str(builder.report).encode()


def write_photos(folder: Path) -> str:
    for name in PHOTOS:
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.zeros((6, 8, 3), np.uint8))["bytes"])
    return str(folder / "photos")


def built(
    builder_class: type[GroundingBuilder], folder: Path, file: str, fixed: dict[str, bytes], **options: Any
) -> tuple[GroundingBuilder, Run]:
    """A builder of a folder with fixed files, and a function that puts an input in the place of `file` and reads."""
    data = folder / "data"
    for name, content in fixed.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(content)
    place = data / file
    place.parent.mkdir(parents=True, exist_ok=True)
    options = {"images_dir": write_photos(folder), **options}
    builder = builder_class(cache_dir=str(folder / "cache"), data_dir=str(data), **options)

    def run(content: bytes) -> None:
        place.write_bytes(content)
        located(folder, lambda: read_all(builder))

    return builder, run


def flickr(folder: Path, file: str) -> Run:
    builder, run = built(Flickr30kEntities, folder, file, seeds.flickr_files())

    def fresh(content: bytes) -> None:
        builder.__dict__.pop("_unrelated", None)
        run(content)

    return fresh


def flickr_sentences(folder: Path) -> Run:
    return flickr(folder, "Sentences/1.txt")


def flickr_xml(folder: Path) -> Run:
    return flickr(folder, "Annotations/1.xml")


def lists(folder: Path) -> Run:
    """Of a split, of captions that do not fit, of ids to leave out."""
    runs = [flickr(folder / "split", "train.txt"), flickr(folder / "unrelated", "UNRELATED_CAPTIONS")]

    def run(content: bytes) -> None:
        for one in runs:
            one(content)
        path = folder / "ids"
        path.write_bytes(content)
        located(folder, lambda: read_ids(path))

    return run


def parts(content: bytes, *names: str) -> list[bytes]:
    """The files that an input is made of: members of a JSON object, or all of it as the first, and nothing else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not set(names) <= value.keys():
        return [content, *[b"[]" for _ in names[1:]]]
    return [json.dumps(value[name]).encode() for name in names]


def infoground(folder: Path) -> Run:
    builder, _ = built(Flickr30kEntities, folder, "sentences_train.json", {})

    def run(content: bytes) -> None:
        sentences, boxes = parts(content, "sentences", "boxes")
        (folder / "data" / "sentences_train.json").write_bytes(sentences)
        (folder / "data" / "bounding_boxes_train.json").write_bytes(boxes)
        located(folder, lambda: read_all(builder))

    return run


def refs_pickle(folder: Path) -> Run:
    return built(RefCoco, folder, "refs(unc).p", seeds.refcoco_files())[1]


def instances(folder: Path) -> Run:
    """As COCO reads it, with photos, and as RefCOCO does, without."""
    runs = [
        built(Coco, folder / "coco", "instances.json", {})[1],
        built(RefCoco, folder / "refcoco", "instances.json", seeds.refcoco_files(), images_dir=None)[1],
    ]

    def run(content: bytes) -> None:
        for one in runs:
            one(content)

    return run


def proposals(folder: Path) -> Run:
    options = {"proposals": str(folder / "data" / "dets.json"), "images_dir": None}
    return built(RefCoco, folder, "dets.json", seeds.refcoco_files(), **options)[1]


def referit(folder: Path) -> Run:
    """A record, and the list of a split: a text in the input's member `list`."""
    builder, _ = built(ReferIt, folder, "1_1.json", seeds.referit_files())

    def run(content: bytes) -> None:
        record, listed = parts(content, "record", "list")
        listed = json.loads(listed)
        (folder / "data" / "1_1.json").write_bytes(record)
        text = listed if isinstance(listed, str) else "1\n2\n"
        (folder / "data" / "referit_train_imlist.txt").write_bytes(text.encode(errors="surrogatepass"))
        located(folder, lambda: read_all(builder))

    return run


def visual_genome_regions(folder: Path) -> Run:
    return built(VisualGenome, folder, "region_descriptions.json", seeds.visual_genome_files(), kinds="regions")[1]


def visual_genome_objects(folder: Path) -> Run:
    builder, _ = built(VisualGenome, folder, "image_data.json", {**seeds.visual_genome_files(), "attributes.json": b""})

    def run(content: bytes) -> None:
        for name, part in zip(
            ("image_data", "attributes", "relationships"),
            parts(content, "image_data", "attributes", "relationships"),
            strict=True,
        ):
            (folder / "data" / f"{name}.json").write_bytes(part)
        located(folder, lambda: read_all(builder))

    return run


def albef_json(folder: Path) -> Run:
    runs = [
        built(AlbefJson, folder / "photos", "train.json", {})[1],
        built(AlbefJson, folder / "none", "train.json", {}, images_dir=None)[1],
    ]

    def run(content: bytes) -> None:
        for one in runs:
            one(content)

    return run
