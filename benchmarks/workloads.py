"""What is measured: models of random weights, batches, and the evaluation and training step of this project."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks import baseline
from benchmarks.measure import peak_bytes
from modeling_albef_amc import (
    AlbefConfig,
    AlbefForPreTraining,
    AlbefImageProcessorPil,
    AlbefModel,
    AlbefProcessor,
    explain_function,
    heatmap_points,
    tokenizer_from_texts,
)
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
    """Sizes of everything; the defaults are ALBEF base and the paper's images. Lengths are in tokens with [CLS]."""

    config: dict[str, Any] = field(default_factory=dict)  # of AlbefConfig
    image_sizes: dict[str, int] = field(default_factory=lambda: {"256px": 256, "384px": 384})
    target_size: tuple[int, int] = (375, 500)  # height and width that maps are brought to
    phrase_lengths: tuple[int, ...] = (5, 7, 9)  # in turn
    max_images: int = 8  # of an evaluation batch
    max_phrases: int = 64
    caption_length: int = 25  # of the training step
    masked_words: int = 4
    batch_size: int = 8
    matrix_size: int = 2048  # of the products that measure the machine


FULL = Scale()
# A GPU wants more at a time; 64 is the paper's batch.
LARGE = replace(FULL, batch_size=64, max_images=32, max_phrases=448, matrix_size=8192)
# For the tests: the same paths in a second, of weights so large that attention is far from uniform.
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "initializer_range": 0.2}
QUICK_CONFIG = {
    "vision_config": TINY | {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
    "text_config": TINY | {"num_hidden_layers": 5, "fusion_layer": 2, "vocab_size": 1100},
    "projection_dim": 8,
    "queue_size": 64,
    "grounding_layer": 3,
    "initializer_range": 0.2,
}
QUICK = Scale(QUICK_CONFIG, {"256px": 32, "384px": 48}, (30, 40), caption_length=8, batch_size=4, matrix_size=64)


def scale_of(device: torch.device, quick: bool) -> Scale:
    return QUICK if quick else LARGE if device.type == "cuda" else FULL


def precision(device: torch.device, bf16: bool) -> AbstractContextManager:
    """bfloat16 as by `--bf16` of training and evaluation."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()


def build_albef(scale: Scale, device: torch.device, pretraining: bool = False) -> AlbefModel | AlbefForPreTraining:
    """With random weights; for pre-training in training mode."""
    model_class = AlbefForPreTraining if pretraining else AlbefModel
    return model_class(AlbefConfig(**scale.config)).to(device).train(pretraining)


def save_albef(scale: Scale, folder: str, pretraining: bool = False, texts: Sequence[str] = ()) -> None:
    """A checkpoint of random weights with its processor, which knows the words of the texts."""
    model = build_albef(scale, torch.device("cpu"), pretraining)
    model.save_pretrained(folder)
    num_words = model.config.text_config.vocab_size - len(tokenizer_from_texts(texts))
    tokenizer = tokenizer_from_texts([*texts, *(f"word{index}" for index in range(num_words))])
    size = dict.fromkeys(("height", "width"), model.config.vision_config.image_size)
    AlbefProcessor(AlbefImageProcessorPil(size=size), tokenizer).save_pretrained(folder)


def words(scale: Scale, num_phrases: int, length: int) -> torch.Tensor:
    return torch.randint(FIRST_WORD, AlbefConfig(**scale.config).text_config.vocab_size, (num_phrases, length))


def evaluation_batch(scale: Scale, device: torch.device, size: str, num_images: int, num_phrases: int) -> Batch:
    """`num_phrases` phrases for each of `num_images` images, padded on the right; `size` is "256px" or "384px"."""
    lengths = [scale.phrase_lengths[index % len(scale.phrase_lengths)] for index in range(num_phrases)]
    lengths = torch.tensor(lengths * num_images)
    attention_mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    pixels = scale.image_sizes[size]
    batch = {
        "pixel_values": torch.randn(num_images, 3, pixels, pixels),
        "input_ids": words(scale, *attention_mask.shape) * attention_mask,
        "attention_mask": attention_mask,
        "image_index": torch.arange(num_images).repeat_interleave(num_phrases),
        "target_sizes": torch.tensor(scale.target_size).expand(len(lengths), 2),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def heatmaps_of(model: AlbefModel, batch: Batch, bf16: bool = False) -> torch.Tensor:
    """(num_phrases, rows, columns), as evaluation computes them."""
    with precision(model.device, bf16):
        return batch_heatmaps(model, explain_function(model), batch)


def evaluate(model: AlbefModel, batch: Batch, bf16: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Heatmaps, and points (num_phrases, 2) in pixels of the images."""
    heatmaps = heatmaps_of(model, batch, bf16)
    return heatmaps, heatmap_points(heatmaps, batch["target_sizes"])


def score(model: AlbefModel, batch: Batch, bf16: bool = False) -> torch.Tensor:
    """The match logits of the same batch, nothing explained."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "target_sizes"}
    with torch.no_grad(), precision(model.device, bf16):
        return model(**inputs).itm_logits


def training_batch(scale: Scale, device: torch.device) -> Batch:
    """Full captions, one an image, a quarter of each image as the region, 15 % of the words masked."""
    pixels, count = scale.image_sizes["256px"], scale.batch_size
    input_ids = words(scale, count, scale.caption_length)
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


def training_losses(model: AlbefForPreTraining, batch: Batch, alpha: float, amc: bool = True) -> Batch:
    """The losses of a step as `AmcTrainer` computes them; the momentum encoders and queues move."""
    (targets,) = step_targets(model, [batch])
    inputs = {name: tensor for name, tensor in batch.items() if name != "masks"}
    outputs = model(**inputs, alpha=alpha, output_heatmaps=amc, **targets)
    losses = {name: outputs[name] for name in ("loss_itc", "loss_itm", "loss_mlm")}
    return losses | (attention_mask_consistency_loss(outputs.heatmaps, batch["masks"]) if amc else {})


def total_loss(losses: Batch) -> torch.Tensor:
    return torch.stack([AMC_WEIGHTS.get(name, 1.0) * loss for name, loss in losses.items()]).sum()


class TrainingStep:
    """One optimizer step, without loading and logging; that of the baseline neither clips gradients nor fuses AdamW."""

    def __init__(
        self,
        model: AlbefForPreTraining,
        batch: Batch,
        losses: Callable[..., Batch] = training_losses,
        bf16: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
    ):
        self.model, self.batch, self.losses, self.bf16 = model, batch, losses, bf16
        self.is_plain = losses is baseline.training_losses
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        how = {"foreach": False, "fused": False} if self.is_plain else {"fused": True}
        self.optimizer = optimizer or torch.optim.AdamW(self.parameters, lr=1e-5, weight_decay=0.02, **how)

    def loss(self) -> torch.Tensor:
        with precision(self.model.device, self.bf16):
            return total_loss(self.losses(self.model, self.batch, ALPHA))

    def __call__(self) -> None:
        self.loss().backward()
        if not self.is_plain:
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def training_memory(variant: str, device: str, quick: bool, batch_size: int | None = None) -> int:
    """Bytes at the peak of two steps, the second of which has the optimizer's state; "baseline", "checkpointing", …"""
    place = torch.device(device)
    scale = scale_of(place, quick)
    scale = replace(scale, batch_size=batch_size or scale.batch_size)
    model, batch = build_albef(scale, place, pretraining=True), training_batch(scale, place)
    if variant == "checkpointing":
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # the older name
    losses = baseline.training_losses if variant == "baseline" else training_losses
    step = TrainingStep(model, batch, losses, variant == "bf16")
    step()
    step()
    return peak_bytes(place)
