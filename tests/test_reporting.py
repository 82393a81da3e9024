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


@pytest.mark.parametrize(
    ("place", "settings", "pattern"),
    [
        (
            "wandb",
            {"WANDB_MODE": "offline", "WANDB_DIR": "{}", "WANDB_SILENT": "true"},
            "wandb/offline-run-*/files/media/images/eval/heatmaps_*.png",
        ),
        (
            "mlflow",
            {"MLFLOW_TRACKING_URI": "file://{}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"},
            "mlruns/**/eval*heatmaps*.png",
        ),
        ("trackio", {"TRACKIO_DIR": "{}/trackio"}, "trackio/**/*.png"),
    ],
)
def test_images_reach_it(tmp_path, monkeypatch, place, settings, pattern):
    for name, value in settings.items():  # which some read when they are imported
        monkeypatch.setenv(name, value.format(tmp_path))
    pytest.importorskip(place)
    report(tmp_path, place)
    images = [Image.open(path) for path in tmp_path.glob(pattern)]
    assert sorted(image.size for image in images) == [(30, 20), (31, 20)]


def test_a_place_without_pictures_is_named_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "https://127.0.0.1:9")
    with caplog.at_level("WARNING", logger="trainer.reporting"):
        report(tmp_path, "kubeflow", "tensorboard")
    (message,) = [record.getMessage() for record in caplog.records if record.name == "trainer.reporting"]
    assert message.startswith("Images of heatmaps do not go to kubeflow, only")


def test_every_way_belongs_to_a_place_of_report_to():
    assert set(WAYS) <= set(INTEGRATION_TO_CALLBACK.values())
