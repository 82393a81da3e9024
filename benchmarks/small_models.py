"""Random models of every family, of whatever size: for studies, and for the tests."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    BlipConfig,
    BlipForImageTextRetrieval,
    BridgeTowerConfig,
    BridgeTowerForImageAndTextRetrieval,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    ViltConfig,
    ViltForImageAndTextRetrieval,
)

NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@dataclass(frozen=True)
class Size:
    """Of a model, its images in pixels, and its phrases in tokens.

    Args:
        std: of all its matrices: at a width as small as this, what transformers takes for wide models is too little.
        pad, eos: ids of the tokens that fill phrases up and end them.
    """

    width: int = 64
    layers: int = 3
    heads: int = 4
    image_size: int = 128
    patch_size: int = 16
    vocab_size: int = 100
    max_tokens: int = 24
    std: float = 0.12
    pad: int = 0
    eos: int = 3

    @property
    def encoder(self) -> dict[str, int]:
        return dict(
            hidden_size=self.width,
            intermediate_size=2 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
        )

    @property
    def images(self) -> dict[str, int]:
        return dict(image_size=self.image_size, patch_size=self.patch_size)

    @property
    def words(self) -> dict[str, int]:
        tokens = dict(pad_token_id=self.pad, bos_token_id=1, eos_token_id=self.eos)
        return dict(vocab_size=self.vocab_size, max_position_embeddings=self.max_tokens, **tokens)


def blip(size: Size, **options) -> PreTrainedModel:
    text = size.encoder | NO_DROPOUT | size.words | dict(sep_token_id=size.eos, encoder_hidden_size=size.width)
    config = BlipConfig(
        vision_config=size.encoder | size.images, text_config=text | options, image_text_hidden_size=size.width
    )
    return BlipForImageTextRetrieval._from_config(config, attn_implementation="eager")


def blip_2(size: Size, **options) -> PreTrainedModel:
    qformer = size.encoder | NO_DROPOUT | dict(vocab_size=size.vocab_size, max_position_embeddings=size.max_tokens)
    qformer |= dict(encoder_hidden_size=size.width, cross_attention_frequency=2, use_qformer_text_input=True)
    # A language model comes with the configuration; there is none in the model.
    unused = dict(model_type="opt", hidden_size=8, num_hidden_layers=1, num_attention_heads=1, ffn_dim=8, vocab_size=10)
    config = Blip2Config(
        vision_config=size.encoder | size.images,
        qformer_config=qformer | dict(pad_token_id=size.pad) | options,
        text_config=unused | dict(word_embed_proj_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        num_query_tokens=4,
        image_text_hidden_size=size.width,
        image_token_index=None,
    )
    return Blip2ForImageTextRetrieval._from_config(config, attn_implementation="eager")


def vilt(size: Size, **options) -> PreTrainedModel:
    config = ViltConfig(
        **size.encoder | size.images | NO_DROPOUT | size.words | options,
        max_image_length=-1,
    )
    return ViltForImageAndTextRetrieval._from_config(config, attn_implementation="eager")


def bridgetower(size: Size, **options) -> PreTrainedModel:
    text = size.encoder | NO_DROPOUT | size.words | options
    text["max_position_embeddings"] += size.pad + 1  # its positions begin behind the padding's
    # Heads of its image encoder are 64 wide.
    vision = dict(hidden_size=max(64, size.width), num_hidden_layers=size.layers, **size.images)
    config = BridgeTowerConfig(
        text_config=text,
        vision_config=vision,
        hidden_size=size.width,
        num_hidden_layers=size.layers - 1,
        num_attention_heads=size.heads,
    )
    return BridgeTowerForImageAndTextRetrieval._from_config(config, attn_implementation="eager")


def clip(size: Size, **options) -> PreTrainedModel:
    config = CLIPConfig(
        text_config=size.encoder | size.words,
        vision_config=size.encoder | size.images | options,
        projection_dim=size.width,
    )
    return CLIPModel._from_config(config, attn_implementation="eager")


def altclip(size: Size, **options) -> PreTrainedModel:
    text = size.encoder | NO_DROPOUT | size.words | dict(project_dim=size.width)
    text["max_position_embeddings"] += size.pad + 1
    config = AltCLIPConfig(
        text_config=text, vision_config=size.encoder | size.images | options, projection_dim=size.width
    )
    return AltCLIPModel._from_config(config, attn_implementation="eager")


def chinese_clip(size: Size, **options) -> PreTrainedModel:
    config = ChineseCLIPConfig(
        text_config=size.encoder | NO_DROPOUT | size.words,
        vision_config=size.encoder | size.images | options,
        projection_dim=size.width,
    )
    return ChineseCLIPModel._from_config(config, attn_implementation="eager")


def siglip(size: Size, **options) -> PreTrainedModel:
    config = SiglipConfig(
        text_config=size.encoder | size.words | dict(projection_size=size.width),
        vision_config=size.encoder | size.images | options,
    )
    return SiglipModel._from_config(config, attn_implementation="eager")


BUILDERS: dict[str, Callable[..., PreTrainedModel]] = {
    "blip": blip,
    "blip-2": blip_2,
    "vilt": vilt,
    "bridgetower": bridgetower,
    "clip": clip,
    "altclip": altclip,
    "chinese_clip": chinese_clip,
    "siglip": siglip,
}


def build(family: str, size: Size, **options) -> PreTrainedModel:
    """A random model in evaluation mode.

    Args:
        options: of the configuration of the part whose attention is explained.
    """
    model = BUILDERS[family](size, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=size.std)
    return model.eval()
