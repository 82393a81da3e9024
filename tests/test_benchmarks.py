"""The plain implementation that speed is measured against gives the numbers of the fast paths; the parts run."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import baseline, bench, conversion, generative, measure, scale, scenes_study, streaming, workloads
from benchmarks.workloads import ALPHA, QUICK, build_albef, evaluate, evaluation_batch, total_loss
from dataset_scripts.features import encode_png
from tests.helpers.versions import needs

CPU = torch.device("cpu")
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SCALE = replace(QUICK, config=QUICK.config | {"text_config": QUICK.config["text_config"] | NO_DROPOUT})


@pytest.fixture(autouse=True)
def threads():
    """`bench.main` and `serving` set the number of threads: put back afterwards."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


# The same numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["256px", "384px"])
@pytest.mark.parametrize("num_phrases", [1, 5])
def test_heatmaps_and_points_are_those_of_the_engine(size, num_phrases):
    model = build_albef(SCALE, CPU)
    batch = evaluation_batch(SCALE, CPU, size, 3, num_phrases)
    heatmaps, points = evaluate(model, batch)
    plain_heatmaps, plain_points = baseline.evaluate_pairs(model, batch)
    highest = plain_heatmaps.amax(dim=(1, 2), keepdim=True)
    assert heatmaps.shape == (3 * num_phrases, *model.patch_grid(batch["pixel_values"]))
    assert (highest > 0).all() and (plain_heatmaps / highest).std(dim=(1, 2)).min() > 0.05, "the maps say nothing"
    assert ((heatmaps - plain_heatmaps).abs() / highest).max() < 1e-5
    assert torch.equal(points, plain_points)
    # The plain one differentiates the whole model, the engine no parameter.
    assert all(parameter.grad is not None for parameter in model.vision_model.parameters())
    model.zero_grad()
    evaluate(model, batch)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_losses_and_gradients_are_those_of_the_training_step():
    """In float64, apart from the losses, which are computed in float32; both draw the same negatives by one seed."""
    model = build_albef(SCALE, CPU, pretraining=True).double()
    batch = workloads.training_batch(SCALE, CPU)
    batch |= {name: batch[name].double() for name in ("pixel_values", "masks")}
    batch["attention_mask"][1, -3:] = 0
    batch["mlm_labels"][1, -3:] = -100
    plain_model = deepcopy(model)

    torch.manual_seed(1)
    losses = workloads.training_losses(model, batch, ALPHA)
    torch.manual_seed(1)
    plain_losses = baseline.training_losses(plain_model, batch, ALPHA)
    assert list(losses) == ["loss_itc", "loss_itm", "loss_mlm", "loss_amc_mean", "loss_amc_max"] == list(plain_losses)
    for name in losses:
        assert plain_losses[name] > 0, f"{name} says nothing"
        torch.testing.assert_close(losses[name], plain_losses[name], rtol=1e-6, atol=0, check_dtype=False, msg=name)

    total_loss(losses).backward()
    total_loss(plain_losses).backward()
    for name, parameter in plain_model.named_parameters():
        gradient = model.get_parameter(name).grad
        if not parameter.requires_grad:
            assert parameter.grad is None and gradient is None
        elif not name.endswith("key.bias"):  # zero in theory
            scale = parameter.grad.abs().max().item()
            difference = (gradient - parameter.grad).abs().max().item()
            assert scale > 0 and difference < 1e-5 * scale, f"{name}: {difference / scale:.1e} of the largest"


# How it is measured ---------------------------------------------------------------------------------------------------


def test_timing_takes_turns():
    calls = []
    seconds = measure.median_seconds(2, {name: partial(calls.append, name) for name in "ab"})
    assert calls == ["a", "b"] * 3 and list(seconds) == ["a", "b"] and min(seconds.values()) > 0


def test_flops_are_counted_by_hand():
    """The image encoder of one image: patches, and a layer's linear and attention products, at 2 a multiply-add."""
    model, images, (rows, width) = build_albef(QUICK, CPU), torch.randn(1, 3, 32, 32), (17, 32)
    model.set_attn_implementation("eager")
    patches, layer = 16 * 3 * 8 * 8 * width, rows * width * (4 * width + 2 * 64) + 2 * rows**2 * width
    expected = 2 * (patches + 2 * layer)
    assert measure.gigaflops(lambda: model.vision_model(images)) == pytest.approx(expected / 1e9)


def test_a_process_of_its_own():
    """Its memory does not count what is here, and its failure is an error."""
    ballast = torch.ones(2**28)  # 1 GiB
    assert len(ballast) and 2**26 < measure.in_a_process(measure.peak_bytes) < 2**30 < measure.peak_bytes()
    with pytest.raises(RuntimeError, match=r"measure\.peak_bytes.* failed"):
        measure.in_a_process(measure.peak_bytes, "no device")


# They run -------------------------------------------------------------------------------------------------------------


def test_the_parts_of_make_bench_run_and_are_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "in_a_process", lambda function, *arguments: function(*arguments))
    output = tmp_path / "results.json"
    output.write_text('{"serving": [{"phrases": 1}]}')
    bench.main(["--quick", "--threads", "1", "--repeats", "1", "--output", str(output)])
    results = json.loads(output.read_text())
    recorded = json.loads(bench.RESULTS.read_text())
    assert results.pop("serving") == [{"phrases": 1}], "a part of the run replaces its own rows only"
    assert list(results) == list(recorded)
    rows = {row["name"]: row for part in results.values() for row in part}
    assert {row["name"] for part in recorded.values() for row in part} == set(rows)
    printed = capsys.readouterr().out
    for name, row in rows.items():
        assert name in printed
        # Tiny samples may take no memory that is seen.
        assert row["ratio"] == (pytest.approx(row["ours"] / row["baseline"]) if row["baseline"] else None)
    assert rows["eval_256px_map_difference_fp32"]["ours"] < 1e-4
    assert rows["eval_256px_same_points_fp32"]["ratio"] == 1


@needs("transformers>=5.18", "LoRA")
def test_generative_models_run(monkeypatch):
    monkeypatch.setattr(generative, "in_a_process", lambda function, *arguments: function(*arguments))
    rows = generative.costs(quick=True)
    assert [(row["model"], row["what"]) for row in rows] == [
        ("Qwen2.5-VL-3B", "ground"), ("SmolVLM-256M", "ground"), ("SmolVLM-256M", "train"),
    ]  # fmt: skip


def test_conversion_scale_and_streaming_run(monkeypatch):
    for module in (conversion, scale, streaming):
        monkeypatch.setattr(module, "in_a_process", lambda function, *arguments, **_: function(*arguments))
    assert [row["conversion"][:4] for row in conversion.costs(QUICK)] == ["to t", "to a", "to a"]
    (row,) = scale.rates(QUICK.config, num_images=10, block_size=28, repeats=1, ways=(0,))
    assert row["rows/s"] > 0
    assert [row["way"] for row in streaming.rates(400, repeats=1)] == ["prepared", "streamed"]


def test_annotations_of_the_study_lie_on_the_object():
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[5:9, 10:20] = 255
    row = {"masks": [encode_png(mask)], "boxes": [[10.0, 5.0, 20.0, 9.0]]}
    found = {name: scenes_study.annotate(row, 0, name, np.zeros(1)) for name in scenes_study.VARIANTS}
    assert found["mask"]["masks"] and found["box"]["boxes"] == row["boxes"]
    assert found["boxes"]["boxes"] == [[10, 5, 15, 7], [15, 5, 20, 7], [10, 7, 15, 9], [15, 7, 20, 9]]
    ((corners,),) = found["polygon"]["polygons"]
    assert sorted(zip(corners[::2], corners[1::2])) == [(10, 5), (10, 9), (20, 5), (20, 9)]
    assert found["point"]["scribbles"] == [[14.5, 6.5]] and found["scribble"]["scribbles"][0][:2] == [10.5, 7.0]
    kept = [scenes_study.annotate(row, i, "budget_25", np.arange(8) / 8)["boxes"] == row["boxes"] for i in range(8)]
    assert kept == [True, True] + 6 * [False]
    recorded = json.loads((measure.ROOT / "benchmarks" / "scenes_study.json").read_text())
    assert {study: {row["name"] for row in rows} for study, rows in recorded.items()} == {
        study: set(runs) for study, runs in scenes_study.STUDIES.items()
    }
