"""What imports what: the rules at the end of STYLE.md's layout, held by the syntax trees of all modules."""

import ast
import os
import re
from pathlib import Path

import pytest

from tests.helpers.source import IN_SPACE, MODULES, OURS, ROOT, imports

# First part of a path → what a module below it may not import. The more specific path comes first.
FORBIDDEN = {
    "modeling_albef_amc": OURS - {"modeling_albef_amc"} | {"datasets", "evaluate", "gradio", "accelerate"},
    "trainer/metrics": OURS | {"torch", "transformers"},
    "trainer": OURS - {"modeling_albef_amc", "trainer"} | {"gradio"},
    "dataset_scripts": OURS - {"dataset_scripts"} | {"torch", "transformers"},
    "space": OURS - {"modeling_albef_amc", *IN_SPACE},
    "": {"tests", "space", "gradio"},
}
# And what `trainer` may take from the model's side.
INTERFACE = {f"modeling_albef_amc.{name}" for name in ("auto_grounder", "families", "family_processors", "gradcam")}
INTERFACE |= {f"modeling_albef_amc.{name}" for name in ("checkpoint_checks", "photos", "processing_albef")}


def violations(source: str, path: Path) -> list[str]:
    folder = next(folder for folder in FORBIDDEN if path.as_posix().startswith(folder))
    found = [name for name in imports(source, path) if name.split(".")[0] in FORBIDDEN[folder]]
    if folder == "trainer":
        found += [n for n in imports(source, path) if n.split(".")[0] == "modeling_albef_amc" and n not in INTERFACE]
    return sorted(found)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_imports_what_it_must_not(path):
    assert violations(path.read_text(), path.relative_to(ROOT)) == []


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("modeling_albef_amc/a.py", "import torch\nfrom .gradcam import gradcam", []),
        ("modeling_albef_amc/a.py", "from trainer import regions", ["trainer.regions"]),
        ("modeling_albef_amc/a.py", "def f():\n    import datasets", ["datasets"]),
        ("trainer/a.py", "from modeling_albef_amc import gradcam", []),
        ("trainer/a.py", "from modeling_albef_amc import AlbefModel", ["modeling_albef_amc"]),
        ("trainer/a.py", "from modeling_albef_amc.modeling_albef import x", ["modeling_albef_amc.modeling_albef"]),
        ("trainer/a.py", "from .regions import Region\nimport modeling_albef_amc.families.registry", []),
        ("trainer/a.py", "import dataset_scripts.features as f", ["dataset_scripts.features"]),
        ("trainer/metrics/m/m.py", "from ..n import n", ["trainer.metrics.n"]),
        ("trainer/metrics/m/m.py", "import numpy, torch.nn", ["torch.nn"]),
        ("dataset_scripts/a.py", "from transformers import x\nfrom . import features", ["transformers"]),
        ("space/app.py", "from trainer.heatmap_grid import overlay", ["trainer.heatmap_grid"]),
        ("train.py", "import tests.conftest", ["tests.conftest"]),
    ],
)  # fmt: skip
def test_the_rules_find_what_breaks_them(path, source, found):
    assert violations(source, Path(path)) == found


def test_remote_code_is_flat():
    """transformers copies the files that a model's file imports from its own folder, and no others."""
    assert not [path for path in (ROOT / "modeling_albef_amc").iterdir() if path.is_dir() and any(path.glob("*.py"))]
    for path in (ROOT / "modeling_albef_amc").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level > 1), path
            assert not (isinstance(node, ast.ImportFrom) and node.level == 1 and node.module is None), path


def test_files_can_be_held_in_the_head():
    long = {path.name: len(path.read_text().splitlines()) for path in MODULES}
    assert {name: lines for name, lines in long.items() if lines > 900} == {}
    tests = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "tests").glob("*.py")}
    assert {name: lines for name, lines in tests.items() if lines > 900} == {}


def test_make_and_ci():
    makefile, script = (ROOT / "Makefile").read_text(), ROOT / ".ci" / "run"
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) | set(
        " ".join(re.findall(r"^\.PHONY:(.*)", makefile, re.MULTILINE)).split()
    )
    assert {"train", "test"} <= targets
    assert os.access(script, os.X_OK) and "make test" in script.read_text()
    for name in re.findall(r"[\w/%.]+\.py\b", makefile):
        assert "%" in name or (ROOT / name).is_file(), f"Makefile names {name}"
