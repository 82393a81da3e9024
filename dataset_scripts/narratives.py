"""Localized Narratives: what people said about an image while their mouse went over it, clause by clause.

A record is one narrative, {"dataset_id", "image_id", "caption", "timed_caption", "traces"}: words with the time they
were said at, and where the mouse was at which time, in shares of the image's sides. A row is a clause of the caption,
what stands between two marks of punctuation, without words that only lead in ("In this image we can see"). Its box is
around the places where the mouse was from the clause's first word to its last.

Such a box is looser than a drawn one, and at times late: use these rows to train, not to evaluate. The trace itself is
not kept: people circle what they speak of, and a stroke along its edge teaches to point there (`docs/regions.md`).

Images are COCO's (`000000137576.jpg`), Open Images', Flickr30k's or ADE20K's.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .builder import DrawnSplitsConfig, Unusable, unusable_if
from .coco_format import read_number
from .features import PhraseFields as PhraseFields
from .json_files import stream_json_records as stream_json_records
from .options import NarrativesOptions
from .phrase_files import PUNCTUATION, PhraseFiles, Region

_IMAGE = r"(?:image|picture|photo|photograph)"
_SIDE = (
    r"(?:background|foreground|cent(?:er|re)|middle|front|back|top|bottom|(?:left|right)(?:\s+(?:hand|side))*|sides?)"
)
_LEAD_IN = re.compile(
    rf"(?:and\s+)?(?:(?:in|on|at)\s+(?:this|the)\s+{_IMAGE}\s+)?"
    rf"(?:(?:in|on|at|to|towards)\s+the\s+{_SIDE}(?:\s+of\s+(?:the|this)\s+{_IMAGE})?\s+)?"
    r"(?:(?:there\s+(?:is|are)|(?:we|i|you|one)\s+(?:can\s+)?(?:also\s+)?(?:see|observe|find)|this\s+is|it\s+is)\s+)?",
    re.IGNORECASE,
)


@dataclass
class NarrativesConfig(NarrativesOptions, DrawnSplitsConfig):
    """The options, checked."""


class Narratives(PhraseFiles):
    """`datasets` builder of Localized Narratives; rows as in `features.FEATURES`.

    Dropped and counted are narratives whose timed words are not the caption's, clauses without a trace of an area in
    the image, and clauses that only lead in.
    """

    BUILDER_CONFIG_CLASS = NarrativesConfig
    keys = ("timed_caption",)
    source = "Localized Narratives (https://google.github.io/localized-narratives, CC BY 4.0)."

    def image_name(self, record: dict[str, Any]) -> str:
        image = record.get("image_id")
        unusable_if(not isinstance(image, str | int) or image == "", "records without image (image_id)")
        is_coco = "coco" in str(record.get("dataset_id")).lower() and str(image).isdigit()
        return f"{image:0>12}.jpg" if is_coco else f"{image}.jpg"

    def regions(self, record: dict[str, Any], size: tuple[int, int] | None, name: str) -> Iterable[Region]:
        caption, points = record.get("caption"), _points(record.get("traces"))
        unusable_if(not isinstance(caption, str) or not caption.strip(), "without a caption")
        unusable_if(points is None, "whose traces are no lists of points {x, y, t}")
        unusable_if(size is None, "of an image whose size is not known: give images_dir")
        words, times = caption.split(), _times(caption, record.get("timed_caption"))
        for first, end in _clauses(words):
            spoken = " ".join(word.strip(PUNCTUATION) for word in words[first:end])
            first += len(_LEAD_IN.match(f"{spoken} ")[0].split())
            own = [times[number] for number in range(first, end) if number in times]
            if not own:
                self.report.dropped["clauses: that only lead in, as «In this image» does"] += 1
                continue
            phrase = " ".join(words[first:end]).strip(PUNCTUATION)
            box = _box(points, min(start for start, _ in own), max(stop for _, stop in own), size)
            yield Region(phrase, [box], " ".join(words), (first, end))


def _times(caption: str, timed: Any) -> dict[int, tuple[float, float]]:
    """When the words of a caption are said, by their number; punctuation by itself is none."""
    said: list[tuple[str, tuple[float, float]]] = []
    unusable_if(not isinstance(timed, list), "without timed words (timed_caption)")
    for part in timed:
        fields = part if isinstance(part, dict) else {}
        utterance = fields.get("utterance")
        start, stop = (read_number(fields.get(key)) for key in ("start_time", "end_time"))
        unusable_if(not isinstance(utterance, str) or start is None or stop is None, "with words without a time")
        said += [(plain, (start, stop)) for word in utterance.split() if (plain := _plain(word))]
    numbers = [number for number, word in enumerate(caption.split()) if _plain(word)]
    is_same = [_plain(word) for word in caption.split() if _plain(word)] == [word for word, _ in said]
    unusable_if(not is_same, "whose timed words are not those of the caption")
    return {number: time for number, (_, time) in zip(numbers, said)}


def _plain(word: str) -> str:
    return "".join(filter(str.isalnum, word)).casefold()


def _clauses(words: list[str]) -> Iterable[tuple[int, int]]:
    """(first, end) of the words between marks of punctuation."""
    first = 0
    for number, word in enumerate(words):
        if word[-1] in PUNCTUATION or number == len(words) - 1:
            yield first, number + 1
            first = number + 1


def _points(traces: Any) -> list[list[float]] | None:
    """All points of the traces, (t, x, y); None if one is none."""
    if not isinstance(traces, list) or not all(isinstance(trace, list) for trace in traces):
        return None
    points = [
        [read_number(point.get(key)) for key in "txy"] for trace in traces for point in trace if isinstance(point, dict)
    ]
    return None if any(None in point for point in points) else points


def _box(points: list[list[float]], start: float, stop: float, size: tuple[int, int]) -> list[float] | Unusable:
    """Around the places where the mouse was; it is followed a little beyond the image, and cut to it."""
    own = [(min(max(x, 0), 1) * size[0], min(max(y, 0), 1) * size[1]) for t, x, y in points if start <= t <= stop]
    if not own:
        return Unusable("no trace at the time of the phrase")
    xs, ys = zip(*own)
    return [min(xs), min(ys), max(xs), max(ys)]
