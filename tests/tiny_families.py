"""Tiny random models of every family, for images of 32 x 32 pixels in 4 x 4 patches and the phrases of `tiny_batch`.

Initialised as they are, their second-order gradients would drown in rounding: the weights are larger.
"""

import torch
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    Blip2Config,
    Blip2ForImageTextRetrieval,
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

from tests.conftest import tiny_blip

SIZES = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
IMAGES = dict(image_size=32, patch_size=8)
NO_DROPOUT = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
WORDS = dict(vocab_size=40, max_position_embeddings=20, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def enlarged(model: PreTrainedModel, std: float = 0.3) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=std)
    return model.eval()


def tiny_blip_2(**options) -> PreTrainedModel:
    config = Blip2Config(
        vision_config=SIZES | IMAGES,
        qformer_config=SIZES
        | NO_DROPOUT
        | dict(encoder_hidden_size=16, vocab_size=40, max_position_embeddings=20, cross_attention_frequency=2)
        | dict(use_qformer_text_input=True, pad_token_id=0)
        | options,
        text_config=dict(model_type="opt", hidden_size=8, num_hidden_layers=1, num_attention_heads=1, ffn_dim=8)
        | dict(vocab_size=10, word_embed_proj_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        num_query_tokens=3,
        image_text_hidden_size=8,
        image_token_index=None,
    )
    return enlarged(Blip2ForImageTextRetrieval._from_config(config, attn_implementation="eager"))


def tiny_vilt(**options) -> PreTrainedModel:
    config = ViltConfig(**SIZES | IMAGES | NO_DROPOUT | WORDS | options, max_image_length=-1)
    return enlarged(ViltForImageAndTextRetrieval._from_config(config, attn_implementation="eager"))


def tiny_bridgetower(**options) -> PreTrainedModel:
    # Positions begin behind the padding's.
    text = SIZES | NO_DROPOUT | WORDS | dict(max_position_embeddings=24) | options
    vision = dict(hidden_size=64, num_hidden_layers=3, **IMAGES)  # its heads are 64 wide
    config = BridgeTowerConfig(
        text_config=text, vision_config=vision, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    return enlarged(BridgeTowerForImageAndTextRetrieval._from_config(config, attn_implementation="eager"))


def tiny_clip(**options) -> PreTrainedModel:
    config = CLIPConfig(text_config=SIZES | WORDS, vision_config=SIZES | IMAGES | options, projection_dim=8)
    return enlarged(CLIPModel._from_config(config, attn_implementation="eager"))


def tiny_altclip(**options) -> PreTrainedModel:
    text = SIZES | NO_DROPOUT | WORDS | dict(max_position_embeddings=24, project_dim=8)
    config = AltCLIPConfig(text_config=text, vision_config=SIZES | IMAGES | options, projection_dim=8)
    return enlarged(AltCLIPModel._from_config(config, attn_implementation="eager"))


def tiny_chinese_clip(**options) -> PreTrainedModel:
    config = ChineseCLIPConfig(
        text_config=SIZES | NO_DROPOUT | WORDS, vision_config=SIZES | IMAGES | options, projection_dim=8
    )
    return enlarged(ChineseCLIPModel._from_config(config, attn_implementation="eager"))


def tiny_siglip(**options) -> PreTrainedModel:
    config = SiglipConfig(text_config=SIZES | WORDS | dict(projection_size=16), vision_config=SIZES | IMAGES | options)
    return enlarged(SiglipModel._from_config(config, attn_implementation="eager"))


TINY = {
    "blip": tiny_blip,
    "blip-2": tiny_blip_2,
    "vilt": tiny_vilt,
    "bridgetower": tiny_bridgetower,
    "clip": tiny_clip,
    "altclip": tiny_altclip,
    "chinese_clip": tiny_chinese_clip,
    "siglip": tiny_siglip,
}
