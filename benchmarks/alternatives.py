"""What a user would take instead: one image and 14 phrases through detectors, and BLIP's Grad-CAM. Random weights."""

from collections.abc import Callable
from functools import partial

import torch
from transformers import (
    BlipConfig,
    BlipForImageTextRetrieval,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    PreTrainedModel,
)

from modeling_albef_amc import explain_function, gradcam

NUM_PHRASES = 14
CLS, SEP, PERIOD = 101, 102, 1012
LAYERS = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}


@torch.no_grad()
def detect(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).logits


def owlv2(device: torch.device, quick: bool) -> Callable:
    """OWLv2-base, patches of 16 pixels, 960 x 960: all phrases in one pass."""
    size = 64 if quick else 960
    config = Owlv2Config(**{"vision_config": LAYERS, "text_config": LAYERS, "projection_dim": 32} if quick else {})
    config.vision_config.image_size, config.vision_config.patch_size = size, 16
    inputs = {
        "pixel_values": torch.randn(1, 3, size, size),
        "input_ids": torch.randint(1000, 40000, (NUM_PHRASES, 16)),
        "attention_mask": torch.ones(NUM_PHRASES, 16, dtype=torch.long),
    }
    model = Owlv2ForObjectDetection(config).to(device).eval()
    return partial(detect, model, {name: tensor.to(device) for name, tensor in inputs.items()})


def grounding_dino(device: torch.device, quick: bool) -> Callable:
    """GroundingDINO-tiny, 800 x 1066: all phrases in one text, a period after each."""
    height, width = (96, 128) if quick else (800, 1066)
    layers = {"text_config": {"model_type": "bert"} | LAYERS, "encoder_layers": 1, "decoder_layers": 2}
    phrases = torch.cat([torch.randint(2000, 30000, (NUM_PHRASES, 6)), torch.full((NUM_PHRASES, 1), PERIOD)], dim=1)
    inputs = {
        "pixel_values": torch.randn(1, 3, height, width),
        "pixel_mask": torch.ones(1, height, width, dtype=torch.long),
        "input_ids": torch.tensor([[CLS, *phrases.flatten().tolist(), SEP]]),
    }
    config = GroundingDinoConfig(**layers | {"num_queries": 10} if quick else {})
    model = GroundingDinoForObjectDetection(config).to(device).eval()
    return partial(detect, model, {name: tensor.to(device) for name, tensor in inputs.items()})


def blip(device: torch.device, quick: bool) -> Callable:
    """BLIP-base with its matching head, 384 x 384: Grad-CAM on layer 8, image and phrase anew for every pair."""
    size = 32 if quick else 384
    vision, text = (LAYERS, LAYERS | {"encoder_hidden_size": 32}) if quick else ({}, {"num_attention_heads": 12})
    config = BlipConfig(vision_config={**vision, "image_size": size}, text_config=text)
    model = BlipForImageTextRetrieval._from_config(config, attn_implementation="eager").to(device).eval()
    pixel_values = torch.randn(1, 3, size, size, device=device)
    phrases = torch.randint(1000, 30000, (NUM_PHRASES, 7), device=device)
    explain = explain_function(model)
    return lambda: [gradcam(explain(model, pixel_values, phrase[None])).detach() for phrase in phrases]


ALTERNATIVES = {"owlv2_base_960px": owlv2, "grounding_dino_tiny_800px": grounding_dino, "blip_gradcam_384px": blip}
