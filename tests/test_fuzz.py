"""The fuzz targets without a fuzzer: what it found, and random changes of what it begins with."""

import random

import pytest

from tests.fuzz.run import CORPUS, TARGETS, Fault, damaged, located, mutated


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_fuzzer_begins_with_what_it_found_and_changes_of_both(name, tmp_path):
    run, inputs = TARGETS[name](tmp_path)
    inputs = inputs + [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    for content in inputs:
        run(content)
    for seed in range(40):
        draw = random.Random(seed)
        content = draw.choice(inputs)
        for _ in range(draw.randint(1, 3)):
            content = mutated(content, draw, lambda part, draw=draw: damaged(part, draw))
        run(content)


def test_the_corpus_is_of_targets():
    assert {str(path.parent.relative_to(CORPUS)) for path in CORPUS.rglob("*") if path.is_file()} <= set(TARGETS)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("something"), UnicodeDecodeError("utf-8", b"", 0, 1, "x")])
def test_a_fault_is_noticed(tmp_path, error):
    """An error of another type, of no place, or none of ours: each fails the target."""

    def read() -> None:
        raise error

    with pytest.raises(Fault if isinstance(error, ValueError) else KeyError):
        located(tmp_path, read)


def test_a_broken_reader_fails_its_target(tmp_path, monkeypatch):
    run, _ = TARGETS["refcoco/dets.json"](tmp_path)
    monkeypatch.setattr("dataset_scripts.refcoco.read_box", lambda box: box)
    with pytest.raises((TypeError, ValueError, Fault)):
        run(b'{"1": [["a", 1, 1, 1]]}')
