"""What a user would take instead: one photo and 14 phrases through detectors, and BLIP's Grad-CAM. Random weights."""

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
)

NUM_PHRASES = 14
CLS, SEP, PERIOD = 101, 102, 1012
LAYERS = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}


@torch.no_grad()
def detect(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).logits


def owlv2(device: torch.device, quick: bool) -> Callable:
    """OWLv2-base, patches of 16 pixels, 960 x 960: all phrases in one pass."""
    size = 64 if quick else 960
    small = {"vision_config": LAYERS, "text_config": LAYERS, "projection_dim": 32} if quick else {}
    config = Owlv2Config(**small)
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
    small = layers | {"num_queries": 10} if quick else {}
    text = [CLS]
    for _ in range(NUM_PHRASES):
        text += [*torch.randint(2000, 30000, (6,)).tolist(), PERIOD]
    inputs = {
        "pixel_values": torch.randn(1, 3, height, width),
        "pixel_mask": torch.ones(1, height, width, dtype=torch.long),
        "input_ids": torch.tensor([[*text, SEP]]),
    }
    model = GroundingDinoForObjectDetection(GroundingDinoConfig(**small)).to(device).eval()
    return partial(detect, model, {name: tensor.to(device) for name, tensor in inputs.items()})


def blip(device: torch.device, quick: bool) -> Callable:
    """BLIP-base with its matching head, 384 x 384: Grad-CAM phrase by phrase, on layer 8 as BLIP's own code."""
    size = 32 if quick else 384
    vision, text = (LAYERS, LAYERS | {"encoder_hidden_size": 32}) if quick else ({}, {"num_attention_heads": 12})
    config = BlipConfig(vision_config={**vision, "image_size": size}, text_config=text)
    model = BlipForImageTextRetrieval(config).to(device).eval()
    pixel_values = torch.randn(1, 3, size, size, device=device)
    phrases = torch.randint(1000, 30000, (NUM_PHRASES, 7), device=device)
    layer = model.text_encoder.encoder.layer[2 * config.text_config.num_hidden_layers // 3]

    def explain_all() -> list[torch.Tensor]:
        return [blip_heatmap(model, layer, pixel_values, phrase[None]) for phrase in phrases]

    return explain_all


def blip_heatmap(
    model: BlipForImageTextRetrieval, layer: torch.nn.Module, pixel_values: torch.Tensor, input_ids: torch.Tensor
) -> torch.Tensor:
    recorded = []
    handle = layer.crossattention.self.register_forward_hook(lambda module, inputs, output: recorded.append(output[1]))
    logits = model(input_ids=input_ids, pixel_values=pixel_values, attention_mask=torch.ones_like(input_ids)).itm_score
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), recorded)
    return (recorded[0] * gradient.relu())[..., 1:].mean(dim=(1, 2)).detach()


ALTERNATIVES = {"owlv2_base_960px": owlv2, "grounding_dino_tiny_800px": grounding_dino, "blip_gradcam_384px": blip}
