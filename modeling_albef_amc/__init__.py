"""ALBEF in transformers, and heatmaps of any vision-language model. Importing this registers the Auto classes."""

from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import is_torchvision_available

from .configuration_albef import AlbefConfig, AlbefTextConfig, AlbefVisionConfig
from .families.auto import AutoGrounder, AutoGroundingPipeline, AutoModelForVisualGrounding
from .families.registry import explain_function
from .families.training import groundable
from .gradcam import PhraseAttention, gradcam, heatmap_points, normalize_heatmaps, upsample_heatmaps
from .image_processing_pil_albef import AlbefImageProcessorPil
from .modeling_albef import AlbefModel, AlbefOutput, AlbefTextModel, AlbefVisionModel
from .modeling_albef_pretraining import AlbefForPreTraining, AlbefForPreTrainingOutput
from .pipeline import PhraseGrounder, VisualGroundingPipeline
from .processing_albef import AlbefProcessor
from .tokenization_albef import clean_text
from .tools.vocabulary import tokenizer_from_texts

__version__ = "0.1.0"

image_processor_classes = {"pil": AlbefImageProcessorPil}
if is_torchvision_available():
    from .image_processing_albef import AlbefImageProcessor

    image_processor_classes["torchvision"] = AlbefImageProcessor

for model_class in (AlbefModel, AlbefVisionModel, AlbefTextModel):
    AutoConfig.register(model_class.config_class.model_type, model_class.config_class)
    AutoModel.register(model_class.config_class, model_class)
AutoModelForPreTraining.register(AlbefConfig, AlbefForPreTraining)
AutoImageProcessor.register(AlbefConfig, image_processor_classes=image_processor_classes)
AutoTokenizer.register(AlbefConfig, tokenizer_class=PreTrainedTokenizerFast)
AutoProcessor.register(AlbefConfig, AlbefProcessor)
PIPELINE_REGISTRY.register_pipeline(
    "visual-grounding", AutoGroundingPipeline, pt_model=AutoModelForVisualGrounding, type="multimodal"
)

# save_pretrained then copies the code along, for trust_remote_code.
for model_class in (AlbefModel, AlbefVisionModel, AlbefTextModel):
    model_class.config_class.register_for_auto_class()
    model_class.register_for_auto_class("AutoModel")
AlbefForPreTraining.register_for_auto_class("AutoModelForPreTraining")
parts: tuple[Any, ...] = (AlbefProcessor, *image_processor_classes.values())
for part in parts:
    part.register_for_auto_class()

__all__ = [
    "AlbefConfig",
    "AlbefForPreTraining",
    "AlbefForPreTrainingOutput",
    "AlbefImageProcessorPil",
    "AlbefModel",
    "AlbefOutput",
    "AlbefProcessor",
    "AlbefTextConfig",
    "AlbefTextModel",
    "AlbefVisionConfig",
    "AlbefVisionModel",
    "AutoGrounder",
    "AutoGroundingPipeline",
    "AutoModelForVisualGrounding",
    "PhraseAttention",
    "PhraseGrounder",
    "VisualGroundingPipeline",
    "clean_text",
    "explain_function",
    "gradcam",
    "groundable",
    "heatmap_points",
    "normalize_heatmaps",
    "tokenizer_from_texts",
    "upsample_heatmaps",
]
