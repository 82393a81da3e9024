"""`AmcTrainer` on a tiny ALBEF and a tiny BLIP: what a step does, what it logs, and what happens when it fails."""

import copy
import math
import shutil
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import BlipForImageTextRetrieval, TrainerCallback

from dataset_scripts.features import FEATURES, encode_png, make_row
from modeling_albef_amc import AlbefForPreTraining, AutoGrounder
from modeling_albef_amc.families.decoders import DECODERS
from modeling_albef_amc.families.processors import max_tokens
from tests.helpers.data import (
    PHRASES,
    blip_processor,
    picture,
    scattered_boxes,
    tiny_albef,
    tiny_dataset,
    tiny_processor,
    tiny_records,
)
from tests.helpers.models import (
    TINY,
    own_clip_processor,
    own_tokenizer_model,
    relative_difference,
    tiny_blip,
    tiny_family_processor,
)
from tests.helpers.training import (
    ONLY,
    FixedDraws,
    Poison,
    Watcher,
    collator_of,
    is_equal,
    make_trainer,
    snapshot,
    training_logs,
)
from trainer.amc_loss import attention_mask_consistency_loss
from trainer.amc_trainer import AmcTrainer
from trainer.augmentation import GroundingAugmentation
from trainer.model_card import model_card
from trainer.sampler import ImageGroupedSampler

LOSSES = ["loss_itc", "loss_itm", "loss_mlm", "loss_amc_mean", "loss_amc_max"]


def bad_steps(trainer: AmcTrainer) -> list[int]:
    return [entry["bad_step"] for entry in trainer.state.log_history if "bad_step" in entry]


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


# A step ---------------------------------------------------------------------------------------------------------------


def test_training_moves_what_it_should_and_evaluation_nothing(tmp_path):
    model = tiny_albef(momentum=0.9)
    before, watcher = snapshot(model), Watcher()
    trainer = make_trainer(tmp_path, model, watcher=watcher)
    trainer.train()
    first, last = watcher.weights
    still = [name for name, _ in model.named_parameters() if torch.equal(before[name], last[name])]
    assert all(name.startswith("momentum_encoder.") for name in still), still
    # The teacher began as a copy: it moves at the beginning of the second step, towards the weights of the first one.
    assert all(torch.equal(before[name], first[name]) for name in before if name.startswith("momentum_encoder."))
    followed = 0
    for name, original in first.items():
        copied = "momentum_encoder." + name.removeprefix("albef.")
        if copied in last:
            torch.testing.assert_close(last[copied], 0.9 * before[copied] + 0.1 * original)
            followed += not torch.equal(last[copied], before[copied])
    assert followed > 50
    # Two batches of four went into the queues of twelve.
    assert before["queue_pointer"] == 0 and first["queue_pointer"] == 4 and last["queue_pointer"] == 8
    for queue in ("image_queue", "text_queue", "image_id_queue", "text_id_queue"):
        changed = (before[queue] != last[queue]).reshape(12, -1).any(dim=1)
        assert changed.tolist() == [True] * 8 + [False] * 4
        assert torch.equal(first[queue][:4], last[queue][:4])
    model.zero_grad()
    assert math.isfinite(trainer.evaluate()["eval_loss"]) and not model.training
    assert is_equal(last, snapshot(model)) and all(parameter.grad is None for parameter in model.parameters())


def test_every_component_is_logged_under_its_own_name(tmp_path):
    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=2, itm_weight=0.5, amc_max_weight=0.25)
    trainer.train()
    logs = training_logs(trainer)
    assert len(logs) == 2
    weights = dict(zip(LOSSES, (1, 0.5, 1, 0.2, 0.25)))
    for entry in logs:
        assert entry["loss"] == pytest.approx(sum(weight * entry[name] for name, weight in weights.items()), rel=1e-5)
        assert {"grad_norm", "learning_rate"} < set(entry) and all(entry[name] > 0 for name in LOSSES)
    (evaluated,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert {f"eval_{name}" for name in LOSSES} | {"eval_pointing_game", "eval_num_phrases"} < set(evaluated)
    assert evaluated["eval_num_phrases"] == 8 and all(evaluated[f"eval_{name}"] > 0 for name in LOSSES)


def test_logged_losses_are_means_over_the_logged_steps(tmp_path):
    model = tiny_albef()
    each = make_trainer(tmp_path / "each", copy.deepcopy(model), collator=FixedDraws(collator_of()))
    both = make_trainer(tmp_path / "both", model, collator=FixedDraws(collator_of()), logging_steps=2)
    each.train()
    both.train()
    steps, (window,) = training_logs(each), training_logs(both)
    for name in ("loss_itc", "loss_itm", "loss_amc_mean", "loss_amc_max"):
        assert window[name] == pytest.approx((steps[0][name] + steps[1][name]) / 2, rel=1e-5)
    # All masked words are in the first batch: they are weighted by their number, not by the step.
    assert "loss_mlm" not in steps[1] and window["loss_mlm"] == pytest.approx(steps[0]["loss_mlm"], rel=1e-5)


@pytest.mark.parametrize(
    ("kept", "untouched"),
    [
        ("itc_weight", ("albef.itm_head", "mlm_head", "albef.text_model.layers.4")),
        ("itm_weight", ("albef.vision_projection", "albef.text_projection", "albef.temperature", "mlm_head.dense")),
        ("mlm_weight", ("albef.vision_projection", "albef.text_projection", "albef.temperature", "albef.itm_head")),
        ("amc_mean_weight", ("albef.vision_projection", "albef.temperature", "mlm_head.dense", "albef.itm_head.bias")),
        ("klal_weight", ("albef.vision_projection", "albef.temperature", "mlm_head.dense", "albef.itm_head")),
    ],
)
def test_a_weight_of_zero_switches_a_term_off(tmp_path, kept, untouched):
    watcher = Watcher()
    trainer = make_trainer(tmp_path, watcher=watcher, max_steps=1, amc_margin_mean=2.0, **{**ONLY, kept: 1.0})
    trainer.train()
    (gradients,) = watcher.gradients
    for start in untouched:
        own = [name for name in gradients if name.startswith(start)]
        assert own and all(gradients[name] is None for name in own), start
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())
    (entry,) = training_logs(trainer)
    (name,) = [name for name in (*LOSSES, "loss_klal") if kept.removesuffix("_weight") == name.removeprefix("loss_")]
    assert entry["loss"] == pytest.approx(entry[name], rel=1e-5)
    assert ("loss_amc_max" in entry) == (kept == "amc_mean_weight")


# Batches of all kinds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "batch_size"),
    [
        (tiny_dataset(8, without_region=(1, 2, 6)), 4),
        (tiny_dataset(4, without_region=(0, 1, 2, 3)), 4),
        (tiny_dataset(5), 4),
        (tiny_dataset(8).map(lambda record: {**record, "phrase": "the red square"}), 4),
        (tiny_dataset(8, phrases_per_image=4), 4),
    ],
    ids=["mixed", "no region", "last batch of one", "equal captions", "one picture"],
)
def test_batches_of_all_kinds_train_on(tmp_path, dataset, batch_size):
    watcher = Watcher()
    # Of a plain list nobody asks beforehand whether it has regions.
    rows = dataset if any(dataset["boxes"]) else list(dataset)
    trainer = make_trainer(tmp_path, dataset=rows, watcher=watcher, per_device_train_batch_size=batch_size)
    before = snapshot(trainer.model)
    trainer.train()
    metrics = trainer.evaluate()
    logs = training_logs(trainer)
    assert all(math.isfinite(value) for entry in [*logs, metrics] for value in entry.values())
    moved = [name for name, value in watcher.weights[-1].items() if not torch.equal(value, before[name])]
    assert "albef.vision_model.embeddings.cls_token" in moved or any("vision_model" in name for name in moved)
    assert trainer.bad_steps == 0 and bad_steps(trainer) == []
    num_regions = sum(len(boxes) > 0 for boxes in dataset["boxes"])
    assert metrics.get("eval_num_phrases", 0) == num_regions
    if num_regions == 0:
        assert not any(entry.keys() & {"loss_amc_mean", "loss_amc_max"} for entry in [*logs, metrics])


# Accumulation ---------------------------------------------------------------------------------------------------------


def joined_gradients(model, records, alpha=0.4) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradients and losses of all records as one batch, written out without the trainer."""
    batch = FixedDraws(collator_of())(records)
    masks, has_region = batch["masks"], batch["has_region"]
    for name in ("masks", "has_region", "boxes", "image_sizes", "record_names"):
        batch.pop(name)
    model.choose_negatives = FixedDraws.negatives
    model.train()
    model.zero_grad()
    outputs = model(**batch, alpha=alpha, output_heatmaps=True)
    amc = attention_mask_consistency_loss(outputs.heatmaps[has_region], masks[has_region])
    losses = {name: outputs[name] for name in LOSSES[:3]} | amc
    (outputs.loss + 0.2 * amc["loss_amc_mean"] + 0.8 * amc["loss_amc_max"]).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return gradients, {name: loss.item() for name, loss in losses.items()}


def test_accumulation_gives_the_gradients_of_the_joined_batch(tmp_path):
    # Three of the first three rows have a region and all masked words; one of the other three, and no word.
    model, dataset, watcher = tiny_albef(), tiny_dataset(6, without_region=(3, 5)), Watcher()
    expected, losses = joined_gradients(copy.deepcopy(model), list(dataset))
    joined = copy.deepcopy(model)
    joined_gradients(joined, list(dataset))
    settings = dict(per_device_train_batch_size=3, gradient_accumulation_steps=2, max_steps=1)
    trainer = make_trainer(tmp_path, model, dataset, FixedDraws(collator_of()), watcher, **settings)
    trainer.train()
    assert relative_difference(expected, watcher.gradients[0]) < 1e-5
    (entry,) = training_logs(trainer)
    assert {name: entry[name] for name in LOSSES} == pytest.approx(losses, rel=1e-5)
    for name, buffer in joined.named_buffers():
        torch.testing.assert_close(watcher.weights[0][name], buffer)
    # The means of the two micro-batches would not do: this test would notice.
    halves = [joined_gradients(copy.deepcopy(model), list(dataset)[i : i + 3])[0] for i in (0, 3)]
    mean = {n: None if expected[n] is None else (halves[0][n] + halves[1][n]) / 2 for n in expected}
    assert relative_difference(expected, mean) > 0.05


@pytest.mark.parametrize(("batch_size", "num_batches"), [(6, 1), (3, 2), (2, 3)])
def test_a_term_of_ones_own_counts_once_however_many_batches_a_step_has(tmp_path, batch_size, num_batches):
    class WithDecay(AmcTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            loss = loss + 1e6 * model.albef.vision_projection.bias.square().sum()
            return (loss, outputs) if return_outputs else loss

    model, watcher = tiny_albef(), Watcher()
    torch.nn.init.ones_(model.albef.vision_projection.bias)
    settings = dict(per_device_train_batch_size=batch_size, gradient_accumulation_steps=num_batches)
    settings |= dict(max_steps=1, max_grad_norm=1e9, trainer_class=WithDecay)
    trainer = make_trainer(tmp_path, model, tiny_dataset(6), watcher=watcher, **settings)
    trainer.train()
    # Of 1e6 b² at 1, beside which the other losses are nothing.
    assert watcher.gradients[0]["albef.vision_projection.bias"].tolist() == pytest.approx([2e6] * 8, rel=1e-4)
    assert training_logs(trainer)[0]["loss"] == pytest.approx(8e6, rel=1e-4)


def test_a_short_last_step_of_an_epoch(tmp_path):
    """Five batches of two in steps of three: the second step has two micro-batches and the same rule."""
    model, dataset = tiny_albef(), tiny_dataset(8)
    watcher = Watcher()
    settings = dict(per_device_train_batch_size=2, gradient_accumulation_steps=3, max_steps=2, learning_rate=0.0)
    collator = FixedDraws(collator_of())
    make_trainer(tmp_path, copy.deepcopy(model), dataset, collator, watcher, weight_decay=0.0, **settings).train()
    assert len(watcher.gradients) == 2
    norms = [max(g.abs().max() for g in grads.values() if g is not None) for grads in watcher.gradients]
    # Not divided by three where there are but one or two: the two steps are of the same order.
    assert 0.2 < norms[1] / norms[0] < 5


@pytest.mark.parametrize("num_rows", [10, 8])
def test_steps_of_data_without_a_length_are_whole(tmp_path, num_rows):
    """Passes of three batches, or of two, in steps of two: what a pass leaves over begins the next step."""
    seen = []

    def collator(rows):
        seen.append([row["image_id"] for row in rows])
        return collate(rows)

    collate = collator_of(mlm_probability=0.0)
    settings = dict(max_steps=4, gradient_accumulation_steps=2, learning_rate=0.0, mlm_weight=0.0)
    trainer = make_trainer(
        tmp_path, dataset=tiny_dataset(num_rows).to_iterable_dataset(), collator=collator, **settings
    )
    trainer.train()
    passes = [[f"scene-{row}" for row in range(first, min(first + 4, num_rows))] for first in range(0, num_rows, 4)]
    assert seen[:8] == (passes * 4)[:8]
    for entry in training_logs(trainer):
        parts = [weight * entry.get(name, 0) for name, weight in trainer.args.loss_weights.items()]
        assert entry["loss"] == pytest.approx(sum(parts), rel=1e-4)


def test_a_pass_of_fewer_batches_than_a_step_takes(tmp_path):
    rows = tiny_dataset(4).to_iterable_dataset()
    with pytest.raises(ValueError, match="The training data have 1 batches, and a step takes 2: lower gradient_acc"):
        make_trainer(tmp_path, dataset=rows, gradient_accumulation_steps=2).train()


# Schedules and groups -------------------------------------------------------------------------------------------------


def test_alpha_rises_over_the_first_epochs(tmp_path):
    trainer = make_trainer(tmp_path, alpha_ramp_epochs=2.0, alpha=0.4, max_steps=6)
    seen = []

    def look(module, args, kwargs):
        seen.append(kwargs["alpha"])

    trainer.model.register_forward_pre_hook(look, with_kwargs=True)
    trainer.train()  # two steps an epoch
    assert seen == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert make_trainer(tmp_path, alpha_ramp_epochs=0, alpha=0.3).alpha() == 0.3


def test_epochs_of_data_without_a_length_are_counted(tmp_path):
    """Two steps an epoch, of which Trainer knows nothing."""
    settings, seen = dict(max_steps=5, alpha_ramp_epochs=2.0, alpha=0.4), []
    trainer = make_trainer(tmp_path, dataset=tiny_dataset(8).to_iterable_dataset(), **settings)
    collator = trainer.data_collator
    trainer.model.register_forward_pre_hook(lambda *a: seen.append((collator.epoch, a[2]["alpha"])), with_kwargs=True)
    trainer.train()
    epochs, alphas = zip(*seen)
    assert epochs == (0, 0, 1, 1, 2) and alphas[0] == 0 and 0.2 <= alphas[2] <= alphas[3] < alphas[4] == 0.4


def test_weight_decay_spares_what_it_should(tmp_path):
    trainer = make_trainer(tmp_path, weight_decay=0.3)
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decayed, spared = set(), set()
    for group in optimizer.param_groups:
        of_group = {0.3: decayed, 0.0: spared}[group["weight_decay"]]
        of_group |= {names[id(parameter)] for parameter in group["params"]}
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert decayed | spared == set(trained) and not decayed & spared
    # Vectors and scalars are biases, norms and the temperature; of the matrices these alone are spared.
    matrices = {name for name in spared if trained[name].squeeze().ndim > 1}
    assert matrices == {
        "albef.vision_model.embeddings.position_embeddings",
        "albef.text_model.embeddings.position_embeddings.weight",
    }
    assert {name for name in decayed if trained[name].squeeze().ndim < 2} == set()
    assert {"albef.temperature", "albef.vision_model.embeddings.cls_token", "mlm_head.decoder.bias"} <= spared
    assert "albef.text_model.embeddings.word_embeddings.weight" in decayed


# What is not finite ---------------------------------------------------------------------------------------------------


def test_a_step_with_nan_is_skipped_and_its_records_are_named(tmp_path, caplog):
    watcher = Watcher()
    collator = Poison(collator_of(), "masks", "scene-5")
    trainer = make_trainer(tmp_path, collator=collator, watcher=watcher, max_steps=4)  # batches 2 and 4 are poisoned
    with caplog.at_level("WARNING", logger="trainer.amc_trainer"):
        assert trainer.train().metrics["num_bad_steps"] == 2
    one, two, three, four = watcher.weights
    trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert all(torch.equal(one[name], two[name]) for name in trained)
    assert all(torch.equal(three[name], four[name]) for name in trained)
    assert any(not torch.equal(two[name], three[name]) for name in trained)
    for before, after in ((0, 1), (2, 3)):
        for state, other in zip(watcher.optimizer[before].values(), watcher.optimizer[after].values()):
            assert is_equal(state, other)
    assert bad_steps(trainer) == [2, 4]
    warnings = [record.getMessage() for record in caplog.records if "no finite gradient" in record.getMessage()]
    assert len(warnings) == 2 and "Step 2" in warnings[0]
    assert "image 'scene-5', phrase 'very small green square on the right'" in warnings[0]
    assert "scene-7" in warnings[0] and "scene-3" not in warnings[0]  # the whole batch, and no other


def test_nan_in_the_encoders_is_skipped_too_and_does_not_stay(tmp_path):
    """As when a layer overflows: it reaches the drawing of negatives and the features that go into the queues."""
    model = tiny_albef()
    collator = Poison(collator_of(), "pixel_values", "scene-5")
    trainer = make_trainer(tmp_path, model, tiny_dataset(20), collator, max_steps=5)
    trainer.train()
    assert bad_steps(trainer) == [2]
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_a_gradient_that_is_not_finite_counts_though_the_loss_is(tmp_path):
    watcher, model = Watcher(), tiny_albef()
    calls = []

    def overflow(gradient):
        calls.append(0)
        return gradient * math.inf if len(calls) == 2 else gradient

    model.albef.itm_head.weight.register_hook(overflow)
    trainer = make_trainer(tmp_path, model, watcher=watcher, max_steps=3)
    trainer.train()
    one, two, three = ({n: w[n] for n, _ in model.albef.named_parameters(prefix="albef")} for w in watcher.weights)
    assert is_equal(one, two) and not is_equal(two, three) and trainer.bad_steps == 0 and bad_steps(trainer) == [2]


def test_too_many_bad_steps_end_the_run_with_a_checkpoint_that_loads(tmp_path):
    collator = Poison(collator_of(), "masks", *(f"scene-{i}" for i in range(4, 20)))
    trainer = make_trainer(
        tmp_path, dataset=tiny_dataset(20), collator=collator, max_steps=20, max_bad_steps=3, num_train_epochs=1
    )
    with pytest.raises(FloatingPointError, match=r"Step 4 .*scene-12.* 3 in a row.*Lower the learning rate") as raised:
        trainer.train()
    assert saved_steps(tmp_path) == [3] and str(tmp_path) in str(raised.value)
    folder = tmp_path / "checkpoint-3"
    loaded = AlbefForPreTraining.from_pretrained(folder)
    states = [{n: v for n, v in m.state_dict().items() if "queue" not in n} for m in (loaded, trainer.model)]
    assert is_equal(*states) and (loaded.queue_pointer, trainer.model.queue_pointer) == (0, 4)  # after 3 and 4 steps
    assert all(tensor.isfinite().all() for tensor in loaded.state_dict().values())
    resumed = make_trainer(tmp_path / "resumed", tiny_albef(), tiny_dataset(20), max_steps=5)
    resumed.train(resume_from_checkpoint=str(folder))
    assert resumed.state.global_step == 5 and resumed.bad_steps == 0


def test_an_unreadable_picture_ends_the_run_but_what_was_trained_is_saved(tmp_path):
    records = tiny_records(12)
    records[9]["image"]["bytes"] = records[9]["image"]["bytes"][:60]
    dataset = tiny_dataset(12).map(lambda row, i: {**row, "image": records[i]["image"]}, with_indices=True)
    dataset = dataset.cast(tiny_dataset(1).features)
    trainer = make_trainer(tmp_path, dataset=dataset, max_steps=3)
    with pytest.raises(ValueError, match=r"image 'scene-9', phrase .*is not a readable image") as raised:
        trainer.train()
    # The loader is one batch ahead: it fails before the second step.
    folder = tmp_path / "checkpoint-1"
    assert saved_steps(tmp_path) == [trainer.state.global_step] == [1]
    assert any("resume_from_checkpoint" in note for note in raised.value.__notes__)
    assert is_equal(AlbefForPreTraining.from_pretrained(folder).state_dict(), trainer.model.state_dict())
    repaired = make_trainer(tmp_path, dataset=tiny_dataset(12), max_steps=3)
    repaired.train(resume_from_checkpoint=str(folder))
    assert repaired.state.global_step == 3


class Interrupting(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("step", "settings", "saved"),
    [(0, {}, []), (2, {}, [2]), (2, {"save_strategy": "steps", "save_steps": 1}, [1, 2])],
    ids=["nothing to save", "what was not saved", "saved already"],
)
def test_an_interrupted_run_saves_once(tmp_path, monkeypatch, step, settings, saved):
    trainer = make_trainer(tmp_path, watcher=Interrupting(step), max_steps=4, **settings)
    written = []
    save_model = trainer.save_model
    monkeypatch.setattr(trainer, "save_model", lambda *a, **k: (written.append(a[0]), save_model(*a, **k)))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [int(Path(folder).name.split("-")[1]) for folder in written] == saved
    assert saved_steps(tmp_path) == saved


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_the_pointing_game_equals_a_naive_one(tmp_path):
    dataset = tiny_dataset(14, phrases_per_image=2).map(scattered_boxes, with_indices=True)
    trainer = make_trainer(tmp_path, dataset=dataset)
    trainer.train()
    metrics = trainer.evaluate()
    model, processor, hits, points = trainer.model.albef.eval(), tiny_processor(), [], []
    for row in dataset.cast_column("image", tiny_dataset(1).features["image"].__class__(decode=True)):
        inputs = processor(images=row["image"], text=row["phrase"], return_tensors="pt")
        heatmaps = model(**inputs, output_heatmaps=True).heatmaps
        (answer,) = processor.post_process_grounding(heatmaps, [(row["image"].height, row["image"].width)])
        x, y = answer["point"]
        points.append((x, y))
        if row["boxes"]:
            hits.append(any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in row["boxes"]))
    assert 0 < sum(hits) < len(hits) == 12, "a test that could not fail"
    assert metrics["eval_pointing_game"] == pytest.approx(sum(hits) / len(hits))
    assert metrics["eval_num_phrases"] == 12
    assert trainer.predict(dataset).predictions[0].tolist() == [list(point) for point in points]


def test_images_are_not_cut_in_training_and_evaluation(tmp_path):
    """Though the processor, as CLIP's does, cuts out the middle; the square is at the edge."""
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[10:20, :20] = 255
    record = make_row(encode_png(pixels), "wide", "red square", [[0, 10, 20, 20]])
    trainer = make_trainer(
        tmp_path, own_tokenizer_model("clip"), collator=collator_of(own_clip_processor(), mlm_probability=0)
    )
    loader = trainer.get_eval_dataloader([record])
    for batch in (trainer.data_collator([record]), next(iter(loader))):
        (image,) = batch["pixel_values"]
        assert image[:, 8:16, :5].min() > image[:, :, 8:].max() and batch["masks"][0, 4:8, :2].min() == 1


def test_a_collator_and_its_processor_serve_models_of_several_sizes(tmp_path):
    """None of them takes the sizes or the epoch of another."""
    small, collator = own_tokenizer_model("clip"), collator_of(own_clip_processor(), mlm_probability=0)
    config = copy.deepcopy(small.config)
    config.vision_config.image_size, config.text_config.max_position_embeddings = 48, 30
    models, said = [small, type(small)(config)], collator.processor.to_dict()
    trainers = [make_trainer(tmp_path, model, collator=collator, max_steps=4) for model in models]
    grounders = [AutoGrounder(model, collator.processor) for model in models]
    for trainer, grounder, side, length in zip(trainers, grounders, (32, 48), (max_tokens(small.config), 30)):
        for each in (trainer.data_collator, trainer.eval_data_collator):
            assert each(tiny_dataset(2).to_list())["pixel_values"].shape == (2, 3, side, side)
            assert each.max_tokens == length and each.processor.image_processor.size["height"] == side
        assert grounder.processor.image_processor.size == {"height": side, "width": side}
        assert trainer.processing_class is trainer.callback_handler.processing_class is trainer.data_collator.processor
    trainers[0].train()
    assert [each.data_collator.epoch for each in trainers] == [1, 0] and collator.max_tokens is None
    assert collator.processor.to_dict() == said


@pytest.mark.parametrize("family", ["albef", *sorted({*TINY} - {"qwen3_5"})])  # whose tokenizer spells words here
def test_an_evaluation_goes_on_without_a_phrase_that_is_too_long(tmp_path, family):
    model = tiny_albef() if family == "albef" else TINY[family]()
    most = max_tokens(model.config)
    records, num_special = tiny_records(5), 0 if family in DECODERS else 1  # [CLS]
    for record, num_words in zip(records[1:], (most - num_special, most - num_special + 1)):
        record["phrase"] = "red " * num_words
    dataset = datasets.Dataset.from_list(records, features=FEATURES).cast_column("image", datasets.Image(decode=False))
    processor = tiny_processor() if family == "albef" else tiny_family_processor(family, [*PHRASES, "very small here"])
    trainer = make_trainer(tmp_path, model, dataset, collator_of(processor, mlm_probability=0, strict=False))
    metrics = trainer.evaluate()
    assert metrics["eval_num_phrases"] == 4
    (message,) = trainer.unusable
    assert message.startswith("image 'scene-2', phrase 'red red") and f"the model takes {most}" in message
    assert trainer.train().metrics["num_unusable"] == 1


def test_evaluation_and_prediction_use_the_collator_without_augmentation(tmp_path):
    used = []

    class Named:
        def __init__(self, name):
            self.name = name

        def __call__(self, records):
            used.append(self.name)
            return collator_of()(records)

    trainer = make_trainer(tmp_path, collator=Named("train"), max_steps=1)
    trainer.eval_data_collator = Named("eval")
    trainer.train()
    assert set(used) == {"train"}
    used.clear()
    trainer.evaluate()
    trainer.predict(trainer.eval_dataset)
    assert set(used) == {"eval"} and trainer.data_collator.name == "train"


def test_a_second_training_begins_its_logs_anew(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3, logging_steps=2, learning_rate=0.0)
    for _ in range(2):
        trainer.train()
        (entry,) = training_logs(trainer)
        weights = dict(zip(LOSSES, (1, 1, 1, 0.2, 0.8)))
        # Nearly: the mean over masked words is not that over steps.
        assert entry["loss"] == pytest.approx(sum(weight * entry[name] for name, weight in weights.items()), rel=1e-3)


def test_an_evaluation_of_a_callback_does_not_choose_the_best(tmp_path):
    class Evaluating(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            due = copy.deepcopy(control)
            trainer.evaluate(trainer.train_dataset, metric_key_prefix="train")
            return due

    settings = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    trainer = make_trainer(tmp_path, watcher=Evaluating(), load_best_model_at_end=True, **settings)
    trainer.train()
    assert "train" in trainer.evaluations


@pytest.mark.parametrize("family", ["albef", "blip", "vilt", "clip", "siglip"])
def test_the_loss_of_an_evaluation_depends_on_the_weights_and_the_data_alone(tmp_path, family):
    """Not on the queues, the teacher, alpha, the epoch or chance: a learning rate of 0 changes nothing."""
    if family == "albef":
        model, processor = tiny_albef(), None
        with torch.no_grad():
            for parameter in model.momentum_encoder.parameters():  # that has far to go
                parameter.mul_(1.5)
    else:
        model, processor = TINY[family](), blip_processor()
    options = dict(mlm_probability=0.3 if family == "albef" else 0.0, box_choice="random", max_length=20)
    collator = collator_of(processor, augmentation=GroundingAugmentation(), **options)
    settings = dict(learning_rate=0.0, eval_strategy="steps", eval_steps=1, max_steps=4, alpha_ramp_epochs=2.0)
    trainer = make_trainer(tmp_path, model, collator=collator, **settings)
    metrics = [trainer.evaluate(), trainer.evaluate()]
    trainer.train()
    metrics += [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    names = [name for name in metrics[0] if "loss" in name]
    assert len(metrics) == 6 and len(names) >= 4
    for later in metrics[1:]:
        assert {name: later[name] for name in names} == pytest.approx({n: metrics[0][n] for n in names}, rel=1e-6)


@pytest.mark.parametrize(("regions", "metric"), [(True, "eval_pointing_game"), (False, "eval_loss")])
def test_the_best_checkpoint_is_the_one_that_points_best(tmp_path, regions, metric):
    dataset = tiny_dataset(8, without_region=() if regions else tuple(range(8)))
    settings = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, max_steps=3)
    settings |= dict(load_best_model_at_end=True, **({} if regions else {"amc_mean_weight": 0, "amc_max_weight": 0}))
    trainer = make_trainer(tmp_path, dataset=dataset, **settings)
    trainer.train()
    values = {entry["step"]: entry[metric] for entry in trainer.state.log_history if metric in entry}
    best = (max if regions else min)(values.values())
    assert len(values) == 3 and trainer.state.best_metric == best == values[trainer.state.best_global_step]
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{trainer.state.best_global_step}")


def planned(folder, scores: list[float], metric: str = "pointing_game", **settings) -> tuple[AmcTrainer, Watcher]:
    """Evaluated after each step of so many, with these scores, and saved after each second."""
    defaults = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=2, max_steps=len(scores))
    defaults |= dict(load_best_model_at_end=True, metric_for_best_model=metric)
    watcher, to_come = Watcher(), iter(scores)
    trainer = make_trainer(folder, watcher=watcher, **{**defaults, **settings})
    trainer.compute_metrics = lambda prediction: {metric: next(to_come)}
    return trainer, watcher


@pytest.mark.parametrize(
    ("scores", "settings", "best", "saved"),
    [
        ([0.2, 0.5, 0.6, 0.1], {}, 3, [1, 2, 3, 4]),
        ([0.6, 0.5, 0.3, 0.1], {}, 1, [1, 2, 4]),
        ([0.6, 0.5, 0.3, 0.1], {"save_total_limit": 1}, 1, [1]),
        ([0.6, 0.7, 0.5, 0.8], {"metric": "error", "greater_is_better": False}, 3, [1, 2, 3, 4]),
        ([0.2, 0.5, 0.4, 0.3, 0.6], {"save_steps": 4, "early_stopping_patience": 2}, 2, [1, 2, 4]),
        ([0.2, 0.6, 0.1], {"save_steps": 3, "metric_for_best_model": None}, 2, [1, 2, 3]),
    ],
)
def test_the_best_weights_are_kept_where_evaluations_are_more_frequent_than_saves(
    tmp_path, scores, settings, best, saved
):
    trainer, watcher = planned(tmp_path, scores, **settings)
    trainer.train()
    assert is_equal(snapshot(trainer.model), watcher.weights[best - 1])
    assert saved_steps(tmp_path) == saved
    assert trainer.evaluations["eval"].metrics[settings.get("metric", "pointing_game")] == scores[best - 1]
    assert f"the weights are those after step {best}, the best" in model_card(trainer).text


def test_the_card_speaks_of_the_checkpoint_whose_weights_are_kept(tmp_path):
    class Refusing(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            control.should_save &= state.global_step % 2 == 0

    trainer, watcher = planned(tmp_path, [0.2, 0.5, 0.6, 0.1])
    trainer.add_callback(Refusing())
    trainer.train()
    assert is_equal(snapshot(trainer.model), watcher.weights[1])
    assert trainer.evaluations["eval"].metrics["pointing_game"] == 0.5
    assert "the weights are those after step 2, the best" in model_card(trainer).text


def test_a_run_that_is_resumed_without_its_best_checkpoint_keeps_the_best_one_to_come(tmp_path):
    planned(tmp_path, [0.6, 0.2])[0].train()
    shutil.rmtree(tmp_path / "checkpoint-1")
    trainer, watcher = planned(tmp_path, [0.5, 0.3], max_steps=4)
    trainer.train(resume_from_checkpoint=True)
    assert is_equal(snapshot(trainer.model), watcher.weights[0]) and trainer.state.best_global_step == 3


# Order of the rows ----------------------------------------------------------------------------------------------------


def test_image_grouped_sampler():
    image_ids = [f"image {i % 7}" for i in range(40)]

    def order(epoch: int, seed: int = 5) -> list[int]:
        sampler = ImageGroupedSampler(image_ids, phrases_per_image=3, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    orders = [order(epoch) for epoch in range(3)]
    for rows in orders:
        assert sorted(rows) == list(range(40))
        # 5 or 6 rows an image are two runs; two runs of one image may come to lie side by side.
        assert 7 < 1 + sum(image_ids[a] != image_ids[b] for a, b in pairwise(rows)) <= 14
    assert orders[0] != orders[1] != orders[2] != orders[0] and orders[1] == order(1) != order(1, seed=6)
    with pytest.raises(ValueError, match="at least 1"):
        ImageGroupedSampler(image_ids, 0)


def test_phrases_of_an_image_come_together_and_every_epoch_has_its_own_order(tmp_path):
    batches = []

    class Noting:
        def __call__(self, records):
            batches.append([(record["image_id"], record["phrase"]) for record in records])
            return collator_of()(records)

    dataset = tiny_dataset(16, phrases_per_image=2)
    settings = dict(phrases_per_image=2, train_sampling_strategy="random", max_steps=8)
    trainer = make_trainer(tmp_path, None, dataset, Noting(), **settings)
    trainer.train()
    first, second = batches[:4], batches[4:8]
    for epoch in (first, second):
        assert sorted(row for batch in epoch for row in batch) == sorted(zip(dataset["image_id"], dataset["phrase"]))
        assert all(len({image_id for image_id, _ in batch}) == 2 for batch in epoch)
    assert first != second


@pytest.mark.parametrize("form", [None, "numpy", "torch"])
def test_phrases_share_images_whose_ids_are_numbers_in_any_format(tmp_path, form):
    rows = [{**record, "image_id": number // 2} for number, record in enumerate(tiny_records(8, phrases_per_image=2))]
    dataset = tiny_dataset(8).remove_columns("image_id").add_column("image_id", [row["image_id"] for row in rows])
    dataset = dataset.map(lambda row, number: {"image": rows[number]["image"]}, with_indices=True).with_format(form)
    trainer = make_trainer(tmp_path, dataset=dataset, phrases_per_image=2, train_sampling_strategy="random")
    assert [len(batch["pixel_values"]) for batch in trainer.get_train_dataloader()] == [2, 2]
    ids = trainer.data_collator([dataset[0], dataset[2]])["image_ids"]
    assert torch.equal(ids, trainer.data_collator([rows[0], rows[2]])["image_ids"])


# Another family -------------------------------------------------------------------------------------------------------


def test_blip_is_trained_by_the_same_trainer(tmp_path):
    model, watcher = tiny_blip(), Watcher()
    before = snapshot(model)
    dataset = tiny_dataset(8, without_region=(2,))
    collator = collator_of(blip_processor(), mlm_probability=0.0)
    trainer = make_trainer(tmp_path, model, dataset, collator, watcher, max_steps=3, amc_margin_max=2.0)
    trainer.train()
    logs = training_logs(trainer)
    assert all(entry["loss_amc_max"] > 0 and entry["loss_itm"] > 0 and "loss_itc" not in entry for entry in logs)
    below = ("vision_model.", "text_encoder.embeddings.", "text_encoder.encoder.", "itm_head.")
    still = [name for name, p in model.named_parameters() if torch.equal(before[name], p) and name.startswith(below)]
    assert still == []
    assert trainer.evaluate()["eval_num_phrases"] == 7
    trainer.save_model(str(tmp_path / "saved"))
    loaded = BlipForImageTextRetrieval.from_pretrained(tmp_path / "saved")
    assert is_equal(loaded.state_dict(), model.state_dict())
    assert loaded.config.architectures == ["BlipForImageTextRetrieval"]
    inputs = blip_processor()(images=picture(), text=PHRASES[0], return_tensors="pt")
    assert loaded.eval()(**inputs).itm_score.shape == (1, 2)  # its own forward again


# Resuming and logging -------------------------------------------------------------------------------------------------


def test_scalars_and_the_picture_reach_tensorboard(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    drawn = []

    def draw(trainer):
        drawn.append(trainer.state.global_step)
        return picture(30, 20)

    settings = dict(report_to="tensorboard", eval_strategy="steps", eval_steps=2, max_steps=4, draw_heatmaps=draw)
    trainer = make_trainer(tmp_path, **settings)
    trainer.train()
    trainer.evaluate(metric_key_prefix="test")
    events = EventAccumulator(str(next(Path(tmp_path).rglob("events.out*")).parent), size_guidance={"images": 0})
    events.Reload()
    for name in LOSSES:
        assert [event.step for event in events.Scalars(f"train/{name}")] == [1, 2, 3, 4]
        assert [event.step for event in events.Scalars(f"eval/{name}")] == [2, 4]
    assert [event.step for event in events.Scalars("eval/pointing_game")] == [2, 4]
    pictures = events.Images("eval/heatmaps")
    assert [event.step for event in pictures] == drawn == [2, 4]
    assert (pictures[0].width, pictures[0].height) == (30, 20)
