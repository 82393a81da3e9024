"""Which file of a checkpoint is damaged, where a library's error does not say so."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open


@contextmanager
def naming_damage(*folders: str | Path) -> Iterator[None]:
    """
    Raises:
        ValueError: transformers failed in here on a JSON or safetensors file of these folders, which the message names;
            or on a configuration that no model has. Other errors come through as they are.
    """
    try:
        yield
    except Exception as error:
        for path in sorted(file for folder in folders for file in Path(folder).glob("*")):
            if path.suffix == ".json":
                read_object(path)
            elif path.suffix == ".safetensors":
                check_safetensors(path)
        if isinstance(error, StrictDataclassError):
            raise ValueError(f"{folders[-1]}: its config.json is no configuration of the model: {error}") from error
        raise


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. ValueError: the file is missing or none; the message names it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is missing or damaged: it is no JSON ({error}). Get it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it is no JSON object, but {type(content).__name__}. Get it again.")
    return content


def check_safetensors(path: Path) -> None:
    """ValueError: the file is missing, or its header does not fit its bytes; the message names it."""
    try:
        with safe_open(path, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}). Get it again.") from error
