"""Changes to inputs that keep their structure: a JSON value stays JSON, a pickle a pickle, a checkpoint a zip file."""

import copy
import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from dataset_scripts.safe_pickle import PlainUnpickler, Refused

# Of the standard reader, for bytes that make no sense.
NO_PICKLE = (Refused, pickle.PickleError, EOFError, LookupError, ValueError, TypeError, AttributeError, struct.error)
NO_PICKLE += (AssertionError, OverflowError)
NO_ZIP = zipfile.BadZipFile, ValueError, NotImplementedError, OSError, RuntimeError, EOFError, LookupError, zlib.error

Bytes = Callable[[bytes], bytes]  # changes anything; the fuzzer's own mutator, or `damaged`

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 0.5, -0.0, 1e308, -1e308, 1e-320, float("nan"), float("inf"), -float("inf")),
    *(2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**400, 10**4299),
    *("", " ", "\n", "0", "-1", "1e9", "null", "a", "\0", "\ud800", "é", "\u2028", "￿", "🎈", "..", "/", "/etc/passwd"),
    *("../../etc/passwd", "a/b", "x" * 300, "%s", "{}", "[", "COCO_train2014_000000000001.jpg", "1.jpg", "1_2.jpg"),
    *([], {}, [[]], [{}], {"": None}, [None], [0, 0, 0, 0], [1, 2, 3, 4], [[1, 2, 3, 4]], [1, 1, 5, 1, 5, 5]),
    *({"size": [6, 8], "counts": [0, 48]}, {"size": [6, 8], "counts": "0`1"}, {"size": [6, 8], "counts": [48]}),
]


def damaged(data: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, inserted, removed or repeated."""
    data = bytearray(data or b"\0")
    for _ in range(draw.randint(1, 4)):
        at, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        kind = draw.randrange(5)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] = draw.randrange(256)
        elif kind == 1:
            data[at:at] = draw.randbytes(draw.randint(1, 4))
        elif kind == 2:
            del data[at : min(end, at + 64)]
        elif kind == 3:
            data[at:at] = data[at : min(end, at + 256)]
        elif data:
            data[min(at, len(data) - 1)] ^= 1 << draw.randrange(8)
    return bytes(data)


def mutated_value(value: Any, draw: random.Random) -> Any:
    """A tree of lists, dictionaries and scalars with one to three of its nodes changed."""
    root = [value]
    for _ in range(draw.randint(1, 3)):
        if places := _places(root):
            _change(*draw.choice(places), places, draw)
    return root[0] if root else None


def _places(root: list[Any], limit: int = 2000) -> list[tuple[Any, Any]]:
    """(container, key) of every node, the shallow ones first."""
    found: list[tuple[Any, Any]] = []
    level: list[Any] = [root]
    while level and len(found) < limit:
        below = []
        for container in level:
            keys = range(len(container)) if isinstance(container, list) else list(container)
            for key in keys:
                found.append((container, key))
                if isinstance(container[key], list | dict):
                    below.append(container[key])
        level = below
    return found


def _change(container: Any, key: Any, places: list[tuple[Any, Any]], draw: random.Random) -> None:
    value = container[key]
    kind = draw.randrange(9)
    if kind <= 2:
        container[key] = _copy(draw.choice(ODD_VALUES))
    elif kind == 3:
        other, place = draw.choice(places)
        try:
            container[key] = _copy(other[place])
        except (KeyError, IndexError):  # an earlier change took it away
            container[key] = None
    elif kind == 4:
        del container[key]
    elif kind == 5 and isinstance(container, list):
        container[key:key] = [_copy(value)] * draw.choice([1, 1, 2, 9])
    elif kind == 5:
        container[draw.choice(["", "id", "x", f"{key}_", "\ud800", "0"])] = _copy(value)
    elif kind == 6:
        container[key] = draw.choice([[value], {"": value}, [[value]], {"id": value}])
    elif kind == 7 and isinstance(value, int | float):
        container[key] = _other_number(value, draw)
    elif isinstance(value, str):
        at = draw.randrange(len(value) + 1)
        container[key] = (
            value[:at] + draw.choice([*map(str, ODD_VALUES[-40:-11]), value, "[", "]", "#"])[:99] + value[at:]
        )
    else:
        container[key] = str(value)[:99]


def _other_number(value: float, draw: random.Random) -> float:
    changes = [lambda v: v + 1, lambda v: v - 1, lambda v: -v, lambda v: v * 1000, lambda v: v / 3, float, str]
    try:
        return draw.choice(changes)(value)
    except (OverflowError, ValueError):
        return 0


def _copy(value: Any) -> Any:
    return copy.deepcopy(value)


def mutate_json(data: bytes, draw: random.Random, change: Bytes) -> bytes:
    try:
        value = json.loads(data)
        value = mutated_value(value, draw)
        text = json.dumps(value, ensure_ascii=draw.random() < 0.5, indent=draw.choice([None, None, None, 1]))
        return text.encode(errors="surrogatepass")
    except (ValueError, RecursionError):
        return change(data)


def mutate_pickle(data: bytes, draw: random.Random, change: Bytes) -> bytes:
    try:
        value = PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
        return pickle.dumps(mutated_value(value, draw), draw.randrange(6))
    except (*NO_PICKLE, RecursionError):
        return change(data)


def mutate_zip(data: bytes, draw: random.Random, change: Bytes) -> bytes:
    """One file in the archive changed; the archive made anew, so that its sums are right."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = {info.filename: archive.read(info) for info in archive.infolist() if info.file_size < 2**20}
    except (*NO_ZIP, struct.error):
        return change(data)
    if not files:
        return change(data)
    name = draw.choice([*files, *[name for name in files if name.endswith(".pkl")] * 8])
    files[name] = change(files[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])) as archive:
        for file, content in files.items():
            archive.writestr(zipfile.ZipInfo(file), content)
    return buffer.getvalue()


def mutate_safetensors(data: bytes, draw: random.Random, change: Bytes) -> bytes:
    """The header changed as JSON, its length right, or nearly so."""
    length = int.from_bytes(data[:8], "little")
    if not 0 < length < len(data):
        return change(data)
    header = mutate_json(data[8 : 8 + length], draw, change)
    stated = len(header) if draw.random() < 0.9 else draw.choice([0, 1, len(header) + 1, 2**31, 2**60, 2**64 - 1])
    return stated.to_bytes(8, "little") + header + data[8 + length :]
