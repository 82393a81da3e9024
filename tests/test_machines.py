"""Processes and machines that die, restarts by torchrun, and two machines (two launchers here) that train together."""

import json
import socket
import subprocess
from pathlib import Path

import pytest

import train
from tests.helpers.runs import everything, finish, kill, prepare, start
from tests.helpers.versions import resumes_processes
from trainer.process_group import check_restart

pytestmark = pytest.mark.slow
DYING = "tests/helpers/dying_train.py"
STEPS, SAVED = {"max_steps": 6, "save_steps": 2}, "checkpoint-6"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("machines")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, str]:
    """What two processes of one machine come to when nothing happens."""
    finish(folder, "straight", 2, **STEPS)
    return everything(folder / "straight" / SAVED)


def two_machines(folder: Path, runs: tuple[str, str] = ("run", "run"), **options) -> list[subprocess.Popen]:
    """One process on each of two machines: the recipe of docs/reliability.md."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    launch = ("--nnodes=2", "--rdzv_backend=c10d", "--rdzv_id=albef", f"--rdzv_endpoint={address}")
    return [
        start(folder, run, launch=(*launch, f"--rdzv_conf=is_host={rank == 0}"), **options)
        for rank, run in enumerate(runs)
    ]


def ends(processes: list[subprocess.Popen], timeout: float = 180) -> list[int]:
    try:
        return [process.wait(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                kill(process)


def test_when_one_process_dies_the_others_end_within_a_minute(folder):
    dying = start(folder, "dying", 2, script=DYING, environment={"DIES": "1 2"}, max_steps=100_000)
    # Starting takes its time; the steps are milliseconds. Without an end it would train for hours.
    assert ends([dying]) != [0]
    log = (folder / "dying.log").read_text()
    assert "Signal 9 (SIGKILL)" in log and log.count("{'loss'") <= 3


@resumes_processes
def test_torchrun_starts_it_again_and_it_goes_on(folder, expected, tmp_path):
    """Killed after step 3, of four of an epoch; step 2 is saved. The end is the same, bit by bit."""
    settings = STEPS | {"resume_from_checkpoint": "auto"}
    launch = ("--standalone", "--max_restarts=1")
    mark = tmp_path / "died"
    environment = {"DIES": f"1 3 {mark}", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    again = start(folder, "again", 2, launch, DYING, environment, **settings)
    assert ends([again]) == [0] and mark.exists(), (folder / "again.log").read_text()[-3000:]
    assert everything(folder / "again" / SAVED) == expected
    history = json.loads((folder / "again" / SAVED / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4, 5, 6]


def test_a_restart_that_would_wait_for_the_dead_ends(monkeypatch):
    """With the store that torchrun shares by default: seen to hang, without a line of ours."""
    check_restart()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    check_restart()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(RuntimeError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        train.main([])
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    check_restart()


def test_two_machines_are_two_processes(folder, expected):
    assert ends(two_machines(folder, ("two", "two"), **STEPS)) == [0, 0], (folder / "two.log").read_text()[-3000:]
    assert everything(folder / "two" / SAVED) == expected


def test_when_a_machine_dies_the_other_ends_within_a_minute(folder):
    first, second = two_machines(folder, ("gone", "gone"), max_steps=100_000)
    try:
        wait_for_a_loss(folder / "gone.log", first)
        kill(second)
        assert first.wait(timeout=60) != 0
    finally:
        ends([first, second], timeout=1)


def wait_for_a_loss(log: Path, process: subprocess.Popen) -> None:
    while "{'loss'" not in log.read_text():
        with pytest.raises(subprocess.TimeoutExpired):  # it goes on
            process.wait(timeout=0.1)


def test_machines_that_do_not_share_the_folder_are_told_so_before_training(folder):
    assert 0 not in ends(two_machines(folder, ("mine", "yours"), **STEPS))
    assert "process 1 does not see what process 0 writes" in (folder / "yours.log").read_text()
    assert not [path for run in ("mine", "yours") for path in (folder / run).glob("*")]
