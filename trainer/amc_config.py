"""Settings of a run: transformers' TrainingArguments, and what AMC adds."""

from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

# Settings of Trainer that cannot do here what they say: the values that are left, and why.
LEFT: dict[str, tuple[tuple, str]] = {
    "remove_unused_columns": ((False,), "the collator reads columns that no model does"),
    "label_smoothing_factor": ((0.0,), "no loss here has labels to smooth; ALBEF's soft labels come with alpha"),
    "train_sampling_strategy": (("random", "sequential"), "phrases are tokenized in their batch, not before"),
    "average_tokens_across_devices": ((True,), "a loss is the mean over its items on all processes"),
    "include_num_input_tokens_seen": (("no", False), "Trainer would count the pixels of images"),
    "use_liger_kernel": ((False,), "Liger has no kernels for these models"),
    "batch_eval_metrics": ((False,), "the scores are of all phrases at once; a phrase takes five numbers of memory"),
    "eval_use_gather_object": ((False,), "what is gathered are tensors"),
    "dataloader_persistent_workers": (
        (False,),
        "workers that outlive an epoch would draw the same augmentation again, and a resumed run something else",
    ),
    "save_on_each_node": ((False,), "machines share output_dir; see docs/reliability.md"),
    "debug": ((None, "", []), "Trainer's hooks cannot read masks; steps without a finite gradient are named as it is"),
    "deepspeed": ((None,), "AMC differentiates twice, which was not tried with it; use DDP or FSDP"),
    "parallelism_config": ((None,), "images and phrases of a batch are not split; use DDP or FSDP"),
}
# `metric_for_best_model` until the first evaluation says which metrics there are.
BEST_BY_DEFAULT = "pointing_game_or_loss"


@dataclass
class AmcConfig(TrainingArguments):
    """Defaults are the paper's recipe (Yang et al., CVPR 2023). Changed from transformers' own: `learning_rate` (1e-5),
    `weight_decay` (0.02), `lr_scheduler_type` and `lr_scheduler_kwargs` (cosine to a tenth, warm-up from a tenth),
    `warmup_steps` (2,000), `remove_unused_columns` (False: the collator needs all columns), `label_names`,
    `report_to` (TensorBoard), `metric_for_best_model` (the pointing accuracy), `ddp_find_unused_parameters` (True, with
    activation checkpointing too), `ddp_broadcast_buffers` (False: the queues are equal on all processes by
    construction). `LEFT` lists what cannot be changed.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(
        default=0.02,
        metadata={"help": "Weight decay; spares biases, norms, temperature, [CLS] and position embeddings."},
    )
    lr_scheduler_type: str = field(
        default="cosine_warmup_with_min_lr", metadata={"help": "Learning rate schedule, by transformers' name."}
    )
    lr_scheduler_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of the schedule, as JSON; default: of cosine_warmup_with_min_lr a tenth of the peak at "
            "both ends, of others none."
        },
    )
    warmup_steps: float = field(
        default=2000, metadata={"help": "Steps (or, below 1, share of all steps) until the peak learning rate."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Leave False: the collator needs all columns."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["boxes"], metadata={"help": "Leave as it is: what the pointing game compares with."}
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036 (the order that HfArgumentParser understands)
        default="tensorboard", metadata={"help": "Where scalars and pictures of heatmaps go; none for nowhere."}
    )
    metric_for_best_model: str | None = field(
        default=None,
        metadata={
            "help": "What tells the best checkpoint; default: pointing_game where the evaluation data has regions, "
            "otherwise loss."
        },
    )
    ddp_find_unused_parameters: bool | None = field(
        default=True,
        metadata={"help": "Leave True: a loss of weight 0, and BLIP's unused heads, give parameters no gradient."},
    )
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "Leave False: the queues are equal on all processes already."}
    )

    itc_weight: float = field(default=1.0, metadata={"help": "Weight of image-text contrast (ITC)."})
    itm_weight: float = field(default=1.0, metadata={"help": "Weight of image-text matching (ITM)."})
    mlm_weight: float = field(default=1.0, metadata={"help": "Weight of masked language modelling (MLM)."})
    absent_weight: float = field(
        default=1.0, metadata={"help": "Weight of telling that phrases marked absent do not fit their image."}
    )
    amc_mean_weight: float = field(default=0.2, metadata={"help": "Weight of loss_amc_mean; 0 for none."})
    amc_max_weight: float = field(default=0.8, metadata={"help": "Weight of loss_amc_max; 0 for none."})
    amc_margin_mean: float = field(default=0.1, metadata={"help": "Margin between the means (Δ_mean)."})
    amc_margin_max: float = field(default=0.5, metadata={"help": "Margin between the maxima (Δ_max)."})
    amc_reduction: Literal["example", "batch"] = field(
        default="example",
        metadata={"help": "Means of loss_amc_mean per example (the paper) or over the batch (the released code)."},
    )
    alpha: float = field(default=0.4, metadata={"help": "Weight of the momentum model's soft labels (ALBEF)."})
    alpha_ramp_epochs: float = field(default=1.0, metadata={"help": "Epochs over which alpha rises from 0."})
    max_bad_steps: int = field(
        default=10,
        metadata={"help": "Steps in a row without a finite gradient (each is skipped) until training stops."},
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={"help": "Evaluations in a row without a better metric_for_best_model that end training; 0: none do."},
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "By how much that metric must have improved to be better."}
    )
    num_logged_heatmaps: int = field(
        default=8, metadata={"help": "Held-out examples whose heatmaps go where report_to says, and to the model card."}
    )
    hub_license: str | None = field(
        default=None,
        metadata={"help": "Licence of the weights on the model card, e.g. apache-2.0; default: the base checkpoint's."},
    )

    def __post_init__(self):
        for name, (values, reason) in LEFT.items():
            if getattr(self, name) not in values:
                allowed = " or ".join(map(str, values))
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name)}: {reason}.")
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == "cosine_warmup_with_min_lr":
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1, "warmup_lr_rate": 0.1}
        by_schedule = self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")  # which expect something to fall
        names_best = self.load_best_model_at_end or self.save_strategy == "best" or self.early_stopping_patience > 0
        if self.metric_for_best_model is None and names_best and not by_schedule:
            self.metric_for_best_model = BEST_BY_DEFAULT
        super().__post_init__()
        loading = self.accelerator_config
        for name, value, reason in (
            ("dispatch_batches", False, "batches hold more than tensors"),
            ("split_batches", False, "per_device_train_batch_size says what a process takes"),
            ("even_batches", True, "processes that take different numbers of steps wait for each other"),
        ):
            if getattr(loading, name) not in (value, None):
                raise ValueError(f"accelerator_config: {name} must be {value}: {reason}.")
        loading.dispatch_batches = False  # not None, which deals out the batches of an IterableDataset
        weights = "itc_weight", "itm_weight", "mlm_weight", "absent_weight", "amc_mean_weight", "amc_max_weight"
        for name in weights:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not any(getattr(self, name) for name in weights if name != "absent_weight"):  # few data have such phrases
            raise ValueError(f"{', '.join(weights)} are all 0: nothing is left to train on.")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {self.alpha}.")
        if self.early_stopping_patience < 0 or self.early_stopping_threshold < 0:
            raise ValueError("early_stopping_patience and early_stopping_threshold must not be negative.")
        if self.early_stopping_threshold and not self.early_stopping_patience:
            raise ValueError("early_stopping_threshold needs early_stopping_patience, the evaluations to wait for it.")
        if self.early_stopping_patience and self.eval_strategy == "no":
            raise ValueError("early_stopping_patience needs evaluations while training: set eval_strategy.")
        if self.save_strategy == "best" and self.eval_strategy == "no":
            raise ValueError("save_strategy best needs evaluations while training: set eval_strategy.")
        if self.max_grad_norm <= 0:
            raise ValueError("max_grad_norm must be above 0: the gradient norm is what tells a bad step.")

    def __getstate__(self) -> dict:
        # Trainer pickles the settings into training_args.bin and uploads it: no token may be in there.
        return {**super().__getstate__(), "hub_token": None}
