"""Records that cannot be used, and batches of little, while training: it goes on and says what it left out."""

import logging

import pytest
import torch

import train
from tests.helpers.data import tiny_albef, tiny_processor, tiny_records, write_folder
from trainer.amc_config import AmcConfig
from trainer.amc_trainer import AmcTrainer
from trainer.data_collator import GroundingCollator

BROKEN = {"bytes": b"\x89PNG, and no more", "path": None}
SETTINGS = ["--max_steps", "4", "--per_device_train_batch_size", "2", "--use_cpu", "true", "--report_to", "none"]
SETTINGS += ["--save_strategy", "no", "--num_logged_heatmaps", "0", "--mask_size", "16", "--disable_tqdm", "true"]


def with_broken(*rows: int, count: int = 8) -> list[dict]:
    records = tiny_records(count)
    for row in rows:
        records[row]["image"] = BROKEN
    return records


def collate(records: list[dict], **options) -> dict:
    torch.manual_seed(0)
    return GroundingCollator(tiny_processor(), mask_size=8, strict=False, **options)(records)


def test_a_placeholder_replaces_a_record():
    records = with_broken(1, 3, count=5)
    records[2]["phrase"] = " "
    records[4]["boxes"] = [[5, 5, 2, 2]]
    batch, only = collate(records), collate(records[:1])
    assert batch["is_placeholder"].tolist() == [False, True, True, True, True]
    assert batch["has_region"].tolist() == [True, False, False, False, False]
    assert torch.equal(batch["pixel_values"], only["pixel_values"])
    for row in range(5):
        assert torch.equal(batch["input_ids"][row], only["input_ids"][0])
    assert (batch["boxes"][1:] == -100).all() and batch["masks"][1:].sum() == 0
    assert len(batch["unusable"]) == 4
    assert batch["unusable"][0].startswith("image 'scene-1', phrase 'small green square")
    assert "is not a readable image" in batch["unusable"][0] and "x1 < x2" in " ".join(batch["unusable"])


def test_a_broken_phrase_leaves_the_others_of_its_image():
    records = tiny_records(4, phrases_per_image=2)
    records[1]["phrase"] = None
    batch = collate(records)
    assert batch["is_placeholder"].tolist() == [False, True, False, False]
    assert batch["image_index"].tolist() == [0, 0, 1, 1]


def test_where_nothing_is_left_the_spare_one_is_the_placeholder():
    spare = tiny_records(6)[5]
    batch, alone = collate(with_broken(0, 1, count=2), spare=spare), collate([spare])
    assert torch.equal(batch["pixel_values"], alone["pixel_values"]) and batch["is_placeholder"].all()
    with pytest.raises(ValueError, match="no spare one"):
        collate(with_broken(0, 1, count=2))
    with pytest.raises(ValueError, match=r"image 'scene-1', phrase .*is not a readable image"):
        GroundingCollator(tiny_processor(), strict=True)(with_broken(1))


@pytest.mark.parametrize("batch_size", [4, 8])
def test_losses_of_an_evaluation_leave_placeholders_out(tmp_path, batch_size):
    """The second batch of four is of placeholders alone."""
    args = AmcConfig(tmp_path, use_cpu=True, report_to="none", per_device_eval_batch_size=batch_size, mlm_weight=0)
    collator = GroundingCollator(tiny_processor(), mask_size=16, strict=False, spare=tiny_records(6)[5])
    trainer = AmcTrainer(tiny_albef(), args, data_collator=collator)
    found, expected = (
        {name: value for name, value in trainer.evaluate(records).items() if "loss_" in name or name == "eval_loss"}
        for records in (with_broken(4, 5, 6, 7), tiny_records(8)[:4])
    )
    assert found.keys() == expected.keys() and len(found) > 3
    for name in found.keys() - {"eval_loss_mlm"}:
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name


def run(folder, output, *more: str, dataset=None) -> dict:
    source = [
        "--dataset",
        str(dataset or folder / "data"),
        "--model",
        str(folder / "model"),
        "--output_dir",
        str(output),
    ]
    return train.main([*source, *SETTINGS, *more])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    tiny_albef().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    write_folder(folder / "data", train=with_broken(0, 5), validation=with_broken(2))
    return folder


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_goes_on_and_names_each_record_once(data, tmp_path, caplog, workers):
    """Two epochs over data with two broken pictures, and one in the evaluation."""
    logging.getLogger("transformers").propagate = True
    more = ["--max_steps", "8", "--eval_strategy", "steps", "--eval_steps", "4", "--dataloader_num_workers", workers]
    metrics = run(data, tmp_path, *more)
    named = [record.message for record in caplog.records if "placeholder" in record.message]
    assert sorted(message.split("'")[1] for message in named) == ["scene-0", "scene-2", "scene-5"]
    assert metrics["validation_num_phrases"] == 7
    assert '"num_unusable": 3' in (tmp_path / "train_results.json").read_text()


def test_strict_stops_the_run(data, tmp_path):
    with pytest.raises(ValueError, match=r"image 'scene-[05]', phrase .*is not a readable image"):
        run(data, tmp_path, "--strict", "true")


def test_data_without_a_usable_record(data, tmp_path):
    write_folder(tmp_path / "data", train=with_broken(0, 1, count=2), validation=tiny_records(2))
    with pytest.raises(ValueError, match=r"2 of 2 records of the training .* cannot be used: image 'scene-0'"):
        run(data, tmp_path / "run", dataset=tmp_path / "data")


def test_validation_data_without_enough_usable_records(data, tmp_path):
    write_folder(tmp_path / "data", train=tiny_records(4), validation=with_broken(0, 1, 2, count=4))
    with pytest.raises(ValueError, match=r"3 of 4 records of split validation .* cannot be used: image 'scene-0'"):
        run(data, tmp_path / "run", dataset=tmp_path / "data")
