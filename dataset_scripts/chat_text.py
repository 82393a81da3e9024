"""Phrases with boxes in text, as models that speak of places write them. Coordinates become pixels of an image.

- `qwen`: `<ref>phrase</ref><box>(x1,y1),(x2,y2)</box>`, and with Qwen2-VL's `<|object_ref_start|>` and `<|box_start|>`,
  and InternVL's `<box>[[x1, y1, x2, y2]]</box>`: thousandths of the image's sides.
- `kosmos2`: `<phrase>phrase</phrase><object><patch_index_0044><patch_index_0863></object>`: the first and last of 32 x
  32 cells. As Kosmos-2 decodes them, a box goes from middle to middle, or is whole cells where it is one row or column.
- `florence2`: `phrase<loc_52><loc_332><loc_932><loc_774>`: 1000 bins a side, of which the middle is taken.
- `shikra`: `phrase[0.1,0.2,0.3,0.4]`, several boxes with `;` between: shares of the image's sides.
- JSON `[{"bbox_2d": [x1, y1, x2, y2], "label": "phrase"}]`, whose numbers nobody can tell apart: `qwen2.5` is pixels of
  the image's file, `qwen2.5-resized` pixels of the image as Qwen2.5-VL's own tool resizes it (sides of 28, at most
  1,003,520 pixels), `qwen3` thousandths.

Florence-2 and Shikra do not mark where a phrase begins. It is all the text before its boxes; in a sentence that goes on
after other boxes, it begins at an article or the like, behind verbs and prepositions: "[…] is holding a dog[…]" is a
dog. Where that is in doubt there is no phrase.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .builder import Unusable
from .coco_format import listed_boxes, read_box
from .phrase_files import PUNCTUATION

Size = tuple[int, int]  # (width, height) in pixels
Box = list[float] | Unusable | None


class Marked(NamedTuple):
    """A phrase in a text, or None where boxes have none; `boxes` is None where a phrase has none."""

    phrase: str | None
    boxes: list[Box] | None
    caption: str | None = None  # the text without marks
    caption_span: tuple[int, int] | None = None


_NUMBER = r"[-+]?(?:\d{1,20}(?:\.\d{0,20})?|\.\d{1,20})"
_SHARE = r"(?:[01](?:\.\d{0,20})?|\.\d{1,20})"
_FOUR = rf"{_SHARE}\s*,\s*{_SHARE}\s*,\s*{_SHARE}\s*,\s*{_SHARE}"
_REF = r"(?:<ref>|<\|object_ref_start\|>)(?P<{}>[^<]*)(?:</ref>|<\|object_ref_end\|>)"
_BOX = r"(?:<box>|<\|box_start\|>)[^<]*(?:</box>|<\|box_end\|>)"
_PATCH = r"<patch_index_\d{1,6}>|</delimiter_of_multi_objects/>"
# Style → its boxes in a text, with the phrase where that is marked, and the numbers in the boxes.
_MARKS = {
    "qwen": (
        rf"(?:{_REF.format('phrase')}\s*)?(?P<boxes>{_BOX}(?:[\s,;]*{_BOX})*)|{_REF.format('alone')}",
        _NUMBER,
    ),
    "kosmos2": (
        rf"(?:<phrase>(?P<phrase>[^<]*)</phrase>\s*)?<object>(?P<boxes>(?:{_PATCH}|\s)*)</object>",
        r"(?<=<patch_index_)\d+",
    ),
    "florence2": (r"(?P<boxes>(?:<loc_\d{1,6}>)+)", r"\d+"),
    "shikra": (rf"\[\s*(?P<boxes>{_FOUR}(?:\s*;\s*{_FOUR})*)\s*\]", _NUMBER),
}
_COMPILED = {style: (re.compile(marks), re.compile(numbers)) for style, (marks, numbers) in _MARKS.items()}
JSON_STYLES = ("qwen2.5", "qwen2.5-resized", "qwen3")
STYLES = (*_MARKS, *JSON_STYLES)
_IN_JSON = "bbox_2d"
# What a text in a style has, for finding out.
_SIGNS = {
    "qwen": "<box>|<\\|box_start\\|>",
    "kosmos2": "<patch_index_\\d",
    "florence2": "<loc_\\d",
    "shikra": _MARKS["shikra"][0],
    _IN_JSON: '"bbox_2d"',
}
_COMPILED_SIGNS = {style: re.compile(sign) for style, sign in _SIGNS.items()}
_NO_WORDS = re.compile(
    r"<img>[^<]*</img>|<image>|<grounding>|</?s>|<\|(?:im_start|im_end|vision_start|image_pad|vision_end)\|>"
)
_JSON_START = re.compile(r"\[\s*\{|\{")
_MOST_STARTS = 100  # of what may be JSON in a text
_SIDE = 32  # Kosmos-2's cells


def signs_in(text: str) -> list[str]:
    """The styles that a text seems to be written in; of the three with JSON, `bbox_2d`."""
    return [style for style, sign in _COMPILED_SIGNS.items() if sign.search(text)]


def marks_beginnings(style: str) -> bool:
    """Whether phrases in a style begin with a mark, so that a question, too, can be read."""
    return style in ("qwen", "kosmos2")


def read_text(text: str, style: str, size: Size) -> Iterator[Marked]:
    """The phrases in a text, with their boxes as `[x1, y1, x2, y2]` in pixels of an image of that size."""
    if style in JSON_STYLES:
        yield from _read_json(text, style, size)
        return
    text, (marks, numbers) = _NO_WORDS.sub(" ", text), _COMPILED[style]
    clean, at, found = "", 0, []
    for match in marks.finditer(text):
        before, groups = text[at : match.start()], match.groupdict()
        clean += before
        phrase, alone = groups.get("phrase"), groups.get("alone")
        if marks_beginnings(style):
            start = len(clean)
            clean += phrase or alone or ""
        else:
            phrase = _phrase_before(before, after_box=bool(at), is_list=style == "florence2")
            phrase = "" if _NO_END.search(phrase) else phrase
            start = len(clean.rstrip(" ,")) - len(phrase or "")
        boxes = None
        if alone is None:
            boxes = _boxes([float(number) for number in numbers.findall(match["boxes"])], style, size)
        phrase = alone if phrase is None else phrase
        found.append((phrase and phrase.strip(' \t\n"“”'), boxes, start))
        at = match.end()
    clean += text[at:]
    caption = " ".join(clean.split())
    for phrase, boxes, start in found:
        yield Marked(phrase or None, boxes, caption, _span(phrase, clean, start) if phrase else None)


def _span(phrase: str, clean: str, start: int) -> tuple[int, int] | None:
    """Which words of a text a phrase is that begins at a character, or None where it begins or ends inside one."""
    words, all_words, first = phrase.split(), clean.split(), len(clean[:start].split())
    end = first + len(words)
    is_there = " ".join(all_words[first:end]).strip(PUNCTUATION) == " ".join(words).strip(PUNCTUATION)
    return (first, end) if is_there and len(all_words) > len(words) else None


# Coordinates ----------------------------------------------------------------------------------------------------------


def _boxes(numbers: Sequence[float], style: str, size: Size) -> list[Box]:
    if style == "kosmos2":
        pairs = [(int(number), int(last)) for number, last in zip(numbers[::2], numbers[1::2])]
        return [_cells(*pair, size) for pair in pairs] if len(numbers) % 2 == 0 and pairs else [None]
    if len(numbers) % 4 or not numbers:
        return [None]
    return [_in_pixels(list(numbers[i : i + 4]), style, size) for i in range(0, len(numbers), 4)]


def _in_pixels(box: list[float], style: str, size: Size) -> Box:
    """Four numbers of a style as corners in pixels."""
    if style == "qwen2.5":
        return box
    if style == "qwen2.5-resized":
        resized = qwen_size(*size)
        return [value * side / new for value, side, new in zip(box, size * 2, resized * 2)]
    if style in ("qwen", "qwen3"):
        if max(map(abs, box)) > 1000:
            return Unusable("coordinates above 1000 are no thousandths")
        if max(map(abs, box)) <= 1 and any(value % 1 for value in box):
            return Unusable("coordinates in shares are no thousandths")
        return [value * side / 1000 for value, side in zip(box, size * 2)]
    if style == "florence2":
        if max(box) > 999:
            return Unusable("locations above 999 are none")
        return [(value + 0.5) * side / 1000 for value, side in zip(box, size * 2)]
    if max(box) > 1:
        return Unusable("coordinates above 1 are no shares of the image")
    return [value * side for value, side in zip(box, size * 2)]


def _cells(first: int, last: int, size: Size) -> Box:
    (y1, x1), (y2, x2) = divmod(first, _SIDE), divmod(last, _SIDE)
    if last >= _SIDE**2 or x2 < x1 or y2 < y1:
        return Unusable("patch indices that are no first and last one")
    edge = (0, 0, 1, 1) if x1 == x2 or y1 == y2 else (0.5,) * 4
    return [(value + more) * side / _SIDE for value, more, side in zip((x1, y1, x2, y2), edge, size * 2)]


def qwen_size(width: int, height: int) -> Size:
    """The (width, height) that Qwen2.5-VL's tool for boxes resizes an image to: as Qwen2-VL's `smart_resize` does."""
    factor, least, most = 28, 56 * 56, 28 * 28 * 1280
    new = [max(factor, round(side / factor) * factor) for side in (width, height)]
    if new[0] * new[1] > most:
        scale = math.sqrt(width * height / most)
        new = [max(factor, math.floor(side / scale / factor) * factor) for side in (width, height)]
    elif new[0] * new[1] < least:
        scale = math.sqrt(least / (width * height))
        new = [math.ceil(side * scale / factor) * factor for side in (width, height)]
    return new[0], new[1]


# JSON -----------------------------------------------------------------------------------------------------------------


def _read_json(text: str, style: str, size: Size) -> Iterator[Marked]:
    for record in _objects_in(text):
        label = record.get("label")
        boxes = [read_box(box) for box in listed_boxes(record.get(_IN_JSON))] or [None]
        yield Marked(
            label.strip() or None if isinstance(label, str) else None,
            [box and _in_pixels(box, style, size) for box in boxes],
        )


def _objects_in(text: str) -> Iterator[dict[str, Any]]:
    """The objects with bbox_2d, or a label that lacks it, of all JSON in a text, between whatever words."""
    decoder, end = json.JSONDecoder(), 0
    for number, match in enumerate(_JSON_START.finditer(text)):
        if number >= _MOST_STARTS:
            return
        if match.start() < end:
            continue
        try:
            value, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        records = value if isinstance(value, list) else [value]
        # Some put the list in an object, {"objects": […]}.
        records += [
            part
            for record in records
            if isinstance(record, dict)
            for own in record.values()
            if isinstance(own, list)
            for part in own
        ]
        yield from (record for record in records if isinstance(record, dict) and {_IN_JSON, "label"} & record.keys())


# Phrases without a mark at their beginning ----------------------------------------------------------------------------

_BEGINS = (
    *("a", "an", "the", "this", "that", "these", "those", "his", "her", "their", "its", "my", "your", "our"),
    *("some", "several", "many", "both", "another", "each", "every"),
    *("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
)
_LINKS = (
    *(
        "with",
        "in",
        "on",
        "at",
        "of",
        "to",
        "by",
        "next",
        "near",
        "behind",
        "beside",
        "under",
        "over",
        "above",
        "below",
    ),
    *("between", "around", "along", "through", "against", "across", "from", "for", "into", "onto", "inside", "outside"),
    *("is", "are", "was", "were", "be", "being", "has", "have", "while", "as", "who", "which", "that", "it", "and"),
    *("or", "there", "where", "toward", "towards", "off", "up", "down", "front", "left", "right", "top"),
)
_SIDES = ("left", "right", "top", "bottom", "front", "back", "middle", "center", "centre", "side", "edge")
_SENTENCE = re.compile(r"[.!?;:\n]+(?:\s+|$)")
# What no phrase ends with: "The dog is at […]", "Its bounding box is […]".
_NO_END = re.compile(
    r"(?:\b(?:is|are|was|were|be|at|in|on|by|of|to|with|and|or|as|for|from)|coordinates?|bounding box(?:es)?)$",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:there\s+(?:is|are)|here\s+(?:is|are)|(?:i|we|you)\s+(?:can\s+)?see|it\s+is|this\s+is)\s+", re.IGNORECASE
)


def _phrase_before(text: str, after_box: bool, is_list: bool) -> str:
    """The phrase that a text ends with, after which boxes come; none if its beginning is in doubt.

    Args:
        after_box: other boxes come before the text.
        is_list: phrases may follow each other without a blank, and are then the whole text.
    """
    pieces = _SENTENCE.split(text)
    piece = pieces[-1].strip(" \t,")
    if not after_box or len(pieces) > 1:
        return _LEAD.sub("", piece, count=1) if _LEAD.match(piece) else piece
    if is_list and text[:1].strip(" ,\n"):
        return piece
    words = piece.split()
    is_joined = bool(words) and words[0].casefold() in ("and", "or")
    words = words[is_joined:]
    if not words:
        return ""
    begin = _begin(words, is_joined)
    if begin is not None:
        return piece.split(None, begin + is_joined)[-1] if begin + is_joined else piece
    first, begins = words[0].casefold(), any(word.casefold() in _BEGINS for word in words)
    is_odd = first in _LINKS or (_may_be_verb(first) and len(words) > 1)
    in_doubt = first in _LINKS or (begins and is_odd) if is_joined else is_odd or begins
    return "" if in_doubt else " ".join(words)


def _begin(words: list[str], is_joined: bool) -> int | None:
    """Where an article or the like is that only prepositions and verbs come before; None if there is no such."""
    number = 0
    while number < len(words):
        word, after = words[number].casefold(), [word.casefold() for word in words[number + 1 : number + 3]]
        if word == "the" and len(after) == 2 and after[0] in _SIDES and after[1] == "of":  # "to the left of a dog"
            number += 3
            continue
        if (word in _BEGINS or word.isdigit()) and not (word == "that" and after[:1] in (["is"], ["are"], ["has"])):
            return number
        if word not in _LINKS and not word.endswith(("ing", "ed")) and (number or is_joined or not _may_be_verb(word)):
            return None
        number += 1
    return None


def _may_be_verb(word: str) -> bool:
    return word.endswith(("s", "ing", "ed"))
