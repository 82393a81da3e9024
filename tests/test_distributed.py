"""Several gloo processes against one: the same gradients, queues, momentum encoder, metrics and points."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from modeling_albef_amc.modeling_albef_pretraining import gather_rows
from tests.helpers import forked, processes
from tests.helpers.data import tiny_dataset, tiny_records, write_folder
from tests.helpers.models import relative_difference
from tests.helpers.runs import torchrun
from tests.helpers.training import RUN, TINY_MODEL, is_equal, write_yaml
from tests.helpers.versions import needs

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def run(folder: Path, number: int, what: str) -> list:
    torchrun(processes.__file__, str(folder), what, cwd=folder, processes=number)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(number)]


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> list[dict]:
    """Some of them without a region, and one without a true phrase."""
    return run(tmp_path_factory.mktemp("four"), 4, "steps")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict]:
    return run(tmp_path_factory.mktemp("two"), 2, "pair")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict:
    """Two steps of one process."""
    return processes.two_steps(tmp_path_factory.mktemp("plain"), 1)


def check_steps(ranks: list[dict], alone: dict) -> None:
    first, *others = ranks
    for step in (0, 1):
        for other in others:
            assert relative_difference(first["gradients"][step], other["gradients"][step]) == 0
            assert is_equal(first["weights"][step], other["weights"][step])
        tolerance = (1e-5, 1e-3)[step]  # after Adam's first step, rounding has been divided by tiny gradients
        assert relative_difference(alone["gradients"][step], first["gradients"][step]) < tolerance
    for one, other in zip(alone["logs"], first["logs"], strict=True):
        losses = [name for name in one if name.startswith("loss")]
        assert {"loss_absent", "loss_amc_mean", "loss_amc_max", "loss_itc", "loss_itm", "loss_mlm"} <= set(losses)
        assert {n: other[n] for n in losses} == pytest.approx({n: one[n] for n in losses}, rel=1e-4, abs=1e-6)


def test_processes_without_a_region_or_a_true_phrase_equal_one(four, plain):
    check_steps([rank["plain"] for rank in four], plain)


def test_losses_of_weight_zero_equal_those_of_one_process(two, tmp_path):
    check_steps([rank["off"] for rank in two], processes.two_steps(tmp_path, 1, **processes.OFF))


def test_queues_and_momentum_encoder_are_those_of_one_process(four, plain):
    for one, other in zip(plain["weights"], four[0]["plain"]["weights"]):
        for name, tensor in one.items():
            if "queue" in name or name.startswith("momentum_encoder."):
                torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)
    assert (plain["weights"][1]["text_id_queue"] >= 0).all()  # it has been filled


def test_evaluation_of_a_number_that_four_does_not_divide(four, plain):
    for rank in four:
        found = rank["plain"]
        assert (found["points"] == plain["points"]).all() and len(found["points"]) == 11
        for name in ("eval_pointing_game", "eval_num_phrases"):
            assert found["metrics"][name] == plain["metrics"][name]
        for rows in ("metrics", "few"):  # of the latter two processes have none
            for name in ("eval_loss_amc_mean", "eval_loss_amc_max"):
                assert found[rows][name] == pytest.approx(plain[rows][name], rel=1e-3), (rows, name)
    assert plain["metrics"]["eval_num_phrases"] == 9  # 11 less two without a box
    assert 0 < plain["metrics"]["eval_pointing_game"] < 1, "a test that could not fail"


def test_accumulation_bfloat16_and_checkpointing_together(four, tmp_path):
    alone = processes.two_steps(tmp_path, 1, **processes.COMBINED)
    for rank in four[1:]:
        assert is_equal(four[0]["combined"]["weights"][-1], rank["combined"]["weights"][-1])
    one, other = alone["logs"], four[0]["combined"]["logs"]
    for name in ("loss", "loss_itc", "loss_itm", "loss_mlm", "loss_absent", "loss_amc_mean", "loss_amc_max"):
        assert other[0][name] == pytest.approx(one[0][name], rel=0.03, abs=0.01), name


@needs("torch>=2.7", "fully_shard with modules left out")
def test_sharded_weights_have_the_gradients_of_one_process(tmp_path):
    expected = processes.sharded(tmp_path / "alone", 0, 1)
    for found in run(tmp_path, 2, "sharded"):
        assert relative_difference(expected, found) < 1e-5


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_dual_encoders_contrast_the_pairs_of_all_processes_and_micro_batches(two, family, tmp_path):
    one, other = (rank["dual"][family] for rank in two)
    assert relative_difference(one, other) == 0
    # Contrasted process by process, it would be 0.6 and more.
    assert relative_difference(processes.by_dual_encoder(tmp_path, family, 6), one) < 1e-4


def test_parameters_without_gradient_do_not_end_a_run_with_checkpointing(two):
    one, other = (rank["checkpointed"] for rank in two)
    assert one == other and all(math.isfinite(loss) for loss in one.values()) and len(one) == 2


def test_each_row_of_an_iterable_data_set_is_trained_on_once(two):
    seen = [phrase for rank in two for phrase in rank["iterable"]["seen"]]
    assert sorted(seen) == sorted(tiny_dataset(8)["phrase"])
    assert all("2 processes cannot share an IterableDataset" in rank["iterable"]["error"] for rank in two)


def test_gather_rows_of_unequal_counts(two):
    first, second = torch.arange(12.0).reshape(6, 2)[:2], torch.arange(12.0).reshape(6, 2) + 100
    joined = torch.cat([first, second])
    for rank, position in zip(two, (0, 2)):
        expected = (joined, position), (joined[:, 0].long(), position), (second[:3], 0)
        for (rows, start), (wanted, place) in zip(rank["gathered"], expected, strict=True):
            assert torch.equal(rows, wanted) and start == place
    rows, start = gather_rows(first)
    assert rows is first and start == 0


# train.py -------------------------------------------------------------------------------------------------------------

WRAPPER = """
import sys
from pathlib import Path
from torch import distributed
from train import main
from trainer.process_group import end_process_group
main(sys.argv[1:])
assert distributed.is_initialized() and distributed.get_world_size() == 2, "one process only"
Path(f"rank{distributed.get_rank()}").write_text(distributed.get_backend())
end_process_group()
threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
assert "pt_gloo_runloop" not in threads, "one that is still there at the interpreter's end may abort the process"
"""


ENDED_OFTEN = """
import gc
import torch
from torch import distributed
from trainer.process_group import end_process_group
gc.freeze()
for _ in range(100):
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    for _ in range(3):
        distributed.all_gather([torch.empty(4)], torch.ones(4))
    end_process_group()
"""


def test_a_group_ends_while_its_threads_let_go_of_tensors(tmp_path):
    """With PyTorch 2.6, its own way to end one is to wait without end for a thread that waits for Python's lock."""
    done = forked.run(["-c", ENDED_OFTEN], tmp_path, os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_train_py_and_evaluate_grounding_py_in_two_processes(tmp_path):
    data = write_folder(tmp_path / "data", train=tiny_records(16), validation=tiny_records(7, phrases_per_image=2))
    (tmp_path / "wrapper.py").write_text(WRAPPER)
    settings = {**RUN, "max_steps": 4, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    settings |= dict(save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2, phrases_per_image=2)
    config = write_yaml(tmp_path, dataset=data, output_dir=tmp_path / "run", model_config=TINY_MODEL, **settings)
    torchrun(str(tmp_path / "wrapper.py"), config, cwd=tmp_path)
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["gloo", "gloo"]
    metrics = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert metrics["validation_num_phrases"] == 7
    assert {"checkpoint-2", "checkpoint-4", "model.safetensors"} < {f.name for f in (tmp_path / "run").iterdir()}

    scored = ["-m", "trainer.evaluate_grounding", "--models", f"run={tmp_path / 'run'}", "--dataset", str(data)]
    scored += ["--splits", "validation", "train", "--batch_size", "2", "--cpu", "--output"]
    torchrun(*scored, str(tmp_path / "two"), cwd=tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert not forked.run([*scored, tmp_path / "one"], tmp_path, environment).returncode
    two, one = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one"))
    assert two == one and one["run"]["validation"] == pytest.approx(metrics["validation_pointing_game"])
