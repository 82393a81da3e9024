"""Fixtures that several test files share: tiny models, a tiny data set, and the reference data beside the project."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch

from modeling_albef_amc import AlbefConfig

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The reference data beside the project. Where it is there, no test that needs it may be skipped."""
    if not SHARED.is_dir():
        pytest.skip("no reference data beside the project (../shared)")
    return SHARED


def tiny_config(**overrides) -> AlbefConfig:
    """ALBEF with two image, two text and three fusion layers; images of 32 x 32 pixels, 4 x 4 patches."""
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=5, num_attention_heads=2, fusion_layer=2)
    settings = dict(
        vision_config=dict(**vision, image_size=32, patch_size=8, initializer_range=0.2),
        text_config=dict(
            **text,
            vocab_size=40,
            max_position_embeddings=20,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.2,
        ),
        projection_dim=8,
        queue_size=12,
        grounding_layer=3,
        initializer_range=0.2,
    )
    return AlbefConfig(**{**settings, **overrides})


def tiny_batch(num_phrases: int = 4, num_tokens: int = 6, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random images with one phrase each; the first phrase is two tokens shorter than the others."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 40, (num_phrases, num_tokens), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, -2:] = 0
    return {
        "pixel_values": torch.randn(num_phrases, 3, 32, 32, generator=generator, dtype=dtype),
        "input_ids": input_ids * attention_mask,
        "attention_mask": attention_mask,
    }
