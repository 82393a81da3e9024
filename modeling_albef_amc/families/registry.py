"""Which model families there are: by `config.model_type` the record of each."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from ..pipeline import PhraseGrounder
from .albef import ALBEF
from .decoders import DECODERS
from .dual import AIMV2, ALTCLIP, CHINESE_CLIP, CLIP, CLIPSEG, METACLIP_2, OWLVIT, SIGLIP, SIGLIP_2
from .family import Explain, Family
from .fusion import BLIP, BLIP_2, BRIDGETOWER, FLAVA, VILT
from .gradient import gradient_map
from .hooks import unwrapped
from .relevance import explain_all_layers, relevance

FAMILIES: dict[str, Family] = {
    "albef": ALBEF,
    "blip": BLIP,
    "blip-2": BLIP_2,
    "vilt": VILT,
    "bridgetower": BRIDGETOWER,
    "flava": FLAVA,
    "clip": CLIP,
    "altclip": ALTCLIP,
    "chinese_clip": CHINESE_CLIP,
    "metaclip_2": METACLIP_2,
    "clipseg": CLIPSEG,
    "owlvit": OWLVIT,
    "aimv2": AIMV2,
    "siglip": SIGLIP,
    "siglip2": SIGLIP_2,
    **DECODERS,
}
METHODS: dict[str, Callable[..., torch.Tensor]] = {
    **PhraseGrounder.methods,
    "gradient": gradient_map,
    "relevance": relevance,
}
TRAINED_METHODS = "gradcam", "gradient"


def check_complete(path: str, model: PreTrainedModel, missing: set[str]) -> None:
    """ValueError: weights of `model` are missing in its checkpoint, and random therefore."""
    if missing:
        architecture = (model.config.architectures or ["no architecture"])[0]
        raise ValueError(
            f"{path} is a checkpoint of {architecture}, without weights such as {min(missing)}: it has no score of "
            f"image and text to explain. Choose one of {type(model).__name__}."
        )


def explain_function(model: PreTrainedModel, method: str = "gradcam") -> Explain:
    """The function of `model`'s family, whose answer `METHODS[method]` turns into heatmaps.

    Raises:
        ValueError: the family is unknown; there is no such method for it; or the model is one for another task.
    """
    family = family_of(model)
    if method not in METHODS:
        raise ValueError(f"method {method!r}: choose one of {', '.join(METHODS)}.")
    if method != "relevance":
        return family.explain
    if family.modules is None:
        known = ", ".join(name for name, family in FAMILIES.items() if family.modules is not None)
        raise ValueError(f"relevance is not worked out for {model.config.model_type}, only for {known}.")
    return explain_all_layers(family.explain, family.modules)


def trained_method(model: PreTrainedModel) -> str:
    """By which of `TRAINED_METHODS` the heatmaps of a model were trained; Grad-CAM where its config is silent."""
    return vars(model.config).get("grounding", {}).get("method", "gradcam")


def family_of(model: PreTrainedModel) -> Family:
    """The family of a model that has its score. Errors: as of `explain_function`."""
    if model.config.model_type not in FAMILIES:
        raise ValueError(
            f"No explanation is known for models of type {model.config.model_type!r} (known: {', '.join(FAMILIES)}). "
            f"Pass explain=, a function as described in docs/families.md."
        )
    family = FAMILIES[model.config.model_type]
    # By name: a checkpoint's own code has classes of its own.
    names = {each.__name__ for each in type(unwrapped(model)).__mro__}
    if not {family.model_class, family.training_class} & names:
        raise ValueError(
            f"{type(unwrapped(model)).__name__} has no score of image and text to explain: load a checkpoint of "
            f"{family.model_class} as that."
        )
    return family


def explainable(model: PreTrainedModel) -> PreTrainedModel:
    """Lets a model of a known family hand out its attention, however it was loaded; it is changed in place."""
    family = FAMILIES.get(model.config.model_type)
    if family is not None and family.attn_implementation is not None:
        # `set_attn_implementation` warns of BLIP-2's language model, which is not there.
        model.config._attn_implementation = family.attn_implementation
    return model


def explained_layers(model: PreTrainedModel, explanation: str | None = None) -> Sequence[int]:
    """The layers that can explain a score ("itm" or "itc"; None: the family's own) of a model of a known family."""
    return family_of(model).layers_of(model, explanation)
