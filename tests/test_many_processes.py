"""Four processes, some without a region and some without a true phrase; and sharded weights."""

from pathlib import Path

import pytest
import torch

from tests.helpers import many_processes
from tests.helpers.models import relative_difference
from tests.helpers.runs import torchrun
from tests.helpers.training import is_equal

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
WORKER = ROOT / "tests" / "helpers" / "many_processes.py"


def run(folder: Path, number: int, what: str) -> list:
    torchrun(str(WORKER), str(folder), what, cwd=folder, processes=number)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(number)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    return run(tmp_path_factory.mktemp("ranks"), 4, "steps")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("alone")
    combined = many_processes.COMBINED
    return {
        "plain": many_processes.two_steps(folder / "plain", 1),
        "combined": many_processes.two_steps(folder / "combined", 1, **combined),
    }


def test_ranks_without_a_region_or_a_true_phrase_equal_one_process(ranks, alone):
    for rank in ranks[1:]:
        assert relative_difference(ranks[0]["plain"]["gradients"][0], rank["plain"]["gradients"][0]) == 0
        assert all(is_equal(one, other) for one, other in zip(ranks[0]["plain"]["weights"], rank["plain"]["weights"]))
    assert relative_difference(alone["plain"]["gradients"][0], ranks[0]["plain"]["gradients"][0]) < 1e-5
    for one, other in zip(alone["plain"]["logs"], ranks[0]["plain"]["logs"], strict=True):
        losses = [name for name in one if name.startswith("loss")]
        assert {"loss_absent", "loss_amc_mean", "loss_mlm"} <= set(losses)
        assert {n: other[n] for n in losses} == pytest.approx({n: one[n] for n in losses}, rel=1e-4, abs=1e-6)


def test_accumulation_bfloat16_and_checkpointing_together(ranks, alone):
    for rank in ranks[1:]:
        assert is_equal(ranks[0]["combined"]["weights"][-1], rank["combined"]["weights"][-1])
    one, other = alone["combined"]["logs"], ranks[0]["combined"]["logs"]
    for name in ("loss", "loss_itc", "loss_itm", "loss_mlm", "loss_absent", "loss_amc_mean", "loss_amc_max"):
        assert other[0][name] == pytest.approx(one[0][name], rel=0.03, abs=0.01), name


def test_sharded_weights_have_the_gradients_of_one_process(tmp_path):
    expected = many_processes.sharded(tmp_path / "alone", 0, 1)
    for found in run(tmp_path, 2, "sharded"):
        assert relative_difference(expected, found) < 1e-5
