"""What the two processes of test_distributed.py run.

torchrun --nproc_per_node 2 tests/helpers/two_processes.py FOLDER

Each process leaves what it found in FOLDER/rank-N.pt; the tests compare that with one process.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import distributed

from modeling_albef_amc.modeling_albef_pretraining import gather_rows
from tests.helpers.data import scattered_boxes, tiny_albef, tiny_dataset, tiny_processor
from tests.helpers.models import TINY
from tests.helpers.training import FixedDraws, Watcher, collator_of, make_trainer
from trainer.process_group import end_process_group


def model_and_data():
    """Three rows a process: the first one's have a region and masked words, of the other's just one a region."""
    torch.manual_seed(0)
    return tiny_albef(), tiny_dataset(6, without_region=(3, 5))


def settings(per_device: int) -> dict:
    return dict(per_device_train_batch_size=per_device, max_steps=2, learning_rate=1e-3, logging_steps=1)


def by_trainer(folder: Path, per_device: int, **more) -> dict:
    """Two steps of the same batch by `AmcTrainer`, then an evaluation of 11 rows."""
    model, dataset = model_and_data()
    watcher = Watcher()
    trainer = make_trainer(folder, model, dataset, FixedDraws(collator_of()), watcher, **settings(per_device), **more)
    trainer.eval_data_collator = collator_of(tiny_processor(), mlm_probability=0.0)
    trainer.train()
    held_out = tiny_dataset(11, phrases_per_image=2).map(scattered_boxes, with_indices=True)
    metrics = trainer.evaluate(held_out)
    return {
        "gradients": watcher.gradients,
        "weights": watcher.weights,
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        "metrics": metrics,
        "points": trainer.predict(held_out).predictions[0],
    }


def by_dual_encoder(folder: Path, family: str, per_device: int, accumulation: int = 1) -> dict:
    """The gradients of a step whose pairs are all contrasted with each other."""
    torch.manual_seed(0)
    watcher = Watcher()
    options = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation, "max_steps": 1}
    data = tiny_dataset(6, without_region=(3, 5))
    make_trainer(folder, TINY[family](), data, collator_of(), watcher, mlm_weight=0.0, **options).train()
    return watcher.gradients[0]


def with_checkpointing(folder: Path, family: str) -> float:
    """The loss of the third step, where parameters have no gradient: of MLM, of BLIP's other heads."""
    model = tiny_albef() if family == "albef" else TINY[family]()
    options = dict(mlm_weight=0.0, activation_checkpointing=True, max_steps=3, per_device_train_batch_size=2)
    trainer = make_trainer(folder, model, tiny_dataset(12), collator_of(mlm_probability=0.0), **options)
    trainer.train()
    return trainer.state.log_history[-2]["loss"]


def rows_without_a_length(folder: Path) -> dict:
    """The rows that a process trains on, of an IterableDataset; and what evaluation says of it."""
    seen, collator = [], collator_of()

    def noting(records):
        seen.append([record["phrase"] for record in records])
        return collator(records)

    rows = tiny_dataset(8).to_iterable_dataset()
    trainer = make_trainer(folder, tiny_albef(), rows, noting, per_device_train_batch_size=2, max_steps=2)
    trainer.train()
    try:
        trainer.evaluate()
    except ValueError as error:
        return {"seen": seen, "error": str(error)}


def main(folder: Path) -> None:
    distributed.init_process_group("gloo")
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    assert world_size == 2
    found = {
        "world_size": world_size,
        "by_trainer": by_trainer(folder / "run", 3),
    }
    found["without_itc_and_itm"] = by_trainer(folder / "off", 3, itc_weight=0.0, itm_weight=0.0)
    found["dual"] = {
        family: by_dual_encoder(folder / family, family, 1, accumulation=3) for family in ("clip", "siglip")
    }
    found["checkpointed"] = {
        family: with_checkpointing(folder / f"checkpointed-{family}", family) for family in ("albef", "blip")
    }
    found["iterable"] = rows_without_a_length(folder / "iterable")
    own = torch.arange(12.0).reshape(6, 2)[: 2 + 4 * rank] + 100 * rank
    found["gathered"] = {
        "unequal": gather_rows(own),
        "flat": gather_rows(own[:, 0].long()),
        "one is empty": gather_rows(own[: 3 * rank]),
    }
    torch.save(found, folder / f"rank-{rank}.pt")
    distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end_process_group()
