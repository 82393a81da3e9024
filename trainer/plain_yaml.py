"""Reads YAML of plain settings: nothing in a small file makes it slow, large or of another type than it looks."""

from pathlib import Path
from typing import Any

import yaml

_MAX_BYTES = 2**17  # of settings; the reader takes a second for as many
_MAX_NESTING = 32


class _PlainLoader(yaml.SafeLoader):
    """The safe loader less what no settings need: references, which unfold to any size, and types by name (!!set)."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise yaml.composer.ComposerError(None, None, "references (& and *) are not read", event.start_mark)
        if event.tag is not None:
            raise yaml.composer.ComposerError(None, None, "types by name (!) are not read", event.start_mark)
        if self.depth == _MAX_NESTING:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {_MAX_NESTING}", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_plain_yaml(path: Path) -> Any:
    """The one value of a YAML file: mappings, lists, texts, numbers, dates, true, false and null.

    Raises:
        ValueError: the file is missing, has more than 128 KiB, is no UTF-8 or no YAML, is nested deeper than 32
            levels, has references or names types, or a number or date that is none; the message names it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise ValueError(f"{path} has more than {_MAX_BYTES:,} bytes: no settings are so long")
    try:
        return yaml.load(data.decode("utf-8"), _PlainLoader)
    # The latter of values that look like numbers and dates: 0b_, 2001-99-99, ten thousand digits.
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
