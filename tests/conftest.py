"""Fixtures that several test files share: tiny models, a tiny data set, and the reference data beside the project."""

import gc
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Where transformers copies the code of checkpoints to: apart from that of other processes of tests.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules-")

from pathlib import Path

import pytest
import torch

from tests.helpers.models import tiny_batch, tiny_blip, tiny_config  # noqa: F401  until everybody imports them from there
from tests.helpers.versions import why_no_lora

NO_LORA = why_no_lora()
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Each training collects garbage: to look through all that is imported would take it as long as its steps."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The reference data beside the project. Where it is there, no test that needs it may be skipped."""
    if not SHARED.is_dir():
        pytest.skip("no reference data beside the project (../shared)")
    return SHARED


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_MODULES_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Slow files first: begun last, one would keep a process busy alone."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """A test of the reference data that is skipped although the data is there has failed.

    One that fails for want of versions that LoRA works with is skipped.
    """
    report = yield
    # Said by ours, by transformers, or from within peft.
    no_lora = NO_LORA, "version of PEFT", "/peft/"
    if report.failed and NO_LORA and any(said in report.longreprtext for said in no_lora):
        report.outcome, report.longrepr = "skipped", (str(item.path), item.location[1], f"LoRA: {NO_LORA}")
    reads_shared = item.get_closest_marker("shared") or "shared_dir" in getattr(item, "fixturenames", ())
    if report.skipped and not hasattr(report, "wasxfail") and reads_shared and SHARED.is_dir():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{item.nodeid} needs {SHARED}, which is there: {reason}"
    return report
