"""Conversations about images whose text has phrases with boxes, as models that speak of places are trained on.

A record is `conversations`, [{"from", "value"}], as of LLaVA and Qwen-VL; `messages`, [{"role", "content"}], as of
OpenAI, with a text or a list of parts; or `prefix` and `suffix`, as of Florence-2's and PaliGemma's sets. Its image is
`image`, the one of `images`, between `<img>` and `</img>` in the text, or a part `image` or `image_url`.

How boxes are written is found out, where all texts agree, or said by `style`; see `chat_text`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .builder import DrawnSplitsConfig, Unusable, unusable_if
from .chat_text import JSON_STYLES, STYLES, Marked, marks_beginnings, read_text, signs_in
from .coco_format import SIZEABLE
from .features import PhraseFields as PhraseFields
from .json_files import stream_json_records as stream_json_records
from .options import ChatOptions
from .phrase_files import PhraseFiles, Region

_IMAGE = re.compile(r"<img>\s*([^<]+?)\s*</img>")
_ANSWERING = ("gpt", "assistant", "model", "bot", "chatgpt")
_POINTING = re.compile(
    r"it|this|that|these|those|they|them|he|him|she|her|here|there|one|i|me|you|we|us|"
    r"(?:this|that|the) (?:region|area|box)",
    re.IGNORECASE,
)


@dataclass
class ChatConfig(ChatOptions, DrawnSplitsConfig):
    """The options, checked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.style not in (None, *STYLES):
            raise ValueError(f"style: {self.style!r} is none of {', '.join(STYLES)}")


class Chat(PhraseFiles):
    """`datasets` builder of phrases and boxes in conversations; rows as in `features.FEATURES`.

    A phrase that a question marks without a box has those that the answer has without a phrase. Phrases of an image
    that are called the same are one row, but for those of sentences that are kept. Of JSON, Florence-2 and Shikra only
    answers are read. Dropped and counted are records without an image or with several, texts without phrases, boxes
    without a phrase or in other units, pronouns, phrases one of whose boxes is lost.

    Raises a `ValueError`: no text has boxes as `style` writes them; texts are of several styles, or JSON, whose numbers
    may be of three kinds, and `style` does not say which; more than a quarter of the boxes are in other units.
    """

    BUILDER_CONFIG_CLASS = ChatConfig
    keys = ("conversations", "messages", "suffix")
    source = "Conversations with boxes in their text that the builder was given."

    def look(self) -> None:
        signs: Counter[str] = Counter()
        for file in self.files:
            for listed in self.records(file):
                found = ((is_answer, sign) for is_answer, text in _turns(listed.record) for sign in signs_in(text))
                signs.update({sign for is_answer, sign in found if is_answer or marks_beginnings(sign)})
        files = f"{', '.join(self.files)} in {self.config.data_dir}"
        self.style = self.config.style or _told_by(signs, files)
        sign = "bbox_2d" if self.style in JSON_STYLES else self.style
        if sign not in signs:
            found = ", ".join(signs) or "none of any style"
            raise ValueError(f"{files}: no text has boxes as of style {self.style}; found: {found}")
        self.report.kept[f"records whose text has boxes, read as of style {self.style}"] = signs[sign]
        for file in self.files:
            self._check(file)

    def _check(self, file: str) -> None:
        count, wrong = 0, []
        for listed in self.records(file):
            marks = (mark for _, own in self._marks(listed.record, (1000, 1000)) for mark in own)
            for box in (box for mark in marks for box in mark.boxes or ()):
                count += 1
                if isinstance(box, Unusable):
                    wrong.append(f"record {listed.number}: {box}")
        if len(wrong) > SIZEABLE * count:
            raise ValueError(
                f"{file}: {len(wrong):,} of {count:,} boxes are none of style {self.style} ({'; '.join(wrong[:3])})"
            )

    def image_name(self, record: dict[str, Any]) -> str:
        given = [part for key in ("image", "images") for part in _listed(record.get(key))]
        for turn in _list_of_turns(record):
            content = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
            if isinstance(content, str):
                given += _IMAGE.findall(content)
            given += [part for part in _listed(content) if isinstance(part, dict) and part.get("type") != "text"]
        names = {name for part in given if (name := _name_of(part))}
        unusable_if(not names, "records without image")
        unusable_if(len(names) > 1, "records with several images: nobody knows which one boxes are of")
        return names.pop().removeprefix("file://")

    def regions(self, record: dict[str, Any], size: tuple[int, int] | None, name: str) -> Iterable[Region]:
        unusable_if(not _has_turns(record), "without a list of turns")
        unusable_if(size is None, "of an image whose size is not known: give images_dir")
        asked: list[str] = []  # phrases that the question before has without boxes
        count = 0
        for is_answer, marks in self._marks(record, size):
            count += len(marks)
            if not is_answer:
                asked = [mark.phrase for mark in marks if mark.boxes is None and mark.phrase]
            for mark in marks:
                if mark.boxes is None:
                    continue
                phrase = asked[0] if mark.phrase is None and is_answer and len(asked) == 1 else mark.phrase
                if phrase is None:
                    self.drop("boxes: without a phrase whose beginning and end can be told", name, len(mark.boxes))
                elif _POINTING.fullmatch(phrase):
                    self.report.dropped["phrases: that only point, as «it» and «this» do"] += 1
                else:
                    yield Region(phrase, mark.boxes, mark.caption, mark.caption_span)
        if not count:
            self.report.dropped["records: without a phrase and box in their text"] += 1

    def _marks(self, record: dict[str, Any], size: tuple[int, int]) -> Iterator[tuple[bool, list[Marked]]]:
        """The phrases of each turn that is read, and whether it is an answer."""
        for is_answer, text in _turns(record):
            if is_answer or marks_beginnings(self.style):
                yield is_answer, list(read_text(text, self.style, size))


def _told_by(signs: Counter[str], files: str) -> str:
    """The one style that signs are of."""
    counts = ", ".join(f"{sign} in {count:,} records" for sign, count in signs.most_common())
    if not signs:
        raise ValueError(f"{files}: no answer has boxes in its text as any of {', '.join(STYLES)} would write them")
    if len(signs) > 1:
        raise ValueError(f"{files}: boxes are written in several ways ({counts}): say which to read (--style)")
    (sign,) = signs
    if sign != "bbox_2d":
        return sign
    raise ValueError(
        f"{files}: nobody can tell what the numbers of bbox_2d are ({counts}): say --style qwen2.5 if they are pixels "
        "of the image's file, qwen2.5-resized if they are pixels of the image as Qwen2.5-VL's own tool resizes it, "
        "qwen3 if they are thousandths of its sides"
    )


def _list_of_turns(record: dict[str, Any]) -> list[Any]:
    turns = record.get("conversations", record.get("messages"))
    return turns if isinstance(turns, list) else []


def _has_turns(record: dict[str, Any]) -> bool:
    return bool(_list_of_turns(record)) or isinstance(record.get("suffix"), str)


def _turns(record: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    """Whether a turn is an answer, and its text."""
    if isinstance(record.get("suffix"), str):
        yield True, record["suffix"]
    for turn in _list_of_turns(record):
        if not isinstance(turn, dict):
            continue
        role, content = str(turn.get("from", turn.get("role"))).lower(), turn.get("value", turn.get("content"))
        parts = content if isinstance(content, list) else [{"text": content}]
        texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
        yield role in _ANSWERING, "\n".join(texts)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _name_of(image: Any) -> str | None:
    """The name in whatever a record has for an image: a text, or an object with `path`, `image`, `url`, `image_url`."""
    for _ in range(3):
        if isinstance(image, dict):
            image = next((image[key] for key in ("path", "image", "image_url", "url") if image.get(key)), None)
    return image if isinstance(image, str) and image else None
