"""Small valid inputs that a fuzzer begins with, one or a few for each target."""

import io
import json
import pickle
from typing import Any

import numpy as np
from PIL import Image

SENTENCES = """[/EN#1/people A man] in [/EN#2/clothing a red [/EN#3/other hat]] stands [/EN#0/notvisual there] .
[/EN#1/people/other He] waits - [sic] .
No phrase here
[/EN#4/scene The street] is wide .
[/EN#2/clothing A hat] [/EN#5/other ]
"""
XML = """<?xml version="1.0"?>
<annotation><filename>1.jpg</filename><size><width>8</width><height>6</height><depth>3</depth></size>
<object><name>1</name><name>3</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object>
<object><name>2</name><bndbox><xmin>3</xmin><ymin>1</ymin><xmax>8</xmax><ymax>2</ymax></bndbox></object>
<object><name>4</name><scene>1</scene><nobndbox>0</nobndbox></object>
<object><name>5</name><nobndbox>1</nobndbox></object>
</annotation>
"""
LISTS = ["1\n", "# captions\n1 1\n1 5\n\n2 3\n", "COCO_train2014_000000000072.jpg\n36979.jpg\n5\n", '[1, "2.jpg", "3"]']
LISTS += ['{"images": [{"id": 1}, {"id": 2}], "info": {}}']

POLYGONS = [[1, 1, 5, 1, 5, 5], [0.5, 0.5, 7, 0.5, 7, 5.5, 0.5, 5.5]]
RUNS = {"size": [6, 8], "counts": [7, 4, 2, 4, 31]}
COMPRESSED = {"size": [6, 8], "counts": "741N2M1N2M1NQ1"}


def as_json(*values: Any) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


def flickr_files() -> dict[str, bytes]:
    return {
        "Sentences/1.txt": SENTENCES.encode(),
        "Annotations/1.xml": XML.encode(),
        "train.txt": b"1\n",
        "val.txt": b"2\n",
        "test.txt": b"3\n",
        "UNRELATED_CAPTIONS": b"# photo, sentence\n1 3\n",
    }


def infoground() -> list[bytes]:
    phrase = {"first_word_index": 1, "phrase": "red hat", "phrase_id": "2", "phrase_type": ["clothing"]}
    sentences = {"1": [{"sentence": "a red hat stands", "phrases": [phrase]}], "2": [{"sentence": "", "phrases": []}]}
    photo = {"width": 8, "height": 6, "depth": 3, "scene": ["4"], "nobox": ["5"], "boxes": {"2": [[0, 0, 4, 5]]}}
    return as_json({"sentences": sentences, "boxes": {"1": photo, "3": photo}})


def refs() -> list[dict[str, Any]]:
    said = [
        {"sent": "left man", "sent_id": 1, "raw": "Left man", "tokens": ["left", "man"]},
        {"sent": " ", "sent_id": 2},
    ]
    ref = {"ref_id": 1, "ann_id": 11, "image_id": 1, "category_id": 3, "split": "train", "sentences": said}
    return [ref, {**ref, "ref_id": 2, "ann_id": "1_2", "split": "testA"}, {**ref, "ref_id": 3, "split": "testBC"}]


def instances() -> dict[str, Any]:
    photo = {"id": 1, "file_name": "a.png", "width": 8, "height": 6, "license": 1, "coco_url": "http://a"}
    photos = [photo, {**photo, "id": 2, "file_name": "2.jpg"}, {**photo, "id": 3, "file_name": "gone.jpg"}]
    found = {"id": 11, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4.5], "area": 18.0, "iscrowd": 0}
    annotations = [{**found, "segmentation": POLYGONS}, {**found, "id": 12, "segmentation": RUNS, "iscrowd": 1}]
    annotations += [{**found, "id": 13, "segmentation": COMPRESSED}, {**found, "id": 14, "image_id": 2}]
    annotations += [{**found, "id": 15, "segmentation": [RUNS, RUNS], "bbox": [-1, -1, 90, 90]}]
    return {"info": {}, "images": photos, "annotations": annotations, "categories": [{"id": 3, "name": "man"}]}


def refcoco_files() -> dict[str, bytes]:
    listed = instances()
    listed["annotations"].append({**listed["annotations"][0], "id": "1_2"})
    return {"refs(unc).p": pickle.dumps(refs(), 2), "instances.json": json.dumps(listed).encode()}


def proposals() -> list[bytes]:
    found = {"image_id": 1, "box": [1, 1, 3, 3], "score": 0.5, "category_id": 1}
    said = {"pred_boxes": [[1, 1, 3, 3], [0, 0, 2, 2]], "pred_boxes_img_id": ["a_1.png", "a_2.png"]}
    return as_json({"1": [[1, 1, 3, 3, 0.9], [0, 0, 8, 6]], "2": []}, [found, {**found, "image_id": 2}], [said, said])


def referit_files() -> dict[str, bytes]:
    record = {"img_id": "2.jpg", "bbox": [1, 1, 5, 5], "query": ["cat"]}
    photos = {"train": b"2\n", "val": b"7\n", "test": b"8\n"}
    lists = {f"referit_{split}_imlist.txt": listed for split, listed in photos.items()}
    return {**lists, "1_1.json": b"", "2_1.json": json.dumps(record).encode()}


def referit() -> list[bytes]:
    record = {"img_id": "1.jpg", "bbox": [1, 1, 5.5, 5], "query": ["the  cat", " "], "split": "train"}
    return as_json({"record": record, "list": "1\n2\n\n"}, record)


def visual_genome_files() -> dict[str, bytes]:
    return {"image_data.json": json.dumps(image_data()).encode()}


def image_data() -> list[dict[str, Any]]:
    url = "https://cs.stanford.edu/people/rak248/VG_100K/1.jpg"
    image = {"image_id": 1, "url": url, "width": 8, "height": 6, "coco_id": None, "flickr_id": "12"}
    return [image, {**image, "image_id": 2, "coco_id": 5}]


def visual_genome_regions() -> list[bytes]:
    region = {"region_id": 1, "x": -1, "y": 0, "width": 5, "height": 4, "phrase": " the  cat", "image_id": 1}
    older = {"id": 1, "x": 1, "y": 0, "width": 50, "height": 4, "phrase": "a dog", "image": 1}
    newer = [{"id": 1, "regions": [region, {**region, "phrase": "cat"}]}, {"id": 2, "regions": []}]
    return as_json(newer, [{"id": 1, "regions": [older, older]}])


def visual_genome_objects() -> list[bytes]:
    place = {"x": 1, "y": 1, "w": 3, "h": 3}
    car = {"object_id": 5, **place, "names": ["Car"], "attributes": ["red", "Big "], "synsets": ["car.n.01"]}
    tree = {"object_id": 6, **place, "object_names": ["tree"], "attributes": []}
    attributes = [{"image_id": 1, "attributes": [car, tree, {**place, "name": "dog", "attributes": None}]}]
    relation = {"predicate": "NEXT to", "subject": {**place, "object_id": 5, "name": "car"}, "object": tree}
    relationships = [{"image_id": 1, "relationships": [relation, {**relation, "subject": car}]}]
    whole = {"image_data": image_data(), "attributes": attributes, "relationships": relationships}
    return as_json(whole)


def albef_json() -> list[bytes]:
    one = {"image": "a.png", "caption": "a  cat", "bbox": [1, 1, 50, 5]}
    more = [
        {**one, "caption": ["a", " ", "b"], "bbox": [[1, 1, 3, 3], [9, 9, 9, 9]]},
        {"image": "1.jpg", "caption": "c"},
    ]
    return as_json([one, *more, {**one, "bbox": []}, {**one, "image": "../a.png"}])


def images() -> list[bytes]:
    """A small image of every kind that is read, with and without a palette, transparency and an orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = Image.fromarray((np.arange(6 * 8 * 3) % 251).astype(np.uint8).reshape(6, 8, 3))
    found = []
    for kind, options in (
        ("PNG", {"exif": exif}),
        ("PNG", {}),
        ("JPEG", {"exif": exif}),
        ("JPEG", {"progressive": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {"exif": exif}),
        ("TIFF", {"exif": exif}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
    ):
        for image in (rgb, rgb.convert("P"), rgb.convert("L"), rgb.convert("RGBA"), rgb.convert("I;16")):
            buffer = io.BytesIO()
            try:
                image.save(buffer, kind, **options)
            except (OSError, ValueError, KeyError):  # a kind that has no such mode
                continue
            found.append(buffer.getvalue())
    return found
