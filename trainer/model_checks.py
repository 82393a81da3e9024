"""What a model must be to be trained, asked before anything is."""

import os
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from modeling_albef_amc.families.registry import FAMILIES
from modeling_albef_amc.families.training import has_own_objectives

from .amc_config import REGION_LOSSES, AmcConfig, weight_name

# By which `accelerate launch --dynamo_backend` asks for a compiled model.
COMPILER = "ACCELERATE_DYNAMO_BACKEND"


def check_device(args: AmcConfig, accelerator: Accelerator) -> None:
    """ValueError: a process has several GPUs, or a precision that its device does not compute in."""
    if args.n_gpu > 1:
        raise ValueError(
            f"One process would split its batches over {args.n_gpu} GPUs (DataParallel), which does not work here: "
            "start one process a GPU with `accelerate launch`, or show it one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    if accelerator.mixed_precision == "fp16" and not accelerator.native_amp:
        raise ValueError(f"fp16 does nothing on a {args.device.type.upper()}, which computes in float32: set bf16.")


def check_trained(model: nn.Module) -> None:
    """Refuses a model of which nothing would be trained, or what an optimizer's small steps would not move."""
    trained = {name: parameter.dtype for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError(
            "All weights of the model are frozen (requires_grad is False), so nothing would be trained: load "
            "adapters with is_trainable=True, enable those that are disabled, or load anew what was merged."
        )
    for name, dtype in trained.items():
        if dtype.itemsize < 4:
            raise ValueError(
                f"{name} is {dtype}, where most of an optimizer's steps are rounded off: load the model with "
                "dtype=torch.float32, or call its float(). To compute in half precision, set bf16 or fp16."
            )


def check_adapters(model: PreTrainedModel) -> None:
    """ValueError: transformers cannot save the adapters that are active."""
    if not model._hf_peft_config_loaded:
        return
    name, *others = model.active_adapters()
    if others:
        active = ", ".join([name, *others])
        raise ValueError(f"Several adapters are active, {active}, and only one can be saved: set_adapter chooses.")
    config = model.peft_config[name]
    if getattr(config, "save_projection", False):
        raise ValueError(
            f"{config.peft_type.value} adapters share random matrices, which transformers cannot save: set their "
            "save_projection to False, and they are drawn again by projection_prng_key."
        )
    if config.peft_type.value == "VBLORA":
        raise ValueError("VBLORA adapters share a bank of vectors, which transformers cannot save: take LoRA, say.")


def check_objectives(model: PreTrainedModel, args: AmcConfig) -> None:
    """Refuses a model that lacks what it would be trained by, or that cannot be compiled or checkpointed as asked."""
    options: Any = args.gradient_checkpointing_kwargs or {}  # also where activation_checkpointing_kwargs were set
    if args.gradient_checkpointing and options.get("use_reentrant") and args.uses_regions:
        raise ValueError(
            "gradient_checkpointing_kwargs: use_reentrant must be False: reentrant checkpointing cuts the graph back "
            "to the attention, by which regions are learned."
        )
    if args.neftune_noise_alpha is not None:
        try:
            model.get_input_embeddings()
        except NotImplementedError as error:
            name = type(model).__name__
            raise ValueError(f"neftune_noise_alpha must be None for {name}, which names no embeddings.") from error
    family = FAMILIES.get(model.config.model_type)
    losses = own_losses(model)
    if not args.uses_regions and not any(args.loss_weights[name] for name in losses):
        names = ", ".join(map(weight_name, losses))
        raise ValueError(
            f"{names} of {type(model).__name__} and those of regions are all 0: nothing is left to train on."
        )
    if has_own_objectives(model):
        return
    weights = [name for name in ("itc_weight", "mlm_weight") if getattr(args, name) > 0]
    if family is not None and family.training_class is not None and weights:
        raise ValueError(
            f"{type(model).__name__} has no ITC and no MLM: load {family.training_class} with from_pretrained, or set "
            f"{' and '.join(weights)} to 0 to train it by matching and AMC alone."
        )
    if args.torch_compile or os.environ.get(COMPILER, "no").lower() != "no":
        name = "torch_compile must be False" if args.torch_compile else f"{COMPILER}, of accelerate, must be no"
        raise ValueError(
            f"{name} for {type(model).__name__}: heatmaps are differentiated twice, which compiled code cannot be; "
            "only AlbefForPreTraining compiles what lies below them."
        )


def own_losses(model: PreTrainedModel) -> list[str]:
    """What it learns from phrases that are not absent, beside regions."""
    family = FAMILIES.get(model.config.model_type)
    if has_own_objectives(model):
        return ["loss_itc", "loss_itm", "loss_mlm"]
    return ["loss_itm"] if family is None else [*family.losses]


def measured(model: PreTrainedModel, args: AmcConfig) -> list[str]:
    """What an evaluation may have to choose the best checkpoint by."""
    is_computed = args.loss_weights if not has_own_objectives(model) else {}
    losses = [name for name in own_losses(model) if is_computed.get(name, 1)]
    losses += ["loss_absent", *REGION_LOSSES["both" if args.uses_klal else "amc"]]
    return ["loss", "pointing_game", "absent_auroc", *losses]


def learns_matching(model: PreTrainedModel) -> bool:
    """Whether it learns by ITM to tell right pairs from wrong ones, which dual encoders do by contrast alone."""
    family = FAMILIES.get(model.config.model_type)
    return has_own_objectives(model) or family is None or "loss_itm" in family.losses


def check_wrong_images(model: PreTrainedModel, args: AmcConfig, size: int, phrases_per_image: int) -> None:
    """Refuses micro-batches that may hold one image alone: matching would learn from them that everything fits."""
    if size <= phrases_per_image and args.itm_weight > 0 and learns_matching(model):
        found = ", which auto_find_batch_size comes to" if size != args.train_batch_size else ""
        raise ValueError(
            f"per_device_train_batch_size must be above phrases_per_image ({phrases_per_image}), not {size}{found}: "
            "matching (ITM) takes wrong images from the batch, whatever is accumulated, and would learn that "
            "everything fits. Take larger batches, fewer phrases of an image, or set itm_weight to 0."
        )
