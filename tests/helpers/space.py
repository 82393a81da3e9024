"""The modules of the Space, which find each other without a package, and tiny models for it."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from transformers import PreTrainedModel, ProcessorMixin

from modeling_albef_amc.families.registry import FAMILIES as REGISTRY
from tests.helpers.data import PHRASES, blip_processor, tiny_albef, tiny_processor
from tests.helpers.models import SIZE, tiny_blip, tiny_family_processor

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "space"


def of_family(name: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    processor = tiny_family_processor(name, PHRASES)
    return REGISTRY[name].small_model(replace(SIZE, vocab_size=len(processor.tokenizer))), processor


FAMILIES = {
    "albef": lambda: (tiny_albef().albef, tiny_processor()),
    "blip": lambda: (tiny_blip(), blip_processor()),
    "clip": lambda: of_family("clip"),
    "vilt": lambda: of_family("vilt"),
}


def space_module(name: str) -> ModuleType:
    """A module of the Space, found as when `python space/app.py` runs."""
    if str(SPACE) not in sys.path:
        sys.path.append(str(SPACE))
    return importlib.import_module(name)


def save_model(folder: Path, family: str) -> Path:
    """A tiny checkpoint with its processor."""
    for part in FAMILIES[family]():
        part.save_pretrained(folder)
    return folder
