"""Protocols, scores and counts: published numbers, the original code's own results, numbers by hand.

Slow second implementations of what the metrics are made of: test_properties.py, and test_processing.py of boxes.
"""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file

from modeling_albef_amc.processing_albef import post_process_grounding
from trainer import benchmarks
from trainer.heatmap_grid import choose_cases
from trainer.record_store import record_schema
from trainer.scoring import best_proposal, heat_inside, overlaps, score_answer, size_of, summarize

METRICS = ("pointing_game", "box_accuracy", "heatmap_box")


# Protocols ------------------------------------------------------------------------------------------------------------


def published(name: str, method: str) -> list[float]:
    protocol = benchmarks.BENCHMARKS[name]
    places = [(split, metric) for metric in protocol.metrics[:2] for split in protocol.splits]
    return [protocol.published[method][place] for place in places if place in protocol.published[method]]


@pytest.mark.shared
def test_published_numbers_are_those_of_the_table(shared_dir):
    text = (shared_dir / "SPEC.md").read_text()
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    numbers = {name: [float(n) for n in re.findall(r"\d+\.\d+", line)] for name, line in lines.items()}
    for ours, theirs in [("ALBEF, no tuning", "ALBEF, no tuning"), *[("ALBEF + AMC (VG boxes)",) * 2]]:
        referit = ours if ours in benchmarks.BENCHMARKS["referit"].published else f"{ours} (derived)"
        found = published("flickr30k", ours) + published("referit", referit) + published("refcoco+", ours)
        assert found == numbers[theirs] and len(found) == 6
    for ours in ("SynGround (real + synthetic)", "VMRM (detector-based)", "InfoGround (detector-based)"):
        assert published("flickr30k", ours) + published("refcoco+", ours) == numbers[ours]
    flickr, referit = ([*published(n, f"SelfEQ ({d}, no boxes)")] for n, d in [("flickr30k", "VG"), ("referit", "VG")])
    coco = [*published("flickr30k", "SelfEQ (COCO, no boxes)"), *published("referit", "SelfEQ (COCO, no boxes)")]
    expected = [flickr[0], coco[0], referit[0], coco[1], *published("refcoco+", "SelfEQ (no boxes)")]
    assert expected == numbers["SelfEQ (no boxes; VG / COCO)"]


def test_protocols_are_complete():
    sizes = {name: (p.image_size, p.max_words, p.one_box) for name, p in benchmarks.BENCHMARKS.items()}
    assert sizes == {"flickr30k": (256, 50, False), "refcoco+": (384, 30, True), "referit": (384, 30, False)}
    for protocol in benchmarks.BENCHMARKS.values():
        assert protocol.metrics[0] == "pointing_game" and [*protocol.spelled_out()["metrics"]] == [*protocol.metrics]
    assert "box_accuracy" in benchmarks.BENCHMARKS["refcoco+"].metrics


# Scores ---------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_scored_is_none_and_no_heat_is_wrong():
    answer = {"heatmap": np.zeros((10, 10), dtype=np.float32), "point": (5, 5), "box": (0, 0, 10, 10)}
    box, nothing = np.array([[0.0, 0, 10, 10]]), np.zeros((0, 4))
    assert score_answer(answer, nothing, box, METRICS) == dict.fromkeys(METRICS)
    expected = {"pointing_game": True, "box_accuracy": None, "heatmap_box": True}
    assert score_answer(answer, box, nothing, METRICS) == expected
    assert score_answer(answer, box, box, METRICS) == {**expected, "box_accuracy": False}
    assert score_answer(answer, box, box, ()) == {}
    assert best_proposal(answer["heatmap"], box) is None


@pytest.mark.shared
def test_answers_as_the_original_code_judges_them(shared_dir):
    golden = json.loads((shared_dir / "golden" / "functions.json").read_text())
    heatmaps = load_file(shared_dir / "golden" / "heatmaps.safetensors")
    scored = 0
    for case in golden["grounding_eval"]:
        (answer,) = post_process_grounding(
            heatmaps[f"heat{case['mask_size']}_{case['i']}"][None], (case["height"], case["width"])
        )
        answer["heatmap"] = answer["heatmap"].numpy()
        x, y, width, height = case["ref_box"]
        proposals = np.array(case["dets"], dtype=np.float64)[:, :4]
        proposals[:, 2:] += proposals[:, :2]
        boxes = np.array([[x, y, x + width, y + height]], dtype=np.float64)
        hits = score_answer(answer, boxes, proposals, METRICS)
        if case["kind"] not in ("const", "zero"):  # those tie up to rounding of the kernel
            assert hits["pointing_game"] is case["point"]["inside"], case
        # Where no proposal scores, the original takes the answer of the phrase before.
        assert hits["box_accuracy"] is ("box" in case and case["box"]["iou"] >= 0.5), case
        scored += "box" in case
    assert scored > 10


def test_heat_inside_by_hand():
    heatmap = np.array([[1.0, 2, -5], [3, 4, 0]])
    assert heat_inside(heatmap, np.array([[0.0, 0, 2, 1]])) == 3 / 10
    assert heat_inside(heatmap, np.array([[0.6, 0, 2.4, 1], [1, 0.5, 3, 2]])) == (2 + 4) / 10  # centres, each once
    assert heat_inside(heatmap, np.array([[-3.0, -1, 30, 20]])) == 1
    assert heat_inside(heatmap, np.zeros((0, 4))) is None
    assert heat_inside(np.full((2, 3), -1.0), np.array([[0.0, 0, 2, 1]])) is None


def test_sizes_as_coco_parts_them():
    boxes = [[0.0, 0, 32, 31.9]], [[0.0, 0, 32, 32]], [[5.0, 5, 101, 101]], [[0.0, 0, 10, 10], [0, 0, 100, 100]]
    assert [size_of(np.array(each)) for each in boxes] == ["small", "medium", "large", "medium"]
    assert size_of(np.zeros((0, 4))) is None


def test_the_summary_of_sizes_and_heat():
    rows = [
        {"image_id": str(number), "phrase": "b", "pointing_game": hit, "size": size, "energy": energy}
        for number, (hit, size, energy) in enumerate([(True, "small", 0.5), (False, "small", None), (True, "large", 1)])
    ]
    summary = summarize(pa.Table.from_pylist(rows, record_schema(METRICS[:1])), METRICS[:1])
    assert summary["energy"] == {"mean": 0.75, "num_phrases": 2}
    small, large = {"accuracy": 0.5, "num_phrases": 2}, {"accuracy": 1.0, "num_phrases": 1}
    assert summary["pointing_game"]["sizes"] == {"small": small, "large": large}


def test_the_summary_by_hand():
    metrics = ("pointing_game", "box_accuracy")

    def summary(*records):
        rows = []
        for pointing, box, categories, error in records:
            row = {"image_id": "a", "phrase": "b", "categories": categories, "score": 0.5, "absent": False}
            rows.append({**row, "error": error, "pointing_game": pointing, "box_accuracy": box})
        return summarize(pa.Table.from_pylist(rows, record_schema(metrics)), metrics)

    people, other = {"accuracy": 0.5, "num_phrases": 2}, {"accuracy": 0.0, "num_phrases": 1}
    assert summary(
        (True, True, ["people"], None),
        (False, None, ["people", "people", None, "other"], None),
        (True, False, [], None),
        (None, None, ["people"], None),
        (None, None, [], "broken"),
    ) == {
        "num_records": 5,
        "num_unusable": 1,
        "unusable": ["image 'a', phrase 'b': broken"],
        "pointing_game": {
            "accuracy": 2 / 3,
            "num_phrases": 3,
            "interval": (2 / 3, 2 / 3),  # of one image
            "categories": {"other": other, "people": people},
        },
        "box_accuracy": {
            "accuracy": 1 / 3,
            "num_phrases": 3,
            "interval": (1 / 3, 1 / 3),
            "num_without_proposals": 1,
            "categories": {"other": other, "people": people},
        },
    }
    assert "box_accuracy" not in summary((True, None, [], None))
    assert summary((None, None, [], None)) == {"num_records": 1, "num_unusable": 0}


def test_overlap_of_boxes():
    boxes = np.array([[0.0, 0, 10, 10], [50, 50, 60, 70]])
    assert overlaps(np.array([0.0, 0, 10, 5]), boxes) and not overlaps(np.array([0.0, 0, 10, 4.9]), boxes)
    assert overlaps(np.array([50.0, 50, 60, 60]), boxes)


def test_cases_are_the_surest_hits_and_misses():
    scores = [0.1, 0.9, 0.5, 0.8, None, 0.9, 0.2]
    hits = [True, True, False, True, None, False, None]
    records = pa.table({"score": scores, "hit": hits})
    cases = choose_cases(records, "hit", 2)
    assert cases["best"] == [1, 3] and cases["worst"] == [5, 2]
    assert len(cases["random"]) == 2 and set(cases["random"]) <= {0, 1, 2, 3, 5}
    assert choose_cases(records.slice(0, 2), "hit", 9)["random"] == [0, 1]
    assert "worst" not in choose_cases(records.slice(0, 2), "hit", 9)
