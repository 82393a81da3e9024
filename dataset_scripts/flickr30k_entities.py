"""Flickr30k Entities: one row for each phrase of a caption, with the boxes of what it speaks of, and the caption.

Every image has five captions, whose phrases are sorted into chains: "two men" and "the friends" are one chain where
they are the same people, and all phrases of a chain share its boxes. Boxes are half-open here and count from 0: the
corners 1 and 10 of the original, both part of the box and counted from 1, are 0 and 10.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser, fromstring

from .builder import AnnotationConfig, GroundingBuilder, OutsideImage, SourceImage, Unusable, clip_box
from .coco_format import read_box, read_whole
from .features import PhraseFields
from .json_files import read_json, read_text
from .options import Flickr30kEntitiesOptions

_FILES = {"train": "train", "validation": "val", "test": "test"}  # split → its name in names of files
_CAPTIONS = 5  # of an image

_ID = re.compile(r"[0-9]{1,20}")
_HEADER = re.compile(r"\[/EN#([0-9]+)((?:/[A-Za-z]+)+)")
# Of a word: the head of a phrase, a pair of brackets in the word, text, a bracket alone.
_PIECE = re.compile(r"\[/EN#[^\[\]]*|\[[^\[\]]*\]|[^\[\]]+|[\[\]]")

_SCENE = "phrases: of the scene as a whole, which has no box"
_NO_BOX = "phrases: of what has no box"
_NO_AREA = "phrases: of boxes that were dropped"
_LOST = "phrases: of a chain that lost one of its boxes"
_UNKNOWN = "phrases: of a chain that the annotations do not have"


class Phrase(NamedTuple):
    """`words[first:end]` of a sentence, the chain it belongs to, and its kinds."""

    first: int
    end: int
    chain: str
    types: tuple[str, ...]


class Sentence(NamedTuple):
    """A caption without its markup."""

    words: list[str]
    phrases: list[Phrase]


class Object(NamedTuple):
    """A box, half-open `[x1, y1, x2, y2]` in pixels from 0 and not yet cut to the image, or None; and its chains."""

    chains: list[str]
    box: list[float] | None
    is_scene: bool = False
    is_unboxed: bool = False  # marked as not to be boxed


class Annotation(NamedTuple):
    """What is known of an image."""

    size: tuple[int, int] | None  # (width, height) in pixels
    objects: list[Object]


Boxes = list[list[float]]
Content = tuple[str, list[Sentence], Annotation]  # of an image: its id, and what is known of it


@dataclass
class Flickr30kEntitiesConfig(Flickr30kEntitiesOptions, AnnotationConfig):
    """The options, checked."""


class Flickr30kEntities(GroundingBuilder):
    """`datasets` builder of Flickr30k Entities; rows as in `features.FEATURES`, one for each phrase that has boxes.

    `data_dir` has one of two layouts. The original one, which is taken where both are there:
        Sentences/<id>.txt           five lines, phrases marked as `[/EN#<chain>/<type>[/<type>…] words]`
        Annotations/<id>.xml         size, and objects with chains and a box, or the flags `scene` and `nobndbox`
        train.txt, val.txt, test.txt an image's id in each line
        UNRELATED_CAPTIONS           a line with "#", then lines "<id> <number of the sentence, from 1>"
    InfoGround's, what the original tool returns for each image, for one to three of the splits:
        sentences_<split>.json       {id: [{"sentence", "phrases": [{"first_word_index", "phrase", "phrase_id",
                                     "phrase_type": [type, …]}]}]}
        bounding_boxes_<split>.json  {id: {"boxes": {chain: [[x1, y1, x2, y2], …]}, "scene": [chain, …],
                                     "nobox": [chain, …], "width", "height", "depth"}}
    Images are `<id>.jpg` in `images_dir`, or in its folder `flickr30k-images`.

    The original tool subtracts 1 from all four corners of the XML, and InfoGround's files hold that; 1 is added to x2
    and y2 here, so that both layouts give the same half-open boxes, whose last column and row of pixels are inside.

    A chain that is marked as the scene, or as one without a box, and has boxes all the same keeps them. A box beside
    the image is no part of its chain; where one has no area at all, or is mostly outside of the image, the phrases of
    the chain are dropped, as are those of chain 0 ("there", "each other") and the captions of UNRELATED_CAPTIONS. The
    counts of phrases, kept and dropped, add up to all phrases of the images that have annotations. A file that is
    missing, cut off or not in its format raises a `ValueError` that names it and line or record.
    """

    BUILDER_CONFIG_CLASS = Flickr30kEntitiesConfig
    source = (
        "Flickr30k Entities (Plummer et al., 2017) for the phrases and boxes, Flickr30k (Young et al., 2014) for the "
        "captions and images. The images are Flickr users' own and were given out for research and education only."
    )

    def split_names(self) -> list[str]:
        _ = self._unrelated  # read now, so that a fault of the file shows before the work begins
        if self._is_original:
            if not (self._folder / "Annotations").is_dir():
                raise ValueError(f"there is no folder {self._folder / 'Annotations'}, which annotations.zip has")
            seen: dict[str, Path] = {}
            for path in map(self._list, _FILES):
                for image_id in _read_ids(path):
                    if seen.setdefault(image_id, path) != path:
                        raise ValueError(f"{path}: {image_id} is also in {seen[image_id]}")
            return list(_FILES)
        names = [name for name in _FILES if any(path.is_file() for path in self._processed_files(name))]
        if not names:
            raise ValueError(
                f"{self._folder} has neither a folder Sentences (the original layout) nor sentences_<split>.json "
                f"(InfoGround's), <split> being one of {', '.join(_FILES.values())}"
            )
        for path in (path for name in names for path in self._processed_files(name)):
            if not path.is_file():
                raise ValueError(f"there is no file {path}, though its counterpart is there")
        return names

    def images(self, split: str) -> Iterable[Any]:
        """Ids in the original layout; in InfoGround's (id, sentences, boxes), the last two with their places."""
        if self._is_original:
            return _read_ids(self._list(split))
        return _processed_records(*self._processed_files(split))

    def image(self, record: Any) -> SourceImage | None:
        content = self._original(record) if self._is_original else self._processed(*record)
        if content is None:
            return None
        image_id, sentences, annotation = content
        lost = {"phrases: of an image that cannot be used": sum(len(sentence.phrases) for sentence in sentences)}
        return SourceImage((f"{image_id}.jpg",), f"image {image_id}", content, lost, annotation.size, image_id)

    def phrases(self, content: Content, size: tuple[int, int] | None) -> Iterator[PhraseFields]:
        image_id, sentences, annotation = content
        if size is None:
            self.report.kept["images of unknown size, whose boxes are cut to positive numbers alone"] += 1
        boxes, reasons = self._boxes_by_chain(image_id, annotation.objects, size)
        for number, sentence in enumerate(sentences, start=1):
            if (image_id, number) in self._unrelated:
                lost = {"phrases: in captions unrelated to their image": len(sentence.phrases)}
                self.lose({"captions: unrelated to their image": 1, **lost})
                continue
            self.report.kept["captions"] += 1
            for phrase in sentence.phrases:
                own, reason = boxes.get(phrase.chain, []), reasons.get(phrase.chain, _UNKNOWN)
                if self._is_kept(phrase, own, reason, f"image {image_id}, sentence {number}"):
                    yield {
                        "phrase": " ".join(sentence.words[phrase.first : phrase.end]),
                        "boxes": own,
                        "caption": " ".join(sentence.words),
                        "caption_span": (phrase.first, phrase.end),
                        "categories": phrase.types,
                    }

    # Reading an image's annotations

    @cached_property
    def _folder(self) -> Path:
        return Path(self.config.data_dir)

    @cached_property
    def _is_original(self) -> bool:
        return (self._folder / "Sentences").is_dir()

    def _list(self, split: str) -> Path:
        return self._folder / f"{_FILES[split]}.txt"

    def _processed_files(self, split: str) -> list[Path]:
        return [self._folder / f"{kind}_{_FILES[split]}.json" for kind in ("sentences", "bounding_boxes")]

    @cached_property
    def _unrelated(self) -> set[tuple[str, int]]:
        path = self._folder / "UNRELATED_CAPTIONS"
        return _read_unrelated(path) if self._is_original or path.is_file() else set()

    def _original(self, image_id: str) -> Content | None:
        sentences = self._folder / "Sentences" / f"{image_id}.txt"
        annotation = self._folder / "Annotations" / f"{image_id}.xml"
        for path, what in (sentences, "file of sentences"), (annotation, "file of annotations"):
            if not path.is_file():
                self.drop(f"images: listed, but without a {what}", str(path))
                return None
        return image_id, read_sentences(sentences), read_annotation(annotation)

    def _processed(self, image_id: str, sentences: tuple[Any, str], boxes: tuple[Any, str]) -> Content | None:
        for (part, place), what in (sentences, "sentences"), (boxes, "annotations"):
            if part is None:
                self.drop(f"images: without {what}", place)
                return None
        return image_id, _processed_sentences(*sentences), _processed_annotation(*boxes)

    # Rows

    def _boxes_by_chain(
        self, image_id: str, objects: list[Object], image_size: tuple[int, int] | None
    ) -> tuple[dict[str, Boxes], dict[str, str]]:
        """By chain: all its boxes, cut to the image, or none; and why there is none, or not all; counts the objects."""
        kept, lost = self.report.kept, set()
        boxes: dict[str, Boxes] = {}
        reasons: dict[str, str] = {}
        for chains, box, is_scene, is_unboxed in objects:
            if box is None:
                marked = {"scene": is_scene, "nobndbox": is_unboxed}
                self.lose({f"objects: without a box, marked {flag}": is_set for flag, is_set in marked.items()})
                own = dict.fromkeys(chains, _SCENE if is_scene else _NO_BOX)
                reasons = reasons | own if is_scene else own | reasons
                continue
            try:
                clipped = clip_box(box, image_size)
            except Unusable as reason:
                self.drop(f"objects: {reason}", f"image {image_id}, box {box} of chain {chains[0]}")
                reasons = dict.fromkeys(chains, _NO_AREA) | reasons
                if not isinstance(reason, OutsideImage):
                    lost.update(chains)
                continue
            kept["objects with a box"] += 1
            if clipped != box:
                kept["objects with a box that was cut to the image"] += 1
            for chain in chains:
                boxes.setdefault(chain, []).append(clipped)
        for chain in lost & boxes.keys():
            del boxes[chain]
            reasons[chain] = _LOST
        return boxes, reasons

    def _is_kept(self, phrase: Phrase, boxes: Boxes, reason: str, record: str) -> bool:
        """Counts a phrase. `reason`: why its chain has no box."""
        kept, dropped = self.report.kept, self.report.dropped
        if phrase.first == phrase.end:
            self.drop("phrases: without a word", f"{record}, chain {phrase.chain}")
        elif phrase.chain == "0":
            dropped["phrases: of nothing visible (chain 0)"] += 1
        elif boxes:
            kept["phrases with boxes"] += 1
            if reason == _SCENE:
                kept["phrases with boxes of a chain that is marked scene, too"] += 1
            return True
        elif self.config.keep_unboxed:
            kept[f"{reason}: kept without a region"] += 1
            return True
        elif reason == _UNKNOWN:
            self.drop(reason, f"{record}, chain {phrase.chain}")
        else:
            dropped[reason] += 1
        return False


# The original layout --------------------------------------------------------------------------------------------------


def _read_ids(path: Path) -> list[str]:
    """The ids of a split's list, each of them once."""
    ids = read_text(path).split()
    _check_ids(ids, path)
    if not ids:
        raise ValueError(f"{path} is empty")
    ((most_common, count),) = Counter(ids).most_common(1)
    if count > 1:
        raise ValueError(f"{path}: {most_common} occurs twice")
    return ids


def _check_ids(ids: Any, path: Path) -> None:
    for image_id in ids:
        if not _ID.fullmatch(image_id):
            raise ValueError(f"{path}: {image_id!r:.80} is not the number of an image")


def _read_unrelated(path: Path) -> set[tuple[str, int]]:
    """(id, number of the sentence from 1) of the captions that do not describe their image."""
    unrelated = set()
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.startswith("#") or not line.strip():
            continue
        fields = line.split()
        if len(fields) != 2 or not all(map(_ID.fullmatch, fields)) or not 1 <= int(fields[1]) <= _CAPTIONS:
            raise ValueError(f"{path}, line {number}: {line!r:.80} is not an image's number and 1 to {_CAPTIONS}")
        unrelated.add((fields[0], int(fields[1])))
    return unrelated


def read_sentences(path: Path) -> list[Sentence]:
    """The five captions of an image; a ValueError names file and line of what cannot be read."""
    sentences = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            sentences.append(parse_sentence(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if len(sentences) != _CAPTIONS:
        raise ValueError(f"{path} has {len(sentences)} sentences, {_CAPTIONS} are expected: was it cut off?")
    return sentences


def parse_sentence(line: str) -> Sentence:
    """Takes the markup out of a caption; phrases in the order in which they begin, also those inside another.

    Brackets that are no markup are part of words: a pair within one word, an opening one that no "/EN#" follows, a
    closing one outside of all phrases.

    Raises:
        ValueError: a phrase without an end, its head without a chain or a type, or "EN#" that is not part of a head.
    """
    words: list[str] = []
    phrases: list[Phrase | None] = []
    begun: list[tuple[int, int, str, tuple[str, ...]]] = []  # index in `phrases`, first word, chain, types
    for token in line.split():
        word = ""
        for piece in _PIECE.findall(token):
            is_head = piece.startswith("[/EN#")
            if not is_head and not (piece == "]" and begun):
                word += piece
                continue
            if word:
                words.append(_without_markup(word))
                word = ""
            if is_head:
                head = _HEADER.fullmatch(piece)
                if head is None:
                    raise ValueError(f"{piece!r:.80} is not [/EN#<chain>/<type>")
                begun.append((len(phrases), len(words), head[1], tuple(head[2][1:].split("/"))))
                phrases.append(None)
            else:
                index, first, chain, types = begun.pop()
                phrases[index] = Phrase(first, len(words), chain, types)
        if word:
            words.append(_without_markup(word))
    if begun:
        raise ValueError(f"the phrase of chain {begun[-1][2]} has no closing bracket")
    return Sentence(words, phrases)


def _without_markup(word: str) -> str:
    if "EN#" in word:
        raise ValueError(f"{word!r:.80} has markup that is not [/EN#<chain>/<type>")
    return word


class _NoDoctype(TreeBuilder):
    """Builds no tree of a file that declares a document type, whose entities can swell to any size."""

    def doctype(self, name: str, *_: Any) -> NoReturn:
        raise Unusable(f"declares a document type ({name}), which no annotation needs: it is not read")


def read_annotation(path: Path) -> Annotation:
    """The size of an image and its objects; a ValueError names the file of what cannot be read."""
    try:
        root = fromstring(path.read_bytes(), XMLParser(target=_NoDoctype()))
    except (ParseError, LookupError, ValueError) as error:  # the last two are of encodings
        raise ValueError(f"{path} is not XML, or was cut off: {error}") from error
    except Unusable as reason:
        raise ValueError(f"{path} {reason}") from None
    if root.tag != "annotation":
        raise ValueError(f"{path} is an XML file of <{root.tag}>, not of an <annotation>")
    width, height = (root.findtext(f"size/{side}", "").strip() for side in ("width", "height"))
    objects = [found for item in root.iterfind("object") for found in _read_objects(item, path)]
    try:
        size = _size(width, height)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Annotation(size, objects)


def _size(width: Any, height: Any) -> tuple[int, int] | None:
    """An image's size; None where nobody has filled it in: it is missing, empty or 0."""
    size = read_whole(width or 0), read_whole(height or 0)
    if None in size or min(size) < 0:
        raise ValueError(f"an image cannot have {width!r:.80} x {height!r:.80} pixels")
    return size if min(size) else None


def _read_objects(item: Element, path: Path) -> list[Object]:
    """An object, one for each of its boxes."""
    chains = list(dict.fromkeys((name.text or "").strip() for name in item.iterfind("name")))
    if not chains or not all(chains):
        raise ValueError(f"{path}: an object has no <name>, the chain that it belongs to")
    boxes = item.findall("bndbox")
    if not boxes:
        flags = [item.find(tag) is not None and _number(item, tag, path) > 0 for tag in ("scene", "nobndbox")]
        return [Object(chains, None, *flags)]
    names = "xmin", "ymin", "xmax", "ymax"
    corners = ([_number(box, name, path) for name in names] for box in boxes)
    return [Object(chains, [x1 - 1, y1 - 1, x2, y2]) for x1, y1, x2, y2 in corners]


def _number(element: Element, tag: str, path: Path) -> float:
    text = element.findtext(tag)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{path}: <{tag}> of <{element.tag}> cannot be {text!r:.80}")
    return number


# InfoGround's layout --------------------------------------------------------------------------------------------------


def _processed_records(*paths: Path) -> Iterator[tuple[str, tuple[Any, str], tuple[Any, str]]]:
    """(id, its sentences, its boxes) of a split's two files, the last two with their places; None for what is not."""
    content = []
    for path in paths:
        images = read_json(path)
        if not isinstance(images, dict) or not images:
            raise ValueError(f"{path} is empty, or not an object with an entry for each image")
        _check_ids(images, path)
        content.append(images)
    for image_id in dict.fromkeys([*content[0], *content[1]]):
        first, second = ((own.get(image_id), f"{path}, image {image_id}") for own, path in zip(content, paths))
        yield image_id, first, second


@contextmanager
def _in_format(place: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place} is not in InfoGround's format: {error!r:.200}") from error


def _processed_sentences(entries: Any, place: str) -> list[Sentence]:
    if not isinstance(entries, list):
        raise ValueError(f"{place}: a list of sentences is expected")
    sentences = []
    for number, entry in enumerate(entries, start=1):
        with _in_format(f"{place}, sentence {number}"):
            words = entry["sentence"].split(" ")
            phrases = [_processed_phrase(words, phrase) for phrase in entry["phrases"]]
        sentences.append(Sentence([word for word in words if word], phrases))
    return sentences


def _processed_phrase(words: list[str], phrase: dict[str, Any]) -> Phrase:
    """Words are counted with the empty ones, which the original tool leaves where a phrase has no word."""
    first, text, types = phrase["first_word_index"], phrase["phrase"].split(" "), phrase["phrase_type"]
    name = f"the phrase {phrase['phrase']!r:.80}"
    if type(first) is not int or first < 0 or words[first : first + len(text)] != text:
        raise ValueError(f"{name} is not at word {first!r:.80}")
    if not isinstance(phrase["phrase_id"], str) or not isinstance(types, list):
        raise ValueError(f"{name} has no phrase_id, or no list as phrase_type")
    if not all(isinstance(type_, str) for type_ in types):
        raise ValueError(f"{name} has a phrase_type that is no text")
    start = len([word for word in words[:first] if word])
    return Phrase(start, start + len([word for word in text if word]), phrase["phrase_id"], tuple(types))


def _processed_annotation(entry: Any, place: str) -> Annotation:
    """An image's boxes as InfoGround's JSON has them: corners from 0, both of them part of the box."""
    with _in_format(place):
        size = _size(entry.get("width"), entry.get("height"))
        objects = [Object([chain], _half_open(box)) for chain, boxes in entry["boxes"].items() for box in boxes]
        objects += [Object([chain], None, is_scene=True) for chain in _chains(entry["scene"])]
        objects += [Object([chain], None, is_unboxed=True) for chain in _chains(entry["nobox"])]
    return Annotation(size, objects)


def _chains(listed: Any) -> list[str]:
    if not isinstance(listed, list) or not all(isinstance(chain, str) for chain in listed):
        raise ValueError(f"chains must be a list of texts, not {str(listed)[:80]}")
    return listed


def _half_open(box: Any) -> list[float]:
    corners = read_box(box)
    if corners is None:
        raise ValueError(f"a box cannot be {str(box)[:80]}")
    x1, y1, x2, y2 = corners
    return [x1, y1, x2 + 1, y2 + 1]
