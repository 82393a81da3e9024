"""Pointing game and box accuracy: numbers by hand, slow second implementations, the original code's own results."""

import doctest
import json
import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import interpolate

from trainer.metrics.box_accuracy import box_accuracy as box_module
from trainer.metrics.pointing_game import pointing_game as point_module

ROOT = Path(__file__).parents[1]
METRICS = ROOT / "trainer" / "metrics"
BOX = [[0, 0, 10, 10]]


@pytest.fixture
def pointing_game():
    # In memory: an instance that raised keeps its cache file locked, and the next waits a second for it.
    return evaluate.load(str(METRICS / "pointing_game"), keep_in_memory=True)


@pytest.fixture
def box_accuracy():
    return evaluate.load(str(METRICS / "box_accuracy"), keep_in_memory=True)


@pytest.fixture
def golden(shared_dir):
    return json.loads((shared_dir / "golden" / "functions.json").read_text())


@pytest.fixture
def heatmaps(shared_dir):
    return load_file(shared_dir / "golden" / "heatmaps.safetensors")


@pytest.mark.parametrize("name", ["pointing_game", "box_accuracy"])
def test_the_examples_of_the_card_hold(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    card = doctest.testfile(str(METRICS / name / "README.md"), module_relative=False)
    assert card.attempted >= 5 and card.failed == 0


# Pointing game


def test_pointing_game_by_hand(pointing_game):
    points = [(5, 5), (0, 5), (25, 25), (11, 3)]  # the second on an edge, the third in a second box
    boxes = [BOX, BOX, [*BOX, [20, 20, 30, 30]], [[10, 2, 12, 4]]]
    assert point_module.point_in_boxes((5, 5), []) is False
    result = pointing_game.compute(points=points, boxes=boxes, categories=["a", "a", "b", "a"])
    assert result == {
        "pointing_game": 0.75,
        "num_phrases": 4,
        "pointing_game_a": pytest.approx(2 / 3),
        "pointing_game_b": 1.0,
    }


def test_pointing_game_takes_arrays_tensors_lists_and_the_padding_of_the_collator(pointing_game):
    pointing_game.add_batch(points=np.array([[5, 5], [5, 50]]), boxes=np.array([BOX, BOX], dtype=np.float32))
    padded = torch.tensor([[[0.0, 0, 10, 10], [-100] * 4], [[20, 20, 30, 30], [0, 0, 10, 10]]])
    pointing_game.add_batch(points=torch.tensor([[5, 5], [5, 5]]), boxes=padded)
    pointing_game.add_batch(points=[(5, 5)], boxes=[BOX])
    pointing_game.add_batch(points=[torch.tensor([5.0, 5.0])], boxes=[torch.tensor(BOX)])
    pointing_game.add(points=np.array([50.0, 5.0]), boxes=BOX)
    assert pointing_game.compute() == {"pointing_game": 5 / 7, "num_phrases": 7}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"points": [], "boxes": []}, "no phrases"),
        ({"points": [[5, 5], [1, math.nan]], "boxes": [BOX, BOX]}, "phrase 1: the point"),
        ({"points": [[5, math.inf]], "boxes": [BOX]}, "phrase 0: the point"),
        ({"points": [[5, 5, 5]], "boxes": [BOX]}, "phrase 0: the point"),
        ({"points": [[5, 5], [5, 5]], "boxes": [BOX, []]}, "phrase 1 has no boxes"),
        ({"points": [[5, 5]], "boxes": [[[-100] * 4]]}, "phrase 0 has no boxes"),
        ({"points": [[5, 5]], "boxes": [[[0, 0, 10]]]}, "phrase 0: boxes"),
        ({"points": [[5, 5]], "boxes": [[[0, 0, 10, math.nan]]]}, "phrase 0: boxes"),
        ({"points": [[5, 5]], "boxes": [[[8, 0, 5, 10]]]}, "phrase 0: boxes"),
        ({"points": [[5, 5]], "boxes": [BOX, BOX]}, "Mismatch"),
        ({"points": [[5, 5]], "boxes": [BOX], "categories": ["a", "b"]}, "2 categories for 1 points"),
    ],
)
def test_pointing_game_names_what_is_wrong(pointing_game, inputs, message):
    with pytest.raises(ValueError, match=message):
        pointing_game.compute(**inputs)


@pytest.mark.shared
def test_points_as_the_original_code_judges_them(golden):
    for case in golden["point_in_box_xyxy"]:
        assert point_module.point_in_boxes(case["pt"], [case["box"]]) is case["inside"], case
    for case in golden["point_in_box_xywh"]:
        x, y, width, height = case["box"]
        assert point_module.point_in_boxes(case["pt"], [[x, y, x + width, y + height]]) is case["inside"], case
    for case in golden["calculate_point_acc"]:
        assert point_module.point_in_boxes(case["pt"], case["boxes"]) == case["result"], case


def upsampled(heatmaps, case, name=None):
    heatmap = heatmaps[name or f"heat{case['mask_size']}_{case['i']}"]
    return interpolate(heatmap[None, None], (case["height"], case["width"]), mode="bicubic", align_corners=False)[0, 0]


@pytest.mark.shared
def test_pointing_game_as_the_original_code_evaluates(golden, heatmaps, pointing_game):
    points, boxes, expected = [], [], []
    for case in golden["grounding_eval"]:
        y, x = divmod(upsampled(heatmaps, case).argmax().item(), case["width"])
        # The values of these two tie up to rounding of the kernel.
        if case["kind"] not in ("const", "zero"):
            assert [x, y] == case["point"]["point"], case
        left, top, width, height = case["ref_box"]
        points.append(case["point"]["point"])
        boxes.append([[left, top, left + width, top + height]])
        expected.append(case["point"]["inside"])
        assert case["flickr_hit"] == float(case["point"]["inside"])
    assert pointing_game.compute(points=points, boxes=boxes)["pointing_game"] == np.mean(expected)


# Box accuracy


@pytest.mark.parametrize("sizes", [(24, 24, 50, 61), (16, 16, 64, 64), (5, 7, 3, 4), (1, 1, 4, 5), (6, 4, 6, 4)])
def test_upsampling_is_that_of_torch(sizes):
    rows, columns, height, width = sizes
    heatmap = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = interpolate(heatmap[None, None], (height, width), mode="bicubic", align_corners=False)[0, 0]
    found = box_module.upsample_bicubic(heatmap.numpy(), height, width)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-12)


def test_intersection_over_union_by_hand():
    iou = box_module.intersection_over_union
    assert iou([0, 0, 10, 10], [0, 0, 10, 10]) == 1
    assert iou([0, 0, 10, 10], [5, 0, 10, 10]) == 50 / 150
    # One shared column of pixels does not count, two do.
    assert iou([0, 0, 10, 10], [9, 0, 10, 10]) == 0
    assert iou([0, 0, 10, 10], [8, 0, 10, 10]) == 20 / 180
    assert iou([0, 0, 1, 10], [0, 0, 1, 10]) == 0
    assert iou([3, 3, 0, 0], [3, 3, 0, 0]) == 0


def test_scores_by_hand():
    heatmap = np.arange(12.0).reshape(3, 4)
    proposals = [
        [0, 0, 2, 2],  # 0 + 1 + 4 + 5
        [1.9, 0.9, 1.2, 1.2],  # corners (1, 0) and (3, 2): 1 + 2 + 5 + 6
        [-3, -3, 4, 4],  # only pixel (0, 0) is in the image
        [2, 1, 100, 100],  # 6 + 7 + 10 + 11
        [50, 50, 4, 4],
        [0.2, 0.2, 0.5, 0.5],  # truncated to nothing
    ]
    expected = [10 / 2, 14 / 1.2, 0, 34 / 100, 0, 0]
    np.testing.assert_allclose(box_module.score_proposals(heatmap, proposals), expected)
    assert box_module.score_proposals(heatmap, []).shape == (0,)


def test_box_accuracy_by_hand(box_accuracy):
    heatmap = np.zeros((20, 20))
    heatmap[5:10, 5:10] = 1
    proposals = [[0, 0, 20, 20], [5, 5, 5, 5], [12, 12, 5, 5]]  # 25 / 20, 25 / 5, 0
    inputs = {
        "heatmaps": [heatmap] * 5,
        "image_sizes": [[20, 20]] * 5,
        "proposals": [proposals, proposals, [proposals[2]], [], proposals[:1]],
        "boxes": [
            [[5, 5, 10, 10]],
            [[5, 5, 10, 15]],  # IoU 25 / 50, just enough
            [[12, 12, 17, 17]],  # right, but the heatmap does not say so
            [[5, 5, 10, 10]],
            [[5, 5, 10, 10], [0, 0, 20, 19], [-100] * 4],  # the second box matches
        ],
    }
    expected = {"box_accuracy": 3 / 5, "num_phrases": 5, "num_unanswered": 2}
    assert box_accuracy.compute(**inputs) == expected
    assert box_accuracy.compute(**inputs, iou_threshold=0.6)["box_accuracy"] == 2 / 5
    assert box_accuracy.compute(**inputs, iou_threshold=1.0)["box_accuracy"] == 1 / 5


def test_box_accuracy_takes_arrays_tensors_lists_and_maps_of_several_sizes(box_accuracy):
    proposals = [[0, 0, 10, 10], [10, 0, 10, 10]]
    right = [[10, 0, 20, 10]]
    small = [[0.0, 1.0]]
    box_accuracy.add_batch(heatmaps=[small], image_sizes=[(10, 20)], proposals=[proposals], boxes=[right])
    box_accuracy.add_batch(
        heatmaps=torch.tensor([small, small]),
        image_sizes=torch.tensor([[10, 20]] * 2),
        proposals=[torch.tensor(proposals), np.array(proposals[:1])],
        boxes=torch.tensor([right, right], dtype=torch.float32),
    )
    box_accuracy.add_batch(
        heatmaps=[np.array(small, dtype=np.float32), np.eye(3)],
        image_sizes=np.array([[10, 20], [10, 20]]),
        proposals=np.array([proposals, proposals]),
        boxes=np.array([right, right]),
    )
    assert box_accuracy.compute() == {"box_accuracy": 3 / 5, "num_phrases": 5, "num_unanswered": 0}


GOOD = {"heatmaps": [[[0.0, 1.0]]], "image_sizes": [[10, 20]], "proposals": [[[0, 0, 9, 9]]], "boxes": [BOX]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({key: [] for key in GOOD}, "no phrases"),
        ({"heatmaps": [[[0.0, math.nan]]]}, "phrase 0: the heatmap holds NaN"),
        ({"heatmaps": [[[0.0, math.inf]]]}, "phrase 0: the heatmap holds NaN"),
        ({key: value * 3 for key, value in GOOD.items()} | {"heatmaps": [[[0.0]], [[0.0]], [[math.nan]]]}, "phrase 2"),
        ({"heatmaps": [[]]}, "phrase 0: the heatmap must be"),
        ({"heatmaps": [[[]]]}, "phrase 0: the heatmap must be"),
        ({"heatmaps": [[[0.0, 1.0], [0.0]]]}, "phrase 0: the heatmap must be"),
        ({"image_sizes": [[10, 0]]}, "phrase 0: the image size"),
        ({"image_sizes": [[10, 20, 3]]}, "phrase 0: the image size"),
        ({"proposals": [[[0, 0, 9]]]}, "phrase 0: proposals must be .x, y"),
        ({"proposals": [[[0, 0, 9, 9, 0.9]]]}, "phrase 0: proposals must be .x, y"),
        ({"proposals": [[[0, 0, math.nan, 9]]]}, "phrase 0: proposals must be .x, y"),
        ({"proposals": [[[0, 0, 0, 9]]]}, "phrase 0: proposals must be .x, y"),
        ({"boxes": [[]]}, "phrase 0 has no boxes"),
        ({"boxes": [[[-100] * 4]]}, "phrase 0 has no boxes"),
        ({"boxes": [[[0, 0, math.inf, 9]]]}, "phrase 0: boxes must be .x1"),
        ({"boxes": [[[9, 0, 5, 9]]]}, "phrase 0: boxes must be .x1"),
        ({"boxes": [BOX, BOX]}, "Mismatch"),
        ({"iou_threshold": 0.0}, "iou_threshold"),
    ],
)
def test_box_accuracy_names_what_is_wrong(box_accuracy, change, message):
    with pytest.raises(ValueError, match=message):
        box_accuracy.compute(**{**GOOD, **change})


@pytest.mark.shared
def test_intersection_over_union_as_the_original_code_has_it(golden):
    for case in golden["computeIoU"]:
        assert box_module.intersection_over_union(case["box1"], case["box2"]) == pytest.approx(case["iou"], abs=1e-15)


@pytest.mark.shared
def test_proposals_as_the_original_code_ranks_them(golden, heatmaps, box_accuracy):
    unanswered = correct = 0
    for case in golden["grounding_eval"]:
        proposals = np.array(case["dets"])[:, :4]
        scores = box_module.score_proposals(upsampled(heatmaps, case).numpy(), proposals)
        np.testing.assert_allclose(scores, case["det_scores"], rtol=2e-6, atol=1e-9)
        heatmap = heatmaps[f"heat{case['mask_size']}_{case['i']}"].double().numpy()
        own = box_module.score_proposals(box_module.upsample_bicubic(heatmap, case["height"], case["width"]), proposals)
        np.testing.assert_allclose(own, case["det_scores"], rtol=2e-5, atol=1e-7)
        if "box" in case:
            assert proposals[own.argmax()].tolist() == case["box"]["pred_box"]
            iou = box_module.intersection_over_union(case["ref_box"], proposals[own.argmax()])
            assert iou == pytest.approx(case["box"]["iou"], abs=1e-12)
            correct += iou >= 0.5
        else:
            assert "box_error" in case and own.max() <= 0
            unanswered += 1
    cases = golden["grounding_eval"]
    result = box_accuracy.compute(**box_inputs(cases, [heatmaps[f"heat{c['mask_size']}_{c['i']}"] for c in cases]))
    assert unanswered == 4 and correct > 0
    assert result == {"box_accuracy": correct / 20, "num_phrases": 20, "num_unanswered": unanswered}


def box_inputs(cases, maps):
    return {
        "heatmaps": maps,
        "image_sizes": [(case["height"], case["width"]) for case in cases],
        "proposals": [np.array(case["dets"])[:, :4] for case in cases],
        "boxes": [[[x, y, x + width, y + height]] for case in cases for x, y, width, height in [case["ref_box"]]],
    }


@pytest.mark.shared
def test_whole_splits_as_the_original_code_evaluates_them(golden, heatmaps, box_accuracy, pointing_game):
    cases = {case["i"]: case for case in golden["grounding_eval"] if case["mask_size"] == 24}
    for split, key in [("val", "val_d"), ("testA", "testA_d"), ("testB", "testB_d")]:
        samples = [sample for sample in golden["grounding_eval_set_samples"] if sample["split"] == split]
        chosen = [cases[sample["case"]] for sample in samples]
        maps = [heatmaps[sample["heat"]] for sample in samples]
        inputs = box_inputs(chosen, maps)
        points = []
        for sample, case in zip(samples, chosen, strict=True):
            y, x = divmod(upsampled(heatmaps, case, sample["heat"]).argmax().item(), case["width"])
            points.append((x, y))
        result = box_accuracy.compute(**inputs)
        assert result["box_accuracy"] == golden["grounding_eval_set"]["box"][key]
        result = pointing_game.compute(points=points, boxes=inputs["boxes"])
        assert result["pointing_game"] == golden["grounding_eval_set"]["point"][key]


@pytest.mark.shared
def test_a_perfect_heatmap_finds_every_target_the_detector_has(shared_dir, box_accuracy):
    records = json.loads((shared_dir / "data" / "refcoco" / "testA_refcoco_unc_dets.json").read_text())
    inputs = {"heatmaps": [], "image_sizes": [], "proposals": [], "boxes": []}
    reachable = 0
    for record in records:
        x, y, width, height = record["gt_box"]
        heatmap = np.zeros((640, 640), dtype=np.float32)
        heatmap[int(y) : int(y + height), int(x) : int(x + width)] = 1
        inputs["heatmaps"].append(heatmap[::10, ::10])
        inputs["image_sizes"].append((640, 640))
        inputs["proposals"].append(record["pred_boxes"])
        inputs["boxes"].append([[x, y, x + width, y + height]])
        ious = [box_module.intersection_over_union(record["gt_box"], proposal) for proposal in record["pred_boxes"]]
        reachable += max(ious) >= 0.5
    result = box_accuracy.compute(**inputs)
    # A heatmap that fills the target finds it wherever the detector has it.
    assert reachable == 45
    assert result["box_accuracy"] == reachable / 50
