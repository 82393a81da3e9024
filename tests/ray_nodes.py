"""Ground-dataset by Ray on two nodes of a cluster; `test_ground_by_ray` runs these tests in a process apart."""

import os
import threading
import time
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.helpers.data import write_folder
from tests.helpers.evaluation import files, records_with_everything, run_ground, save_checkpoint, write_files

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def address():
    """Of a cluster of two nodes with one core each, on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster, node = Cluster(), {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 2**27}
        start(cluster, include_dashboard=False, **node)
        start(cluster, **node)
        yield cluster.address
        cluster.shutdown()


def start(cluster: Cluster, **node) -> None:
    """Ray gives a node 30 seconds, in which its processes may not come to their turn on a busy machine."""
    for _ in range(10):
        try:
            return cluster.add_node(**node)
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    raise TimeoutError("no node of Ray has started")


def kill_an_actor(output: Path, killed: list[int]) -> None:
    """By SIGKILL, when the first of the files is there and others are not."""
    while not list(output.glob("data/*.parquet")):
        time.sleep(0.01)
    for process in psutil.process_iter(["name", "cmdline"]):
        if any(word.startswith("ray::") and "Actor" in word for word in process.info["cmdline"] or []):
            process.kill()
            killed.append(process.pid)
            return


def test_two_nodes_make_the_rows_of_one_process_and_an_actor_may_die(address, tmp_path, recwarn):
    checkpoint, output = save_checkpoint(tmp_path / "tiny"), tmp_path / "by ray"
    write_files(tmp_path / "data", "test", records_with_everything(600))
    arguments = checkpoint, tmp_path / "data"
    run_ground(*arguments, tmp_path / "whole", "--save_heatmaps")
    killed: list[int] = []
    killer = threading.Thread(target=kill_an_actor, args=(output, killed), daemon=True)
    killer.start()
    # Each node has a core for one actor: two of them are of both nodes.
    run_ground(*arguments, output, "--save_heatmaps", "--ray_address", address, "--num_actors", "2")
    killer.join(5)
    assert killed and len(files(output)) == 100 and files(output) == files(tmp_path / "whole")
    assert not list(output.glob("partial*"))
    assert not [each for each in recwarn if "Ray" in str(each.message)]  # as 2.55 does


def test_what_an_actor_cannot_ground_is_told_in_its_words(address, tmp_path):
    records = records_with_everything(12)
    records[7]["phrase"] = " "
    folder = write_folder(tmp_path / "broken", test=records)
    with pytest.raises(ValueError, match=r"^image 'scene-2', phrase ' ': a phrase is empty") as error:
        run_ground(save_checkpoint(tmp_path / "tiny"), folder, tmp_path / "out", "--strict", "--ray_address", address)
    assert type(error.value) is ValueError
