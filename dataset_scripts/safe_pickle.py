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

# The instructions that build plain values, and three that name a function or class, which is refused by that name.
_ADMITTED = """
    PROTO FRAME STOP MARK POP POP_MARK DUP PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS
    GLOBAL STACK_GLOBAL INST
""".split()  # noqa: SIM905
_INSTRUCTIONS = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class _Refused(Exception):
    """What in the pickle is not plain."""


def _refuse_instruction(name: str) -> Callable[["_PlainUnpickler"], NoReturn]:
    def refuse(unpickler: "_PlainUnpickler") -> NoReturn:
        raise _Refused(f"the instruction {name}")

    return refuse


def _bounded(load: Callable[["_PlainUnpickler"], None]) -> Callable[["_PlainUnpickler"], None]:
    """An instruction of whole numbers, less those whose digits would fill the messages, or are too many to write."""

    def load_bounded(unpickler: "_PlainUnpickler") -> None:
        load(unpickler)
        if unpickler.stack[-1].bit_length() > _MAX_BITS:
            raise _Refused(f"a whole number of more than {_MAX_BITS} bits")

    return load_bounded


class _PlainUnpickler(pickle._Unpickler):
    """Python's own reader, in Python, less its instructions that import or call.

    Not the one in C, whose instructions are fixed and where five bytes can ask for 64 GiB of memory.
    """

    dispatch = {code: _refuse_instruction(name) for code, name in _INSTRUCTIONS.items()} | {
        code: pickle._Unpickler.dispatch[code] for code, name in _INSTRUCTIONS.items() if name in _ADMITTED
    }

    def find_class(self, module: str, name: str) -> NoReturn:
        raise _Refused(f"{module}.{name}")

    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_dict()

    def _check_keys(self, keys: list[Any]) -> None:
        # Tuples within tuples take time to hash that doubles with each level.
        if not all(type(key) in _KEYS for key in keys):
            raise _Refused("a dictionary's key that is neither text nor a number")

    dispatch |= {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems, pickle.DICT[0]: load_dict}
    dispatch |= {
        code[0]: _bounded(pickle._Unpickler.dispatch[code[0]])
        for code in (pickle.INT, pickle.LONG, pickle.LONG1, pickle.LONG4)
    }


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
        value = _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
        _check_nesting(value, len(data))
    except _Refused as refused:
        raise ValueError(
            f"{path} is not read: it asks for {refused}, and only dictionaries, lists, tuples, text, bytes and numbers "
            "are admitted, since anything else in a pickle can run code. If you trust the file, load it yourself, "
            "turn what it holds into those (numpy's numbers into Python's) and pickle that."
        ) from None
    # What the standard reader raises on bytes that make no sense.
    except (
        pickle.UnpicklingError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        AssertionError,
        struct.error,
    ) as error:
        raise ValueError(f"{path} is no pickle, or was cut off ({type(error).__name__}: {error})") from error
    return value


def _check_nesting(value: Any, limit: int) -> None:
    """Refuses what is nested too deep or holds itself, and what unfolds to more than `limit` containers."""
    level, seen = [container for container in [value] if isinstance(container, (dict, list, tuple))], 0
    for _ in range(_MAX_NESTING):
        below = []
        for container in level:
            children = container.values() if isinstance(container, dict) else container
            found = [child for child in children if isinstance(child, (dict, list, tuple))]
            seen += len(found)
            if seen > limit:
                raise _Refused(f"more containers than its {limit:,} bytes can hold, one within the other")
            below += found
        if not below:
            return
        level = below
    raise _Refused(f"containers nested deeper than {_MAX_NESTING} levels")
