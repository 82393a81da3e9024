"""The torchvision twin of `AlbefImageProcessorPil`: the same constants, computed on tensors."""

from typing import Any

from transformers.image_processing_backends import TorchvisionBackend
from transformers.utils import requires_backends

from .image_processing_pil_albef import AlbefImageInputs, AlbefImageProcessorPil


class AlbefImageProcessor(AlbefImageInputs, TorchvisionBackend):
    """`AlbefImageProcessorPil` on tensors; some resized values differ from Pillow's by a step or two of 255.

    Args:
        kwargs: as of `AlbefImageProcessorPil`. Calls take `device` as well, where to compute: "cuda", "cpu".

    Returns: `pixel_values` (num_images, 3, height, width) float32.
    """

    def __init__(self, **kwargs):
        requires_backends(self, ["torchvision"])
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        processor_dict = super().to_dict()
        auto_map = processor_dict.get("auto_map", {})
        if "AutoImageProcessor" in auto_map:
            # Both classes, so that remote code saved by this one also runs where torchvision is missing.
            classes = (AlbefImageProcessorPil, type(self))
            auto_map["AutoImageProcessor"] = [f"{c.__module__.rpartition('.')[2]}.{c.__name__}" for c in classes]
        return processor_dict
