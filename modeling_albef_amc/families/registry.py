"""Which model families there are: by `config.model_type` the record of each."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ..modeling_albef import AlbefModel
from ..pipeline import PhraseGrounder
from .albef import ALBEF
from .dual import ALTCLIP, CHINESE_CLIP, CLIP, SIGLIP
from .family import Explain, Family, layers_of_images
from .fusion import BLIP, BLIP_2, BRIDGETOWER, VILT
from .relevance import explain_all_layers, relevance

FAMILIES: dict[str, Family] = {
    "albef": ALBEF,
    "blip": BLIP,
    "blip-2": BLIP_2,
    "vilt": VILT,
    "bridgetower": BRIDGETOWER,
    "clip": CLIP,
    "altclip": ALTCLIP,
    "chinese_clip": CHINESE_CLIP,
    "siglip": SIGLIP,
}
METHODS: dict[str, Callable[..., torch.Tensor]] = {**PhraseGrounder.methods, "relevance": relevance}


class AutoModelForVisualGrounding(_BaseAutoModelClass):
    """`from_pretrained` gives a checkpoint the class of its family that scores phrases; AutoModel's BLIP does not."""

    _model_mapping = _LazyAutoMapping(
        CONFIG_MAPPING_NAMES,
        OrderedDict((name, family.model_class) for name, family in FAMILIES.items() if name != "albef"),
    )


AutoModelForVisualGrounding.register(AlbefModel.config_class, AlbefModel)


def explain_function(model: PreTrainedModel, method: str = "gradcam") -> Explain:
    """The function of `model`'s family, whose answer `METHODS[method]` turns into heatmaps.

    Raises:
        ValueError: the family is unknown: pass a function of your own; or there is no such method for it.
    """
    if model.config.model_type not in FAMILIES:
        raise ValueError(
            f"No explanation is known for models of type {model.config.model_type!r} (known: {', '.join(FAMILIES)}). "
            f"Pass explain=, a function as described in docs/families.md."
        )
    family = FAMILIES[model.config.model_type]
    if heatmap_function(method) is not relevance:
        return family.explain
    if family.modules is None:
        known = ", ".join(name for name, family in FAMILIES.items() if family.modules is not None)
        raise ValueError(f"relevance is not worked out for {model.config.model_type}, only for {known}.")
    return explain_all_layers(family.explain, family.modules)


def explainable(model: PreTrainedModel) -> PreTrainedModel:
    """Lets a model of a known family hand out its attention, however it was loaded; it is changed in place."""
    family = FAMILIES.get(model.config.model_type)
    if family is not None and family.attn_implementation is not None:
        # `set_attn_implementation` warns of BLIP-2's language model, which is not there.
        model.config._attn_implementation = family.attn_implementation
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
