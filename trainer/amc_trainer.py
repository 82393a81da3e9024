"""Trains any groundable vision-language model with Attention Mask Consistency, and evaluates where it points."""

import copy
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from operator import itemgetter
from pathlib import Path
from typing import Any

import evaluate
import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_pt_utils import nested_concat
from transformers.trainer_utils import BestRun, TrainOutput
from transformers.utils import logging

from modeling_albef_amc.families import (
    FAMILIES,
    Explain,
    explain_function,
    groundable,
    has_own_objectives,
    step_targets,
    with_own_forward,
)
from modeling_albef_amc.gradcam import heatmap_points

from .amc_config import BEST_BY_DEFAULT, AmcConfig
from .amc_loss import attention_mask_consistency_loss
from .checkpoints import UNFINISHED, check_shared, checkpoints, clear, publish, rotate
from .data_checks import check_groups, check_regions
from .data_collator import GroundingCollator
from .lora import load_checkpoint, save_moving
from .model_card import Evaluation
from .publishing import PublishingTrainer
from .regions import REGIONS
from .reporting import log_picture, warn_of_places_without_pictures
from .sampler import ImageGroupedSampler
from .scoring import auroc
from .sharding import left_out
from .streaming import StreamedBatches, StreamedRows

logger = logging.get_logger(__name__)
METRICS = Path(__file__).parent / "metrics"
PADDING = -100
# What each loss is the mean over: the number of true phrases, masked words, absent phrases, phrases with a region.
ITEMS = {
    "loss_itc": "phrases",
    "loss_itm": "phrases",
    "loss_mlm": "mlm_tokens",
    "loss_absent": "absent",
    "loss_amc_mean": "regions",
    "loss_amc_max": "regions",
}
# By which `accelerate launch --dynamo_backend` asks for a compiled model.
COMPILER = "ACCELERATE_DYNAMO_BACKEND"
# Of a batch, beside what `compute_loss` takes out.
NOT_OF_THE_MODEL = "boxes", "image_sizes", "record_names", "is_stand_in", "unusable"
# Parameters that no weight decay should pull to zero; biases and norms are spared by transformers already.
NO_DECAY = ("temperature", "logit_scale", "cls_token", "class_embedding", "position_embedding")


class AmcTrainer(PublishingTrainer):
    """transformers' Trainer whose loss is the model's own objectives plus Attention Mask Consistency.

    Args:
        model: `AlbefForPreTraining`, or a model of another family (see `modeling_albef_amc/families.py`). Out of
            peft's wrapper, which it may come in, it is trained and saved as if its adapters came by `add_adapter`.
        model_init: makes a new one for every training, as `hyperparameter_search` needs it, instead of `model`.
        explain: how to explain a model of an unknown family.
        train_dataset: may be `StreamedRows`.
        phrases_per_image: up to this many phrases of a batch share an image, which is then encoded once for them.
        shuffle_buffer: streamed phrases that each worker holds in memory to shuffle them.
        draw_heatmaps: called as `draw_heatmaps(trainer)` after each evaluation while training, for `report_to`, and for
            the model card; returns a picture.
        data_collator: a `GroundingCollator`, or what gives such batches.
        eval_data_collator: default: `data_collator.for_evaluation`, masking as many words; of a collator of another
            class, a copy.
        Everything else as in `Trainer`.

    Every loss is the mean over its items in the whole optimizer step, and contrasts go over all pairs of the step:
    neither the number of processes nor gradient accumulation changes the gradient. Only hard negatives, and what dual
    encoders compare absent phrases with, are chosen from the micro-batch. A step without a finite
    gradient is skipped, counted and reported with its records.

    Raises:
        FloatingPointError: `max_bad_steps` such steps in a row. A checkpoint is saved before.
    """

    args: AmcConfig

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: AmcConfig | None = None,
        *,
        data_collator: Callable,
        explain: Explain | None = None,
        eval_data_collator: Callable | None = None,
        phrases_per_image: int = 1,
        shuffle_buffer: int = 2000,
        draw_heatmaps: Callable[["AmcTrainer"], Any] | None = None,
        **kwargs,
    ):
        args = AmcConfig() if args is None else args
        if not isinstance(args, AmcConfig):
            raise TypeError(
                f"args must be an AmcConfig, not {type(args).__name__}: it takes these settings, and the losses' own."
            )
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func cannot be used: AmcTrainer computes the losses; override compute_loss.")
        kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), EpochOfDraws()]
        if args.early_stopping_patience:
            stopping = EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold)
            kwargs["callbacks"].append(stopping)
        self.pointing_game = evaluate.load(str(METRICS / "pointing_game"))
        kwargs.setdefault("compute_metrics", self.compute_scores)
        self.given_explain, self.args = explain, args
        super().__init__(None if model is None else self.explained(model), args, data_collator, **kwargs)
        if args.n_gpu > 1:
            raise ValueError(
                f"One process would split its batches over {args.n_gpu} GPUs (DataParallel), which does not work here: "
                "start one process a GPU with `accelerate launch`, or show it one GPU with CUDA_VISIBLE_DEVICES=0."
            )
        if phrases_per_image > 1 and self.train_dataset is not None:
            check_groups(self.train_dataset, args.train_sampling_strategy)
        if self.is_fsdp_enabled and self.model_init is not None:
            raise ValueError("model_init cannot be used with FSDP, which is told of one model's modules: pass model.")
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            plugin.ignored_modules = left_out(self.model, plugin.ignored_modules)
        # compute_loss divides by the items of the whole step already.
        self.loss_is_scaled_for_ga = True
        self.eval_data_collator = eval_data_collator or evaluation_collator(data_collator)
        self.phrases_per_image = phrases_per_image
        self.shuffle_buffer = shuffle_buffer
        self.draw_heatmaps = draw_heatmaps
        if draw_heatmaps is not None and self.is_world_process_zero():
            warn_of_places_without_pictures(self.callback_handler.callbacks)
        self.evaluations: dict[str, Evaluation] = {}
        self.trained_losses: set[str] = set()
        self.unusable: set[str] = set()
        self.bad_steps = 0
        self._has_unsaved_steps = False
        self._folder_of_checkpoints: str | None = None
        self._step_records: list[str] = []
        self._sums: dict[str, dict[str, torch.Tensor]] = {"train": {}, "eval": {}}

    def explained(self, model: PreTrainedModel) -> PreTrainedModel:
        """
        Raises:
            ValueError: the model lacks what it would be trained by, or cannot be trained in the way that is asked for.
        """
        if hasattr(model, "_orig_mod"):
            raise ValueError("torch.compile: pass the model as it was before, and set torch_compile=True.")
        self.explain = with_own_forward(self.given_explain or explain_function(model))
        model, family = groundable(model, self.explain), FAMILIES.get(model.config.model_type)
        if model._hf_peft_config_loaded and len(model.active_adapters()) > 1:
            active = ", ".join(model.active_adapters())
            raise ValueError(f"Several adapters are active, {active}, and only one can be saved: set_adapter chooses.")
        if family is not None and family.training_class is not None and not has_own_objectives(model):
            weights = [name for name in ("itc_weight", "mlm_weight") if getattr(self.args, name) > 0]
            if weights:
                raise ValueError(
                    f"{type(model).__name__} has no ITC and no MLM: load {family.training_class.__name__} with "
                    f"from_pretrained, or set {' and '.join(weights)} to 0 to train it by matching and AMC alone."
                )
        is_compiled = self.args.torch_compile or os.environ.get(COMPILER, "no").lower() != "no"
        if is_compiled and not has_own_objectives(model):
            name = (
                "torch_compile must be False" if self.args.torch_compile else f"{COMPILER}, of accelerate, must be no"
            )
            raise ValueError(
                f"{name} for {type(model).__name__}: heatmaps are differentiated twice, which compiled code cannot be; "
                "only AlbefForPreTraining compiles what lies below them."
            )
        return model

    def call_model_init(self, trial: Any = None) -> PreTrainedModel:
        return self.explained(super().call_model_init(trial))

    def hyperparameter_search(
        self,
        hp_space: Callable | None = None,
        compute_objective: Callable | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        **kwargs,
    ) -> BestRun | list[BestRun]:
        """As ever; by default the loss is minimized, or the pointing accuracy maximized."""
        if compute_objective is None and not isinstance(direction, str):
            raise ValueError("Several directions need compute_objective, which gives a value for each.")
        metric = "eval_loss" if direction == "minimize" else "eval_pointing_game"
        objective = compute_objective or itemgetter(metric)
        return super().hyperparameter_search(hp_space, objective, n_trials, direction, **kwargs)

    def train(self, *args, **kwargs) -> TrainOutput:
        """As ever, but a run of one process that an error or Ctrl-C ends saves what it trained since the last save.

        The metrics have `num_unusable`: records, of training and evaluation, that another phrase stood in for; and
        `num_bad_steps`: steps, of the whole run, that were skipped for want of a finite gradient.

        Raises:
            ValueError: before anything is trained, if machines do not share the output folder that they save into; or
                if no example can have a region, which AMC needs.
        """
        if self.uses_amc():
            check_regions(self.train_dataset, getattr(self.data_collator, "box_format", "xyxy"))
        self.bad_steps, self._has_unsaved_steps = 0, False
        if self.args.world_size > 1:
            check_shared(Path(self.args.output_dir), self.is_world_process_zero())
        try:
            output = super().train(*args, **kwargs)
            output.metrics["num_unusable"] = len(set(gather_object(sorted(self.unusable))))
            output.metrics["num_bad_steps"] = sum("bad_step" in entry for entry in self.state.log_history)
            return output
        except (Exception, KeyboardInterrupt) as error:
            # Of several processes the others may be waiting for this one elsewhere: nothing can be saved together.
            is_search = self.hp_search_backend is not None  # whose trials nobody goes on with
            if self.accelerator.num_processes == 1 and self._has_unsaved_steps and not is_search:
                self._save_checkpoint(self.model, trial=None)
                error.add_note(
                    f"The {self.state.global_step} steps before it are in {self._get_output_dir(None)}: continue with "
                    f"resume_from_checkpoint."
                )
            raise

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As ever, but a checkpoint has its name only when it is whole: a kill, or a full disk, leaves the one before.

        Raises:
            Exception: it could not be saved; a note says which checkpoint is whole.
        """
        run = Path(super()._get_output_dir(trial))
        unfinished = run / UNFINISHED
        if self.args.should_save:
            clear(unfinished)
        self.accelerator.wait_for_everyone()
        self._folder_of_checkpoints = str(unfinished)
        try:
            super()._save_checkpoint(model, trial)
            written = unfinished / f"checkpoint-{self.state.global_step}"
            if self.model._hf_peft_config_loaded and self.args.should_save:
                save_moving(self.model, written)
            if self.args.should_save and self.state.best_model_checkpoint == str(written):
                self.state.best_model_checkpoint = str(run / written.name)
                self.state.save_to_json(str(written / "trainer_state.json"))
        except Exception as error:
            self._has_unsaved_steps = False  # there is no use in trying again
            if self.args.should_save:
                clear(unfinished)
            whole = checkpoints(run)
            advice = f" {whole[-1]} is whole: make room, then go on with resume_from_checkpoint." if whole else ""
            error.add_note(f"The checkpoint of step {self.state.global_step} could not be saved.{advice}")
            raise
        finally:
            self._folder_of_checkpoints = None
        self.accelerator.wait_for_everyone()  # all processes have written
        checkpoint = run / written.name
        if self.args.should_save:
            if self.checkpoint_on_its_way() == checkpoint:
                self._finish_current_push()
            publish(written, run)
            self._rotate(run)
            clear(unfinished)
        self.accelerator.wait_for_everyone()
        self._has_unsaved_steps = False
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))

    def _rotate(self, run: Path) -> None:
        rotate(run, self.args.save_total_limit, self.state.best_model_checkpoint, self.checkpoint_on_its_way())

    def _get_output_dir(self, trial: Any) -> str:
        return self._folder_of_checkpoints or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Trainer asks for it while the checkpoint has another name, and lacks some of its files.
        if self._folder_of_checkpoints is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _finalize_training(self, trial: Any, *args) -> TrainOutput:
        self._finish_current_push()  # before Trainer deletes a last checkpoint that is not the best
        if self.args.should_save:
            self._rotate(Path(self._get_output_dir(trial)))
        return super()._finalize_training(trial, *args)

    # Trainer looks for adapters in peft's own wrapper only.
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self.model._hf_peft_config_loaded:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_checkpoint(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if not self.model._hf_peft_config_loaded:
            return super()._load_best_model()
        load_checkpoint(self.model, Path(self.state.best_model_checkpoint))

    # Data

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.phrases_per_image == 1:
            return super()._get_train_sampler(train_dataset)
        return ImageGroupedSampler(train_dataset["image_id"], self.phrases_per_image, self._data_seed)

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def get_train_dataloader(self) -> DataLoader:
        if not isinstance(self.train_dataset, StreamedRows):
            return super().get_train_dataloader()
        args = self.args
        batches = StreamedBatches(
            self.train_dataset,
            self.data_collator,
            batch_size=self._train_batch_size,
            buffer_size=self.shuffle_buffer,
            phrases_per_image=self.phrases_per_image,
            seed=self._data_seed,
            drop_last=args.dataloader_drop_last,
            process=args.process_index,
            num_processes=args.world_size,
        )
        # Not prepared by accelerate, which would read the data in one process for all, or all of it in each.
        return DataLoader(
            batches,
            batch_size=None,
            collate_fn=as_it_is,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )

    def num_examples(self, dataloader: DataLoader) -> int:
        batches = dataloader.dataset
        return len(batches.rows) if isinstance(batches, StreamedBatches) else super().num_examples(dataloader)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        with self._evaluating():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        with self._evaluating():
            return super().get_test_dataloader(test_dataset)

    def _get_dataloader(self, dataset: Any, description: str, *args, is_training: bool = False, **kwargs) -> DataLoader:
        if not is_training and self.args.world_size > 1 and isinstance(dataset, IterableDataset):
            raise ValueError(
                f"{description}: {self.args.world_size} processes cannot share an IterableDataset so that each row "
                "counts once. Evaluate in one process, or on a data set with a length."
            )
        return super()._get_dataloader(dataset, description, *args, is_training=is_training, **kwargs)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Loaders made in here use the collator without augmentation, and all rows."""
        of_training = self.data_collator, self.args.dataloader_drop_last
        self.data_collator, self.args.dataloader_drop_last = self.eval_data_collator, False
        try:
            yield
        finally:
            self.data_collator, self.args.dataloader_drop_last = of_training

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict], dict[str, torch.Tensor] | None]:
        """All micro-batches of an optimizer step, with what their losses must know of each other."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        batches = [self._prepare_inputs(batch) for batch in batches]
        self._step_records = [name for batch in batches for name in batch.get("record_names", [])]
        for batch in batches:
            self._name_unusable(batch)
        model = self.accelerator.unwrap_model(self.model)
        model.train()
        with self.compute_loss_context_manager():
            targets = step_targets(model, batches, self.model_wrapped)
        for batch, target in zip(batches, targets):
            batch.update(target)
        totals = count_items(batches)
        totals = {name: self.accelerator.reduce(total.to(device)) for name, total in totals.items()}
        return batches, totals

    def _name_unusable(self, batch: dict[str, Any]) -> None:
        """Each record once, however many epochs it comes up in."""
        for message in batch.get("unusable", []):
            if message not in self.unusable:
                self.unusable.add(message)
                logger.warning(f"{message}. Another phrase stands in for it.")

    # Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The weighted sum of the model's objectives and AMC.

        Args:
            inputs: a batch of `GroundingCollator`.
            num_items_in_batch: from `get_batch_samples`, the items of the whole step over all processes.
        """
        weights = self.loss_weights()
        inputs = dict(inputs)
        masks, has_region = inputs.pop("masks"), inputs.pop("has_region")
        counts = count_items([{**inputs, "has_region": has_region}])
        for name in NOT_OF_THE_MODEL:
            inputs.pop(name, None)
        outputs = model(**inputs, alpha=self.alpha(), output_heatmaps=self.uses_amc() or not model.training)
        own = "loss_itc", "loss_itm", "loss_mlm", "loss_absent"
        losses = {name: outputs[name] for name in own if outputs.get(name) is not None}
        if outputs.heatmaps is not None:
            losses |= attention_mask_consistency_loss(
                outputs.heatmaps,
                masks,
                has_region,
                self.args.amc_margin_mean,
                self.args.amc_margin_max,
                self.args.amc_reduction,
            )
        if model.training:
            num_items = num_items_in_batch or counts
            new = losses.keys() - self.trained_losses
            self.trained_losses |= {name for name in new if num_items[ITEMS[name]] > 0}
        loss = 0.0
        for name, value in losses.items():
            count = counts[ITEMS[name]]
            self._record("train" if model.training else "eval", name, value, count)
            if num_items_in_batch is not None:
                # The mean over this process' items → its part of the mean over the step's items; gradients are then
                # averaged over the processes.
                total = num_items_in_batch[ITEMS[name]].clamp(min=1)
                value = value * (count * self.accelerator.num_processes / total)
            if weights[name] > 0:
                loss = loss + weights[name] * value
        return (loss, outputs) if return_outputs else loss

    def loss_weights(self) -> dict[str, float]:
        args = self.args
        return {
            "loss_itc": args.itc_weight,
            "loss_itm": args.itm_weight,
            "loss_mlm": args.mlm_weight,
            "loss_absent": args.absent_weight,
            "loss_amc_mean": args.amc_mean_weight,
            "loss_amc_max": args.amc_max_weight,
        }

    def uses_amc(self) -> bool:
        return self.args.amc_mean_weight > 0 or self.args.amc_max_weight > 0

    def _run_epoch(self, *args, **kwargs) -> None:
        super()._run_epoch(*args, **kwargs)
        if self.uses_amc() and "loss_amc_mean" not in self.trained_losses:
            logger.warning(
                "No example trained on so far had a region: AMC has not begun. Look at the columns "
                f"{', '.join(REGIONS)} of the training data."
            )

    def alpha(self) -> float:
        """The weight of the soft labels now: it rises from 0 over the first epochs, and stays."""
        if not self.args.alpha_ramp_epochs:
            return self.args.alpha
        return self.args.alpha * min(1.0, (self.state.epoch or 0.0) / self.args.alpha_ramp_epochs)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Clips; a gradient that is not finite, on whichever process, empties the step instead."""
        grad_norm = super()._clip_grad_norm(model)
        if torch.isfinite(torch.as_tensor(grad_norm)):
            self.bad_steps = 0
            self._has_unsaved_steps = True
            return grad_norm
        # Without gradients the optimizer leaves weights and its own state alone.
        model.zero_grad(set_to_none=True)
        self.bad_steps += 1
        records = "; ".join(self._step_records) or "its records have no image_id"
        message = f"Step {self.state.global_step + 1} has no finite gradient and is skipped. Its examples: {records}."
        if self.bad_steps >= self.args.max_bad_steps:
            self._save_checkpoint(self.model, self._trial)
            raise FloatingPointError(
                f"{message} That makes {self.bad_steps} in a row, so training stops; the weights from before them "
                f"are in {self._get_output_dir(self._trial)}. Lower the learning rate, or look at these examples."
            )
        self.log({"bad_step": self.state.global_step + 1})
        logger.warning(message)
        return grad_norm

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not any(spared in name for spared in NO_DECAY)]

    # Logs

    def _record(self, mode: str, name: str, value: torch.Tensor, count: torch.Tensor) -> None:
        sums = self._sums[mode].setdefault(name, torch.zeros(2, device=value.device))
        value = value.detach().float()
        sums += torch.stack([value * count, count.to(value)])

    def _drain(self, mode: str) -> dict[str, float]:
        """The mean of every loss since the last call, over all processes."""
        recorded, self._sums[mode] = self._sums[mode], {}
        # All losses there can be: this process may have seen a kind of example that others have not.
        nothing = torch.zeros(2, device=self.accelerator.device)
        sums = self.accelerator.reduce(torch.stack([recorded.get(name, nothing) for name in ITEMS])).tolist()
        return {
            name: total / max(count, 1) for name, (total, count) in zip(ITEMS, sums) if count > 0 or name in recorded
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self._drain("train")}
        super().log(logs, start_time)

    # Evaluation

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        self._sums["eval"] = {}
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in self._drain("eval").items()})
        if self.args.metric_for_best_model == BEST_BY_DEFAULT and self.is_in_train:
            self._choose_best_metric(output.metrics, metric_key_prefix)
        evaluation = Evaluation.of(dataloader.dataset, metric_key_prefix, output)
        self.evaluations[evaluation.split] = evaluation
        # Later evaluations may be of other data than is drawn, and what is reported to is closed.
        if self.draw_heatmaps is not None and self.is_in_train and self.is_world_process_zero():
            picture, callbacks = self.draw_heatmaps(self), self.callback_handler.callbacks
            log_picture(callbacks, f"{metric_key_prefix}/heatmaps", picture, self.state.global_step)
        return output

    def _choose_best_metric(self, metrics: dict[str, float], prefix: str) -> None:
        has_points = f"{prefix}_pointing_game" in metrics
        self.args.metric_for_best_model = f"{prefix}_{'pointing_game' if has_points else 'loss'}"
        self.args.greater_is_better = has_points

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
        """The loss; the point (x, y) of each phrase in pixels and how likely it fits; its boxes and if it is absent."""
        inputs = self._prepare_inputs(inputs)
        self._name_unusable(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
            if prediction_loss_only:
                return loss.detach(), None, None
            points = heatmap_points(outputs.heatmaps, inputs["image_sizes"])
            probability = outputs.get("probability")
            if probability is None:
                probability = outputs.itm_logits.float().softmax(dim=-1)[:, 1]
            # What stands in for another phrase has no region, and is neither true nor absent: it scores nothing.
            is_absent = inputs["is_absent"].long().masked_fill(inputs["is_stand_in"], PADDING)
            return loss.detach(), (points, probability), (inputs["boxes"], is_absent)

    def compute_scores(self, prediction: EvalPrediction) -> dict[str, float]:
        """Pointing accuracy of the phrases that have boxes, and `absent_auroc`: how well the score tells phrases that
        fit from those that are absent; each where there are such phrases."""
        (points, probability), (boxes, is_absent) = joined(prediction.predictions), joined(prediction.label_ids)
        has_boxes = (boxes != PADDING).any(axis=(1, 2))
        scores = {}
        if has_boxes.any():
            scores |= self.pointing_game.compute(points=points[has_boxes], boxes=boxes[has_boxes])
        true, absent = probability[is_absent == 0], probability[is_absent == 1]
        if len(true) and len(absent):
            scores["absent_auroc"] = auroc(true, absent)
        return scores


class EpochOfDraws(TrainerCallback):
    """Tells the collator, or the streamed batches, the epoch: their random draws depend on it."""

    def on_epoch_begin(self, args: AmcConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        loader = kwargs["train_dataloader"]
        epoch = math.floor((state.epoch or 0) + 1e-6)
        if isinstance(loader.dataset, StreamedBatches):
            steps = math.ceil(len(loader) / args.gradient_accumulation_steps)
            trained = 0 if args.ignore_data_skip else state.global_step % steps
            loader.dataset.begin_epoch(epoch, passed_over=trained * args.gradient_accumulation_steps)
        elif hasattr(loader.collate_fn, "epoch"):
            loader.collate_fn.epoch = epoch


def joined(batches: Any) -> Any:
    """One tuple of arrays from those of all batches, where `eval_do_concat_batches` left them apart."""
    padded = partial(nested_concat, padding_index=PADDING)
    return reduce(padded, batches) if isinstance(batches, list) else batches


def evaluation_collator(collator: Callable) -> Callable:
    if isinstance(collator, GroundingCollator):
        return collator.for_evaluation(collator.mlm_probability)
    return copy.copy(collator)  # its epoch does not change


def as_it_is(batch: Any) -> Any:
    return batch


def count_items(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """How many true phrases, absent ones, masked words and phrases with a region these batches have."""
    counts: dict[str, torch.Tensor] = defaultdict(lambda: torch.tensor(0))
    for batch in batches:
        is_absent = batch.get("is_absent", torch.tensor(False))
        counts["absent"] = counts["absent"] + is_absent.sum()
        counts["phrases"] = counts["phrases"] + len(batch["input_ids"]) - is_absent.sum()
        counts["regions"] = counts["regions"] + batch["has_region"].sum()
        if "mlm_labels" in batch:
            counts["mlm_tokens"] = counts["mlm_tokens"] + (batch["mlm_labels"] != -100).sum()
    return counts
