"""Reads JSON: small files whole, those of data sets one record at a time, so that their size does not matter.

Values are decoded by `json`; here is what finds them in a file that is read in pieces. `ijson` refuses NaN and numbers
beyond 64 bits, loses lone surrogates, and does not tell where in the file a record is, as `coco` needs it.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

_CHUNK = 2**24  # characters of a file that are read at a time
_BLANKS = re.compile(r"[ \t\r\n]*")
# An error this close to the end of what was read may be that of a value cut in two: "-Infinity", "\ud83d\ude00".
_LONGEST_TOKEN = 16

Place = tuple[int, int]  # of a record in its file: first byte, and the one after the last


def read_text(path: Path | str) -> str:
    """A text file in UTF-8, with or without a byte order mark; a ValueError names a file that is missing or another."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is {other_text(error)}") from error


def other_text(error: UnicodeDecodeError) -> str:
    """What a file that is not UTF-8 is instead, if its byte order mark says so."""
    is_utf_16 = error.object.startswith((b"\xff\xfe", b"\xfe\xff"))
    return "UTF-16, as PowerShell writes it: save it as UTF-8" if is_utf_16 else f"not UTF-8: {error}"


def read_json(path: Path | str) -> Any:
    """A JSON file; a ValueError names one that is missing, cut off or no JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, or was cut off: {error}") from error


def first_character(path: Path) -> str:
    """The first character of a text file that is not blank; none if there is none."""
    with _reading(path) as reader:
        return reader.peek()


def stream_json_records(path: Path, lines: bool = True) -> Iterator[Any]:
    """The records of a JSON file that is one array, or with `lines` also of JSON Lines; one at a time.

    Raises:
        ValueError: as `read_json`; the message says after how many records, and at which byte.
    """
    return (record for record, _ in stream_json_places(path, lines))


def stream_json_places(path: Path, lines: bool = True) -> Iterator[tuple[Any, Place]]:
    """As `stream_json_records`; each record with where `read_record` finds it again."""
    with _reading(path) as reader:
        first = reader.peek()
        if first == "[":
            for record in reader.elements():
                yield record, (reader.start, reader.offset())
            reader.end()
        elif first == "{" and lines:
            while reader.peek():
                yield reader.value(), (reader.start, reader.offset())
                reader.count += 1
        else:
            expected = "'[' or '{': an array of records or JSON Lines" if lines else "'[': an array of records"
            raise ValueError(f"{path} does not begin with {expected} is expected")


def stream_json_lists(
    path: Path, names: Sequence[str], spare: Callable[[], set[str]] = set
) -> Iterator[tuple[str, Any, Place]]:
    """The records of some lists of a JSON file that is one object, as COCO's: one at a time, in the order of the file.

    All of the lists must be there, once, but for those that `spare`, asked at the end, says are not needed. Yields the
    name of a list, a record, and where `read_record` finds it again.
    """
    listed = f"lists {', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else f"list {names[0]}"
    needed = f"{path} needs the {listed}"
    with _reading(path) as reader:
        if reader.peek() == "[":
            raise ValueError(needed)
        found = set()
        for name in reader.members():
            if name in found:
                raise ValueError(f"{path} has the list {name} twice")
            if reader.peek() != "[":
                if name in names:
                    raise ValueError(needed)
                reader.value()
                continue
            if name in names:
                found.add(name)
            for record in reader.elements():
                if name in found:
                    yield name, record, (reader.start, reader.offset())
        reader.end()
        if not found | spare() >= set(names):
            raise ValueError(needed)


def read_record(file: BinaryIO, place: Place) -> Any:
    """A record that `stream_json_lists` or `stream_json_places` found, from the same file opened for bytes."""
    file.seek(place[0])
    try:
        return json.loads(file.read(place[1] - place[0]))
    except ValueError as error:
        raise ValueError(f"{file.name} has changed while it was read: {error}") from error


@contextmanager
def _reading(path: Path) -> Iterator["_Reader"]:
    reader = None
    try:
        with path.open(
            encoding="utf-8", newline=""
        ) as file:  # byte order mark and line ends as they are, for the places
            reader = _Reader(path, file)
            reader.skip_mark()
            yield reader
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is {other_text(error)}; {reader.count} records were read") from error


class _Reader:
    """What was read of a JSON file and not yet taken from it."""

    def __init__(self, path: Path, file: TextIO):
        self.path, self.file = path, file
        self.text, self.position = "", 0
        self.count = 0  # records that were taken
        self.start = 0  # byte of the file where the last value begins
        self._bytes, self._counted = 0, 0  # bytes of the file before the character `_counted` of the text
        self._decoder = json.JSONDecoder()

    def skip_mark(self) -> None:
        """A byte order mark may stand at the beginning."""
        if self._read_on() and self.text[0] == "\ufeff":
            self.position = 1

    def peek(self) -> str:
        """The next character that is not blank; none at the end of the file."""
        while True:
            self.position = _BLANKS.match(self.text, self.position).end()
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._read_on():
                return ""

    def take(self, characters: str) -> str:
        """The next character that is not blank: one of these."""
        found = self.peek()
        if not found or found not in characters:
            raise self._broken(f"expecting {' or '.join(characters)}")
        self.position += 1
        return found

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        self.start = self.offset()
        while True:
            try:
                value, end = self._decoder.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _LONGEST_TOKEN
                if cut and self._read_on():
                    continue
                self.position = error.pos
                raise self._broken(error.msg) from error
            except ValueError as error:  # Python reads no number of more than 4,300 digits
                raise ValueError(f"{self.path}: record {self.count} has too long a number: {error}") from error
            except RecursionError as error:
                raise ValueError(f"{self.path}: record {self.count} is nested too deep") from error
            # A number may go on in the next chunk, "1.5e" with "-7".
            if end <= len(self.text) - _LONGEST_TOKEN or not self._read_on():
                self.position = end
                return value

    def elements(self) -> Iterator[Any]:
        """Those of an array."""
        for _ in self._items("[", "]"):
            yield self.value()
            self.count += 1

    def members(self) -> Iterator[str]:
        """The names of an object's members; who asks for the next one must have taken the value."""
        for _ in self._items("{", "}"):
            if self.peek() != '"':
                raise self._broken("expecting a name")
            name = self.value()
            self.take(":")
            yield name

    def _items(self, first: str, last: str) -> Iterator[None]:
        self.take(first)
        if self.peek() == last:
            self.take(last)
            return
        while True:
            yield
            if self.take(f",{last}") == last:
                return

    def end(self) -> None:
        """Nothing may follow."""
        if self.peek():
            rest = self.text[self.position :][:40]
            raise ValueError(f"{self.path}: something follows the end, after {self.count} records: {rest!r}")

    def offset(self) -> int:
        """Bytes of the file before the position."""
        self._bytes += len(self.text[self._counted : self.position].encode())
        self._counted = self.position
        return self._bytes

    def _read_on(self) -> bool:
        """Reads more, and forgets what was taken; whether there was more."""
        more = self.file.read(_CHUNK)
        if more:
            self.offset()
            self.text, self.position, self._counted = self.text[self.position :] + more, 0, 0
        return bool(more)

    def _broken(self, problem: str) -> ValueError:
        return ValueError(
            f"{self.path} is not JSON, or was cut off, after {self.count} records: {problem}, at byte {self.offset()}"
        )
