"""Reads a detector's boxes for photos, in the layouts that referring expressions come with."""

import re
from pathlib import Path
from typing import Any

from .coco_fields import is_box
from .json_files import read_json

Boxes = list[list[float]]


def read_proposals(path: Path) -> dict[str, Boxes]:
    """A JSON file of proposals: boxes `[x, y, width, height]` in pixels, by the photo's id or by its file's name.

    Three layouts are known: {photo's id: [[x, y, width, height, …], …]} (ALBEF's dets.json), a list of {"image_id",
    "box"} (MAttNet's), and a list of expressions with {"pred_boxes", "pred_boxes_img_id"}, the latter the names of the
    boxes' cut-outs (`COCO_train2014_000000266240_3.jpg`); there the expressions of a photo repeat its boxes.

    Raises:
        ValueError: The file is missing, no JSON or of another layout, or what it has for a photo are not boxes.
    """
    content = read_json(path)
    if isinstance(content, dict):
        return {id_: _first_fours(boxes, f"{path}: photo {id_}") for id_, boxes in content.items()}
    if isinstance(content, list) and all(isinstance(record, dict) for record in content):
        if all("image_id" in record and "box" in record for record in content):
            return _by_detection(content, path)
        if all("pred_boxes" in record and "pred_boxes_img_id" in record for record in content):
            return _by_expression(content, path)
    raise ValueError(
        f"{path} is in no known layout of proposals: {{photo's id: boxes}}, a list of {{image_id, box}}, or a list of "
        "{pred_boxes, pred_boxes_img_id}"
    )


def _by_detection(detections: list[dict[str, Any]], path: Path) -> dict[str, Boxes]:
    proposals: dict[str, Boxes] = {}
    for number, detection in enumerate(detections):
        boxes = _first_fours([detection["box"]], f"{path}: detection {number}")
        proposals.setdefault(str(detection["image_id"]), []).extend(boxes)
    return proposals


def _by_expression(expressions: list[dict[str, Any]], path: Path) -> dict[str, Boxes]:
    proposals: dict[str, dict[str, list[float]]] = {}  # photo's name → cut-out's name → box
    for number, expression in enumerate(expressions):
        record = f"{path}: expression {number}"
        boxes, names = _first_fours(expression["pred_boxes"], record), expression["pred_boxes_img_id"]
        if not isinstance(names, list) or len(names) != len(boxes):
            raise ValueError(f"{record}: pred_boxes_img_id has not one name for each of pred_boxes")
        for name, box in zip(names, boxes, strict=True):
            photo = re.fullmatch(r"(.+)_\d+(\.\w+)", str(name))
            if photo is None:
                raise ValueError(f"{record}: {str(name)[:80]!r} is not a cut-out's name, <photo>_<number>.jpg")
            own = proposals.setdefault(photo[1] + photo[2], {})
            if own.setdefault(name, box) != box:
                raise ValueError(f"{record}: {name} has another box than in an expression before")
    return {photo: list(boxes.values()) for photo, boxes in proposals.items()}


def _first_fours(boxes: Any, record: str) -> Boxes:
    """Boxes that a score or category may follow: their first four numbers."""
    fours = [box[:4] if isinstance(box, list) else box for box in boxes] if isinstance(boxes, list) else [None]
    for box in fours:
        if not is_box(box):
            raise ValueError(f"{record}: {str(box)[:80]!r} is not a box, [x, y, width, height]")
    return fours
