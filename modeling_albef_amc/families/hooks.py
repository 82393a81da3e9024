"""What the functions of model families share: hooks for one pass, a graph that begins late, wrappers taken off."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import torch
from torch import nn

from ..gradcam import PhraseAttention, uncompiled


def chosen_layer(layer: int | None, num_layers: int, default: int) -> int:
    """
    Raises:
        ValueError: there is no such layer.
    """
    layer = default if layer is None else layer
    if not 0 <= layer < num_layers:
        raise ValueError(f"layer {layer} is none of this model's: choose one of 0..{num_layers - 1}.")
    return layer


@contextmanager
def record_attention(module: nn.Module, index: int = 1) -> Iterator[list[torch.Tensor]]:
    """Records output `index` of `module` while the block runs; the hook is gone afterwards, whatever happens.

    Yields: a list to which every forward pass of `module` appends its tensor, still in the graph.
    """
    recorded: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda module, inputs, output: recorded.append(output[index]))
    try:
        yield recorded
    finally:
        handle.remove()


@contextmanager
def graph_from(module: nn.Module, create_graph: bool, rows: torch.Tensor | None = None) -> Iterator[None]:
    """A forward pass in here is cheap below `module`: nothing is remembered for gradients until it runs.

    Args:
        create_graph: remember everything all the same, down to the parameters.
        rows: (num_phrases,), which row of `module`'s hidden states each phrase goes on with; None: each its own.
    """

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        states = args[0] if args else kwargs["hidden_states"]
        states = states if rows is None else states[rows]
        torch.set_grad_enabled(True)  # until the end of the block
        # A graph needs something that requires a gradient, even where all parameters are frozen.
        states = states if states.requires_grad else states.detach().requires_grad_()
        return ((states, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": states})

    handle = module.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        with torch.set_grad_enabled(create_graph):
            yield
    finally:
        handle.remove()


@contextmanager
def without_dropout(attention: nn.Module) -> Iterator[None]:
    """Switches off the dropout of attention probabilities: the model returns those that were left after it.

    Args:
        attention: a module whose `dropout` or `attention_dropout` is a probability or an `nn.Dropout`.
    """
    owner, name = attention, "dropout" if hasattr(attention, "dropout") else "attention_dropout"
    if isinstance(getattr(owner, name), nn.Dropout):
        owner, name = getattr(owner, name), "p"
    before = getattr(owner, name)
    setattr(owner, name, 0.0)
    try:
        yield
    finally:
        setattr(owner, name, before)


def family_function(function: Callable[..., PhraseAttention]) -> Callable[..., PhraseAttention]:
    """Makes the function of a model family work for models in wrappers, and for callers without gradients.

    It runs eagerly in a compiled model: its score is differentiated by an attention inside it.
    """
    function = uncompiled(function)

    @wraps(function)
    def explain(model: nn.Module, *args, **kwargs) -> PhraseAttention:
        return function(unwrapped(model), *args, **kwargs)

    return explain


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of `torch.compile` and peft, with the adapters that are in it.

    Raises:
        ValueError: peft's adapters are not in the model, but in its input (prompt learning).
    """
    model = getattr(model, "_orig_mod", model)
    if hasattr(model, "get_base_model"):
        if model.active_peft_config.is_prompt_learning:
            raise ValueError(f"{model.active_peft_config.peft_type} adapts a model's input: only LoRA and its like do.")
        return unwrapped(model.get_base_model())
    return model


def check_padded_right(attention_mask: torch.Tensor | None) -> None:
    """
    Raises:
        ValueError: a phrase is padded on the left, where the model would look for its first token.
    """
    if attention_mask is not None and not attention_mask[:, 0].all():
        raise ValueError("A phrase is padded on the left, which the model does not read: set padding_side='right'.")
