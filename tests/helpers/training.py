"""What tests of the trainer share: a trainer with small settings, what watches and disturbs it."""

import copy
import math
from pathlib import Path

import torch
import yaml
from transformers import TrainerCallback

from tests.helpers.data import blip_processor, tiny_albef, tiny_dataset, tiny_processor  # noqa: F401  (test_lora has it from here)
from trainer.amc_config import AmcConfig
from trainer.amc_trainer import AmcTrainer
from trainer.data_collator import GroundingCollator
from trainer.streaming import StreamedRows

TINY_MODEL = {
    "vision_config": dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    ),
    "text_config": dict(
        hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, fusion_layer=1
    ),
    "projection_dim": 8,
    "queue_size": 12,
    "grounding_layer": 1,
}
RUN = dict(
    max_steps=3,
    warmup_steps=0,
    per_device_train_batch_size=4,
    per_device_eval_batch_size=4,
    mask_size=16,
    logging_steps=1,
    save_strategy="no",
    use_cpu=True,
    disable_tqdm=True,
)
# Losses and steps of their own: what a test is not about weighs nothing.
ONLY = {"itc_weight": 0, "itm_weight": 0, "mlm_weight": 0, "amc_mean_weight": 0, "amc_max_weight": 0}
ONLY |= {"klal_weight": 0, "region_loss": "both"}
OF_TRAINER = "phrases_per_image", "draw_heatmaps", "model_init", "compute_loss_func", "optimizers"


class FixedDraws:
    """A collator without chance: which words are masked depends on the record, negatives are the next row in a group of
    three, so that batches of three and the same rows as one batch have the same."""

    def __init__(self, collator: GroundingCollator):
        self.collator = collator

    def __call__(self, records):
        batch = self.collator(records)
        ids, mask_token = batch["input_ids"], self.collator.processor.tokenizer.mask_token_id
        numbers = torch.tensor([int(record["image_id"].split("-")[1]) for record in records])
        position = torch.arange(ids.shape[1])
        masked = ((position + numbers[:, None]) % 4 == 1) & (position > 0) & (batch["attention_mask"] == 1)
        masked &= (numbers < 3)[:, None]  # none in the later records
        batch["mlm_input_ids"] = ids.masked_fill(masked, mask_token)
        batch["mlm_labels"] = ids.masked_fill(~masked, -100)
        return batch

    @staticmethod
    def negatives(image_to_text: torch.Tensor, *_) -> tuple[torch.Tensor, torch.Tensor]:
        """In the place of the model's `choose_negatives`."""
        rows = torch.arange(len(image_to_text))
        group = len(rows) if len(rows) % 3 else 3
        start = rows // group * group
        following = start + (rows - start + 1) % group
        return following, following


class Poison:
    """A collator that puts NaN into one tensor of every batch with one of some images."""

    def __init__(self, collator, name: str, *image_ids: str):
        self.collator, self.name, self.image_ids = collator, name, image_ids

    def __call__(self, records):
        batch = self.collator(records)
        if any(record["image_id"] in self.image_ids for record in records):
            batch[self.name] = batch[self.name] * math.nan
        return batch


def training_logs(trainer: AmcTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


class Watcher(TrainerCallback):
    """Keeps the gradients before, and the weights after, every optimizer step."""

    def __init__(self):
        self.gradients, self.weights, self.optimizer = [], [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()})

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.weights.append(snapshot(model))
        self.optimizer.append(copy.deepcopy(optimizer.state_dict()["state"]))


def snapshot(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def collator_of(processor=None, **options) -> GroundingCollator:
    return GroundingCollator(processor or tiny_processor(), **{"mask_size": 16, "mlm_probability": 0.5, **options})


def make_trainer(
    folder, model=None, dataset=None, collator=None, watcher=None, trainer_class=AmcTrainer, **settings
) -> AmcTrainer:
    of_trainer = {name: settings.pop(name) for name in OF_TRAINER if name in settings}
    defaults = dict(
        per_device_train_batch_size=4,
        per_device_eval_batch_size=3,
        max_steps=2,
        warmup_steps=0,
        learning_rate=1e-2,
        max_grad_norm=1e6,
        logging_steps=1,
        save_strategy="no",
        train_sampling_strategy="sequential",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        alpha_ramp_epochs=0,
    )
    if isinstance(dataset, StreamedRows):
        defaults["train_sampling_strategy"] = "random"
    dataset = tiny_dataset() if dataset is None else dataset
    trainer = trainer_class(
        tiny_albef() if model is None and "model_init" not in of_trainer else model,
        AmcConfig(output_dir=str(folder), **{**defaults, **settings}),
        train_dataset=dataset,
        eval_dataset=dataset,
        data_collator=collator or collator_of(),
        callbacks=[watcher] if watcher else None,
        **of_trainer,
    )
    if isinstance(collator, FixedDraws):
        trainer.model.choose_negatives = collator.negatives
    return trainer


def write_yaml(folder: Path, **settings) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}))
    return str(path)
