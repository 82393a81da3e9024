"""The command `albef-amc`: which commands there are, and what each can be told.

Importing this imports no torch: what does the work is imported by its name when it is run. With several processes
`accelerate launch` runs that module, such as `accelerate launch -m albef_amc.trainer.evaluate_grounding …`.
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from .benchmarks import BENCHMARKS
from .process_group import check_apart, fail, run_script

# Those of the modules that do the work.
METHODS = "gradcam", "attention", "gradient", "relevance"
BOX_FORMATS = "xyxy", "xywh", "cxcywh", "xyxy_normalized", "xywh_normalized", "cxcywh_normalized"
HEATMAP_TYPES = "float16", "float32"
ANNOTATIONS = "coco", "yolo"
PROGRAMS = {"torch": ["torch>=2.13"]}  # format → what of the extra it needs
PROGRAMS["onnx"] = PROGRAMS["onnx-int8"] = [*PROGRAMS["torch"], "onnx>=1.20", "onnxruntime>=1.23", "onnxscript>=0.7"]
LAYOUTS = "amc", "albef", "retrieval"


class OneLineParser(argparse.ArgumentParser):
    """Mistakes are told in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class Command(NamedTuple):
    """`run` names "module:function" of the parsed arguments, or of the unparsed ones where `add` is None; `extra` is
    what it needs installed; `add` adds options to a parser; `check` completes the parsed ones, or raises a ValueError
    if they do not fit together.
    """

    help: str
    run: str
    extra: str | None = None
    add: Callable[[argparse.ArgumentParser], None] | None = None
    check: Callable[[argparse.Namespace], None] = lambda args: None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; the exit status is 2 when the user has something to mend."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    listed = "\n".join(f"  {name:20}{command.help}" for name, command in COMMANDS.items())
    parser = OneLineParser(
        prog="albef-amc",
        description="Vision-language models that point.",
        epilog=f"commands:\n{listed}\n\nalbef-amc COMMAND --help tells what each can be told; --quiet hides progress.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="one of those below")
    if arguments[:1] == ["--version"]:
        print(f"albef-amc {load('importlib.metadata:version')('albef-amc')}")
        return
    set_progress(is_quiet="--quiet" in arguments)
    arguments = [word for word in arguments if word != "--quiet"]
    name = parser.parse_args(arguments[:1]).command
    options = parse(name, arguments[1:]) if COMMANDS[name].add else arguments[1:]
    run_script(lambda: run(name, options))


def set_progress(is_quiet: bool) -> None:
    """By the variables that tqdm and the libraries on it read: no bars, or in a log a line now and then."""
    if is_quiet:
        names = "TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"
        os.environ |= {**dict.fromkeys(names, "1"), "TRANSFORMERS_VERBOSITY": "error"}
    elif not sys.stderr.isatty():
        os.environ |= {"TQDM_MININTERVAL": "30", "TQDM_ASCII": " #"} | os.environ


def run(name: str, options: Any) -> None:
    """ImportError: what the command needs is not installed."""
    try:
        load(COMMANDS[name].run)(options)
    except ModuleNotFoundError as error:
        extra = COMMANDS[name].extra
        if extra is None:
            raise
        raise ImportError(f"{error}, which albef-amc {name} needs: pip install 'albef-amc[{extra}]'.") from error


def parse(name: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command, by default those of the process. SystemExit: they are wrong, or ask for help."""
    command = COMMANDS[name]
    parser = OneLineParser(prog=f"albef-amc {name}", description=command.help)
    command.add(parser)
    args = parser.parse_args([with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)])
    try:
        command.check(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def load(name: str) -> Any:
    """What "module:name" names; a module that begins with a dot is of this package."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module, __package__), attribute)


def of_builds(name: str) -> Any:
    """A function of what builds data sets, which no module here imports."""
    return load(f"{__package__.removesuffix('trainer')}dataset_scripts.build:{name}")


def with_underscores(word: str) -> str:
    """Options may be written with dashes."""
    return re.sub(r"^--[\w-]+", lambda option: "--" + option[0][2:].replace("-", "_"), word)


# Options --------------------------------------------------------------------------------------------------------------

HEADS = "ground by these attention heads alone, such as 14.24,14.13 (`sweep --heads` finds the best)"


def count(text: str) -> int:
    """A type of options."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {number}")
    return number


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub (default: main)")
    parser.add_argument("--token", help="for private models of the Hub; default: HF_TOKEN, or that of `hf auth login`")


def add_explaining_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--method", choices=METHODS, help="what makes the heatmaps (default: as they were trained, else gradcam)")
    scores = "score to explain: match, similarity; of a generative model yes, likelihood (default: its own)"
    add("--explanation", choices=("itm", "itc", "yes", "likelihood"), help=scores)
    add("--grounding_layer", type=int, metavar="N", help="layer to explain (default: the model's own)")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What the columns of any data set can be told to be."""
    add = parser.add_argument
    add("--dataset_config", help="its configuration, where it has several")
    text = "where its columns have other names, e.g. phrase=caption boxes=objects.bbox (default: what can be guessed)"
    add("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help=text)
    text = "what its boxes are (default: of a column boxes xyxy in pixels, of others what alone fits the first)"
    add("--box_format", choices=BOX_FORMATS, help=text)
    add("--download_images", action="store_true", help="fetch images that are addresses")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What any grounding of a data set can be told."""
    add = parser.add_argument
    add("--dataset", required=True, help="rows or known annotations, see docs/data.md: folder, file, or Hub id")
    add_data_arguments(parser)
    add("--streaming", action="store_true", help="read its files as they come; each is read by one process")
    add("--max_examples", type=int, help="take the first so many rows of a split only")
    add("--batch_size", type=int, default=64, help="phrases a pass (default: 64)")
    add("--num_workers", type=count, default=2, help="threads a process that read ahead (default: 2)")
    text = "ask with the row's caption, whose probability is the score, and average the maps of the phrase's words only"
    add("--in_caption", action="store_true", help=text)
    text = "keep the maps over the patches; values below 6e-8 are lost to float16 (default type: float32)"
    add("--save_heatmaps", nargs="?", const="float32", choices=HEATMAP_TYPES, help=text)
    add("--strict", action="store_true", help="stop at a record that cannot be used")
    add("--overwrite", action="store_true", help="start anew, whatever records are there")
    add("--attn_implementation", help="attention below and beside the explained one, e.g. sdpa")
    add("--bf16", action="store_true", help="compute in bfloat16 where that is safe")
    add("--cpu", action="store_true", help="do not use a GPU that is there")
    add_explaining_arguments(parser)
    add_hub_arguments(parser)


def check_run(args: argparse.Namespace, written: str = "") -> None:
    """Args: written: the folder of the output that records go into."""
    if args.output is not None:
        check_apart("--output", args.output, args.dataset, written)
    if args.batch_size < 1 or (args.max_examples is not None and args.max_examples < 1):
        raise ValueError("--batch_size and --max_examples must be at least 1")
    if args.output is not None and any(path.is_file() for path in (args.output, *args.output.parents)):
        raise ValueError(f"--output {args.output} must be a folder, and a file is in its place")
    if args.in_caption and args.method == "relevance":
        raise ValueError("relevance is of a whole text: leave out --in_caption or take another --method")
    args.columns = pairs("--columns", "OURS=THEIRS", args.columns)


def read_heads(args: argparse.Namespace) -> None:
    """--heads, "14.24,14.13", as pairs of a layer and a head in it."""
    if args.heads is None:
        return
    if not re.fullmatch(r"\d+\.\d+(,\d+\.\d+)*", args.heads):
        raise ValueError(f"--heads {args.heads}: write layer.head, with commas between several, such as 14.24,14.13")
    if args.method == "relevance" or args.grounding_layer is not None:
        raise ValueError("--heads names layers and heads: leave out --grounding_layer and --method relevance")
    args.heads = [tuple(map(int, head.split("."))) for head in args.heads.split(",")]


def add_ground(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "For each phrase: does it fit the image, and where is it? Points and boxes are in pixels of the upright image, "
        "x before y, from the upper left corner; a box is x1, y1, x2, y2, its right and lower edge outside."
    )
    parser.epilog = 'example: albef-amc ground photo.jpg "a black cat" --model outputs/scenes/with_amc --output out.png'
    add = parser.add_argument
    add("image", help="file or URL")
    add("phrases", nargs="+", metavar="phrase", help='such as "the remote on the left"')
    add("--model", help="folder or Hub id of a checkpoint of any known family")
    add("--output", type=Path, metavar="FILE", help="picture to write, one panel a phrase")
    add("--json", nargs="?", const="-", metavar="FILE", help="write JSON to FILE, or alone to the standard output")
    add("--threshold", type=float, default=0.5, help="heat at a box's edge, 0 to 1 of its range (default: %(default)s)")
    add("--device", help="cpu, cuda, cuda:1, mps, …; default an accelerator if there is one")
    add_explaining_arguments(parser)
    add_hub_arguments(parser)


def check_ground(args: argparse.Namespace) -> None:
    if args.model is None:
        raise ValueError("--model is missing: a checkpoint's Hub id, such as Salesforce/blip-itm-base-coco, or folder")


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--models", nargs="+", required=True, metavar="NAME=CHECKPOINT", help="what to compare")
    add("--benchmark", choices=list(BENCHMARKS), help="its protocol, and what was published, in the table")
    add("--splits", nargs="+", help="splits to score (default: the benchmark's; test)")
    add("--output", type=Path, default=Path("outputs"), help="folder for results, pictures and records")
    add("--num_pictured", type=count, default=8, help="rows of heatmaps.png (default: 8)")
    add("--gallery", type=count, default=0, metavar="N", help="draw N best, worst and random cases each")
    text = "also ask of every image while it is covered by and by where the heat is, 22 times a phrase"
    add("--faithfulness", action="store_true", help=text)
    add("--heads", metavar="L.H,L.H", help=HEADS)
    add_run_arguments(parser)


def check_evaluate(args: argparse.Namespace) -> None:
    check_run(args, "records")
    read_heads(args)
    args.models = pairs("--models", "NAME=CHECKPOINT", args.models)
    if any("/" in name or name.startswith(".") for name in args.models):
        raise ValueError("names in --models become names of folders: leave out / and a dot in front")


def add_ground_dataset(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="CHECKPOINT", help="of any known family")
    add("--split", default="train", help="of the data set (default: train)")
    text = "processes of Ray that ground, a GPU or a core each (default: one a GPU where there are several, or all "
    text += "that the cluster has; otherwise 0, this process alone)"
    add("--num_actors", type=count, metavar="N", help=text)
    add("--ray_address", metavar="HOST:PORT", help="of a cluster of Ray whose machines share these folders, or auto")
    add("--block_size", type=int, default=1024, help="most rows of a file of records (default: 1024)")
    add("--output", type=Path, required=True, help="folder of the rows")
    add("--heads", metavar="L.H,L.H", help=HEADS)
    add_run_arguments(parser)


def check_ground_dataset(args: argparse.Namespace) -> None:
    check_run(args, "data")
    read_heads(args)
    if args.ray_address is not None and args.num_actors == 0:
        raise ValueError("--num_actors 0 is this process alone: leave out --ray_address, or take more actors")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("ground-dataset is started once, not by accelerate launch or torchrun: take --num_actors N")


def add_inspect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dataset", help="rows or known annotations, see docs/data.md: folder, file, or Hub id")
    add("--splits", nargs="+", help="splits to look at (default: all)")
    text = "picture of random rows (default: inspected.png, beside a data set that is the working directory)"
    add("--output", type=Path, help=text)
    add("--num_read", type=count, default=1000, help="records of a split that are read whole (default: %(default)s)")
    add("--num_pictured", type=count, default=16, help="of those, drawn with their regions (default: %(default)s)")
    add("--strict", action="store_true", help="exit with an error if a record that was read cannot be used")
    add_data_arguments(parser)


def check_inspect(args: argparse.Namespace) -> None:
    if min(args.num_read, args.num_pictured) < 1:
        raise ValueError("--num_read and --num_pictured must be at least 1")
    if args.output is not None:
        check_apart("--output", args.output, args.dataset)
    args.columns = pairs("--columns", "OURS=THEIRS", args.columns)


def add_export_annotations(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("rows", type=Path, help="folder that ground-dataset wrote; all its splits are taken")
    add("--dataset", required=True, help="that was grounded, for its images")
    add("--format", choices=ANNOTATIONS, required=True, help="COCO's JSON, or YOLO's text files with data.yaml")
    add("--output", type=Path, required=True, help="a new folder")
    add("--threshold", type=float, metavar="P", help="leave out phrases less probable than this (default: keep all)")
    add_data_arguments(parser)


def check_export_annotations(args: argparse.Namespace) -> None:
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ValueError("--threshold is a probability, 0 to 1")
    if any(path.is_file() for path in (args.output, *args.output.parents)):
        raise ValueError(f"--output {args.output} must be a folder, and a file is in its place")
    args.columns = pairs("--columns", "OURS=THEIRS", args.columns)


def add_sweep(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", required=True, metavar="CHECKPOINT", help="of any known family")
    add("--split", default="validation", help="of the data set (default: validation)")
    add("--heads", action="store_true", help="score every head of a layer too")
    add("--output", type=Path, help="folder for layers.json")
    add_run_arguments(parser)


def check_sweep(args: argparse.Namespace) -> None:
    check_run(args)
    if args.method == "relevance" or args.grounding_layer is not None:
        raise ValueError("layers are compared by --method gradcam, attention or gradient, without --grounding_layer")


def add_convert(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", help="the .pth or .safetensors file, or an index of shards; the other way, the folder")
    add("output", help="the folder to write; with --to_original, the .pth file")
    add("--to_original", action="store_true", help="the other way: from a folder to a .pth file")
    add("--overwrite", action="store_true", help="replace the output, when all is written")
    add = parser.add_argument_group("to a folder").add_argument
    add("--image_size", type=int, help="interpolate the learned positions to images of that side")
    add("--tokenizer", help="BERT tokenizer: name on the Hub, or folder; default bert-base-uncased")
    add("--vision_heads", type=int, help="attention heads of the image encoder; default 12")
    add("--text_heads", type=int, help="attention heads of the text and fusion encoder; default 12")
    add("--grounding_layer", type=int, help="text-encoder layer that heatmaps explain; default 8")
    add = parser.add_argument_group("to a .pth file").add_argument
    text = "amc: pre-training, two queue pointers (default); albef: pre-training, one pointer; retrieval: fine-tuned "
    add("--layout", choices=LAYOUTS, help=text + "for retrieval or grounding, text names without 'bert.', no MLM head")
    text = "where there are no momentum encoders, write copies: the released scripts look for them"
    add("--momentum_copies", action="store_true", help=text)


def given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if value is not None and value is not False}


def check_convert(args: argparse.Namespace) -> None:
    for name in given(args).keys() - {"source", "output", "to_original", "overwrite"}:
        if (name in ("layout", "momentum_copies")) != args.to_original:
            raise ValueError(f"--{name} {'does not go with' if args.to_original else 'needs'} --to_original")


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="folder or Hub name of an ALBEF checkpoint with its processor")
    parser.add_argument("output", help="a new folder")
    text = "programs of torch.export, or of ONNX in float32 or with weights of eight bits (default: torch)"
    parser.add_argument("--format", choices=PROGRAMS, default="torch", help=text)
    parser.add_argument("--grounding_layer", type=int, help="the explained fusion layer; default: the checkpoint's")
    add_hub_arguments(parser)


def add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapters", help="folder or Hub id")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    add_hub_arguments(parser)


def pairs(option: str, form: str, values: list[str]) -> dict[str, str]:
    if any("=" not in value for value in values):
        raise ValueError(f"{option} takes {form} pairs")
    found = dict(value.split("=", 1) for value in values)
    if len(found) < len(values):
        raise ValueError(f"{option} takes each name once: {' '.join(values)}")
    return found


# What is short enough to stand here -----------------------------------------------------------------------------------

TRAIN_HELP = """usage: albef-amc train [CONFIG.yaml] [--name value ...]

Trains a model with Attention Mask Consistency. These are the settings of the project; all of transformers'
TrainingArguments, such as --output_dir and --max_steps, are taken too: --help_all lists them.
With several processes: accelerate launch -m albef_amc.trainer.commands train, in a clone accelerate launch train.py.
"""


def train(arguments: list[str]) -> None:
    if not {"-h", "--help"} & set(arguments):
        arguments = ["--help" if with_underscores(word) == "--help_all" else word for word in arguments]
        load(".training:main")(arguments)
        return
    print(TRAIN_HELP)
    for group in ("ModelArguments", "DataArguments", "AmcArguments"):
        for field in dataclasses.fields(load(f".arguments:{group}")):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            print(f"  --{field.name} (default: {default})\n      {field.metadata['help']}")


def build(arguments: list[str]) -> None:
    try:
        of_builds("main")(arguments, prog="albef-amc build", parser_class=OneLineParser)
    except SystemExit as end:
        if isinstance(end.code, str):  # what went wrong; Python itself would end with status 1
            fail(end.code)
        raise


def convert(args: argparse.Namespace) -> None:
    options = given(args)
    source, output, is_back = options.pop("source"), options.pop("output"), options.pop("to_original", False)
    function = "write_original" if is_back else "convert_checkpoint"
    print(load(f"modeling_albef_amc.tools.convert_albef_checkpoint:{function}")(source, output, **options))


def export(args: argparse.Namespace) -> None:
    for requirement in PROGRAMS[args.format]:
        try:
            load("transformers.utils.versions:require_version")(requirement)
        except ImportError as error:
            needs = f"albef-amc export --format {args.format} needs {requirement}"
            raise ImportError(f"{needs}: pip install -U 'albef-amc[export]'.") from error
    hub = load("modeling_albef_amc.families.auto:hub_options")(vars(args))
    export_albef = load("modeling_albef_amc.tools.export_albef:export")
    found = export_albef(args.checkpoint, args.output, args.grounding_layer, args.format, **hub)
    for name, difference in found.items():
        print(f"largest difference from the model, {name}: {difference:.1e}")
    print(f"{args.output} written.")


def merge(args: argparse.Namespace) -> None:
    hub = load("modeling_albef_amc.families.auto:hub_options")(vars(args))
    load(".lora:merge")(args.adapters, args.output, **hub)
    print(f"{args.output} written, in float32.")


COMMANDS = {
    "ground": Command("point at what phrases name in an image", "modeling_albef_amc.tools.ground:ground", None,
                      add_ground, check_ground),
    "train": Command("train a model with Attention Mask Consistency", ".commands:train", "train"),
    "evaluate": Command("score where checkpoints point, on benchmarks and data of one's own",
                        ".evaluate_grounding:evaluate", "eval", add_evaluate, check_evaluate),
    "ground-dataset": Command("ground every phrase of a data set, a row a phrase", ".ground_dataset:ground_dataset",
                              "eval", add_ground_dataset, check_ground_dataset),
    "sweep": Command("find the layer, or the head, that points best", ".sweep_layers:sweep", "eval", add_sweep,
                     check_sweep),
    "inspect": Command("look at a data set before it is trained on", ".inspect_dataset:inspect", "train", add_inspect,
                       check_inspect),
    "export-annotations": Command("write what ground-dataset found as boxes for detectors and annotation tools",
                                  ".export_annotations:export_annotations", "train", add_export_annotations,
                                  check_export_annotations),
    "build": Command("build a data set from raw annotations", ".commands:build", "train"),
    "convert": Command("convert original ALBEF and AMC checkpoints to folders for transformers, and back",
                       ".commands:convert", None, add_convert, check_convert),
    "export": Command("export an ALBEF checkpoint as programs of torch.export or ONNX", ".commands:export", "export",
                      add_export),
    "merge": Command("write base model and LoRA adapters as one plain checkpoint", ".commands:merge", "lora",
                     add_merge),
}  # fmt: skip


if __name__ == "__main__":
    main()
