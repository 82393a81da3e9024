"""The forward pass that `AmcTrainer` trains any family by, and what the micro-batches of a step know of each other."""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..gradcam import attention_map, leaving_inference_mode, resolve_image_index
from ..modeling_albef_pretraining import parted
from .auto import saving_grounding
from .dual import StepPairs, own_pairs, pairs_of_step
from .family import Explain
from .hooks import is_in_peft, unwrapped, with_own_forward, words_begin_graph
from .objectives import absent_loss, matching_loss
from .registry import FAMILIES, METHODS, explain_function, explainable, trained_method


@dataclass
class GroundingOutput(ModelOutput):
    """Output of a model made trainable by `groundable`.

    - `loss_itm` or, of a dual encoder, `loss_itc`: right pairs of the batch against wrong ones; 0 where all are absent.
    - `loss_caption`: of a generative model, which says the phrases.
    - `loss_absent`: phrases that are known to fit nothing in their image, where there are some.
    - `loss`: the sum.
    - `scores`, `probability` (num_phrases,), `heatmaps` (num_phrases, rows, columns): of the phrases and their images.
    - `attention_maps` (num_phrases, num_heads, rows, columns): what their tokens look at on average, differentiable.
    - `step_pairs`: the true pairs, encoded and nothing else, for `pairs_of_step`.
    """

    loss: torch.FloatTensor | None = None
    loss_itm: torch.FloatTensor | None = None
    loss_itc: torch.FloatTensor | None = None
    loss_caption: torch.FloatTensor | None = None
    loss_absent: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    probability: torch.FloatTensor | None = None
    heatmaps: torch.FloatTensor | None = None
    attention_maps: torch.FloatTensor | None = None
    step_pairs: StepPairs | None = None


def groundable(model: PreTrainedModel, explain: Explain | None = None) -> PreTrainedModel:
    """Gives a model of any family the forward pass that `AmcTrainer` trains by; the model is changed in place.

    `AlbefForPreTraining` has it already. For the others the heatmap has to be computed inside `forward`, which is where
    distributed wrappers look for the graph. Weights, configuration and saved files stay those of the model.

    Returns: the model; out of peft's wrapper, as if its adapters had come by `model.add_adapter`.
    """
    has_adapters, model = is_in_peft(model), explainable(unwrapped(model))
    if has_adapters:
        model._hf_peft_config_loaded = HasAdapters(model)
        for config in model.peft_config.values():  # which peft itself would fill in when it saves them
            config.base_model_name_or_path = config.base_model_name_or_path or model.name_or_path or None
    if has_own_objectives(model):
        model.drop_momentum_adapters()
        return model
    family = FAMILIES.get(model.config.model_type)
    losses_of = {"loss_itm": matching_loss} if family is None else family.losses
    # Once for all passes of a batch; a function of one's own encodes images itself.
    encode_images = None if family is None or explain is not None else family.encode_images
    encode_images = encode_images and with_own_forward(encode_images)
    explain_pairs = with_own_forward(explain or explain_function(model))
    heatmaps_of = METHODS[trained_method(model)]

    @torch.compiler.disable
    @leaving_inference_mode
    def forward(  # noqa: PLR0913  a batch, and what `step_targets` gives
        model: PreTrainedModel,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        is_absent: torch.Tensor | None = None,
        num_absent: int | None = None,
        output_heatmaps: bool = False,
        output_attention_maps: bool = False,
        step_pairs: StepPairs | None = None,
        objectives: Collection[str] | None = None,
        output_pairs: bool = False,
        **unused,
    ) -> GroundingOutput:
        image_index = resolve_image_index(pixel_values, input_ids, image_index)
        own_image = torch.arange(len(input_ids), device=input_ids.device) if image_index is None else image_index
        all_rows = torch.arange(len(input_ids), device=input_ids.device)
        absent_rows, true_rows = ((), all_rows) if is_absent is None else parted(is_absent, num_absent)
        if output_pairs:
            read = true_rows if len(true_rows) else all_rows  # no model encodes no phrase at all
            ids, mask, image = (None if rows is None else rows[read] for rows in (input_ids, attention_mask, own_image))
            pairs = own_pairs(model, pixel_values, ids, mask, image, image_ids)
            return GroundingOutput(step_pairs=pairs.select(slice(len(true_rows))))
        create_graph = torch.is_grad_enabled()
        encoded = {} if encode_images is None else {"image_embeds": encode_images(model, pixel_values)}
        explain = partial(explain_pairs, **encoded)
        attention = explain(model, pixel_values, input_ids, attention_mask, own_image, create_graph)
        with nullcontext() if create_graph else torch.enable_grad():
            heatmaps = heatmaps_of(attention, create_graph) if output_heatmaps else None
        attention_maps = attention_map(attention, per_head=True) if output_attention_maps else None
        losses = {}
        true_pairs, ids, mask, true_image = attention, input_ids, attention_mask, own_image
        if len(absent_rows):
            losses["loss_absent"] = absent_loss(attention, own_image, is_absent)
            ids, mask, true_image, score, match_logit = (
                None if rows is None else rows[true_rows]
                for rows in (ids, mask, own_image, attention.score, attention.match_logit)
            )
            true_pairs = attention._replace(score=score, match_logit=match_logit)
        options: dict[str, Any] = {} if step_pairs is None else {"step_pairs": step_pairs}
        batch = pixel_values, ids, mask, true_image, image_ids
        for name, loss_of in losses_of.items():
            if objectives is None or name in objectives:
                losses[name] = attention.score.sum() * 0  # which all processes have
                if len(true_image):
                    losses[name] = loss_of(model, explain, true_pairs, *batch, **options)
        return GroundingOutput(
            loss=sum(losses.values()),
            scores=attention.score if create_graph else attention.score.detach(),
            probability=attention.probability,
            heatmaps=heatmaps,
            attention_maps=attention_maps,
            **losses,
        )

    return with_methods(saving_grounding(model), forward)


def with_methods(model: PreTrainedModel, forward: Callable[..., GroundingOutput]) -> PreTrainedModel:
    """The model with this forward pass in place of its own, by which it still writes."""
    # Within the hook that accelerate has put around models on several devices.
    setattr(model, "_old_forward" if hasattr(model, "_hf_hook") else "forward", MethodType(forward, model))
    if model.can_generate():
        model.generate = MethodType(with_own_forward(type(model).generate), model)
    model.enable_input_require_grads = MethodType(enable_input_require_grads, model)
    if vars(model).get("_require_grads_hooks"):  # of transformers, from before
        model.enable_input_require_grads()
    return model


def enable_input_require_grads(model: PreTrainedModel) -> None:
    """transformers', for adapters with activation checkpointing; BLIP adds to what words are embedded as in place."""
    model.disable_input_require_grads()
    model._require_grads_hooks = words_begin_graph(model)


class HasAdapters:
    """True as long as peft's adapters are in the model: who merges them tells peft, and transformers nothing."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def __bool__(self) -> bool:
        return hasattr(self.model, "peft_config")


def has_own_objectives(model: PreTrainedModel) -> bool:
    """Whether it is `AlbefForPreTraining`, be it the class of this package or of a checkpoint's own code."""
    return hasattr(model, "momentum_step")


def step_targets(
    model: PreTrainedModel, micro_batches: list[dict], wrapped: torch.nn.Module | None = None
) -> list[dict]:
    """What the micro-batches of one optimizer step must know of each other: arguments of `forward`, one entry each.

    Of `AlbefForPreTraining`, whose momentum encoders move, their features of all pairs (`momentum_step`); of a dual
    encoder its own (`pairs_of_step`); nothing of other models. Every process must call this. `wrapped` is the model as
    it is called in training, by DDP or FSDP.
    """
    names = "pixel_values", "input_ids", "attention_mask", "image_index", "image_ids", "is_absent", "num_absent"
    batches = [{name: batch[name] for name in names if name in batch} for batch in micro_batches]
    if has_own_objectives(model):
        return [{"momentum_targets": targets} for targets in model.momentum_step(batches)]
    family = FAMILIES.get(model.config.model_type)
    if family is None or "loss_itc" not in family.losses:
        return [{} for _ in batches]
    return [{"step_pairs": pairs} for pairs in pairs_of_step(wrapped or model, batches)]
