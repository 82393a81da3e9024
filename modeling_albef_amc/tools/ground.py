"""`albef-amc ground`: answers about one image as a table, a picture and JSON."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError

from ..families.auto import AutoGrounder, hub_options
from ..images import open_image
from ..tokenization_albef import is_blank
from .figures import panel, sheet


def ground(args: argparse.Namespace) -> None:
    """`albef-amc ground`; everything that can be wrong without the model is looked at before it is loaded."""
    # Retries and bars of loading; what goes wrong is told in the end, in one line.
    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()  # downloads take long enough for one
    if any(map(is_blank, args.phrases)):
        raise ValueError("a phrase is empty: give it a word or leave it out")
    for phrase in filter(os.path.isfile, args.phrases):
        raise ValueError(f"{phrase} is a file where a phrase is expected: one image a call, then its phrases")
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], not {args.threshold}")
    json_file = Path(args.json) if args.json not in (None, "-") else None
    for file in filter(None, (args.output, json_file)):
        check_writable(file)
    if args.output and args.output.suffix.lower() not in picture_suffixes():
        raise ValueError(f"--output {args.output}: choose a kind of picture by its ending, such as .png or .jpg")
    image = open_image(args.image)
    grounder = load_grounder(args.model, args.device, **hub_options(vars(args)))
    options = {name: getattr(args, name) for name in ("threshold", "explanation", "grounding_layer", "method")}
    answers: Any = grounder.ground(image, args.phrases, **options)
    if args.output:
        captions = [f"{answer['phrase']} · {answer['score']:.0%}" for answer in answers]
        panels = [
            panel(image, caption, answer["heatmap"], answer["point"], [answer["box"]])
            for caption, answer in zip(captions, answers)
        ]
        sheet(panels).save(args.output)
    if args.json:
        size = {"width": image.width, "height": image.height}
        rows = [{key: answer[key] for key in ("phrase", "score", "point", "box")} for answer in answers]
        text = json.dumps({"image": args.image, **size, "answers": rows}, indent=2, ensure_ascii=False)
        if json_file is None:
            print(text)
            return
        json_file.write_text(text + "\n", encoding="utf-8")
    print(table(answers))


def check_writable(file: Path) -> None:
    """Before minutes are spent: a place that a file can be written to."""
    if file.is_dir() or not file.parent.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ValueError(f"{file} cannot be written: choose a file in a folder that exists and is yours")


def picture_suffixes() -> set[str]:
    kinds = Image.registered_extensions()
    return {suffix for suffix, kind in kinds.items() if kind in Image.SAVE}


def load_grounder(model: str, device: str | None, **hub: Any) -> AutoGrounder:
    """ValueError: no such device or model, no network, or a checkpoint that cannot be used."""
    check_device(device)
    try:
        return AutoGrounder.from_pretrained(model, device=device, **hub)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise ValueError(f"the model {model} cannot be loaded: {error}") from error


def check_device(device: str | None) -> None:
    if device is None:
        return
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"--device {device}: {error}") from error
    if wanted.type == "cpu":
        return
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or here.type != wanted.type or (wanted.index or 0) >= torch.accelerator.device_count():
        raise ValueError(f"--device {device}: this machine has {here.type if here else 'only its cpu'}")


def table(answers: Sequence[dict[str, Any]]) -> str:
    """One line an answer, under a heading."""
    rows = [("phrase", "match", "point (x, y)", "box (x1, y1, x2, y2)")]
    for answer in answers:
        places = (", ".join(map(str, answer[key])) for key in ("point", "box"))
        rows.append((answer["phrase"], f"{answer['score']:.1%}", *places))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
