"""What a run leaves: checkpoints that are complete or do not count, pushes to the Hugging Face Hub, the model card."""

import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput
from transformers.utils import PushInProgress, logging

from modeling_albef_amc.families.auto import save_grounding

from .amc_config import AmcConfig
from .checkpoints import (
    begin,
    check_grounding,
    check_kind,
    check_optimizer,
    check_shared,
    check_unused,
    check_whole,
    checkpoints,
    discard,
    is_complete,
    load_weights,
    resumed,
    rotate,
    sync,
)
from .half_steps import TEACHER_HAS_MOVED, kept_buffers, random_state, restore_buffers, set_random_state
from .lora import MOMENTUM, load_checkpoint, save_moving
from .model_card import model_card
from .process_group import add_note

logger = logging.get_logger(__name__)
# Files of a checkpoint that a run goes on from, and that are no part of the model.
OF_TRAINING = "optimizer", "scheduler", "scaler", "rng_state", "trainer_state", MOMENTUM
# By its own settings Trainer would push and delete checkpoints before all processes have written, and save on SIGTERM
# without calling `on_save`: `SaveHooks` does all three.
OF_HOOKS = {"save_total_limit": None, "hub_strategy": HubStrategy.END, "enable_jit_checkpoint": False}


class PublishingTrainer(Trainer):
    """transformers' Trainer, whose checkpoints are complete or do not count, and whose pushes say when they fail."""

    args: AmcConfig
    saving: dict[str, Any]  # of OF_HOOKS what `args` says
    control: TrainerControl
    draw_heatmaps: Callable[[Any], Any] | None
    checkpoint: Path | None = None
    has_unsaved_steps = False
    resumed_from: str | None = None  # a checkpoint whose random numbers are still to be loaded
    random_state: tuple | None = None  # at the beginning of an epoch
    before_step: tuple[tuple, list[torch.Tensor]] | None = None  # random numbers and buffers, in the middle of a step
    _pushed: Path | None = None

    def __init__(self, model: PreTrainedModel | None, args: AmcConfig, *arguments, **kwargs):
        with hidden_from_trainer(args) as self.saving:
            super().__init__(model, args, *arguments, **kwargs)
        self.add_callback(SaveHooks(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """Trains; a run of one process that an error or Ctrl-C ends saves what it trained since the last save.

        Args:
            resume_from_checkpoint: a folder, or True for the newest complete checkpoint of `output_dir`.

        Raises:
            ValueError: before anything is trained, if machines do not share the output folder that they save into; if
                a run that begins anew finds checkpoints there; or one of adapters a whole model, or the other way.
        """
        run, self.has_unsaved_steps, self.resumed_from = Path(self.args.output_dir), False, None
        if self.args.world_size > 1:
            check_shared(run, self.is_world_process_zero())
        if resume_from_checkpoint is True:
            resume_from_checkpoint = resumed(run, "true")
        if resume_from_checkpoint:
            check_whole(Path(resume_from_checkpoint))
        elif self.checkpoint is None and self.hp_search_backend is None:  # its trials have folders of their own
            check_unused(run)
        with hidden_from_trainer(self.args) as self.saving, self._noticing_sigterm():
            try:
                return super().train(resume_from_checkpoint, *args, **kwargs)
            except (Exception, KeyboardInterrupt) as error:
                self._rescue(error)
                raise

    @contextmanager
    def _noticing_sigterm(self) -> Iterator[None]:
        self.is_stopped = False
        handler = signal.signal(signal.SIGTERM, self._stop) if self.saving["enable_jit_checkpoint"] else None
        try:
            yield
        finally:
            if self.saving["enable_jit_checkpoint"]:
                signal.signal(signal.SIGTERM, handler)

    def _stop(self, *_: Any) -> None:
        self.is_stopped = True

    def _rescue(self, error: BaseException) -> None:
        """Removes a checkpoint that could not be written, or else saves the steps since the last one, and says so."""
        run = Path(self.args.output_dir)
        could_not_save = self.checkpoint is not None and self.checkpoint.exists() and not is_complete(self.checkpoint)
        if could_not_save and self.args.should_save:
            discard(self.checkpoint)  # it keeps the disk full
        if could_not_save and isinstance(error, Exception):
            found = checkpoints(run)
            advice = f" {found[-1]} is complete: make room, then go on with resume_from_checkpoint." if found else ""
            add_note(error, f"{self.checkpoint} could not be saved.{advice}")
            return
        is_search = self.hp_search_backend is not None  # nobody goes on with its trials
        # Of several processes the others may wait for this one elsewhere: nothing can be saved together.
        if self.accelerator.num_processes == 1 and self.has_unsaved_steps and not is_search:
            self.save_checkpoint()
            begins = "begin a new run from their weights."
            advice = begins if self.args.save_only_model else "continue with resume_from_checkpoint."
            add_note(error, f"The {self.state.global_step} steps before it are in {run}: {advice}")

    def save_checkpoint(self) -> None:
        """Saves a checkpoint now, as Trainer does it when one is due."""
        with self.as_before_step():
            self._save_checkpoint(self.model, trial=None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        is_checkpoint = _internal_call and output_dir is not None
        if is_checkpoint:
            self.checkpoint = Path(output_dir)
            if self.args.should_save:
                if self.pushed_checkpoint() == self.checkpoint:
                    self.finish_push()
                begin(self.checkpoint, 0 if self.args.save_only_model else self.args.world_size)
            self.accelerator.wait_for_everyone()
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and self.has_adapters():
            # Here too: an ALBEF, which has none, may be saved where an earlier run left one.
            save_grounding(self.model, Path(output_dir or self.args.output_dir))
            if is_checkpoint:
                save_moving(self.model, self.checkpoint)

    @contextmanager
    def as_before_step(self) -> Iterator[None]:
        """In here, what moves before the optimizer does is as after the last whole step, see `half_steps`."""
        if self.before_step is None:
            yield
            return
        self.state.stateful_callbacks[TEACHER_HAS_MOVED] = {}
        model = self.accelerator.unwrap_model(self.model)
        numbers, buffers = random_state(), kept_buffers(model)
        set_random_state(self.before_step[0])
        restore_buffers(model, self.before_step[1])
        try:
            yield
        finally:
            del self.state.stateful_callbacks[TEACHER_HAS_MOVED]
            set_random_state(numbers)
            restore_buffers(model, buffers)

    def rotate_checkpoints(self, *spared: Path) -> None:
        if self.args.should_save and self.checkpoint is not None:
            best, pushed = self.state.best_model_checkpoint, self.pushed_checkpoint()
            rotate(self.checkpoint.parent, self.saving["save_total_limit"], best, pushed, *spared)

    def has_adapters(self) -> bool:
        return self.model._hf_peft_config_loaded

    # Private, all of them: no public hook loads anything.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Trainer looks for adapters in peft's own wrapper only, and passes over weights that files name otherwise."""
        checkpoint = Path(resume_from_checkpoint)
        check_grounding(self.model, checkpoint)
        if self.has_adapters():
            return load_checkpoint(self.model, checkpoint)
        check_kind(checkpoint, has_adapters=False)
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_weights(self.model, checkpoint)

    def _load_best_model(self) -> None:
        best, is_fsdp = Path(self.state.best_model_checkpoint), self.is_fsdp_enabled and not self.has_adapters()
        if not any(best.glob("*" if is_fsdp else "*.safetensors")):
            logger.warning(f"{best}, the best checkpoint, was deleted: the model keeps the weights of the last step.")
            self.state.best_model_checkpoint = self.state.best_global_step = None  # the scores are of the last step too
            return
        self.state.best_global_step = int(best.name.rpartition("-")[2])  # a better one may not have been saved
        if is_fsdp:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(best))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            check_optimizer(self.optimizer.optimizer, Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)
        self.resumed_from = checkpoint

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """In the middle of an epoch Trainer calls it after `get_batch_samples`, which needs the numbers before."""
        if self.resumed_from is not None:
            super()._load_rng_state(checkpoint)
            self.random_state, self.resumed_from = random_state(), None

    # The Hub

    def init_hf_repo(self, token: str | None = None, **kwargs) -> None:
        """Creates the repository, and makes sure before training that files can be pushed."""
        with noting(
            f"push_to_hub: the Hub must take files for {self.args.hub_model_id or self.args.output_dir} before "
            "anything is trained. Log in with a token that may write (`hf auth login`, or HF_TOKEN), and check the "
            "name and the network; or do without push_to_hub and upload the folder later."
        ):
            super().init_hf_repo(token=token, **kwargs)
            if self.is_world_process_zero():
                # A token may be good for reading only, which the Hub does not mind as long as the repository is there.
                HfApi().preupload_lfs_files(
                    self.hub_model_id,
                    [CommitOperationAdd("README.md", b"# Model card")],
                    token=token or self.args.hub_token,
                    revision=self.args.hub_revision,
                )

    def create_model_card(self, **described: Any) -> None:
        """Writes README.md and heatmaps.png into the output folder.

        Args:
            described: as in `Trainer`, see `model_card`.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        if self.draw_heatmaps is not None:
            self.model.eval()
            self.draw_heatmaps(self).save(folder / "heatmaps.png")
        model_card(self, **described).save(folder / "README.md")

    def push_to_hub(self, *args, **kwargs) -> CommitInfo:
        """Saves the model, its processor and its code, writes the card, uploads all of it."""
        folder = self.args.output_dir
        upload = f"`hf upload {self.hub_model_id or 'ORG/NAME'} {folder} --exclude 'checkpoint-*/*'`"
        with noting(f"The model is whole in {folder}; push it again with {upload}."):
            return super().push_to_hub(*args, **kwargs)

    def push_checkpoint(self, checkpoint: Path) -> None:
        """Uploads a complete checkpoint in the background, as `hub_strategy` asks; warns if it is not done."""
        strategy = self.saving["hub_strategy"]
        if strategy == HubStrategy.END or not self.is_world_process_zero():
            return
        if self.pushed_checkpoint() is not None and not self.args.hub_always_push:
            logger.warning(f"{checkpoint} is not pushed: the push before it is not done. hub_always_push waits for it.")
            return
        self.finish_push()
        folder = Path(self.args.output_dir)
        for path in checkpoint.iterdir():
            if path.is_file() and not path.name.startswith(OF_TRAINING):
                shutil.copy(path, folder)
        upload = partial(
            HfApi().upload_folder,
            repo_id=self.hub_model_id,
            token=self.args.hub_token,
            revision=self.args.hub_revision,
            run_as_future=True,
        )
        message = f"Training in progress, step {self.state.global_step}"
        ignored = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*"]
        jobs = [upload(folder_path=folder, commit_message=message, ignore_patterns=ignored)]
        if strategy != HubStrategy.EVERY_SAVE:
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            message = f"{message}, checkpoint"
            jobs.append(upload(folder_path=checkpoint, path_in_repo=name, commit_message=message))
        for job in jobs:
            job.add_done_callback(self._report_failure)
        self.push_in_progress, self._pushed = PushInProgress(jobs), checkpoint

    def _report_failure(self, push: Future) -> None:
        if not push.cancelled() and push.exception() is not None:
            logger.warning(f"A push to {self.hub_model_id} while training failed: {push.exception()}")

    def pushed_checkpoint(self) -> Path | None:
        """The checkpoint that is being uploaded now."""
        return None if self._pushed is None or self.push_in_progress.is_done() else self._pushed

    def finish_push(self) -> None:
        if self._pushed is not None:
            self.push_in_progress.wait_until_done()


class SaveHooks(TrainerCallback):
    """What happens to checkpoints: made last, pushed and rotated when all processes have written; one on SIGTERM."""

    def __init__(self, trainer: PublishingTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: AmcConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        check_kind(Path(args.output_dir), self.trainer.has_adapters())

    def on_step_end(self, args: AmcConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.trainer.has_unsaved_steps = True
        # The signal comes to all processes, but not to all in the same step.
        if self.trainer.saving["enable_jit_checkpoint"] and any(gather_object([self.trainer.is_stopped])):
            control.should_save = control.should_training_stop = True

    def on_save(self, args: AmcConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        trainer = self.trainer
        trainer.accelerator.wait_for_everyone()
        trainer.has_unsaved_steps = False
        if args.should_save:
            sync(trainer.checkpoint)
        if args.push_to_hub:
            trainer.push_checkpoint(trainer.checkpoint)
        trainer.rotate_checkpoints(trainer.checkpoint)

    def on_train_end(self, args: AmcConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.trainer.finish_push()
        is_last_kept = state.best_model_checkpoint is None
        self.trainer.rotate_checkpoints(*([self.trainer.checkpoint] if is_last_kept else []))


@contextmanager
def hidden_from_trainer(args: AmcConfig) -> Iterator[dict[str, Any]]:
    """In here the settings that `SaveHooks` follows are off for Trainer. Yields: what they are."""
    said = {name: getattr(args, name) for name in OF_HOOKS}
    for name, value in OF_HOOKS.items():
        setattr(args, name, value)
    try:
        yield said
    finally:
        for name, value in said.items():
            setattr(args, name, value)


@contextmanager
def noting(advice: str) -> Iterator[None]:
    """Errors from in here come with this advice."""
    try:
        yield
    except Exception as error:
        add_note(error, advice)
        raise
