"""What test_many_processes.py runs in several processes, and alone on the joined batch."""

import sys
from pathlib import Path

import torch
from datasets import Dataset, Image
from torch import distributed
from torch.distributed.fsdp import fully_shard

from dataset_scripts.features import FEATURES
from tests.helpers.data import tiny_albef, tiny_records
from tests.helpers.training import FixedDraws, Watcher, collator_of, make_trainer
from trainer.fsdp import left_out
from trainer.loss_means import count_items
from trainer.process_group import end_process_group

ROWS = 12
ABSENT, WITHOUT_REGION = (6, 7, 8), (4, 9, 10, 11)  # of four processes, the third and the fourth have nothing else


class Draws(FixedDraws):
    """No word of an absent phrase is masked."""

    def __call__(self, records):
        batch = super().__call__(records)
        batch["mlm_labels"][batch["is_absent"]] = -100
        return batch


def data() -> Dataset:
    records = tiny_records(ROWS, without_region=(*ABSENT, *WITHOUT_REGION))
    for row in ABSENT:
        records[row]["absent"] = True
    return Dataset.from_list(records, features=FEATURES).cast_column("image", Image(decode=False))


def two_steps(folder: Path, num_processes: int, **settings) -> dict:
    torch.manual_seed(0)
    watcher = Watcher()
    options = dict(max_steps=2, learning_rate=1e-3, logging_steps=1, per_device_train_batch_size=ROWS // num_processes)
    trainer = make_trainer(folder, tiny_albef(), data(), Draws(collator_of()), watcher, **options | settings)
    trainer.train()
    return {
        "gradients": watcher.gradients,
        "weights": watcher.weights,
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
    }


def sharded(folder: Path, rank: int, num_processes: int) -> dict:
    """`fully_shard` of the image encoder's layers and the root, in which the explained layers stay."""
    torch.manual_seed(0)
    model = tiny_albef()
    trainer = make_trainer(folder, model, data(), Draws(collator_of()))
    records = data()
    share = ROWS // num_processes
    batch = trainer.data_collator([records[row] for row in range(share * rank, share * rank + share)])
    totals = count_items([batch])
    if num_processes > 1:
        totals = {name: trainer.accelerator.reduce(total) for name, total in totals.items()}
        mesh = distributed.init_device_mesh("cpu", (num_processes,))
        for layer in model.albef.vision_model.layers:
            fully_shard(layer, mesh=mesh)
        ignored = {parameter for module in left_out(model, None) for parameter in module.parameters()}
        fully_shard(model, mesh=mesh, ignored_params=ignored)
    model.train()
    trainer.compute_loss(model, batch, num_items_in_batch=totals).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: whole(gradient) for name, gradient in gradients.items()}


def whole(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


def main(folder: Path, what: str) -> None:
    distributed.init_process_group("gloo")
    rank, number = distributed.get_rank(), distributed.get_world_size()
    if what == "sharded":
        found = sharded(folder / "run", rank, number)
    else:
        found = {
            "plain": two_steps(folder / "plain", number),
            "combined": two_steps(folder / "combined", number, **COMBINED),
        }
    torch.save(found, folder / f"rank-{rank}.pt")
    distributed.barrier()


COMBINED = dict(gradient_accumulation_steps=2, bf16=True, gradient_checkpointing=True)

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    end_process_group()
