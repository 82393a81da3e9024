"""ground-dataset by actors of Ray: the rows of one process, an actor killed among them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import ground_dataset

pytestmark = pytest.mark.slow


def test_two_nodes_make_the_rows_of_one_process():
    """In a process apart: where Ray has been, forked workers of a loader may end in a segmentation fault."""
    tests = Path(__file__).with_name("ray_nodes.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    variables = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    found = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0 and "2 passed" in found.stdout, found.stdout + found.stderr


def test_without_ray_its_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "trainer.actors", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it is a ModuleNotFoundError
    with pytest.raises(ImportError, match=r"which --num_actors needs: pip install 'albef-amc\[eval,scale\]'"):
        next(ground_dataset.by_ray(None, "", None, [0]))
