"""What the functions of model families share: hooks for one pass, a graph that begins late, wrappers taken off."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

PASSES: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


@contextmanager
def explained_attention(
    start: nn.Module, attention: nn.Module, create_graph: bool, rows: torch.Tensor | None = None
) -> Iterator[list[torch.Tensor]]:
    """The probabilities of `attention`, recorded as of `record_attention`, in a graph from `start` on.

    They were left after dropout, which is off: the model returns no others.
    """
    with (
        graph_from(start, create_graph, rows),
        without_dropout(attention, is_recomputed=getattr(start, "gradient_checkpointing", False)),
        record_attention(attention) as recorded,
    ):
        yield recorded


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
def without_dropout(attention: nn.Module, is_recomputed: bool = False) -> Iterator[None]:
    """The dropout of attention probabilities, an `nn.Dropout` or a number, is off in here.

    Raises ValueError: it is on where activation checkpointing would compute them once more, out of here.
    """
    owner, name = attention, "dropout" if hasattr(attention, "dropout") else "attention_dropout"
    if isinstance(getattr(owner, name), nn.Dropout):
        owner, name = getattr(owner, name), "p"
    before = getattr(owner, name)
    if before and is_recomputed and attention.training:
        raise ValueError(
            f"Activation checkpointing would compute the explained attention once more with its dropout of {before}: "
            "set the attention's dropout to 0 in the model's configuration."
        )
    setattr(owner, name, 0.0)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def own_pass(model: nn.Module) -> Iterator[None]:
    """The model's own forward pass, not that of `groundable`, and for one thread at a time: hooks of two would meet."""
    with (
        PASSES.setdefault(model, threading.RLock()),
        replaced_forward(model, MethodType(type(model).forward, model)),
        named_outputs(model),
        uncompiled_parts(model),
        quantised_layers(model),
        onloaded(model),
    ):
        yield


@contextmanager
def named_outputs(model: nn.Module) -> Iterator[None]:
    """What its parts return in here is read by names, also where a configuration says `return_dict=False`."""
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    configs = {id(part.config): part.config for part in parts if vars(part.config).get("return_dict") is False}
    for config in configs.values():
        config.return_dict = True
    try:
        yield
    finally:
        for config in configs.values():
            config.return_dict = False


@contextmanager
def uncompiled_parts(model: nn.Module) -> Iterator[None]:
    """The model, and each part of it, runs eagerly in here, compiled in place or in the wrapper of `torch.compile`.

    What a hook records inside of compiled code is not what the score is computed from.
    """
    before = []
    for module in model.modules():
        is_wrapper = "_orig_mod" in module._modules
        name, eager = ("forward", module._orig_mod.__call__) if is_wrapper else ("_compiled_call_impl", None)
        if getattr(module, name) is not eager:
            before.append((module, name, getattr(module, name)))
            setattr(module, name, eager)
    try:
        yield
    finally:
        for module, name, compiled in before:
            setattr(module, name, compiled)


@contextmanager
def quantised_layers(model: nn.Module) -> Iterator[None]:
    """In here, no gradient comes through torch's dynamic quantisation without an error, instead of a part of it."""
    # By name: where torch has them no more, no model has either.
    name = "torch.ao.nn.quantized.dynamic.modules.linear"
    layers = [module for module in model.modules() if type(module).__module__ == name]
    handles = [
        layer.register_forward_hook(lambda _, inputs, output: NoGradient.apply(*inputs, output)) for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class NoGradient(torch.autograd.Function):
    """What a layer without a gradient made of its input."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return output.detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> None:
        raise ValueError(
            "The score has no gradient through layers of dynamic quantisation, which a heatmap needs: ask for scores "
            "alone (output_points=False) or for method='attention', or explain the model that it was made of."
        )


def check_input(model: nn.Module, is_right: torch.Tensor, message: str) -> None:
    """ValueError: not all is right. In training on a GPU, which is not waited for, an assertion of the device fails."""
    if model.training and is_right.device.type not in ("cpu", "mps"):
        torch._assert_async(is_right.all(), message)
    elif not is_right.all():
        raise ValueError(message)


def tensor_on(device: torch.device, values: list) -> torch.Tensor:
    """`torch.tensor(values, device=device)`, which would wait until a GPU has done all that it was given before."""
    return torch.tensor(values).to(device, non_blocking=True)


def with_own_forward(function: Callable) -> Callable:
    """`function`, which takes a model first and may call it, in an `own_pass` of it."""

    @wraps(function)
    def run(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with own_pass(unwrapped(model)):
            return function(model, *args, **kwargs)

    return run


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable) -> Iterator[None]:
    """`module` runs `forward` in here, inside accelerate's hooks where it has some."""
    name = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
    before = vars(module).get(name)
    setattr(module, name, forward)
    try:
        yield
    finally:
        if before is None:
            delattr(module, name)
        else:
            setattr(module, name, before)


@contextmanager
def onloaded(*modules: nn.Module) -> Iterator[None]:
    """Own parameters of these can be used in here without calling them, also where accelerate has offloaded them."""
    hooked = [module for module in modules if hasattr(module, "_hf_hook")]
    # Of a pass that they are in the middle of: where its inputs were.
    devices = [getattr(module._hf_hook, "input_device", None) for module in hooked]
    for module in hooked:
        module._hf_hook.pre_forward(module)
    try:
        yield
    finally:
        for module, device in zip(hooked, devices):
            module._hf_hook.post_forward(module, None)
            module._hf_hook.input_device = device


def words_begin_graph(model: nn.Module) -> list[RemovableHandle]:
    """What words are embedded as begins a graph, even where all parameters are frozen, until the hooks are removed."""

    def begin(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        # A copy, since some models add to it in place, which a leaf does not allow.
        return output.requires_grad_().clone() if output.is_leaf else output

    return [module.register_forward_hook(begin) for module in model.modules() if isinstance(module, nn.Embedding)]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of `torch.compile` and peft, with the adapters that are in it, not in its input."""
    model = getattr(model, "_orig_mod", model)
    if is_in_peft(model):
        config = model.peft_config[model.active_adapters[0]]
        if config.is_prompt_learning:
            raise ValueError(f"{config.peft_type} adapts a model's input: only LoRA and its like do.")
        return unwrapped(model.base_model.model)
    return model


def is_in_peft(model: nn.Module) -> bool:
    """Whether it is a wrapper of peft's, the one for adapters of several kinds (`mixed`) too."""
    return hasattr(model, "get_base_model") or type(model).__name__ == "PeftMixedModel"
