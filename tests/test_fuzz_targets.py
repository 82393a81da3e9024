"""The fuzz targets without a fuzzer: what it found, and random changes of what it begins with."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutators import damaged, mutated_value
from tests.fuzz.readers import Fault, located
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
# Changes of each target; those that take milliseconds get fewer.
CHANGES = {
    "parquet": 6,
    "checkpoint_file": 20,
    "checkpoint_layout": 20,
    "safetensors": 20,
    "config_yaml": 25,
    "image": 40,
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Name → a target that is ready to run; each is made ready once."""
    ready = {}

    def open_target(name: str):
        if name not in ready:
            ready[name] = TARGETS[name].open(tmp_path_factory.mktemp(name))
        return ready[name]

    return open_target


def kept(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_fuzzer_begins_with_and_what_it_found(opened, name):
    inputs = TARGETS[name].seeds()
    assert inputs
    for content in inputs + kept(name):
        opened(name)(content)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs(opened, name):
    target, run = TARGETS[name], opened(name)
    inputs = target.seeds() + kept(name)

    @settings(max_examples=CHANGES.get(name, 60), derandomize=True, deadline=None, database=None)
    @given(st.integers(0, 2**32))
    def change_and_run(seed):
        draw = random.Random(seed)
        content = draw.choice(inputs)
        for _ in range(draw.randint(1, 3)):
            if target.mutate is None or draw.random() < 0.2:
                content = damaged(content, draw)
            else:
                content = target.mutate(content, draw, lambda part: damaged(part, draw))
        run(content)

    change_and_run()


def test_the_corpus_is_small_and_of_targets():
    for path in CORPUS.glob("*/*"):
        assert path.parent.name in TARGETS and path.stat().st_size <= 2048, path


def test_a_fault_is_noticed(tmp_path):
    """An error of another type, of no place, or none of ours: each fails the target."""

    def raising(error: Exception):
        def read() -> None:
            raise error

        return read

    with pytest.raises(KeyError):
        located(tmp_path, raising(KeyError("x")))
    with pytest.raises(Fault, match="does not say where"):
        located(tmp_path, raising(ValueError("something is wrong")))
    with pytest.raises(Fault, match="does not say where"):
        located(tmp_path, raising(UnicodeDecodeError("utf-8", b"", 0, 1, str(tmp_path))))
    located(tmp_path, raising(ValueError(f"{tmp_path}: line 1 is wrong")))


def test_a_broken_reader_fails_its_target(opened, monkeypatch):
    run = opened("proposals")
    monkeypatch.setattr("dataset_scripts.refcoco.is_box", lambda box: True)
    with pytest.raises((TypeError, ValueError, Fault)):
        run(b'{"1": [["a", 1, 1, 1]]}')


def test_changes_reach_everything():
    """All nodes of a value are changed sooner or later, and the value given is left as it is."""
    value = {"a": [1, {"b": "text"}], "c": None}
    changed = [mutated_value({"a": [1, {"b": "text"}], "c": None}, random.Random(seed)) for seed in range(300)]
    assert any(not isinstance(each, dict) for each in changed)
    assert any(isinstance(each, dict) and each.get("c", 0) is not None for each in changed)
    assert any(isinstance(each, dict) and isinstance(each.get("a"), list) and len(each["a"]) > 2 for each in changed)
    assert value == {"a": [1, {"b": "text"}], "c": None}
