"""The command `albef-amc`: what people do with a trained model, without a line of Python.

Each subcommand is a function `add_…` that adds its parser; the parser's default `run` takes the parsed arguments.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError

from modeling_albef_amc import __version__

from ..families.auto import AutoGrounder, add_hub_arguments, hub_options
from ..families.registry import METHODS
from ..images import open_photo
from ..pipeline import VisualGroundingPipeline
from ..visualization import panel, sheet


class UserError(Exception):
    """Something that the user can mend; the message says what, in one line."""


class OneLineParser(argparse.ArgumentParser):
    """Mistakes are told in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def add_ground(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "ground",
        help="point at what phrases name in a photo",
        description="For each phrase: does it fit the photo, and where is it? Points and boxes are in pixels of the "
        "photo as it is shown (turned upright by its EXIF orientation), x before y, from the upper left corner; a box "
        "is x1, y1, x2, y2, its right and lower edge outside.",
        epilog='example: albef-amc ground photo.jpg "a black cat" "the remote on the left" '
        "--model outputs/scenes/with_amc --output out.png",
    )
    parser.add_argument("photo", help="file or URL")
    parser.add_argument("phrases", nargs="+", metavar="phrase", help='such as "the remote on the left"')
    parser.add_argument("--model", required=True, help="folder or Hub id of a checkpoint of any known family")
    add_hub_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="picture to write, one panel a phrase")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the answers as JSON: to FILE, or alone to the standard output (put it last, or write --json=-)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="heat at the edge of a box, from the heatmap's minimum (0) to its maximum (1); default %(default)s",
    )
    parser.add_argument(
        "--explanation", choices=["itm", "itc"], help="score to explain: the match, or the similarity; default its own"
    )
    parser.add_argument("--grounding-layer", type=int, metavar="N", help="layer to explain; default the model's own")
    parser.add_argument("--method", choices=list(METHODS), default="gradcam", help="what makes the heatmap")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, …; default an accelerator if there is one")
    parser.set_defaults(run=ground)


def ground(arguments: argparse.Namespace) -> None:
    """Everything that can be wrong without the model is looked at before it is loaded."""
    if not all(phrase.strip() for phrase in arguments.phrases):
        raise UserError("a phrase is empty: give it a word or leave it out")
    if not 0 <= arguments.threshold <= 1:
        raise UserError(f"--threshold must be in [0, 1], not {arguments.threshold}")
    json_file = Path(arguments.json) if arguments.json not in (None, "-") else None
    for file in filter(None, (arguments.output, json_file)):
        check_writable(file)
    if arguments.output and arguments.output.suffix.lower() not in picture_suffixes():
        raise UserError(f"--output {arguments.output}: choose a kind of picture by its ending, such as .png or .jpg")
    try:
        photo = open_photo(arguments.photo)
        pipe = load_pipeline(arguments.model, arguments.device, **hub_options(vars(arguments)))
        names = "explanation", "grounding_layer", "method"
        options = {name: getattr(arguments, name) for name in names}
        answers = pipe(photo, arguments.phrases, threshold=arguments.threshold, **options)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    if arguments.output:
        captions = [f"{answer['phrase']} · {answer['score']:.0%}" for answer in answers]
        sheet([panel(photo, *pair) for pair in zip(answers, captions)]).save(arguments.output)
    if arguments.json:
        size = {"width": photo.width, "height": photo.height}
        rows = [{key: answer[key] for key in ("phrase", "score", "point", "box")} for answer in answers]
        text = json.dumps({"photo": arguments.photo, **size, "answers": rows}, indent=2, ensure_ascii=False)
        if json_file is None:
            print(text)
            return
        json_file.write_text(text + "\n", encoding="utf-8")
    print(table(answers))


def check_writable(file: Path) -> None:
    """Before minutes are spent: a place that a file can be written to."""
    if file.is_dir() or not file.parent.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(f"{file} cannot be written: choose a file in a folder that exists and is yours")


def picture_suffixes() -> set[str]:
    kinds = Image.registered_extensions()
    return {suffix for suffix, kind in kinds.items() if kind in Image.SAVE}


def load_pipeline(model: str, device: str | None, **hub: Any) -> VisualGroundingPipeline:
    """
    Args:
        model: folder or Hub id.
        device: as torch names it; None leaves the choice to transformers.
        hub: of `hub_options`.

    Raises:
        UserError: no such device or model, no network, or a checkpoint that cannot be used.
    """
    check_device(device)
    if not Path(model).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise UserError(f"there is no folder {model}, and a Hub id has the form name or owner/name")
    try:
        return AutoGrounder.from_pretrained(model, device=device, **hub).pipeline
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise UserError(f"the model {model} cannot be loaded: {error}") from error


def check_device(device: str | None) -> None:
    if device is None:
        return
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device}: {error}") from error
    if wanted.type == "cpu":
        return
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or here.type != wanted.type or (wanted.index or 0) >= torch.accelerator.device_count():
        raise UserError(f"--device {device}: this machine has {here.type if here else 'only its cpu'}")


def table(answers: Sequence[dict[str, Any]]) -> str:
    """One line an answer, under a heading."""
    rows = [("phrase", "match", "point (x, y)", "box (x1, y1, x2, y2)")]
    for answer in answers:
        places = (", ".join(map(str, answer[key])) for key in ("point", "box"))
        rows.append((answer["phrase"], f"{answer['score']:.1%}", *places))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="albef-amc", description="Vision-language models that point.")
    parser.add_argument("--version", action="version", version=f"albef-amc {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    add_ground(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 2 when the user has something to mend."""
    arguments = build_parser().parse_args(argv)
    # Retries and bars of loading; what goes wrong is told in the end, in one line.
    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()  # downloads take long enough for one
    try:
        arguments.run(arguments)
    except UserError as error:
        print(f"albef-amc: error: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
