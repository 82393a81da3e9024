"""Configuration of ALBEF (Li et al., NeurIPS 2021, arXiv 2107.07651). The defaults are the released base model."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

if TYPE_CHECKING:
    # `save_pretrained` copies what a file imports: this puts pipeline.py into every checkpoint, for `custom_pipelines`;
    # and what that imports, which transformers before 5.9 does not look for in a folder.
    from .gradcam import gradcam  # noqa: F401
    from .image_processing_pil_albef import AlbefImageProcessorPil  # noqa: F401
    from .images import open_image  # noqa: F401
    from .pipeline import VisualGroundingPipeline  # noqa: F401
    from .processing_albef import AlbefProcessor  # noqa: F401
    from .tokenization_albef import clean_text  # noqa: F401
    from .visualization import overlay  # noqa: F401

# `custom_pipelines` of config.json: task → its class, in a file beside it, and the class that loads its model.
PIPELINES = {"visual-grounding": {"impl": "pipeline.VisualGroundingPipeline", "pt": ["AutoModel"]}}
# More than any model has: a damaged file could ask for a model that takes hours to build.
MAX_SIZE, MAX_LAYERS, MAX_SIDE, MAX_CHANNELS = 2**24, 1000, 2**14, 256


@strict
class AlbefVisionConfig(PreTrainedConfig):
    """The image encoder: ViT-B/16, pre-norm, learned positions.

    Args:
        hidden_size, num_hidden_layers: width of a token, and number of layers. num_channels: 3, RGB.
        intermediate_size: width of each layer's MLP. hidden_act: its activation, of `transformers.activations.ACT2FN`.
        num_attention_heads: heads of each layer; they share `hidden_size` evenly.
        image_size: a side in pixels, or (height, width): the number of learned positions, which are interpolated to the
            grid of images of another size.
        patch_size: side of a patch in pixels; it divides both sides of `image_size`.
        layer_norm_eps: what layer norms add to the variance. initializer_range: deviation of the initial weights.
        hidden_dropout_prob, attention_probs_dropout_prob: dropout of layers' outputs, and of attention probabilities.
    """

    model_type = "albef_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int | list[int] | tuple[int, int] = 256
    patch_size: int = 16
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_encoder(self)
        check_sizes(self, "num_channels", most=MAX_CHANNELS)
        check_sizes(self, "patch_size", most=MAX_SIDE)
        size, sides = self.image_size, self._sides()
        if len(sides) != 2 or not all(1 <= side <= MAX_SIDE for side in sides):
            raise ValueError(f"image_size {size} must be a side or (height, width), in 1..{MAX_SIDE:,} pixels.")
        if any(side % self.patch_size for side in sides):
            raise ValueError(f"image_size {size} is not a whole number of patches of {self.patch_size} pixels")

    def _sides(self) -> list[int]:
        return [self.image_size] * 2 if isinstance(self.image_size, int) else list(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches at `image_size`."""
        height, width = self._sides()
        return height // self.patch_size, width // self.patch_size


@strict
class AlbefTextConfig(PreTrainedConfig):
    """The text and fusion encoder: BERT-base, whose layers from `fusion_layer` on attend to the image as well.

    Args: those of `AlbefVisionConfig` for encoders, and
        vocab_size: number of tokens there are.
        encoder_hidden_size: width of the image encoder's tokens; `AlbefConfig` sets it.
        num_hidden_layers: layers of text and fusion encoder together.
        fusion_layer: the first layer, counted from 0, that attends to the image; so do all behind it.
        max_position_embeddings: tokens of the longest phrase, [CLS] included.
        type_vocab_size: number of token types; ALBEF's phrases are all of type 0.
        pad_token_id: the token that fills up a batch's shorter phrases, whose embedding is not trained; None for none.
    """

    model_type = "albef_text_model"
    base_config_key = "text_config"

    vocab_size: int = 30522
    hidden_size: int = 768
    encoder_hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    fusion_layer: int = 6
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        check_encoder(self)
        check_sizes(self, "vocab_size", "max_position_embeddings", "type_vocab_size", "encoder_hidden_size")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id {self.pad_token_id} is no token of the {self.vocab_size} there are.")
        if not 0 <= self.fusion_layer < self.num_hidden_layers:
            raise ValueError(f"fusion_layer {self.fusion_layer} must lie in 0..{self.num_hidden_layers - 1}.")


@strict
class AlbefConfig(PreTrainedConfig):
    """ALBEF: image encoder, text encoder, fusion encoder and their objectives.

    Args:
        vision_config, text_config: the encoders' configurations or their fields; None for the defaults.
        projection_dim: width of the ITC features.
        temperature: initial value of the learned number that ITC's similarities are divided by.
        grounding_layer: the text-encoder layer whose cross-attention is explained, counted from 0 (8: the third fusion
            layer).
        vision_grounding_layer: the image-encoder layer that the `itc` explanation reads; -1 is the last one.
        momentum: share of its own weights that the momentum model keeps in a step (pre-training only).
        queue_size: momentum features of images, and as many of texts, that ITC contrasts with (pre-training only).
        alpha: weight, from 0 to 1, of the momentum model's soft labels in ITC and MLM (pre-training only).
        mlm_distillation_axis: the soft labels of MLM are compared over the "vocabulary"; the AMC release took its
            log-softmax over the "sequence" instead, and this option reproduces that.
        initializer_range: standard deviation of the initial weights outside both encoders.
        tie_word_embeddings: the MLM head's weights are the word embeddings (pre-training only).

    >>> AlbefConfig(vision_config={"image_size": 384}, grounding_layer=8).vision_config.grid
    (24, 24)
    """

    model_type = "albef"
    sub_configs = {"vision_config": AlbefVisionConfig, "text_config": AlbefTextConfig}

    if TYPE_CHECKING:
        vision_config: AlbefVisionConfig
        text_config: AlbefTextConfig
    else:  # what it may be made from
        vision_config: dict | AlbefVisionConfig | None = None
        text_config: dict | AlbefTextConfig | None = None
    projection_dim: int = 256
    temperature: float = 0.07
    grounding_layer: int = 8
    vision_grounding_layer: int = -1
    momentum: float = 0.995
    queue_size: int = 65536
    alpha: float | int = 0.4
    mlm_distillation_axis: Literal["vocabulary", "sequence"] = "vocabulary"
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        kwargs.pop("custom_pipelines", None)
        for name, config_class in self.sub_configs.items():
            value = getattr(self, name)
            if not isinstance(value, config_class):
                setattr(self, name, config_class(**(value or {})))
        self.text_config.encoder_hidden_size = self.vision_config.hidden_size
        super().__post_init__(**kwargs)
        check_sizes(self, "projection_dim", "queue_size")
        first, last = self.text_config.fusion_layer, self.text_config.num_hidden_layers - 1
        layer, vision_layer = self.grounding_layer, self.vision_grounding_layer
        if not first <= layer <= last:
            raise ValueError(f"grounding_layer {layer} has no cross-attention: choose one of {first}..{last}")
        if not -(num_layers := self.vision_config.num_hidden_layers) <= vision_layer < num_layers:
            raise ValueError(f"vision_grounding_layer {vision_layer} is outside the {num_layers} layers")

    @property
    def custom_pipelines(self) -> dict[str, dict]:
        """Pipelines of the checkpoint; none where this package is imported, which has registered its own."""
        return deepcopy(PIPELINES) if __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME) else {}

    def to_diff_dict(self) -> dict[str, Any]:
        return {**super().to_diff_dict(), "custom_pipelines": deepcopy(PIPELINES)}


def check_encoder(config: AlbefVisionConfig | AlbefTextConfig) -> None:
    check_sizes(config, "hidden_size", "intermediate_size")
    check_sizes(config, "num_hidden_layers", "num_attention_heads", most=MAX_LAYERS)
    if config.hidden_size % (heads := config.num_attention_heads):
        raise ValueError(f"hidden_size {config.hidden_size} is not divisible by num_attention_heads {heads}.")
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act {config.hidden_act!r:.80} is none of {', '.join(sorted(ACT2FN))}.")


def check_sizes(config: PreTrainedConfig, *names: str, most: int = MAX_SIZE) -> None:
    for name in names:
        if not 1 <= getattr(config, name) <= most:
            raise ValueError(f"{name} must lie in 1..{most:,}, got {getattr(config, name)}.")


__all__ = ["AlbefConfig", "AlbefTextConfig", "AlbefVisionConfig"]
