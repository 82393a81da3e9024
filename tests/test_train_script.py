"""`train.py` and `albef-amc evaluate` as a user calls them: settings, errors, and a run from data to pictures."""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image
from transformers import AutoModel, BertConfig, BertModel

import train
from dataset_scripts.build import build
from modeling_albef_amc import AlbefForPreTraining, AlbefModel, AlbefProcessor
from tests.helpers.data import tiny_records, write_folder
from tests.helpers.models import own_clip_processor, own_tokenizer_model, slow_siglip_processor, tiny_config
from tests.helpers.training import RUN, TINY_MODEL, write_yaml
from tests.helpers.versions import needs
from trainer import evaluate_grounding, training
from trainer.amc_config import AmcConfig
from trainer.arguments import DataArguments, ModelArguments, parse_arguments

CLASSES = ModelArguments, DataArguments, AmcConfig
CONFIGS = Path(train.__file__).parent / "trainer" / "configs"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    splits = {"train": tiny_records(8), "validation": tiny_records(5), "test": tiny_records(6)}
    return write_folder(tmp_path_factory.mktemp("data") / "tiny", **splits)


@pytest.fixture
def config(tmp_path, data) -> str:
    """A YAML file that trains a tiny model for three steps."""
    return write_yaml(tmp_path, dataset=data, output_dir=tmp_path / "run", model_config=TINY_MODEL, **RUN)


# Settings -------------------------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_yaml_and_yaml_over_the_defaults(tmp_path):
    path = write_yaml(
        tmp_path, learning_rate=3e-4, flip=0.25, max_steps=7, bf16=False, eval_splits=["a"], alpha=0.1, output_dir="x"
    )
    command = [path, "--flip", "0.75", "--eval_splits", "b", "c", "--alpha", "0.2"]
    _, data_args, args = parse_arguments(*CLASSES, arguments=command)
    assert (data_args.flip, data_args.eval_splits, args.alpha) == (0.75, ["b", "c"], 0.2)
    assert (args.learning_rate, args.max_steps, args.bf16) == (3e-4, 7, False)
    assert (data_args.gray, args.amc_max_weight, args.weight_decay) == (0.2, 0.8, 0.02)


def test_yaml_and_the_command_line_read_the_same_values(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "output_dir: x\nlearning_rate: 1e-4\nmax_steps: 5\nbf16: false\nuse_cpu: true\nrun_name: 2024\n"
        "model_config: {projection_dim: 8}\nlr_scheduler_kwargs: {min_lr_rate: 0.5}\nmax_train_examples:\n"
        "save_strategy: no\n"
    )
    model_args, data_args, args = parse_arguments(*CLASSES, arguments=[str(path)])
    assert args.learning_rate == 1e-4 and args.max_steps == 5 and args.use_cpu is True and args.bf16 is False
    assert args.run_name == "2024" and args.save_strategy == "no" and data_args.max_train_examples is None
    assert model_args.model_config == {"projection_dim": 8} and args.lr_scheduler_kwargs == {"min_lr_rate": 0.5}
    command = ["--output_dir", "x", "--learning_rate", "1e-4", "--lr_scheduler_kwargs", '{"min_lr_rate": 0.5}']
    _, _, other = parse_arguments(*CLASSES, arguments=command)
    assert other.learning_rate == args.learning_rate and other.lr_scheduler_kwargs == args.lr_scheduler_kwargs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnig_rate: 1e-4\nmax_steps: 3\n", "unknown setting 'learnig_rate'; --help"),
        ("flips: 1\ngrays: 2\n", "unknown setting 'flips', 'grays'"),
        ("- learning_rate\n", "expected a mapping"),
        ("a: [1\n", "is not YAML"),
        ("learning_rate: fast\n", "learning_rate: .*'fast'"),
        ("max_steps: 2.5\n", "max_steps: .*'2.5'"),
        ("max_steps: true\n", "max_steps: .*'true'"),
        ("use_cpu: maybe\n", "use_cpu: .*maybe"),
        ("flip: [0.5]\n", r"flip: expected one value, got \[0.5\]"),
        ("learning_rate: {a: 1}\n", "learning_rate: expected one value"),
        ("eval_splits: validation\n", "eval_splits: expected a list"),
        ("learning_rate:\n", "learning_rate: .*None"),
        ("amc_reduction: pixel\n", "amc_reduction: .*pixel"),
    ],
)
def test_a_wrong_yaml_is_refused_with_its_name_and_key(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        parse_arguments(*CLASSES, arguments=[str(path)])
    assert str(path) in str(raised.value)


@needs("transformers>=5.23", "fsdp by a switch")
def test_a_yaml_says_true_where_a_word_could_stand(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("output_dir: x\nfsdp: true\nuse_cpu: true\nreport_to: none\n")
    *_, args = parse_arguments(*CLASSES, arguments=[str(path)])
    assert args.fsdp is AmcConfig("x", fsdp=True, use_cpu=True).fsdp and args.use_cpu is True


def test_a_missing_yaml_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml: No such file"):
        parse_arguments(*CLASSES, arguments=[str(tmp_path / "none.yaml")])


@pytest.mark.parametrize("command", [["--flipp", "1"], ["--flip", "often"], ["--max_steps", "2.5"], ["stray"]])
def test_a_wrong_command_line_is_refused(command, capsys):
    with pytest.raises((SystemExit, ValueError)) as raised:
        parse_arguments(*CLASSES, arguments=["--output_dir", "x", *command])
    assert command[0].removeprefix("--") in capsys.readouterr().err + str(raised.value)


def test_help_has_every_setting_with_a_word_about_it():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        parse_arguments(*CLASSES, arguments=["--help"])
    text = printed.getvalue()
    assert ended.value.code == 0 and "[CONFIG.yaml] [--name value ...]" in text
    for cls in CLASSES:
        for field in dataclasses.fields(cls):
            if field.init:
                assert re.search(rf"^  --{field.name}\b", text, re.MULTILINE), field.name
    ours = {*dataclasses.fields(ModelArguments), *dataclasses.fields(DataArguments)}
    inherited = {field.name for field in dataclasses.fields(AmcConfig.__mro__[1])}
    ours |= {field for field in dataclasses.fields(AmcConfig) if field.name not in inherited}
    assert len(ours) > 30 and all(len(field.metadata["help"]) > 15 for field in ours)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_of_the_project_are_valid(path):
    parse_arguments(*CLASSES, arguments=[str(path), "--output_dir", "x", "--use_cpu", "--bf16", "false"])


def test_the_papers_recipe():
    model, data, args = parse_arguments(*CLASSES, arguments=[str(CONFIGS / "albef_amc_vg.yaml")])
    assert (args.learning_rate, args.weight_decay, args.warmup_steps) == (1e-5, 0.02, 2000)
    assert args.lr_scheduler_kwargs == {"min_lr_rate": 0.1, "warmup_lr_rate": 0.1}  # 1e-6 on both sides
    assert args.per_device_train_batch_size * 8 * args.gradient_accumulation_steps == 512
    assert (args.amc_mean_weight, args.amc_max_weight) == (0.2, 0.8)
    assert (args.amc_margin_mean, args.amc_margin_max, args.amc_reduction) == (0.1, 0.5, "example")
    assert (data.flip, data.gray, data.color_jitter, data.box_choice) == (0.5, 0.2, 0.5, "random")
    assert (model.image_size, data.max_text_length, data.mask_size) == (256, 25, 256)


@pytest.mark.parametrize("path", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_takes_its_configurations(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == {"one_gpu": 1, "two_nodes": 16}.get(path.stem, 8)
    if path.stem == "fsdp":
        layers = {type(module).__name__ for module in AlbefModel(tiny_config()).modules()}
        assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] in layers


# What cannot be trained -----------------------------------------------------------------------------------------------


def test_data_that_is_not_there(config, data, tmp_path):
    with pytest.raises(ValueError, match="Say which data set to use: --dataset"):
        train.main(["--output_dir", str(tmp_path / "run")])
    with pytest.raises((ValueError, OSError), match="no-such-folder"):
        train.main([config, "--dataset", str(tmp_path / "no-such-folder")])
    with pytest.raises(ValueError, match="nosuchsplit") as raised:
        train.main([config, "--train_split", "nosuchsplit"])
    assert "validation" in str(raised.value)
    with pytest.raises(ValueError, match="nosuchsplit"):
        train.main([config, "--eval_splits", "nosuchsplit"])
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_missing_column_is_named(config, tmp_path):
    folder = tmp_path / "bare"
    (folder / "data").mkdir(parents=True)
    datasets.Dataset.from_list([{"caption": "a"}]).to_parquet(folder / "data" / "train-00000.parquet")
    with pytest.raises(ValueError, match=r"bare has no column image, phrase; it has caption\. Rename"):
        train.main([config, "--dataset", str(folder)])


def test_a_checkpoint_of_another_family_is_named(data, tmp_path):
    BertModel(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"bert is a checkpoint of type 'bert'.*known are albef, blip"):
        train.main(["--dataset", str(data), "--model", str(tmp_path / "bert"), "--output_dir", str(tmp_path / "run")])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--lora_rank", "-1"], "lora_rank must be at least 0, got -1"),
        (["--lora_alpha", "nan"], "lora_alpha must be above 0, got nan"),
        (["--mask_size", "0"], "mask_size must be at least 1, got 0"),
        (["--shuffle_buffer", "0"], "shuffle_buffer must be at least 1, got 0"),
        (["--max_text_length", "-1"], "max_text_length must be at least 1, got -1"),
        (["--max_eval_examples", "0"], "max_eval_examples must be at least 1, got 0"),
        (["--color_jitter", "nan"], r"color_jitter must lie in 0\.\.1, got nan"),
        (["--lora_dropout", "1"], "lora_dropout must be at least 0 and below 1"),
        (["--metric_for_best_model", "eval_klal"], "klal is not measured; what is: absent_auroc, loss, loss_absent"),
        (["--lora_alpha", "8"], "lora_alpha needs lora_rank"),
        (["--lora_modules", "query"], "lora_modules needs lora_rank"),
        (["--model", "x"], "model_config is about ALBEF from random weights"),
        (["--revision", "v1"], "revision needs model"),
        (["--annotated_share", "1.5"], r"annotated_share must lie in 0\.\.1, got 1\.5"),
        (["--annotated_share", "1", "--streaming", "true"], "annotated_share needs all rows at hand"),
        (["--do_train", "false"], "do_train must be True"),
        (
            ["--eval_splits", "validation", "train"],
            r"over those of the training \(train_results.json\): name it train\[",
        ),
    ],
    ids=lambda value: value[0],
)
def test_settings_that_would_do_nothing_or_harm_are_refused(config, command, message):
    with pytest.raises(ValueError, match=message):
        train.main([config, *command])


def test_a_pattern_that_freezes_nothing_is_named(config):
    with pytest.raises(ValueError, match=r"freeze: no parameter .*'no_such_layer'"):
        train.main([config, "--freeze", "no_such_layer"])


# Runs -----------------------------------------------------------------------------------------------------------------


def test_from_yaml_to_checkpoint_to_scores_and_picture(config, data, tmp_path, capsys):
    metrics = train.main([config, "--eval_splits", "validation", "test", "--max_steps", "2"])
    run = tmp_path / "run"
    state = json.loads((run / "trainer_state.json").read_text())
    assert state["global_step"] == 2, "the command line did not win"
    assert metrics["validation_num_phrases"] == 5 and metrics["test_num_phrases"] == 6
    saved = json.loads((run / "all_results.json").read_text())
    assert metrics == pytest.approx({name: saved[name] for name in metrics}) and saved["num_unusable"] == 0
    assert isinstance(AlbefProcessor.from_pretrained(run).tokenizer.vocab_size, int)
    trained = AlbefForPreTraining.from_pretrained(run)
    assert trained.config.projection_dim == 8 and trained.config.vision_config.image_size == 32
    assert type(AutoModel.from_pretrained(run)).__name__ == "AlbefModel"

    # Once more from there, with the image encoder frozen and other sizes: it begins with these weights.
    again = write_yaml(tmp_path, dataset=data, output_dir=tmp_path / "more", model=run, **RUN)
    train.main(
        [
            again,
            "--freeze",
            r"albef\.vision_model",
            "--image_size",
            "48",
            "--phrases_per_image",
            "2",
            "--max_steps",
            "1",
        ]
    )
    more = AlbefForPreTraining.from_pretrained(tmp_path / "more").state_dict()
    changed = {name for name, value in trained.state_dict().items() if not value.equal(more[name])}
    assert changed and not any(name.startswith("albef.vision_model") for name in changed)
    assert AlbefProcessor.from_pretrained(tmp_path / "more").image_processor.size["height"] == 48

    capsys.readouterr()
    models = [f"first={run}", f"second={tmp_path / 'more'}"]
    command = ["--models", *models, "--dataset", str(data), "--splits", "validation", "test", "--batch_size", "4"]
    results = evaluate_grounding.main([*command, "--num_pictured", "3", "--cpu", "--output", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert list(results) == ["first", "second"]
    assert all(list(scores) == ["validation", "test"] for scores in results.values())
    for split in ("validation", "test"):
        assert results["first"][split] == pytest.approx(metrics[f"{split}_pointing_game"])
    printed, report = capsys.readouterr().out, json.loads((tmp_path / "out" / "report.json").read_text())
    assert "| pointing accuracy, %" in printed and f"{100 * results['second']['test']:.1f}" in printed
    for split in ("validation", "test"):
        (pair,) = report["compared"][split]
        assert pair["difference"] == pytest.approx(results["first"][split] - results["second"][split])
        assert f"\n{split}, 95 % intervals: first " in printed and f"\n{split}: first against second " in printed
    check_picture(tmp_path / "out" / "heatmaps.png", columns=3, rows=3)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_families_with_tokenizers_of_their_own_train_by_default(data, tmp_path, family):
    """These mask no words; a phrase of the evaluation that is too long for the model is left out."""
    own_tokenizer_model(family).save_pretrained(tmp_path / "model")
    processor = own_clip_processor() if family == "clip" else slow_siglip_processor()
    processor.save_pretrained(tmp_path / "model")
    records = tiny_records(5)
    records[1]["phrase"] = "red square " * 20
    write_folder(tmp_path / "data", train=tiny_records(8), validation=records)
    settings = {**RUN, "model": tmp_path / "model", "dataset": tmp_path / "data", "output_dir": tmp_path / "run"}
    metrics = train.main([write_yaml(tmp_path, **settings), "--report_to", "tensorboard"])
    assert metrics["validation_num_phrases"] == 4 and "validation_loss_mlm" not in metrics
    evaluated = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert all(math.isfinite(entry["loss_itc"]) for entry in evaluated if "loss" in entry)


def check_picture(path: Path, columns: int, rows: int) -> None:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert 0 <= pixels.shape[1] - 230 * columns < 20 * columns and pixels.shape[0] > 150 * rows
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    assert ((red < 40) & (green > 220) & (blue > 220)).sum() > 20 * columns, "no cyan box"
    lime_or_red = ((red < 40) & (green > 220) & (blue < 40)) | ((red > 220) & (green < 40) & (blue < 40))
    assert lime_or_red.sum() > 3 * rows, "no mark where the maxima are"


def test_pairs_of_evaluate_grounding_need_names(capsys):
    with pytest.raises(SystemExit):
        evaluate_grounding.main(["--models", "outputs/run", "--dataset", "x"])
    assert "NAME=CHECKPOINT" in capsys.readouterr().err


def test_a_split_without_boxes_cannot_be_scored(config, tmp_path):
    train.main([config, "--max_steps", "1"])
    bare = write_folder(tmp_path / "bare", test=tiny_records(3, without_region=(0, 1, 2)))
    with pytest.raises(ValueError, match=r"Split test of .*bare has no phrase with a box"):
        command = ["--models", f"a={tmp_path / 'run'}", "--dataset", str(bare), "--cpu"]
        evaluate_grounding.main([*command, "--output", str(tmp_path / "out")])


# Real photos ----------------------------------------------------------------------------------------------------------


def coco_names(content: dict) -> list[dict]:
    """The file lists its categories as 1 to 80; its annotations have COCO's own numbers, which have gaps, plus one."""
    gaps = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    numbers = [number + 1 for number in range(1, 91) if number not in gaps]
    assert {annotation["category_id"] for annotation in content["annotations"]} <= set(numbers)
    listed = [category["name"] for category in content["categories"]]
    return [{"id": number, "name": name} for number, name in zip(numbers, listed, strict=True)]


@pytest.mark.shared
def test_real_photos_from_annotations_to_pictures(shared_dir, tmp_path):
    """The path only: six steps teach nothing. ALBEF_AMC_PICTURES names a folder to keep the picture in."""
    folder = shared_dir / "data" / "coco_photos"
    content = json.loads((folder / "instances.json").read_text())
    (tmp_path / "names.json").write_text(json.dumps(coco_names(content)))
    data = tmp_path / "coco"
    folders = {"data_dir": str(folder), "images_dir": str(folder / "images")}
    build("coco", data, **folders, categories=str(tmp_path / "names.json"), validation_fraction=0.3, num_proc=1)
    settings = {
        **RUN,
        "max_steps": 6,
        "num_logged_heatmaps": 2,
        "mask_size": 64,
        "eval_splits": ["validation"],
        "phrases_per_image": 2,
    }
    model = {**TINY_MODEL, "vision_config": {**TINY_MODEL["vision_config"], "image_size": 96, "patch_size": 16}}
    settings |= dict(learning_rate=1e-3, report_to="tensorboard", eval_strategy="steps", eval_steps=3, crop=0.5)
    settings["num_logged_heatmaps"] = 2
    config = write_yaml(tmp_path, dataset=data, output_dir=tmp_path / "run", model_config=model, **settings)
    metrics = train.main([config])
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [entry for entry in log if "loss" in entry]
    assert len(losses) == 6 and not any("bad_step" in entry for entry in log)
    for name in ("loss", "loss_itc", "loss_itm", "loss_mlm", "loss_amc_mean", "loss_amc_max"):
        found = [entry[name] for entry in losses if name in entry]  # of a step without a masked word, no loss of one
        assert len(found) >= 3 and all(map(math.isfinite, found)), (name, losses)
    assert metrics["validation_num_phrases"] > 20 and 0 <= metrics["validation_pointing_game"] <= 1
    output = Path(os.environ.get("ALBEF_AMC_PICTURES", tmp_path / "pictures"))
    command = ["--models", f"6 steps={tmp_path / 'run'}", "--dataset", str(data), "--splits", "validation", "--cpu"]
    results = evaluate_grounding.main([*command, "--num_pictured", "2", "--output", str(output)])
    assert results["6 steps"]["validation"] == pytest.approx(metrics["validation_pointing_game"])
    check_picture(output / "heatmaps.png", columns=2, rows=2)


def test_a_tokenizer_is_made_although_a_phrase_is_missing(tmp_path):
    records = tiny_records(8)
    data = write_folder(tmp_path / "data", train=[records[0] | {"phrase": None}, *records[1:]])
    train.main([write_yaml(tmp_path, dataset=data, output_dir=tmp_path / "run", model_config=TINY_MODEL, **RUN)])
    assert '"num_unusable": 1' in (tmp_path / "run" / "train_results.json").read_text()
    assert '"none"' not in (tmp_path / "run" / "tokenizer.json").read_text().lower()


@pytest.mark.parametrize("given", ["{", "[" * 10**6, "[1]", "7", '{"text_config": 3}', '{"vision_config": 3}',
                                   '{"grounding_leyer": 2}', '{"text_config": {"hidden": 3}}'])  # fmt: skip
def test_a_model_config_that_is_none_is_named(given):
    with pytest.raises(ValueError, match="model_config"):
        training.build_model(ModelArguments(model_config=given), ["a phrase"])
