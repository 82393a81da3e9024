"""Settings of a run: transformers' TrainingArguments, and what AMC adds."""

import math
from dataclasses import dataclass

from transformers import TrainingArguments

from .arguments import ABOVE_0, AmcArguments, check_numbers
from .loss_means import ITEMS


def weight_name(loss: str) -> str:
    """The setting that weighs a loss: "loss_itc" → "itc_weight"."""
    return f"{loss.removeprefix('loss_')}_weight"


# Settings of Trainer that cannot do here what they say: the values that are left, and why.
LEFT: dict[str, tuple[tuple, str]] = {
    "do_train": ((True,), "a run trains; `albef-amc evaluate` scores checkpoints as they are"),
    "do_predict": ((False,), "a run trains and evaluates; `albef-amc ground-dataset` writes what a checkpoint answers"),
    "remove_unused_columns": ((False,), "the collator reads columns that no model does"),
    "label_smoothing_factor": ((0.0,), "no loss here has labels to smooth; ALBEF's soft labels come with alpha"),
    "train_sampling_strategy": (("random", "sequential"), "phrases are tokenized in their batch, not before"),
    "average_tokens_across_devices": ((True,), "a loss is the mean over its items on all processes"),
    "include_num_input_tokens_seen": (("no", False), "Trainer would count the pixels of images"),
    "bf16_full_eval": ((False,), "it rounds the weights themselves, which are saved later; bf16 is for evaluation too"),
    "fp16_full_eval": ((False,), "it rounds the weights themselves, which are saved later; fp16 is for evaluation too"),
    "use_liger_kernel": ((False,), "Liger has no kernels for these models"),
    "batch_eval_metrics": ((False,), "the scores are of all phrases at once; a phrase takes five numbers of memory"),
    "eval_use_gather_object": ((False,), "what is gathered are tensors"),
    "dataloader_persistent_workers": (
        (False,),
        "workers that outlive an epoch would draw the same augmentation again, and a resumed run something else",
    ),
    "save_on_each_node": ((False,), "machines share output_dir; see docs/reliability.md"),
    "debug": ((None, "", []), "Trainer's hooks cannot read masks; steps without a finite gradient are named as it is"),
    "ddp_static_graph": ((None, False), "which weights a batch trains depends on its regions and absent phrases"),
    "deepspeed": ((None,), "AMC differentiates twice, which was not tried with it; use DDP or FSDP"),
    "parallelism_config": ((None,), "images and phrases of a batch are not split; use DDP or FSDP"),
}
# As those of `arguments`, where Trainer would find out late or not at all.
RANGES: dict[str, tuple[float, float]] = dict.fromkeys(
    (
        *map(weight_name, ITEMS),
        *("alpha_ramp_epochs", "amc_margin_mean", "amc_margin_max", "dataloader_num_workers", "num_logged_heatmaps"),
        *("early_stopping_patience", "early_stopping_threshold", "num_train_epochs", "warmup_steps", "weight_decay"),
        *("learning_rate", "logging_steps", "eval_steps", "eval_delay", "neftune_noise_alpha"),
    ),
    (0, math.inf),
)
RANGES |= dict.fromkeys(
    ("gradient_accumulation_steps", "per_device_eval_batch_size", "dataloader_prefetch_factor", "max_bad_steps"),
    (1, math.inf),
)
RANGES |= dict.fromkeys(
    ("per_device_train_batch_size", "max_steps", "save_total_limit", "eval_accumulation_steps", "ddp_timeout"),
    (1, math.inf),
)
RANGES |= {"save_steps": (ABOVE_0, math.inf), "ddp_bucket_cap_mb": (1, math.inf)}
RANGES |= {"alpha": (0, 1), "seed": (0, 2**32 - 1), "data_seed": (0, 2**32 - 1)}
# Of `region_loss`: the losses that count then.
_AMC = "loss_amc_mean", "loss_amc_max"
REGION_LOSSES = {"amc": _AMC, "klal": ("loss_klal",), "both": (*_AMC, "loss_klal"), "none": ()}
# `metric_for_best_model` until the first evaluation says which metrics there are.
BEST_BY_DEFAULT = "pointing_game_or_loss"


@dataclass
class AmcConfig(AmcArguments, TrainingArguments):
    """Defaults are the paper's recipe (Yang et al., CVPR 2023). Changed from transformers' own: `learning_rate` (1e-5),
    `weight_decay` (0.02), `lr_scheduler_type` and `lr_scheduler_kwargs` (cosine to a tenth, warm-up from a tenth),
    `warmup_steps` (2,000), `do_train` (True), `remove_unused_columns` (False: the collator needs all columns),
    `label_names`, `report_to` (TensorBoard), `metric_for_best_model` (the pointing accuracy),
    `ddp_find_unused_parameters` (True, with activation checkpointing too), `ddp_broadcast_buffers` (False: the queues
    are equal on all processes by construction). `LEFT` lists what cannot be changed.
    """

    def __post_init__(self):
        for name, (values, reason) in LEFT.items():
            if getattr(self, name) not in values:
                allowed = " or ".join(map(str, values))
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)}: {reason}.")
        check_numbers(self, RANGES)
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == "cosine_warmup_with_min_lr":
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1, "warmup_lr_rate": 0.1}
        by_schedule = self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")  # which expect something to fall
        names_best = self.load_best_model_at_end or self.save_strategy == "best" or self.early_stopping_patience > 0
        if self.metric_for_best_model is None and names_best and not by_schedule:
            if self.greater_is_better is not None:
                raise ValueError("greater_is_better is known of the default metric_for_best_model: name another one.")
            self.metric_for_best_model = BEST_BY_DEFAULT
        if self.greater_is_better is None and (self.metric_for_best_model or "").endswith(tuple(ITEMS)):
            self.greater_is_better = False  # Trainer knows a loss by the end of its name
        super().__post_init__()
        if by_schedule and self.greater_is_better and (self.lr_scheduler_kwargs or {}).get("mode") != "max":
            raise ValueError(
                f"This lr_scheduler_type expects {self.metric_for_best_model} to fall: set lr_scheduler_kwargs to "
                '{"mode": "max"}.'
            )
        self._check_optimization()
        self._check_loading()
        self._check_losses()
        self._check_early_stopping()
        if "inputs" in self.include_for_metrics:
            raise ValueError("include_for_metrics cannot have inputs: phrases share images, so the rows do not match.")

    @property
    def loss_weights(self) -> dict[str, float]:
        """Loss → its weight in the sum."""
        unused = {*REGION_LOSSES["both"]} - {*REGION_LOSSES[self.region_loss]}
        return {name: 0.0 if name in unused else getattr(self, weight_name(name)) for name in ITEMS}

    @property
    def uses_amc(self) -> bool:
        return any(self.loss_weights[name] > 0 for name in _AMC)

    @property
    def uses_klal(self) -> bool:
        return self.loss_weights["loss_klal"] > 0

    @property
    def uses_regions(self) -> bool:
        return self.uses_amc or self.uses_klal

    def _check_optimization(self) -> None:
        if isinstance(self.optim_args, str) and not all("=" in part for part in self.optim_args.split(",")):
            raise ValueError(f"optim_args must be NAME=VALUE, with commas between several, got {self.optim_args!r}.")
        if not (self.max_grad_norm or 0) > 0:
            raise ValueError("max_grad_norm must be above 0: the gradient norm is what tells a bad step.")

    def _check_loading(self) -> None:
        loading = self.accelerator_config
        for name, value, reason in (
            ("dispatch_batches", False, "batches hold more than tensors"),
            ("split_batches", False, "per_device_train_batch_size says what a process takes"),
            ("even_batches", True, "processes that take different numbers of steps wait for each other"),
            ("use_seedable_sampler", True, "a resumed run would draw another order"),
        ):
            if getattr(loading, name) not in (value, None):
                raise ValueError(f"accelerator_config: {name} must be {value}: {reason}.")
        loading.dispatch_batches = False  # not None, which deals out the batches of an IterableDataset

    def _check_losses(self) -> None:
        if self.region_loss not in REGION_LOSSES:
            raise ValueError(f"region_loss must be one of {', '.join(REGION_LOSSES)}, not {self.region_loss!r}.")
        weights = self.loss_weights
        if not any(weight for name, weight in weights.items() if name != "loss_absent"):  # few data have such phrases
            raise ValueError(f"{', '.join(map(weight_name, weights))} are all 0: nothing is left to train on.")

    def _check_early_stopping(self) -> None:
        if self.early_stopping_threshold and not self.early_stopping_patience:
            raise ValueError("early_stopping_threshold needs early_stopping_patience, the evaluations to wait for it.")
        for name, is_set in (
            ("early_stopping_patience", self.early_stopping_patience),
            ("save_strategy best", self.save_strategy == "best"),
            ("load_best_model_at_end", self.load_best_model_at_end),
        ):
            if is_set and self.eval_strategy == "no":
                raise ValueError(f"{name} needs evaluations while training: set eval_strategy.")

    def __getstate__(self) -> dict:
        # Trainer pickles the settings into training_args.bin and uploads it: no token may be in there.
        return {**vars(self), "hub_token": None}
