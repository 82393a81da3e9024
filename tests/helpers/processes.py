"""What several processes of test_distributed.py run, and one process alone on the joined batch.

torchrun --nproc_per_node NUMBER tests/helpers/processes.py FOLDER WHAT

Each process leaves what it found in FOLDER/rank-N.pt.
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset, Image
from torch import distributed
from torch.distributed.fsdp import fully_shard

from dataset_scripts.features import FEATURES
from modeling_albef_amc.modeling_albef_pretraining import gather_rows
from tests.helpers.data import scattered_boxes, tiny_albef, tiny_dataset, tiny_records
from tests.helpers.models import CHECKPOINTING, TINY
from tests.helpers.training import FixedDraws, Watcher, collator_of, make_trainer, training_logs
from trainer.fsdp import left_out
from trainer.loss_means import count_items
from trainer.process_group import end_process_group

ROWS = 12
ABSENT, WITHOUT_REGION = (6, 7, 8), (4, 9, 10, 11)  # of four processes, the third and the fourth have nothing else
COMBINED = dict(gradient_accumulation_steps=2, bf16=True, **{CHECKPOINTING: True})
OFF = dict(itc_weight=0.0, itm_weight=0.0)


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
    """Two steps of the same batch, then evaluations of 11 and 5 rows."""
    torch.manual_seed(0)
    watcher = Watcher()
    options = dict(max_steps=2, learning_rate=1e-3, per_device_train_batch_size=ROWS // num_processes)
    trainer = make_trainer(folder, tiny_albef(), data(), Draws(collator_of()), watcher, **options | settings)
    trainer.eval_data_collator = collator_of(mlm_probability=0.0)
    trainer.train()
    held_out = tiny_dataset(11, phrases_per_image=2).map(scattered_boxes, with_indices=True)
    return {
        "gradients": watcher.gradients,
        "weights": watcher.weights,
        "logs": training_logs(trainer),
        "metrics": trainer.evaluate(held_out),
        "few": trainer.evaluate(held_out.select(range(5))),
        "points": trainer.predict(held_out).predictions[0],
    }


def steps(folder: Path, rank: int, number: int) -> dict:
    return {
        "plain": two_steps(folder / "plain", number),
        "combined": two_steps(folder / "combined", number, **COMBINED),
    }


def by_dual_encoder(folder: Path, family: str, per_device: int, accumulation: int = 1) -> dict:
    """The gradients of a step whose pairs are all contrasted with each other."""
    torch.manual_seed(0)
    watcher = Watcher()
    options = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation, "max_steps": 1}
    rows = tiny_dataset(6, without_region=(3, 5))
    make_trainer(folder, TINY[family](), rows, collator_of(), watcher, mlm_weight=0.0, **options).train()
    return watcher.gradients[0]


def with_checkpointing(folder: Path, family: str) -> float:
    """The loss of the third step, where parameters have no gradient: of MLM, of BLIP's other heads."""
    model = tiny_albef() if family == "albef" else TINY[family]()
    options = dict(mlm_weight=0.0, max_steps=3, per_device_train_batch_size=2, **{CHECKPOINTING: True})
    trainer = make_trainer(folder, model, tiny_dataset(12), collator_of(mlm_probability=0.0), **options)
    trainer.train()
    return training_logs(trainer)[-1]["loss"]


def rows_without_a_length(folder: Path) -> dict:
    """The rows that a process trains on, of an IterableDataset; and what evaluation says of it."""
    seen, collator = [], collator_of()

    def noting(records):
        seen.extend(record["phrase"] for record in records)
        return collator(records)

    rows = tiny_dataset(8).to_iterable_dataset()
    trainer = make_trainer(folder, tiny_albef(), rows, noting, per_device_train_batch_size=2, max_steps=2)
    trainer.train()
    try:
        trainer.evaluate()
    except ValueError as error:
        return {"seen": seen, "error": str(error)}


def pair(folder: Path, rank: int, number: int) -> dict:
    """Of two processes: everything else."""
    own = torch.arange(12.0).reshape(6, 2)[: 2 + 4 * rank] + 100 * rank
    return {
        "off": two_steps(folder / "off", number, **OFF),
        "dual": {family: by_dual_encoder(folder / family, family, 1, accumulation=3) for family in ("clip", "siglip")},
        "checkpointed": {
            family: with_checkpointing(folder / f"again-{family}", family) for family in ("albef", "blip")
        },
        "iterable": rows_without_a_length(folder / "iterable"),
        "gathered": [gather_rows(rows) for rows in (own, own[:, 0].long(), own[: 3 * rank])],
    }


def sharded(folder: Path, rank: int, number: int) -> dict:
    """Gradients after `fully_shard` of the image encoder's layers and the root; of one process, without it."""
    torch.manual_seed(0)
    model = tiny_albef()
    trainer = make_trainer(folder, model, data(), Draws(collator_of()))
    share = ROWS // number
    batch = trainer.data_collator(list(data().select(range(share * rank, share * (rank + 1)))))
    totals = count_items([batch])
    if number > 1:
        totals = {name: trainer.accelerator.reduce(total) for name, total in totals.items()}
        mesh = distributed.init_device_mesh("cpu", (number,))
        for layer in model.albef.vision_model.layers:
            fully_shard(layer, mesh=mesh)
        ignored = {parameter for module in left_out(model, None) for parameter in module.parameters()}
        fully_shard(model, mesh=mesh, ignored_params=ignored)
    model.train()
    trainer.compute_loss(model, batch, num_items_in_batch=totals).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in gradients.items()}


if __name__ == "__main__":
    folder, what = Path(sys.argv[1]), {"steps": steps, "pair": pair, "sharded": sharded}[sys.argv[2]]
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.save(what(folder, rank, distributed.get_world_size()), folder / f"rank-{rank}.pt")
    distributed.barrier()
    end_process_group()
