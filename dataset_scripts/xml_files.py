"""Reads XML that nobody vouches for: no entity is defined in it, nothing outside of it is read."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import cast

_CHUNK = 2**20  # bytes


def read_xml(path: str) -> ET.Element:
    """The root of a small XML file; a ValueError names one that is missing, cut off, no XML, or defines entities."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        if b"<!ENTITY" in data:  # of which a few lines can stand for gigabytes
            raise ValueError(f"{path} defines entities, which annotations need not")
        return ET.fromstring(data)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (ET.ParseError, LookupError) as error:  # the latter of an encoding that nobody knows
        raise ValueError(f"{path} is not XML, or was cut off: {error}") from error


def stream_xml(path: Path, tags: tuple[str, ...]) -> Iterator[ET.Element]:
    """The root as far as it begins, then its children of some tags, one at a time; errors as of `read_xml`."""
    parser, head, root = ET.XMLPullParser(("start", "end")), b"", None
    depth = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                head = b"" if root is not None else head + chunk
                if b"<!ENTITY" in head:
                    raise ValueError(f"{path} defines entities, which annotations need not")
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
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (ET.ParseError, LookupError) as error:
        raise ValueError(f"{path} is not XML, or was cut off: {error}") from error
