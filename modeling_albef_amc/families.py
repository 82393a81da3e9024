"""What each model family must say of itself to be explained and trained: one function a family.

`explain(model, pixel_values, input_ids, attention_mask, image_index, create_graph)` runs the model once and returns a
`PhraseAttention`: which score, which attention, which tokens, which patches, which grid. Everything else (heatmaps,
AMC, pointing game) follows from that. Beyond that, `layer` explains another layer and `explanation` another score.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from types import MethodType
from typing import Literal, NamedTuple

import torch
from transformers import (
    AltCLIPModel,
    Blip2ForImageTextRetrieval,
    BlipForImageTextRetrieval,
    BridgeTowerForImageAndTextRetrieval,
    ChineseCLIPModel,
    CLIPModel,
    PreTrainedModel,
    SiglipModel,
    ViltForImageAndTextRetrieval,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils import ModelOutput

from .batch_losses import absent_loss, matching_loss
from .families_dual import (
    StepPairs,
    clip,
    contrastive_loss,
    own_pairs,
    pairs_of_step,
    siglip,
    siglip_layers,
    sigmoid_loss,
)
from .families_fusion import blip, blip_2, bridgetower, bridgetower_layers, looking_layers, vilt
from .gradcam import (
    PhraseAttention,
    attention_map,
    family_function,
    gradcam,
    leaving_inference_mode,
    resolve_image_index,
    unwrapped,
)
from .modeling_albef import AlbefModel
from .modeling_albef_pretraining import AlbefForPreTraining
from .relevance import (
    Modules,
    albef_modules,
    blip_modules,
    clip_modules,
    explain_all_layers,
    relevance,
    vilt_modules,
)

Explain = Callable[..., PhraseAttention]


@family_function
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
    itm_logits = output.itm_logits
    match_logit = itm_logits[:, 1] - itm_logits[:, 0]
    return attention._replace(probability=match_logit.detach().float().sigmoid(), match_logit=match_logit)


class Family(NamedTuple):
    """What is known of a model family.

    - `explain`: as above.
    - `model_class`: of transformers, with the score that is explained; heads for other tasks have others, or none.
    - `loss`: what it learns from a batch, beside AMC.
    - `training_class`: with objectives of its own instead, where there is one.
    - `has_token_maps`: the rows of the explained attention are the phrase's tokens, each of which has a map.
    - `layers`: what `layer` of `explain` may be.
    - `modules`: all attentions of a pass, for `relevance`; none: that is not worked out for the family.
    - `is_eager`: hands out attention probabilities only with `attn_implementation="eager"`.
    """

    explain: Explain
    model_class: type[PreTrainedModel]
    loss: Callable[..., torch.Tensor] = matching_loss
    training_class: type[PreTrainedModel] | None = None
    has_token_maps: bool = True
    layers: Callable[[PreTrainedModel], Sequence[int]] = lambda model: range(model.config.num_hidden_layers)
    modules: Callable[[PreTrainedModel], Modules] | None = None
    is_eager: bool = True


def layers_of_text(model: PreTrainedModel) -> Sequence[int]:
    return range(model.config.text_config.num_hidden_layers)


def layers_of_images(model: PreTrainedModel) -> Sequence[int]:
    return range(model.config.vision_config.num_hidden_layers)


def clip_like(model_class: type[PreTrainedModel]) -> Family:
    return Family(
        clip, model_class, contrastive_loss, has_token_maps=False, layers=layers_of_images, modules=clip_modules
    )


# By `config.model_type`.
FAMILIES: dict[str, Family] = {
    "albef": Family(
        albef,
        AlbefModel,
        training_class=AlbefForPreTraining,
        layers=lambda model: layers_of_text(model)[model.config.text_config.fusion_layer :],
        modules=albef_modules,
        is_eager=False,
    ),
    "blip": Family(blip, BlipForImageTextRetrieval, layers=layers_of_text, modules=blip_modules),
    "blip-2": Family(blip_2, Blip2ForImageTextRetrieval, has_token_maps=False, layers=looking_layers),
    "vilt": Family(vilt, ViltForImageAndTextRetrieval, modules=vilt_modules),
    "bridgetower": Family(bridgetower, BridgeTowerForImageAndTextRetrieval, layers=bridgetower_layers),
    "clip": clip_like(CLIPModel),
    "altclip": clip_like(AltCLIPModel),
    "chinese_clip": clip_like(ChineseCLIPModel),
    "siglip": Family(siglip, SiglipModel, sigmoid_loss, has_token_maps=False, layers=siglip_layers),
}
METHODS: dict[str, Callable[..., torch.Tensor]] = {
    "gradcam": gradcam,
    "attention": attention_map,
    "relevance": relevance,
}


class AutoModelForVisualGrounding(_BaseAutoModelClass):
    """`from_pretrained` gives a checkpoint the class of its family that scores phrases; AutoModel's BLIP does not."""

    _model_mapping = {family.model_class.config_class: family.model_class for family in FAMILIES.values()}

    @classmethod
    def from_pretrained(cls, path: str, *args, output_loading_info: bool = False, **kwargs):
        """As ever; who asks for the loading info looks at what is missing.

        Raises:
            ValueError: the checkpoint has no weights for a score of image and text.
        """
        model, loading = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        if output_loading_info:
            return model, loading
        check_complete(path, model, loading["missing_keys"])
        return model


def check_complete(path: str, model: PreTrainedModel, missing: set[str]) -> None:
    """
    Raises:
        ValueError: weights of `model` are missing in the checkpoint it is of, and random therefore.
    """
    if missing:
        architecture = (model.config.architectures or ["no architecture"])[0]
        raise ValueError(
            f"{path} is a checkpoint of {architecture}, without weights such as {min(missing)}: it has no score of "
            f"image and text to explain. Choose one of {type(model).__name__}."
        )


def explain_function(model: PreTrainedModel, method: str = "gradcam") -> Explain:
    """The function of `model`'s family, whose answer `METHODS[method]` turns into heatmaps.

    Raises:
        ValueError: the family is unknown: pass a function of your own; there is no such method for it; or the model is
            one for another task.
    """
    if model.config.model_type not in FAMILIES:
        raise ValueError(
            f"No explanation is known for models of type {model.config.model_type!r} (known: {', '.join(FAMILIES)}). "
            f"Pass explain=, a function as described in modeling_albef_amc/families.py."
        )
    family = FAMILIES[model.config.model_type]
    # By name: a checkpoint's own code has classes of its own.
    names = {each.__name__ for each in type(unwrapped(model)).__mro__}
    if not any(known and known.__name__ in names for known in (family.model_class, family.training_class)):
        raise ValueError(
            f"{type(unwrapped(model)).__name__} has no score of image and text to explain: load a checkpoint of "
            f"{family.model_class.__name__} as that."
        )
    if heatmap_function(method) is not relevance:
        return family.explain
    if family.modules is None:
        known = ", ".join(name for name, family in FAMILIES.items() if family.modules is not None)
        raise ValueError(f"relevance is not worked out for {model.config.model_type}, only for {known}.")
    return explain_all_layers(family.explain, family.modules)


def explainable(model: PreTrainedModel) -> PreTrainedModel:
    """Lets a model of a known family hand out its attention, however it was loaded; it is changed in place."""
    family = FAMILIES.get(model.config.model_type)
    if family is not None and family.is_eager:
        # `set_attn_implementation` warns of BLIP-2's language model, which is not there.
        model.config._attn_implementation = "eager"
    return model


def heatmap_function(method: str) -> Callable[..., torch.Tensor]:
    """
    Raises:
        ValueError: there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r}: choose one of {', '.join(METHODS)}.")
    return METHODS[method]


def explained_layers(model: PreTrainedModel, explanation: str | None = None) -> Sequence[int]:
    """The layers that `explain` of `model`'s family can explain.

    Args:
        explanation: "itc" for ALBEF's image encoder; None: the family's own.

    Raises:
        ValueError: the family is unknown.
    """
    explain_function(model)
    if explanation == "itc" and model.config.model_type == "albef":
        return layers_of_images(model)
    return FAMILIES[model.config.model_type].layers(model)


@dataclass
class GroundingOutput(ModelOutput):
    """Output of a model made trainable by `groundable`.

    - `loss_itm` or, of a dual encoder, `loss_itc`: right pairs of the batch against wrong ones; 0 where all are absent.
    - `loss_absent`: phrases that are known to fit nothing in their image, where there are some.
    - `loss`: the sum.
    - `scores`, `probability` (num_phrases,), `heatmaps` (num_phrases, rows, columns): of the phrases and their images.
    - `step_pairs`: the true pairs, encoded and nothing else, for `pairs_of_step`.
    """

    loss: torch.FloatTensor | None = None
    loss_itm: torch.FloatTensor | None = None
    loss_itc: torch.FloatTensor | None = None
    loss_absent: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    probability: torch.FloatTensor | None = None
    heatmaps: torch.FloatTensor | None = None
    step_pairs: StepPairs | None = None


def groundable(model: PreTrainedModel, explain: Explain | None = None) -> PreTrainedModel:
    """Gives a model of any family the forward pass that `AmcTrainer` trains by; the model is changed in place.

    `AlbefForPreTraining` has it already. For the others the heatmap has to be computed inside `forward`, which is where
    distributed wrappers look for the graph. Weights, configuration and saved files stay those of the model.

    Returns: the model; out of peft's wrapper, as if its adapters had come by `model.add_adapter`.
    """
    has_adapters, model = hasattr(model, "get_base_model"), explainable(unwrapped(model))
    if has_adapters:
        model._hf_peft_config_loaded = True
    if has_own_objectives(model):
        model.drop_teacher_adapters()
        return model
    explain = with_own_forward(explain or explain_function(model))
    family = FAMILIES.get(model.config.model_type)
    loss_function = matching_loss if family is None else family.loss

    @torch.compiler.disable
    @leaving_inference_mode
    def forward(
        model: PreTrainedModel,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        is_absent: torch.Tensor | None = None,
        output_heatmaps: bool = False,
        step_pairs: StepPairs | None = None,
        output_pairs: bool = False,
        **unused,
    ) -> GroundingOutput:
        image_index = resolve_image_index(pixel_values, input_ids, image_index)
        own_image = torch.arange(len(input_ids), device=input_ids.device) if image_index is None else image_index
        if output_pairs:
            true = torch.ones_like(own_image).bool() if is_absent is None else ~is_absent
            read = true if true.any() else ~true  # no model encodes no phrase at all
            batch = (None if rows is None else rows[read] for rows in (input_ids, attention_mask, own_image))
            pairs = own_pairs(model, pixel_values, *batch, image_ids)
            return GroundingOutput(step_pairs=pairs.select(true[read]))
        create_graph = torch.is_grad_enabled()
        attention = explain(model, pixel_values, input_ids, attention_mask, own_image, create_graph)
        with nullcontext() if create_graph else torch.enable_grad():
            heatmaps = gradcam(attention, create_graph) if output_heatmaps else None
        losses = {}
        true_pairs, texts, true_image = attention, (input_ids, attention_mask), own_image
        if is_absent is not None and is_absent.any():
            losses["loss_absent"] = absent_loss(attention, own_image, is_absent)
            *texts, true_image = (None if rows is None else rows[~is_absent] for rows in (*texts, own_image))
            of_pairs = {name: getattr(attention, name) for name in ("score", "match_logit")}
            rows = {name: value[~is_absent] for name, value in of_pairs.items() if value is not None}
            true_pairs = attention._replace(**rows)
        name = "loss_itm" if loss_function is matching_loss else "loss_itc"
        if len(true_image):
            options = {} if step_pairs is None else {"step_pairs": step_pairs}
            losses[name] = loss_function(
                model, explain, true_pairs, pixel_values, *texts, true_image, image_ids, **options
            )
        else:
            losses[name] = attention.score.sum() * 0
        return GroundingOutput(
            loss=sum(losses.values()),
            scores=attention.score if create_graph else attention.score.detach(),
            probability=attention.probability,
            heatmaps=heatmaps,
            **losses,
        )

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


def has_own_objectives(model: PreTrainedModel) -> bool:
    """Whether it is `AlbefForPreTraining`, be it the class of this package or of a checkpoint's own code."""
    return hasattr(model, "momentum_step")


def step_targets(
    model: PreTrainedModel, micro_batches: list[dict], wrapped: torch.nn.Module | None = None
) -> list[dict]:
    """What the micro-batches of one optimizer step must know of each other: arguments of `forward`, one entry each.

    Of `AlbefForPreTraining`, whose momentum encoders move, their features of all pairs (`momentum_step`); of a dual
    encoder its own (`pairs_of_step`); nothing of other models. Every process must call this.

    Args:
        wrapped: the model as it is called in training, by DDP or FSDP.
    """
    names = "pixel_values", "input_ids", "attention_mask", "image_index", "image_ids", "is_absent"
    batches = [{name: batch[name] for name in names if name in batch} for batch in micro_batches]
    if has_own_objectives(model):
        return [{"momentum_targets": targets} for targets in model.momentum_step(batches)]
    family = FAMILIES.get(model.config.model_type)
    if family is None or family.loss is matching_loss:
        return [{} for _ in batches]
    return [{"step_pairs": pairs} for pairs in pairs_of_step(wrapped or model, batches)]
