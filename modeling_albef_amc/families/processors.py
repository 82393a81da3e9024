"""What the processors of all families must do for grounding: show the model the whole image."""

from transformers import PreTrainedConfig, ProcessorMixin
from transformers.models.clip import CLIPImageProcessorPil


def whole_images(processor: ProcessorMixin, config: PreTrainedConfig, image_size: int | None = None) -> ProcessorMixin:
    """Sets a processor to resize images to a square, all of them and nothing but them; it is changed in place.

    CLIP and its like cut out the middle of a image; ViLT and BridgeTower fill it up to a shape of the batch. Heatmaps
    would lie beside what they show.

    Args:
        config: of the model. image_size: side in pixels; default: the processor's own, or that of the configuration.
    """
    images = processor.image_processor
    side = image_size or dict(images.size).get("height") or getattr(config, "vision_config", config).image_size
    size = {"height": side, "width": side}
    if getattr(images, "size_divisor", None) is not None:
        # Theirs can make no squares.
        values = {name: getattr(images, name) for name in ("image_mean", "image_std", "resample")}
        images = processor.image_processor = CLIPImageProcessorPil(**values)
    images.size = size
    if config.model_type == "bridgetower" or getattr(images, "crop_size", None) is not None:
        # BridgeTower's processor asks for a cut in any case: one of all that there is.
        images.do_center_crop, images.crop_size = False, size
    return processor
