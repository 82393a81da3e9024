"""A training step waits for no GPU, and makes every tensor on the model's device: found out without one.

The step runs on tensors without data, of the device "meta", which take the ways of a GPU in the code. They refuse to
meet tensors of the CPU, and to give away what a GPU would have to be waited for: a number, or the size of a result.
What is not in here: after the losses, Trainer and `AmcTrainer` ask whether the loss and the norm of the gradient are
finite; several processes tell each other how many pairs they have; a loss is looked at until it has had an example.
transformers' own Idefics 3, SmolVLM, Gemma 3, Mistral 3, Qwen-VL and Kosmos-2 wait in their forward pass.
"""

from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset, Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from dataset_scripts.features import FEATURES
from modeling_albef_amc.modeling_albef_pretraining import parted
from tests.helpers.data import PHRASES, tiny_albef, tiny_processor, tiny_records
from tests.helpers.models import CHECKPOINTING, TINY, tiny_family_processor
from tests.helpers.training import collator_of, make_trainer
from tests.helpers.versions import needs
from trainer.amc_trainer import AmcTrainer
from trainer.data_collator import Counted
from trainer.loss_means import ITEMS

GPU = torch.device("meta")
NO_DATA = needs("torch>=2.13", "tensors without data in all that a step does")


class Transfers(TorchDispatchMode):
    """Refuses copies from the GPU, and those to it that wait until it has done all before."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        if name == "_local_scalar_dense" and args[0].device.type == "cpu":
            return 1  # which is at hand
        result = function(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], result)
            goes_on = target.device == GPU and (kwargs.get("non_blocking") or args[2:] == (True,))
            if source.device != target.device and not goes_on:
                raise RuntimeError(f"{name} from {source.device} to {target.device}")
        return result


class Values(TorchFunctionMode):
    """Refuses tensors of numbers from Python on the GPU, which are copied there likewise."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") == GPU and args[0] != []:
            raise RuntimeError(f"{args[0]} to {GPU}")
        return function(*args, **kwargs)


def records() -> list[dict]:
    """Two phrases an image, one without a region, two absent."""
    rows = tiny_records(16, without_region=(1, 4, 6), phrases_per_image=2)
    for absent in (1, 6):
        rows[absent]["absent"] = True
    return rows


def trainer_of(folder, **settings) -> AmcTrainer:
    dataset = Dataset.from_list(records(), features=FEATURES).cast_column("image", Image(decode=False))
    return make_trainer(folder, dataset=dataset, **settings)


def step_on_gpu(trainer: AmcTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a step, its targets, losses and gradients."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # there is none of "meta"
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def on_gpu(value):
        return tree_map_only(torch.Tensor, lambda each: mode.from_tensor(each.detach().to(GPU)), value)

    batches = on_gpu(list(trainer.get_train_dataloader()))
    for module in trainer.model.modules():
        weights = {name: each for name, each in module._parameters.items() if each is not None}
        module._parameters |= {name: nn.Parameter(on_gpu(each), each.requires_grad) for name, each in weights.items()}
        module._buffers |= on_gpu(module._buffers)
    trainer.model.tie_weights()
    monkeypatch.setitem(vars(trainer.args), "_setup_devices", GPU)
    monkeypatch.setitem(trainer.accelerator.state.__dict__, "device", GPU)
    trainer.trained_losses |= {*ITEMS}  # the first step with an example of a loss waits to see that
    with mode, Transfers(), Values():
        step, num_items = trainer.get_batch_samples(iter(batches), trainer.args.gradient_accumulation_steps, GPU)
        for trainer.current_gradient_accumulation_steps in [len(step)]:
            losses = [trainer.training_step(trainer.model, batch, num_items) for batch in step]
    assert len(losses) == trainer.args.gradient_accumulation_steps
    assert {loss.device for loss in losses} == {GPU}
    assert {each.grad.device for each in trainer.model.parameters() if each.grad is not None} == {GPU}


ALBEF = {
    "everything": dict(region_loss="both"),
    "released code": dict(amc_reduction="batch", model=dict(mlm_distillation_axis="sequence")),
    "phrases of an image": dict(phrases_per_image=2, train_sampling_strategy="random"),
    "micro-batches": dict(gradient_accumulation_steps=2),
    "checkpointing": {CHECKPOINTING: True},
}


@NO_DATA
@pytest.mark.parametrize("name", ALBEF)
def test_albef(tmp_path, monkeypatch, name):
    settings = dict(ALBEF[name])
    step_on_gpu(trainer_of(tmp_path, model=tiny_albef(**settings.pop("model", {})), **settings), monkeypatch)


@NO_DATA
@pytest.mark.parametrize("family", ["clip", "siglip", "blip", "llava"])
def test_other_families(tmp_path, monkeypatch, family):
    processor = tiny_family_processor(family, [*PHRASES, "very small here"])
    settings = dict(collator=collator_of(processor, mlm_probability=0), gradient_accumulation_steps=2)
    step_on_gpu(trainer_of(tmp_path, model=TINY[family](), **settings), monkeypatch)


@NO_DATA
@pytest.mark.parametrize(
    "wait",
    [
        lambda loss: loss.item(),
        lambda loss: loss if loss > 0 else -loss,
        lambda loss: loss[None][loss[None] > 0],
        lambda loss: loss.expand(3).unique(),
        lambda loss: loss.cpu(),
        lambda loss: torch.tensor([1.0], device=loss.device),
        lambda loss: loss.expand(2) * torch.ones(2),
    ],
    ids=["item", "if", "indexing", "unique", "from the GPU", "to the GPU", "on the CPU"],
)
def test_what_waits_is_found(tmp_path, monkeypatch, wait):
    class Waiting(AmcTrainer):
        def compute_loss(self, *args, **kwargs):
            loss = super().compute_loss(*args, **kwargs)
            wait(loss)
            return loss

    with pytest.raises(Exception, match=r"local_scalar_dense|nonzero|unique|_to_copy from|to meta|two devices"):
        step_on_gpu(trainer_of(tmp_path, trainer_class=Waiting), monkeypatch)


@pytest.mark.parametrize("chosen", [[True, False, True], [False], [True], [False, True, True, False] * 9, []])
def test_rows_are_parted(chosen):
    rows = range(len(chosen))
    expected = [[row for row in rows if chosen[row]], [row for row in rows if not chosen[row]]]
    for count in (None, sum(chosen)):
        assert [part.tolist() for part in parted(torch.tensor(chosen, dtype=torch.bool), count)] == expected


@pytest.mark.parametrize("training", [True, False])
def test_numbers_that_are_known_change_nothing(training):
    """The batch is counted as its collator leaves it, whichever that is."""
    model, collator = tiny_albef().train(training), Counted(collator_of(tiny_processor(), seed=1))
    batch = collator(records()[:6])
    is_true = ~batch["is_absent"]
    told = {name: batch.pop(name) for name in ("num_absent", "num_masked")}
    assert told == {"num_absent": 1, "num_masked": (batch["mlm_labels"][is_true] != -100).sum()}
    assert set(Counted(lambda records: {"input_ids": torch.ones(2, 3)})([])) == {"input_ids", "num_absent"}
    names = "pixel_values", "input_ids", "attention_mask", "image_index", "image_ids", "is_absent"
    batch = {name: batch[name] for name in (*names, "mlm_input_ids", "mlm_labels")}
    state, found = {name: value.clone() for name, value in model.state_dict().items()}, []
    for more in ({}, told):
        model.load_state_dict(state)
        torch.manual_seed(0)
        output = model(**batch, **more)
        found.append([output[name] for name in output if name.startswith(("loss", "mlm_logits"))] + [*model.buffers()])
        found[-1] = [each.clone() for each in found[-1]]
    assert len(found[0]) == 11 and all(map(torch.equal, *found))
