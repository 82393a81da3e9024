"""The modules of the project, and what each imports."""

import ast
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # of Python 3.10; pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = "modeling_albef_amc", "trainer", "dataset_scripts", "space"
# A Space starts its app.py as a script: its modules find each other without a package.
IN_SPACE = {path.stem for path in (ROOT / "space").glob("*.py")}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
OURS = {*FOLDERS, *IN_SPACE, *SCRIPTS, "tests", "benchmarks"}
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MODULES += sorted(ROOT.glob("*.py"))


def imports(source: str, path: Path) -> set[str]:
    """Absolute names of all modules that a module imports, wherever in it; relative ones are resolved.

    Args:
        path: of the module, from the root.
    """
    package = path.parent.parts
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # `from package import module` may name a module.
            found |= {f"{module}.{alias.name}" if _is_module(module, alias.name) else module for alias in node.names}
    return found


def _is_module(package: str, name: str) -> bool:
    return (ROOT / Path(*package.split(".")) / f"{name}.py").is_file()
