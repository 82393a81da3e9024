"""The plain implementation that speed is measured against gives the numbers of the fast paths, and the harness runs."""

import json
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import baseline, bench, flops, gpu, parts, training_memory
from benchmarks.timing import median_seconds
from benchmarks.workloads import (
    ALPHA,
    QUICK,
    TrainingStep,
    evaluate,
    evaluation_batch,
    grounding_model,
    heatmaps_of,
    pretraining_model,
    total_loss,
    training_batch,
)
from modeling_albef_amc import AlbefConfig, explain_function

CPU = torch.device("cpu")


def without_dropout() -> dict:
    text = QUICK.config["text_config"] | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return QUICK.config | {"text_config": text}


SCALE = replace(QUICK, config=without_dropout())
# A wrong image and a wrong phrase for each of four pairs.
NEGATIVES = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 3, 0, 2])


# The same numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["256px", "384px"])
@pytest.mark.parametrize("num_phrases", [1, 5])
def test_heatmaps_and_points_are_those_of_the_engine(size, num_phrases):
    model = grounding_model(SCALE, CPU)
    batch = evaluation_batch(SCALE, CPU, size, 3, num_phrases)
    heatmaps, points = evaluate(model, batch)
    plain_heatmaps, plain_points = baseline.evaluate_pairs(model, batch)
    highest = plain_heatmaps.amax(dim=(1, 2), keepdim=True)
    assert heatmaps.shape == (3 * num_phrases, *model.patch_grid(batch["pixel_values"]))
    assert (highest > 0).all() and (plain_heatmaps / highest).std(dim=(1, 2)).min() > 0.05, "the maps say nothing"
    assert ((heatmaps - plain_heatmaps).abs() / highest).max() < 1e-5
    assert torch.equal(points, plain_points)
    # The plain one differentiates the whole model, the engine no parameter.
    gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any(name.startswith("vision_model.") for name in gradients)
    model.zero_grad()
    evaluate(model, batch)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_losses_gradients_and_the_teacher_are_those_of_the_training_step():
    """In float64, apart from the losses: they are computed in float32."""
    model = pretraining_model(SCALE, CPU).double()
    batch = training_batch(SCALE, CPU)
    batch |= {name: batch[name].double() for name in ("pixel_values", "masks")}
    batch["attention_mask"][1, -3:] = 0
    batch["mlm_labels"][1, -3:] = -100
    plain_model = deepcopy(model)

    model.choose_negatives = lambda *_: NEGATIVES
    ours = TrainingStep(model, batch)
    losses = ours.losses(ours.momentum())
    plain_losses = baseline.training_losses(plain_model, batch, ALPHA, *NEGATIVES)
    assert list(losses) == ["loss_itc", "loss_itm", "loss_mlm", "loss_amc_mean", "loss_amc_max"] == list(plain_losses)
    for name in losses:
        assert plain_losses[name] > 0, f"{name} says nothing"
        torch.testing.assert_close(losses[name], plain_losses[name], rtol=1e-6, atol=0, check_dtype=False, msg=name)

    total_loss(losses).backward()
    total_loss(plain_losses).backward()
    plain_gradients = {name: parameter.grad for name, parameter in plain_model.named_parameters()}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert plain_gradients[name] is None
            torch.testing.assert_close(parameter, plain_model.get_parameter(name), rtol=1e-12, atol=1e-12, msg=name)
        elif not name.endswith("key.bias"):  # zero in theory
            scale = plain_gradients[name].abs().max().item()
            assert scale > 0, name
            difference = (parameter.grad - plain_gradients[name]).abs().max().item()
            assert difference < 1e-5 * scale, f"{name}: {difference / scale:.1e} of the largest"
    for name, queue in model.named_buffers():
        torch.testing.assert_close(queue, plain_model.get_buffer(name), rtol=1e-6, atol=0, msg=name)


def test_negatives_of_the_baseline_are_drawn_among_the_wrong_ones():
    """As ours: with one wrong image and one wrong phrase for each, the draw leaves no choice."""
    scale = replace(SCALE, batch_size=2)
    model = pretraining_model(scale, CPU)
    batch = training_batch(scale, CPU)
    other = torch.tensor([1, 0])
    drawn = baseline.training_losses(deepcopy(model), batch, ALPHA)
    given = baseline.training_losses(deepcopy(model), batch, ALPHA, other, other)
    assert drawn["loss_itm"] == given["loss_itm"]


# FLOPs ----------------------------------------------------------------------------------------------------------------


class CountFlops(TorchDispatchMode):
    """By torch's own formulas; `FlopCounterMode` has hooks that autograd.grad does not stand."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def test_flops_of_evaluation_are_what_torch_counts():
    """Of one length, so that nothing is padded."""
    scale = replace(SCALE, phrase_lengths=(5,))
    model = grounding_model(scale, CPU)
    model.text_model.set_attn_implementation("eager")
    model.vision_model.set_attn_implementation("eager")
    for num_images, num_phrases in ((1, 1), (2, 3)):
        batch = evaluation_batch(scale, CPU, "256px", num_images, num_phrases)
        expected = flops.evaluation(model.config, 32, num_images, [5] * num_images * num_phrases)
        heads = num_images * num_phrases * 2 * model.config.text_config.hidden_size * 2
        itc = (num_images + num_images * num_phrases) * 2 * 32 * model.config.projection_dim
        with CountFlops() as counted:
            heatmaps_of(model, batch)
        assert counted.total == pytest.approx(expected + heads + itc, rel=0.02)


def test_flops_of_a_training_step_are_what_torch_counts():
    counts = {}
    for amc in (True, False):
        model = pretraining_model(SCALE, CPU)
        model.set_attn_implementation("eager")
        model.choose_negatives = lambda *_: NEGATIVES
        step = TrainingStep(model, training_batch(SCALE, CPU), amc=amc)
        with CountFlops() as counted:
            total_loss(step.losses(step.momentum())).backward()
        counts[amc] = counted.total
    assert counts[True] == pytest.approx(flops.training_step(model.config, 32, 4, 8, 8), rel=0.02)
    # The explanation, and twice that for its derivative.
    assert counts[True] - counts[False] == pytest.approx(3 * 4 * flops.explanation(model.config, 32, 8), rel=0.01)


def test_flops_of_a_known_configuration():
    """The base model at 256 pixels, by hand: 257 keys, 768 wide, 12 · 768² weights a layer."""
    config = AlbefConfig()
    patches = 2 * 256 * 768 * 768
    layer = 2 * 257 * 768 * 12 * 768 + 4 * 257 * 257 * 768
    assert flops.image_encoder(config, 256) == patches + 12 * layer
    assert flops.projections(config, 256) == 6 * 2 * 257 * 768 * 1536


# The harness ----------------------------------------------------------------------------------------------------------

NAMES = {
    "eval_256px_14phrases_fp32",
    "eval_256px_5phrases_fp32",
    "eval_256px_14phrases_bf16",
    "heatmap_over_scoring",
    "train_step_fp32",
    "train_step_bf16",
    "amc_over_no_amc",
    "train_peak_memory",
    "train_peak_memory_checkpointing",
    "matrix_rate_fp32",
    "matrix_rate_bf16",
}


@pytest.fixture
def one_thread():
    """`bench.main` sets the number of threads: put back afterwards."""
    threads = torch.get_num_threads()
    yield ["--threads", "1", "--repeats", "1", "--quick"]
    torch.set_num_threads(threads)


def test_everything_is_measured_and_written(one_thread, tmp_path, monkeypatch, capsys):
    # Its own process is tested below; four of them would take ten seconds.
    monkeypatch.setattr(bench, "measure_apart", lambda variant, *_: {"peak": 2**30 * len(variant), "before": 2**29})
    rows = bench.main([*one_thread, "--output", str(tmp_path / "results.json")])
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names) and set(names) >= NAMES
    by_name = {row["name"]: row for row in rows}
    for row in rows:
        assert list(row) == ["name", "ours", "baseline", "ratio", "unit"]
        if row["baseline"] is None:
            assert row["ratio"] is None
        else:
            assert row["ratio"] == pytest.approx(row["ours"] / row["baseline"])
    assert by_name["train_peak_memory"]["ratio"] == len("ours") / len("baseline")
    assert by_name["eval_256px_map_difference_fp32"]["ours"] < 1e-4
    assert by_name["eval_256px_same_points_fp32"]["ratio"] == 1
    parts = [row["ratio"] for row in rows if row["name"].startswith("eval_part_") and row["name"].endswith("fp32")]
    assert len(parts) == 7 and sum(parts) == pytest.approx(1) and min(parts) > 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)


def test_a_part_of_the_run_is_not_written_over_the_whole(one_thread, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.json")
    assert {row["name"] for row in bench.main([*one_thread, "--only", "scaling"])}
    assert not (tmp_path / "results.json").exists()


def test_peak_memory_is_measured_in_a_process_of_its_own():
    ballast = torch.ones(2**28)  # 1 GiB here, which is not there
    found = training_memory.measure_apart("checkpointing", CPU, quick=True)
    assert len(ballast) and 2**26 < found["before"] <= found["peak"] < 2**30


@pytest.mark.parametrize("variant", training_memory.VARIANTS)
def test_every_variant_of_the_training_step_runs(variant):
    found = training_memory.measure(variant, CPU, quick=True)
    assert found["before"] <= found["peak"]


def test_a_failed_measurement_of_memory_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match=r"benchmarks\.training_memory ours .* failed"):
        training_memory.measure_apart("ours", CPU, quick=True)


def test_timing_takes_turns_and_leaves_out_the_first_round():
    calls = []
    seconds = median_seconds(2, lambda: calls.append("a"), lambda: calls.append("b"))
    assert calls == ["a", "b"] * 3
    assert len(seconds) == 2 and min(seconds) > 0


def test_a_part_that_is_no_longer_where_it_was_is_an_error(monkeypatch):
    model = grounding_model(SCALE, CPU)
    batch = evaluation_batch(SCALE, CPU, "256px", 1, 2)
    project = type(model.text_model).project_images
    explain = explain_function(model)

    def elsewhere(model, *inputs):
        monkeypatch.setattr(model.text_model, "project_images", lambda embeds: project(model.text_model, embeds))
        return explain(model, *inputs)

    monkeypatch.setattr(parts, "explain_function", lambda model: elsewhere)
    with pytest.raises(RuntimeError, match="projections"):
        parts.seconds_of_parts(model, batch)


def test_without_a_gpu_its_script_fails_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no CUDA device here: nothing was measured"):
        gpu.main(["--folder", str(tmp_path)])  # a message is an exit code of 1
    assert not list(tmp_path.iterdir())


def test_the_profile_of_the_double_backward():
    whole, amc = gpu.profiles(CPU, quick=True).split("Backward of AMC alone")
    assert "AdamW" in whole and "AdamW" not in amc
    assert "BackwardBackward" in amc  # such as that of a layer norm, which nothing but a second derivative calls
