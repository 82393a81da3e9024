"""Texts that stand for numbers or lists, as tables hold what they have no type for."""

import ast
import json
import re
from typing import Any


def is_list(text: Any) -> bool:
    """Whether it can be nothing but a list of texts, or of lists of them."""
    pattern = r"\s*\[([\[\s]*['\"].*|.*['\"][\]\s]*)\]\s*"
    return isinstance(text, str) and re.fullmatch(pattern, text, re.DOTALL) is not None


def as_numbers(value: Any, is_bare: bool = False) -> Any:
    """The same with texts as what they stand for; blank ones are None.

    Args: is_bare: a list that is the whole text may lack its brackets. Elsewhere 20,5 is no list, but no number either.

    Raises ValueError: a text stands for nothing.
    """
    if isinstance(value, list):
        return [as_numbers(each) for each in value]
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    found = loaded(value)
    if isinstance(found, list) and not (is_bare or value.lstrip().startswith(("[", "("))):
        raise ValueError(f"{value!r} is no number")
    return as_numbers(found, is_bare)


def as_texts(value: Any) -> Any:
    """The same with lists in place of texts that stand for them, and numbers as they are written; blank texts are None.

    Raises ValueError: something else is in such a list.
    """
    if isinstance(value, list):
        return [as_texts(each) for each in value]
    return spelled(loaded(value)) if value and value.strip() else None


def spelled(value: Any) -> Any:
    if isinstance(value, list):
        return [spelled(each) for each in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, str | None):
        raise ValueError(f"{value!r} is no text")
    return value


def loaded(text: str) -> Any:
    """What JSON or Python writes so, tuples as lists; ValueError: nothing."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # Python's texts, and what lacks its brackets
        pass
    if re.search(r"['\"]\s+['\"]", text):  # of NumPy, which Python would take for one text
        raise ValueError("there are no commas between the texts")
    try:
        return as_lists(ast.literal_eval(text.strip()))
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r:.80} is neither JSON nor a list as Python writes it") from error


def as_lists(value: Any) -> Any:
    return [as_lists(each) for each in value] if isinstance(value, list | tuple) else value


def nesting(value: Any) -> int | None:
    """How many lists are around what is in it; None where nothing is."""
    if not isinstance(value, list):
        return None if value is None else 0
    found = [depth for each in value if (depth := nesting(each)) is not None]
    return 1 + max(found) if found else None
