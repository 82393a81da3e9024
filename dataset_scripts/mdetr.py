"""Phrases of MDETR's and GoldG's annotation files, which look like COCO's and say something else.

An image has a `caption`, and each of its annotations `tokens_positive`, [[start, end], …] in characters of the caption:
these words, not the category ("object"), are what its box shows. In the files of the RefCOCO sets the caption is an
expression for the one box, and `tokens_positive` marks its noun only.
"""

from typing import Any

from .sources import Unusable

_EXPRESSIONS = ("refcoco", "refcoco+", "refcocog")  # as `dataset_name`


def phrase_of(caption: str, dataset_name: Any, tokens: Any) -> tuple[str, tuple[int, int] | None]:
    """An annotation's phrase, and which words of the caption it is: (first, end), or None where it is not one piece.

    Args:
        dataset_name, tokens: the image's `dataset_name` and the annotation's `tokens_positive`.

    Raises:
        Unusable: `tokens` are no places in the caption, or there is no word.
    """
    if dataset_name in _EXPRESSIONS:
        tokens = [[0, len(caption)]]
    if not isinstance(tokens, list) or not tokens or not all(_is_place(token, caption) for token in tokens):
        raise Unusable("tokens_positive are no places in the caption")
    words = " ".join(caption[start:end] for start, end in tokens).split()
    if not words:
        raise Unusable("tokens_positive without a word")
    first = len(caption[: tokens[0][0]].split())
    end = first + len(words)
    return " ".join(words), (first, end) if caption.split()[first:end] == words else None


def _is_place(token: Any, caption: str) -> bool:
    return (
        isinstance(token, list)
        and len(token) == 2
        and all(type(place) is int for place in token)
        and 0 <= token[0] < token[1] <= len(caption)
    )
