"""Publishing: models, data sets and the Space, pushed to a local Hub over HTTP, and pulled without the project.

Those that pull cannot import the project, although it is installed, and have a cache of their own, which is empty.
"""

import inspect
import json
import re
import shlex
import shutil
import socket
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard, SpaceCard
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import BlipForImageTextRetrieval

from dataset_scripts.build import build
from modeling_albef_amc import AlbefForPreTraining, AlbefModel, AlbefProcessor, AutoGrounder
from modeling_albef_amc.families.registry import FAMILIES
from modeling_albef_amc.tools.convert_albef_checkpoint import convert_checkpoint
from tests.helpers import forked
from tests.helpers.data import (
    blip_processor,
    picture,
    save_with_adapters,
    tiny_albef,
    tiny_dataset,
    tiny_processor,
    tiny_records,
    write_folder,
)
from tests.helpers.hub import READ_TOKEN, TOKEN, HubServer, Repo, environment, put, run
from tests.helpers.models import TINY, tiny_blip
from tests.helpers.original_checkpoints import GOLDEN, write_vocabulary
from tests.helpers.training import ONLY, RUN, TINY_MODEL, make_trainer, training_logs
from tests.helpers.versions import needs
from trainer.loss_means import ITEMS
from trainer.model_card import OBJECTIVES, model_card
from trainer.phrase_rows import PhraseRows
from trainer.training import set_explained

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PHRASES = ["red square on the left", "very small blue square on the right"]
# What makes the project impossible to import: its modules are in sys.modules, as nothing.
WITHOUT_PROJECT = (
    "import sys\nfor name in 'modeling_albef_amc', 'trainer', 'dataset_scripts':\n    sys.modules[name] = None\n"
)
LOAD = """
import json
import numpy as np, torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
inputs = processor(images=Image.open(sys.argv[2]), text=json.loads(sys.argv[3]), return_tensors="pt")
outputs = model(**inputs, output_heatmaps=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, "weights.safetensors")
save_file({"heatmaps": outputs.heatmaps.contiguous(), "logits": outputs.itm_logits.detach()}, "answers.safetensors")
"""


def rows_of(loaded) -> dict[str, list]:
    """What a data set holds, its images by a hash of their pixels."""
    import hashlib

    def digest(image) -> str:
        return hashlib.sha256(str(image.size).encode() + image.tobytes()).hexdigest()

    return {
        split: [
            [row["image_id"], row["phrase"], row["boxes"], *map(digest, [row["image"], *row["masks"]])] for row in rows
        ]
        for split, rows in loaded.items()
    }


ROWS = f"""
import json
from datasets import load_dataset

{inspect.getsource(rows_of)}

for streaming in (False, True):
    loaded = load_dataset(sys.argv[1], streaming=streaming)
    open(f"rows-{{streaming}}.json", "w").write(json.dumps(rows_of(loaded)))
"""


def hf(hub: HubServer, arguments: list[str], folder: Path, variables: dict[str, str]) -> None:
    """The command line of huggingface_hub. It asks the Hub things of its own too, and does well without an answer."""
    known = len(hub.unknown_requests)
    run(["-c", "from huggingface_hub.cli.hf import main\nmain()", *arguments], folder, variables)
    del hub.unknown_requests[known:]


def run_clean(code: str, folder: Path, variables: dict[str, str], *arguments):
    """Runs code in a process that cannot import the project; `folder` is where it works."""
    folder.mkdir(exist_ok=True)
    return run(["-c", WITHOUT_PROJECT + code, *arguments], folder, variables)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        yield hub
    assert hub.unknown_requests == []


@pytest.fixture
def weak_hub(hub):
    """To break."""
    yield hub
    hub.failing.clear()
    hub.slow.clear()


@pytest.fixture(scope="module")
def with_token(hub, tmp_path_factory) -> dict[str, str]:
    """The environment of those that push."""
    variables = environment(hub.url, tmp_path_factory.mktemp("home"))
    forked.prepare(variables)
    return variables


@pytest.fixture(scope="module")
def without_token(hub, tmp_path_factory) -> dict[str, str]:
    """The environment of those who give their token as an option, if at all."""
    variables = environment(hub.url, tmp_path_factory.mktemp("home"), token=None)
    forked.prepare(variables)
    return variables


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    splits = {"train": tiny_records(8), "validation": tiny_records(5), "test": tiny_records(6)}
    return write_folder(tmp_path_factory.mktemp("data") / "squares", **splits)


@pytest.fixture(scope="module")
def home_of_strangers(hub, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    variables = environment(hub.url, home, token=None)
    forked.prepare(variables, "datasets transformers.modeling_utils transformers.processing_utils")
    return home


@pytest.fixture
def stranger(hub, home_of_strangers) -> dict[str, str]:
    """The environment of those that pull: without a token, with an empty cache."""
    shutil.rmtree(home_of_strangers)
    return environment(hub.url, home_of_strangers, token=None)


def write_config(folder: Path, data: Path | str, **settings) -> Path:
    settings = {**RUN, "dataset": str(data), "output_dir": str(folder / "run"), "report_to": "none", **settings}
    settings.setdefault("model_config", TINY_MODEL)
    (folder / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def pushed(data, without_token, tmp_path_factory) -> Path:
    """The folder of a run that `train.py --push_to_hub` has published as org/albef-amc."""
    folder = tmp_path_factory.mktemp("pushed")
    settings = dict(eval_splits=["validation", "test"], max_eval_examples=5, num_logged_heatmaps=3)
    config = write_config(folder, data, save_strategy="steps", save_steps=2, **settings)
    options = ["--push_to_hub", "--hub_model_id", "org/albef-amc", "--hub_license", "cc-by-4.0", "--hub_token", TOKEN]
    run([ROOT / "train.py", config, *options], folder, without_token)
    return folder / "run"


# Models ---------------------------------------------------------------------------------------------------------------


def test_train_pushes_all_that_a_user_needs(hub, pushed):
    files = hub.files("models", "org/albef-amc")
    code = {path.name for path in pushed.glob("*.py")}
    assert {"modeling_albef.py", "processing_albef.py", "gradcam.py", "configuration_albef.py"} <= code
    needed = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"}
    needed |= {"heatmaps.png"}
    assert needed | code <= set(files)
    assert not [path for path in files if path.startswith("checkpoint-")]
    for path in needed | code:
        assert files[path] == (pushed / path).read_bytes(), path
    for path, content in files.items():
        assert TOKEN.encode() not in content, f"{path} gives the token away"
    assert hub.repos["models", "org/albef-amc"].messages[-1] == "End of training"
    assert str(pushed.parent).encode() not in files["README.md"] + files["config.json"]
    # What is pushed while training has its code already.
    repo = hub.repos["models", "org/albef-amc"]
    first = next(i for i, message in enumerate(repo.messages) if message.startswith("Training in progress"))
    assert {"model.safetensors", "modeling_albef.py", "processing_albef.py"} <= set(repo.commits[first][1])


def below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_repository(hub: HubServer, name: str, folder: str) -> dict[str, bytes]:
    files = hub.files("models", name)
    return {path.removeprefix(f"{folder}/"): data for path, data in files.items() if path.startswith(f"{folder}/")}


@pytest.mark.parametrize(
    ("strategy", "folders", "more"),
    [
        ("checkpoint", {"last-checkpoint": "checkpoint-4"}, {}),
        ("all_checkpoints", {"checkpoint-2": "checkpoint-2", "checkpoint-4": "checkpoint-4"}, {"lora_rank": 2}),
    ],
)
def test_a_run_goes_on_from_the_checkpoint_on_the_hub(hub, with_token, data, tmp_path, strategy, folders, more):
    settings = dict(save_strategy="steps", save_steps=2, hub_always_push=True, **more)
    config = write_config(tmp_path, data, max_steps=4, **settings)
    name = f"org/{strategy}"
    options = ["--push_to_hub", "--hub_model_id", name, "--hub_strategy", strategy]
    if more:  # adapters need a base model by its Hub id
        save_with_adapters(tmp_path / "base", tmp_path / "adapters")
        put(hub, "models", "org/adapted", tmp_path / "base")
        config = write_config(tmp_path, data, max_steps=4, model="org/adapted", model_config=None, **settings)
    done = run([ROOT / "train.py", config, *options], tmp_path, with_token)
    assert "failed" not in done.stderr
    for there, here in folders.items():
        local = below(tmp_path / "run" / here)
        assert {"optimizer.pt", "trainer_state.json", "rng_state.pth"} <= set(local)
        assert not more or "momentum.safetensors" in local
        assert in_repository(hub, name, there) == local
    last = list(folders)[-1]
    hf(hub, ["download", name, "--include", f"{last}/*", "--local-dir", "down"], tmp_path, with_token)
    go_on = ["--max_steps", "5", "--save_strategy", "no", "--resume_from_checkpoint", tmp_path / "down" / last]
    run([ROOT / "train.py", config, *go_on, "--output_dir", tmp_path / "gone-on"], tmp_path, with_token)
    logs = json.loads((tmp_path / "gone-on" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in logs if "loss" in entry] == [1, 2, 3, 4, 5]


def test_no_checkpoint_is_deleted_while_it_is_uploaded(weak_hub, with_token, data, tmp_path):
    weak_hub.slow["/api/models/org/slow/commit"] = 2.0
    config = write_config(tmp_path, data, max_steps=6, save_strategy="steps", save_steps=1, save_total_limit=1)
    options = ["--push_to_hub", "--hub_model_id", "org/slow", "--hub_strategy", "all_checkpoints"]
    done = run([ROOT / "train.py", config, *options], tmp_path, with_token)
    assert "failed" not in done.stderr
    assert "checkpoint-2 is not pushed: the push before it is not done. hub_always_push waits for it." in done.stderr
    assert [folder.name for folder in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-6"]
    first, last = (in_repository(weak_hub, "org/slow", name) for name in ("checkpoint-1", "checkpoint-6"))
    assert first.keys() == below(tmp_path / "run" / "checkpoint-6").keys() and last == {}


def code_blocks(card: ModelCard) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)


def test_it_loads_without_the_project_online_and_from_the_cache(hub, stranger, pushed, tmp_path):
    """And the code on its card runs."""
    blocks = code_blocks(ModelCard.load(pushed / "README.md"))
    assert len(blocks) == 2 and all('"org/albef-amc"' in block for block in blocks)
    picture().save(tmp_path / "photo.png")
    (tmp_path / "online").mkdir()
    picture().save(tmp_path / "online" / "image.jpg")
    arguments = ["org/albef-amc", tmp_path / "photo.png", json.dumps(PHRASES)]
    code = "\n".join([LOAD, *blocks])
    done = run_clean(code, tmp_path / "online", stranger, *arguments)
    records = tiny_records(5)
    on_card = [records[0]["phrase"], records[2]["phrase"]]
    printed = zip(done.stdout.splitlines(), on_card * 2, strict=True)
    assert all(line.startswith(phrase) for line, phrase in printed), done.stdout
    before = len(hub.requests)
    offline = stranger | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    run_clean(LOAD, tmp_path / "offline", offline, *arguments)
    assert len(hub.requests) == before
    model, processor = AlbefModel.from_pretrained(pushed).eval(), AlbefProcessor.from_pretrained(pushed)
    inputs = processor(images=picture(), text=PHRASES, return_tensors="pt")
    outputs = model(**inputs, output_heatmaps=True)
    assert outputs.heatmaps.max() > 0
    for folder in ("online", "offline"):
        weights = safetensors.torch.load_file(tmp_path / folder / "weights.safetensors")
        mine = model.state_dict()
        assert weights.keys() == mine.keys() and all(torch.equal(weights[name], mine[name]) for name in mine)
        answers = safetensors.torch.load_file(tmp_path / folder / "answers.safetensors")
        assert torch.equal(answers["heatmaps"], outputs.heatmaps)
        assert torch.equal(answers["logits"], outputs.itm_logits)


PULL_GOLDEN = """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

model = AutoModel.from_pretrained("org/golden", trust_remote_code=True).eval()
output = model(**load_file(sys.argv[1]), output_heatmaps=True)
save_file({"heatmaps": output.heatmaps.contiguous(), "itm_logits": output.itm_logits.contiguous()}, sys.argv[2])
"""


@pytest.mark.shared
def test_the_released_weights_converted_pushed_and_pulled_give_the_recorded_numbers(
    with_token, stranger, shared_dir, tmp_path
):
    vocabulary = write_vocabulary(tmp_path / "tokenizer", 200)
    golden, folder = shared_dir / "golden", tmp_path / "albef"
    convert_checkpoint(golden / "model.pth", folder, tokenizer=vocabulary, **GOLDEN)
    push = "import sys\nfrom modeling_albef_amc import AlbefForPreTraining\n"
    push += "AlbefForPreTraining.from_pretrained(sys.argv[1]).push_to_hub('org/golden')"
    run(["-c", push, folder], ROOT, with_token)
    inputs = safetensors.torch.load_file(golden / "inputs.safetensors")
    batch = {"pixel_values": inputs["b0.images"].float(), "input_ids": inputs["b0.input_ids"]}
    batch["attention_mask"] = inputs["b0.attention_mask"]
    safetensors.torch.save_file(batch, tmp_path / "batch.safetensors")
    files = tmp_path / "batch.safetensors", tmp_path / "answers.safetensors"
    run_clean(PULL_GOLDEN, tmp_path / "clean", stranger, *files)
    answers = safetensors.torch.load_file(files[1])
    expected = safetensors.torch.load_file(golden / "eval_cam.safetensors")
    # The original divides by all token slots, padding included.
    heatmaps = answers["heatmaps"] * batch["attention_mask"].float().mean(dim=1)[:, None, None]
    pairs = (answers["itm_logits"], expected["itm_logits_res64"]), (heatmaps, expected["itm_cam_res64_layer4"])
    for actual, recorded in pairs:
        assert (actual - recorded).abs().max() < 1e-4 * recorded.abs().max()


def test_the_card_is_made_from_the_run(pushed):
    card = ModelCard.load(pushed / "README.md")
    results = json.loads((pushed / "all_results.json").read_text())
    assert (card.data.library_name, card.data.license) == ("transformers", "cc-by-4.0")
    assert card.data.pipeline_tag == "zero-shot-object-detection" and "visual-grounding" in card.data.tags
    assert card.data.model_name == "albef-amc" and card.data.base_model is None and card.data.datasets is None
    scores = {result.dataset_split: result for result in card.data.eval_results}
    assert list(scores) == ["validation", "test"] and len(card.data.eval_results) == 2
    for split, result in scores.items():
        assert result.metric_type == "pointing_game" and result.dataset_name == "squares"
        assert result.metric_value == pytest.approx(results[f"{split}_pointing_game"], abs=1e-4)
        assert result.metric_args["num_phrases"] == results[f"{split}_num_phrases"] == 5
        assert "strictly inside any" in result.metric_args["protocol"]
    assert scores["validation"].metric_args["rows"] == "all 5"
    assert scores["test"].metric_args["rows"] == "the first 5 of 6"
    for name, weight in dict(loss_itc=1, loss_itm=1, loss_mlm=1, loss_amc_mean=0.2, loss_amc_max=0.8).items():
        assert f"| {name} | {weight} |" in card.text
        assert f"{results[f'validation_{name}']:.4f}" in card.text
    for text in ("random weights", "1e-05", "| steps | 3 (1.50 epochs) |", "yang2023improving", "li2021align"):
        assert text in card.text
    with Image.open(pushed / "heatmaps.png") as drawn:
        assert drawn.size == (484, 741) and "(heatmaps.png)" in card.text


def test_the_card_says_which_rows_were_evaluated(data, tmp_path):
    """Random rows of a split are not its first ones; several evaluations of a split are told apart by name."""
    whole = datasets.load_dataset(str(data), split="train", cache_dir=str(tmp_path))
    parts = whole.cast_column("image", datasets.Image(decode=False)).train_test_split(0.25, seed=0)
    easy, hard = parts["test"], parts["train"].select(range(2, 5))
    trainer = make_trainer(tmp_path / "run", dataset=parts["train"])
    trainer.evaluate(easy)
    assert {each.name: each.rows for each in trainer.evaluations.values()} == {"train": "2 of 8"}
    trainer.evaluate({"easy": easy, "hard": hard})
    trainer.evaluate(whole, metric_key_prefix="whole")
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "run" / "README.md")
    rows = {result.dataset_split: result.metric_args["rows"] for result in card.data.eval_results}
    expected = {"train": "2 of 8", "eval_easy": "2 of 8 of train", "eval_hard": "3 of 8 of train"}
    assert rows == {**expected, "whole": "all 8 of train"}
    assert all(f"| {name} | {text} |" in card.text for name, text in rows.items())
    # It says nothing about a training that was none of this run's.
    assert "evaluated as it was loaded" in card.text and "This run did not train it" in card.text
    for word in ("random weights", "trained on", "trained with", "optimizer", "seed", "Attention Mask", "| setting"):
        assert word not in card.text
    assert "amc" not in card.data.tags


def test_the_card_has_the_numbers_that_there_are(tmp_path):
    """Of losses nothing where no example has any, which would be a perfect 0; of one's own metrics those that are."""
    trainer = make_trainer(tmp_path, dataset=tiny_dataset(8), **ONLY | {"amc_max_weight": 1.0})
    trainer.compute_metrics = lambda _: {"accuracy": 0.5, "per_class": [0.1, 0.2], "by": {"a": 1.0}, "loss_of": None}
    metrics = trainer.evaluate(tiny_dataset(8, without_region=tuple(range(8))), metric_key_prefix="captions")
    assert metrics.keys() & {"captions_loss", "captions_loss_amc_mean", "captions_loss_amc_max"} == set()
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert {(result.metric_type, result.metric_value) for result in card.data.eval_results} == {("accuracy", 0.5)}
    of_captions = next(line for line in card.text.splitlines() if line.startswith("| captions |")).split(" | ")
    assert of_captions[1:4] == ["all 8", "–", "0.5000"] and of_captions[-3:] == ["–", "–", "– |"]


def test_the_card_of_lists_of_phrases_names_their_split(data, tmp_path):
    whole = datasets.load_dataset(str(data), split="train", cache_dir=str(tmp_path))
    whole = whole.cast_column("image", datasets.Image(decode=False)).select_columns(["image", "image_id", "phrase"])
    lists = whole.map(lambda row: {"phrase": [row["phrase"]] * 2}, features=datasets.Features(
        {**whole.features, "phrase": datasets.List(datasets.Value("string"))}))  # fmt: skip
    trainer = make_trainer(tmp_path / "run", dataset=PhraseRows(lists))
    trainer.evaluate()
    assert {each.name: each.rows for each in trainer.evaluations.values()} == {"train": "all 16"}
    card = model_card(trainer)
    assert whole[0]["phrase"] in card.text
    with pytest.raises(TypeError, match="dataset and dataset_tags must be one Hub id or folder"):
        model_card(trainer, dataset=["one", "two"])


def test_the_card_can_say_what_every_loss_asks():
    assert OBJECTIVES.keys() == ITEMS.keys()


@pytest.mark.parametrize("family", ["albef", "clip", "siglip", "vilt", "qwen2_vl"])
def test_the_card_says_of_no_family_what_is_true_of_another(tmp_path, family):
    """Most explain no match score, or by no cross-attention: see the table of docs/families.md."""
    model = tiny_albef() if family == "albef" else TINY[family]()
    introduction = " ".join(model_card(make_trainer(tmp_path, model)).text.split("\n\n")[1].split())
    assert (
        "an attention to the parts of the image that this score comes from, times the score's gradient" in introduction
    )
    assert "cross" not in introduction and "match" not in introduction
    assert f"It is {FAMILIES[family].title}, evaluated" in introduction
    if family != "albef":
        set_explained(model, None, None, "gradient")
        card = model_card(make_trainer(tmp_path, model))
        introduction = " ".join(card.text.split("\n\n")[1].split())
        assert (
            "the score's gradient by an attention to the parts of the image, where it is positive. It is"
            in introduction
        )
        assert "Grad-CAM" not in introduction and "grad-cam" not in card.data.tags


def test_the_card_of_a_short_run_that_is_started_again_says_how_it_was_trained(tmp_path):
    """Nothing was logged before its end."""
    for resume in (None, True):
        trainer = make_trainer(tmp_path, logging_steps=500, save_strategy="steps", save_steps=500)
        trainer.train(resume_from_checkpoint=resume)
        assert "trained with Attention Mask Consistency" in model_card(trainer).text
    assert training_logs(trainer) == []


def own_sgd(model) -> dict:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    return {"model": model, "optimizers": (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5))}


@pytest.mark.parametrize(
    ("settings", "optimizer", "schedule", "precision"),
    [
        (lambda model: {"bf16": True}, "AdamW, weight decay 0.02 or 0, betas 0.9 and 0.999, eps 1e-08",
         "0.01, warm-up 0, cosine_warmup_with_min_lr, min_lr_rate 0.1, warmup_lr_rate 0.1", "bfloat16"),
        (lambda model: {"optim": "sgd", "optim_args": "momentum=0.9", "lr_scheduler_type": "constant"},
         "SGD, weight decay 0.02 or 0, momentum 0.9, dampening 0", "0.01, constant", "float32"),
        (own_sgd, "SGD, momentum 0.5, dampening 0, weight decay 0", "0.01, ConstantLR", "float32"),
    ],
)  # fmt: skip
def test_the_card_says_what_ran(tmp_path, settings, optimizer, schedule, precision):
    trainer = make_trainer(tmp_path, **settings(tiny_albef()), max_grad_norm=5.0, max_steps=1)
    trainer.train()
    rows = {"optimizer": f"{optimizer}, gradient norm up to 5", "learning rate": schedule, "precision": precision}
    card = model_card(trainer).text
    assert all(f"| {name} | {value} |" in card for name, value in rows.items())


def test_the_card_has_the_scores_of_the_weights_that_are_saved(tmp_path):
    settings = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, max_steps=4)
    # By the highest loss: of the first step.
    best = dict(load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True)
    trainer = make_trainer(tmp_path, learning_rate=0.05, **settings, **best)
    trainer.evaluate(metric_key_prefix="before")
    trainer.train()
    claimed = trainer.evaluations
    assert trainer.state.best_global_step == 1 and list(claimed) == ["eval"]
    trainer.create_model_card()
    measured, card = trainer.evaluate(), (tmp_path / "README.md").read_text()
    assert claimed["eval"].metrics["loss"] == pytest.approx(measured["eval_loss"], rel=1e-5)
    assert claimed["eval"].scores == {"pointing_game": measured["eval_pointing_game"]}
    assert f"| {measured['eval_loss']:.4f} |" in card
    assert "| steps | 4 (2.00 epochs); the weights are those after step 1, the best |" in card


@pytest.mark.parametrize("base", ["org/private", "/gone/base", "a/b/c/base", "./base"])
def test_a_base_model_that_cannot_be_asked_costs_its_licence_alone(tmp_path, monkeypatch, base):
    def refuse(*args, **kwargs):
        raise OSError("401 Client Error")

    monkeypatch.setattr("trainer.model_card.RepoCard.load", refuse)
    trainer = make_trainer(tmp_path)
    trainer.model.name_or_path = base
    trainer.create_model_card()
    monkeypatch.undo()
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.license is None and data.base_model == (base if base == "org/private" else None)


REVISIONS = """
import json, sys
from modeling_albef_amc import AutoGrounder

name, *calls = map(json.loads, sys.argv[1:])
for call in calls:
    grounder = AutoGrounder.from_pretrained(name, device="cpu", **call)
    head = grounder.model.itm_head.weight.sum().item()
    print(json.dumps([grounder.processor.image_processor.size["height"], head]))
"""


@needs("transformers>=5.18", "LoRA")
def test_revision_and_token_reach_all_files_of_a_private_model(hub, without_token, tmp_path):
    """Of three revisions: another processor and other weights, in a folder of its own, and adapters of the first."""
    heads, repo = {}, Repo("models", "org/private", private=True)
    hub.repos["models", "org/private"] = repo
    model, processor = tiny_albef().albef, tiny_processor()

    def commit(name: str, *parts: Any, below: str = "") -> str:
        for part in parts:
            part.save_pretrained(tmp_path / name / below)
        files = {str(path.relative_to(tmp_path / name)): path for path in (tmp_path / name).rglob("*.*")}
        heads[name] = model.itm_head.weight.sum().item()
        return repo.commit({path: hub.store(file.read_bytes()) for path, file in files.items()}, name)

    first = commit("first", model, processor)
    model.itm_head.weight.data += 1
    processor.image_processor.size = {"height": 64, "width": 64}
    commit("second", model, processor, below="inside")
    adapted = get_peft_model(tiny_albef().albef, LoraConfig(target_modules=["query"], revision=first))
    adapted.peft_config["default"].base_model_name_or_path = "org/private"
    adapted.save_pretrained(tmp_path / "third")
    third = commit("third", processor)
    calls = [dict(revision=first), dict(subfolder="inside", revision=repo.commits[1][0]), dict(revision=third)]
    calls = [json.dumps(call | {"token": READ_TOKEN, "cache_dir": str(tmp_path / "cache")}) for call in calls]
    settings = without_token | {"PYTHONPATH": str(ROOT)}
    done = run(["-c", REVISIONS, json.dumps("org/private"), *calls], tmp_path, settings)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [size for size, _ in found] == [32, 64, 64]
    assert [head for _, head in found] == pytest.approx([heads["first"], heads["second"], heads["first"]], abs=1e-5)
    assert not list(Path(without_token["HF_HOME"]).glob("hub/models--org--private"))

    picture().save(tmp_path / "photo.png")
    command = ["-m", "trainer.commands", "ground", tmp_path / "photo.png", "red square", "--json=-"]
    command += ["--model", "org/private", "--revision", first, "--device", "cpu"]
    answer = json.loads(run([*command, "--token", READ_TOKEN], tmp_path, settings).stdout)["answers"][0]
    expected = AutoGrounder.from_pretrained(str(tmp_path / "first"), device="cpu").ground(picture(), "red square")[0]
    assert answer["score"] == pytest.approx(expected["score"], abs=1e-5) and tuple(answer["point"]) == expected["point"]
    refused = run(command, tmp_path, settings, fails=True)
    assert "org/private" in refused.stderr and "Traceback" not in refused.stderr


def test_a_model_and_a_processor_push_themselves(hub, with_token, pushed, tmp_path):
    """`model.push_to_hub()`: nothing of a run, but weights and code; a card that is there stays."""
    code = (
        "import sys, modeling_albef_amc\nfrom transformers import AutoModel, AutoProcessor\n"
        "for name in ('org/by-hand', 'org/again'):\n"
        "    AutoModel.from_pretrained(sys.argv[1]).push_to_hub(name)\n"
        "    AutoProcessor.from_pretrained(sys.argv[1]).push_to_hub(name)\n"
    )
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_bytes((pushed / "README.md").read_bytes())
    put(hub, "models", "org/again", tmp_path / "card")
    run(["-c", code, pushed], ROOT, with_token)
    assert hub.files("models", "org/again")["README.md"] == (pushed / "README.md").read_bytes()
    files = hub.files("models", "org/by-hand")
    assert {path.name for path in pushed.glob("*.py")} - {"modeling_albef_pretraining.py"} <= set(files)
    named = json.loads(files["config.json"])["auto_map"].values()
    assert {f"{place.partition('.')[0]}.py" for place in named} <= set(files)
    mine, weights = AlbefModel.from_pretrained(pushed).state_dict(), safetensors.torch.load(files["model.safetensors"])
    assert weights.keys() == mine.keys() and all(torch.equal(weights[name], mine[name]) for name in mine)


def test_a_blip_is_trained_from_the_hub_and_published(hub, with_token, stranger, data, tmp_path, monkeypatch, capsys):
    """From a base model and streamed data on the Hub: both are named on the card, the licence is the base's."""
    base = tmp_path / "base"
    tiny_blip().save_pretrained(base)
    blip_processor().save_pretrained(base)
    (base / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n\n# A base\n")
    put(hub, "models", "org/base", base)
    put(hub, "datasets", "org/squares", data)
    settings = dict(model="org/base", model_config=None, mlm_weight=0, max_steps=1, logging_steps=50)
    config = write_config(tmp_path, "org/squares", streaming=True, dataloader_num_workers=1, **settings)
    options = ["--push_to_hub", "--hub_model_id", "org/blip-amc", "--num_logged_heatmaps", "0"]
    run([ROOT / "train.py", config, *options], tmp_path, with_token)
    card = ModelCard(hub.files("models", "org/blip-amc")["README.md"].decode())
    assert card.data.base_model == "org/base" and card.data.datasets == ["org/squares"]
    assert card.data.license == "bsd-3-clause"
    assert "heatmaps.png" not in card.text and "trust_remote_code" not in card.text and "li2022blip" in card.text
    assert "| loss_itm |" in card.text and "| loss_itc |" not in card.text and "| loss_mlm |" not in card.text
    plain, with_project = code_blocks(card)
    picture().save(tmp_path / "image.jpg")
    printed = run_clean(plain, tmp_path, stranger).stdout
    loaded = BlipForImageTextRetrieval.from_pretrained(tmp_path / "run").eval()
    for phrase, match in eval(printed).items():
        inputs = blip_processor()(images=Image.open(tmp_path / "image.jpg"), text=phrase, return_tensors="pt")
        assert match == pytest.approx(loaded(**inputs).itm_score.softmax(-1)[0, 1].item(), abs=1e-5)
    monkeypatch.chdir(tmp_path)
    exec(with_project.replace("org/blip-amc", "run"))
    assert [line.split(" 0.")[0] for line in capsys.readouterr().out.splitlines()] == list(eval(printed))


# Data sets ------------------------------------------------------------------------------------------------------------

SCENES = dict(train=6, validation=2, test=2, test_relations=0, test_unseen=0, captions=0)
SIZES = [word for split, count in SCENES.items() for word in (f"--{split.replace('_', '-')}", str(count))]
SIZES += ["--num-proc", "1"]


def test_a_data_set_goes_there_and_back(hub, with_token, stranger, tmp_path):
    command = ["-m", "dataset_scripts.build", "scenes", "--output", tmp_path / "scenes", *SIZES]
    done = run([*command, "--push-to-hub", "org/scenes", "--private"], ROOT, with_token)
    assert f"pushed   {hub.url}/datasets/org/scenes/commit/" in done.stdout
    files = hub.files("datasets", "org/scenes")
    local = {str(p.relative_to(tmp_path / "scenes")): p for p in (tmp_path / "scenes").rglob("*") if p.is_file()}
    assert {path: content for path, content in files.items() if path != ".gitattributes"} == {
        path: file.read_bytes() for path, file in local.items()
    }
    assert hub.repos["datasets", "org/scenes"].private
    card = DatasetCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0" and 'load_dataset("org/scenes", split="train")' in card.text

    stranger |= {"HF_TOKEN": TOKEN}  # the data set is private
    run_clean(ROWS, tmp_path / "online", stranger, "org/scenes")
    expected = rows_of(datasets.load_dataset(str(tmp_path / "scenes"), cache_dir=str(tmp_path / "cache")))
    assert len(expected["train"]) > 6
    for name in ("rows-False.json", "rows-True.json"):
        assert json.loads((tmp_path / "online" / name).read_text()) == expected
    offline = stranger | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    run_clean(ROWS.replace("(False, True)", "(False,)"), tmp_path / "offline", offline, "org/scenes")
    assert json.loads((tmp_path / "offline" / "rows-False.json").read_text()) == expected


def test_a_data_set_that_is_pushed_again_has_no_old_rows(hub, with_token, tmp_path):
    command = ["-m", "dataset_scripts.build", "scenes", "--output", tmp_path / "out", "--overwrite", "--push-to-hub"]
    run([*command, "scenes-2", *SIZES], ROOT, with_token)
    assert "data/test-00000.parquet" in hub.files("datasets", "org/scenes-2")
    run([*command, "scenes-2", *SIZES, "--test", "0"], ROOT, with_token)
    files = hub.files("datasets", "org/scenes-2")
    parts = [f"data/{split}-00000.parquet" for split in ("train", "validation")]
    assert [path for path in files if path.startswith("data/")] == parts
    assert ".gitattributes" in files and not hub.repos["datasets", "org/scenes-2"].private


def test_a_data_card_tells_what_was_dropped_and_whose_it_is(tmp_path):
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "images" / "a.png")
    annotation = dict(image_id=1, category_id=1, iscrowd=0)
    good, bad = dict(annotation, id=1, bbox=[1, 1, 5, 5]), dict(annotation, id=2, bbox=[40, 1, 5, 5])
    content = {"images": [dict(id=1, file_name="a.png", width=30, height=20)], "annotations": [good, bad]}
    (folder / "instances.json").write_text(json.dumps({**content, "categories": [dict(id=1, name="cat")]}))
    build("coco", tmp_path / "out", data_dir=str(folder), split="train", license="cc-by-4.0", num_proc=1)
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-4.0" and "Licence: cc-by-4.0." in card.text
    assert "| instances: box without area in the image | 1 |" in card.text and "| train | 1 |" in card.text
    assert "build coco --data_dir mine --split train --license cc-by-4.0`" in card.text
    assert str(tmp_path) not in card.content
    build("coco", tmp_path / "other", data_dir=str(folder), split="train", num_proc=1)
    card = DatasetCard.load(tmp_path / "other" / "README.md")
    assert card.data.license is None and "look it up there before you publish" in card.text


# The Space ------------------------------------------------------------------------------------------------------------

COLOURS = "red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"


def test_the_space_says_what_a_space_must_say():
    card = SpaceCard.load(ROOT / "space" / "README.md")
    header = card.data.to_dict()
    assert header["sdk"] == "gradio" and (ROOT / "space" / header["app_file"]).is_file()
    pinned = re.search(r"^gradio==(.+)$", (ROOT / "space" / "requirements.txt").read_text(), re.MULTILINE)
    assert header["sdk_version"] == pinned[1]
    assert header["colorFrom"] in COLOURS and header["colorTo"] in COLOURS
    assert header["title"] and header["emoji"] and header["license"] == "apache-2.0"
    assert len(header["short_description"]) <= 60 and re.fullmatch(r"3\.\d+", header["python_version"])
    static = SpaceCard.load(ROOT / "space" / "static" / "README.md").data.to_dict()
    assert static["sdk"] == "static" and (ROOT / "space" / "static" / static["app_file"]).is_file()
    assert static["colorFrom"] in COLOURS and static["colorTo"] in COLOURS and len(static["short_description"]) <= 60


def test_the_space_goes_up_as_it_is_and_shows_a_published_model(hub, with_token, stranger, pushed, tmp_path):
    pytest.importorskip("gradio")
    # The commands of its README.
    commands = re.findall(r"^hf (.+)$", (ROOT / "space" / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        hf(hub, shlex.split(command), ROOT, with_token)
    files = hub.files("spaces", "org/point")
    assert {"app.py", "README.md", "requirements.txt", "modeling_albef_amc/__init__.py"} <= set(files)
    assert not [path for path in files if path.endswith((".pyc", ".pyi"))]
    for path, content in files.items():
        if path != ".gitattributes":
            folder = ROOT if path.startswith("modeling_albef_amc/") else ROOT / "space"
            assert content == (folder / path).read_bytes()
    pull = """
import json, sys
for name in "trainer", "dataset_scripts":
    sys.modules[name] = None
from huggingface_hub import snapshot_download
from PIL import Image
folder = snapshot_download("org/point", repo_type="space")
sys.path.insert(0, folder)
import app, grounding, models, modeling_albef_amc
assert modeling_albef_amc.__file__.startswith(folder)
store = models.ModelStore(models.read_catalogue(), preferred="org/albef-amc")
app.build(store)
print(json.dumps(grounding.ground_lines(store, Image.open(sys.argv[1]), "\\n".join(json.loads(sys.argv[2])))))
"""
    picture().save(tmp_path / "photo.png")
    printed = run(["-c", pull, tmp_path / "photo.png", json.dumps(PHRASES)], tmp_path, stranger).stdout
    view = json.loads(printed.splitlines()[-1])
    assert view["models"][0]["id"] == "org/albef-amc" and view["models"][0]["note"] is None
    assert [phrase["text"] for phrase in view["phrases"]] == PHRASES


# What goes wrong ------------------------------------------------------------------------------------------------------


def unreachable() -> str:
    """An address that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


TRY = """
import sys, traceback, train
for token in sys.argv[2:]:
    try:
        options = ["--hub_token", token] if token else []
        train.main([sys.argv[1], "--push_to_hub", "--hub_model_id", "org/there", *options])
    except Exception as error:
        print(f"--- {token}: {traceback.format_exc()} {error.__notes__}")
"""


def test_a_push_that_cannot_work_ends_before_the_training(hub, without_token, data, tmp_path):
    (tmp_path / "there").mkdir()
    put(hub, "models", "org/there", tmp_path / "there")
    config, here = write_config(tmp_path, data), {"PYTHONPATH": str(ROOT)}
    printed = run(["-c", TRY, config, "", "hf_wrong", READ_TOKEN], tmp_path, without_token | here).stdout
    settings = environment(unreachable(), tmp_path / "home", **here)
    printed += run(["-c", TRY, config, TOKEN], tmp_path, settings).stdout
    errors = printed.split("--- ")[1:]
    for error, message in zip(errors, ["401", "401", "403", "Connection refused"], strict=True):
        assert message in error and "must take files for org/there before anything is trained" in error
    assert "'loss'" not in printed and not (tmp_path / "run" / "model.safetensors").exists()
    assert len(hub.repos["models", "org/there"].commits) == 1


def test_a_push_that_fails_midway_leaves_the_model_whole(weak_hub, with_token, data, tmp_path):
    weak_hub.failing["/api/models/org/lost/commit"] = 500
    config = write_config(tmp_path, data, save_strategy="steps", save_steps=1, hub_always_push=True)
    options = ["--push_to_hub", "--hub_model_id", "org/lost"]
    settings = with_token | {"PYTHONUNBUFFERED": "1"}
    into_one = "import os, sys, runpy\nos.dup2(1, 2)\nrunpy.run_path('train.py', run_name='__main__')"
    error = run(["-c", into_one, config, *options], ROOT, settings, fails=True).stdout
    # Pushes while training that fail are reported at once, the last one ends in an error.
    assert error.index("A push to org/lost while training failed") < error.index("'train_runtime'")
    assert "500 Internal Server Error" in error and f"The model is whole in {tmp_path / 'run'}" in error
    assert AlbefForPreTraining.from_pretrained(tmp_path / "run").config.projection_dim == 8
    assert (tmp_path / "run" / "all_results.json").is_file() and (tmp_path / "run" / "README.md").is_file()
    # The advice works, once the Hub does.
    advice = re.search(r"push it again with `hf (upload [^`]+)`", error)[1]
    weak_hub.failing.clear()
    hf(weak_hub, shlex.split(advice), tmp_path, settings)
    files = weak_hub.files("models", "org/lost")
    assert {"model.safetensors", "README.md", "modeling_albef.py"} <= set(files)
    assert not [path for path in files if path.startswith("checkpoint-")]


@pytest.mark.parametrize("trouble", ["no token", "no network", "fails midway", "no such name"])
def test_a_data_set_that_cannot_be_pushed(trouble, weak_hub, with_token, without_token, tmp_path):
    if trouble == "fails midway":
        weak_hub.failing["/api/datasets/org/refused/commit"] = 500
    settings = without_token if trouble == "no token" else with_token
    if trouble == "no network":
        settings = environment(unreachable(), tmp_path / "home")
    name = "not a name" if trouble == "no such name" else "org/refused"
    command = ["-m", "dataset_scripts.build", "scenes", "--output", tmp_path / "out", *SIZES, "--push-to-hub", name]
    error = run(command, ROOT, settings, fails=True).stderr
    assert "Traceback" not in error
    message = error[error.index("error: ") :]
    if trouble == "fails midway":
        assert f"{tmp_path / 'out'} is whole, but was not uploaded" in message and "500" in message
        assert len(datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "c"))) > 6
    else:
        assert f"nothing was built: the Hub does not take files for {name}" in message
        assert not (tmp_path / "out").exists()
