"""What is measured: models of random weights, batches, and the evaluation and training step of this project."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks import baseline
from modeling_albef_amc import AlbefConfig, AlbefForPreTraining, AlbefModel, explain_function, heatmap_points
from modeling_albef_amc.families.training import step_targets
from trainer.amc_config import AmcConfig
from trainer.amc_loss import attention_mask_consistency_loss
from trainer.evaluation import batch_heatmaps

Batch = dict[str, torch.Tensor]
ALPHA = AmcConfig.alpha
AMC_WEIGHTS = {"loss_amc_mean": AmcConfig.amc_mean_weight, "loss_amc_max": AmcConfig.amc_max_weight}
MASK_TOKEN, FIRST_WORD = 103, 1000


@dataclass(frozen=True)
class Scale:
    """Sizes of everything; the defaults are ALBEF base and the paper's images.

    Args:
        config: settings of `AlbefConfig`.
        image_sizes: of the rows "256px" and "384px", in pixels. photo_size: height and width that maps are brought to.
        phrase_lengths: in tokens with [CLS], taken in turn. caption_length: of the training step.
        max_images, max_phrases: of an evaluation batch.
        matrix_size: rows of the matrices whose product is the measure of the machine.
    """

    config: dict[str, Any] = field(default_factory=dict)
    image_sizes: dict[str, int] = field(default_factory=lambda: {"256px": 256, "384px": 384})
    photo_size: tuple[int, int] = (375, 500)
    phrase_lengths: tuple[int, ...] = (5, 7, 9)
    caption_length: int = 25
    masked_words: int = 4
    batch_size: int = 8
    max_images: int = 8
    max_phrases: int = 64
    matrix_size: int = 2048
    small_queue: int = 1024


FULL = Scale()
# For the tests: the same paths in a second, of weights so large that attention is far from uniform.
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "initializer_range": 0.2}
QUICK = Scale(
    config={
        "vision_config": TINY | {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        "text_config": TINY | {"num_hidden_layers": 5, "fusion_layer": 2, "vocab_size": 1100},
        "projection_dim": 8,
        "queue_size": 64,
        "grounding_layer": 3,
        "initializer_range": 0.2,
    },
    image_sizes={"256px": 32, "384px": 48},
    photo_size=(30, 40),
    caption_length=8,
    masked_words=2,
    batch_size=4,
    max_phrases=28,
    matrix_size=64,
    small_queue=16,
)


# A GPU wants more at a time; 64 is the paper's batch.
LARGE = replace(FULL, batch_size=64, max_images=32, max_phrases=448, matrix_size=8192)


def scale_of(device: torch.device, quick: bool) -> Scale:
    if quick:
        return QUICK
    return LARGE if device.type == "cuda" else FULL


def precision(device: torch.device, bf16: bool) -> AbstractContextManager:
    """bfloat16 as `--bf16` of train.py and `albef-amc evaluate` has it."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()


def grounding_model(scale: Scale, device: torch.device) -> AlbefModel:
    return AlbefModel(AlbefConfig(**scale.config)).to(device).eval()


def pretraining_model(scale: Scale, device: torch.device, **overrides) -> AlbefForPreTraining:
    return AlbefForPreTraining(AlbefConfig(**scale.config | overrides)).to(device).train()


def words(config: AlbefConfig, num_phrases: int, length: int) -> torch.Tensor:
    return torch.randint(FIRST_WORD, config.text_config.vocab_size, (num_phrases, length))


def phrase_lengths(scale: Scale, num_phrases: int) -> list[int]:
    return [scale.phrase_lengths[index % len(scale.phrase_lengths)] for index in range(num_phrases)]


def evaluation_batch(scale: Scale, device: torch.device, size: str, num_images: int, num_phrases: int) -> Batch:
    """`num_phrases` phrases for each of `num_images` images, padded on the right.

    Args:
        size: a key of `scale.image_sizes`.
    """
    lengths = torch.tensor(phrase_lengths(scale, num_phrases) * num_images)
    attention_mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    pixels = scale.image_sizes[size]
    batch = {
        "pixel_values": torch.randn(num_images, 3, pixels, pixels),
        "input_ids": words(AlbefConfig(**scale.config), *attention_mask.shape) * attention_mask,
        "attention_mask": attention_mask,
        "image_index": torch.arange(num_images).repeat_interleave(num_phrases),
        "target_sizes": torch.tensor(scale.photo_size).expand(len(lengths), 2),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def heatmaps_of(model: AlbefModel, batch: Batch, bf16: bool = False) -> torch.Tensor:
    """(num_phrases, rows, columns), as `albef-amc evaluate` computes them."""
    with precision(model.device, bf16):
        return batch_heatmaps(model, explain_function(model), batch)


def evaluate(model: AlbefModel, batch: Batch, bf16: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Heatmaps, and points (num_phrases, 2) in pixels of the photos."""
    heatmaps = heatmaps_of(model, batch, bf16)
    return heatmaps, heatmap_points(heatmaps, batch["target_sizes"])


def score(model: AlbefModel, batch: Batch, bf16: bool = False) -> torch.Tensor:
    """The match logits of the same batch, nothing explained."""
    names = "pixel_values", "input_ids", "attention_mask", "image_index"
    with torch.no_grad(), precision(model.device, bf16):
        return model(**{name: batch[name] for name in names}).itm_logits


def training_batch(scale: Scale, device: torch.device, batch_size: int | None = None) -> Batch:
    """Full captions, one an image, a quarter of each image as the region, 15 % of the words masked."""
    count = batch_size or scale.batch_size
    pixels = scale.image_sizes["256px"]
    input_ids = words(AlbefConfig(**scale.config), count, scale.caption_length)
    is_masked = torch.zeros_like(input_ids, dtype=torch.bool)
    is_masked[:, 1 : 1 + scale.masked_words] = True
    masks = torch.zeros(count, pixels, pixels)
    masks[:, : pixels // 2, : pixels // 2] = 1
    batch = {
        "pixel_values": torch.randn(count, 3, pixels, pixels),
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "image_ids": torch.arange(count),
        "mlm_input_ids": input_ids.masked_fill(is_masked, MASK_TOKEN),
        "mlm_labels": input_ids.masked_fill(~is_masked, -100),
        "masks": masks,
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def total_loss(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([AMC_WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items()]).sum()


class TrainingStep:
    """One optimizer step as `AmcTrainer` takes it, without loading and logging.

    Args:
        model: in training mode. batch: from `training_batch`.
        optimizer: to share its state between steps of other settings; none: the one that `AmcConfig` has by default.
    """

    def __init__(
        self,
        model: AlbefForPreTraining,
        batch: Batch,
        optimizer: torch.optim.Optimizer | None = None,
        amc: bool = True,
        bf16: bool = False,
    ):
        self.model, self.batch, self.amc, self.bf16 = model, batch, amc, bf16
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = optimizer or torch.optim.AdamW(self.parameters, lr=1e-5, weight_decay=0.02, fused=True)

    def __call__(self) -> None:
        targets = self.momentum()
        loss = total_loss(self.losses(targets))
        loss.backward()
        self.update()

    def momentum(self) -> Any:
        with precision(self.model.device, self.bf16):
            (targets,) = step_targets(self.model, [self.batch])
        return targets

    def losses(self, targets: Any) -> dict[str, torch.Tensor]:
        inputs = dict(self.batch)
        masks = inputs.pop("masks")
        with precision(self.model.device, self.bf16):
            outputs = self.model(**inputs, alpha=ALPHA, output_heatmaps=self.amc, **targets)
            losses = {name: outputs[name] for name in ("loss_itc", "loss_itm", "loss_mlm")}
            if self.amc:
                losses |= attention_mask_consistency_loss(outputs.heatmaps, masks)
        return losses

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class BaselineStep:
    """One step of the plain implementation: no clipping, AdamW parameter by parameter. Arguments as above."""

    def __init__(
        self,
        model: AlbefForPreTraining,
        batch: Batch,
        optimizer: torch.optim.Optimizer | None = None,
        bf16: bool = False,
    ):
        self.model, self.batch, self.bf16 = model, batch, bf16
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = optimizer or torch.optim.AdamW(
            parameters, lr=1e-5, weight_decay=0.02, foreach=False, fused=False
        )

    def __call__(self) -> None:
        with precision(self.model.device, self.bf16):
            losses = baseline.training_losses(self.model, self.batch, ALPHA)
        total_loss(losses).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
