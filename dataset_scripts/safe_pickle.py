"""Reads a pickle of plain values without trusting it.

A pickle is a program: an ordinary reader runs whatever functions it names. The reader here knows only the instructions
that build plain values, so that there is nothing it could run, and it bounds what a small file can make it do.
"""

import io
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

_MAX_BYTES = 2**28  # what is built of a byte takes up to 80
_MAX_NESTING = 32
_MAX_BITS = 128
_KEYS = (str, bytes, int, float, bool, type(None))
# What the standard reader raises on bytes that make no sense.
NO_PICKLE = (pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError)
NO_PICKLE += (OverflowError, AssertionError, struct.error)

# The instructions that build plain values, and three that name a function or class, which is refused by that name.
_ADMITTED = """
    PROTO FRAME STOP MARK POP POP_MARK DUP PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS
    GLOBAL STACK_GLOBAL INST
""".split()  # noqa: SIM905
_NUMBERS = "INT", "LONG", "LONG1", "LONG4"


class Refused(Exception):
    """What in the pickle is not plain."""


def _instruction(name: str, load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Python's own function for an instruction, or one that refuses it."""

    def refuse(unpickler: Any) -> NoReturn:
        raise Refused(f"the instruction {name}")

    def load_number(unpickler: Any) -> None:
        load(unpickler)
        if unpickler.stack[-1].bit_length() > _MAX_BITS:  # too many digits for messages
            raise Refused(f"a whole number of more than {_MAX_BITS} bits")

    def load_items(unpickler: Any) -> None:
        keys = unpickler.stack[-2:-1] if name == "SETITEM" else unpickler.stack[::2]
        if not all(type(key) in _KEYS for key in keys):  # to hash tuples in tuples takes 2 ** depth steps
            raise Refused("a dictionary's key that is neither text nor a number")
        load(unpickler)

    if name not in _ADMITTED:
        return refuse
    return load_number if name in _NUMBERS else load_items if name in ("DICT", "SETITEM", "SETITEMS") else load


class PlainUnpickler(pickle._Unpickler):
    """Python's own reader, in Python, less its instructions that import or call.

    Not the one in C, whose instructions are fixed and where five bytes can ask for 64 GiB of memory.
    """

    dispatch = {
        ord(op.code): _instruction(op.name, pickle._Unpickler.dispatch[ord(op.code)]) for op in pickletools.opcodes
    }

    def find_class(self, module: str, name: str) -> NoReturn:
        raise Refused(f"{module}.{name}")


def load_plain_pickle(path: Path) -> Any:
    """Reads a pickle that holds dictionaries, lists, tuples, text, bytes, numbers, True, False and None alone.

    Python 2's pickles too; the text of theirs that is not Unicode is read as Latin-1. Nothing is imported or called.

    Raises:
        ValueError: There is no such file, it has more than 256 MiB, it is no pickle or was cut off, it holds something
            else, or a whole number of more than 128 bits, or it is nested deeper than 32 levels. The message names the
            file, and what it asks for.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(f"{path} has {size:,} bytes: of a pickle not more than {_MAX_BYTES:,} are read")
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    try:
        value = PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
        _check_nesting(value, len(data))
    except Refused as refused:
        raise ValueError(
            f"{path} is not read: it asks for {refused}, and only dictionaries, lists, tuples, text, bytes and numbers "
            "are admitted, since anything else in a pickle can run code. If you trust the file, load it yourself, "
            "turn what it holds into those (numpy's numbers into Python's) and pickle that."
        ) from None
    except NO_PICKLE as error:
        raise ValueError(f"{path} is no pickle, or was cut off ({type(error).__name__}: {error})") from error
    return value


def _check_nesting(value: Any, limit: int) -> None:
    """Refuses what is nested too deep or holds itself, and what unfolds to more than `limit` containers."""
    level, seen = [value], 0
    for _ in range(_MAX_NESTING + 1):
        level = [container for container in level if isinstance(container, dict | list | tuple)]
        seen += len(level)
        if seen > limit + 1:
            raise Refused(f"more containers than its {limit:,} bytes can hold, one within the other")
        if not level:
            return
        level = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
    raise Refused(f"containers nested deeper than {_MAX_NESTING} levels")
