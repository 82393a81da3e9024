"""Relevance of the patches by all layers together (Chefer et al., ICCV 2021, arXiv 2103.15679), to compare with.

Where Grad-CAM looks at one layer, relevance is handed on from layer to layer: R holds how much each token of the text
has taken up from each token of the text, and of the image. Each attention adds Ā R, with Ā = mean over the heads of
ReLU(∂score/∂A · A).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from ..gradcam import PhraseAttention, at_least_float32, attention_gradients, resolve_image_index
from .hooks import own_pass, record_attention, unwrapped, words_begin_graph

Kind = Literal["text", "image", "cross", "joint"]
Modules = list[tuple[Kind, nn.Module]]


class LayerAttention(NamedTuple):
    """One attention of a pass.

    - `kind`: "text" or "image", over itself; "cross", of the text to the image; "joint", over both in one sequence.
    - `attention` (num_phrases, num_heads, num_queries, num_keys): probabilities in the graph of the score.
    """

    kind: Kind
    attention: torch.Tensor


def explain_all_layers(explain: Callable[..., PhraseAttention], modules: Callable[[PreTrainedModel], Modules]):
    """`explain` of a family, with every attention of the pass, that of its `modules`, in `layers`, for `relevance`."""

    def explained(
        model: PreTrainedModel,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        create_graph: bool = False,
        **options,
    ) -> PhraseAttention:
        if options:
            names = ", ".join("grounding_layer" if name == "layer" else name for name in options)
            raise ValueError(f"relevance is of the family's own score by all layers: leave out {names}.")
        model, image_index = unwrapped(model), resolve_image_index(pixel_values, input_ids, image_index)
        # Each phrase has its image to itself: what it takes from the image encoder is its own.
        images = pixel_values if image_index is None else pixel_values[image_index]
        images = images.detach().requires_grad_()
        found = modules(model)
        with ExitStack() as stack:
            stack.enter_context(own_pass(model))
            stack.enter_context(eager_attention(model))
            for handle in words_begin_graph(model):
                stack.callback(handle.remove)
            recorded = [stack.enter_context(record_attention(module)) for _, module in found]
            explanation = explain(model, images, input_ids, attention_mask, None, True)
        layers = (LayerAttention(kind, *attention) for (kind, _), attention in zip(found, recorded) if attention)
        return explanation._replace(layers=tuple(layers))

    return explained


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """All attentions hand out their probabilities in here."""
    # Of each part too: "eager" at the top says nothing of them, nor would setting that back.
    parts = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    before = [part._attn_implementation for part in parts]
    for part in parts:
        part._attn_implementation = "eager"
    try:
        yield
    finally:
        for part, implementation in zip(parts, before):
            part._attn_implementation = implementation


def relevance(phrase_attention: PhraseAttention) -> torch.Tensor:
    """How much of each patch has reached [CLS] of the text, or of an image encoder by itself.

    Args:
        phrase_attention: of `explain_all_layers`.

    Returns: (num_phrases, rows, columns), at least float32, not negative, not normalised, without a graph.

    Source: arXiv 2103.15679, eq. 5 to 11; images do not read the text here, so that their relevance to it stays 0.
    """
    if not phrase_attention.layers:
        raise ValueError("Relevance needs the attention of every layer: explain with explain_all_layers.")
    gradients = attention_gradients(phrase_attention.score, [layer.attention for layer in phrase_attention.layers])
    taken: dict[str, torch.Tensor] = {}  # by a sequence from itself; "cross": by the text from the image
    for (kind, attention), gradient in zip(phrase_attention.layers, gradients):
        if gradient is None:  # of a branch that the score was not computed from
            continue
        weights = (at_least_float32(attention) * at_least_float32(gradient)).detach().relu().mean(dim=1)
        weights = weights.to(phrase_attention.score.device)  # of layers on several devices
        if kind == "cross":
            text, image = (taken.get(name, identity(weights, size)) for name, size in zip(("text", "image"), (-2, -1)))
            added = normalized(text).mT @ weights @ normalized(image)
            taken["cross"] = taken.get("cross", 0) + added
            continue
        own = taken.get(kind, identity(weights, -1))
        taken[kind] = own + weights @ own
        if kind == "text" and "cross" in taken:
            taken["cross"] = taken["cross"] + weights @ taken["cross"]
    (last,) = [taken[kind] for kind in ("cross", "joint", "image") if kind in taken][:1]
    rows, places = torch.arange(len(last), device=last.device), phrase_attention.cls_places
    cls_rows = last[:, 0] if places is None else last[rows, places.to(last.device)]
    maps = cls_rows[:, phrase_attention.patches]
    return maps.unflatten(-1, phrase_attention.grid)


def identity(weights: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.eye(weights.shape[axis], device=weights.device, dtype=weights.dtype).expand(len(weights), -1, -1)


def normalized(relevance: torch.Tensor) -> torch.Tensor:
    """What was taken up from others, each row to a sum of 1, and the token itself (eq. 8 and 9)."""
    itself = identity(relevance, -1)
    others = relevance - itself
    return others / others.sum(dim=-1, keepdim=True).clamp(min=1e-12) + itself


def albef_modules(model: PreTrainedModel) -> Modules:
    model = getattr(model, model.base_model_prefix, model)
    modules: Modules = [("image", layer.attention) for layer in model.vision_model.layers]
    for layer in model.text_model.layers:
        modules.append(("text", layer.self_attention))
        if hasattr(layer, "cross_attention"):
            modules.append(("cross", layer.cross_attention))
    return modules


def blip_modules(model: PreTrainedModel) -> Modules:
    modules = clip_modules(model)
    for layer in model.text_encoder.encoder.layer:
        modules += [("text", layer.attention.self), ("cross", layer.crossattention.self)]
    return modules


def vilt_modules(model: PreTrainedModel) -> Modules:
    return [("joint", layer.attention.attention) for layer in model.vilt.encoder.layer]


def clip_modules(model: PreTrainedModel) -> Modules:
    return [("image", layer.self_attn) for layer in model.vision_model.encoder.layers]
