"""Phrases that people marked as absent: what is learned from them, and how they are evaluated."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from torch.nn import functional as F

from dataset_scripts.features import FEATURES
from dataset_scripts.scenes import ScenesConfig, draw_scene, scene_rows
from modeling_albef_amc.families.dual import contrastive_loss
from modeling_albef_amc.families.registry import FAMILIES
from modeling_albef_amc.families.training import groundable
from tests.helpers.data import tiny_albef, tiny_processor, tiny_records, write_folder
from tests.helpers.models import TINY, tiny_batch
from tests.helpers.training import make_trainer
from trainer import evaluate_grounding
from trainer.data_collator import GroundingCollator
from trainer.model_card import model_card

LOSSES = "loss_itc", "loss_itm", "loss_mlm"


def batch_of(records: list[dict]) -> dict:
    torch.manual_seed(0)
    batch = GroundingCollator(tiny_processor(), mlm_probability=0.5, mask_size=8)(records)
    of_trainer = "masks", "has_region", "boxes", "image_sizes", "record_names", "is_placeholder", "unusable"
    return {name: value for name, value in batch.items() if name not in of_trainer}


def with_absent(count: int, *rows: int) -> list[dict]:
    records = tiny_records(count, without_region=rows, phrases_per_image=2)
    for row in rows:
        records[row]["absent"] = True
    return records


def rows_of(batch: dict, keep: torch.Tensor) -> dict:
    """The batch without some phrases; all its images stay."""
    images = "pixel_values", "image_ids"
    return {name: value if name in images else value[keep] for name, value in batch.items()}


def test_the_other_losses_are_those_without_them():
    model, batch = tiny_albef().eval(), batch_of(with_absent(6, 1, 5))
    keep = ~batch["is_absent"]
    found, expected = model(**batch, output_heatmaps=True), model(**rows_of(batch, keep), output_heatmaps=True)
    for name in LOSSES:
        assert torch.allclose(found[name], expected[name], atol=1e-6), name
    assert torch.allclose(found.heatmaps[keep], expected.heatmaps, atol=1e-6)
    logits = model.albef(
        **{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask", "image_index")}
    )
    wrong = logits.itm_logits[batch["is_absent"]]
    by_hand = F.cross_entropy(wrong, torch.zeros(2, dtype=torch.long))
    assert torch.allclose(found.loss_absent, by_hand, atol=1e-6) and expected.loss_absent is None
    assert torch.allclose(found.loss, expected.loss + by_hand, atol=1e-6)


def test_they_never_enter_the_queues():
    model, batch = tiny_albef().train(), batch_of(with_absent(6, 1, 5))
    model(**batch)
    assert model.queue_pointer.item() == 4
    assert (model.text_id_queue >= 0).sum() == 4


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_nothing_else(training: bool):
    model, batch = tiny_albef().train(training), batch_of(with_absent(2, 0, 1))
    output = model(**batch, output_heatmaps=True)
    assert [output[name].item() for name in LOSSES] == [0, 0, 0] and output.heatmaps.shape[0] == 2
    output.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("family", TINY)
def test_every_family_learns_from_them(family: str):
    """The family's own loss is that without them; theirs is worked out anew from the scores."""
    model, batch = groundable(TINY[family]()), tiny_batch()
    pixel_values, own_image = batch.pop("pixel_values")[:2], torch.tensor([0, 0, 1, 1])
    is_absent = torch.tensor([False, True, False, False])

    def run(keep: torch.Tensor, **options):
        torch.manual_seed(0)
        rows = {name: value[keep] for name, value in batch.items()}
        return model(pixel_values, **rows, image_index=own_image[keep], **options)

    found, expected = run(torch.arange(4), is_absent=is_absent), run(~is_absent)
    name = "loss_itm" if found.loss_itm is not None else "loss_itc"
    assert torch.allclose(found[name], expected[name], atol=1e-5)
    if FAMILIES[family].losses.get("loss_itc") is contrastive_loss or family == "florence2":  # it only compares
        by_hand = F.softplus(found.scores[1] - found.scores[0])
    else:
        by_hand = -torch.log1p(-found.probability[1])
    assert torch.allclose(found.loss_absent, by_hand, atol=1e-5)
    alone = run(torch.arange(4), is_absent=torch.ones(4, dtype=torch.bool))
    assert alone[name] == 0 and alone.loss.isfinite()


def test_the_trainer_learns_from_them_and_scores_them(tmp_path):
    records = with_absent(8, 1, 3, 6)
    dataset = Dataset.from_list(records, features=FEATURES).cast_column("image", Image(decode=False))
    trainer = make_trainer(tmp_path, dataset=dataset)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert any(entry.get("loss_absent", 0) > 0 for entry in logged)
    assert "| loss_absent | 1 | a phrase that is marked absent does not" in model_card(trainer).text
    metrics = trainer.evaluate()
    probability = trainer.predict(dataset).predictions[1]
    true, absent = [p for p, r in zip(probability, records) if not r["absent"]], probability[[1, 3, 6]]
    pairs = [(t > a) + 0.5 * (t == a) for t in true for a in absent]
    assert metrics["eval_absent_auroc"] == pytest.approx(np.mean(pairs))
    assert metrics["eval_num_phrases"] == 5


def test_a_region_of_something_absent_is_refused():
    record = tiny_records(1)[0] | {"absent": True}
    with pytest.raises(ValueError, match=r"image 'scene-0', phrase .*: it is absent and has a region"):
        GroundingCollator(tiny_processor())([record])


def test_evaluation_counts_them_apart(tmp_path, capsys):
    data = write_folder(tmp_path / "data", test=with_absent(8, 1, 6))
    tiny_albef().albef.save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    arguments = ["--models", f"tiny={tmp_path / 'model'}", "--dataset", str(data), "--output", str(tmp_path), "--cpu"]
    evaluate_grounding.main([*arguments, "--num_pictured", "0"])
    report = json.loads((tmp_path / "report.json").read_text())["models"]["tiny"]["test"]
    assert report["absent"]["num_phrases"] == 2 and report["pointing_game"]["num_phrases"] == 6
    assert f"AUROC of true against 2 absent phrases: {report['absent']['auroc']:.3f}" in capsys.readouterr().out


def test_absent_phrases_of_scenes_fit_nothing():
    config = ScenesConfig(absent_per_scene=3)
    words = {"small", "large", "red", "green", "blue", "yellow", "purple", "star", "square", "triangle", "cross"}
    total = 0
    for index in range(30):
        rows, plain = scene_rows(config, "train", index), scene_rows(ScenesConfig(), "train", index)
        assert rows[: len(plain)] == plain
        objects = [{o.size, o.colour, o.shape} for o in draw_scene(config, "train", index).objects]
        for row in rows[len(plain) :]:
            asked = words & set(row["phrase"].split())
            assert row["absent"] and not row["boxes"] and len(asked) >= 2
            assert not any(asked <= item for item in objects)
            assert all(any(word in item for item in objects) for word in asked)
            total += 1
    assert total > 60
    with pytest.raises(ValueError, match="absent_per_scene"):
        ScenesConfig(absent_per_scene=-1)
