"""Runs the tests on four sets of versions, and writes what came out as the table of docs/versions.md.

python -m tests.stacks                  # hours, and gigabytes of installations
python -m tests.stacks test-lowest      # these only; the other rows stay as they are
"""

import argparse
import json
import os
import re
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "versions.md"
# Target of the Makefile → what the versions are, and where they are installed.
STACKS = {
    "test-lowest": ("the lowest", ".venv-lowest"),
    "test-older": ("half a year ago", ".venv-older"),
    "test": ("pinned", ".venv"),
    "test-newest": ("the newest", ".venv-newest"),
}
PACKAGES = "torch", "transformers", "datasets", "huggingface_hub", "accelerate", "peft", "gradio", "numpy"
VERSIONS = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
def of(name):
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return "none"
print(json.dumps([platform.python_version(), *map(of, sys.argv[1:])]))
"""


def run(target: str) -> list[str]:
    """A row of the table: versions, and how many tests passed, failed and were skipped."""
    name, folder = STACKS[target]
    report = ROOT / folder / "report.xml"
    report.unlink(missing_ok=True)
    environment = os.environ | {"PYTEST_ADDOPTS": f"--junitxml={report}"}
    subprocess.run(["make", target], cwd=ROOT, env=environment, check=False)  # what failed is counted
    python = [ROOT / folder / "bin" / "python", "-c", VERSIONS, *PACKAGES]
    versions = json.loads(subprocess.run(python, check=True, capture_output=True, text=True).stdout)
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    skipped, failed = int(suite.get("skipped")), int(suite.get("failures")) + int(suite.get("errors"))
    passed = int(suite.get("tests")) - skipped - failed
    return [f"{name} (`make {target}`)", *versions, f"{passed:,}", f"{failed:,}", f"{skipped:,}"]


def replaced(page: str, row: list[str]) -> str:
    """The page with this row in place of the one of the same versions."""
    line = " | ".join(["", *row, ""]).strip()
    return re.sub(rf"^\| {re.escape(row[0])} \|.*$", line, page, flags=re.MULTILINE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", default=list(STACKS), help="of the Makefile (default: all of STACKS)")
    for target in parser.parse_args().targets:
        PAGE.write_text(replaced(PAGE.read_text(), run(target)))
