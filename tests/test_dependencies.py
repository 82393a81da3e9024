"""What is imported is declared where it is needed, what is declared is used, and the lists of versions agree."""

import os
import re
import sys
import sysconfig
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers.source import OURS, PROJECT, ROOT, imports

CORE = "core"
GROUPS = {CORE: PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
# What each group is for, as patterns of files. These, and all of ours that they import, need no more than the core and
# the group; whoever runs tests, benchmarks and the fuzzer has all groups.
USES = {
    CORE: ["modeling_albef_amc/**/*.py", "trainer/commands.py"],
    "train": ["train.py", "trainer/**/*.py", "dataset_scripts/*.py"],
    "lora": ["trainer/lora.py"],
    "export": ["modeling_albef_amc/tools/*_albef.py"],
    "eval": [f"trainer/{name}.py" for name in ("evaluate_grounding", "ground_dataset", "sweep_layers")],
    "scale": ["trainer/actors.py"],
    "space": ["space/*.py"],
    "dev": ["tests/**/*.py", "benchmarks/*.py"],
    "fuzz": ["tests/fuzz/*.py"],
}
DEVELOPERS = {"dev", "fuzz"}
# Groups that another one imports where it is asked for what they are for, and says so where they are missing.
OPTIONAL = {CORE: ["lora", "export"], "train": ["scale"], "eval": ["scale"]}
# The groups that constraints.txt has the versions of; the fuzzer is not made for every machine that runs the tests.
PINNED = [group for group in GROUPS if group != "fuzz"]
# Modules that are not named as what is installed for them, or come with it in one version.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "gradio_client": "gradio", "tomli": "pytest", "tomllib": "pytest"}
NOT_IMPORTED = {
    "jinja2": "huggingface_hub renders the templates of cards with it",
    "tensorboard": "transformers writes its files with it",
    "pytest-xdist": "--numprocesses of pytest",
    "mypy": "make lint",
    "ruff": "make lint",
}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(each.name): each for each in map(Requirement, lines)}


def lines_of(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


def declared(group: str) -> set[str]:
    """Names of all that is installed for a group."""
    groups = GROUPS if group in DEVELOPERS else (CORE, group, *OPTIONAL[CORE], *OPTIONAL.get(group, ()))
    return {name for each in groups for name in requirements(GROUPS[each])}


def sources(group: str) -> dict[Path, str]:
    """The files that a group is for, and those of ours that they import."""
    found: dict[Path, str] = {}
    waiting = [path.relative_to(ROOT) for pattern in USES[group] for path in ROOT.glob(pattern)]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = (ROOT / path).read_text()
            waiting += [file for name in modules(found[path], path) for file in files_of(name)]
    return found


@cache
def modules(source: str, path: Path) -> set[str]:
    return imports(source, path)


def files_of(module: str) -> list[Path]:
    base = Path(*module.split("."))
    return [path for path in (base.with_suffix(".py"), base / "__init__.py") if (ROOT / path).is_file()]


def needed(files: dict[Path, str]) -> dict[str, str]:
    """Distributions that these files import, and one of the files for each."""
    return {
        canonicalize_name(DISTRIBUTIONS.get(module, module)): path.as_posix()
        for path, source in files.items()
        for module in {name.split(".")[0] for name in modules(source, path)}
        if module not in OURS and module not in sys.stdlib_module_names
    }


def undeclared(files: dict[Path, str], names: set[str]) -> dict[str, str]:
    return {name: path for name, path in needed(files).items() if name not in names}


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_imported_is_declared_and_what_is_declared_is_used(group):
    files = sources(group)
    assert undeclared(files, declared(group)) == {}
    assert set(requirements(GROUPS[group])) - set(needed(files)) - set(NOT_IMPORTED) == set()


def test_what_is_excused_is_declared_and_not_imported():
    everything = {name for group in GROUPS for name in declared(group)}
    shipped = {name for group in GROUPS if group not in DEVELOPERS for name in needed(sources(group))}
    assert set(NOT_IMPORTED) <= everything - shipped


def test_the_check_can_fail():
    path = Path("trainer/a.py")
    source = "import torch, left_pad.x\nfrom . import regions\ndef f():\n    from PIL import Image\n    import os, yaml"
    assert needed({path: source}) == dict.fromkeys(("torch", "left-pad", "pillow", "pyyaml"), "trainer/a.py")
    assert undeclared({path: source}, declared("train")) == {"left-pad": "trainer/a.py"}
    assert undeclared({Path("modeling_albef_amc/a.py"): "import yaml"}, declared(CORE)) != {}
    assert Path("trainer/regions.py") in sources("eval")  # of what those files import, too


def test_pins_lie_in_the_ranges():
    pins = requirements(lines_of("constraints.txt"))
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins.values())
    for group in PINNED:
        for name, requirement in requirements(GROUPS[group]).items():
            (pin,) = pins[name].specifier
            assert pin.version in requirement.specifier, f"{pins[name]} of constraints.txt is not in {requirement}"


def test_the_space_installs_what_it_needs():
    """In the same ranges; gradio in the version that the header of the Space's README names."""
    listed, pins = requirements(lines_of("space/requirements.txt")), requirements(lines_of("constraints.txt"))
    needed = requirements(GROUPS[CORE] + GROUPS["space"])
    assert listed.keys() == needed.keys()
    for name, requirement in needed.items():
        assert listed[name].specifier == (pins[name] if name == "gradio" else requirement).specifier, name


def installed_for(names: list[str]) -> set[str]:
    """Names of the installed distributions that these bring along, and theirs."""
    found: set[tuple[str, str]] = set()
    waiting = [(each.name, extra) for each in map(Requirement, names) for extra in ("", *each.extras)]
    while waiting:
        name, extra = waiting.pop()
        key = canonicalize_name(name), extra
        # A build of torch for CUDA brings its libraries along; the pinned versions go with one without.
        if key in found or key[0].startswith(("nvidia-", "cuda-", "triton")):
            continue
        found.add(key)
        for each in map(Requirement, metadata.requires(name) or []):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                waiting += [(each.name, wanted) for wanted in ("", *each.extras)]
    return {name for name, _ in found}


def installed_versions() -> dict[str, str]:
    """Not those of packages that others, once imported, bring along in folders of their own, as Ray does."""
    found = metadata.distributions(path=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return {canonicalize_name(each.name): each.version for each in found}


def test_all_that_is_installed_is_pinned():
    pins = {name: str(pin.specifier)[2:] for name, pin in requirements(lines_of("constraints.txt")).items()}
    versions = {name: Version(each).public for name, each in installed_versions().items()}
    others = [name for name, pin in pins.items() if Version(versions.get(name, pin)) != Version(pin)]
    if others:
        pytest.skip(f"other versions than those of constraints.txt are installed, of {', '.join(others)}")
    assert installed_for([line for group in PINNED for line in GROUPS[group]]) == set(pins)


@pytest.mark.skipif(os.environ.get("LOWEST") != "1", reason="for make test-lowest")
def test_the_lowest_versions_are_installed():
    """A bound that no installation can reach, since another package asks for more, would promise what nobody tried."""
    versions = installed_versions()
    for group in sorted({*PINNED} - {"lora", "export"}):  # which need newer versions than everything else
        for name, requirement in requirements(GROUPS[group]).items():
            lowest = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
            assert lowest in ([], [Version(versions[name])]), requirement
