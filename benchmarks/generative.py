"""Generative models of real size with random weights in bfloat16: a photo with 14 phrases, and a LoRA step by AMC."""

import time
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen2_5_VLConfig, SmolVLMConfig

from benchmarks.alternatives import NUM_PHRASES
from benchmarks.measure import Row, in_a_process, peak_bytes
from modeling_albef_amc import groundable
from modeling_albef_amc.families.family import Family
from modeling_albef_amc.families.prompts import Prompt
from modeling_albef_amc.families.registry import FAMILIES
from modeling_albef_amc.gradcam import gradcam
from trainer.amc_loss import attention_mask_consistency_loss
from trainer.lora import add_adapters

ROPE = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
# As the models' own: side of images in pixels, class of the configuration, its image encoder and language model.
QWEN_VISION = dict(depth=32, hidden_size=1280, out_hidden_size=2048, num_heads=16, intermediate_size=3420)
QWEN_TEXT = dict(hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16)
QWEN_TEXT |= dict(num_key_value_heads=2, vocab_size=151936, rope_parameters=ROPE, tie_word_embeddings=True)
SMOL_VISION = dict(
    num_attention_heads=12, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, image_size=512, patch_size=16
)
SMOL_TEXT = dict(model_type="llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, vocab_size=49280)
SMOL_TEXT |= dict(num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
MODELS: dict[str, tuple[int, Any, dict[str, Any], dict[str, Any]]] = {
    "Qwen2.5-VL-3B": (448, Qwen2_5_VLConfig, QWEN_VISION, QWEN_TEXT),
    "SmolVLM-256M": (512, SmolVLMConfig, SMOL_VISION, SMOL_TEXT),
}
QUICK = dict(hidden_size=64, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2)
QUICK_TEXT = QUICK | dict(num_key_value_heads=1, head_dim=32, vocab_size=1000)


def build(name: str, quick: bool) -> tuple[Family, PreTrainedModel, dict[str, torch.Tensor]]:
    """A model with an image and phrases of 8 tokens for it."""
    side, config_class, vision, text = MODELS[name]
    if quick:
        rope = ROPE | {"mrope_section": [4, 6, 6]} if "rope_parameters" in text else {"rope_type": "default"}
        text = text | QUICK_TEXT | dict(rope_parameters=rope | {"rope_theta": 1e4})
        vision = vision | QUICK | dict(out_hidden_size=64, depth=2, num_heads=2)
    tokens = dict(image_token_id=9, tie_word_embeddings=True, scale_factor=4)  # the last is SmolVLM's
    config = config_class(vision_config=vision, text_config=text, **tokens)
    Prompt([1, 2, 3], [4], [5, 6, 7], [5, 8], 10, 11, []).keep(config, image_size=side)
    family = FAMILIES[config.model_type]
    with torch.device("meta"):
        model = family.load(family.model_class)._from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu").init_weights()
    phrases = torch.randint(12, 1000, (NUM_PHRASES, 8))
    batch = dict(pixel_values=torch.randn(1, 3, side, side).bfloat16(), input_ids=phrases)
    return family, model.eval(), batch | dict(image_index=torch.zeros(NUM_PHRASES, dtype=torch.long))


def ground(name: str, quick: bool) -> dict[str, float]:
    """Returns: seconds, and bytes at the peak of the whole process."""
    family, model, batch = build(name, quick)
    start = time.perf_counter()
    assert gradcam(family.explain(model, **batch)).isfinite().all()
    return {"seconds": time.perf_counter() - start, "peak": peak_bytes()}


def train(name: str, quick: bool) -> dict[str, float]:
    """Of a step: likelihood and AMC of 4 phrases of an image, by LoRA."""
    _, model, batch = build(name, quick)
    model.name_or_path = name
    add_adapters(model, rank=8)
    model = groundable(model.train())
    batch |= {key: batch[key][:4] for key in ("input_ids", "image_index")}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, start = torch.optim.AdamW(trained), time.perf_counter()
    output = model(**batch, objectives=["loss_caption"], output_heatmaps=True)
    masks = torch.zeros(4, 64, 64)
    masks[:, :32] = 1
    (output.loss + sum(attention_mask_consistency_loss(output.heatmaps, masks).values())).backward()
    assert all(parameter.grad.isfinite().all() for parameter in trained if parameter.grad is not None)
    optimizer.step()
    return {"seconds": time.perf_counter() - start, "peak": peak_bytes()}


def costs(quick: bool) -> list[Row]:
    rows = []
    for function, name in ((ground, "Qwen2.5-VL-3B"), (ground, "SmolVLM-256M"), (train, "SmolVLM-256M")):
        found = in_a_process(function, name, quick)
        row = {"model": name, "what": function.__name__, "seconds": found["seconds"]}
        rows.append(row | {"peak, GiB": found["peak"] / 2**30})
    return rows
