"""Settings of a training: dataclasses say what there is, a YAML file sets defaults, the command line wins.

Nothing here imports torch or transformers before settings are parsed, so that help is printed at once.
"""

import argparse
import dataclasses
import math
import reprlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml


def option(default: Any, help: str, **of_parser: Any) -> Any:
    """A field of a dataclass of settings, with its help and more for `add_argument`; of a list, each gets a copy."""
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"help": help, **of_parser})
    return field(default=default, metadata={"help": help, **of_parser})


ABOVE_0 = math.ulp(0.0)  # the least number that is
# The least and the most that numbers among the settings may be.
RANGES: dict[str, tuple[float, float]] = dict.fromkeys(
    ("image_size", "mask_size", "max_text_length", "phrases_per_image", "shuffle_buffer"), (1, math.inf)
)
RANGES |= dict.fromkeys(("max_train_examples", "max_eval_examples"), (1, math.inf))
RANGES |= dict.fromkeys(("flip", "gray", "color_jitter", "crop", "mlm_probability", "validation_fraction"), (0, 1))
RANGES |= {"annotated_share": (0, 1)}
RANGES |= {"lora_rank": (0, math.inf), "lora_alpha": (ABOVE_0, math.inf)}


def check_numbers(settings: Any, ranges: dict[str, tuple[float, float]]) -> None:
    """ValueError: a number among the fields of a dataclass is outside its range, or not finite; defaults are right.

    Only `max_grad_norm` may be infinite, which clips nothing.
    """
    for setting in dataclasses.fields(settings):
        name, value = setting.name, getattr(settings, setting.name)
        if not isinstance(value, int | float) or value == setting.default:
            continue
        least, most = ranges.get(name, (-math.inf, math.inf))
        if not least <= value <= most:  # no number lies in a range, either
            allowed = f"lie in {least}..{most:,}" if most < math.inf else f"be at least {least}"
            allowed = {ABOVE_0: "be above 0", -math.inf: "be a number"}.get(least, allowed)
            raise ValueError(f"{name} must {allowed}, got {value}.")
        if math.isinf(value) and name != "max_grad_norm":
            raise ValueError(f"{name} must be finite, got {value}.")


@dataclass
class ModelArguments:
    """Which model is trained."""

    model: str | None = option(
        None, "Checkpoint to start from: a folder or a Hub id. Without it ALBEF starts at random."
    )
    revision: str | None = option(None, "Branch, tag or commit of --model on the Hub; default: main.")
    token: str | None = option(None, "For a private --model on the Hub; default: HF_TOKEN, or that of `hf auth login`.")
    model_config: dict | str | None = option(
        None, "Without --model: fields of AlbefConfig as JSON, e.g. '{\"projection_dim\": 64}'."
    )
    image_size: int | None = option(None, "Side in pixels that images are resized to; default: the processor's.")
    attn_implementation: str | None = option(
        None, "Attention where it is not explained: sdpa, eager, flash_attention_2 …"
    )
    explanation: str | None = option(
        None, "The score whose heatmaps are trained, of families with several: yes or likelihood; default: its own."
    )
    grounding_layer: int | None = option(
        None, "The layer that is explained, of any family but ALBEF (model_config); default: the model's own."
    )
    method: str | None = option(
        None, "How heatmaps are made, of any family but ALBEF: gradcam or gradient; default: the model's own, gradcam."
    )
    freeze: list[str] = option([], "Parameters not to train: regular expressions, each found in at least one name.")
    lora_rank: int = option(0, "Train LoRA adapters of this rank beside frozen weights; 0 trains the weights.")
    lora_alpha: float = option(16.0, "Adapters are scaled by lora_alpha / lora_rank.")
    lora_dropout: float = option(0.0, "Dropout of what goes into the adapters.")
    lora_modules: str | None = option(
        None,
        "Linear layers with adapters: a regular expression of their whole names in the base model; default: the "
        "attention of all encoders, see AdaptedModules.",
    )

    def __post_init__(self):
        check_numbers(self, RANGES)
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be at least 0 and below 1, got {self.lora_dropout}.")
        for name in ("lora_alpha", "lora_dropout", "lora_modules"):
            if getattr(self, name) != getattr(ModelArguments, name) and not self.lora_rank:
                raise ValueError(f"{name} needs lora_rank: it is about new adapters.")
        if self.model is not None and self.model_config:
            raise ValueError("model_config is about ALBEF from random weights: leave it out, or leave out model.")
        if self.model is None and self.revision is not None:
            raise ValueError("revision needs model, of which it is one.")


@dataclass
class DataArguments:
    """What it is trained and evaluated on."""

    dataset: str | None = option(None, "Rows or known annotations, see docs/data.md: a folder, a file, or a Hub id.")
    dataset_config: str | None = option(None, "Its configuration, where it has several.")
    columns: list[str] = option(
        [],
        "Where its columns have other names, e.g. phrase=caption boxes=objects.bbox; in YAML a mapping. Default: what "
        "its card says, or can be guessed.",
        metavar="OURS=THEIRS",
    )
    train_split: str = option("train", "Split to train on.")
    eval_splits: list[str] | None = option(
        None, "Splits to evaluate on; the first one while training. Default: validation, if there is one."
    )
    max_train_examples: int | None = option(None, "Train on this many phrases only.")
    annotated_share: float = option(
        0.0,
        "Least share of phrases with a region among those trained on: they are repeated for it; 1 leaves out the "
        "others.",
    )
    max_eval_examples: int | None = option(None, "Evaluate on this many phrases a split only.")
    streaming: bool = option(
        False, "Read the training data as it is trained on, instead of preparing it on disk first."
    )
    shuffle_buffer: int = option(
        2000, "Streamed phrases that each worker holds in memory to shuffle them; each image once."
    )
    box_format: str | None = option(
        None,
        "What the data's boxes are: xyxy, xywh or cxcywh in pixels, or with _normalized behind it. Default: xyxy of a "
        "column boxes, of others what alone fits the first of them.",
    )
    download_images: bool = option(False, "Fetch images that are addresses.")
    validation_fraction: float = option(
        0.0, "Share of the images that is held out, drawn by their names, where there is no split to evaluate on."
    )
    mask_size: int = option(256, "Side of the region masks that AMC compares heatmaps with.")
    box_choice: Literal["all", "random"] = option(
        "random", "Region of a phrase with several instances: 'all', or 'random' (the paper)."
    )
    mlm_probability: float = option(0.15, "Share of the words that MLM masks.")
    max_text_length: int = option(25, "Tokens a phrase is cut to in training.")
    phrases_per_image: int = option(
        1, "Up to this many phrases of a batch share an image, which is encoded once for them."
    )
    flip: float = option(0.5, "Probability of mirroring an image (left and right change places).")
    gray: float = option(0.2, "Probability of graying an image whose phrases name no colour.")
    color_jitter: float = option(0.5, "Probability of changing its colours; likewise.")
    strict: bool = option(
        False,
        "Stop at a record that cannot be used. Else a placeholder, another phrase of its batch, replaces it; it "
        "is named once, and counted in the end.",
    )
    crop: float = option(0.0, "Probability of a random crop that keeps all regions.")

    def __post_init__(self):
        check_numbers(self, RANGES)


@dataclass
class AmcArguments:
    """The losses and the run. The first twelve change defaults of transformers' TrainingArguments, see `AmcConfig`."""

    learning_rate: float = option(1e-5, "Peak learning rate of AdamW.")
    weight_decay: float = option(
        0.02, "Weight decay; spares biases, norms, temperature, [CLS] and position embeddings."
    )
    lr_scheduler_type: str = option("cosine_warmup_with_min_lr", "Learning rate schedule, by transformers' name.")
    lr_scheduler_kwargs: dict | str | None = option(
        None,
        "Arguments of the schedule, as JSON; default: a tenth of the peak at both ends of cosine_warmup_with_min_lr, "
        "none of others.",
    )
    warmup_steps: float = option(2000, "Steps (or, below 1, share of all steps) until the peak learning rate.")
    do_train: bool = option(True, "Leave True: checkpoints are scored without training by `albef-amc evaluate`.")
    remove_unused_columns: bool = option(False, "Leave False: the collator needs all columns.")
    label_names: list[str] | None = option(["boxes"], "Leave as it is: what the pointing game compares with.")
    report_to: None | str | list[str] = option(  # noqa: RUF036 (the order that HfArgumentParser understands)
        "tensorboard", "Where scalars and images of heatmaps go; none for nowhere."
    )
    metric_for_best_model: str | None = option(
        None,
        "What tells the best checkpoint; default: pointing_game where the evaluation data has regions, otherwise loss.",
    )
    ddp_find_unused_parameters: bool | None = option(
        True, "Leave True: a loss of weight 0, and BLIP's unused heads, give parameters no gradient."
    )
    ddp_broadcast_buffers: bool | None = option(False, "Leave False: the queues are equal on all processes already.")

    itc_weight: float = option(1.0, "Weight of image-text contrast (ITC).")
    itm_weight: float = option(1.0, "Weight of image-text matching (ITM).")
    mlm_weight: float = option(1.0, "Weight of masked language modelling (MLM).")
    caption_weight: float = option(1.0, "Weight of saying the phrase, which generative models learn.")
    absent_weight: float = option(1.0, "Weight of telling that phrases marked absent do not fit their image.")
    amc_mean_weight: float = option(0.2, "Weight of loss_amc_mean; 0 for none.")
    amc_max_weight: float = option(0.8, "Weight of loss_amc_max; 0 for none.")
    amc_margin_mean: float = option(0.1, "Margin between the means (Δ_mean).")
    amc_margin_max: float = option(0.5, "Margin between the maxima (Δ_max).")
    amc_reduction: Literal["example", "batch"] = option(
        "example", "Means of loss_amc_mean per example (the paper) or over the micro-batch (the released code)."
    )
    region_loss: Literal["amc", "klal", "both", "none"] = option(
        "amc", "Whether heatmaps learn regions (amc), the attention itself without its gradient (klal), both or none."
    )
    klal_weight: float = option(1.0, "Weight of loss_klal, with region_loss klal or both.")
    alpha: float = option(0.4, "Weight of the momentum encoders' soft labels (ALBEF).")
    alpha_ramp_epochs: float = option(1.0, "Epochs over which alpha rises from 0.")
    max_bad_steps: int = option(10, "Steps in a row without a finite gradient (each is skipped) until training stops.")
    early_stopping_patience: int = option(
        0, "Evaluations in a row without a better metric_for_best_model that end training; 0: none do."
    )
    early_stopping_threshold: float = option(0.0, "By how much that metric must have improved to be better.")
    num_logged_heatmaps: int = option(
        8, "Held-out examples whose heatmaps go where report_to says, and to the model card."
    )
    hub_license: str | None = option(
        None, "Licence of the weights on the model card, e.g. apache-2.0; default: the base checkpoint's."
    )


def parse_arguments(*dataclasses_: type, arguments: list[str] | None = None) -> tuple[Any, ...]:
    """Reads `[CONFIG.yaml] [--name value …]` into one instance of each dataclass.

    Raises:
        ValueError: the YAML is no mapping, has a key that no dataclass knows, or a value of the wrong type.
        SystemExit: a bad command line, as argparse does it.
    """
    from transformers import HfArgumentParser

    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = HfArgumentParser(
        dataclasses_,
        usage="%(prog)s [CONFIG.yaml] [--name value ...]",
        formatter_class=lambda prog: argparse.ArgumentDefaultsHelpFormatter(prog, max_help_position=40, width=110),
    )
    setattr(parser, "print_usage", lambda file=None: None)  # noqa: B010  mistakes are told in one line
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        path = Path(arguments.pop(0))
        # Not the types in dataclasses.fields: the parser has simplified those.
        annotations = {name: str(hint) for cls in dataclasses_ for name, hint in get_type_hints(cls).items()}
        defaults = read_yaml(path, [f.name for cls in dataclasses_ for f in dataclasses.fields(cls)])
        for action in parser._actions:
            if action.dest in defaults:
                try:
                    action.default = typed(defaults[action.dest], action, annotations[action.dest])
                except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                    raise ValueError(f"{path}: {action.dest}: {error}") from error
                action.required = False
    return parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)


def typed(value: Any, action: argparse.Action, annotation: str) -> Any:
    """A value from YAML, checked and converted as the same setting on the command line would be.

    Args:
        annotation: the field's type as text; where it speaks of a list or a dict, one may stand in the YAML.
    """
    if value is None and ("None" in annotation or "Optional" in annotation):
        return None
    if isinstance(value, dict) and "=" in (action.metavar or ""):
        return [f"{name}={each}" for name, each in value.items()]
    if isinstance(value, bool) and action.const is True:  # transformers' `fsdp` may be a word, too
        return value
    if isinstance(value, list | dict):
        if type(value).__name__ not in annotation.lower():
            raise ValueError(f"expected one value, got {reprlib.repr(value)}.")
        return value
    if action.nargs in ("+", "*"):
        raise ValueError(f"expected a list, got {value!r}; write [{value}].")
    convert: Any = action.type
    if value is False and "no" in (action.choices or []):  # what YAML makes of an unquoted no
        value = "no"
    value = convert(str(value).lower() if isinstance(value, bool) else str(value))
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"{value!r} is none of {', '.join(map(str, action.choices))}.")
    return value


def read_yaml(path: Path, known: list[str]) -> dict[str, Any]:
    """A YAML file of settings; errors name the file and the key."""
    try:
        settings = yaml.safe_load(path.read_text("utf-8")) or {}
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    # The latter of values that look like dates or numbers, and of files that are nested without end.
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected a mapping of settings, 'name: value' on each line.")
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ValueError(
            f"{path}: unknown setting {', '.join(map(repr, unknown))}; --help lists the settings there are."
        )
    return settings
