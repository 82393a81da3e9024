"""The plain implementation that speed is measured against gives the numbers of the fast paths, and the harness runs."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from benchmarks import baseline
from benchmarks.workloads import (
    ALPHA,
    QUICK,
    TrainingStep,
    evaluate,
    evaluation_batch,
    grounding_model,
    pretraining_model,
    total_loss,
    training_batch,
)

CPU = torch.device("cpu")


def without_dropout() -> dict:
    text = QUICK.config["text_config"] | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return QUICK.config | {"text_config": text}


SCALE = replace(QUICK, config=without_dropout())


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
    negatives = {"negative_image_index": torch.tensor([2, 0, 3, 1]), "negative_text_index": torch.tensor([1, 3, 0, 2])}
    plain_model = deepcopy(model)

    ours = TrainingStep(model, batch)
    ours.batch = batch | negatives
    losses = ours.losses(ours.momentum())
    plain_losses = baseline.training_losses(plain_model, batch, ALPHA, **negatives)
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
