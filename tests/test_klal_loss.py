"""The KL attention loss: numbers by hand, a second implementation, and what it trains."""

import math

import pytest
import torch

from tests.helpers.training import ONLY, make_trainer, training_logs
from trainer.amc_config import AmcConfig
from trainer.klal_loss import kl_attention_loss

HEAD = [[1.0, 3.0], [0.0, 4.0]]  # shares 1/8, 3/8, 0, 1/2


def klal(maps, masks, *args) -> float:
    maps, masks = (torch.tensor(values, dtype=torch.float64) for values in (maps, masks))
    return kl_attention_loss(maps, masks, *args)["loss_klal"].item()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[0, 0], [0, 1]], math.log(2)),
        ([[0, 1], [0, 1]], (math.log(0.5 / 0.375) + math.log(0.5 / 0.5)) / 2),
        ([[0.5, 0], [0, 0.5]], (math.log(0.5 / 0.125) + math.log(0.5 / 0.5)) / 2),
        ([[0, 0], [0, 0]], 0.0),  # no region
        # Of 4 x 4 pixels, half of the first cell and all of the last: 1/3 and 2/3.
        ([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], math.log(8 / 3) / 3 + 2 * math.log(4 / 3) / 3),
    ],
)
def test_one_head(mask, expected):
    assert klal([[HEAD]], [mask]) == pytest.approx(expected, abs=1e-9)


def test_heads_count_alike_however_much_they_look_at_the_image():
    faint = [[0.002, 0.0], [0.006, 0.0]]  # shares 1/4, 0, 3/4, 0
    q = (3 / 8 + 0) / 2
    assert klal([[HEAD, faint]], [[[0, 1], [0, 0]]]) == pytest.approx(-math.log(q), abs=1e-9)


def test_the_least_is_at_the_region():
    mask = [[0, 1], [0, 1]]
    assert klal([[mask]], [mask]) == pytest.approx(0, abs=1e-9)
    assert klal([[[[1, 0], [1, 0]]]], [mask]) == pytest.approx(math.log(0.5 / 1e-6), rel=1e-6)  # and finite


def test_phrases_without_a_region_are_left_out():
    masks = [[[0, 0], [0, 1]], [[1, 0], [0, 0]]]
    assert klal([[HEAD], [HEAD]], masks, torch.tensor([True, False])) == pytest.approx(math.log(2))
    maps = torch.rand(2, 1, 2, 2, requires_grad=True)
    loss = kl_attention_loss(maps, torch.tensor(masks).float(), torch.zeros(2).bool())["loss_klal"]
    loss.backward()
    assert loss == 0 and (maps.grad == 0).all()


@pytest.mark.parametrize(
    ("maps", "masks", "has_region", "message"),
    [
        ((2, 2, 2), (2, 4, 4), None, "attention_maps .* do not fit"),
        ((2, 1, 2, 2), (3, 4, 4), None, "do not fit"),
        ((2, 1, 2, 2), (2, 4, 4), (3,), r"has_region must be \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit(maps, masks, has_region, message):
    with pytest.raises(ValueError, match=message):
        kl_attention_loss(torch.rand(maps), torch.rand(masks), has_region and torch.ones(has_region))


def test_what_the_trainer_adds_up(tmp_path):
    """Of the model's output and the collator's masks, once more without the trainer; it falls, and the others are 0."""
    trainer = make_trainer(tmp_path, **{**ONLY, "klal_weight": 0.5, "region_loss": "klal"}, max_steps=4)
    trainer.train()
    logs = training_logs(trainer)
    assert all(entry["loss"] == pytest.approx(0.5 * entry["loss_klal"], rel=1e-5) for entry in logs)
    assert logs[-1]["loss_klal"] < logs[0]["loss_klal"] and "loss_amc_mean" not in logs[0]
    batch = next(iter(trainer.get_eval_dataloader()))
    options = dict(image_ids=batch["image_ids"], image_index=batch["image_index"], output_attention_maps=True)
    with torch.no_grad():
        _, outputs = trainer.compute_loss(trainer.model.eval(), dict(batch), return_outputs=True)
        again = trainer.model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"], **options)
    torch.testing.assert_close(outputs.attention_maps, again.attention_maps)
    expected = kl_attention_loss(again.attention_maps, batch["masks"], batch["has_region"])["loss_klal"]
    assert trainer.means["eval"].sums["loss_klal"][0].item() == pytest.approx(
        (expected * batch["has_region"].sum()).item(), rel=1e-5
    )


def test_which_losses_count():
    settings = dict(output_dir="unused", report_to="none", use_cpu=True)
    used = {
        name: {loss for loss, weight in AmcConfig(**settings, region_loss=name).loss_weights.items() if weight}
        for name in ("amc", "klal", "both", "none")
    }
    amc, klal = {"loss_amc_mean", "loss_amc_max"}, {"loss_klal"}
    assert used["amc"] - used["none"] == amc and used["klal"] - used["none"] == klal
    assert used["both"] - used["none"] == amc | klal and not used["none"] & (amc | klal)
    with pytest.raises(ValueError, match="region_loss must be one of amc, klal, both, none, not 'kl'"):
        AmcConfig(**settings, region_loss="kl")
    with pytest.raises(ValueError, match="klal_weight must be at least 0"):
        AmcConfig(**settings, klal_weight=-1)
