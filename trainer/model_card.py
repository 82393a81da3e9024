"""The model card of a run: what was trained, on what, how well it points, how to use it, and what is not known."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, RepoCard
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id
from transformers import TrainerState
from transformers.trainer_utils import EvalLoopOutput, SchedulerType, has_length

from modeling_albef_amc.families.registry import FAMILIES, trained_method

from .checkpoints import numbers
from .data_collator import GroundingCollator
from .lora import lora_config
from .phrase_rows import PhraseRows

if TYPE_CHECKING:
    from .amc_trainer import AmcTrainer

TEMPLATE = Path(__file__).parent / "model_card_template.md"
PROTOCOL = (
    "hits / phrases, over the phrases that have boxes. A hit: the first maximum, in row order, of the heatmap, "
    "upsampled bicubically to the size of the original image, lies strictly inside any of the phrase's boxes."
)
# Loss → what it asks.
OBJECTIVES = {
    "loss_itc": "a phrase is more similar to its own image than to others, and an image to its own phrase",
    "loss_itm": "a phrase matches its own image, and not an image or a phrase that is hard to tell from it",
    "loss_mlm": "masked words are found again from the rest of the phrase and the image",
    "loss_caption": "the phrase is said of its image",
    "loss_absent": "a phrase that is marked absent does not fit its image",
    "loss_amc_mean": "the heatmap's mean inside the region exceeds the mean outside by {args.amc_margin_mean}",
    "loss_amc_max": "the heatmap's maximum inside the region exceeds the maximum outside by {args.amc_margin_max}",
    "loss_klal": "the attention, without its gradient, is spread over the region alone",
}
# What draws heat into regions, by the beginning of its losses' names.
DRAWN_BY = {
    "amc": "Attention Mask Consistency (AMC), which draws that heat into regions that people annotated",
    "klal": "the KL attention loss (KLAL), which spreads the attention, without its gradient, over annotated regions",
}
# Data whose split, name and phrases are known.
KNOWN = datasets.Dataset, PhraseRows
# The Hub's list of tasks has no visual grounding; this one too asks where in an image something named in words is.
TASK = "zero-shot-object-detection"
# Beginnings of the metrics that do not say how well a model points.
NOT_SCORES = "loss", "num_", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch"
# Schedules that have none, whatever warmup_steps says.
NO_WARMUP = "constant", "reduce_lr_on_plateau", "greedy"


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one evaluation, and the rows they are of.

    Attributes:
        name: the prefix of the metrics; the split of the data set, where it has one and the prefix is Trainer's own.
        prefix, num_rows: of the metrics; rows evaluated.
        metrics: their names without the prefix; of `compute_metrics` of one's own those that are numbers.
        split, split_rows: that the rows are of, and how many it has, where that is known.
        is_beginning: the rows are known to be the first of the split.
    """

    name: str
    prefix: str
    num_rows: int
    metrics: dict[str, float]
    split: str | None = None
    split_rows: int | None = None
    is_beginning: bool = False

    @classmethod
    def of(cls, dataset: Any, prefix: str, output: EvalLoopOutput) -> "Evaluation":
        """Of `dataset`; the names of its metrics begin with `prefix` and an underscore."""
        split = dataset.split if isinstance(dataset, KNOWN) else None
        # Of lists of phrases it says how many lists.
        splits = dataset.info.splits or {} if isinstance(dataset, datasets.Dataset) else {}
        split_rows = splits[split].num_examples if split in splits else None
        found = {name.removeprefix(f"{prefix}_"): value for name, value in output.metrics.items()}
        metrics = {name: value for name, value in found.items() if isinstance(value, int | float)}
        split = None if split is None else str(split)
        name = split or prefix if prefix == "eval" else prefix
        return cls(name, prefix, output.num_samples, metrics, split, split_rows)

    def of_step(self, step: int, state: TrainerState) -> "Evaluation | None":
        """The evaluation of the same rows at that step, as far as it was logged."""
        logged = {name: value for entry in state.log_history if entry["step"] == step for name, value in entry.items()}
        names = {name: f"{self.prefix}_{name}" for name in self.metrics}
        metrics = {name: logged[given] for name, given in names.items() if given in logged}
        return replace(self, metrics=metrics) if metrics else None

    @property
    def scores(self) -> dict[str, float]:
        """The metrics that say how well the model points."""
        return {name: value for name, value in self.metrics.items() if not name.startswith(NOT_SCORES)}

    @property
    def rows(self) -> str:
        rows = f"the first {self.num_rows:,}" if self.is_beginning else f"{self.num_rows:,}"
        if self.num_rows == self.split_rows or (self.split_rows is None and not self.is_beginning):
            rows = f"all {self.num_rows:,}"
        elif self.split_rows is not None:
            rows = f"{rows} of {self.split_rows:,}"
        return rows if self.split in (None, self.name) else f"{rows} of {self.split}"


def model_card(  # noqa: PLR0913  (as Trainer's `create_model_card`)
    trainer: "AmcTrainer",
    *,
    language: str | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    tasks: str | None = None,
    dataset_tags: str | None = None,
    dataset: str | None = None,
    dataset_args: str | None = None,
) -> ModelCard:
    """The card of what `trainer` trained and evaluated; of what it did not train, nothing is said about training.

    Args:
        license: of the weights; default: `hub_license`, or the base model's, where its card is at hand and says it.
        tags: besides the usual ones.
        model_name: the card's title, and the model's name in its model-index; default: the repository's or folder's.
        finetuned_from: the base model, Hub id or folder; default: what the model was loaded from.
        dataset, dataset_args: Hub id or folder of the data, and its configuration. A folder is called by the title of
            its card, or by its name.
        dataset_tags: the data's Hub id, where `dataset` is not it.
    """
    if not isinstance(dataset, str | None) or not isinstance(dataset_tags, str | None):
        raise TypeError("dataset and dataset_tags must be one Hub id or folder: that whose scores the card gives.")
    model, args = trainer.model, trainer.args
    model_type, family = model.config.model_type, FAMILIES.get(model.config.model_type)
    has_adapters = model._hf_peft_config_loaded
    model_name = model_name or (args.hub_model_id or Path(args.output_dir).resolve().name).split("/")[-1]
    base_model, dataset = finetuned_from or model.name_or_path, dataset_tags or dataset
    evaluations, is_trained = list(trainer.evaluations.values()), trainer.state.global_step > 0
    title = title_of(dataset) if dataset else name_of(trainer.train_dataset if is_trained else trainer.eval_dataset)
    license = license or args.hub_license or (card_of(base_model).get("license") if base_model else None)
    results = eval_results(evaluations, title, dataset_args)
    used = used_losses(trainer)
    region_losses = [title for title in DRAWN_BY if any(name.startswith(f"loss_{title}") for name in used)]
    method = trained_method(model)
    usual = ["visual-grounding", *(["grad-cam"] if method == "gradcam" else []), *region_losses, model_type]
    usual += [lora_config(model).peft_type.lower()] if has_adapters else []
    card_data = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag=tasks or TASK,
        tags=[*usual, *([tags] if isinstance(tags, str) else tags or [])],
        base_model=base_model if base_model and is_hub_id(base_model) else None,
        datasets=[dataset] if dataset and is_hub_id(dataset) else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=model_name,
        eval_results=results or None,
    )
    facts = {"base model": link(base_model)} if base_model else {}
    if is_trained:
        facts = {"base model": "none: it began with random weights", **facts}
        facts["trained on"] = link(dataset, "datasets/") if dataset else title
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=type(model).__name__ if family is None else family.title,
        class_name=type(model).__name__,
        model_type=model_type,
        is_known_family=family is not None,
        model_name=model_name,
        model_id=trainer.hub_model_id or args.hub_model_id or model_name,
        phrases=json.dumps(example_phrases(trainer.eval_dataset), ensure_ascii=False),
        is_trained=is_trained,
        method=method,
        region_losses=[DRAWN_BY[title] for title in region_losses],
        facts=facts | (adapter_facts(trainer) if has_adapters else {}),
        has_heatmaps=trainer.draw_heatmaps is not None,
        evaluations=evaluations,
        scores=list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.scores)),
        losses=list(dict.fromkeys(n for each in evaluations for n in each.metrics if n.startswith("loss"))),
        protocol=PROTOCOL,
        objectives=[(name, args.loss_weights[name], OBJECTIVES[name].format(args=args)) for name in used],
        settings=settings(trainer, used) if is_trained else {},
        data_title=title,
        measured_splits=" and ".join(each.name for each in evaluations if each.scores) or "no split",
    )


def is_hub_id(name: str) -> bool:
    """Whether it is no folder on this machine, and cannot have been one."""
    try:
        validate_repo_id(name)
    except ValueError:
        return False
    return not Path(name).exists()


def card_of(name: str) -> dict[str, Any]:
    """The metadata of the card of a Hub id or folder; nothing where there is none, or none at hand or readable."""
    path = Path(name, "README.md")
    if not is_hub_id(name) and not path.is_file():
        return {}
    try:
        return RepoCard.load(name if is_hub_id(name) else path).data.to_dict()
    except (HTTPError, OSError, ValueError, yaml.YAMLError):  # the run that is described ended well
        return {}


def title_of(name: str) -> str:
    """A Hub id as it is; a folder by the title of its data card, or by its name: where it lies is nobody's business."""
    return name if is_hub_id(name) else card_of(name).get("pretty_name") or Path(name).resolve().name


def name_of(dataset: Any) -> str:
    """What a data set calls itself."""
    name = dataset.info.dataset_name if isinstance(dataset, KNOWN) else None
    return name or "data without a name"


def link(name: str, prefix: str = "") -> str:
    return f"[{name}](https://huggingface.co/{prefix}{name})" if is_hub_id(name) else f"local folder “{title_of(name)}”"


def eval_results(evaluations: list[Evaluation], dataset: str, config: str | None) -> list[EvalResult]:
    """Every score of every evaluation, each with its protocol."""
    return [
        EvalResult(
            task_type=TASK,
            task_name="Visual grounding",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_config=config,
            dataset_split=evaluation.name,
            metric_type=name,
            metric_value=round(value, 4),
            metric_name=name.replace("_", " ").capitalize(),
            metric_args={
                "protocol": PROTOCOL if name.startswith("pointing_game") else "the run's own compute_metrics",
                "rows": evaluation.rows,
                "num_phrases": evaluation.metrics.get("num_phrases"),
            },
        )
        for evaluation in evaluations
        for name, value in evaluation.scores.items()
    ]


def used_losses(trainer: "AmcTrainer") -> list[str]:
    """The losses that it was trained by; of a checkpoint that does not say them (an older one), those that were logged.

    One that was always 0 had nothing to be the mean over, as AMC without regions.
    """
    logged = {n for entry in trainer.state.log_history if "loss" in entry for n, value in entry.items() if value}
    weights = trainer.args.loss_weights
    used = trainer.trained_losses | {name for name in logged if weights.get(name, 0) > 0}
    return [name for name in OBJECTIVES if name in used]


def example_phrases(dataset: Any) -> list[str]:
    """Two phrases of the evaluation data, where that is known."""
    if isinstance(dataset, KNOWN) and len(dataset) > 1:
        return [dataset[0]["phrase"], dataset[len(dataset) // 2]["phrase"]]
    return ["the black cat", "the remote on the left"]


def adapter_facts(trainer: "AmcTrainer") -> dict[str, str]:
    """What these weights are without their base model."""
    config = lora_config(trainer.model)
    kind = "LoRA" if config.peft_type == "LORA" else config.peft_type.value
    heads = ", ".join(f"`{name}`" for name in config.modules_to_save or [])
    facts = {
        "weights": f"{kind} adapters, which `from_pretrained` (with peft) puts into the base model"
        + (f"; whole beside them: {heads}" if heads else "")
    }
    if kind == "LoRA":
        facts["rank"] = f"{config.r}, scaled by {config.lora_alpha:g} / {config.r}, dropout {config.lora_dropout:g}"
    modules = config.target_modules
    modules = modules.replace("|", "\\|") if isinstance(modules, str) else ", ".join(sorted(modules))
    return {**facts, "modules": f"`{modules}`"}


def settings(trainer: "AmcTrainer", used: list[str]) -> dict[str, str]:
    """The hyper-parameters of the run, for people."""
    args, state = trainer.args, trainer.state
    batch, processes, accumulated = trainer._train_batch_size, args.world_size, args.gradient_accumulation_steps
    is_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in trainer.model.parameters()) - trained
    seconds = next((entry["train_runtime"] for entry in reversed(state.log_history) if "train_runtime" in entry), None)
    accelerator, own_dtype = trainer.accelerator, str(trainer.model.dtype).removeprefix("torch.")
    precision = accelerator.mixed_precision if accelerator.native_amp else own_dtype
    device = torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type.upper()
    rows = {
        "phrases": f"{len(trainer.train_dataset):,}" if has_length(trainer.train_dataset) else "as many as came",
        "steps": f"{state.global_step:,} ({state.epoch or 0:.2f} epochs)"
        + (f"; the weights are those after step {state.best_global_step:,}, the best" if is_best else ""),
        "phrases a step": f"{batch * processes * accumulated} (batches of {batch} × {processes} processes × "
        f"{accumulated} accumulated), up to {trainer.phrases_per_image} of an image together",
        "optimizer": f"{optimizer_facts(trainer.optimizer.optimizer)}, gradient norm up to {args.max_grad_norm:g}",
        "learning rate": schedule_facts(trainer),
        "precision": {"bf16": "bfloat16", "fp16": "float16"}.get(precision, precision),
        "trained weights": f"{trained:,}; {frozen:,} more are frozen or momentum copies",
    }
    if "loss_itc" in used:
        rows["soft labels"] = f"alpha {args.alpha:g}, reached in {args.alpha_ramp_epochs:g} epochs"
    collator = trainer.data_collator
    if isinstance(collator, GroundingCollator):
        side, change = collator.mask_size, collator.augmentation
        rows["region of several instances"] = f"{collator.box_choice}; as a mask of {side} × {side}"
        rows["longest phrase"] = f"{collator.max_length} tokens" if collator.max_length else "not cut"
        if "loss_mlm" in used:
            rows["masked words"] = f"{collator.mlm_probability:.0%}"
        if change is not None:
            changes = f"flip {change.flip:g}, gray {change.gray:g}, jitter {change.jitter:g}, crop {change.crop:g}"
            rows["augmentation"] = changes
    return rows | {
        "seed": str(args.seed),
        "device": f"{processes} × {device}" + (f", {seconds:,.0f} s" if seconds is not None else ""),
        "versions": f"transformers {transformers.__version__}, torch {torch.__version__}",
    }


def optimizer_facts(optimizer: torch.optim.Optimizer) -> str:
    """What it is and is set to, which a checkpoint that a run goes on from decides, or its caller, and not `args`."""
    values: dict[str, list[str]] = {}
    for group in optimizer.param_groups:
        for name in numbers(group):
            value = group[name] if isinstance(group[name], tuple) else (group[name],)
            values.setdefault(name, []).append(" and ".join(f"{each:g}" for each in value))
    named = (f"{name.replace('_', ' ')} {' or '.join(dict.fromkeys(each))}" for name, each in values.items())
    return ", ".join([type(optimizer).__name__, *named])


def schedule_facts(trainer: "AmcTrainer") -> str:
    """The highest learning rate, and how it changes."""
    args, schedule, optimizer = trainer.args, trainer.lr_scheduler, trainer.optimizer.optimizer
    # Schedules note where they begin, except for those by a metric.
    rates = (f"{group.get('initial_lr', optimizer.defaults['lr']):g}" for group in optimizer.param_groups)
    facts = [" or ".join(dict.fromkeys(rates))]
    if not trainer._created_lr_scheduler:
        return ", ".join([*facts, type(schedule).__name__])
    name = SchedulerType(args.lr_scheduler_type).value
    of_schedule: Any = args.lr_scheduler_kwargs or {}
    facts += [] if name in NO_WARMUP else [f"warm-up {args.warmup_steps:g}"]
    return ", ".join([*facts, name, *(f"{setting} {value}" for setting, value in of_schedule.items())])
