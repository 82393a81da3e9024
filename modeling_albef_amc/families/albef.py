"""ALBEF, which explains itself."""

from typing import Any

from ..gradcam import PhraseAttention
from ..modeling_albef import AlbefModel
from ..modeling_albef_pretraining import AlbefForPreTraining
from ..pipeline import encode_itself
from ..processing_albef import AlbefProcessor
from .family import AdaptedModules, Family, layers_of_images, layers_of_text
from .hooks import onloaded, own_pass, unwrapped
from .relevance import albef_modules


class SelfExplainingFamily(Family):
    def explain(self, model: AlbefModel | AlbefForPreTraining, *inputs: Any, **options: Any) -> PhraseAttention:
        model = unwrapped(model)
        with own_pass(model), onloaded(getattr(model, model.base_model_prefix, model)):  # its temperature
            return model.explain(*inputs, **options)


ALBEF = SelfExplainingFamily(
    title="ALBEF",
    model_class="AlbefModel",
    processor_class="AlbefProcessor",
    training_class="AlbefForPreTraining",
    adapted=AdaptedModules(
        r"(vision|text)_model\.layers\.\d+\.(self_|cross_)?attention\.(qkv|projection|query|key|value|dense)",
        ("itm_head",),
        never=r"momentum_encoder\.|mlm_head\.decoder",
        moving=r"momentum_encoder\..*|(image|text|image_id|text_id)_queue|queue_pointer",
    ),
    layers={
        "itm": lambda model: layers_of_text(model)[model.config.text_config.fusion_layer :],
        "itc": layers_of_images,
    },
    modules=albef_modules,
    encode_images=encode_itself,
    attn_implementation=None,
    own_classes={each.__name__: each for each in (AlbefModel, AlbefForPreTraining, AlbefProcessor)},
)
