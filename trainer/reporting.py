"""Images for the places that `report_to` names, each of which takes them in its own way."""

from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import integration_utils
from transformers.utils import logging

logger = logging.get_logger(__name__)
# What Trainer reports by → how it takes an image: of the callback, a name like "eval/heatmaps", the image and the step.
WAYS: dict[type[TrainerCallback], Callable[[TrainerCallback, str, Image.Image, int], None]] = {
    integration_utils.TensorBoardCallback: lambda to, name, image, step: to.tb_writer.add_image(
        name, np.asarray(image), step, dataformats="HWC"
    ),
    integration_utils.WandbCallback: lambda to, name, image, step: to._wandb.log(
        {name: to._wandb.Image(image), "train/global_step": step}
    ),
    integration_utils.TrackioCallback: lambda to, name, image, step: to._trackio.log(
        {name: to._trackio.Image(image), "train/global_step": step}
    ),
    integration_utils.MLflowCallback: lambda to, name, image, step: to._ml_flow.log_image(image, key=name, step=step),
    integration_utils.CometCallback: lambda to, name, image, step: to._experiment.log_image(
        image, name=name, step=step
    ),
    integration_utils.ClearMLCallback: lambda to, name, image, step: to._clearml_task.get_logger().report_image(
        *name.split("/"), iteration=step, image=image
    ),
    integration_utils.DVCLiveCallback: lambda to, name, image, step: to.live.log_image(f"{name}/{step}.png", image),
    integration_utils.SwanLabCallback: lambda to, name, image, step: to._swanlab.log(
        {name: to._swanlab.Image(image)}, step=step
    ),
}


def log_image(callbacks: Iterable[TrainerCallback], name: str, image: Image.Image, step: int) -> None:
    for callback in callbacks:
        for kind, send in WAYS.items():
            if isinstance(callback, kind):
                send(callback, name, image, step)


def warn_of_places_without_images(callbacks: Iterable[TrainerCallback]) -> None:
    places = {kind: name for name, kind in integration_utils.INTEGRATION_TO_CALLBACK.items()}
    missing = [places[type(each)] for each in callbacks if type(each) in places and not isinstance(each, tuple(WAYS))]
    if missing:
        logger.warning(
            f"Images of heatmaps do not go to {', '.join(missing)}, only scalars do; the last one is on the model card."
        )
