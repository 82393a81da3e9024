"""What each model family must say of itself to be explained and trained: one function a family.

`explain(model, pixel_values, input_ids, attention_mask, image_index, create_graph)` runs the model once and returns a
`PhraseAttention`: which score, which attention, which tokens, which patches, which grid. Everything else (heatmaps,
AMC, pointing game) follows from that. Beyond that, `layer` explains another layer and `explanation` another score.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from types import MethodType
from typing import Literal, NamedTuple

import torch
from torch.nn import functional as F
from transformers import BlipForImageTextRetrieval, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils import ModelOutput

from .gradcam import PhraseAttention, gradcam, leaving_inference_mode, record_attention, resolve_image_index
from .modeling_albef import AlbefModel
from .modeling_albef_pretraining import AlbefForPreTraining

Explain = Callable[..., PhraseAttention]


@leaving_inference_mode
def albef(
    model: AlbefModel | AlbefForPreTraining,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    image_index: torch.Tensor | None = None,
    create_graph: bool = False,
    layer: int | None = None,
    explanation: Literal["itm", "itc"] = "itm",
) -> PhraseAttention:
    """ALBEF: the match logit, by the cross-attention of text-encoder layer `config.grounding_layer`.

    With "itc", the image-text similarity by the self-attention of image-encoder layer `config.vision_grounding_layer`.
    """
    albef_model = getattr(model, model.base_model_prefix, model)
    inputs = pixel_values, input_ids, attention_mask, image_index
    with torch.set_grad_enabled(create_graph):
        if explanation == "itm":
            layer = model.config.grounding_layer if layer is None else layer
            output, attention = albef_model.score(*inputs, layer, create_graph)
        elif explanation == "itc":
            layer = model.config.vision_grounding_layer if layer is None else layer
            output, _ = albef_model.score(*inputs)
            attention = albef_model.explain_itc(pixel_values, output.text_features, image_index, layer, create_graph)
        else:
            raise ValueError(f"explanation {explanation!r}: choose 'itm' or 'itc'.")
    return attention._replace(probability=match_probability(output.itm_logits))


@leaving_inference_mode
def blip(
    model: BlipForImageTextRetrieval,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    image_index: torch.Tensor | None = None,
    create_graph: bool = False,
    layer: int | None = None,
    explanation: Literal["itm"] = "itm",
) -> PhraseAttention:
    """BLIP with its matching head: the match logit, by the cross-attention of text layer `layer`.

    The default layer is two thirds up the text encoder (8 of 12): BLIP attends to the image in every layer. Its
    attention never goes through transformers' attention interface, so it is recorded by a hook, before dropout.
    """
    if explanation != "itm":
        raise ValueError(f"explanation {explanation!r}: BLIP is explained by its match score, 'itm', only.")
    layers = model.text_encoder.encoder.layer
    layer = 2 * len(layers) // 3 if layer is None else layer
    if not 0 <= layer < len(layers):
        raise ValueError(f"layer {layer} is outside BLIP's text encoder: choose one of 0..{len(layers) - 1}.")
    image_index = resolve_image_index(pixel_values, input_ids, image_index)
    with torch.set_grad_enabled(create_graph):
        image_embeds = model.vision_model(pixel_values, interpolate_pos_encoding=True).last_hidden_state
    if image_index is not None:
        image_embeds = image_embeds[image_index]
    # A graph needs something that requires a gradient, even where all parameters are frozen.
    image_embeds = image_embeds if image_embeds.requires_grad else image_embeds.detach().requires_grad_()
    with torch.enable_grad(), record_attention(layers[layer].crossattention.self) as recorded:
        states = model.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=image_embeds
        ).last_hidden_state
        itm_logits = model.itm_head(states[:, 0])
        score = itm_logits[:, 1]
    token_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    patch_size = model.config.vision_config.patch_size
    grid = pixel_values.shape[2] // patch_size, pixel_values.shape[3] // patch_size
    return PhraseAttention(score, recorded[0], token_mask, slice(1, None), grid, match_probability(itm_logits))


def match_probability(itm_logits: torch.Tensor) -> torch.Tensor:
    """(num_phrases, 2), index 1 for "the phrase fits its image" → the probability of that, (num_phrases,)"""
    return itm_logits.detach().float().softmax(dim=-1)[:, 1]


class Family(NamedTuple):
    """What is known of a model family.

    - `explain`: as above.
    - `model_class`: of transformers, with the score that is explained; heads for other tasks have others, or none.
    - `training_class`: with objectives of its own, where there is one.
    """

    explain: Explain
    model_class: type[PreTrainedModel]
    training_class: type[PreTrainedModel] | None = None


# By `config.model_type`.
FAMILIES: dict[str, Family] = {
    "albef": Family(albef, AlbefModel, AlbefForPreTraining),
    "blip": Family(blip, BlipForImageTextRetrieval),
}


class AutoModelForVisualGrounding(_BaseAutoModelClass):
    """`from_pretrained` gives a checkpoint the class of its family that scores phrases; AutoModel's BLIP does not."""

    _model_mapping = {family.model_class.config_class: family.model_class for family in FAMILIES.values()}


def explain_function(model: PreTrainedModel) -> Explain:
    """The function of `model`'s family.

    Raises:
        ValueError: the family is unknown: pass a function of your own.
    """
    try:
        return FAMILIES[model.config.model_type].explain
    except KeyError:
        raise ValueError(
            f"No explanation is known for models of type {model.config.model_type!r} (known: {', '.join(FAMILIES)}). "
            f"Pass explain=, a function as described in modeling_albef_amc/families.py."
        ) from None


@dataclass
class GroundingOutput(ModelOutput):
    """Output of a model made trainable by `groundable`.

    - `loss`, `loss_itm`: matching loss of the true pairs against in-batch negatives.
    - `scores` (num_phrases,), `heatmaps` (num_phrases, rows, columns): of the true pairs.
    """

    loss: torch.FloatTensor | None = None
    loss_itm: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    heatmaps: torch.FloatTensor | None = None


def groundable(model: PreTrainedModel, explain: Explain | None = None) -> PreTrainedModel:
    """Gives a model of any family the forward pass that `AmcTrainer` trains by; the model is changed in place.

    `AlbefForPreTraining` has it already. For the others the heatmap has to be computed inside `forward`, which is where
    distributed wrappers look for the graph. Weights, configuration and saved files stay those of the model.
    """
    if isinstance(model, AlbefForPreTraining):
        return model
    explain = with_own_forward(explain or explain_function(model))

    @leaving_inference_mode
    def forward(
        model: PreTrainedModel,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        output_heatmaps: bool = False,
        **unused,
    ) -> GroundingOutput:
        image_index = resolve_image_index(pixel_values, input_ids, image_index)
        own_image = torch.arange(len(input_ids), device=input_ids.device) if image_index is None else image_index
        create_graph = torch.is_grad_enabled()
        attention = explain(model, pixel_values, input_ids, attention_mask, own_image, create_graph)
        with nullcontext() if create_graph else torch.enable_grad():
            heatmaps = gradcam(attention, create_graph) if output_heatmaps else None
        negative, exists = other_image(own_image, image_ids, input_ids, attention_mask)
        negative_scores = explain(model, pixel_values, input_ids, attention_mask, negative, create_graph).score
        loss = ranking_loss(attention.score, negative_scores, exists)
        scores = attention.score if create_graph else attention.score.detach()
        return GroundingOutput(loss=loss, loss_itm=loss, scores=scores, heatmaps=heatmaps)

    model.forward = MethodType(forward, model)
    return model


def with_own_forward(explain: Explain) -> Explain:
    """`explain`, which may call the model: it finds the forward pass that the model had before `groundable`."""

    @wraps(explain)
    def explained(model: PreTrainedModel, *args, **kwargs) -> PhraseAttention:
        replaced = vars(model).pop("forward", None)
        try:
            return explain(model, *args, **kwargs)
        finally:
            if replaced is not None:
                model.forward = replaced

    return explained


def other_image(
    own_image: torch.Tensor,
    image_ids: torch.Tensor | None,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each phrase an image of the batch that shows another picture and belongs to no equal phrase, drawn at random.

    Returns: image indices (num_phrases,), and whether there was one (num_phrases,).
    """
    picture = own_image if image_ids is None else image_ids[own_image]
    tokens = input_ids if attention_mask is None else input_ids.masked_fill(attention_mask == 0, -1)
    same_text = (tokens[:, None] == tokens[None]).all(dim=-1)
    same_picture = picture[:, None] == picture[None]
    # Not only its own picture: every one that some equal phrase belongs to.
    allowed = same_text.float() @ same_picture.float() == 0
    exists = allowed.any(dim=1)
    probabilities = allowed.float().where(exists[:, None], 1.0)
    return own_image[torch.multinomial(probabilities, num_samples=1)[:, 0]], exists


def ranking_loss(scores: torch.Tensor, negative_scores: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of telling each phrase's own image from a wrong one by their scores, the mean over all phrases.

    A phrase without a wrong image contributes 0.

    Args:
        scores, negative_scores, exists: (num_phrases,).
    """
    loss = F.softplus(negative_scores.float() - scores.float())
    return loss.where(exists, 0).mean()


def step_targets(model: PreTrainedModel, micro_batches: list[dict]) -> list:
    """What the micro-batches of one optimizer step must know of each other before any of them runs, one entry each.

    For `AlbefForPreTraining` its momentum encoders move, and encode all of them (`momentum_step`); None for the others.
    """
    if not isinstance(model, AlbefForPreTraining):
        return [None] * len(micro_batches)
    names = ("pixel_values", "input_ids", "attention_mask", "image_index", "image_ids")
    return model.momentum_step([{name: batch[name] for name in names if name in batch} for batch in micro_batches])
