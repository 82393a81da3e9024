"""`albef-amc`: what it prints and writes, and how it fails; and the pictures that it draws."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont
from transformers import pipeline

from modeling_albef_amc import __version__
from modeling_albef_amc.tools.command_line import main
from modeling_albef_amc.visualization import INFERNO, colour_table, mark, overlay, panel, sheet, wrap
from tests.tiny_data import picture, tiny_albef, tiny_processor

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
        try:
            status = main(["ground", str(folder / photo), *map(str, arguments), "--model", str(folder / model)])
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


def test_json(folder, run, tmp_path):
    status, output, _ = run(*PHRASES, "--json", "--threshold", 0.2)
    assert status == 0
    answers = [
        {**answer, "point": list(answer["point"]), "box": list(answer["box"])}
        for answer in expected_answers(folder, threshold=0.2, output_heatmaps=False)
    ]
    expected = {"photo": str(folder / "photo.png"), "width": 60, "height": 40, "answers": answers}
    assert json.loads(output) == expected
    status, output, _ = run(*PHRASES, "--threshold", 0.2, "--json", tmp_path / "out.json")
    assert output.startswith("phrase")
    assert json.loads((tmp_path / "out.json").read_text()) == expected


def test_other_explanations(folder, run):
    for options, arguments in (
        ({"explanation": "itc"}, ["--explanation", "itc"]),
        ({"grounding_layer": 4}, ["--grounding-layer", "4"]),
    ):
        found = json.loads(run(*PHRASES, *arguments, "--json")[1])["answers"]
        assert [tuple(answer["box"]) for answer in found] == [
            answer["box"] for answer in expected_answers(folder, **options)
        ]


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (["a dog"], {"photo": "missing.png"}, "there is no photo {folder}/missing.png"),
        (["a dog"], {"photo": "text.png"}, "{folder}/text.png is not a readable photo: cannot identify"),
        (["a dog", " "], {}, "a phrase is empty"),
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
    assert errors.startswith("albef-amc")


def test_a_model_of_the_hub_without_a_network(folder, capsys):
    assert main(["ground", str(folder / "photo.png"), "a dog", "--model", "nobody/nothing"]) == 2
    assert "the model nobody/nothing cannot be loaded: We couldn't connect" in capsys.readouterr().err


def test_the_command_in_a_process_of_its_own(folder, tmp_path):
    """As the console script runs it."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["albef-amc"].split(":")
    script = f"import sys; from {module} import {function}; sys.exit({function}())"
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    arguments = ["ground", str(folder / "photo.png"), *PHRASES, "--model", str(folder / "model"), "--output", "out.jpg"]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 4
    assert (tmp_path / "out.jpg").is_file()


def test_version_and_help(capsys):
    assert __version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for arguments, shown in ((["--version"], __version__), (["--help"], "ground"), (["ground", "--help"], "example:")):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        assert shown in capsys.readouterr().out


# Pictures -------------------------------------------------------------------------------------------------------------


def test_colours_are_inferno():
    matplotlib = pytest.importorskip("matplotlib")
    original = np.array(matplotlib.colormaps["inferno"].colors) * 255
    assert np.abs(colour_table() - original).max() < 7
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
    with pytest.raises(ValueError, match="does not fit a photo of"):
        overlay(photo, np.zeros((3, 1)))
    with pytest.raises(ValueError, match="opacity must be in"):
        overlay(photo, np.zeros((1, 3)), opacity=1.1)


@pytest.mark.parametrize("box", [(0, 0, 50, 40), (3, 4, 4, 5), (3, 4, 6, 5), (10, 10, 30, 22)])
def test_marks_touch_no_pixel_outside(box):
    white = Image.new("RGB", (50, 40), "white")
    changed = (np.asarray(mark(white, (box[0], box[1]), box)) != 255).any(axis=2)
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
    answer = {"heatmap": heatmap, "point": point, "box": (0, 0, *size)}
    drawn = panel(photo, answer, "the dog")
    assert drawn.width == 560
    pixels = np.asarray(drawn).astype(int)
    caption = drawn.height - round(size[1] * min(560 / size[0], 900 / size[1]))
    assert 20 <= caption <= 45
    assert (pixels[:caption].sum(axis=2) < 200).sum() > 50  # ink
    scale = min(560 / size[0], 900 / size[1])
    x, y = int((point[0] + 0.5) * scale), int((point[1] + 0.5) * scale) + caption
    assert pixels[y, x].tolist() == [0, 255, 255]


def test_captions_are_broken_into_lines():
    font = ImageFont.load_default(size=20)
    lines = wrap("the remote on the left of the black cat", font, 150)
    assert " ".join(lines) == "the remote on the left of the black cat"
    assert len(lines) > 2
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
