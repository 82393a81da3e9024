"""What README, docs and examples show runs: Python, the notebook, and command lines as far as their options."""

import argparse
import ast
import json
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from torch.distributed.run import get_args_parser
from transformers import PretrainedConfig

from modeling_albef_amc import AutoGrounder, gradcam, groundable
from modeling_albef_amc.families.hooks import with_own_forward
from tests.helpers.data import picture, tiny_processor
from tests.helpers.models import tiny_batch
from tests.helpers.source import PROJECT
from trainer.amc_config import AmcConfig
from trainer.arguments import DataArguments, ModelArguments, parse_arguments

ROOT = Path(__file__).parents[1]
TRAINED = str(ROOT / "space" / "checkpoints" / "with_amc")
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
PAGES["CONTRIBUTING.md"] = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(language: str) -> dict[str, str]:
    return {
        f"{page}-{number}": block
        for page, text in sorted(PAGES.items())
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))
    }


# Python ---------------------------------------------------------------------------------------------------------------

# Block → lines that it prints. All are run with a local checkpoint in place of ids.
PRINTED = {
    "README.md-0": 2,
    "docs/grounding.md-0": 2,
    "docs/grounding.md-1": 0,
    "docs/grounding.md-2": 3,
    "docs/publishing.md-0": 0,
    "docs/families.md-0": 0,
}
ELSEWHERE = {
    "docs/publishing.md-1": "asks an open Space: tests/test_space.py",
    **dict.fromkeys(
        ("docs/serving.md-0", "docs/serving.md-1"), "needs exported programs, which take long: tests/test_export.py"
    ),
}


def test_every_block_of_python_is_run():
    assert blocks("python").keys() == PRINTED.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("name", PRINTED)
def test_python_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for file in ("photo.jpg", "photo.png"):
        Image.open(ROOT / "space" / "examples" / "scene_1.png").convert("RGB").save(file)
    ids = '"(outputs/scenes/with_amc|Salesforce/blip-itm-base-coco|org/albef-amc)"'
    exec(re.sub(ids, repr(TRAINED), blocks("python")[name]), {})
    assert len(capsys.readouterr().out.splitlines()) == PRINTED[name]


def test_a_family_of_ones_own_is_a_function_of_a_few_lines():
    code, names = blocks("python")["docs/families.md-0"], {}
    assert len(code[code.index("class Toy") :].strip().splitlines()) <= 25
    exec(code, names)
    model, batch = names["Toy"](PretrainedConfig(max_position_embeddings=20)), tiny_batch()
    heatmaps = gradcam(names["toy"](model, **batch))
    assert heatmaps.shape == (4, 4, 4) and (heatmaps.amax(dim=(1, 2)) > 0).all()
    swapped = {name: value.flip(0) for name, value in batch.items()}
    torch.testing.assert_close(gradcam(names["toy"](model, **swapped)).flip(0), heatmaps)
    forward = model.forward
    output = groundable(model, names["toy"])(**batch, output_heatmaps=True)
    assert torch.equal(gradcam(with_own_forward(names["toy"])(model, **batch)), heatmaps) and model.forward != forward
    grounder = AutoGrounder(model, tiny_processor(), names["toy"])
    (found,), (again,) = (grounder.ground(picture(), "a dog", **each) for each in ({}, {"explain": names["toy"]}))
    assert found["heatmap"].max() > 0 and (found["heatmap"] == again["heatmap"]).all()
    (output.loss + output.heatmaps.square().sum()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in (model.words.weight, model.patches.weight))


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch, tmp_path):
    """Cell by cell, with fewer steps; the last expression of a cell is what it shows."""
    notebook = ROOT / "examples" / "grounding.ipynb"
    text = notebook.read_text()
    assert len(text) < 200_000 and text.count("STEPS = 100") == 1
    monkeypatch.chdir(notebook.parent)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names, shown = {}, []
    for cell in json.loads(text.replace("STEPS = 100", "STEPS = 24"))["cells"]:
        if cell["cell_type"] == "code":
            *body, last = ast.parse("".join(cell["source"])).body
            exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
            is_shown = isinstance(last, ast.Expr)
            last = ast.Expression(last.value) if is_shown else ast.Module([last], [])
            shown.append(eval(compile(last, "<cell>", "eval" if is_shown else "exec"), names))
    pictures = [value for value in shown if isinstance(value, Image.Image)]
    assert len(pictures) == 2 and all(min(picture.size) > 100 for picture in pictures)
    accuracy = names["accuracy"]
    assert accuracy["with AMC"] > max(accuracy["before"], accuracy["without AMC"]) + 20


# Command lines --------------------------------------------------------------------------------------------------------

NOT_PARSED = {
    "hf": "huggingface_hub's; the commands of docs/publishing.md are run by tests/test_publishing.py",
    "ray": "of a cloud",
    "pip": "installs over the network",
    ".venv-dist/bin/twine": "uploads over the network",
    "git": "clones over the network",
    "export": "of the shell",
    "source": "of the shell",
}
SCRIPT = PROJECT["scripts"]["albef-amc"]


def command_lines() -> list[str]:
    """Of blocks, continued lines joined; of inline code those that begin with a program of ours."""
    found = []
    for block in blocks("bash").values():
        found += [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    for text in PAGES.values():
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        found += re.findall(r"`((?:albef-amc|make|python) [^`]+)`", text)
    return sorted(set(found))


class Parsed(Exception):
    """Raised by `options_of` in place of the work."""


@pytest.fixture
def only_parse(monkeypatch):
    """Command lines end after the parser has taken them: nothing is run, trained or mounted."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse(parser, *arguments, **options):
        namespace = parse_args(parser, *arguments, **options)
        if set(vars(namespace)) in ({"version", "command"}, {"dataset"}):  # a name, whose own parser comes next
            return namespace
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)


def run_module(monkeypatch, module: str, arguments: list[str]) -> None:
    """As `python -m` does, up to the work; a command without arguments shows its help."""
    monkeypatch.setattr(sys, "argv", [module, *(arguments or ["--help"])])
    try:
        runpy.run_module(module, run_name="__main__")
    except Parsed:
        return
    except SystemExit as end:
        assert end.code == 0 and "--help" in sys.argv, f"{module} {arguments}: {end.code}"
        return
    pytest.fail(f"{module} {arguments} was not parsed")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("line", command_lines())
def test_command_lines_name_what_there_is(line, only_parse, monkeypatch):
    words = [word for word in shlex.split(line.replace("…", ""), comments=True)]
    program, *rest = words
    if program in NOT_PARSED:
        return
    if program == "make":
        subprocess.run(["make", "--dry-run", *rest], cwd=ROOT, check=True, capture_output=True)
        for options in (word.removeprefix("BENCH=") for word in rest if word.startswith("BENCH=")):
            run_module(monkeypatch, "benchmarks.bench", shlex.split(options))
    elif "train.py" in rest or words[:2] == ["albef-amc", "train"]:
        split = words.index("train.py") if "train.py" in rest else 1
        launcher = {"accelerate": launch_command_parser, "torchrun": get_args_parser}.get(program)
        if launcher is not None:
            with pytest.raises(Parsed):
                launcher().parse_args(words[1 + (program == "accelerate") : split + 1])
        for file in re.findall(r"trainer/configs/\S+\.yaml", line):
            assert (ROOT / file).is_file(), file
        monkeypatch.chdir(ROOT)
        if "--help" not in words:
            parse_arguments(ModelArguments, DataArguments, AmcConfig, arguments=words[split + 1 :])
    elif program == "albef-amc":
        if rest[:2] == ["build", "NAME"]:
            rest[1] = "coco"
        run_module(monkeypatch, SCRIPT.removesuffix(":main"), [*rest, *(["--help"] if len(rest) == 1 else [])])
    else:  # python -m, accelerate launch -m
        module, *arguments = words[words.index("-m") + 1 :]
        assert find_spec(module), f"no module {module}"
        run_module(monkeypatch, module, arguments)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_check_of_command_lines_can_fail(only_parse, monkeypatch):
    with pytest.raises(AssertionError, match="2"):
        run_module(monkeypatch, "dataset_scripts.build", ["coco", "--no_such_option"])
    with pytest.raises(AssertionError, match="2"):
        run_module(monkeypatch, SCRIPT.removesuffix(":main"), ["evaluate", "--no_such_option"])
    with pytest.raises(ValueError, match="no_such_option"):
        parse_arguments(ModelArguments, DataArguments, AmcConfig, arguments=["--no_such_option", "1"])
    run_module(monkeypatch, "dataset_scripts.build", ["scenes", "--output", "x"])
