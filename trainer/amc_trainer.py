"""Trains any groundable vision-language model with Attention Mask Consistency, and evaluates where it points."""

import copy
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    EarlyStoppingCallback,
    ImageProcessingMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, BestRun, PredictionOutput, TrainOutput, has_length
from transformers.utils import logging

from modeling_albef_amc.families.family import Explain
from modeling_albef_amc.families.hooks import with_own_forward
from modeling_albef_amc.families.objectives import known_matches
from modeling_albef_amc.families.processors import max_tokens, num_known_tokens, whole_images
from modeling_albef_amc.families.registry import FAMILIES, explain_function
from modeling_albef_amc.families.training import groundable, has_own_objectives, step_targets
from modeling_albef_amc.gradcam import heatmap_points
from modeling_albef_amc.modeling_albef_pretraining import parted

from .amc_config import BEST_BY_DEFAULT, AmcConfig
from .amc_loss import attention_mask_consistency_loss
from .data_checks import check_evaluated, check_metric, check_order, check_regions
from .data_collator import PADDING, Counted, GroundingCollator
from .fsdp import left_out
from .half_steps import TEACHER_HAS_MOVED, kept_buffers, random_state, restore_buffers, teacher_stands
from .klal_loss import kl_attention_loss
from .loss_means import ITEMS, LossMeans, count_items
from .model_card import Evaluation
from .model_checks import (
    check_adapters,
    check_device,
    check_objectives,
    check_trained,
    check_wrong_images,
    learns_matching,
    measured,
)
from .phrase_rows import PhraseRows
from .publishing import PublishingTrainer
from .regions import REGIONS
from .reporting import log_image, warn_of_places_without_images
from .sampler import ImageGroupedSampler
from .scores import PointingScores
from .streaming import StreamedBatches, StreamedRows, as_it_is

logger = logging.get_logger(__name__)
# In the state of a checkpoint: losses that were trained; a digest of the names of trained weights; passes over data
# without a length.
TRAINED_LOSSES, TRAINED_WEIGHTS, PASSES = "trained_losses", "trained_weights", "passes"
OF_NO_CALLBACK = TRAINED_LOSSES, TRAINED_WEIGHTS, PASSES, TEACHER_HAS_MOVED
# Of a batch, what the model's forward does not take.
NOT_OF_THE_MODEL = "masks", "has_region", "boxes", "image_sizes", "record_names", "is_placeholder", "unusable"
OF_IMAGES = "pixel_values", "image_ids"  # of a batch, what has a row an image; all else has one a phrase
# Parameters that no weight decay should pull to zero; biases and norms are spared by transformers already.
NO_DECAY = ("temperature", "logit_scale", "cls_token", "class_embedding", "position_embedding")


class AmcTrainer(PublishingTrainer):
    """transformers' Trainer whose loss is the model's own objectives plus Attention Mask Consistency.

    Args:
        model: `AlbefForPreTraining`, or a model of a family of `families.registry`. Out of peft's wrapper, which it may
            come in, it is trained and saved as if its adapters came by `add_adapter`.
        model_init: makes a new one for every training, instead of `model`.
        explain: how to explain a model of an unknown family.
        train_dataset: may be `StreamedRows`.
        phrases_per_image: up to this many phrases of a batch share an image, which is then encoded once for them.
        shuffle_buffer: streamed phrases that each worker holds in memory to shuffle them.
        draw_heatmaps: called as `draw_heatmaps(trainer)` after each evaluation while training, for `report_to`, and for
            the model card; returns an image.
        data_collator: a `GroundingCollator`, or what gives such batches. Of the former a copy is set to show the model
            whole images (`whole_images`) and phrases as long as it reads, if its family is known.
        eval_data_collator: default: `data_collator.for_evaluation`, masking as many words; of a collator of another
            class, a copy.
        Everything else as in `Trainer`; `processing_class` is the collator's `processor` by default.

    Every loss is the mean over its items in the whole optimizer step, and contrasts go over all pairs of the step:
    neither the number of processes nor gradient accumulation changes the gradient. Only hard negatives, and what dual
    encoders compare absent phrases with, are chosen from the micro-batch, of which `amc_reduction` batch takes its
    means. A step without a finite gradient is skipped, counted and reported with its records.

    Raises:
        FloatingPointError: `max_bad_steps` such steps in a row. What was trained before is saved.
    """

    args: AmcConfig
    data_collator: Callable
    processing_class: Any
    current_gradient_accumulation_steps = 1  # until Trainer sets it, in its first step
    num_phrases = 0  # that matching has trained on, and those of them without a wrong image in their batch
    num_without_wrong_image: int | torch.Tensor = 0

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
        check_arguments(model, args, **kwargs)
        callbacks = [*(kwargs.pop("callbacks", None) or []), Hooks(self)]
        if args.early_stopping_patience:
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))
        kwargs.setdefault("compute_metrics", PointingScores())
        kwargs.setdefault("processing_class", getattr(data_collator, "processor", None))
        self.given_explain, self.args = explain, args
        model = None if model is None else self.explained(model)
        super().__init__(model, args, data_collator, callbacks=callbacks, **kwargs)
        check_device(args, self.accelerator)
        if self.train_dataset is not None:
            check_order(self.train_dataset, args.train_sampling_strategy, phrases_per_image)
            check_wrong_images(self.model, args, args.train_batch_size, phrases_per_image)
        for data in self.eval_datasets.values():
            check_evaluated(data)
        if self.is_fsdp_enabled:
            if self.model_init is not None:
                raise ValueError(
                    "model_init cannot be used with FSDP, which is told of one model's modules: pass model."
                )
            plugin = self.accelerator.state.fsdp_plugin
            plugin.ignored_modules = left_out(self.model, plugin.ignored_modules)
        # Trainer divides any loss by the micro-batches of its step, whatever the model's forward takes: `compute_loss`.
        self.model_accepts_loss_kwargs = False
        self.data_collator = self.fitted(data_collator)
        self.eval_data_collator = self.fitted(eval_data_collator) or evaluation_collator(self.data_collator)
        if self.processing_class is getattr(data_collator, "processor", None):
            self.processing_class = getattr(self.data_collator, "processor", None)
            self.callback_handler.processing_class = self.processing_class
        self.phrases_per_image = phrases_per_image
        self.shuffle_buffer = shuffle_buffer
        self.draw_heatmaps = draw_heatmaps
        if draw_heatmaps is not None and self.is_world_process_zero():
            warn_of_places_without_images(self.callback_handler.callbacks)
        self.evaluations: dict[str, Evaluation] = {}
        self.trained_losses: set[str] = set()
        self.unusable: set[str] = set()
        self.bad_steps, self.epoch = 0, -1
        self.teacher_has_moved = False  # for the step to come, before a checkpoint in its middle
        self._step_records: list[str] = []
        self._left_over: list[dict] = []
        self.means = {"train": LossMeans(), "eval": LossMeans()}

    def explained(self, model: PreTrainedModel) -> PreTrainedModel:
        """Gives the model the forward pass that it is trained by."""
        if hasattr(model, "_orig_mod"):
            raise ValueError("torch.compile: pass the model as it was before, and set torch_compile=True.")
        self.explain = with_own_forward(self.given_explain or explain_function(model))
        model = groundable(model, self.given_explain)
        check_adapters(model)
        check_objectives(model, self.args)
        return model

    def fitted(self, collator: Callable | None) -> Callable | None:
        """Of a `GroundingCollator` a copy that is set to what a model of a known family reads: whole images, and
        phrases so long."""
        config = self.model.config
        if not isinstance(collator, GroundingCollator) or config.model_type not in FAMILIES:
            return collator
        processor = whole_images(collator.processor, config)
        lengths = dict(max_tokens=max_tokens(config), num_known_tokens=num_known_tokens(config))
        return collator.changed(processor=processor, **lengths)

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
        """By default the loss is minimized, or the pointing accuracy maximized."""
        if compute_objective is None:
            if not isinstance(direction, str):
                raise ValueError("Several directions need compute_objective, which gives a value for each.")
            compute_objective = partial(
                measured_objective, "eval_loss" if direction == "minimize" else "eval_pointing_game"
            )
        return super().hyperparameter_search(hp_space, compute_objective, n_trials, direction, **kwargs)

    def train(self, *args, **kwargs) -> TrainOutput:
        """Trains, see `PublishingTrainer`.

        The metrics have `num_unusable`: records, of training and evaluation, that placeholders replaced; and
        `num_bad_steps`: steps, of the whole run, that were skipped for want of a finite gradient.

        Raises:
            ValueError: before anything is trained, if no weight is to be trained, or weights in half precision, or if
                no example can have a region, which `region_loss` needs, or no evaluation `metric_for_best_model`; of
                `compute_metrics` of one's own the first evaluation tells.
        """
        if self.args.uses_regions:
            check_regions(self.train_dataset, getattr(self.data_collator, "box_format", "xyxy"))
        self.check_best_metric()
        self.before_step = None
        metric = self.args.metric_for_best_model, self.args.greater_is_better
        try:
            output = super().train(*args, **kwargs)
        finally:  # another run by these settings may have other metrics
            self.args.metric_for_best_model, self.args.greater_is_better = metric
        best = self.state.best_global_step
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            evaluations = {name: each.of_step(best, self.state) for name, each in self.evaluations.items()}
            self.evaluations = {name: each for name, each in evaluations.items() if each is not None}
        output.metrics["num_unusable"] = len(set(gather_object(sorted(self.unusable))))
        output.metrics["num_bad_steps"] = sum("bad_step" in entry for entry in self.state.log_history)
        return output

    def _load_callback_state(self) -> None:
        """Trainer warns of what it finds no callback for, `restore_callback_states_from_checkpoint`."""
        saved = self.state.stateful_callbacks
        own = {name: saved.pop(name) for name in OF_NO_CALLBACK if name in saved}
        super()._load_callback_state()
        saved |= own

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        check_trained(self.model)
        return super().create_optimizer(*args, **kwargs)

    # Data

    def get_train_dataloader(self) -> DataLoader:
        collator, self.data_collator = self.data_collator, Counted(self.data_collator)
        try:
            return self._train_loader()
        finally:
            self.data_collator = collator

    def _train_loader(self) -> DataLoader:
        is_streamed = isinstance(self.train_dataset, StreamedRows)
        if not is_streamed and self.phrases_per_image == 1:
            return super().get_train_dataloader()
        args = self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        options = dict(
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=getattr(args, "dataloader_multiprocessing_context", None),  # of transformers 5.8
        )
        if not is_streamed:
            rows = self.train_dataset  # whose format may be torch's, of which equal numbers are unlike each other
            stored = rows if isinstance(rows, PhraseRows) else rows.with_format(None)
            sampler = ImageGroupedSampler(stored["image_id"], self.phrases_per_image, seed)
            options |= dict(batch_size=self._train_batch_size, drop_last=args.dataloader_drop_last)
            loader = DataLoader(self.train_dataset, sampler=sampler, collate_fn=self.data_collator, **options)
            return self.accelerator.prepare(loader)
        batches = StreamedBatches(
            self.train_dataset,
            self.data_collator,
            batch_size=self._train_batch_size,
            buffer_size=self.shuffle_buffer,
            phrases_per_image=self.phrases_per_image,
            seed=seed,
            drop_last=args.dataloader_drop_last,
            share=(args.process_index, args.world_size),
        )
        # Not prepared by accelerate, which would read the data in one process for all, or all of it in each.
        return DataLoader(batches, batch_size=None, collate_fn=as_it_is, **options)

    def num_examples(self, dataloader: DataLoader) -> int:
        batches = dataloader.dataset
        return len(batches.rows) if isinstance(batches, StreamedBatches) else super().num_examples(dataloader)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        return self._evaluation_loader(super().get_eval_dataloader, eval_dataset)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        return self._evaluation_loader(super().get_test_dataloader, test_dataset)

    def _evaluation_loader(self, get_dataloader: Callable[[Any], DataLoader], dataset: Any) -> DataLoader:
        """A loader of Trainer's, but with the collator of evaluation, and of all rows."""
        of_training = self.data_collator, self.args.dataloader_drop_last
        self.data_collator, self.args.dataloader_drop_last = self.eval_data_collator, False
        try:
            loader = get_dataloader(dataset)
        finally:
            self.data_collator, self.args.dataloader_drop_last = of_training
        if self.args.world_size > 1 and isinstance(loader.dataset, IterableDataset):
            raise ValueError(
                f"Evaluation: {self.args.world_size} processes cannot share an IterableDataset so that each row counts "
                "once. Evaluate in one process, or on a data set with a length."
            )
        check_evaluated(loader.dataset)
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict], dict[str, torch.Tensor] | None]:
        """All micro-batches of an optimizer step, with what their losses must know of each other."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches - len(self._left_over), device)
        batches, self._left_over = [*self._left_over, *batches], []
        if len(batches) < num_batches:
            # A pass over data without a length ends within a step, and Trainer would not take it: the next one does.
            self._left_over, batches = batches, []
        if not batches:
            return batches, None
        self._load_rng_state(self.resumed_from)
        batches = [self._prepare_inputs(batch) for batch in batches]
        self._step_records = [name for batch in batches for name in batch.get("record_names", [])]
        for batch in batches:
            self._name_unusable(batch)
        model = self.accelerator.unwrap_model(self.model)
        if self.args.itm_weight > 0 and learns_matching(model):
            for batch in batches:
                known = known_pairs(batch)
                self.num_phrases += len(known)
                self.num_without_wrong_image += known.all(dim=1).sum()
        model.train()
        self.before_step = self.random_state or random_state(), kept_buffers(model)
        self.random_state = None
        has_moved = self.teacher_has_moved and has_own_objectives(model)
        with self.compute_loss_context_manager(), teacher_stands(model) if has_moved else nullcontext():
            targets = step_targets(model, batches, self.model_wrapped)
        self.teacher_has_moved = False
        for batch, target in zip(batches, targets):
            batch.update(target)
        totals = count_items(batches)
        return batches, {name: self.accelerator.reduce(total.to(device)) for name, total in totals.items()}

    def _name_unusable(self, batch: dict[str, Any]) -> None:
        """Each record once, however many epochs it comes up in."""
        for message in batch.get("unusable", []):
            if message not in self.unusable:
                self.unusable.add(message)
                logger.warning(f"{message}. A placeholder replaces it.")

    # Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The weighted sum of the model's objectives and those of regions.

        An override may add a term, the mean over its batch: of the micro-batches and processes of a step the mean
        counts.

        Args:
            inputs: a batch of `GroundingCollator`.
            num_items_in_batch: from `get_batch_samples`, the items of the whole step over all processes.
        """
        args, weights, counts = self.args, self.args.loss_weights, count_items([inputs])
        of_model = {name: value for name, value in inputs.items() if name not in NOT_OF_THE_MODEL}
        if not has_own_objectives(self.accelerator.unwrap_model(model)):
            of_model["objectives"] = [name for name, weight in weights.items() if weight > 0]
        of_model |= dict(output_heatmaps=args.uses_amc or not model.training, output_attention_maps=args.uses_klal)
        outputs = model(**of_model, alpha=self.alpha())
        losses = {name: outputs[name] for name in ITEMS if outputs.get(name) is not None}
        regions = inputs["masks"], inputs["has_region"]
        if outputs.heatmaps is not None:
            margins = args.amc_margin_mean, args.amc_margin_max
            losses |= attention_mask_consistency_loss(outputs.heatmaps, *regions, *margins, args.amc_reduction)
        if args.uses_klal:
            if model.training and torch.is_grad_enabled() and not outputs.attention_maps.requires_grad:
                raise ValueError(
                    "loss_klal has no gradient: no weight is trained that the attention depends on, or activation "
                    "checkpointing is reentrant, which records attention without a graph: set use_reentrant=False."
                )
            losses |= kl_attention_loss(outputs.attention_maps, *regions)
        if model.training:
            num_items = num_items_in_batch or counts
            new = losses.keys() - self.trained_losses
            self.trained_losses |= {name for name in new if weights[name] > 0 and num_items[ITEMS[name]] > 0}
        loss = 0.0
        for name, value in losses.items():
            count = counts[ITEMS[name]]
            self.means["train" if model.training else "eval"].add(name, value, count)
            if num_items_in_batch is not None:
                # The mean over this process' items → its part of the mean over the step's items; gradients are then
                # averaged over the processes, and over the micro-batches.
                num_parts = self.accelerator.num_processes * self.current_gradient_accumulation_steps
                total = num_items_in_batch[ITEMS[name]].clamp(min=1)
                value = value * (count * num_parts / total)
            if weights[name] > 0:
                loss = loss + weights[name] * value
        return (loss, outputs) if return_outputs else loss

    def alpha(self) -> float:
        """The weight of the soft labels now: it rises from 0 over the first epochs, and stays."""
        if not self.args.alpha_ramp_epochs:
            return self.args.alpha
        epoch = max(self.epoch, self.state.epoch or 0.0)  # the latter is none of data without a length
        return self.args.alpha * min(1.0, epoch / self.args.alpha_ramp_epochs)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        """Clips; a gradient that is not finite, on whichever process, empties the step instead."""
        # Private: the norm of the gradient, which tells a bad step, reaches no public hook before the optimizer's step.
        grad_norm = super()._clip_grad_norm(model)
        if torch.isfinite(torch.as_tensor(grad_norm)):
            self.bad_steps = 0
            return grad_norm
        model.zero_grad(set_to_none=True)  # without gradients the optimizer leaves weights and its own state alone
        self.bad_steps += 1
        records = "; ".join(self._step_records) or "its records have no image_id"
        message = f"Step {self.state.global_step + 1} has no finite gradient and is skipped. Its examples: {records}."
        if self.bad_steps >= self.args.max_bad_steps:
            if self.has_unsaved_steps:
                self.save_checkpoint()
            raise FloatingPointError(
                f"{message} That makes {self.bad_steps} in a row, so training stops; what was trained before "
                f"them is in {self.args.output_dir}. Lower the learning rate, or look at these examples."
            )
        self.log({"bad_step": self.state.global_step + 1})
        logger.warning(message)
        return grad_norm

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not any(spared in name for spared in NO_DECAY)]

    # Logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.means["train"].drain(self.accelerator)}
        super().log(logs, start_time)

    # Evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        with self.keeping_callbacks():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        is_whole = self.is_in_train and eval_dataset is None and metric_key_prefix == "eval"
        if is_whole and self.args.metric_for_best_model and self.best_metric not in metrics:
            raise ValueError(not_measured(self.args.metric_for_best_model, metrics))
        return metrics

    def predict(self, *args, **kwargs) -> PredictionOutput:
        with self.keeping_callbacks():
            return super().predict(*args, **kwargs)

    @contextmanager
    def keeping_callbacks(self) -> Iterator[None]:
        """What `evaluation_loop` takes out in here comes back."""
        of_training = self.callback_handler.callbacks
        try:
            yield
        finally:
            self.callback_handler.callbacks = of_training

    @property
    def eval_datasets(self) -> dict[str, Any]:
        """What a run is evaluated on, by the prefix of its metrics."""
        data = self.eval_dataset
        return {f"eval_{name}": data[name] for name in data} if isinstance(data, dict) else {"eval": data}

    @property
    def best_metric(self) -> str:
        """As Trainer looks for it."""
        return f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"

    def check_best_metric(self) -> None:
        """ValueError: an evaluation will not have `metric_for_best_model`, as far as is known before one."""
        metric = self.args.metric_for_best_model
        if metric in (None, BEST_BY_DEFAULT):
            return
        names = measured(self.model, self.args)
        known = {f"{prefix}_{name}": (name, data) for prefix, data in self.eval_datasets.items() for name in names}
        if self.best_metric in known:
            if self.args.eval_strategy != "no":
                check_metric(*known[self.best_metric])
        elif isinstance(self.compute_metrics, PointingScores):
            raise ValueError(not_measured(metric, known))

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        self.means["eval"] = LossMeans()
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        losses = self.means["eval"].drain(self.accelerator)
        weighted = [
            weight * losses[name] for name, weight in self.args.loss_weights.items() if weight and name in losses
        ]
        if weighted:
            losses["loss"] = sum(weighted)
        else:
            output.metrics.pop(f"{metric_key_prefix}_loss", None)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in losses.items()})
        is_of_run = self.is_in_train and metric_key_prefix in self.eval_datasets  # and no callback's own
        if self.args.metric_for_best_model == BEST_BY_DEFAULT and is_of_run:
            has_points = f"{metric_key_prefix}_pointing_game" in output.metrics
            self.args.metric_for_best_model = f"{metric_key_prefix}_{'pointing_game' if has_points else 'loss'}"
            self.args.greater_is_better = has_points
        if not (is_of_run and self.best_metric in output.metrics):  # else early stopping warns that it is disabled
            handler = self.callback_handler
            handler.callbacks = [each for each in handler.callbacks if not isinstance(each, EarlyStoppingCallback)]
        evaluation = Evaluation.of(dataloader.dataset, metric_key_prefix, output)
        self.evaluations[evaluation.name] = evaluation
        # Later evaluations may be of other data than is drawn, and what is reported to is closed.
        if self.draw_heatmaps is not None and self.is_in_train and self.is_world_process_zero():
            image, callbacks = self.draw_heatmaps(self), self.callback_handler.callbacks
            log_image(callbacks, f"{metric_key_prefix}/heatmaps", image, self.state.global_step)
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
        """The loss; the point (x, y) of each phrase in pixels and how likely it fits; its boxes and if it is absent."""
        inputs = self._prepare_inputs(inputs)
        self._name_unusable(inputs)
        # Losses are of usable records; of a batch without any the model is asked all the same, for its points' shapes.
        is_usable, sums = ~inputs["is_placeholder"] & ~self._is_repeated(inputs), self.means["eval"].sums.copy()
        rows = is_usable if is_usable.any() else ~is_usable
        asked = {name: value[rows] if name not in OF_IMAGES and torch.is_tensor(value) else value
                 for name, value in inputs.items()}  # fmt: skip
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, asked, return_outputs=True)
            if not is_usable.any():
                self.means["eval"].sums = sums
            if prediction_loss_only:
                return loss.detach(), None, None
            points = heatmap_points(outputs.heatmaps, asked["image_sizes"])
            probability = outputs.get("probability")
            if probability is None:
                probability = outputs.itm_logits.float().softmax(dim=-1)[:, 1]
            # A placeholder has no region, and is neither true nor absent: it scores nothing.
            is_absent = inputs["is_absent"].long().masked_fill(inputs["is_placeholder"], PADDING)
            answers = (of.new_zeros((len(rows), *of.shape[1:])).index_put((rows,), of) for of in (points, probability))
            return loss.detach(), tuple(answers), (inputs["boxes"], is_absent)

    def _is_repeated(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Which rows of the last batches are the first ones again, so that processes have as many: those that
        `gather_for_metrics` drops of the predictions.
        """
        state, is_placeholder = self.accelerator.gradient_state, inputs["is_placeholder"]
        size = len(is_placeholder)  # in every process
        place = torch.arange(size, device=is_placeholder.device) + self.accelerator.process_index * size
        return (place >= state.remainder) & (state.end_of_dataloader and state.remainder > 0)


class Hooks(TrainerCallback):
    """What `AmcTrainer` does between steps."""

    def __init__(self, trainer: AmcTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: AmcConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Begins to count, or goes on as the checkpoint says; takes back half a step of a batch that did not fit."""
        trainer, loader = self.trainer, kwargs["train_dataloader"]
        model = trainer.accelerator.unwrap_model(trainer.model)
        trainer.bad_steps, trainer.evaluations, trainer.means["train"] = 0, {}, LossMeans()
        trainer.num_phrases, trainer.num_without_wrong_image, trainer._left_over = 0, 0, []
        trainer.has_unsaved_steps = False
        # Again: auto_find_batch_size and a search for settings take other batches than `args` had.
        check_wrong_images(model, args, trainer._train_batch_size, trainer.phrases_per_image)
        if has_length(loader) and not len(loader):
            raise ValueError(
                f"dataloader_drop_last leaves no batch of {trainer._train_batch_size} of "
                f"{trainer.num_examples(loader)} rows: lower per_device_train_batch_size, or do without it."
            )
        warn_of_warmup(args, state, kwargs["lr_scheduler"])
        best = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}")
        if args.load_best_model_at_end and not any(map(os.path.isdir, (best, state.best_model_checkpoint or ""))):
            # It was not saved, or is gone: the best is one to come. Older transformers still name it.
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        passes, weights = state.stateful_callbacks.get(PASSES, 0), trained_weights(trainer.model, kwargs["optimizer"])
        if passes and not has_length(loader) and not args.ignore_data_skip:
            raise ValueError(
                f"resume_from_checkpoint: the run went {passes} times over data without a length, and its place in "
                "them is not known. ignore_data_skip=True begins with their first row; StreamedRows and data with a "
                "length go on where they were."
            )
        if state.stateful_callbacks.setdefault(TRAINED_WEIGHTS, weights) != weights:
            raise ValueError(
                "resume_from_checkpoint: the checkpoint's run trained other weights of the model, although as many: "
                "set freeze and lora_* as they were, or begin a new run from its weights."
            )
        trainer.trained_losses.update(state.stateful_callbacks.get(TRAINED_LOSSES, []))
        trainer.epoch, trainer.teacher_has_moved = passes - 1, TEACHER_HAS_MOVED in state.stateful_callbacks
        state.stateful_callbacks.pop(TEACHER_HAS_MOVED, None)
        if trainer.before_step is not None:
            restore_buffers(model, trainer.before_step[1])
            trainer.teacher_has_moved = True
        saved = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, [])
        patient = [each for each in trainer.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
        for callback, entry in zip(patient, saved if isinstance(saved, list) else [saved]):
            name = "early_stopping_patience_counter"
            setattr(callback, name, entry["attributes"][name] if state.global_step else 0)

    def on_epoch_begin(self, args: AmcConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Tells the epoch to the collator, the sampler or the streamed batches: their random draws depend on it."""
        loader = kwargs["train_dataloader"]
        # Counted, since Trainer's are no whole ones of data without a length.
        self.trainer.epoch = epoch = max(math.floor((state.epoch or 0) + 1e-6), self.trainer.epoch + 1)
        self.trainer.random_state = random_state()  # before the loader draws from it
        sampler = loader.batch_sampler
        while inner := getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None):
            sampler = inner  # which not every accelerate reaches below the batches that a resumed run skips
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        if isinstance(loader.dataset, StreamedBatches):
            steps = math.ceil(len(loader) / args.gradient_accumulation_steps)
            trained = 0 if args.ignore_data_skip else state.global_step % steps
            loader.dataset.begin_epoch(epoch, passed_over=trained * args.gradient_accumulation_steps)
        elif hasattr(loader.collate_fn, "epoch"):
            loader.collate_fn.epoch = epoch

    def on_optimizer_step(self, args: AmcConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.trainer.before_step = None

    def on_step_end(self, args: AmcConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        # A run that ends before anything is logged, and only goes on from its end, is asked for them by its card.
        state.stateful_callbacks[TRAINED_LOSSES] = sorted(self.trainer.trained_losses)

    def on_evaluate(
        self, args: AmcConfig, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **kwargs
    ) -> None:
        """Has weights saved that are better than all before, however rare saves are: they may stay the best."""
        value, best = metrics.get(self.trainer.best_metric), state.best_metric
        is_best = value is not None and (best is None or (value > best if args.greater_is_better else value < best))
        control.should_save |= args.load_best_model_at_end and is_best

    def on_epoch_end(self, args: AmcConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if not has_length(kwargs["train_dataloader"]):
            state.stateful_callbacks[PASSES] = self.trainer.epoch + 1
        if self.trainer._left_over and control.should_training_stop:
            raise ValueError(
                f"The training data have {len(self.trainer._left_over)} batches, and a step takes "
                f"{args.gradient_accumulation_steps}: lower gradient_accumulation_steps, or the size of a batch."
            )
        if args.uses_regions and not self.trainer.trained_losses & {"loss_amc_mean", "loss_klal"}:
            logger.warning(
                f"No example trained on so far had a region: {args.region_loss} has not begun. Look at the columns "
                f"{', '.join(REGIONS)} of the training data."
            )
        count, num_alone = self.trainer.num_phrases, int(self.trainer.num_without_wrong_image)
        if 2 * num_alone > count:
            logger.warning(
                f"{num_alone:,} of {count:,} phrases trained on so far had no wrong image in their batch, from which "
                "matching (ITM) learns that everything fits. Take larger batches, or rows in random order, or set "
                "itm_weight to 0."
            )


def check_arguments(
    model: Any, args: Any, compute_loss_func: Callable | None = None, processing_class: Any = None, **_: Any
) -> None:
    """Of `AmcTrainer`, where they are of another kind."""
    if not isinstance(model, nn.Module | None):
        raise TypeError(
            f"model must be a model, not {model!r}: of a folder or Hub id, load_model(path, training=True) of "
            "modeling_albef_amc.families.auto loads it."
        )
    if not isinstance(args, AmcConfig):
        raise TypeError(f"args must be an AmcConfig, not {type(args).__name__}: it has the losses' settings too.")
    if compute_loss_func is not None:
        raise ValueError("compute_loss_func cannot be used: AmcTrainer computes the losses; override compute_loss.")
    if isinstance(processing_class, PreTrainedTokenizerBase | ImageProcessingMixin):
        raise TypeError(
            f"processing_class must be a whole processor, not {type(processing_class).__name__}, which no model loads "
            "with: leave it out, and the collator's processor is saved."
        )


def not_measured(metric: str, names: Iterable[str]) -> str:
    there = ", ".join(sorted(name.removeprefix("eval_") for name in names))
    return f"metric_for_best_model: {metric.removeprefix('eval_')} is not measured; what is: {there}."


def measured_objective(metric: str, metrics: dict[str, float]) -> float:
    """A search's objective by default; ValueError: the evaluation has not measured it."""
    if metric not in metrics:
        there = ", ".join(sorted(name for name in metrics if name.startswith("eval_")))
        raise ValueError(f"The evaluation did not measure {metric}: pass a compute_objective, of what is: {there}.")
    return metrics[metric]


def known_pairs(batch: dict[str, Any]) -> torch.Tensor:
    """(num_phrases, num_phrases) of bool, as `known_matches`: of the phrases of a batch that are not absent."""
    ids, mask, own_image = (batch.get(name) for name in ("input_ids", "attention_mask", "image_index"))
    own_image = torch.arange(len(ids), device=ids.device) if own_image is None else own_image
    if "is_absent" in batch:
        _, true_rows = parted(batch["is_absent"], batch.get("num_absent"))
        ids, mask, own_image = (None if of is None else of[true_rows] for of in (ids, mask, own_image))
    return known_matches(own_image, batch.get("image_ids"), ids, mask)


def trained_weights(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """A digest of their names, in the optimizer's order."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [[names.get(parameter, "") for parameter in group["params"]] for group in optimizer.param_groups]
    return hashlib.blake2b(repr(order).encode(), digest_size=8).hexdigest()


def warn_of_warmup(args: AmcConfig, state: TrainerState, schedule: Any) -> None:
    """Warns of a run that ends before its learning rate has risen."""
    warmup = args.get_warmup_steps(state.max_steps)
    if not isinstance(schedule, LambdaLR) or not state.is_world_process_zero:
        return
    if warmup < state.max_steps or state.max_steps == 0:
        return
    highest = args.learning_rate * schedule.lr_lambdas[0](state.max_steps - 1)
    if highest < args.learning_rate:
        logger.warning(
            f"The run of {state.max_steps:,} steps ends in the warm-up of {warmup:,}: the learning rate only rises to "
            f"{highest:.2g}, not to {args.learning_rate:g}. Lower warmup_steps, or make it a share, such as 0.05."
        )


def evaluation_collator(collator: Callable) -> Callable:
    if isinstance(collator, GroundingCollator):
        return collator.for_evaluation(collator.mlm_probability)
    return copy.copy(collator)  # whose epoch does not change
