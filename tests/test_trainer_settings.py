"""What `AmcTrainer` is given: settings that cannot work are refused by name, before training; the rest works."""

import copy
import math
import signal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback, TrainingArguments, trainer_callback

from modeling_albef_amc import groundable
from modeling_albef_amc.families.auto import load_model, load_processor
from tests.helpers.data import blip_processor, picture, tiny_albef, tiny_dataset
from tests.helpers.models import CHECKPOINTING, TINY, enable_checkpointing, tiny_batch, tiny_blip
from tests.helpers.training import ONLY, collator_of, is_equal, make_trainer, snapshot, training_logs
from tests.helpers.versions import is_older, needs
from trainer.amc_config import AmcConfig
from trainer.amc_trainer import AmcTrainer
from trainer.model_card import model_card
from trainer.streaming import StreamedRows


class Rows(torch.utils.data.Dataset):
    """A data set that is none of datasets' own."""

    def __init__(self, rows):
        self.rows = list(rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"itc_weight": -1.0}, "itc_weight must be at least 0"),
        ({"amc_max_weight": math.nan}, "amc_max_weight must be at least 0"),
        (ONLY | {"caption_weight": 0}, r"caption_weight, .* are all 0: nothing is left to train on"),
        ({"alpha": 1.5}, r"alpha must lie in 0\.\.1, got 1\.5"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0"),
        ({"max_grad_norm": None}, "max_grad_norm must be above 0"),
        ({"alpha_ramp_epochs": -1.0}, "alpha_ramp_epochs must be at least 0"),
        ({"seed": -1}, r"seed must lie in 0\.\.4,294,967,295, got -1"),
        ({"warmup_steps": math.nan}, "warmup_steps must be at least 0, got nan"),
        ({"amc_margin_max": math.nan}, "amc_margin_max must be at least 0"),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps must be at least 1"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be at least 1"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers must be at least 0"),
        ({"num_train_epochs": math.nan}, "num_train_epochs must be at least 0"),
        ({"num_train_epochs": math.inf}, "num_train_epochs must be finite, got inf"),
        ({"warmup_steps": -5}, "warmup_steps must be at least 0, got -5"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"learning_rate": math.inf}, "learning_rate must be finite, got inf"),
        ({"adam_epsilon": math.nan}, "adam_epsilon must be a number, got nan"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, got 0"),
        ({"logging_steps": -1}, "logging_steps must be at least 0, got -1"),
        ({"save_steps": 0}, "save_steps must be above 0, got 0"),
        ({"eval_accumulation_steps": 0}, "eval_accumulation_steps must be at least 1, got 0"),
        ({"optim_args": "nonsense"}, "optim_args must be NAME=VALUE, .* got 'nonsense'"),
        ({"accelerator_config": {"use_seedable_sampler": False}}, "use_seedable_sampler must be True: a resumed run"),
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor must be 0\.0, not 0\.1"),
        ({"remove_unused_columns": True}, "remove_unused_columns must be False"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy must be random or sequential"),
        ({"train_sampling_strategy": "batch_rebalance"}, "train_sampling_strategy must be random or sequential"),
        ({"average_tokens_across_devices": False}, "average_tokens_across_devices must be True"),
        ({"include_num_input_tokens_seen": "all"}, "include_num_input_tokens_seen must be no"),
        ({"use_liger_kernel": True}, "use_liger_kernel must be False"),
        ({"bf16_full_eval": True}, "bf16_full_eval must be False, .* it rounds the weights themselves"),
        ({"fp16_full_eval": True}, "fp16_full_eval must be False"),
        ({"ddp_static_graph": True}, "ddp_static_graph must be None or False"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "greater_is_better": False},
            "greater_is_better is known of the default metric_for_best_model",
        ),
        ({"batch_eval_metrics": True}, "batch_eval_metrics must be False"),
        ({"eval_use_gather_object": True}, "eval_use_gather_object must be False"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers must be False"),
        ({"save_on_each_node": True}, "save_on_each_node must be False"),
        ({"debug": "underflow_overflow"}, "debug must be .* not underflow_overflow: Trainer's hooks cannot read masks"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "deepspeed must be None"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches must be False"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches must be False"),
        ({"accelerator_config": {"even_batches": False}}, "even_batches must be True"),
        ({"early_stopping_patience": -1}, "early_stopping_patience must be at least 0"),
        ({"early_stopping_patience": 2}, "early_stopping_patience needs evaluations while training: set eval_strategy"),
        ({"save_strategy": "best"}, "save_strategy best needs evaluations while training: set eval_strategy"),
        (
            {"load_best_model_at_end": True, "save_strategy": "no"},
            "load_best_model_at_end needs evaluations while training: set eval_strategy",
        ),
        ({"early_stopping_threshold": 0.1}, "early_stopping_threshold needs early_stopping_patience"),
        ({"include_for_metrics": ["inputs"]}, "include_for_metrics cannot have inputs: phrases share images"),
        ({"do_train": False}, "do_train must be True, not False: a run trains; `albef-amc evaluate` scores"),
        ({"do_predict": True}, "do_predict must be False"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "pointing_game"}
            | {"eval_strategy": "steps"},
            r'expects pointing_game to fall: set lr_scheduler_kwargs to \{"mode": "max"\}',
        ),
    ],
)
def test_settings_that_cannot_work_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        AmcConfig(output_dir=str(tmp_path), **settings)


def test_a_model_without_any_objective_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"itc_weight, itm_weight, mlm_weight of AlbefForPreTraining and .* are all 0"):
        make_trainer(tmp_path, **ONLY)
    with pytest.raises(ValueError, match="itc_weight of CLIPModel and those of regions are all 0"):
        make_trainer(tmp_path, TINY["clip"](), collator=collator_of(mlm_probability=0.0), **ONLY | {"itm_weight": 1})


@pytest.mark.parametrize(
    ("metric", "is_better"),
    [("loss_itm", False), ("eval_loss_amc_max", False), ("eval_loss", False), ("pointing_game", True)],
)
def test_losses_fall_and_scores_rise(tmp_path, metric, is_better):
    settings = dict(output_dir=str(tmp_path), metric_for_best_model=metric)
    assert AmcConfig(**settings).greater_is_better is is_better
    assert AmcConfig(**settings, greater_is_better=True).greater_is_better is True


@pytest.mark.parametrize(
    "settings",
    [
        {"neftune_noise_alpha": 5.0},
        {"include_for_metrics": ["loss"]},
        {"prediction_loss_only": True},
        {"bf16": True},
        {"eval_accumulation_steps": 1},
        {"full_determinism": True},
        {"dataloader_drop_last": True},
        {"torch_empty_cache_steps": 1},
        {"optim": "adafactor"},
        {"max_grad_norm": math.inf},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "pointing_game"}
        | {"lr_scheduler_kwargs": {"mode": "max"}},
        {"lr_scheduler_type": "linear"},
        {"eval_on_start": True},
        {"logging_first_step": True, "logging_strategy": "epoch"},
        {"enable_jit_checkpoint": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_work(tmp_path, settings):
    trainer = make_trainer(tmp_path, **{"eval_strategy": "steps", "eval_steps": 1, **settings})
    before = snapshot(trainer.model)
    trainer.train()
    metrics = trainer.evaluate()
    torch.use_deterministic_algorithms(False)
    assert math.isfinite(metrics["eval_loss"]) and not is_equal(before, snapshot(trainer.model))
    if "prediction_loss_only" not in settings:
        assert metrics["eval_num_phrases"] == 8


def test_a_schedule_has_its_own_arguments(tmp_path):
    def rates(**settings):
        trainer = make_trainer(tmp_path, max_steps=4, learning_rate=1e-4, warmup_steps=2, **settings)
        trainer.create_optimizer_and_scheduler(4)
        factor = trainer.lr_scheduler.lr_lambdas[0]
        return [1e-4 * factor(step) for step in range(4)]

    assert rates(lr_scheduler_type="linear") == pytest.approx([0, 5e-5, 1e-4, 5e-5])
    assert rates() == pytest.approx([1e-5, 1e-4, 5.5e-5, 1e-5])  # the paper's: a tenth at both ends
    assert rates(lr_scheduler_kwargs={"min_lr_rate": 0.5})[1:] == pytest.approx([1e-4, 7.5e-5, 5e-5])


@pytest.mark.parametrize(
    ("settings", "highest"),
    [
        ({"warmup_steps": 4}, "to 0.004, not to 0.01"),  # in the second of four steps from 0.1 to 1 of it
        ({"warmup_steps": 4, "lr_scheduler_type": "linear"}, "to 0.0025, not to 0.01"),
        ({"warmup_steps": 4, "lr_scheduler_type": "constant"}, None),
        ({"warmup_steps": 1}, None),
        ({"max_steps": -1, "num_train_epochs": 0}, None),
    ],
)
def test_a_run_that_ends_in_its_warmup_is_told(tmp_path, caplog, settings, highest):
    make_trainer(tmp_path, **{"max_steps": 2, "learning_rate": 0.01, **settings}).train()
    found = [record.getMessage() for record in caplog.records if "ends in the warm-up" in record.getMessage()]
    assert len(found) == (highest is not None) and all(f"only rises {highest}" in message for message in found)


def test_a_run_without_a_batch_does_not_start(tmp_path):
    trainer = make_trainer(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=16)
    with pytest.raises(ValueError, match="dataloader_drop_last leaves no batch of 16 of 8 rows: lower per_device"):
        trainer.train()


@pytest.mark.parametrize(
    ("family", "batch_size", "phrases_per_image", "is_refused"),
    [("albef", 1, 1, True), ("albef", 2, 2, True), ("albef", 3, 2, False), ("blip", 1, 1, True), ("clip", 1, 1, False)],
)
def test_matching_needs_wrong_images_in_its_batch(tmp_path, family, batch_size, phrases_per_image, is_refused):
    """Also where batches are accumulated; dual encoders contrast over the whole step."""
    model = tiny_albef() if family == "albef" else TINY[family]()
    collator = collator_of() if family == "albef" else collator_of(blip_processor(), mlm_probability=0.0)
    given = dict(per_device_train_batch_size=batch_size, phrases_per_image=phrases_per_image)
    given |= dict(train_sampling_strategy="random", gradient_accumulation_steps=8)
    if is_refused:
        with pytest.raises(
            ValueError, match=rf"must be above phrases_per_image \({phrases_per_image}\), not {batch_size}"
        ):
            make_trainer(tmp_path, model, collator=collator, **given)
        given["itm_weight"] = 0.0
    make_trainer(tmp_path, model, collator=collator, **given)


@pytest.mark.parametrize("num_alike", [1, 4])
def test_matching_that_met_no_wrong_image_says_so(tmp_path, caplog, num_alike):
    """As of rows in order, where those of an image follow each other."""
    make_trainer(tmp_path, dataset=tiny_dataset(8, phrases_per_image=num_alike), max_steps=3).train()
    found = [record.getMessage() for record in caplog.records if "no wrong image" in record.getMessage()]
    assert len(found) == (0 if num_alike == 1 else 2)  # of two epochs
    assert all(message.startswith("8 of 8" if not n else "12 of 12") for n, message in enumerate(found))


def test_a_batch_size_that_does_not_fit_is_halved(tmp_path):
    trainer, sizes = make_trainer(tmp_path, auto_find_batch_size=True), []

    def forward(module, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 2:
            raise RuntimeError("CUDA out of memory.")

    trainer.model.register_forward_pre_hook(forward, with_kwargs=True)
    trainer.train()
    assert sizes[0] == 4 and sizes[-2:] == [2, 2] and trainer.state.global_step == 2
    assert "| phrases a step | 2 (batches of 2 " in card_of(trainer)
    # Of what did not fit nothing is left in the queues: two steps of two.
    assert trainer.model.queue_pointer == 4 and (trainer.model.image_id_queue >= 0).sum() == 4


def does_not_fit(trainer, size: int) -> None:
    """From its second step on, more than `size` phrases."""
    sizes = []

    def forward(module, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if len(sizes) > 1 and sizes[-1] > size:
            raise RuntimeError("CUDA out of memory.")

    trainer.model.register_forward_pre_hook(forward, with_kwargs=True)


def test_steps_before_a_batch_size_is_halved_are_in_no_count_and_no_log(tmp_path):
    only = ONLY | {"itm_weight": 1.0}
    trainer = make_trainer(tmp_path, auto_find_batch_size=True, logging_steps=2, learning_rate=0.0, **only)
    does_not_fit(trainer, 2)
    trainer.train()
    (entry,) = training_logs(trainer)
    assert entry["loss"] == pytest.approx(entry["loss_itm"], rel=1e-5)
    assert trainer.num_phrases == 4  # two steps of two


@pytest.mark.parametrize(("size", "phrases_per_image"), [(1, 1), (2, 2)])
def test_a_batch_size_is_not_halved_until_matching_meets_no_wrong_image(tmp_path, size, phrases_per_image):
    given = dict(auto_find_batch_size=True, phrases_per_image=phrases_per_image, train_sampling_strategy="random")
    trainer = make_trainer(tmp_path, **given)
    does_not_fit(trainer, size)
    message = rf"above phrases_per_image \({phrases_per_image}\), not {size}, which auto_find_batch_size comes to: "
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert not [*tmp_path.glob("checkpoint-*")]
    trainer = make_trainer(tmp_path, itm_weight=0.0, **given)
    does_not_fit(trainer, size)
    trainer.train()
    assert trainer.state.global_step == 2 and trainer._train_batch_size == size


def test_a_search_for_settings_takes_no_batch_size_of_which_matching_meets_no_wrong_image(tmp_path):
    pytest.importorskip("optuna")
    trainer = make_trainer(tmp_path, None, eval_strategy="steps", eval_steps=2, model_init=lambda: tiny_albef())

    def space(trial):
        return {"per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [1])}

    with pytest.raises(ValueError, match=r"per_device_train_batch_size must be above phrases_per_image \(1\), not 1: "):
        trainer.hyperparameter_search(space, n_trials=1, backend="optuna")


def test_arguments_of_another_kind(tmp_path, monkeypatch):
    given = dict(train_dataset=tiny_dataset(), data_collator=collator_of())
    with pytest.raises(TypeError, match="args must be an AmcConfig, not TrainingArguments"):
        AmcTrainer(tiny_albef(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True), **given)
    with pytest.raises(ValueError, match="compute_loss_func cannot be used"):
        make_trainer(tmp_path, compute_loss_func=lambda *args: 0)
    with pytest.raises(TypeError, match=r"model must be a model, not 'org/name': .* load_model\(path, training=True\)"):
        make_trainer(tmp_path, "org/name")
    processor = given["data_collator"].processor
    for part in (processor.tokenizer, processor.image_processor):
        with pytest.raises(TypeError, match=f"must be a whole processor, not {type(part).__name__}, .* leave it out"):
            AmcTrainer(tiny_albef(), AmcConfig(str(tmp_path), use_cpu=True), processing_class=part, **given)
    monkeypatch.chdir(tmp_path)
    assert AmcTrainer(tiny_albef(), **given).args == AmcConfig()


def test_settings_may_change_until_training_and_are_as_they_were_after_it(tmp_path):
    settings = dict(save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, hub_strategy="end")
    settings |= dict(load_best_model_at_end=True, enable_jit_checkpoint=True, learning_rate=0.0, hub_token="secret")
    args = AmcConfig(str(tmp_path), max_steps=9, use_cpu=True, report_to="none", **settings)
    data = dict(train_dataset=tiny_dataset(), eval_dataset=tiny_dataset(), data_collator=collator_of())
    trainer = AmcTrainer(tiny_albef(), args, **data)
    args.max_steps, args.save_total_limit, args.hub_strategy = 3, 1, "every_save"
    said = dict(vars(args))
    handler = signal.getsignal(signal.SIGTERM)
    trainer.train()
    assert trainer.args is args and vars(args) == said and said["hub_token"] == "secret"
    assert signal.getsignal(signal.SIGTERM) is handler
    assert trainer.state.global_step == 3 and [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    # A run by the same settings has its own best metric: these data have no region.
    args.output_dir = str(tmp_path / "again")
    rows = tiny_dataset(8, without_region=tuple(range(8)))
    args.amc_mean_weight = args.amc_max_weight = 0
    again = AmcTrainer(tiny_albef(), args, **data | {"train_dataset": rows, "eval_dataset": rows})
    again.train()
    losses = [entry["eval_loss"] for entry in again.state.log_history if "eval_loss" in entry]
    assert again.state.best_metric == min(losses)


def test_one_process_does_not_split_its_batches_over_gpus(tmp_path):
    args = AmcConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    args._n_gpu = 2
    with pytest.raises(ValueError, match="one process a GPU with `accelerate launch`"):
        AmcTrainer(tiny_albef(), args, train_dataset=tiny_dataset(), data_collator=collator_of())


def test_phrases_share_images_only_where_the_rows_say_which(tmp_path):
    dataset = tiny_dataset(8, phrases_per_image=2)
    for rows, message in (
        (dataset.remove_columns("image_id"), r"needs the column image_id.* this is Dataset with image, phrase"),
        (Rows(dataset), "needs the column image_id.* this is Rows with none"),
        (dataset.to_iterable_dataset(), "needs the column image_id.* this is IterableDataset with image, image_id"),
        (
            dataset.rename_column("image_id", "name").with_transform(lambda row: row | {"image_id": row["name"]}),
            "needs the column image_id.* this is Dataset with image, name, phrase",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, dataset=rows, phrases_per_image=2, train_sampling_strategy="random")
    with pytest.raises(ValueError, match="needs train_sampling_strategy random, not sequential"):
        make_trainer(tmp_path, dataset=dataset, phrases_per_image=2)
    dataset.to_parquet(tmp_path / "data" / "train.parquet")
    rows = StreamedRows.open(str(tmp_path / "data"), None, "train")
    with pytest.raises(ValueError, match="Streamed data need train_sampling_strategy random, not sequential"):
        AmcTrainer(
            tiny_albef(),
            AmcConfig(str(tmp_path), use_cpu=True, train_sampling_strategy="sequential", report_to="none"),
            train_dataset=rows,
            data_collator=collator_of(),
        )


@pytest.mark.parametrize(("family", "dropout"), [("blip-2", 0.1), ("vilt", 0.1)])
def test_dropout_of_what_is_explained_does_not_go_with_checkpointing(family, dropout):
    model = TINY[family](attention_probs_dropout_prob=dropout).train()
    enable_checkpointing(model)
    with pytest.raises(ValueError, match=r"once more with its dropout of 0\.1: set the attention's dropout to 0"):
        groundable(model)(**tiny_batch(), output_heatmaps=True)


@needs("transformers>=5.23", "reentrant checkpointing of BLIP that records without a graph")
def test_klal_needs_a_graph(tmp_path):
    """Which reentrant checkpointing does not leave."""
    collator = collator_of(blip_processor(), mlm_probability=0.0)
    model = tiny_blip()
    enable_checkpointing(model, {"use_reentrant": True})
    with pytest.raises(ValueError, match=r"loss_klal has no gradient: .* set use_reentrant=False"):
        make_trainer(tmp_path, model, collator=collator, region_loss="klal").train()


def test_reentrant_checkpointing_is_for_training_without_regions(tmp_path):
    reentrant = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}}
    for region_loss in ("amc", "klal"):
        with pytest.raises(ValueError, match="use_reentrant must be False: reentrant checkpointing cuts the graph"):
            make_trainer(tmp_path, region_loss=region_loss, **reentrant)
    make_trainer(tmp_path, region_loss="none", **reentrant).train()


def test_a_card_names_what_was_trained_before_a_resume(tmp_path):
    settings = dict(save_strategy="steps", save_steps=1)
    make_trainer(tmp_path, max_steps=1, **settings).train()
    trainer = make_trainer(tmp_path, max_steps=2, region_loss="none", itc_weight=0.0, **settings)
    trainer.train(resume_from_checkpoint=True)
    card = card_of(trainer)
    assert "Attention Mask" in card and "trained on images and phrases alone" not in card


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_configuration_that_asks_for_tuples(family):
    model, batch = groundable(TINY[family]()).train(), tiny_batch()
    expected = model(**batch).loss
    model.config.return_dict = False
    assert model(**batch).loss == expected


# Regions --------------------------------------------------------------------------------------------------------------


def card_of(trainer: AmcTrainer) -> str:
    return model_card(trainer, model_name="a").text


def test_a_frozen_model_is_evaluated_but_not_trained(tmp_path):
    adapted = get_peft_model(tiny_albef(), LoraConfig(target_modules=["query"], r=2))
    for parameter in adapted.parameters():
        parameter.requires_grad_(False)
    disabled = tiny_albef()
    disabled.add_adapter(LoraConfig(target_modules=["query"], r=2))
    disabled.disable_adapters()
    for model in (tiny_albef().requires_grad_(False), adapted, disabled):
        trainer = make_trainer(tmp_path, model)
        assert trainer.evaluate()["eval_loss"] > 0
        with pytest.raises(ValueError, match=r"All weights of the model are frozen .* is_trainable=True"):
            trainer.train()
        assert trainer.state.global_step == 0


def test_weights_in_half_precision_are_not_trained_as_they_are(tmp_path):
    """Loaded by path they are in float32; frozen ones below adapters may stay."""
    tiny_albef().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    assert load_model(str(tmp_path / "model")).dtype == torch.bfloat16
    model = load_model(str(tmp_path / "model"), training=True)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match=f"is {dtype}, where most .* dtype=torch.float32"):
            make_trainer(tmp_path, tiny_albef().to(dtype)).train()
    with pytest.raises(ValueError, match=r"fp16 does nothing on a CPU, which computes in float32: set bf16"):
        make_trainer(tmp_path, fp16=True)
    adapted = get_peft_model(tiny_blip().to(torch.bfloat16), LoraConfig(target_modules=["query"], r=2))
    trainer = make_trainer(tmp_path, adapted, collator=collator_of(blip_processor(), mlm_probability=0.0), bf16=True)
    trainer.train()
    assert trainer.state.global_step == 2


def test_noise_in_the_embeddings_needs_a_model_that_names_them(tmp_path):
    collator = collator_of(blip_processor(), mlm_probability=0.0)
    with pytest.raises(ValueError, match="neftune_noise_alpha must be None for CLIPModel"):
        make_trainer(tmp_path, TINY["clip"](), collator=collator, neftune_noise_alpha=5.0)


def test_the_collators_processor_is_saved(tmp_path):
    """Of a collator of another class too."""

    def collator(rows):
        return collator.of_this_project(rows)

    collator.of_this_project = collator_of()
    collator.processor = collator.of_this_project.processor
    for each in (collator, collator.of_this_project):
        trainer = make_trainer(tmp_path / type(each).__name__, collator=each, save_strategy="steps", save_steps=1)
        trainer.train()
        trainer.save_model()
        for folder in (trainer.args.output_dir, f"{trainer.args.output_dir}/checkpoint-1"):
            saved = load_processor(folder, load_model(folder))
            expected = collator.processor(text=["a red dog"], images=[picture()])
            assert saved(text=["a red dog"], images=[picture()])["input_ids"] == expected["input_ids"]


def test_amc_without_a_column_of_regions_does_not_start(tmp_path):
    dataset = tiny_dataset().rename_column("boxes", "bbox").remove_columns("masks")
    for rows in (dataset, dataset.to_iterable_dataset()):
        trainer = make_trainer(tmp_path, dataset=rows)
        with pytest.raises(ValueError, match=r"none of the columns boxes, polygons, masks, scribbles; it has .*bbox"):
            trainer.train()
        assert trainer.state.global_step == 0
    trainer = make_trainer(tmp_path, dataset=dataset, amc_mean_weight=0, amc_max_weight=0)
    trainer.train()
    assert "trained on images and phrases alone" in card_of(trainer)


def test_rows_of_a_transform_are_asked_for_what_they_become(tmp_path):
    raw = tiny_dataset().rename_columns({"phrase": "text", "boxes": "shares"}).remove_columns("masks")
    raw = raw.map(lambda row: {"shares": [[x / 99, y / 99, z / 99, w / 99] for x, y, z, w in row["shares"]]})

    def rows(batch):
        boxes = [[[99 * value for value in box] for box in boxes] for boxes in batch["shares"]]
        return {"image": batch["image"], "image_id": batch["image_id"], "phrase": batch["text"], "boxes": boxes}

    trainer = make_trainer(tmp_path, dataset=raw.with_transform(rows))
    trainer.train()
    assert trainer.evaluate()["eval_num_phrases"] == 8 and "trained with Attention Mask" in card_of(trainer)
    with pytest.raises(ValueError, match=r"it has image, phrase\. Rename"):
        dataset = raw.with_transform(lambda batch: {"image": batch["image"], "phrase": batch["text"]})
        make_trainer(tmp_path, dataset=dataset).train()


def test_amc_that_met_no_region_says_so_and_claims_nothing(tmp_path, caplog):
    trainer = make_trainer(tmp_path, dataset=Rows(tiny_dataset(8, without_region=tuple(range(8)))), max_steps=3)
    with caplog.at_level("WARNING", logger="trainer.amc_trainer"):
        trainer.train()
    messages = [record.getMessage() for record in caplog.records if "had a region" in record.getMessage()]
    assert len(messages) == 2 and "boxes, polygons, masks, scribbles" in messages[0]  # of two epochs
    text = card_of(trainer)
    assert "trained on images and phrases alone" in text and "loss_amc_max" not in text and "| loss_itc | 1 |" in text
    caplog.clear()
    trainer = make_trainer(tmp_path, dataset=tiny_dataset(8, without_region=tuple(range(7))))
    trainer.train()
    assert "trained with Attention Mask Consistency" in card_of(trainer)
    own = [record.getMessage() for record in caplog.records if record.name.startswith("trainer.")]
    assert [message[:5] for message in own] == ["12.5%"]  # of the phrases have a region


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_batches_of_an_evaluation_may_stay_apart(tmp_path):
    """They have one box at most, or two."""
    dataset = tiny_dataset(7).select([0, 2, 4, 1, 3, 5, 6])
    metrics, model = [], tiny_albef()
    for together in (True, False):
        trainer = make_trainer(tmp_path, copy.deepcopy(model), dataset, eval_do_concat_batches=together)
        metrics.append({name: value for name, value in trainer.evaluate().items() if "per_second" not in name})
    for entry in metrics:
        del entry["eval_runtime"], entry["eval_model_preparation_time"]
    assert metrics[0] == metrics[1] and metrics[0]["eval_num_phrases"] == 7


def test_training_ends_when_it_gets_no_better(tmp_path, monkeypatch):
    settings = dict(learning_rate=0.0, eval_strategy="steps", eval_steps=1, max_steps=9, early_stopping_patience=2)
    trainer = make_trainer(tmp_path, **settings)
    trainer.train()
    points = [entry["eval_pointing_game"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.global_step == 3 and trainer.state.best_metric == points[0] == points[2]
    warnings = []
    monkeypatch.setattr(trainer_callback.logger, "warning", warnings.append)
    assert trainer.evaluate(metric_key_prefix="test")["test_num_phrases"] == 8
    assert warnings == []  # such as that early stopping is disabled, without a metric of another name
    trainer = make_trainer(tmp_path, metric_for_best_model="loss", **{**settings, "learning_rate": 1e-2})
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    waited = [min(losses[:i]) <= loss for i, loss in enumerate(losses[1:], start=1)]
    assert trainer.state.global_step == len(losses) and (len(losses) == 9 or waited[-2:] == [True, True])


@pytest.mark.parametrize("metric", [None, "eval_a_pointing_game", "b_loss"])
def test_only_evaluations_with_the_metric_count_for_early_stopping(tmp_path, monkeypatch, metric):
    settings = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, max_steps=9)
    settings |= dict(learning_rate=0.0, early_stopping_patience=2, load_best_model_at_end=True)
    if metric is not None:
        settings |= dict(metric_for_best_model=metric, greater_is_better="loss" not in metric)
    trainer = make_trainer(tmp_path, **settings)
    trainer.eval_dataset = {"a": tiny_dataset(4), "b": tiny_dataset(5)}
    warnings = []
    monkeypatch.setattr(trainer_callback.logger, "warning", warnings.append)
    trainer.train()
    assert trainer.state.global_step == 3 and warnings == []


def test_names_that_begin_another_evaluation_s_are_not_taken_for_it(tmp_path, monkeypatch):
    """Also of metrics of one's own; and a prediction takes no callback away."""
    settings = dict(eval_strategy="steps", eval_steps=1, max_steps=9, learning_rate=0.0, early_stopping_patience=2)
    trainer = make_trainer(tmp_path, metric_for_best_model="eval_test_relations_accuracy", **settings)
    trainer.eval_dataset = {"test": tiny_dataset(4), "test_relations": tiny_dataset(5)}
    trainer.compute_metrics = lambda prediction: {"accuracy": len(prediction.predictions[0])}
    warnings, predicted = [], []

    class Predicts(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            predicted.append(trainer.predict(tiny_dataset(2)).metrics["test_accuracy"])

    trainer.add_callback(Predicts())
    monkeypatch.setattr(trainer_callback.logger, "warning", warnings.append)
    trainer.train()
    assert trainer.state.global_step == 3 and trainer.state.best_metric == 5
    assert predicted == [2, 2, 2] and len(warnings) == 1 and "without load_best_model_at_end" in warnings[0]


@pytest.mark.parametrize(
    ("settings", "message", "steps"),
    [
        ({"metric_for_best_model": "pointing_gam"}, "pointing_gam is not measured; what is: absent_auroc, loss, ", 0),
        ({"metric_for_best_model": "eval_runtime"}, "runtime is not measured; what is: absent_auroc, loss, loss_", 0),
        ({"metric_for_best_model": "absent_auroc"}, "absent_auroc is of phrases that are absent .column absent., ", 0),
        ({"metric_for_best_model": "eval_loss_absent"}, "loss_absent is of phrases that are absent", 0),
        ({"metric_for_best_model": "pointing_game"}, r"pointing_game is of phrases that have a region \(boxes, ", 0),
        ({"metric_for_best_model": "loss_caption"}, "loss_caption is not measured; what is: absent_auroc, loss, ", 0),
        ({"metric_for_best_model": "loss_klal"}, "loss_klal is not measured; what is: absent_auroc, loss, loss_", 0),
        ({"metric_for_best_model": "accuracy"}, "accuracy is not measured; what is: epoch, fluency, loss, ", 2),
    ],
)
def test_a_metric_that_no_evaluation_has_is_told_as_soon_as_it_is_known(tmp_path, settings, message, steps):
    dataset = tiny_dataset(8, without_region=tuple(range(8)))
    settings |= dict(ONLY, itm_weight=1.0, eval_strategy="steps", eval_steps=2, max_steps=9)
    trainer = make_trainer(tmp_path, dataset=dataset, **settings)
    if steps:
        trainer.compute_metrics = lambda prediction: {"fluency": 1.0}
    with pytest.raises(ValueError, match=f"metric_for_best_model: {message}"):
        trainer.train()
    assert trainer.state.global_step == steps and (tmp_path / "checkpoint-2").exists() == (steps == 2)


def test_metrics_of_phrases_that_there_are_choose_the_best(tmp_path):
    dataset = tiny_dataset(8, without_region=(1, 2))
    dataset = dataset.map(lambda row, number: {**row, "absent": number in (1, 2)}, with_indices=True)
    settings = dict(eval_strategy="steps", eval_steps=1, max_steps=1)
    for metric in "absent_auroc", "loss_absent", "eval_pointing_game":
        trainer = make_trainer(tmp_path / metric, dataset=dataset, metric_for_best_model=metric, **settings)
        trainer.train()
        assert trainer.state.best_metric == trainer.state.log_history[1][f"eval_{metric.removeprefix('eval_')}"]


def test_callbacks_that_are_restored_are_those_that_there_are(tmp_path, caplog):
    settings = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, max_steps=2)
    settings |= dict(early_stopping_patience=7, restore_callback_states_from_checkpoint=True)
    make_trainer(tmp_path, **settings).train()
    again = make_trainer(tmp_path, **settings | {"max_steps": 3})
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3 and again.trained_losses >= {"loss_itm", "loss_amc_max"}
    assert "Checkpoint included callbacks" not in caplog.text
    again = make_trainer(tmp_path, **settings | {"max_steps": 4, "early_stopping_patience": 0})
    again.train(resume_from_checkpoint=True)
    if not is_older("transformers>=5.18"):  # which do not hand on what they log
        assert "Ignoring. (EarlyStoppingCallback)\n" in caplog.text


def test_how_long_it_got_no_better_outlives_a_resume(tmp_path):
    settings = dict(learning_rate=0.0, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
    settings |= dict(max_steps=9, early_stopping_patience=2)
    trainer = make_trainer(tmp_path, **settings)
    for _ in range(2):  # the second training counts anew
        trainer.train()
        assert trainer.state.global_step == 3
    again = make_trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 3


# A model for every training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["albef", "blip"])
def test_every_training_begins_with_a_model_of_its_own(tmp_path, family):
    def begin():
        torch.manual_seed(0)
        return tiny_albef() if family == "albef" else TINY[family]()

    collator = collator_of() if family == "albef" else collator_of(blip_processor(), mlm_probability=0.0)
    trainer = make_trainer(tmp_path, None, tiny_dataset(), collator, model_init=begin)
    states = []
    for _ in range(2):
        trainer.train()
        states.append(snapshot(trainer.model))
    plain = make_trainer(tmp_path, begin(), tiny_dataset(), collator)
    begin()  # for the same random numbers
    plain.train()
    assert is_equal(*states)
    losses = [[log["loss"] for log in training_logs(each)] for each in (trainer, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert trainer.evaluate()["eval_num_phrases"] == 8


def test_a_training_without_a_model_makes_one(tmp_path):
    """As after a trial of a search: transformers has dropped its model."""
    trainer = make_trainer(tmp_path, None, model_init=lambda: tiny_albef())
    trainer.model = None
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(("direction", "metric"), [("minimize", "eval_loss"), ("maximize", "eval_pointing_game")])
def test_a_search_for_settings(tmp_path, direction, metric):
    pytest.importorskip("optuna")
    settings = dict(max_steps=2, eval_strategy="steps", eval_steps=2, model_init=lambda: tiny_albef())
    trainer, seen = make_trainer(tmp_path, None, **settings), []

    def space(trial):
        return {"amc_max_weight": trial.suggest_categorical("amc_max_weight", [0.1, 0.9])}

    def look(metrics):
        seen.append((trainer.args.amc_max_weight, metrics[metric]))
        return metrics[metric]

    best = trainer.hyperparameter_search(space, n_trials=3, direction=direction, backend="optuna")
    chosen = trainer.hyperparameter_search(space, look, n_trials=2, direction=direction, backend="optuna")
    assert best.hyperparameters["amc_max_weight"] in (0.1, 0.9) and math.isfinite(best.objective)
    assert chosen.objective == (min if direction == "minimize" else max)(value for _, value in seen)
    with pytest.raises(ValueError, match="Several directions need compute_objective"):
        trainer.hyperparameter_search(space, direction=["minimize", "maximize"])


def test_a_search_by_what_is_not_measured_says_what_is(tmp_path):
    pytest.importorskip("optuna")
    rows = tiny_dataset().remove_columns(["boxes", "masks"])
    trainer = make_trainer(
        tmp_path, None, rows, region_loss="none", eval_strategy="steps", model_init=lambda: tiny_albef()
    )
    with pytest.raises(
        ValueError, match="did not measure eval_pointing_game: pass a compute_objective, of what is: eval_loss"
    ):
        trainer.hyperparameter_search(lambda trial: {}, n_trials=1, direction="maximize", backend="optuna")
