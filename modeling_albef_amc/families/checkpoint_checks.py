"""The files of a checkpoint, looked at before transformers reads them: an error of theirs says which one is damaged."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_MAX_BYTES = 2**28
# Those that are JSON objects, where they are there.
_OBJECTS = (
    *("config.json", "generation_config.json", "adapter_config.json", "model.safetensors.index.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
)


def check_files(path: str | Path) -> None:
    """Checks a folder's files of settings, and the heads of its weights; nothing for a name on the Hub.

    Raises:
        ValueError: one of them is damaged; the message names it.
    """
    for name in _OBJECTS:
        if (file := Path(path, name)).is_file():
            read_object(file)
    for file in sorted(Path(path).glob("*.safetensors")):
        check_safetensors(file)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is missing, has more than 256 MiB, or is none; the message names it.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ValueError(
                f"{path} has {size:,} bytes: of a checkpoint's settings not more than {_MAX_BYTES:,} are read"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error}). Get it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it is no JSON object, but {type(content).__name__}. Get it again.")
    return content


def check_safetensors(path: Path) -> None:
    """
    Raises:
        ValueError: the file is missing or empty, its header does not fit its bytes, or names a tensor twice; the
            message names it.
    """
    try:
        with safe_open(path, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}). Get it again.") from error
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    names = [name for name, _ in json.loads(header, object_pairs_hook=list)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} is damaged: it has {twice[:80]} twice. Get it again.")
