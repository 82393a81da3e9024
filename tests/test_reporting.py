"""Pictures of heatmaps in what `report_to` names: each package for itself, without a network, where it is installed."""

from pathlib import Path

import pytest
from PIL import Image
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from tests.helpers.data import picture
from tests.helpers.training import make_trainer
from trainer.reporting import WAYS


def report(folder: Path, *places: str) -> None:
    """Two evaluations while training, whose pictures are of 30 x 20 and of 31 x 20 pixels."""
    sizes = iter([(30, 20), (31, 20)])
    settings = dict(eval_strategy="steps", eval_steps=1, max_steps=2, report_to=list(places))
    make_trainer(folder, draw_heatmaps=lambda trainer: picture(*next(sizes)), **settings).train()


def sizes_in(folder: Path, pattern: str) -> list[tuple[int, int]]:
    pictures = []
    for path in folder.rglob(pattern):
        with Image.open(path) as opened:
            pictures.append(opened.size)
    return sorted(pictures)


def test_pictures_reach_weights_and_biases(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in dict(WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true").items():
        monkeypatch.setenv(name, value)
    report(tmp_path, "wandb")
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert sizes_in(folder / "files" / "media" / "images" / "eval", "heatmaps_*.png") == [(30, 20), (31, 20)]


def test_pictures_reach_mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    store = dict(MLFLOW_TRACKING_URI=(tmp_path / "mlruns").as_uri(), MLFLOW_ALLOW_FILE_STORE="true")
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    report(tmp_path, "mlflow")
    assert sizes_in(tmp_path / "mlruns", "eval*heatmaps*.png") == [(30, 20), (31, 20)]


def test_pictures_reach_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads when it is imported
    pytest.importorskip("trackio")
    report(tmp_path, "trackio")
    assert sizes_in(tmp_path / "trackio", "*.png") == [(30, 20), (31, 20)]


def test_a_place_without_pictures_is_named_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "https://127.0.0.1:9")
    with caplog.at_level("WARNING", logger="trainer.reporting"):
        report(tmp_path, "kubeflow", "tensorboard")
    (message,) = [record.getMessage() for record in caplog.records if record.name == "trainer.reporting"]
    assert message.startswith("Images of heatmaps do not go to kubeflow, only")


def test_every_way_belongs_to_a_place_of_report_to():
    assert set(WAYS) <= set(INTEGRATION_TO_CALLBACK.values())
