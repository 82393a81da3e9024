"""Reads XML that nobody vouches for: no entity is defined in it, nothing outside of it is read."""

import codecs
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

_CHUNK = 2**20  # characters
_BEGINNINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_BEGINNINGS |= {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030"}  # what files are in that say so


def read_xml(path: str) -> ET.Element:
    """The root of a small XML file; a ValueError names one that is missing, cut off, no XML, or defines entities; its
    cause is a UnicodeError where the file is in another encoding than it says.
    """
    with _opened(path) as file:
        return ET.fromstring(_checked(path, file.read()))


def stream_xml(path: Path, tags: tuple[str, ...]) -> Iterator[ET.Element]:
    """The root as far as it begins, then its children of some tags, one at a time; errors as of `read_xml`."""
    parser, head, root = ET.XMLPullParser(("start", "end")), "", None
    depth = 0
    with _opened(path) as file:
        while chunk := file.read(_CHUNK):
            head = "" if root is not None else _checked(path, head + chunk)
            parser.feed(chunk)
            for event, element in cast(Iterator[tuple[str, ET.Element]], parser.read_events()):
                depth += 1 if event == "start" else -1
                if root is None:
                    root = element
                    yield root
                elif event == "end" and depth == 1:
                    if element.tag in tags:
                        yield element
                    root.clear()
        parser.close()


def _checked(path: str | Path, text: str) -> str:
    if "<!ENTITY" in text:  # of which a few lines can stand for gigabytes
        raise ValueError(f"{path} defines entities, which annotations need not")
    return text


@contextmanager
def _opened(path: str | Path) -> Iterator[TextIO]:
    """A file as text, of which expat takes any encoding; what keeps it from being read, as a ValueError."""
    try:
        with open(path, "rb") as file:
            encoding = _encoding(file.read(200))
        with open(path, encoding=encoding) as text:
            yield text
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except UnicodeError as error:
        told = f"{path} is not in the encoding that it says, or in UTF-8 if it says none"
        raise ValueError(f"{told}: save it as UTF-8 ({error})") from error
    except (ET.ParseError, LookupError) as error:  # the latter of an encoding that nobody knows
        raise ValueError(f"{path} is not XML, or was cut off: {error}") from error


def _encoding(head: bytes) -> str:
    """That of a file, by how it begins."""
    for mark, name in _BEGINNINGS.items():
        if head.startswith(mark):
            return name
    said = re.match(rb"""<\?xml[^>]*\sencoding\s*=\s*["']([\w.:-]+)""", head)
    name = codecs.lookup(said[1].decode()).name if said else "utf-8"
    if "<?xml".encode(name) != b"<?xml":
        raise UnicodeError(f"it says {name}")
    return _WIDER.get(name, name)
