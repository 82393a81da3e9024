"""LoRA (Hu et al., arXiv 2106.09685): a few low-rank matrices are trained beside frozen weights, by peft.

What is saved are the adapters, the heads that were trained in full and the name of the base model; `from_pretrained` of
such a folder loads the base model and puts them in. `merge` writes a plain checkpoint that needs neither. Which layers
get adapters is in the family's record (`AdaptedModules`).
"""

import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from modeling_albef_amc.families.auto import (
    IN_PEFT,
    adapted_part,
    base_of,
    check_peft,
    load_grounding,
    load_model,
    load_processor,
    read_config,
)
from modeling_albef_amc.families.checkpoint_checks import check_safetensors
from modeling_albef_amc.families.family import AdaptedModules
from modeling_albef_amc.families.registry import FAMILIES

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What moves in training without a gradient, in a run's own checkpoints: no part of the adapters, but of going on.
MOMENTUM = "momentum.safetensors"


def add_adapters(
    model: PreTrainedModel,
    rank: int,
    alpha: float = 16.0,
    dropout: float = 0.0,
    pattern: str | None = None,
    revision: str | None = None,
) -> None:
    """Freezes `model` and puts trainable adapters into it, in place: its class stays.

    Args:
        alpha: adapters are scaled by alpha / rank. dropout: of what goes into them.
        pattern: regular expression of whole names in the base model, instead of the family's own.
        revision: branch, tag or commit that the base model is of, which is loaded with the adapters again.

    Raises:
        ValueError: the pattern fits no linear layer, or something else; the family has none of its own; the model
            has adapters already, or came from no checkpoint; dropout where it cannot be.
        ImportError: peft is missing.
    """
    check_peft("lora_rank needs")
    from peft import LoraConfig

    if model._hf_peft_config_loaded:
        raise ValueError(
            f"lora_rank begins new adapters, but {model.name_or_path} comes with some, which go on as they are: leave "
            "lora_rank out, or merge them first (albef-amc merge FOLDER --output MERGED)."
        )
    if not model.name_or_path:
        raise ValueError("lora_rank needs --model: adapters are saved without the frozen weights they belong to.")
    if model.config.model_type not in FAMILIES and pattern is None:
        raise ValueError(f"No modules are known to adapt in {model.config.model_type!r}: name them by lora_modules.")
    adapted = known_modules(model, pattern)
    target = whole_pattern(model, pattern or adapted.pattern, adapted.never)
    names = adapted_names(model, target, pattern or adapted.pattern)
    if dropout > 0 and model.config.model_type == "albef":
        checkpointed = [name for name in names if name.endswith((".intermediate", ".output"))]
        if checkpointed:
            raise ValueError(
                f"lora_dropout must be 0 with adapters in {checkpointed[0]}: ALBEF computes that layer again in the "
                "backward pass, where something else would be dropped."
            )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target,
        modules_to_save=[*adapted.heads] or None,
        revision=revision,
    )
    model.add_adapter(config)
    if Path(model.name_or_path).is_dir():  # as it was typed, it would be looked for wherever the adapters are loaded
        lora_config(model).base_model_name_or_path = str(Path(model.name_or_path).resolve())


def whole_pattern(model: PreTrainedModel, pattern: str, never: str | None) -> str:
    """For names in the model with its objectives as well as in its base model, which is loaded to ground."""
    prefix = model.base_model_prefix
    optional = rf"({re.escape(prefix)}\.)?" if prefix and hasattr(model, prefix) else ""
    return (rf"(?!{never})" if never else "") + rf"{optional}({pattern})"


def adapted_names(model: PreTrainedModel, target: str, pattern: str) -> list[str]:
    """Names of the layers that get adapters; `target` is for peft, `pattern` is what the user knows of it."""
    try:
        matched = {name: module for name, module in model.named_modules() if re.fullmatch(target, name)}
    except re.error as error:
        raise ValueError(f"lora_modules: {pattern!r} is no regular expression: {error}.") from error
    prefix = f"{model.base_model_prefix}."
    linear = [name.removeprefix(prefix) for name, module in model.named_modules() if type(module) is nn.Linear]
    if not matched:
        raise ValueError(
            f"lora_modules: {pattern!r} is the whole name of no module that can be adapted. Linear layers are named "
            f"like {linear[0]} and {linear[len(linear) // 2]}."
        )
    for name, module in matched.items():
        if type(module) is not nn.Linear:
            raise ValueError(
                f"lora_modules: {pattern!r} also names {name}, a {type(module).__name__}: only linear layers get "
                f"adapters, such as {linear[0]}."
            )
    return list(matched)


def train_adapters(model: PreTrainedModel) -> None:
    """Adapters that were loaded, and are frozen therefore, go on being trained; the rest stays frozen.

    Their folder has no momentum encoder: it begins as a copy of the encoder.
    """
    model.set_adapter(model.active_adapters())
    if known_modules(model).moving is not None:
        model.restart_momentum_encoder()


def lora_config(model: PreTrainedModel) -> "LoraConfig":
    (name,) = model.active_adapters()
    return model.peft_config[name]


def known_modules(model: PreTrainedModel, pattern: str | None = None) -> AdaptedModules:
    """What is known of the model's family; of an unknown one, the layers that `pattern` names."""
    family = FAMILIES.get(model.config.model_type)
    return AdaptedModules(pattern) if family is None else family.adapted


def save_moving(model: PreTrainedModel, folder: Path) -> None:
    """Saves what moves without a gradient beside the adapters, so that a run goes on as if nothing had been."""
    moving = known_modules(model).moving
    if moving is not None:
        tensors = chain(model.named_parameters(), model.named_buffers())
        save_file({name: value.detach() for name, value in tensors if re.fullmatch(moving, name)}, folder / MOMENTUM)


def load_checkpoint(model: PreTrainedModel, folder: Path) -> None:
    """Loads the adapters of a run's checkpoint, and what moved, into a model that has such adapters."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise ValueError(f"{folder} has no adapters ({ADAPTER_WEIGHTS}) to go on from: it was trained without LoRA.")
    for saved in (file, folder / MOMENTUM):
        if saved.is_file():
            check_safetensors(saved)
    (name,) = model.active_adapters()
    state = {key.removeprefix(IN_PEFT): value for key, value in load_file(file).items()}
    shapes = {key: value.shape for key, value in get_peft_model_state_dict(model, adapter_name=name).items()}
    if shapes != {key: value.shape for key, value in state.items()}:
        raise ValueError(f"The adapters in {folder} have another rank or sit in other modules: use the same lora_*.")
    set_peft_model_state_dict(model, state, adapter_name=name)
    if (folder / MOMENTUM).is_file():
        model.load_state_dict(load_file(folder / MOMENTUM), strict=False)


def merge(adapters: str, output: str | Path, **hub: Any) -> None:
    """Writes a plain checkpoint of the same values as base model and adapters, with its processor and its code.

    It is in float32, whatever the base is in: half precision would round off up to half of what was trained.
    `adapters` is a folder or Hub id, `hub` are its `hub_options`. ValueError: see `merge_into`; it has no adapters; or
    `output` exists and is not an empty folder: adapters left beside what was merged would be put in again.
    """
    output = Path(output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} exists and is not an empty folder: choose another.")
    base, base_hub = base_of(adapters, **hub)
    if base == adapters:
        read_config(adapters, **hub)  # says it where there is no such checkpoint
        raise ValueError(f"{adapters} has no adapters (adapter_config.json): there is nothing to merge.")
    model = load_model(base, training=True, **base_hub)
    load_grounding(model, adapters, **hub)
    part = merge_into(model, adapters, **hub)
    if known_modules(model).moving is not None:
        model.restart_momentum_encoder()
    processor = load_processor(adapters, model, **hub)
    # The base lacks heads, which are random then: adapters of the model inside are merged into that alone.
    for saved in (part if model.newly_initialized else model, processor):
        saved.save_pretrained(output)


def merge_into(model: PreTrainedModel, adapters: str, **hub: Any) -> PreTrainedModel:
    """Merges adapters into `model`, in place; they may be of the base model inside it, as `AlbefModel` is.

    Returns:
        What they are of, `model` or the base model inside.

    Raises:
        ValueError: they cannot be merged, or a tensor of theirs is missing or left over.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import load_peft_weights
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    config = PeftConfig.from_pretrained(adapters, **hub)
    if config.is_prompt_learning:
        raise ValueError(f"{adapters}: {config.peft_type.value} adapts a model's input, which cannot be merged.")
    renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    state = {}
    for name, value in load_peft_weights(adapters, device="cpu", **hub).items():
        inner = name.removeprefix(IN_PEFT)  # VeRA's shared matrices are in no module
        state[name if inner == name else IN_PEFT + rename_source_key(inner, renamings, [])[0]] = value
    part = adapted_part(model, state)
    adapted = PeftModel(part, config)
    if part is model and known_modules(model).moving is not None:
        model.drop_momentum_adapters()
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    problem, wrong = "lacks {}", outside_momentum(expected.keys() - state.keys())
    if not wrong:
        other = [name for name in expected if name in state and state[name].shape != expected[name].shape]
        problem, wrong = "has {} of another size than the base model's", outside_momentum(other)
    if not wrong:
        unused = set_peft_model_state_dict(adapted, state).unexpected_keys
        problem, wrong = "has {}, which fits no module", outside_momentum(unused)
    if wrong:
        raise ValueError(
            f"{adapters}: the file of the adapters {problem.format(min(wrong))}. It is damaged, or they are of another "
            f"model than {type(part).__name__}: get it again, or merge it by merge_and_unload of peft."
        )
    try:
        adapted.merge_and_unload(safe_merge=True)
    except RuntimeError as error:  # a bias for a layer that has none
        raise ValueError(f"{adapters}: peft cannot merge these: {error}") from error
    return part


def outside_momentum(names: Iterable[str]) -> list[str]:
    """Without those of the momentum encoder, which begins again as a copy, whatever the file has of it."""
    return [name for name in names if "momentum_encoder." not in name]
