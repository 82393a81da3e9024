"""A run that was killed and goes on ends as if nothing had been: bit by bit; and no checkpoint is half one."""

import errno
import json
import os
import re
import shutil
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import train
from tests.helpers.data import tiny_albef, tiny_dataset
from tests.helpers.models import TINY, tiny_blip
from tests.helpers.runs import everything, finish, kill, options, prepare, start
from tests.helpers.training import Poison, Watcher, collator_of, is_equal, make_trainer, snapshot
from tests.helpers.versions import resumes_processes
from trainer import checkpoints
from trainer.amc_trainer import AmcTrainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def two_steps(folder) -> Path:
    """A run that ended after two steps."""
    train.main(options(folder, "auto", max_steps=2, save_steps=2, resume_from_checkpoint="auto"))
    return folder / "auto"


@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        (1, {"dataloader_num_workers": 2, "gradient_accumulation_steps": 2, "phrases_per_image": 2, "bf16": "true"}),
        pytest.param(
            2, {"gradient_accumulation_steps": 2, "phrases_per_image": 2, "save_steps": 3}, marks=resumes_processes
        ),
        pytest.param(
            2,
            {"streaming": "true", "shuffle_buffer": 5, "dataloader_num_workers": 2, "phrases_per_image": 2},
            marks=resumes_processes,
        ),
    ],
)
def test_killed_and_gone_on_is_the_same(folder, processes, settings):
    """More than an epoch; killed after the first checkpoint, in the middle of an epoch, which may be the second.

    Of images whose phrases do not come together: test_machines.py.
    """
    per_epoch = -(-22 // (3 * processes * settings.get("gradient_accumulation_steps", 1)))
    settings = {"save_steps": 2, **settings}
    settings["max_steps"] = per_epoch + settings["save_steps"]
    name = "-".join([str(processes), *settings])
    finish(folder, f"straight{name}", processes, **settings)
    killed = start(folder, f"killed{name}", processes, **settings)
    wait_for_checkpoint(folder / f"killed{name}", killed)
    kill(killed)
    finish(folder, f"killed{name}", processes, **settings, resume_from_checkpoint="true")
    last = f"checkpoint-{settings['max_steps']}"
    expected, found = (everything(folder / f"{run}{name}" / last) for run in ("straight", "killed"))
    assert [key for key in expected if expected[key] != found.get(key)] == [] and expected.keys() == found.keys()
    kinds = {"model.safetensors", "optimizer.pt", "scheduler.pt"}
    assert kinds | {"rng_state.pth" if processes == 1 else "rng_state_1.pth"} <= {key.split(" ")[0] for key in found}
    assert any("queue_pointer" in key for key in found) and any("momentum_encoder" in key for key in found)
    logs = [log_of(folder / f"{run}{name}" / last) for run in ("straight", "killed")]
    assert logs[0] == logs[1]


def wait_for_checkpoint(run: Path, process) -> None:
    ends = time.monotonic() + 600
    while not checkpoints.checkpoints(run):
        assert process.poll() is None, "the run ended before there was a checkpoint"
        assert time.monotonic() < ends, "no checkpoint in ten minutes"
        time.sleep(0.02)


def log_of(checkpoint: Path) -> list[dict]:
    """Losses and learning rates of every step."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in entry.items() if k == "step" or "loss" in k or "rate" in k} for entry in history]


def test_another_seed_is_not_the_same(folder, two_steps):
    """That the comparison above can fail."""
    train.main(options(folder, "seed", max_steps=2, save_steps=2, seed=1))
    one, other = (everything(run / "checkpoint-2") for run in (two_steps, folder / "seed"))
    assert one.keys() == other.keys() and sum(one[key] != other[key] for key in one) > 100


class Killed(BaseException):
    """As far as the code can see, the process is gone: no handler of exceptions runs."""


@pytest.mark.parametrize("at", ["_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch, at):
    trainer = make_trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=1)
    original = getattr(AmcTrainer, at)

    def stop(self, *args):
        if self.state.global_step == 4:
            raise Killed
        original(self, *args)

    monkeypatch.setattr(AmcTrainer, at, stop)
    with pytest.raises(Killed):
        trainer.train()
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-2"]
    assert list((tmp_path / "checkpoint-4").iterdir())
    monkeypatch.undo()
    assert checkpoints.resumed(tmp_path, "auto") == str(tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-4").exists()
    again = make_trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=1)
    again.train(resume_from_checkpoint=True)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]


@pytest.mark.parametrize("cut", [0, 100])
def test_a_checkpoint_lacks_the_random_state_of_a_process_until_it_is_written(tmp_path, cut):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoints.begin(checkpoint, 2)
    (checkpoint / checkpoints.STATE).write_text("{}")
    for process in range(2):
        assert not checkpoints.is_complete(checkpoint)
        file = checkpoint / f"rng_state_{process}.pth"
        torch.save({"cpu": torch.random.get_rng_state()}, file)
        whole = file.read_bytes()
        file.write_bytes(whole[:cut])
        assert not checkpoints.is_complete(checkpoint)
        file.write_bytes(whole)
    assert checkpoints.is_complete(checkpoint)
    (checkpoint / checkpoints.STATE).write_text("{")
    assert not checkpoints.is_complete(checkpoint)


def test_a_kill_while_deleting_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=1)

    def stop(folder):
        next(folder.glob("*.json")).unlink()
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", stop)
    with pytest.raises(Killed):
        trainer.train()
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-4"]


@pytest.mark.parametrize("what", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64")])
def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(tmp_path, monkeypatch, what):
    trainer = make_trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    save = torch.save

    def full(*args, **kwargs):
        if trainer.state.global_step == 4:
            raise what
        save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(type(what)) as raised:
        trainer.train()
    (note,) = raised.value.__notes__
    assert re.search(r"checkpoint-4 could not be saved.*checkpoint-2 is complete: make room", note)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-2"]
    assert not (tmp_path / "checkpoint-4").exists(), "what was written keeps the disk full"
    monkeypatch.undo()
    make_trainer(tmp_path, max_steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


class Deadly:
    """A collator whose worker is killed in its ninth batch, as by a system without memory."""

    epoch = 0

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, records):
        if any(record["image_id"] == "scene-35" for record in records):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.collator(records)


def test_a_worker_of_the_loader_that_dies_ends_the_run_but_what_was_trained_is_saved(tmp_path):
    given = dict(dataset=tiny_dataset(40), collator=Deadly(collator_of()), max_steps=10, dataloader_num_workers=1)
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* is killed|exited unexpectedly") as raised:
        make_trainer(tmp_path, **given, dataloader_prefetch_factor=1).train()
    (saved,) = checkpoints.checkpoints(tmp_path)
    assert str(tmp_path) in raised.value.__notes__[-1]
    again = make_trainer(tmp_path, **given | {"collator": collator_of()})
    again.train(resume_from_checkpoint=str(saved))
    assert again.state.global_step == 10


def test_rotation_spares_the_newest_and_the_best(tmp_path):
    for step in (2, 10, 4, 8):
        checkpoints.begin(tmp_path / f"checkpoint-{step}", 1)
        (tmp_path / f"checkpoint-{step}" / checkpoints.STATE).write_text("{}")
    (tmp_path / "checkpoint-x").mkdir()
    newest, best = (tmp_path / f"checkpoint-{step}" for step in (10, 2))
    names = [path.name for path in checkpoints.checkpoints(tmp_path)]
    assert names == ["checkpoint-2", "checkpoint-4", "checkpoint-8", "checkpoint-10"]
    checkpoints.rotate(tmp_path, None, newest)
    assert len(checkpoints.checkpoints(tmp_path)) == 4
    checkpoints.rotate(tmp_path, 1, newest, str(best), None)
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-10"]


@pytest.mark.parametrize("limit", [None, 1])
def test_the_best_checkpoint_is_kept_and_known_by_its_place(tmp_path, limit):
    given = dict(eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="eval_loss")
    given |= dict(max_steps=6, save_strategy="steps", save_steps=2, save_total_limit=limit)
    # By the highest loss: the first one.
    trainer = make_trainer(tmp_path, **given, learning_rate=0.003, greater_is_better=True)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best == tmp_path / "checkpoint-2"
    left = ["checkpoint-2"] if limit else ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == left


@pytest.mark.parametrize("pattern", ["checkpoint-1", "checkpoint-1/*.safetensors"])
def test_without_the_best_checkpoint_the_last_weights_are_kept(tmp_path, caplog, pattern):
    """It is deleted while the run goes on."""

    class Tidy(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                for path in [*tmp_path.glob(pattern)]:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    given = dict(eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, metric_for_best_model="eval_loss")
    given |= dict(max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1, greater_is_better=True)
    trainer = make_trainer(tmp_path, **given, learning_rate=0.003, watcher=Tidy())
    trainer.train()
    last = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in last.items())
    assert f"{tmp_path}/checkpoint-1, the best checkpoint, was deleted" in caplog.text
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluations["eval"].metrics["loss"] == losses[2] < losses[0]  # which the card says
    trainer.save_model()
    assert (tmp_path / "model.safetensors").is_file()


class Stopping(TrainerCallback):
    """Interrupts the fourth step, by Ctrl-C or SIGTERM, at one of its events."""

    def __init__(self, event: str, number: int):
        self.number = number
        setattr(self, event, self.stop)

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 3 and self.number == signal.SIGINT:  # which may be ignored here
            raise KeyboardInterrupt
        if state.global_step == 3:
            signal.raise_signal(self.number)


def run_of_six(folder: Path, per_epoch: int, **settings) -> AmcTrainer:
    """The teacher, which is not its student's copy, moves once in a step."""
    torch.manual_seed(0)
    model = tiny_albef(momentum=0.9)
    for part in (model.config.text_config, model.config.vision_config):
        part.hidden_dropout_prob = part.attention_probs_dropout_prob = 0.1
    with torch.no_grad():
        for parameter in model.momentum_encoder.parameters():
            parameter.mul_(1.5)
    given = dict(max_steps=6, save_strategy="steps", save_steps=6, train_sampling_strategy="random")
    return make_trainer(folder, model, tiny_dataset(4 * per_epoch), **given, **settings)


@pytest.fixture(scope="module", params=[2, 3])
def whole(request, tmp_path_factory) -> tuple[int, dict[str, str]]:
    """How many steps an epoch has, and what a run comes to that is not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run_of_six(folder, request.param).train()
    return request.param, everything(folder / "checkpoint-6")


@pytest.mark.parametrize(
    ("event", "number", "last"),
    [
        ("on_step_begin", signal.SIGINT, 3),
        ("on_pre_optimizer_step", signal.SIGINT, 3),
        ("on_step_begin", signal.SIGTERM, 4),
    ],
)
def test_a_run_that_is_stopped_saves_its_last_whole_step(whole, tmp_path, event, number, last):
    """In the middle of an epoch and at its beginning."""
    per_epoch, expected = whole
    handler = signal.getsignal(signal.SIGTERM)
    stopped = run_of_six(tmp_path, per_epoch, watcher=Stopping(event, number), enable_jit_checkpoint=True)
    with nullcontext() if number == signal.SIGTERM else pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == [f"checkpoint-{last}"]
    run_of_six(tmp_path, per_epoch).train(resume_from_checkpoint=True)
    found = everything(tmp_path / "checkpoint-6")
    assert [key for key in expected if expected[key] != found.get(key)] == [] and expected.keys() == found.keys()


@pytest.mark.parametrize(
    "settings",
    [
        {"watcher": Stopping("on_step_begin", signal.SIGINT)},
        {"watcher": Stopping("on_pre_optimizer_step", signal.SIGINT)},
        {"watcher": Stopping("on_optimizer_step", signal.SIGINT)},
        {"collator": Poison(collator_of(), "masks", "scene-12"), "max_bad_steps": 1},
    ],
)
def test_a_run_that_is_stopped_in_its_first_step_writes_nothing(tmp_path, settings):
    """What it went on from, in the middle of an epoch, stays as it is: nothing is unsaved."""
    given = dict(dataset=tiny_dataset(16), save_strategy="steps", save_steps=3)
    make_trainer(tmp_path, **given, max_steps=3).train()
    before = {path: path.read_bytes() for path in tmp_path.glob("checkpoint-*/*")}
    with pytest.raises((KeyboardInterrupt, FloatingPointError)) as raised:
        make_trainer(tmp_path, **given, max_steps=6, **settings).train(resume_from_checkpoint=True)
    assert {path: path.read_bytes() for path in tmp_path.glob("checkpoint-*/*")} == before
    assert not getattr(raised.value, "__notes__", [])


@pytest.mark.parametrize("family", ["albef", *TINY])
def test_every_family_goes_on_in_the_middle_of_an_epoch(tmp_path, family):
    """With dropout, over several batches a step; whatever its weights are called in the file."""

    def begin(run, **settings):
        model = tiny_albef() if family == "albef" else TINY[family]()  # of other weights each time
        for dropout in (module for module in model.modules() if isinstance(module, torch.nn.Dropout)):
            dropout.p = 0.1
        given = dict(dataset=tiny_dataset(32), collator=collator_of(mlm_probability=0.0), mlm_weight=0.0)
        given |= dict(max_steps=2, gradient_accumulation_steps=2, save_strategy="steps", save_steps=1, **settings)
        return make_trainer(tmp_path / run, model, **given)

    watcher = Watcher()
    straight, resumed = begin("straight", watcher=watcher), begin("resumed")
    straight.train()
    checkpoint = str(tmp_path / "straight" / "checkpoint-1")
    resumed.train(resume_from_checkpoint=checkpoint)
    assert is_equal(straight.model.state_dict(), resumed.model.state_dict())
    resumed.state.best_model_checkpoint = checkpoint
    resumed._load_best_model()
    assert is_equal(watcher.weights[0], resumed.model.state_dict())


def frozen_albef(part: str):
    model = tiny_albef()
    model.albef.get_submodule(part).requires_grad_(False)
    return model


def test_equally_many_other_weights_are_not_gone_on_with(tmp_path):
    make_trainer(tmp_path, frozen_albef("vision_model.layers.0"), save_strategy="steps", save_steps=2).train()
    with pytest.raises(ValueError, match="trained other weights of the model, although as many: set freeze"):
        other = frozen_albef("vision_model.layers.1")
        make_trainer(tmp_path, other, max_steps=4).train(resume_from_checkpoint=True)


def test_data_without_a_length_are_gone_on_with_in_their_first_pass(tmp_path):
    """Of three batches. After it, they can be begun anew."""

    def begin(folder, **settings):
        rows = tiny_dataset(10).to_iterable_dataset()
        settings |= dict(save_strategy="steps", save_steps=1, lr_scheduler_type="constant")
        return make_trainer(tmp_path / folder, dataset=rows, **settings)

    watcher = Watcher()
    begin("straight", watcher=watcher, max_steps=5).train()
    for step in (1, 2):
        resumed = begin(f"from {step}", max_steps=3)
        resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / f"checkpoint-{step}"))
        assert is_equal(watcher.weights[2], snapshot(resumed.model))
    checkpoint = str(tmp_path / "straight" / "checkpoint-4")
    with pytest.raises(ValueError, match="went 1 times over data without a length, and its place in them is not"):
        begin("refused", max_steps=5).train(resume_from_checkpoint=checkpoint)
    again = begin("again", max_steps=5, ignore_data_skip=True)
    again.train(resume_from_checkpoint=checkpoint)
    assert again.state.global_step == 5 and again.data_collator.epoch == 1


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (tiny_albef, {"optim": "adafactor"}, "an optimizer with .*betas.* Adafactor has .*clip_threshold.* set optim"),
        (tiny_albef, {"optim": "sgd"}, "an optimizer with .*betas.* SGD has momentum.* set optim as it was"),
        # By hand: a matrix, which decays, and a bias.
        (
            lambda: frozen_albef("text_projection"),
            {},
            r"trained 157 tensors \(\[57, 100\].* trains 155 \(\[56, 99\]\): set model, freeze and lo",
        ),
        (lambda: tiny_albef(queue_size=9), {}, r"another model: image_id_queue is \(12,\) there and \(9,\) here: go"),
        (tiny_blip, {"mlm_weight": 0.0}, "checkpoint-2 is of type 'albef', the model of 'blip': go on with the model"),
    ],
)
def test_what_a_run_does_not_go_on_with_is_named(tmp_path, model, settings, message):
    make_trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    before = {path: path.read_bytes() for path in tmp_path.glob("checkpoint-*/*")}
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, model(), max_steps=4, **settings).train(resume_from_checkpoint=True)
    assert {path: path.read_bytes() for path in tmp_path.glob("checkpoint-*/*")} == before
    with pytest.raises(ValueError, match=r"there is no folder .*checkpoint-9"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


def test_weights_alone_are_not_gone_on_from(tmp_path):
    settings = dict(save_strategy="steps", save_steps=1, max_steps=2)
    make_trainer(tmp_path, save_only_model=True, **settings).train()
    with pytest.raises(ValueError, match=r"checkpoint-2 has no optimizer and schedule to go on with \(save_only_model"):
        make_trainer(tmp_path, **settings).train(resume_from_checkpoint=True)


def test_a_run_that_begins_anew_does_not_mix_with_another(tmp_path):
    """It would go on from the newer checkpoints of the one before."""
    settings = dict(save_strategy="steps", save_steps=2)
    first = make_trainer(tmp_path, **settings)
    for _ in range(2):  # of one trainer, whose caller knows
        first.train()
    again = make_trainer(tmp_path, **settings)
    with pytest.raises(ValueError, match=r"checkpoint-2 is of an earlier run.* choose another output_dir, or delete"):
        again.train()
    checkpoints.discard(tmp_path / "checkpoint-2")
    again.train()


def test_auto_begins_or_goes_on(folder, two_steps):
    train.main(options(folder, "auto", max_steps=4, save_steps=2, resume_from_checkpoint="auto"))
    state = json.loads((two_steps / "checkpoint-4" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4]
    assert checkpoints.resumed(two_steps, "false") is None
    with pytest.raises(ValueError, match=r"no checkpoint in .* to go on from"):
        train.main(options(folder, "none", resume_from_checkpoint="true"))


class Watching:
    """A collator that notes the epoch of each batch."""

    epoch = 0

    def __init__(self):
        self.seen = []

    def __call__(self, records):
        self.seen.append(self.epoch)
        return collator_of()(records)


def test_the_collator_learns_the_epoch(tmp_path):
    collator = Watching()
    make_trainer(tmp_path, dataset=tiny_dataset(8), collator=collator, max_steps=5).train()
    assert collator.seen == [0, 0, 1, 1, 2, 2]  # two batches an epoch, and one read ahead
