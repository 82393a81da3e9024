"""What imports what: the rules at the end of STYLE.md's layout, held by the syntax trees of all modules."""

import ast
from pathlib import Path

import pytest

from modeling_albef_amc.families.registry import FAMILIES
from tests.helpers.source import IN_SPACE, MODULES, OURS, ROOT, SCRIPTS, imports

# First part of a path → what a module below it may not import. The more specific path comes first.
FORBIDDEN = {
    "modeling_albef_amc": OURS - {"modeling_albef_amc"} | {"datasets", "evaluate", "gradio", "accelerate"},
    "trainer/metrics": OURS | {"torch", "transformers"},
    "trainer": OURS - {"modeling_albef_amc", "trainer"} | {"gradio"},
    "dataset_scripts": OURS - {"dataset_scripts"} | {"torch", "transformers"},
    "space": OURS - {"modeling_albef_amc", *IN_SPACE},
    "": {"tests", "space", "gradio", *SCRIPTS},
}
FLAT = sorted((ROOT / "modeling_albef_amc").glob("[!_]*.py"))  # what a published checkpoint ships


def violations(source: str, path: Path) -> list[str]:
    folder = next(folder for folder in FORBIDDEN if path.as_posix().startswith(folder))
    return sorted(name for name in imports(source, path) if name.split(".")[0] in FORBIDDEN[folder])


def test_nothing_imports_what_it_must_not():
    found = {path: violations(path.read_text(), path.relative_to(ROOT)) for path in MODULES}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("modeling_albef_amc/a.py", "import torch\nfrom .gradcam import gradcam", []),
        ("modeling_albef_amc/a.py", "from trainer import regions\ndef f():\n    import datasets",
         ["datasets", "trainer.regions"]),
        ("trainer/metrics/m/m.py", "import numpy, torch.nn\nfrom ..n import n", ["torch.nn", "trainer.metrics.n"]),
        ("dataset_scripts/a.py", "from transformers import x\nfrom . import features", ["transformers"]),
    ],
)  # fmt: skip
def test_the_rules_find_what_breaks_them(path, source, found):
    assert violations(source, Path(path)) == found


def without_types(source: str) -> str:
    """Without what is imported for annotations alone."""
    tree = ast.parse(source)
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    return ast.unparse(tree)


def test_no_circle_of_imports():
    """In the model's package not even for annotations: transformers follows every import there."""
    graph = {}
    for path in (path.relative_to(ROOT) for path in MODULES):
        source = (ROOT / path).read_text()
        source = source if path.parts[0] == "modeling_albef_amc" else without_types(source)
        graph[".".join(path.with_suffix("").parts)] = imports(source, path)
    while leaves := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert {name: imported & graph.keys() for name, imported in graph.items()} == {}


def test_the_flat_files_import_only_each_other():
    """transformers copies the files that a model's file imports from its own folder, and no others."""
    known = {path.stem for path in FLAT}
    for path in FLAT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in known, path


def test_no_other_family_is_named_in_a_flat_file():
    others = [family for name, family in FAMILIES.items() if name != "albef"]
    names = {name for family in others for name in (family.title, family.model_class)}
    for path in FLAT:
        text = path.read_text().replace("OPENAI_CLIP", "")
        assert not [name for name in names if name in text], path
