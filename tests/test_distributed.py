"""Two gloo processes against one: the same gradients, queues, teacher, metrics and points."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from modeling_albef_amc.modeling_albef_pretraining import gather_rows
from tests.helpers import two_processes
from tests.helpers.data import tiny_dataset, tiny_records, write_folder
from tests.helpers.models import relative_difference
from tests.helpers.runs import torchrun
from tests.helpers.training import RUN, TINY_MODEL, is_equal, write_yaml

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(str(ROOT / "tests" / "helpers" / "two_processes.py"), str(folder), cwd=folder)
    found = [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert [rank["world_size"] for rank in found] == [2, 2]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("alone")
    return {
        "by_trainer": two_processes.by_trainer(folder / "run", 6),
        "without_itc_and_itm": two_processes.by_trainer(folder / "off", 6, itc_weight=0.0, itm_weight=0.0),
        "dual": {family: two_processes.by_dual_encoder(folder / family, family, 6) for family in ("clip", "siglip")},
    }


@pytest.mark.parametrize("run", ["by_trainer", "without_itc_and_itm"])
def test_two_steps_of_the_trainer_equal_those_of_one_process(ranks, alone, run):
    one, other = (rank[run] for rank in ranks)
    for step in (0, 1):
        assert relative_difference(one["gradients"][step], other["gradients"][step]) == 0
        tolerance = (1e-5, 1e-3)[step]  # after Adam's first step, rounding has been divided by tiny gradients
        assert relative_difference(alone[run]["gradients"][step], one["gradients"][step]) < tolerance
        for log in ("loss", "loss_itc", "loss_itm", "loss_mlm", "loss_amc_mean", "loss_amc_max"):
            assert one["logs"][step][log] == pytest.approx(alone[run]["logs"][step][log], rel=1e-4)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_dual_encoders_contrast_the_pairs_of_all_processes_and_micro_batches(ranks, alone, family):
    one, other = (rank["dual"][family] for rank in ranks)
    assert relative_difference(one, other) == 0
    assert relative_difference(alone["dual"][family], one) < 1e-4  # of 0.6 and more, contrasted process by process


def test_queues_and_teacher_stay_the_same_on_all_processes(ranks, alone):
    one, other = (rank["by_trainer"]["weights"] for rank in ranks)
    for step in (0, 1):
        assert is_equal(one[step], other[step])
        for name, tensor in alone["by_trainer"]["weights"][step].items():
            if "queue" in name or name.startswith("momentum_encoder."):
                torch.testing.assert_close(one[step][name], tensor, rtol=1e-4, atol=1e-5)
    assert one[0]["queue_pointer"] == 6 and one[1]["queue_pointer"] == 0  # of both processes, and once round
    assert (one[1]["text_id_queue"] >= 0).all()


def test_evaluation_of_a_number_that_two_does_not_divide(ranks, alone):
    one, other = (rank["by_trainer"] for rank in ranks)
    expected = alone["by_trainer"]
    assert (one["points"] == expected["points"]).all() and len(one["points"]) == 11
    for name in ("eval_pointing_game", "eval_num_phrases"):
        assert one["metrics"][name] == other["metrics"][name] == expected["metrics"][name]
    assert expected["metrics"]["eval_num_phrases"] == 9  # 11 less two without a box
    assert 0 < expected["metrics"]["eval_pointing_game"] < 1, "a test that could not fail"


def test_parameters_without_gradient_do_not_end_a_run_with_checkpointing(ranks):
    one, other = (rank["checkpointed"] for rank in ranks)
    assert one == other and all(math.isfinite(loss) for loss in one.values()) and len(one) == 2


def test_each_row_of_an_iterable_data_set_is_trained_on_once(ranks):
    seen = [phrase for rank in ranks for batch in rank["iterable"]["seen"] for phrase in batch]
    assert sorted(seen) == sorted(tiny_dataset(8)["phrase"])
    assert all("2 processes cannot share an IterableDataset" in rank["iterable"]["error"] for rank in ranks)


def test_gather_rows_of_unequal_counts(ranks):
    first, second = torch.arange(12.0).reshape(6, 2)[:2], torch.arange(12.0).reshape(6, 2) + 100
    for rank, position in zip(ranks, (0, 2)):
        rows, start = rank["gathered"]["unequal"]
        assert torch.equal(rows, torch.cat([first, second])) and start == position
        rows, start = rank["gathered"]["flat"]
        assert torch.equal(rows, torch.cat([first, second])[:, 0].long()) and start == position
    for rank in ranks:
        rows, start = rank["gathered"]["one is empty"]
        assert torch.equal(rows, second[:3]) and start == 0
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


def test_train_py_and_evaluate_grounding_py_in_two_processes(tmp_path):
    data = write_folder(tmp_path / "data", train=tiny_records(16), validation=tiny_records(7, phrases_per_image=2))
    (tmp_path / "wrapper.py").write_text(WRAPPER)
    settings = {**RUN, "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
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
    subprocess.run([sys.executable, *scored, str(tmp_path / "one")], env=environment, check=True, capture_output=True)
    two, one = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one"))
    assert two == one and one["run"]["validation"] == pytest.approx(metrics["validation_pointing_game"])
