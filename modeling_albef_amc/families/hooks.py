"""What the functions of model families share: hooks for one pass, a graph that begins late, wrappers taken off."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from ..gradcam import PhraseAttention, resolve_image_index, uncompiled


class Pass(NamedTuple):
    """What the function of a family is called with; the same as of `Family.explain`, checked and filled in.

    - `attention_mask`, of ones where none was given; `image_index`: None where phrase i belongs to image i.
    - `image_embeds`: of `Family.encode_images`, or None.
    """

    model: PreTrainedModel
    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    image_index: torch.Tensor | None
    create_graph: bool
    layer: int
    image_embeds: torch.Tensor | None = None

    def own_images(self, of_images: torch.Tensor) -> torch.Tensor:
        """(num_images, …) → (num_phrases, …)"""
        return of_images if self.image_index is None else of_images[self.image_index]

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        patch_size = getattr(self.model.config, "vision_config", self.model.config).patch_size
        return self.pixel_values.shape[2] // patch_size, self.pixel_values.shape[3] // patch_size


def family_function(
    layers: Callable[[PreTrainedModel], Sequence[int]], explanation: Literal["itm", "itc"], share: float = 2 / 3
) -> Callable[[Callable[[Pass], PhraseAttention]], Callable[..., PhraseAttention]]:
    """Makes `Family.explain` of a function of a `Pass`, for models in wrappers and callers without gradients too.

    It runs eagerly in a compiled model: its score is differentiated by an attention inside it.

    Args:
        layers: what `layer` may be. share: how far up the default is; 1: the last.
        explanation: the score that the family has.
    """
    own_explanation = explanation

    def decorate(function: Callable[[Pass], PhraseAttention]) -> Callable[..., PhraseAttention]:
        def explain(
            model: PreTrainedModel,
            pixel_values: torch.Tensor,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor | None = None,
            image_index: torch.Tensor | None = None,
            create_graph: bool = False,
            layer: int | None = None,
            explanation: str = own_explanation,
            image_embeds: torch.Tensor | None = None,
        ) -> PhraseAttention:
            if explanation != own_explanation:
                raise ValueError(f"explanation {explanation!r}: this family is explained by {own_explanation!r} only.")
            model = unwrapped(model)
            known = layers(model)
            layer = known[min(int(share * len(known)), len(known) - 1)] if layer is None else layer
            if layer not in known:
                raise ValueError(f"layer {layer} is none of this model's: choose one of {', '.join(map(str, known))}.")
            if attention_mask is not None and not attention_mask[:, 0].all():
                raise ValueError("A phrase is padded on the left, which the model does not read: pad on the right.")
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            image_index = resolve_image_index(pixel_values, input_ids, image_index)
            given = Pass(model, pixel_values, input_ids, mask, image_index, create_graph, layer, image_embeds)
            with torch.enable_grad():
                return function(given)

        explain.__name__, explain.__doc__ = function.__name__, function.__doc__
        explain = uncompiled(explain)
        explain.layers = layers
        return explain

    return decorate


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
