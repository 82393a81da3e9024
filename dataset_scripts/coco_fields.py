"""Fields of COCO's records as people's tools write them: numbers as text, sizes with a point, ids of any kind.

What can mean one thing only is read so; what cannot is None, and whoever asked names the record.
"""

import re
import sys
from typing import Any

_ID_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")
_LONGEST_NUMBER, _LONGEST_ID = 40, 200  # characters
_EXACT = 2**53  # from here on floats leave out whole numbers


def is_number(value: Any) -> bool:
    """Whether `value` is a finite float, or an int that one can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_box(value: Any) -> bool:
    """Whether `value` is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(is_number(number) for number in value)


def read_number(value: Any) -> float | None:
    """A finite number, also one that is written as text ("12.5")."""
    if isinstance(value, str) and len(value) <= _LONGEST_NUMBER and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    return value if is_number(value) else None


def read_whole(value: Any) -> int | None:
    """A whole number, also one that is written as 40.0, "40" or "40.0"."""
    number = read_number(value)
    return int(number) if number is not None and abs(number) < _EXACT and number == int(number) else None


def read_id(value: Any) -> int | str | None:
    """An id: a whole number of 64 bits, or a text. 7, 7.0 and "7" are the same id, "007" and "a7" are texts."""
    if type(value) is int:
        return value if -(2**63) <= value < 2**63 else None
    if isinstance(value, str):
        return int(value) if _ID_NUMBER.fullmatch(value) else value if 0 < len(value) <= _LONGEST_ID else None
    return read_whole(value) if type(value) is float else None


def read_box(value: Any) -> list[float] | None:
    """Four finite numbers, also such that are written as text."""
    if is_box(value):
        return value
    numbers = [read_number(number) for number in value] if isinstance(value, list) and len(value) == 4 else [None]
    return None if None in numbers else numbers
