"""Visual Genome: phrases that people wrote about the parts of 108,077 images, each with the box of its part.

There are four kinds of phrases, told apart by the column `categories`:

- region: the region descriptions, as they were written;
- object: each of an object's names, "car";
- attribute: an attribute and its object's name, "red car", one for each attribute of an object;
- relation: the same and what the object has to do with another one, "red car next to tree", one for each attribute of
  a relationship's subject. The box is the subject's.

The latter three are put together here, in lower case; what is called the same in an image has one row with the boxes of
all its objects. A region description is of the one region it was written about, and has a row of its own.

The files are Visual Genome's own, of any version: `image_data.json` and, for the four kinds,
`region_descriptions.json`, `objects.json`, `attributes.json`, `relationships.json` (with `attributes.json`).

Many of the images are in COCO too, and some in Flickr30k: leave out those of an evaluation split by its list of ids.
"""

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from .builder import DrawnSplitsConfig, GroundingBuilder, OutsideImage, SourceImage, Unusable, clip_box, unusable_if
from .coco_format import as_read, read_box, read_number, read_whole
from .features import PhraseFields, plain_name
from .json_files import first_character, read_text, stream_json_lists, stream_json_records
from .options import VisualGenomeOptions

# Kind → the lists that it is made of, each in a file of its own.
_KINDS = {
    "regions": ["regions"],
    "objects": ["objects"],
    "attributes": ["attributes"],
    "relations": ["attributes", "relationships"],
}

_AGAIN = "phrase and box that the image has already"

_SIDES = dict.fromkeys(("object", "attribute", "relation"), tuple("xywh"))  # of boxes
_SIDES["region"] = ("x", "y", "width", "height")
_OTHER_IDS = {"coco_id": "COCO", "flickr_id": "Flickr"}
# A number, or the name of COCO's, Flickr30k's or Roboflow's file of the image.
_ID = re.compile(r"(?:COCO_[a-z]+\d{4}_(\d{12})(?:_\d+)?|(\d{1,18}))(?:[._](?:jpe?g|png)(?:\.rf\.\w+\.\w+)?)?")

Records = dict[str, list[Any]]  # of an image, by list
Found = Iterator[tuple[str, str, dict[str, Any], str]]  # kind, phrase, what has the box, the record's name
Objects = dict[tuple[str, str], tuple[str, list[list[float]]]]  # (kind, phrase as it is read) → phrase, boxes


@dataclass
class VisualGenomeConfig(VisualGenomeOptions, DrawnSplitsConfig):
    """The options, checked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.kinds.split(",")) - {*_KINDS, "all"}:
            raise ValueError(f"kinds: {min(unknown)!r} is none of {', '.join(_KINDS)}, all")


class _Image(NamedTuple):
    """What `image_data.json` says about an image."""

    rank: int  # its place there, by which the files are read in step
    size: tuple[int, int]
    place: str  # by its address: folder and name
    excluded: str | None  # why it is left out


class VisualGenome(GroundingBuilder):
    """`datasets` builder of Visual Genome's phrases and boxes; rows as in `features.FEATURES`.

    Boxes are cut to the image, phrases cleaned of stray blanks; both is counted. Dropped and counted are records
    without a phrase, an attribute, a name or a box, boxes without area in the image or mostly outside of it (of an
    attribute or relation with all that is called the same), the same phrase and box twice in an image, images that
    `image_data.json` does not list, and those that cannot be used.

    The files are streamed side by side, so they must have their images in the order of `image_data.json`, as Visual
    Genome's have; a file that has not can be built alone (`kinds`). Broken files raise a `ValueError` that names them.
    """

    BUILDER_CONFIG_CLASS = VisualGenomeConfig
    source = (
        "Visual Genome's annotations (https://homes.cs.washington.edu/~ranjay/visualgenome, CC BY 4.0); its images are "
        "from Flickr, by way of YFCC100M and COCO."
    )

    def split_names(self) -> list[str]:
        """train, and validation where it is asked for; reads the table of the images."""
        config = self.config
        lists = {"coco_id": config.exclude_coco_ids, "flickr_id": config.exclude_flickr_ids}
        self._images, unused = _read_images(Path(config.data_dir, "image_data.json"), lists)
        for name in unused:
            self.report.kept[f"images, all: no id in {name} is here; is it the right list?"] = len(self._images)
        self._kinds = self._chosen_kinds()
        self.draw_splits((str(record[0]), record) for record in self._by_image())
        return ["train", "validation"] if config.validation_fraction else ["train"]

    def images(self, split: str) -> Iterator[tuple[int, Records]]:
        return (record for record in self._by_image() if self.drawn_split(str(record[0])) == split)

    def image(self, record: tuple[int, Records]) -> SourceImage | None:
        image_id, records = record
        name, lost = f"image {image_id}", {f"{file}: of {{}}": len(own) for file, own in records.items()}
        listed = self._images.get(image_id)
        if listed is None:
            reason = "images: not in image_data.json"
            self.drop(reason, name)
        elif listed.excluded:
            reason = listed.excluded
            self.report.dropped[reason] += 1
        else:
            files = (listed.place, listed.place.rpartition("/")[2])  # of VG_100K's two folders it may be in the other
            return SourceImage(files, name, record, lost, listed.size, str(image_id))
        self.lose(lost, reason)
        return None

    # Files

    def _path(self, file: str) -> Path:
        return Path(self.config.data_dir, self.config.regions_file if file == "regions" else f"{file}.json")

    def _chosen_kinds(self) -> list[str]:
        """The kinds that were asked for, all their files being there."""
        asked = self.config.kinds.split(",")
        kinds = []
        for kind, files in _KINDS.items():
            missing = [path for path in map(self._path, files) if not path.is_file()]
            if kind in asked and missing:
                raise ValueError(f"kinds: {kind} need {missing[0]}, and there is no such file")
            if (kind in asked or "all" in asked) and not missing:
                kinds.append(kind)
        if not kinds:
            raise ValueError(
                f"{self.config.data_dir} has none of {self._path('regions').name}, objects.json, attributes.json"
            )
        return kinds

    def _by_image(self) -> Iterator[tuple[int, Records]]:
        files = sorted({file for kind in self._kinds for file in _KINDS[kind]})
        streams = [self._records(file, in_order=len(files) > 1) for file in files]
        merged = heapq.merge(*streams, key=itemgetter(0))
        for image_id, group in groupby(merged, key=itemgetter(1)):
            yield image_id, {file: records for _, _, file, records in group}

    def _records(self, file: str, in_order: bool) -> Iterator[tuple[tuple[int, int], int, str, list[Any]]]:
        """A file's (place in the order, image id, file, records), for every image; checked for order and doubles."""
        path, seen, rank = self._path(file), set(), -1
        for number, record in enumerate(stream_json_records(path, lines=False)):
            image_id = _id_of(record)
            records = record.get(file) if isinstance(record, dict) else None
            if image_id is None or not isinstance(records, list):
                raise ValueError(f"{path}: record {number} needs a whole number as id or image_id and a list {file}")
            if image_id in seen:
                raise ValueError(f"{path}: image {image_id} occurs twice, the second time as record {number}")
            seen.add(image_id)
            image = self._images.get(image_id)
            if image is None:  # it will be dropped; until then its place is after the image before it
                yield (rank, image_id), image_id, file, records
                continue
            if in_order and image.rank < rank:
                raise ValueError(
                    f"{path}: image {image_id} (record {number}) is not where image_data.json has it, so the files "
                    "cannot be read side by side; build one kind at a time (kinds), of relations with both files sorted"
                )
            rank = image.rank
            yield (rank, -1), image_id, file, records

    # Rows

    def phrases(self, content: tuple[int, Records], size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        """Regions, objects, attributes, relations of an image, in the order of the files."""
        kept = self.report.kept
        objects: Objects = {}
        lost: set[tuple[str, str]] = set()
        width, height = self._images[content[0]].size
        for kind, phrase, thing, record in self._found(*content):
            try:
                x, y, w, h = _box(thing, _SIDES[kind])
                box = clip_box([x, y, x + w, y + h], (width, height))
            except Unusable as reason:
                self.drop(f"{kind}s: {reason}", record)
                if not isinstance(reason, OutsideImage):
                    lost.add((kind, as_read(phrase)))
                continue
            # Two counts, as they have two causes: negative corners, and sides that are too long.
            if x < 0 or y < 0:
                kept["boxes that began left of or above the image, cut"] += 1
            if x + w > width or y + h > height:
                kept["boxes that ended right of or below the image, cut"] += 1
            _, own = objects.setdefault((kind, as_read(phrase)), (phrase, []))
            if box in own:
                self.report.dropped[f"{kind}s: {_AGAIN}"] += 1
                continue
            own.append(box)
            if kind == "region":
                kept["rows: regions"] += 1
                yield {"phrase": phrase, "boxes": [box], "categories": [kind]}
        yield from self._together(objects, lost)

    def _together(self, objects: Objects, lost: set[tuple[str, str]]) -> Iterator[PhraseFields]:
        """Objects, attributes and relations, each with all that is called so in an image."""
        dropped = self.report.dropped
        for (kind, same), (phrase, boxes) in objects.items():
            if kind == "region":
                continue
            _, regions = objects.get(("region", same), ("", []))
            if (kind, same) in lost:
                dropped[f"{kind}s: beside one that was lost, without which the row would not be of all"] += len(boxes)
            elif all(box in regions for box in boxes):
                dropped[f"{kind}s: {_AGAIN}"] += len(boxes)
            else:
                self.report.kept[f"rows: {kind}s"] += 1
                yield {"phrase": phrase, "boxes": boxes, "categories": [kind]}

    def _found(self, image_id: int, records: Records) -> Found:
        """All phrases that can be used."""
        if "regions" in self._kinds:
            yield from self._regions(image_id, records.get("regions", []))
        for number, thing in enumerate(records.get("objects", [])):
            yield from self._objects(thing, f"image {image_id}, object {number}")
        attributes_of: dict[Any, list[str]] = {}
        for thing in records.get("attributes", []):
            yield from self._attributes(thing, f"image {image_id}, an object of attributes.json", attributes_of)
        for relationship in records.get("relationships", []):
            yield from self._relations(relationship, f"image {image_id}, a relationship", attributes_of)

    def _regions(self, image_id: int, regions: list[Any]) -> Found:
        for number, region in enumerate(regions):
            record = f"image {image_id}, region {number}"
            with self.dropping("regions", record):
                unusable_if(not isinstance(region, dict), "that are no records")
                phrase = region.get("phrase")
                is_other = read_whole(region.get("image_id", region.get("image", image_id))) != image_id
                unusable_if(is_other, "of another image than the record they are in")
                unusable_if(not isinstance(phrase, str), "without phrase")
                clean = " ".join(phrase.split())
                unusable_if(not clean, "with an empty phrase")
                if clean != phrase:
                    where = "at an end" if phrase.strip() != phrase else "only inside"
                    self.report.kept[f"phrases with stray blanks {where}, cleaned"] += 1
                yield "region", clean, region, record

    def _objects(self, thing: Any, record: str) -> Found:
        """Every name of one object: it is called all of them."""
        with self.dropping("objects", record):
            for name in _names(thing):
                if _is_text(name):
                    yield "object", _lower(name), thing, f"{record} ({_lower(name)})"
                else:
                    self.drop("objects: of a name that is empty or no text", record)

    def _attributes(self, thing: Any, record: str, attributes_of: dict[Any, list[str]]) -> Found:
        """The phrases of one object; its attributes are added to `attributes_of`."""
        with self.dropping("attributes", record):
            name = _name(thing)
            attributes = thing.get("attributes") or []
            unusable_if(not isinstance(attributes, list), "that are no list")
            if not attributes:
                self.report.dropped["attributes: objects that have none"] += 1
            record = f"{record} ({name})"
            for attribute in attributes:
                if not _is_text(attribute):
                    self.drop("attributes: empty or no text", record)
                    continue
                attribute = _lower(attribute)
                known = attributes_of.setdefault(_identity(thing, name), [])
                if attribute not in known:
                    known.append(attribute)
                if "attributes" in self._kinds:
                    yield "attribute", f"{attribute} {name}", thing, record

    def _relations(self, relationship: Any, record: str, attributes_of: dict[Any, list[str]]) -> Found:
        with self.dropping("relations", record):
            unusable_if(not isinstance(relationship, dict), "that are no records")
            predicate, subject = relationship.get("predicate"), relationship.get("subject")
            name, other = _name(subject), _name(relationship.get("object"))
            unusable_if(not _is_text(predicate), "without predicate")
            attributes = attributes_of.get(_identity(subject, name), [])
            if not attributes:
                self.report.dropped["relations: whose subject has no attribute"] += 1
            rest = f"{name} {_lower(predicate)} {other}"
            for attribute in attributes:
                yield "relation", f"{attribute} {rest}", subject, f"{record} ({rest})"


# Parts of records -----------------------------------------------------------------------------------------------------


def _id_of(record: Any) -> int | None:
    """An image's id: `image_id` in newer files, `id` in older ones and in the region descriptions."""
    return read_whole(record.get("image_id", record.get("id"))) if isinstance(record, dict) else None


def _box(record: dict[str, Any], sides: tuple[str, ...]) -> list[float]:
    unusable_if(not record.keys() >= set(sides), "without box")
    box = read_box([record[side] for side in sides])
    unusable_if(box is None, "with a box that is not four numbers")
    return box


def _name(thing: Any) -> str:
    """An object's name in lower case, of several the first."""
    name = _names(thing)[0]
    unusable_if(not _is_text(name), "of an object without name")
    return _lower(name)


def _names(thing: Any) -> list[Any]:
    """An object's `names` (`object_names` in older files), or `name`; at least one."""
    names = None
    if isinstance(thing, dict):
        names = [thing["name"]] if "name" in thing else thing.get("names", thing.get("object_names"))
    unusable_if(not isinstance(names, list) or not names, "of an object without name")
    return names


def _identity(thing: dict[str, Any], name: str) -> Any:
    """What tells objects of an image apart; older files have no ids of objects, but give them the same box."""
    object_id = read_whole(thing.get("object_id"))
    return (name, *map(read_number, map(thing.get, "xywh"))) if object_id is None else object_id


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _lower(text: str) -> str:
    return " ".join(text.lower().split())


# The table of the images ----------------------------------------------------------------------------------------------


def _read_images(path: Path, lists: dict[str, str | None]) -> tuple[dict[int, _Image], list[str]]:
    """Images by id, in the order of the file; those with another id (`coco_id`, …) in its lists are marked. And the
    lists that mark none.
    """
    files = [(key, name.strip()) for key, names in lists.items() if names for name in names.split(",")]
    ids, unused = {file: read_ids(Path(file[1])) for file in files}, set(files)
    images: dict[int, _Image] = {}
    for rank, record in enumerate(stream_json_records(path, lines=False)):
        image_id = _id_of(record)
        if image_id is None:
            raise ValueError(f"{path}: record {rank} needs a whole number as image_id or id")
        if image_id in images:
            raise ValueError(f"{path}: image {image_id} occurs twice")
        width, height = (read_whole(record.get(side)) or 0 for side in ("width", "height"))
        if width <= 0 or height <= 0:
            raise ValueError(
                f"{path}: image {image_id} has no usable width and height: "
                f"{record.get('width')!r:.80}, {record.get('height')!r:.80}"
            )
        excluded = None
        others = {key: _other_id(path, image_id, record, key) for key in lists}
        for key, name in files:
            if others[key] in ids[key, name]:
                unused.discard((key, name))
                excluded = excluded or f"images: excluded by their {_OTHER_IDS[key]} id"
        address = re.search(r"/(VG_100K(?:_2)?)/[^/]+$", str(record.get("url")))
        folder = address[1] if address else "VG_100K"
        images[image_id] = _Image(rank, (width, height), f"{folder}/{image_id}.jpg", excluded)
    return images, [name for _, name in sorted(unused)]


def _other_id(path: Path, image_id: int, record: dict[str, Any], key: str) -> int | None:
    """An id that may be null, or written as text."""
    value = record.get(key)
    other = read_whole(value)
    if value is not None and other is None:
        raise ValueError(f"{path}: image {image_id}: {key} cannot be {str(value)[:80]!r}")
    return other


def read_ids(path: Path) -> set[int]:
    """Ids of images from a text file (one a line), a JSON list, or the images of an `instances.json`.

    In place of an id there may be COCO's or Flickr30k's file name: `COCO_train2014_000000000072.jpg`, `36979.jpg`. In
    an `instances.json` that, or MDETR's `original_id` or `original_img_id`, is taken before `id`: copies number anew.
    A ValueError names a file that is missing or none of these, has something else for an id, or has none.
    """
    first = first_character(path)
    if first == "{":
        images = (image for _, image, _ in stream_json_lists(path, ["images"]))
        entries = (_entry_of(image) if isinstance(image, dict) else [image] for image in images)
    elif first == "[":
        entries = stream_json_records(path)
    else:
        entries = (line.strip() for line in read_text(path).splitlines() if line.strip())
    ids = set()
    for entry in entries:
        id_ = _id_in(entry)
        if id_ is None:
            raise ValueError(f"{path}: {str(entry)[:80]!r} is no id of an image")
        ids.add(id_)
    if not ids:
        raise ValueError(f"{path} has no ids")
    return ids


def _entry_of(image: dict[str, Any]) -> Any:
    others = (image.get(key) for key in ("file_name", "original_id", "original_img_id"))
    return next((other for other in others if _id_in(other) is not None), image.get("id"))


def _id_in(entry: Any) -> int | None:
    name = plain_name(str(entry)).rsplit("/", 1)[-1] if type(entry) in (int, str) else ""
    found = _ID.fullmatch(name)
    return int(found[1] or found[2]) if found else None
