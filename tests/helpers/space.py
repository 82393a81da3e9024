"""The modules of the Space, which find each other without a package, and tiny models for it."""

import importlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from transformers import PreTrainedModel, ProcessorMixin

from modeling_albef_amc.families.registry import FAMILIES
from tests.helpers.data import PHRASES, tiny_albef, tiny_processor
from tests.helpers.models import SIZE, tiny_family_processor

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "space"


def tiny_model(family: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    if family == "albef":
        return tiny_albef().albef, tiny_processor()
    processor = tiny_family_processor(family, PHRASES)
    return FAMILIES[family].small_model(replace(SIZE, vocab_size=len(processor.tokenizer))), processor


def space_module(name: str) -> ModuleType:
    """A module of the Space, found as when `python space/app.py` runs."""
    if str(SPACE) not in sys.path:
        sys.path.append(str(SPACE))
    return importlib.import_module(name)


def save_model(folder: Path, family: str) -> Path:
    """A tiny checkpoint with its processor."""
    for part in tiny_model(family):
        part.save_pretrained(folder)
    return folder


@contextmanager
def served(command: list[str | Path], folder: Path, **settings: str) -> Iterator[tuple[str, int]]:
    """A Space in a process of its own, on files of this machine. Yields: its address and process id.

    Args:
        command: starts it. folder: where. settings: environment variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MODEL_ID")}
    with tempfile.NamedTemporaryFile("w+") as log:
        server = subprocess.Popen(command, cwd=folder, env=kept | settings, stdout=log, stderr=log)
        try:
            ends = time.monotonic() + 300
            while "Running on local URL" not in (told := Path(log.name).read_text()):
                assert server.poll() is None and time.monotonic() < ends, told
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}", server.pid
        finally:
            server.terminate()
            server.wait(300)
