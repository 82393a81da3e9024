"""Data folders for the builders: a workshop to write them by hand, and a small tree for each builder."""

import hashlib
import io
import json
import pickle
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset_scripts.builder import GroundingBuilder
from dataset_scripts.features import BuildReport
from tests.helpers.flickr30k_tree import draw_images, write_original

WIDTH, HEIGHT = 8, 6
SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]  # covers the pixels 1 to 3 in both directions
SQUARE_MASK = np.zeros((HEIGHT, WIDTH), bool)
SQUARE_MASK[1:4, 1:4] = True
# The same square down the columns: 7 zeros, 3 ones, 3 zeros, 3 ones, 3 zeros, 3 ones and 26 zeros.
SQUARE_RUNS = {"size": [HEIGHT, WIDTH], "counts": [7, 3, 3, 3, 3, 3, 26]}
# What reports call an image that is not there.
MISSING = "images: neither in images_dir nor below it: give the folder that has them"

Rows = list[dict[str, Any]]


def name_in_source(image_id: str) -> str:
    """What a row's image is called in its source, by the row's `image_id`."""
    return re.fullmatch(r"[a-z0-9_]+/(.+)#[^#/]+", image_id, re.S)[1]


def id_without_image(builder: str, folder: Path, name: str) -> str:
    """An image's id in a build without images."""
    return f"{builder}/{name}#{hashlib.sha256(f'{folder}/{name}'.encode()).hexdigest()[:12]}"


def decoded(mask: dict[str, Any]) -> np.ndarray:
    """A stored mask as bool `(height, width)`."""
    pixels = np.asarray(Image.open(io.BytesIO(mask["bytes"])))
    assert pixels.dtype == np.uint8 and set(np.unique(pixels)) <= {0, 255}
    return pixels == 255


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(path.name.encode())).integers(
        0, 256, (size[1], size[0], 3), dtype=np.uint8
    )
    Image.fromarray(noise).save(path, **options)
    return path.read_bytes()


def write(path: Path, content: Any) -> Path:
    """Bytes and text as they are, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_all(builder: GroundingBuilder) -> tuple[dict[str, Rows], BuildReport]:
    """All rows by split, and the report."""
    jobs = {split: builder.jobs(split) for split in builder.split_names()}
    return {
        split: [row for job in own for row in builder.rows(split, job)] for split, own in jobs.items()
    }, builder.report


class Workshop:
    """A folder of annotations, one of images, and the builder that reads them."""

    def __init__(self, builder_class: type[GroundingBuilder], folder: Path):
        self.builder_class, self.folder, self.images = builder_class, folder / "data", folder / "images"
        self.folder.mkdir()
        self.images.mkdir()

    def write(self, name: str, content: Any) -> Path:
        return write(self.folder / name, content)

    def image(self, name: str, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> bytes:
        return write_image(self.images / name, size, **options)

    def builder(self, images: bool = False, **options: Any) -> Any:
        options = {"data_dir": str(self.folder), "images_dir": str(self.images) if images else None} | options
        return self.builder_class(cache_dir=str(self.folder.parent / "cache"), **options)

    def build(self, images: bool = False, **options: Any) -> tuple[dict[str, Rows], BuildReport]:
        return read_all(self.builder(images, **options))

    def rows(self, images: bool = False, **options: Any) -> tuple[Rows, BuildReport]:
        """The rows of the split train."""
        rows, report = self.build(images, **options)
        return rows["train"], report


# A small tree for each builder, whose function returns its options ----------------------------------------------------


def scenes(folder: Path) -> dict[str, Any]:
    return dict(train=3, validation=1, test=1, test_relations=1, test_unseen=0, captions=2, image_size=64)


def coco(folder: Path) -> dict[str, Any]:
    """Eight images; of the last one the file is missing."""
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(8)]
    plain = {"category_id": 3, "bbox": [1, 1, 3, 3], "iscrowd": 0}
    squares = [{**plain, "id": i, "image_id": i, "segmentation": [SQUARE] if i % 2 else SQUARE_RUNS} for i in range(8)]
    dog = {**plain, "id": 10, "image_id": 1, "category_id": 2, "segmentation": SQUARE_RUNS}
    categories = [{"id": 3, "name": "traffic light"}, {"id": 2, "name": "dog"}]
    content = {"info": {}, "images": images, "categories": categories, "annotations": [*squares, dog]}
    write(folder / "instances.json", content)
    for i in range(7):
        write_image(folder / "images" / f"{i}.png")
    return dict(data_dir=str(folder), images_dir=str(folder / "images"), validation_fraction=0.5)


def yolo(folder: Path) -> dict[str, Any]:
    """As Roboflow has it: a folder a split, names in data.yaml."""
    folder /= "set"
    labels = {"train": "1 0.5 0.5 0.5 0.5\n0 0.25 0.25 0.75 0.25 0.75 0.75\n", "valid": "1 0.25 0.5 0.5 1"}
    for split, lines in labels.items():
        write(folder / split / "labels" / f"{split[0]}.txt", lines)
        write_image(folder / split / "images" / f"{split[0]}.png")
    write(folder / "data.yaml", "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['no', 'dog']\n")
    return dict(data_dir=str(folder), images_dir=str(folder))


def voc_xml(*objects: tuple[Any, ...], name: str = "1.png", size: tuple[Any, Any] = (WIDTH, HEIGHT)) -> str:
    """Objects (name, xmin, ymin, xmax, ymax) in an image."""
    boxes = "".join(
        f"<object><name>{label}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2 in objects
    )
    width, height = size
    return (
        f"<annotation><folder>VOC</folder><filename>{name}</filename><source><database>Unknown</database></source>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size><segmented>0</segmented>{boxes}"
        "</annotation>"
    )


def voc(folder: Path) -> dict[str, Any]:
    folder /= "set"
    for i, split in enumerate(("train", "val")):
        write(folder / "Annotations" / f"{i}.xml", voc_xml(("dog", 2, 2, 4, 4), name=f"{i}.png"))
        write_image(folder / "JPEGImages" / f"{i}.png")
        write(folder / "ImageSets" / "Main" / f"{split}.txt", f"{i}\n")
    return dict(data_dir=str(folder), images_dir=str(folder))


def labelme_json(*shapes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A file of LabelMe with shapes {label, points, shape_type}."""
    plain = {"group_id": None, "description": "", "flags": {}, "mask": None}
    content = {"version": "5.4.1", "flags": {}, "shapes": [plain | shape for shape in shapes], "imagePath": "1.png"}
    return content | {"imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH} | changes


def labelme(folder: Path) -> dict[str, Any]:
    folder /= "set"
    box = {"label": "dog", "points": [[1, 1], [4, 4]], "shape_type": "rectangle"}
    for i in range(4):
        write(folder / f"{i}.json", labelme_json(box, imagePath=f"{i}.png"))
        write_image(folder / f"{i}.png")
    return dict(data_dir=str(folder), images_dir=str(folder), validation_fraction=0.5)


def via(folder: Path) -> dict[str, Any]:
    shape = {"name": "polygon", "all_points_x": SQUARE[::2], "all_points_y": SQUARE[1::2]}
    region = {"shape_attributes": shape, "region_attributes": {"kind": "dog"}}
    images = {
        f"{i}.png9": {"filename": f"{i}.png", "size": 9, "regions": [region], "file_attributes": {}} for i in (1, 2)
    }
    write(folder / "via.json", {"_via_settings": {}, "_via_img_metadata": images, "_via_attributes": {"region": {}}})
    for i in (1, 2):
        write_image(folder / "images" / f"{i}.png")
    return dict(data_dir=str(folder), images_dir=str(folder / "images"))


def cvat(folder: Path) -> dict[str, Any]:
    shapes = (
        '<box label="dog" source="manual" occluded="0" xtl="1.0" ytl="1.0" xbr="4.0" ybr="4.0" z_order="0"></box>'
        '<mask label="cat" source="manual" occluded="0" rle="0, 9" left="1" top="1" width="3" height="3"></mask>'
    )
    images = [
        f'<image id="{i}" name="{i}.png" subset="{subset}" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
        for i, subset in enumerate(("Train", "Validation"))
    ]
    meta = "<meta><project><name>dogs</name><labels><label><name>dog</name></label></labels></project></meta>"
    write(folder / "annotations.xml", f"<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>")
    for i in range(2):
        write_image(folder / "images" / f"{i}.png")
    return dict(data_dir=str(folder), images_dir=str(folder / "images"))


def label_studio(folder: Path) -> dict[str, Any]:
    value = {"x": 12.5, "y": 50, "width": 25, "height": 50, "rotation": 0, "rectanglelabels": ["dog"]}
    place = {"from_name": "label", "to_name": "image", "original_width": WIDTH, "original_height": HEIGHT}
    result = {"id": "aB3", "type": "rectanglelabels", "image_rotation": 0, "value": value, **place}
    tasks = [
        {
            "id": i,
            "data": {"image": f"/data/upload/1/0123abcd-{i}.png"},
            "annotations": [{"id": i, "was_cancelled": False, "ground_truth": False, "result": [result]}],
        }
        for i in (1, 2)
    ]
    write(folder / "project-1.json", tasks)
    for i in (1, 2):
        write_image(folder / "images" / f"{i}.png")
    return dict(data_dir=str(folder), images_dir=str(folder / "images"))


def createml(folder: Path) -> dict[str, Any]:
    folder /= "set"
    box = {"label": "dog", "coordinates": {"x": 2.5, "y": 2.5, "width": 3, "height": 3}}
    for split in "train", "valid":
        write(folder / split / "_annotations.createml.json", [{"image": f"{split}.png", "annotations": [box]}])
        write_image(folder / split / f"{split}.png")
    return dict(data_dir=str(folder), images_dir=str(folder))


def visual_genome(folder: Path) -> dict[str, Any]:
    box, place = {"x": 1, "y": 2, "width": 5, "height": 3}, {"x": 1, "y": 2, "w": 5, "h": 3}
    car = {"object_id": 1, "names": ["car"], "attributes": ["red", "parked"], **place}
    relation = {"predicate": "next to", "subject": car, "object": {"object_id": 2, "names": ["tree"], **place}}
    image = {"width": WIDTH, "height": HEIGHT, "coco_id": None, "flickr_id": "12"}
    url = "https://cs.stanford.edu/VG_100K/{}.jpg"
    write(folder / "image_data.json", [{"image_id": i, "url": url.format(i), **image} for i in (1, 2)])
    regions = [{"id": i, "regions": [{"phrase": "a  red car", "image_id": i, **box}]} for i in (1, 2)]
    write(folder / "region_descriptions.json", regions)
    write(folder / "attributes.json", [{"image_id": 1, "attributes": [car]}])
    write(folder / "relationships.json", [{"image_id": 1, "relationships": [relation]}])
    for i in (1, 2):
        write_image(folder / "images" / "VG_100K" / f"{i}.jpg")
    return dict(data_dir=str(folder), images_dir=str(folder / "images"))


def flickr30k_entities(folder: Path) -> dict[str, Any]:
    splits = {split: list(draw_images(3, seed)) for seed, split in enumerate(("train", "val", "test"))}
    write_original(folder, splits)
    for image in (image for own in splits.values() for image in own):
        write_image(folder / "images" / f"{image.image_id}.jpg", image.size)
    return dict(data_dir=str(folder), images_dir=str(folder / "images"), keep_unboxed=True)


def refcoco(folder: Path) -> dict[str, Any]:
    """Three images in the splits train, testA and val; what val has is not to be used."""
    boxes = {1: [1, 1, 3, 3], 2: [1.5, 1, 3, 3], 3: [2 * WIDTH, 1, 3, 3]}
    plain = {"category_id": 3, "segmentation": SQUARE_RUNS}
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in boxes],
        "categories": [{"id": 3, "name": "dog"}],
        "annotations": [{"id": i, "image_id": i, "bbox": box, **plain} for i, box in boxes.items()],
    }
    content["annotations"][-1]["segmentation"] = None
    write(folder / "instances.json", content)
    write(folder / "dets.json", {"1": [[0, 0, 5, 5], [3, 3, 4, 4]]})
    sentences = [{"sent": "left dog", "sent_id": 1}]
    splits = {1: "train", 2: "testA", 3: "val"}
    refs = [dict(ref_id=i, ann_id=i, image_id=i, split=split, sentences=sentences) for i, split in splits.items()]
    write(folder / "refs(unc).p", pickle.dumps(refs, 2))
    for i in boxes:
        write_image(folder / "images" / f"{i}.jpg")
    return dict(data_dir=str(folder), images_dir=str(folder / "images"), proposals="dets.json")


def referit(folder: Path) -> dict[str, Any]:
    record = {"bbox": [1.0, 2.0, 4.0, 5.0], "query": ["dog..!", " the  dog"]}
    for name, image in ("1_1", "1.jpg"), ("4_2", "4.jpg"):
        write(folder / f"{name}.json", {"img_id": image, **record})
        write_image(folder / "images" / image)
    for split, image in (("train", "1"), ("val", "4"), ("test", "5")):
        write(folder / f"referit_{split}_imlist.txt", image)
    return dict(data_dir=str(folder), images_dir=str(folder / "images"))


def albef_json(folder: Path) -> dict[str, Any]:
    two = {"image": "1.png", "caption": ["a dog", "zwei Hündchen"], "bbox": [[1, 2, 9, 7], [5.5, 3, 7.25, 4]]}
    write(folder / "train.json", [two, {"image": "2.png", "caption": "a tree"}])
    for i in (1, 2):
        write_image(folder / "images" / f"{i}.png")
    return dict(data_dir=str(folder), images_dir=str(folder / "images"))


def json_lines(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def odvg(folder: Path) -> dict[str, Any]:
    regions = [{"phrase": "a dog", "bbox": [1, 2, 5, 5]}, {"phrase": "trees", "bbox": [[0, 0, 3, 3], [4, 0, 9, 3]]}]
    record = {"height": HEIGHT, "width": WIDTH, "grounding": {"caption": "a dog by trees .", "regions": regions}}
    detection = {"instances": [{"bbox": [1, 1, 4, 4], "label": 0, "category": "traffic_light"}]}
    write(folder / "train.jsonl", json_lines([{"filename": f"{i}.png", **record} for i in (1, 2)]))
    write(folder / "val.jsonl", json_lines([{"filename": "2.png", "detection": detection}]))
    return _with_images(folder)


def chat(folder: Path) -> dict[str, Any]:
    answer = "<ref>A dog</ref><box>(125,0),(500,1000)</box> by <ref>trees</ref><box>(0,0),(250,500)</box>."
    turns = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": answer}]
    size = {"width": WIDTH, "height": HEIGHT}
    write(folder / "train.json", [{"image": f"{i}.png", "conversations": turns, **size} for i in (1, 2)])
    return _with_images(folder)


def phrasecut(folder: Path) -> dict[str, Any]:
    square = [[x, y] for x, y in zip(SQUARE[::2], SQUARE[1::2])]
    task = {"phrase": "small dog", "instance_boxes": [[1, 1, 3, 3]], "Polygons": [[square]]}
    write(folder / "refer_train.json", [{"task_id": f"{i}__1", "image_id": i, **task} for i in (1, 2)])
    sizes = [{"image_id": i, "width": WIDTH, "height": HEIGHT, "split": "train"} for i in (1, 2)]
    write(folder / "image_data_split3000.json", sizes)
    return _with_images(folder)


def xvlm(folder: Path) -> dict[str, Any]:
    elems = [{"caption": "dog", "attributes": ["small", "brown"], "bb": [1, 1, 3, 3]}]
    record = {"caption": "a dog", "elems": elems}
    write(folder / "train.jsonl", json_lines([{"image": f"{i}.png", **record} for i in (1, 2)]))
    return _with_images(folder)


def narratives(folder: Path) -> dict[str, Any]:
    said = [("In this image", 0, 1), ("there is", 1, 2), ("a dog.", 2, 3)]
    words = [{"utterance": text, "start_time": start, "end_time": end} for text, start, end in said]
    trace = [{"x": x, "y": y, "t": t} for x, y, t in ((0.1, 0.1, 0.5), (0.25, 0.5, 2.1), (0.75, 1.02, 2.9))]
    record = {"caption": "In this image there is a dog.", "timed_caption": words, "traces": [trace]}
    records = [{"dataset_id": "open_images_train", "image_id": str(i), **record} for i in (1, 2)]
    write(folder / "open_images_train_v6_localized_narratives-00000-of-00010.jsonl", json_lines(records))
    return _with_images(folder)


def _with_images(folder: Path) -> dict[str, Any]:
    for name in ("1.png", "2.png", "1.jpg", "2.jpg"):
        write_image(folder / "images" / name)
    return dict(data_dir=str(folder), images_dir=str(folder / "images"))


TREES: dict[str, Callable[[Path], dict[str, Any]]] = {
    tree.__name__: tree
    for tree in (
        *(scenes, coco, yolo, voc, labelme, via, cvat, label_studio, createml),
        *(visual_genome, flickr30k_entities, refcoco, referit, albef_json),
        *(odvg, chat, phrasecut, xvlm, narratives),
    )
}
# Of the trees of annotations: an image of their train split, or of any.
AN_IMAGE = {
    "coco": "0.png",
    "yolo": "train/images/t.png",
    "voc": "JPEGImages/0.png",
    "labelme": "0.png",
    "via": "1.png",
    "cvat": "0.png",
    "label_studio": "1.png",
    "createml": "train/train.png",
    "visual_genome": "VG_100K/1.jpg",
    "flickr30k_entities": "1000000.jpg",
    "refcoco": "1.jpg",
    "referit": "1.jpg",
    "albef_json": "1.png",
    "odvg": "1.png",
    "chat": "1.png",
    "phrasecut": "1.jpg",
    "xvlm": "1.png",
    "narratives": "1.jpg",
}
