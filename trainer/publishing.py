"""A Trainer's way to the Hugging Face Hub: the repository before training, checkpoints while it lasts, the card."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from .amc_config import AmcConfig
from .model_card import TASK, model_card

logger = logging.get_logger(__name__)


class PublishingTrainer(Trainer):
    """transformers' Trainer with our model card, and with pushes that say when they fail."""

    args: AmcConfig
    draw_heatmaps: Callable[[Any], Any] | None
    _pushed_checkpoint: Path | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As ever, before training; and makes sure now that files can be pushed, not when the training is done.

        Raises:
            HfHubHTTPError, httpx.ConnectError, ValueError: the Hub refuses or cannot be reached.
        """
        with noting(
            f"push_to_hub: the Hub must take files for {self.args.hub_model_id or self.args.output_dir} before "
            "anything is trained. Log in with a token that may write (`hf auth login`, or HF_TOKEN), and check the "
            "name and the network; or do without push_to_hub and upload the folder later."
        ):
            super().init_hf_repo(token=token, private=private)
            if self.is_world_process_zero():
                # A token may be good for reading only, which the Hub does not mind as long as the repository is there.
                HfApi().preupload_lfs_files(
                    self.hub_model_id,
                    [CommitOperationAdd("README.md", b"# Model card")],
                    token=token or self.args.hub_token,
                    revision=self.args.hub_revision,
                )

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | None = None,
        dataset_tags: str | None = None,
        dataset: str | None = None,
        dataset_args: str | None = None,
    ) -> None:
        """Writes README.md and heatmaps.png into the output folder: see `model_card`.

        Args:
            language, license, tags, model_name, tasks: as in `Trainer`; `license` is `args.hub_license` by default.
            finetuned_from: the base checkpoint, Hub id or folder; default: what the model was loaded from.
            dataset, dataset_args: Hub id or folder of the data, and its configuration.
            dataset_tags: the data's Hub id, where `dataset` is not it.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        if self.draw_heatmaps is not None:
            self.model.eval()
            self.draw_heatmaps(self).save(folder / "heatmaps.png")
        card = model_card(
            self,
            model_name=model_name or (self.args.hub_model_id or folder.resolve().name).split("/")[-1],
            base_model=finetuned_from or self.model.name_or_path or None,
            dataset=dataset_tags or dataset,
            dataset_config=dataset_args,
            license=license or self.args.hub_license,
            language=language,
            tags=[tags] if isinstance(tags, str) else tags,
            pipeline_tag=tasks or TASK,
            has_picture=self.draw_heatmaps is not None,
        )
        card.save(folder / "README.md")

    def push_to_hub(self, *args, **kwargs) -> CommitInfo:
        """As ever: saves the model, its processor and its code, writes the card, uploads all of it.

        Raises:
            HfHubHTTPError, httpx.ConnectError, OSError: it did not go through; the output folder is whole.
        """
        folder = self.args.output_dir
        upload = f"`hf upload {self.hub_model_id or 'ORG/NAME'} {folder} --exclude 'checkpoint-*/*'`"
        with noting(f"The model is whole in {folder}; push it again with {upload}."):
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As ever; the files of one push stay as they are until it is done."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self._is_pushing() and not self.args.hub_always_push:
            logger.warning(
                f"{checkpoint_folder} is not pushed: the push before it is not done. hub_always_push waits for it."
            )
            return
        self._finish_current_push()
        # Trainer takes the weights from there, but not the code that they need.
        for path in Path(checkpoint_folder).glob("*.py"):
            shutil.copy(path, self.args.output_dir)
        super()._push_from_checkpoint(checkpoint_folder)
        self._pushed_checkpoint = Path(checkpoint_folder)
        for job in self.push_in_progress.jobs:
            job.add_done_callback(self._report_failure)

    def _report_failure(self, push: Future) -> None:
        if not push.cancelled() and push.exception() is not None:
            logger.warning(f"A push to {self.hub_model_id} while training failed: {push.exception()}")

    def _is_pushing(self) -> bool:
        pushes = getattr(self, "push_in_progress", None)
        return pushes is not None and not pushes.is_done()

    def checkpoint_on_its_way(self) -> Path | None:
        """The checkpoint that is being pushed now."""
        return self._pushed_checkpoint if self._is_pushing() else None


@contextmanager
def noting(advice: str) -> Iterator[None]:
    """Errors from in here come with this advice."""
    try:
        yield
    except Exception as error:
        error.add_note(advice)
        raise
