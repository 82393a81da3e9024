"""Deletion and insertion, step by step and by a plain loop over the model itself."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from modeling_albef_amc import AutoGrounder
from modeling_albef_amc.pipeline import as_record
from tests.helpers.data import PHRASES, picture, tiny_records, write_folder
from tests.helpers.evaluation import save_checkpoint
from trainer import evaluate_grounding
from trainer.faithfulness import STEPS, blurred, covered_and_uncovered, deletion_and_insertion


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("tiny"), seed=1)


def test_a_blurred_point_by_hand():
    image = torch.zeros(1, 3, 20, 20)
    image[0, 1, 9, 12] = 1.0
    deviation, expected = 20 / 45, np.zeros((20, 20))
    for row in (8, 9, 10):
        for column in (11, 12, 13):
            expected[row, column] = math.exp(-((row - 9) ** 2 + (column - 12) ** 2) / 2 / deviation**2)
    found = blurred(image)
    torch.testing.assert_close(found[0, 1].double(), torch.from_numpy(expected / expected.sum()), atol=1e-6, rtol=1e-5)
    assert not found[0, [0, 2]].any()
    torch.testing.assert_close(blurred(torch.full((1, 3, 9, 5), 2.0)), torch.full((1, 3, 9, 5), 2.0))  # to the edge


def test_the_hottest_pixels_come_first():
    torch.manual_seed(0)
    pixel_values, heatmap = torch.randn(1, 3, 5, 4), torch.randperm(20).view(5, 4).float()
    deleted, inserted = covered_and_uncovered(pixel_values, heatmap).split(STEPS + 1)
    soft = blurred(pixel_values)[0]
    for step in range(STEPS + 1):
        is_hot = heatmap >= 20 - 2 * step  # a tenth of 20 pixels a step
        assert torch.equal(deleted[step], torch.where(is_hot, 0, pixel_values[0]))
        assert torch.equal(inserted[step], torch.where(is_hot, pixel_values[0], soft))


@pytest.mark.parametrize("batch_size", [3, 64])
def test_areas_by_a_plain_loop(checkpoint, batch_size):
    grounder = AutoGrounder.from_pretrained(str(checkpoint), device="cpu")
    (image,) = grounder.explain_phrases([grounder.prepare(as_record(picture(), PHRASES[:2]))])
    inputs = grounder.processor(text=PHRASES[1], return_tensors="pt")
    with torch.no_grad():
        shown = covered_and_uncovered(image.pixel_values, image.heatmaps[1]).split(1)
        fits = [grounder.model(pixel_values=each, **inputs).itm_logits.softmax(-1)[0, 1].item() for each in shown]
    curves = fits[: STEPS + 1], fits[STEPS + 1 :]
    expected = [(sum(curve) - (curve[0] + curve[-1]) / 2) / STEPS for curve in curves]
    assert deletion_and_insertion(grounder, image, 1, batch_size) == pytest.approx(expected, rel=1e-4)
    assert fits[0] == pytest.approx(image.scores[1], rel=1e-4) and fits[-1] == pytest.approx(fits[0], rel=1e-4)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)


def test_an_evaluation_has_them_on_request(checkpoint, tmp_path, capsys):
    data = write_folder(tmp_path / "data", test=tiny_records(6, without_region=(3,)))
    options = ["--models", f"m={checkpoint}", "--dataset", str(data), "--cpu", "--num_pictured", "0", "--output"]
    evaluate_grounding.main([*options, str(tmp_path / "plain")])
    evaluate_grounding.main([*options, str(tmp_path / "more"), "--faithfulness", "--batch_size", "4"])
    evaluate_grounding.main([*options, str(tmp_path / "heads"), "--faithfulness", "--heads", "3.0,3.1,4.0"])
    names = "plain", "more", "heads"
    plain, more, heads = (pq.read_table(tmp_path / name / "records/m/test.parquet") for name in names)
    assert heads["score"].to_pylist() == pytest.approx(plain["score"].to_pylist(), rel=1e-4)
    assert heads["deletion"].to_pylist() != pytest.approx(more["deletion"].to_pylist(), rel=1e-4)  # other maps
    assert set(more.column_names) - set(plain.column_names) == {"deletion", "insertion"}
    assert more.select(plain.column_names)["point"].to_pylist() == plain["point"].to_pylist()
    grounder = AutoGrounder.from_pretrained(str(checkpoint), device="cpu")
    for record, row in zip(tiny_records(6, without_region=(3,)), more.to_pylist(), strict=True):
        (image,) = grounder.explain_phrases([grounder.prepare(as_record(record["image"], [record["phrase"]]))])
        found = deletion_and_insertion(grounder, image, 0, 64)
        assert (row["deletion"], row["insertion"]) == pytest.approx(found, rel=1e-4)
    summary = json.loads((tmp_path / "more/report.json").read_text())["models"]["m"]["test"]
    scored = [row for number, row in enumerate(more.to_pylist()) if number != 3]
    for name in ("deletion", "insertion"):
        assert summary[name] == {"mean": pytest.approx(sum(row[name] for row in scored) / 5), "num_phrases": 5}
    told = f"deletion {summary['deletion']['mean']:.3f} (the lower, the better), insertion"
    assert told in capsys.readouterr().out
