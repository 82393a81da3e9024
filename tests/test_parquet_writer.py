"""How builders' rows become Parquet files: by any number of processes, after a kill, the same bytes."""

import hashlib
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest

from dataset_scripts import parquet_writer
from dataset_scripts.build import build, state_of
from dataset_scripts.parquet_writer import write_splits
from dataset_scripts.scenes import SPLITS, Scenes
from tests.helpers.builders import write

ROOT = Path(__file__).parents[1]
COUNTS = dict.fromkeys(SPLITS, 0) | {"train": 40, "test": 10, "image_size": 64}


class FewScenes(Scenes):
    """Scenes in jobs of eight."""

    images_per_job = 8


def digests(folder: Path) -> dict[str, str]:
    files = sorted((folder / "data").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def make(tmp_path, name: str, **options):
    builder = FewScenes(cache_dir=str(tmp_path / "cache"), **COUNTS)
    write_splits(builder, tmp_path / name, **options)
    return builder, digests(tmp_path / name)


def test_two_processes_write_the_same_bytes_and_count_the_same(tmp_path):
    one, expected = make(tmp_path, "one", num_proc=1)
    assert list(expected) == ["test-00000.parquet", "test-00001.parquet"] + [f"train-0000{i}.parquet" for i in range(5)]
    two, written = make(tmp_path, "two", num_proc=2)
    assert written == expected
    assert two.report.kept == one.report.kept and two.report.kept["scenes of train"] == 40
    assert two.info.splits["train"].num_examples == one.info.splits["train"].num_examples
    assert two.info.download_size == sum(path.stat().st_size for path in (tmp_path / "two" / "data").iterdir())


def test_no_row_group_has_more_images_than_a_reader_can_unpack(tmp_path, monkeypatch):
    """Each counts as often as a row has it; a row alone is never too large."""
    make(tmp_path, "whole")
    rows = [row for path in sorted((tmp_path / "whole/data").glob("train*")) for row in pq.read_table(path).to_pylist()]
    for most in 1, 20_000:
        monkeypatch.setattr(parquet_writer, "_GROUP_BYTES", most)
        make(tmp_path, f"{most}")
        files = [pq.ParquetFile(path) for path in sorted((tmp_path / f"{most}/data").glob("train*"))]
        groups = [file.read_row_group(number).to_pylist() for file in files for number in range(file.num_row_groups)]
        sizes = [
            [sum(len(each["bytes"]) for each in (row["image"], *row["masks"])) for row in group] for group in groups
        ]
        assert [row for group in groups for row in group] == rows
        assert all(len(own) == 1 or sum(own) <= most for own in sizes)
        assert max(map(len, sizes)) == 1 if most == 1 else len(files) < len(groups) < len(rows)


def test_a_limit_cuts_in_the_middle_of_a_job(tmp_path):
    builder, files = make(tmp_path, "out", limit=37, num_proc=2)
    assert builder.info.splits["train"].num_examples == 37
    assert [name for name in files if name.startswith("train")] == ["train-00000.parquet", "train-00001.parquet"]
    rows = sum(pq.ParquetFile(path).metadata.num_rows for path in (tmp_path / "out" / "data").iterdir())
    assert rows == 37 + builder.info.splits["test"].num_examples


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    _, expected = make(tmp_path, "out")
    first = next((tmp_path / "out" / "data").glob("train-00002*"))
    (tmp_path / "out" / "notes" / "train-00002.json").unlink()
    first.write_bytes(b"half a file")
    drawn = []
    rows = FewScenes.rows
    monkeypatch.setattr(FewScenes, "rows", lambda self, split, job: drawn.append(job) or rows(self, split, job))
    builder, files = make(tmp_path, "out")
    assert files == expected and drawn == [list(range(16, 24))]
    assert builder.report.kept["scenes of train"] == 40


class DeadlyInt(int):
    """Kills the process that it is copied to."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_process_that_dies_is_reported_and_its_job_left(tmp_path):
    builder = FewScenes(cache_dir=str(tmp_path / "cache"), **COUNTS)
    builder.images_per_job = DeadlyInt(8)
    with pytest.raises(RuntimeError, match=r"A process ended before its job did.*--num_proc 1"):
        write_splits(builder, tmp_path / "out", num_proc=2)
    assert not list((tmp_path / "out" / "data").glob("*.parquet"))


# It dies by SIGKILL, which nothing can catch, with two jobs done and a part of others; its other processes end, too.
KILLED = """
import os, signal, time
from dataset_scripts import build, parquet_writer, scenes
scenes.Scenes.images_per_job = 80
do_job = parquet_writer.do_job
def do_two_jobs(builder, folder, split, number, job, limit):
    if number < 2:
        return do_job(builder, folder, split, number, job, limit)
    while len(list((folder / "notes").glob("*.json"))) < 2:
        time.sleep(0.02)
    rows = builder.storable_rows
    def then_die(split, job):
        for count, row in enumerate(rows(split, job)):
            if count == 260:  # one group of rows is written
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(600)
            yield row
    builder.storable_rows = then_die
    return do_job(builder, folder, split, number, job, limit)
parquet_writer.do_job = do_two_jobs  # in each process: those that are spawned run this file, too
if __name__ == "__main__":
    build.main()
"""


def test_a_build_that_was_killed_goes_on(tmp_path, tmp_path_factory, monkeypatch, capsys):
    options = {**COUNTS, "test": 0, "train": 240}
    words = [word for name, count in options.items() for word in (f"--{name}", str(count))]
    script = tmp_path_factory.mktemp("killed") / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), "scenes", "--output", str(tmp_path / "out"), *words, "--num_proc", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shared = dict(capture_output=True, timeout=300, start_new_session=True)
    killed = subprocess.run(command, cwd=ROOT, env=environment, **shared)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    (scratch,) = (tmp_path / ".out.building").iterdir()
    assert len(list((scratch / "notes").glob("*.json"))) == 2 and not (tmp_path / "out").exists()
    times = {path.name: path.stat().st_mtime_ns for path in (scratch / "data").glob("*.parquet")}
    monkeypatch.setattr(Scenes, "images_per_job", 80)
    with pytest.raises(ValueError, match="there is no split 'tain'"):  # nor does a call that fails take it away
        build("scenes", tmp_path / "out", num_proc=1, splits=["tain"], **options)
    defaults = dict(seed=0, phrases_per_scene=4, absent_per_scene=0)  # as the command line gives them
    finished = build("scenes", tmp_path / "out", num_proc=1, **defaults, **options)
    assert "Going on with what an earlier call left" in capsys.readouterr().out
    assert finished.report.kept["scenes of train"] == 240
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "data").iterdir()}
    assert len(times) == 2 and times.items() <= kept.items() and len(kept) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    build("scenes", tmp_path / "straight", num_proc=1, **options)
    assert digests(tmp_path / "out") == digests(tmp_path / "straight")


@pytest.mark.parametrize("name", ["train.json", "below/train.json", "../train.json"])
@pytest.mark.parametrize("mended", [False, True, None])
def test_rows_of_files_or_options_that_were_changed_are_not_gone_on_with(tmp_path, monkeypatch, capsys, mended, name):
    """Who sees a fault, stops the build and mends the file wants rows of the mended one."""
    (tmp_path / "data").mkdir()
    path = write(tmp_path / "data" / name, [{"image": "1.png", "caption": "a dgo"}])
    call = partial(build, "albef_json", tmp_path / "out", data_dir=str(tmp_path / "data"), annotations=name, num_proc=1)
    with monkeypatch.context() as patches, pytest.raises(KeyboardInterrupt):
        patches.setattr("dataset_scripts.data_card.data_card", Mock(side_effect=KeyboardInterrupt))
        call()
    if mended:
        write(path, [{"image": "1.png", "caption": "a dog"}])
    call(**({"strict": True} if mended is None else {}))
    assert ("Going on" in capsys.readouterr().out) == (mended is False)
    (written,) = (tmp_path / "out" / "data").iterdir()
    assert pq.ParquetFile(written).read()["phrase"].to_pylist() == ["a dog" if mended else "a dgo"]


def test_files_that_came_or_went_change_what_a_build_reads(tmp_path):
    """In any folder, by any option, of another name or size; not what builds write beside them."""
    images, lists = tmp_path / "images", tmp_path / "ids.txt"
    (images / "train2014").mkdir(parents=True)
    (tmp_path / "data" / "Sentences").mkdir(parents=True)
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    options = dict(
        data_dir=str(tmp_path / "data"), images_dir=str(images), exclude_coco_ids=f"{tmp_path}/x.txt, {lists}"
    )
    states = [state_of(options)]
    for path in images / "train2014" / "1.jpg", tmp_path / "data" / "Sentences" / "1.txt", lists:
        write(path, "1")
        states.append(state_of(options))
    write(lists, "1\n2")
    states.append(state_of(options))
    assert len(set(states)) == 5
    write(tmp_path / "data" / ".out.building" / "settings.json", "{}")
    assert state_of(options) == states[-1] and state_of({}) == state_of({"seed": 3})
