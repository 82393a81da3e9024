"""`albef-amc`: what its commands print and write, and how they fail; and the pictures that they draw."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont
from transformers import pipeline

from modeling_albef_amc import __version__
from modeling_albef_amc.families import registry
from modeling_albef_amc.tools import albef_checkpoint_layout
from modeling_albef_amc.tools.figures import panel, sheet, wrap
from modeling_albef_amc.visualization import INFERNO, colour_table, mark, overlay
from tests.helpers import forked
from tests.helpers.data import picture, tiny_albef, tiny_processor
from tests.helpers.source import PROJECT
from trainer import commands, record_store, regions
from trainer.commands import COMMANDS, main, parse, with_underscores

ROOT = Path(__file__).parents[1]
PHRASES = ["the red square on the left", "the blue square"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, and photo.png."""
    folder = tmp_path_factory.mktemp("command_line")
    tiny_albef().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    picture(60, 40).save(folder / "photo.png")
    return folder


@pytest.fixture
def run(folder, capsys):
    """Runs `albef-amc ground` on the photo or another one. Returns (exit status, standard output, standard error)."""

    def ground(*arguments, photo="photo.png", model="model"):
        status = 0
        try:
            main(["ground", str(folder / photo), "--model", str(folder / model), *map(str, arguments)])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return ground


def expected_answers(folder: Path, **options) -> list[dict]:
    ground = pipeline("visual-grounding", model=str(folder / "model"), device="cpu")
    return ground(folder / "photo.png", PHRASES, **options)


def test_the_table_and_the_picture(folder, run, tmp_path):
    status, output, errors = run(*PHRASES, "--output", tmp_path / "out.png", "--device", "cpu")
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].split() == ["phrase", "match", "point", "(x,", "y)", "box", "(x1,", "y1,", "x2,", "y2)"]
    assert len({len(line) for line in lines}) == 1
    for line, answer in zip(lines[2:], expected_answers(folder), strict=True):
        point, box = (", ".join(map(str, answer[key])) for key in ("point", "box"))
        assert [part.strip() for part in line.split("  ") if part] == [
            answer["phrase"], f"{answer['score']:.1%}", point, box
        ]  # fmt: skip
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.width > 2 * 560


@pytest.mark.parametrize("options", [{"threshold": 0.2}, {"explanation": "itc"}, {"grounding_layer": 4}])
def test_json(folder, run, tmp_path, options):
    ((name, value),) = options.items()
    arguments = *PHRASES, f"--{name.replace('_', '-')}", value
    status, output, _ = run(*arguments, "--json")
    assert status == 0
    answers = [
        {**answer, "point": list(answer["point"]), "box": list(answer["box"])}
        for answer in expected_answers(folder, **options, output_heatmaps=False)
    ]
    expected = {"image": str(folder / "photo.png"), "width": 60, "height": 40, "answers": answers}
    assert json.loads(output) == expected
    status, output, _ = run(*arguments, "--json", tmp_path / "out.json")
    assert output.startswith("phrase") and json.loads((tmp_path / "out.json").read_text()) == expected


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (["a dog"], {"photo": "missing.png"}, "there is no image {folder}/missing.png"),
        (["a dog"], {"photo": "text.png"}, "{folder}/text.png is not a readable image: it is of no kind"),
        (["a dog", " "], {}, "a phrase is empty"),
        (["{folder}/text.png", "a dog"], {}, "{folder}/text.png is a file where a phrase is expected"),
        (["a dog", "?!"], {}, "phrase 1 ('?!') is empty after cleaning"),
        (["very " * 30], {}, "word pieces, the model takes 20"),
        ([], {}, "the following arguments are required: phrase"),
        (["a dog"], {"model": "missing"}, "there is no folder {folder}/missing"),
        (["a dog"], {"model": "empty"}, "the model {folder}/empty cannot be loaded: {folder}/empty is no checkpoint"),
        (
            ["a dog"],
            {"model": "bert"},
            "the model {folder}/bert cannot be loaded: {folder}/bert is a checkpoint of type",
        ),
        (["a dog"], {"model": "cut"}, "the model {folder}/cut cannot be loaded: "),
        (
            ["a dog", "--model", "nobody/nothing"],
            {},
            "there is no folder nobody/nothing, and it cannot be had from the Hub: We couldn't connect",
        ),
        (["a dog", "--threshold", "2"], {}, "--threshold must be in [0, 1], not 2.0"),
        (["a dog", "--threshold", "low"], {}, "argument --threshold: invalid float value: 'low'"),
        (["a dog", "--grounding-layer", "9"], {}, "grounding_layer 9 is no fusion layer: choose one of 2..4"),
        (["a dog", "--device", "toaster"], {}, "--device toaster: "),
        (["a dog", "--device", "xpu:77"], {}, "--device xpu:77: this machine has"),
        (["a dog", "--output", "{folder}/none/out.png"], {}, "{folder}/none/out.png cannot be written"),
        (["a dog", "--output", "{folder}/out.txt"], {}, "choose a kind of picture by its ending"),
        (["a dog", "--json", "{folder}/none/out.json"], {}, "{folder}/none/out.json cannot be written"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, run, arguments, changes, message):
    (folder / "text.png").write_text("no picture")
    for name in ("empty", "bert", "cut"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for file in (folder / "model").iterdir():
        (folder / "cut" / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    status, output, errors = run(*(argument.format(folder=folder) for argument in arguments), **changes)
    assert (status, output) == (2, "")
    assert message.format(folder=folder) in errors
    assert errors.count("\n") == 1
    assert errors.startswith(("error: ", "albef-amc ground: error: "))


# Imports nothing that takes seconds, as is seen when all is done; as the console script runs it.
MODULE, FUNCTION = PROJECT["scripts"]["albef-amc"].split(":")
IMPORTS = f"""
import atexit, sys
slow = {{"torch", "transformers", "datasets", "accelerate", "numpy", "PIL", "modeling_albef_amc"}}
atexit.register(lambda: print("imported", *sorted(slow & set(sys.modules))))
from {MODULE} import {FUNCTION}
{FUNCTION}()
"""


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_printed_without_torch(command):
    arguments = [*command.split(), "--help"]
    done = subprocess.run([sys.executable, "-c", IMPORTS, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    *text, imported = done.stdout.splitlines()
    assert imported.split() == ["imported"] and len(text) > 5 and f"albef-amc {command}" in text[0]
    if not command:
        assert all(any(line.startswith(f"  {name} ") for line in text) for name in COMMANDS)


def test_help_of_training_has_the_settings_of_the_project_and_all(capsys):
    main(["train", "--help"])
    own = capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["train", "--help-all"])
    every = capsys.readouterr().out
    assert end.value.code == 0 and all(option in own for option in ("--amc_max_weight", "--dataset", "--lora_rank"))
    assert "--num_train_epochs" in every and "--num_train_epochs" not in own and "--lora_rank" in every


def test_the_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"albef-amc {__version__}\n"
    assert __version__ == PROJECT["version"]


def test_options_with_dashes_are_those_with_underscores():
    given = ["--model=a-b", "--dataset", "data-set", "--output", "out"]
    given += ["--box-format", "xywh", "--save-heatmaps", "--block-size", "7"]
    args = parse("ground-dataset", given)
    assert (args.model, args.dataset, args.box_format, args.save_heatmaps) == ("a-b", "data-set", "xywh", "float32")
    assert args.block_size == 7
    assert [with_underscores(text) for text in ("--json=-", "a--b", "-h", "--to-original=x-y", "--")] == [
        "--json=-", "a--b", "-h", "--to_original=x-y", "--",
    ]  # fmt: skip


def test_choices_are_those_of_the_modules():
    assert tuple(registry.METHODS) == commands.METHODS and tuple(regions.BOX_FORMATS) == commands.BOX_FORMATS
    assert tuple(record_store.HEATMAP_TYPES) == commands.HEATMAP_TYPES
    assert tuple(albef_checkpoint_layout.LAYOUTS) == commands.LAYOUTS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "albef-amc: error: the following arguments are required: COMMAND (see albef-amc --help)"),
        (["fly"], "albef-amc: error: argument COMMAND: invalid choice: 'fly'"),
        (["ground", "photo.jpg", "a dog"], "albef-amc ground: error: --model is missing: a checkpoint's Hub id"),
        (["evaluate", "--dataset", "x"], "albef-amc evaluate: error: the following arguments are required: --models"),
        (["evaluate", "--models", "run", "--dataset", "x"], "--models takes NAME=CHECKPOINT pairs"),
        (["evaluate", "--models", "a=x", "a=y", "--dataset", "x"], "--models takes each name once"),
        (
            ["evaluate", "--models", "a=b", "--dataset", "x", "--num_workers", "-1"],
            "--num_workers: must not be negative",
        ),
        (["evaluate", "--models", "a=b", "--dataset", ""], "an empty name: is a variable of the shell not set?"),
        (["inspect", "set", "--output", "looked"], "--output looked: choose a kind of picture by its ending"),
        (["train", "settings.json"], "error: Some specified arguments are not used by the HfArgumentParser"),
        (["train", "--seed", "1.5"], "error: argument --seed: invalid int value: '1.5'"),
        (["train", "--report_to", "none", "--lr_scheduler_type", "foo"], "error: foo is not a valid SchedulerType"),
        (["sweep", "--model", "a", "--dataset", "x", "--batch_size", "0"], "--batch_size and --max_examples must be"),
        (["evaluate", "--models", "a/b=run", "--dataset", "x"], "names in --models become names of folders"),
        (["evaluate", "--models", "a=b", "--dataset", "x", "--method", "relevance", "--in-caption"], "a whole text"),
        (["evaluate", "--models", "a=b", "--dataset", "x", "--output", "a-file"], "a-file must be a folder"),
        (["sweep", "--model", "a", "--dataset", "x", "--output", "a-file/out"], "a-file/out must be a folder"),
        (["sweep", "--model", "a", "--dataset", "x", "--method", "relevance"], "gradcam, attention or gradient"),
        (["sweep", "--model", "a", "--dataset", "x", "--grounding-layer", "1"], "gradcam, attention or gradient"),
        *(
            (["ground-dataset", "--model", "a", "--dataset", "x", "--output", "y", *more], message)
            for *more, message in [
                ("--num_actors", "-1", "--num_actors: must not be negative"),
                ("--num_actors", "0", "--ray_address", "auto", "--num_actors 0 is this process alone"),
                ("--columns", "caption", "--columns takes OURS=THEIRS pairs"),
            ]
        ),
        *(
            ([*command, "--dataset", "set", option, output], f"{option.strip('-')} {output} would put files among")
            for command, option, output in [
                (["evaluate", "--models", "a=b"], "--output", "set"),
                (["evaluate", "--models", "a=b"], "--output", "set/results"),
                (["sweep", "--model", "a"], "--output", "set/../set"),
                (["ground-dataset", "--model", "a"], "--output", "set"),
                (["train"], "--output_dir", "set"),
            ]
        ),
        (["ground-dataset", "--model", "a", "--dataset", "out/data", "--output", "out"], "would put files among"),
        (["convert", "a", "b", "--layout", "amc"], "--layout needs --to_original"),
        (["convert", "a", "b", "--to-original", "--image-size", "9"], "--image_size does not go with --to_original"),
        (["convert", "no/where.pth", "out"], "error: "),
        (["export", "no/where", "out"], "error: "),
        (["merge", "no/where", "--output", "out"], "error: "),
        (["build", "coco"], "albef-amc build coco: error: the following arguments are required: --output, --data_dir"),
        (["build", "coco", "--output", "x", "--data-dir", "no/where"], "error: data_dir: there is no folder no/where"),
        (["train", "--report_to", "none"], "error: Say which data set to use"),
    ],
)
def test_mistakes_of_every_command_are_told_in_a_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    for folder in "set", "out/data":
        Path(folder).mkdir(parents=True)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    output, errors = capsys.readouterr()
    assert output == "" and message in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "module", "missing", "extra"),
    [
        (["train", "--dataset", "x"], "trainer.training", "datasets", "train"),
        (["build", "scenes", "--output", "x"], "dataset_scripts.scenes", "datasets", "train"),
        (["evaluate", "--models", "a=b", "--dataset", "x"], "trainer.evaluate_grounding", "pyarrow", "eval"),
        (["sweep", "--model", "a", "--dataset", "x"], "trainer.sweep_layers", "accelerate.utils", "eval"),
    ],
)  # fmt: skip
def test_a_missing_extra_is_named_in_a_line(capsys, tmp_path, monkeypatch, arguments, module, missing, extra):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)  # importing it is a ModuleNotFoundError
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1 and errors.startswith(f"error: import of {missing} halted")
    assert errors.endswith(f", which albef-amc {arguments[0]} needs: pip install 'albef-amc[{extra}]'.\n")


@pytest.mark.parametrize("requirement", ["torch>=99", "left_pad>=1"])
def test_what_a_format_needs_is_said_before_anything_is_loaded(capsys, monkeypatch, requirement):
    assert set(commands.PROGRAMS["onnx"]) == set(PROJECT["optional-dependencies"]["export"])
    monkeypatch.setitem(commands.PROGRAMS, "onnx", [requirement])
    with pytest.raises(SystemExit):
        main(["export", "no/where", "out", "--format", "onnx"])
    needs = f"albef-amc export --format onnx needs {requirement}: pip install -U 'albef-amc[export]'."
    assert capsys.readouterr().err == f"error: {needs}\n"


# In a log, ten steps of 0.15 seconds: by tqdm's own interval each would be drawn.
BAR = """
import sys, time
from trainer.commands import set_progress
set_progress("--quiet" in sys.argv)
from tqdm.auto import tqdm
for _ in tqdm(range(10)):
    time.sleep(0.15)
"""
BUILD = "from trainer.commands import main; main()"


@pytest.mark.parametrize("options", [[], ["--quiet"]])
def test_progress_in_a_log(options, tmp_path, monkeypatch):
    """A line at the beginning and one at the end, with a rate; none if quiet, and the same results."""
    for name in ("TQDM_MININTERVAL", "TQDM_ASCII"):  # of commands that other tests have run
        monkeypatch.delenv(name, raising=False)
    sizes = "--train 6 --validation 0 --test 0 --test_relations 0 --test_unseen 0 --captions 0"
    for code, arguments in ((BAR, ""), (BUILD, f"build scenes --output {tmp_path / 'data'} {sizes}")):
        command = [sys.executable, "-c", code, *arguments.split(), *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        lines = done.stderr.replace("\r", "\n").split("\n")
        drawn = [line.strip() for line in lines if line.strip()]
        if options:
            assert drawn == []
        else:
            assert 1 <= len(drawn) <= 2 and re.search(r"(\d ?\S+/s|\ds/ ?\S+)\]$", drawn[-1]) and drawn[-1].isascii()
    assert "attribute phrases of train" in done.stdout and (tmp_path / "data" / "data").is_dir()


def test_importing_warns_of_nothing(tmp_path):
    code = "import sys, warnings\nassert 'transformers' not in sys.modules\nwarnings.simplefilter('error')\n"
    done = forked.run(["-c", code + "import modeling_albef_amc"], ROOT, os.environ | {"HF_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr


# Pictures -------------------------------------------------------------------------------------------------------------


def test_colours_are_inferno():
    original = {40: (47, 10, 91), 128: (188, 55, 84), 200: (251, 157, 7)}  # of matplotlib
    assert all(np.abs(colour_table()[level] - np.array(color)).max() < 7 for level, color in original.items())
    assert (colour_table()[::17] == INFERNO).all()


def test_overlay_by_hand():
    photo = Image.new("RGB", (3, 1), (100, 100, 100))
    drawn = np.asarray(overlay(photo, np.array([[2.0, 3.0, 4.0]], dtype=np.float32), opacity=0.5)).astype(int)
    assert drawn[0, 0].tolist() == [100, 100, 100]
    # The highest level is covered by half with the last colour, the middle one by a quarter with the middle colour.
    np.testing.assert_allclose(drawn[0, 2], (100 + np.array(INFERNO[-1])) / 2, atol=1)
    np.testing.assert_allclose(drawn[0, 1], 75 + colour_table()[128] / 4, atol=1)
    assert overlay(photo, np.full((1, 3), 7.0)).getpixel((1, 0)) == (100, 100, 100)
    assert overlay(photo, np.array([[0.0, 0.0, 1.0]]), opacity=1).getpixel((2, 0)) == INFERNO[-1]
    with pytest.raises(ValueError, match="does not fit an image of"):
        overlay(photo, np.zeros((3, 1)))
    with pytest.raises(ValueError, match="opacity must be in"):
        overlay(photo, np.zeros((1, 3)), opacity=1.1)


@pytest.mark.parametrize("box", [(0, 0, 50, 40), (3, 4, 4, 5), (3, 4, 6, 5), (10, 10, 30, 22)])
def test_marks_touch_no_pixel_outside(box):
    white = Image.new("RGB", (50, 40), "white")
    changed = (np.asarray(mark(white, (box[0], box[1]), [box])) != 255).any(axis=2)
    assert (np.asarray(white) == 255).all()
    changed[: box[1] + 5, : box[0] + 5] = False  # the point, in the upper left corner
    rows, columns = changed.nonzero()
    if max(box[2] - box[0], box[3] - box[1]) > 5:
        assert (rows.max() + 1, columns.max() + 1) == (box[3], box[2])


@pytest.mark.parametrize("size", [(200, 150), (4000, 3000), (30, 900), (900, 30), (1, 1)])
def test_panels_are_readable_at_every_size(size):
    """Point and box lie where they belong, in lines and letters of the same size."""
    photo = Image.new("RGB", size, "white")
    heatmap = np.zeros(size[::-1], dtype=np.float32)
    point = size[0] // 2, size[1] // 4
    drawn = panel(photo, "the dog", heatmap, point, [(0, 0, *size)])
    pixels, scale = np.asarray(drawn).astype(int), min(560 / size[0], 900 / size[1])
    caption = drawn.height - round(size[1] * scale)
    assert drawn.width == 560 and 20 <= caption <= 45
    assert (pixels[:caption].sum(axis=2) < 200).sum() > 50  # ink
    x, y = int((point[0] + 0.5) * scale), int((point[1] + 0.5) * scale) + caption
    assert pixels[y, x].tolist() == [0, 255, 255]


def test_captions_are_broken_into_lines():
    font = ImageFont.load_default(size=20)
    lines = wrap("the remote on the left of the black cat", font, 150)
    assert " ".join(lines) == "the remote on the left of the black cat" and len(lines) > 2
    letters = wrap("a " + "w" * 40, font, 150)
    assert "".join(letters) == "a" + "w" * 40
    for line in (*lines, *letters):
        assert 0 < font.getlength(line) <= 150


def test_sheets():
    panels = [Image.new("RGB", (100, 50 + number), (number, 0, 0)) for number in range(5)]
    assert sheet(panels[:2]).size == (8 + 2 * 108, 8 + 59)
    drawn = sheet(panels)  # 3 + 2
    assert drawn.size == (8 + 3 * 108, 8 + 60 + 62)
    for number in range(5):
        assert drawn.getpixel((8 + 108 * (number % 3), 8 + 60 * (number // 3))) == (number, 0, 0)
    with pytest.raises(ValueError, match="at least one panel"):
        sheet([])
