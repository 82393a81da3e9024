"""From settings to a trained, evaluated and published model: what `train.py` and `albef-amc train` run."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Dataset, Value
from transformers import PreTrainedModel, ProcessorMixin, set_seed
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from modeling_albef_amc import (
    AlbefConfig,
    AlbefForPreTraining,
    AlbefImageProcessorPil,
    AlbefProcessor,
    tokenizer_from_texts,
)
from modeling_albef_amc.families.auto import hub_options, load_model, load_processor
from modeling_albef_amc.families.processors import max_tokens, num_known_tokens
from modeling_albef_amc.families.registry import TRAINED_METHODS, family_of
from modeling_albef_amc.families.training import has_own_objectives

from .amc_config import AmcConfig
from .amc_trainer import AmcTrainer
from .arguments import DataArguments, ModelArguments, parse_arguments
from .augmentation import GroundingAugmentation
from .checkpoints import resumed
from .columns import Columns
from .commands import pairs
from .data_checks import check_regions, check_sample, with_annotated_share
from .data_collator import PADDING, GroundingCollator
from .evaluation import batch_heatmaps
from .heatmap_grid import grid_of_batch
from .known_formats import rows_of
from .lora import add_adapters, lora_config, train_adapters
from .phrase_rows import PhraseRows, image_marks
from .process_group import check_apart, check_restart
from .splits import open_split, split_names
from .streaming import StreamedRows

logger = logging.get_logger(__name__)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    check_restart()
    model_args, data_args, args = parse_arguments(ModelArguments, DataArguments, AmcConfig, arguments=arguments)
    set_seed(args.seed)
    if data_args.dataset is None:
        raise ValueError("Say which data set to use: --dataset FOLDER or HUB_ID.")
    check_apart("output_dir", args.output_dir, data_args.dataset)
    train_dataset, eval_datasets = load_data(data_args, args)
    phrases = (phrase for dataset in (train_dataset, *eval_datasets.values()) for phrase in dataset["phrase"])
    texts = (phrase for phrase in phrases if isinstance(phrase, str))  # a record without one is named below
    model, processor = build_model(model_args, texts)
    if model._hf_peft_config_loaded and args.push_to_hub and Path(lora_config(model).base_model_name_or_path).exists():
        raise ValueError(
            "push_to_hub: adapters are of no use without their base model. Push that first and name it by its Hub id "
            "(--model), or merge (albef-amc merge) and upload the merged folder."
        )

    check_frozen(model, args)
    collator = make_collator(processor, data_args, args, model)
    if args.uses_regions:
        check_regions(train_dataset, data_args.box_format)
    first_usable = check_sample(train_dataset, collator.changed(mlm_probability=0.0, augmentation=None, strict=True))
    collator.spare = None if data_args.strict else first_usable
    eval_collator = collator.for_evaluation(collator.mlm_probability)
    for split, dataset in eval_datasets.items():
        check_sample(dataset, eval_collator.changed(mlm_probability=0.0, strict=True), f"split {split}", most=0.5)
    first_eval_dataset = next(iter(eval_datasets.values()), None)
    trainer = AmcTrainer(
        model,
        args,
        train_dataset=train_dataset,
        eval_dataset=first_eval_dataset,
        data_collator=collator,
        eval_data_collator=eval_collator,
        phrases_per_image=data_args.phrases_per_image,
        shuffle_buffer=data_args.shuffle_buffer,
        draw_heatmaps=heatmap_drawer(first_eval_dataset, eval_collator, args.num_logged_heatmaps),
    )
    resume = resumed(Path(args.output_dir), args.resume_from_checkpoint)
    metrics = trainer.train(resume_from_checkpoint=resume).metrics
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_model(_internal_call=True)  # it is pushed when its card can say how well it does
    trainer.save_state()

    metrics = {}
    for split, dataset in eval_datasets.items():
        split_metrics = trainer.evaluate(dataset, metric_key_prefix=split)
        trainer.log_metrics(split, split_metrics)
        trainer.save_metrics(split, split_metrics)
        metrics |= split_metrics
        is_beginning = data_args.max_eval_examples is not None
        trainer.evaluations[split] = replace(trainer.evaluations[split], is_beginning=is_beginning)
    card = {"dataset": data_args.dataset, "dataset_args": data_args.dataset_config}
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)
    return metrics


def make_collator(
    processor: ProcessorMixin, data_args: DataArguments, args: AmcConfig, model: PreTrainedModel
) -> GroundingCollator:
    masks_words = args.mlm_weight > 0 and has_own_objectives(model)  # of the others none learns by them
    return GroundingCollator(
        processor,
        mask_size=data_args.mask_size,
        box_choice=data_args.box_choice,
        mlm_probability=data_args.mlm_probability if masks_words else 0.0,
        max_length=data_args.max_text_length,
        max_tokens=max_tokens(model.config),
        num_known_tokens=num_known_tokens(model.config),
        augmentation=GroundingAugmentation(
            flip=data_args.flip, gray=data_args.gray, jitter=data_args.color_jitter, crop=data_args.crop
        ),
        seed=args.seed if args.data_seed is None else args.data_seed,
        strict=data_args.strict,
        box_format=data_args.box_format,
    )


def load_data(
    data_args: DataArguments, args: AmcConfig
) -> tuple[Dataset | PhraseRows | StreamedRows, dict[str, Dataset | PhraseRows]]:
    """What to train on, and the splits to evaluate on; of annotations `dataset` becomes the folder of their rows, and
    the data's box_format is set where it was not known."""
    names = pairs("--columns", "OURS=THEIRS", data_args.columns)
    columns = Columns(names, data_args.box_format, data_args.download_images)
    data_args.dataset = rows_of(data_args.dataset, columns, data_args.strict)
    source = data_args.dataset, data_args.dataset_config
    fraction = data_args.validation_fraction
    if fraction == 1:
        raise ValueError("validation_fraction must be below 1: nothing would be left to train on.")
    if fraction and data_args.streaming:
        raise ValueError("validation_fraction needs all images at hand: leave out streaming, or name eval_splits.")
    limit = None if fraction else data_args.max_train_examples
    train_dataset = training_data(data_args, columns, limit, needs_regions=args.uses_regions)
    splits = splits_to_evaluate(data_args, args)
    eval_datasets = {split: load_split(*source, split, data_args.max_eval_examples, columns) for split in splits}
    if fraction:
        limits = data_args.max_train_examples, data_args.max_eval_examples
        parts = map(first_records, hold_out(train_dataset, fraction), limits)
        train_dataset, eval_datasets["validation"] = parts
        images = f"{fraction:.0%} of the images"
        logger.warning(f"{images} are held out: {len(eval_datasets['validation'])} phrases, as split validation.")
    data_args.box_format = columns.box_format or "xyxy"
    return with_annotated_share(train_dataset, data_args.annotated_share), eval_datasets


def training_data(
    data_args: DataArguments, columns: Columns, limit: int | None, needs_regions: bool
) -> Dataset | PhraseRows | StreamedRows:
    """The split to train on; streamed data is taken whole."""
    source = data_args.dataset, data_args.dataset_config, data_args.train_split
    if not data_args.streaming:
        return load_split(*source, limit, columns, needs_regions)
    if limit is not None:
        raise ValueError("max_train_examples: streamed data is taken whole; leave out streaming, or set max_steps.")
    return StreamedRows.open(*source, needs_regions, columns)


def load_split(
    path: str,
    config: str | None,
    split: str,
    limit: int | None = None,
    columns: Columns | None = None,
    needs_regions: bool = False,
) -> Dataset | PhraseRows:
    """One split, a record for each phrase, or the first `limit` of them; see `open_split`."""
    dataset = open_split(path, config, split, columns=columns, needs_regions=needs_regions)
    return first_records(dataset if isinstance(dataset.features["phrase"], Value) else PhraseRows(dataset), limit)


def first_records(dataset: Dataset | PhraseRows, limit: int | None) -> Dataset | PhraseRows:
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


def hold_out(dataset: Dataset | PhraseRows, fraction: float) -> tuple[Dataset | PhraseRows, Dataset | PhraseRows]:
    """Two parts that share no image, the second with this share of the images: those with the lowest `image_marks`.

    Raises ValueError: there is only one image.
    """
    rows = dataset.dataset if isinstance(dataset, PhraseRows) else dataset
    marks = image_marks(rows)
    of_records = dataset.rows.tolist() if isinstance(dataset, PhraseRows) else range(len(dataset))
    images = sorted({marks[row] for row in of_records})
    if len(images) < 2:
        raise ValueError("validation_fraction: all rows have the same image, of which none can be held out.")
    held = set(images[: min(max(round(fraction * len(images)), 1), len(images) - 1)])
    parts: tuple[list[int], list[int]] = [], []
    for number, row in enumerate(of_records):
        parts[marks[row] in held].append(number)
    return dataset.select(parts[0]), dataset.select(parts[1])


def splits_to_evaluate(data_args: DataArguments, args: AmcConfig) -> list[str]:
    """Those asked for, or else validation. Where there is none, training goes on without evaluation, and says so."""
    fraction, path = data_args.validation_fraction, data_args.dataset
    trained = [split.strip() for split in data_args.train_split.split("+")]
    if data_args.eval_splits is not None:
        named = {re.split(r"\W", split)[0] for split in data_args.eval_splits}
        is_one = Path(path).is_file() and not split_names(path, data_args.dataset_config)
        if is_one and named - {re.split(r"\W", data_args.train_split)[0]}:
            raise ValueError(f"{path} is a file, of one split: leave out eval_splits, or set validation_fraction.")
        if fraction:
            raise ValueError("validation_fraction: there are eval_splits to evaluate on; leave out one of them.")
        for split in {"train", "all"} & {*data_args.eval_splits}:
            raise ValueError(
                f"eval_splits: its results would be written over those of the training ({split}_results.json): name it "
                f"{split}[:100%]."
            )
        for split in {*trained} & {*data_args.eval_splits}:
            raise ValueError(f"eval_splits: {split} is trained on (train_split): name another one.")
        return data_args.eval_splits
    is_trained = any(re.split(r"\W", split)[0] == "validation" for split in trained)
    if not is_trained and "validation" in split_names(path, data_args.dataset_config):
        if fraction:
            raise ValueError(f"validation_fraction: {path} has a split validation; leave it out.")
        return ["validation"]
    if fraction:
        return []
    why = f"{path}: its split validation is trained on" if is_trained else f"{path} has no split validation"
    if args.load_best_model_at_end or args.save_strategy == "best" or args.early_stopping_patience:
        raise ValueError(
            "load_best_model_at_end, save_strategy best and early_stopping_patience need an evaluation, and "
            f"{why}: name others by eval_splits."
        )
    logger.warning(f"{why}: training goes on without evaluation.")
    args.eval_strategy = IntervalStrategy.NO
    return []


def build_model(model_args: ModelArguments, texts: Iterable[str]) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A checkpoint of any known family, or ALBEF from random weights with a tokenizer of the words of these texts."""
    if model_args.model is not None:
        hub = hub_options(vars(model_args))
        implementation = model_args.attn_implementation
        model = load_model(model_args.model, training=True, attn_implementation=implementation, **hub)
        processor = load_processor(model_args.model, model, model_args.image_size, **hub)
    else:
        fields = config_fields(model_args.model_config)
        tokenizer = tokenizer_from_texts(texts)
        text_config = {**fields.get("text_config", {}), "vocab_size": len(tokenizer)}
        config = AlbefConfig(**{**fields, "text_config": text_config})
        model = AlbefForPreTraining._from_config(config, attn_implementation=model_args.attn_implementation)
        side = model_args.image_size or model.config.vision_config.image_size
        processor = AlbefProcessor(AlbefImageProcessorPil(size={"height": side, "width": side}), tokenizer)
    set_explained(model, model_args.explanation, model_args.grounding_layer, model_args.method)
    if model_args.lora_rank:
        options = model_args.lora_rank, model_args.lora_alpha, model_args.lora_dropout, model_args.lora_modules
        add_adapters(model, *options, revision=model_args.revision)
    elif model._hf_peft_config_loaded:
        train_adapters(model)
    freeze(model, model_args.freeze)
    return model, processor


def set_explained(
    model: PreTrainedModel, explanation: str | None, grounding_layer: int | None, method: str | None
) -> None:
    """Writes what is explained, and how, into the configuration of a model, with which it is saved.

    Raises ValueError: the model has no such score, layer or method, or is an ALBEF, whose configuration says it all.
    """
    chosen = {"explanation": explanation, "layer": grounding_layer, "method": method}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if not chosen:
        return
    if has_own_objectives(model):
        raise ValueError("explanation, grounding_layer and method are of other families: see ALBEF's model_config.")
    family = family_of(model)
    if explanation not in (None, *family.layers):
        raise ValueError(f"explanation {explanation!r}: {family.title} has {' and '.join(family.layers)}.")
    if grounding_layer not in (None, *family.layers_of(model, explanation)):
        raise ValueError(f"grounding_layer {grounding_layer}: choose one of {family.layers_of(model, explanation)}.")
    if method not in (None, *TRAINED_METHODS):
        raise ValueError(f"method {method!r}: heatmaps are trained by {' or '.join(TRAINED_METHODS)}.")
    model.config.grounding = {**vars(model.config).get("grounding", {}), **chosen}


def config_fields(given: dict | str | None) -> dict[str, Any]:
    """The fields of AlbefConfig, as a mapping of the YAML file or as JSON."""
    try:
        fields = json.loads(given) if isinstance(given, str) else given or {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"model_config is not JSON: {error}") from error
    parts = AlbefConfig.sub_configs
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name, {}), dict) for name in parts):
        raise ValueError(f"model_config must be an object of AlbefConfig's fields, got {given!r:.80}.")
    for config_class, given_fields in ((AlbefConfig, fields), *((parts[name], fields.get(name, {})) for name in parts)):
        known = config_class()
        if unknown := [name for name in given_fields if not hasattr(known, name)]:
            raise ValueError(f"model_config: {unknown[0]} is no field of {config_class.__name__}.")
    return fields


def check_frozen(model: PreTrainedModel, args: AmcConfig) -> None:
    """ValueError: what is not in the checkpoint, and random therefore, would stay so: it is not trained."""
    random = vars(model).get("newly_initialized", ())  # of a model without a checkpoint all is random, as it was asked
    unused = ("momentum_encoder.",) if args.mlm_weight > 0 else ("momentum_encoder.", "mlm_head.")
    for name, parameter in model.named_parameters():
        if name in random and not parameter.requires_grad and not name.startswith(unused):
            raise ValueError(
                f"{name} is not in the checkpoint {model.name_or_path}: it would be random and, frozen by lora_rank or "
                "freeze, stay so. Train it, or set mlm_weight to 0 to do without MLM."
            )


def freeze(model: PreTrainedModel, patterns: list[str]) -> None:
    """Takes the parameters whose names match a pattern out of training; a pattern that matches none is an error."""
    for pattern in patterns:
        matching = [parameter for name, parameter in model.named_parameters() if re.search(pattern, name)]
        if not matching:
            raise ValueError(f"freeze: no parameter of the model has a name with {pattern!r} in it.")
        for parameter in matching:
            parameter.requires_grad_(False)


def heatmap_drawer(
    dataset: Dataset | PhraseRows | None, collator: GroundingCollator, num_examples: int
) -> Callable[[AmcTrainer], PIL.Image.Image] | None:
    """Draws the heatmaps of held-out examples, spread evenly over the data set; of those that can be used."""
    num_examples = 0 if dataset is None else min(num_examples, len(dataset))
    records = [dataset[i * len(dataset) // num_examples] for i in range(num_examples)]
    is_placeholder = collator(records)["is_placeholder"].tolist() if records else []
    records = [record for record, is_other in zip(records, is_placeholder, strict=True) if not is_other]
    if not records:
        return None
    batch = collator(records)
    for record, boxes in zip(records, batch["boxes"], strict=True):
        record["boxes"] = boxes[boxes[:, 0] != PADDING].tolist()  # in pixels, whatever the record has

    def draw(trainer: AmcTrainer) -> PIL.Image.Image:
        inputs = trainer._prepare_inputs(batch)
        heatmaps = batch_heatmaps(trainer.model, trainer.explain, inputs)
        return grid_of_batch(records, {"heatmap": heatmaps})

    return draw
