"""What FSDP must be told of a model."""

import re

import torch
from torch import distributed, nn
from transformers import PreTrainedModel


def whole_scalars(model: PreTrainedModel) -> nn.ParameterList:
    """The parameters without a dimension, such as temperatures, which FSDP cannot shard and must be told to leave out.

    Every process keeps them whole; their gradient is made the mean over the processes here, as FSDP does of the others.
    """
    scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
    for parameter in scalars:
        if parameter.requires_grad:
            parameter.register_hook(mean_over_processes)
    return nn.ParameterList(scalars)


def mean_over_processes(gradient: torch.Tensor) -> torch.Tensor:
    gradient = gradient / distributed.get_world_size()
    distributed.all_reduce(gradient)
    return gradient


def left_out(model: PreTrainedModel, chosen: str | list[nn.Module] | None) -> list[nn.Module]:
    """The modules that FSDP leaves whole: those that the user chose, frozen ones (momentum encoders), and the scalars.

    Args:
        chosen: `fsdp_ignored_modules` of accelerate's configuration, modules or a regular expression of their names.
    """
    if isinstance(chosen, str):
        chosen = [module for name, module in model.named_modules() if re.fullmatch(chosen, name)]
    frozen = [part for part in model.children() if not any(p.requires_grad for p in part.parameters())]
    return [*(chosen or []), *frozen, whole_scalars(model)]
