"""What the processors of all families must do for grounding: show the model the whole photo."""

from transformers import PreTrainedConfig, ProcessorMixin
from transformers.models.blip import BlipImageProcessorPil


def whole_photos(processor: ProcessorMixin, config: PreTrainedConfig, image_size: int | None = None) -> ProcessorMixin:
    """Sets a processor to resize photos to a square, all of them and nothing but them; it is changed in place.

    CLIP and its like cut out the middle of a photo; ViLT and BridgeTower fill it up to a shape of the batch. Heatmaps
    would lie beside what they show.

    Args:
        config: of the model. image_size: side in pixels; default: the processor's own, or that of the configuration.
    """
    images = processor.image_processor
    side = image_size or dict(images.size).get("height") or getattr(config, "vision_config", config).image_size
    size = {"height": side, "width": side}
    if getattr(images, "size_divisor", None) is not None:
        # Theirs can make no squares; BLIP's does nothing else.
        values = {name: getattr(images, name) for name in ("image_mean", "image_std", "resample")}
        processor.image_processor = BlipImageProcessorPil(size=size, **values)
        return processor
    images.size = size
    if getattr(images, "do_center_crop", None):
        images.do_center_crop = False
    return processor


def max_tokens(config: PreTrainedConfig) -> int:
    """Places for word pieces that a model has."""
    text = getattr(config, "qformer_config", None) or config.get_text_config()
    return text.max_position_embeddings
