"""The model card of a run: what was trained, on what, how well it points, how to use it, and what is not known."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
import transformers
from huggingface_hub import DatasetCard, EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError
from transformers.trainer_utils import EvalLoopOutput, has_length

from .card_texts import (
    AMC_CITATION,
    LICENSE_TEXT,
    LIMITATIONS,
    NO_LICENSE_TEXT,
    OBJECTIVES,
    PICTURE_TEXT,
    PROTOCOL,
    Family,
    family_texts,
)
from .data_collator import GroundingCollator
from .lora import lora_config

if TYPE_CHECKING:
    from .amc_trainer import AmcTrainer

# The Hub's list of tasks has no visual grounding; this one too asks where in an image something named in words is.
TASK = "zero-shot-object-detection"
# Beginnings of the metrics that do not say how well a model points.
NOT_SCORES = "loss", "num_", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "epoch"


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one evaluation, their names without prefix, and the rows they are of.

    Attributes:
        split: of the data set; the prefix of the metrics where the data does not know its split.
        num_rows, split_rows: rows evaluated, and rows the split has, where that is known.
    """

    split: str
    num_rows: int
    split_rows: int | None
    metrics: dict[str, float]

    @classmethod
    def of(cls, dataset: Any, prefix: str, output: EvalLoopOutput) -> "Evaluation":
        """Of `dataset`; the names of its metrics begin with `prefix` and an underscore."""
        split = dataset.split if isinstance(dataset, datasets.Dataset) else None
        splits = {} if split is None else dataset.info.splits or {}
        split_rows = splits[split].num_examples if split in splits else None
        metrics = {name.removeprefix(f"{prefix}_"): value for name, value in output.metrics.items()}
        return cls(prefix if split is None else str(split), output.num_samples, split_rows, metrics)

    @property
    def scores(self) -> dict[str, float]:
        """The metrics that say how well the model points."""
        return {name: value for name, value in self.metrics.items() if not name.startswith(NOT_SCORES)}

    @property
    def rows(self) -> str:
        if self.split_rows is None or self.num_rows == self.split_rows:
            return f"all {self.num_rows:,}"
        return f"the first {self.num_rows:,} of {self.split_rows:,}"


def model_card(
    trainer: "AmcTrainer",
    *,
    model_name: str,
    base_model: str | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    tags: list[str] | None = None,
    pipeline_tag: str = TASK,
    has_picture: bool = False,
) -> ModelCard:
    """
    The card of what `trainer` trained and evaluated.

    Args:
        model_name: the card's title, and the model's name in its model-index.
        base_model, dataset: Hub id or folder; a folder is called by the title of its card, or by its name.
        license: of the weights; default: the base model's, where its card is at hand and says it.
        tags: besides the usual ones.
        has_picture: heatmaps.png lies beside the card.
    """
    family = family_texts(trainer.model.config.model_type, type(trainer.model).__name__)
    has_adapters = trainer.model._hf_peft_config_loaded
    adapter_tag = [lora_config(trainer.model).peft_type.lower()] if has_adapters else []
    evaluations = list(trainer.evaluations.values())
    title = title_of(dataset) if dataset else name_of(trainer.train_dataset)
    license = license or (card_license(base_model) if base_model else None)
    results = eval_results(evaluations, title, dataset_config)
    metadata = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        tags=["visual-grounding", "grad-cam", "amc", family.tag, *adapter_tag, *(tags or [])],
        base_model=base_model if base_model and is_hub_id(base_model) else None,
        datasets=[dataset] if dataset and is_hub_id(dataset) else None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=model_name,
        eval_results=results or None,
    )
    facts = {
        "base model": link(base_model) if base_model else "none: it began with random weights",
        "trained on": link(dataset, "datasets/") if dataset else title,
    }
    if has_adapters:
        facts |= adapter_facts(trainer)
    sections = [
        f"# {model_name}",
        summary(trainer, family.name),
        table([("", ""), *facts.items()]),
        PICTURE_TEXT if has_picture else None,
        "## How to use",
        usage(trainer, family, model_name),
        "## How well it points",
        evaluation_text(evaluations, title),
        "## How it was trained",
        objective_text(trainer),
        table([("setting", "value"), *settings(trainer).items()]),
        "## What is not known",
        LIMITATIONS.format(splits=" and ".join(e.split for e in evaluations if e.scores) or "no split", title=title),
        "## Licence",
        LICENSE_TEXT.format(license=license) if license else NO_LICENSE_TEXT,
        "## Citation",
        f"```bibtex\n{AMC_CITATION}{family.citation}\n```",
    ]
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{metadata}\n---\n\n{text}\n")


# Names ----------------------------------------------------------------------------------------------------------------


def is_hub_id(name: str) -> bool:
    """Whether it is no folder on this machine."""
    return not Path(name).exists()


def title_of(name: str) -> str:
    """A Hub id as it is; a folder by the title of its data card, or by its name: where it lies is nobody's business."""
    if is_hub_id(name):
        return name
    card = Path(name, "README.md")
    title = DatasetCard.load(card).data.get("pretty_name") if card.is_file() else None
    return title or Path(name).resolve().name


def name_of(dataset: Any) -> str:
    """What a data set calls itself."""
    name = dataset.info.dataset_name if isinstance(dataset, datasets.Dataset) else None
    return name or "data without a name"


def link(name: str, prefix: str = "") -> str:
    return f"[{name}](https://huggingface.co/{prefix}{name})" if is_hub_id(name) else f"local folder “{title_of(name)}”"


def card_license(model: str) -> str | list[str] | None:
    """The licence on a checkpoint's card; None where there is no card, none at hand, or none that says it."""
    if not is_hub_id(model):
        card = Path(model, "README.md")
        return ModelCard.load(card).data.get("license") if card.is_file() else None
    try:
        return ModelCard.load(model).data.get("license")
    except EntryNotFoundError:
        return None


# Sections -------------------------------------------------------------------------------------------------------------


def table(rows: list[tuple[str, ...]]) -> str:
    """Markdown; the first row is the header."""
    header, *rows = (f"| {' | '.join(cells)} |" for cells in rows)
    return "\n".join([header, "|" + "---|" * (header.count("|") - 1), *rows])


def eval_results(evaluations: list[Evaluation], dataset: str, config: str | None) -> list[EvalResult]:
    """Every score of every evaluation, each with its protocol."""
    return [
        EvalResult(
            task_type=TASK,
            task_name="Visual grounding",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_config=config,
            dataset_split=evaluation.split,
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
    """The losses that it was trained by; where this run only went on from its end, those that were logged before.

    One that was always 0 had nothing to be the mean over, as AMC without regions.
    """
    logged = {n for entry in trainer.state.log_history if "loss" in entry for n, value in entry.items() if value}
    weights = trainer.loss_weights()
    return [name for name in OBJECTIVES if name in logged | trainer.trained_losses and weights[name] > 0]


def summary(trainer: "AmcTrainer", family: str) -> str:
    if any(name.startswith("loss_amc") for name in used_losses(trainer)):
        how = "trained with Attention Mask Consistency (AMC), which draws that heat into regions that people annotated"
    else:
        how = "trained on images and phrases alone, without their regions"
    return (
        "A photo and a phrase in; out come how well they fit, and a heatmap of where in the photo the phrase is: the "
        f"gradient of the match score through cross-attention (Grad-CAM). It is {family}, {how}."
    )


def usage(trainer: "AmcTrainer", family: Family, model_name: str) -> str:
    """Code to run, with phrases of the evaluation data."""
    data = trainer.eval_dataset
    phrases = ["the black cat", "the remote on the left"]
    if isinstance(data, datasets.Dataset) and len(data) > 1:
        phrases = [data[0]["phrase"], data[len(data) // 2]["phrase"]]
    model_id = trainer.hub_model_id or trainer.args.hub_model_id or model_name
    return family.usage.replace("{model_id}", model_id).replace("{phrases}", json.dumps(phrases, ensure_ascii=False))


def adapter_facts(trainer: "AmcTrainer") -> dict[str, str]:
    """What these weights are without their base model."""
    config = lora_config(trainer.model)
    kind = "LoRA" if config.peft_type == "LORA" else config.peft_type.value
    heads = ", ".join(f"`{name}`" for name in config.modules_to_save or [])
    facts = {
        "weights": f"{kind} adapters, which `from_pretrained` (with peft) puts into the base model"
        + (f"; trained in full: {heads}" if heads else "")
    }
    if kind == "LoRA":
        facts["rank"] = f"{config.r}, scaled by {config.lora_alpha:g} / {config.r}, dropout {config.lora_dropout:g}"
    modules = config.target_modules
    modules = modules.replace("|", "\\|") if isinstance(modules, str) else ", ".join(sorted(modules))
    return {**facts, "modules": f"`{modules}`"}


def evaluation_text(evaluations: list[Evaluation], title: str) -> str:
    scores = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.scores))
    if not scores:
        return "That was not measured."
    losses = list(dict.fromkeys(n for evaluation in evaluations for n in evaluation.metrics if n.startswith("loss")))
    header = "split", "rows of the split", "phrases with boxes", *(name.replace("_", " ") for name in scores), *losses
    rows = []
    for evaluation in evaluations:
        values = [evaluation.metrics.get(name) for name in ("num_phrases", *scores, *losses)]
        shown = [
            "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}" for value in values
        ]
        rows.append((evaluation.split, evaluation.rows, *shown))
    return f"On {title}:\n\n{table([header, *rows])}\n\nPointing game: {PROTOCOL}"


def objective_text(trainer: "AmcTrainer") -> str:
    used = used_losses(trainer)
    if not used:
        return "This run did not train it."
    margins = {"loss_amc_mean": trainer.args.amc_margin_mean, "loss_amc_max": trainer.args.amc_margin_max}
    weights = trainer.loss_weights()
    rows = [(name, f"{weights[name]:g}", OBJECTIVES[name].format(margin=margins.get(name))) for name in used]
    return f"The weighted sum of:\n\n{table([('loss', 'weight', 'asks that'), *rows])}"


def settings(trainer: "AmcTrainer") -> dict[str, str]:
    """The hyper-parameters of the run, for people."""
    args, state, collator, used = trainer.args, trainer.state, trainer.data_collator, used_losses(trainer)
    batch, processes, accumulated = args.per_device_train_batch_size, args.world_size, args.gradient_accumulation_steps
    schedule = ", ".join(
        [args.lr_scheduler_type.value, *(f"{k} {v}" for k, v in (args.lr_scheduler_kwargs or {}).items())]
    )
    counts = [(p.numel(), p.requires_grad) for p in trainer.model.parameters()]
    rows = {
        "phrases": f"{len(trainer.train_dataset):,}" if has_length(trainer.train_dataset) else "as many as came",
        "steps": f"{state.global_step:,} ({state.epoch or 0:.2f} epochs)",
        "phrases a step": f"{batch * processes * accumulated} (batches of {batch} × {processes} processes × "
        f"{accumulated} accumulated), up to {trainer.phrases_per_image} of an image together",
        "optimizer": f"{args.optim.value}, betas {args.adam_beta1:g} and {args.adam_beta2:g}, "
        f"weight decay {args.weight_decay:g}, gradient norm up to {args.max_grad_norm:g}",
        "learning rate": f"{args.learning_rate:g}, warm-up {args.warmup_steps:g}, {schedule}",
        "precision": "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32",
        "trained weights": f"{sum(n for n, trained in counts if trained):,}; "
        f"{sum(n for n, trained in counts if not trained):,} more are frozen or momentum copies",
    }
    if "loss_itc" in used:
        rows["soft labels"] = f"alpha {args.alpha:g}, reached in {args.alpha_ramp_epochs:g} epochs"
    if isinstance(collator, GroundingCollator):
        side = collator.mask_size
        rows["region of several instances"] = f"{collator.box_choice}; as a mask of {side} × {side}"
        rows["longest phrase"] = f"{collator.max_length} tokens" if collator.max_length else "not cut"
        if "loss_mlm" in used:
            rows["masked words"] = f"{collator.mlm_probability:.0%}"
        if change := collator.augmentation:
            rows["augmentation"] = f"flip {change.flip:g}, gray {change.gray:g}, jitter {change.jitter:g}"
            rows["augmentation"] += f", crop {change.crop:g}"
    seconds = next((entry["train_runtime"] for entry in reversed(state.log_history) if "train_runtime" in entry), None)
    device = torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type.upper()
    rows["seed"] = str(args.seed)
    rows["device"] = f"{processes} × {device}" + (f", {seconds:,.0f} s" if seconds is not None else "")
    rows["versions"] = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return rows
