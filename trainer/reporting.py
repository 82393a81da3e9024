"""Pictures for the places that `report_to` names, each of which takes them in its own way."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    ClearMLCallback,
    CometCallback,
    DVCLiveCallback,
    MLflowCallback,
    SwanLabCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)
from transformers.utils import logging

logger = logging.get_logger(__name__)


def to_tensorboard(callback: TensorBoardCallback, name: str, picture: Image.Image, step: int) -> None:
    callback.tb_writer.add_image(name, np.asarray(picture), step, dataformats="HWC")


def to_wandb(callback: WandbCallback, name: str, picture: Image.Image, step: int) -> None:
    callback._wandb.log({name: callback._wandb.Image(picture), "train/global_step": step})


def to_trackio(callback: TrackioCallback, name: str, picture: Image.Image, step: int) -> None:
    callback._trackio.log({name: callback._trackio.Image(picture), "train/global_step": step})


def to_mlflow(callback: MLflowCallback, name: str, picture: Image.Image, step: int) -> None:
    callback._ml_flow.log_image(picture, key=name, step=step)


def to_comet(callback: CometCallback, name: str, picture: Image.Image, step: int) -> None:
    callback._experiment.log_image(picture, name=name, step=step)


def to_clearml(callback: ClearMLCallback, name: str, picture: Image.Image, step: int) -> None:
    title, _, series = name.partition("/")
    callback._clearml_task.get_logger().report_image(title, series, iteration=step, image=picture)


def to_dvclive(callback: DVCLiveCallback, name: str, picture: Image.Image, step: int) -> None:
    callback.live.log_image(f"{name}/{step}.png", picture)


def to_swanlab(callback: SwanLabCallback, name: str, picture: Image.Image, step: int) -> None:
    callback._swanlab.log({name: callback._swanlab.Image(picture)}, step=step)


# What Trainer reports by → how it takes a picture.
WAYS: dict[type[TrainerCallback], Callable[[Any, str, Image.Image, int], None]] = {
    TensorBoardCallback: to_tensorboard,
    WandbCallback: to_wandb,
    TrackioCallback: to_trackio,
    MLflowCallback: to_mlflow,
    CometCallback: to_comet,
    ClearMLCallback: to_clearml,
    DVCLiveCallback: to_dvclive,
    SwanLabCallback: to_swanlab,
}


def log_picture(callbacks: Iterable[TrainerCallback], name: str, picture: Image.Image, step: int) -> None:
    for callback in callbacks:
        for kind, send in WAYS.items():
            if isinstance(callback, kind):
                send(callback, name, picture, step)


def warn_of_places_without_pictures(callbacks: Iterable[TrainerCallback]) -> None:
    places = {kind: name for name, kind in INTEGRATION_TO_CALLBACK.items()}
    missing = [places[type(callback)] for callback in callbacks if type(callback) in places]
    missing = [name for name in missing if not issubclass(INTEGRATION_TO_CALLBACK[name], tuple(WAYS))]
    if missing:
        logger.warning(
            f"Pictures of heatmaps do not go to {', '.join(missing)}, only scalars do; the last picture is on the "
            "model card."
        )
