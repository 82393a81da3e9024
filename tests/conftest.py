"""Fixtures that several test files share: tiny models, a tiny data set, and the reference data beside the project."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch
from transformers import BlipConfig, BlipForImageTextRetrieval

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """A test of the reference data that is skipped although the data is there has failed."""
    report = yield
    reads_shared = item.get_closest_marker("shared") or "shared_dir" in getattr(item, "fixturenames", ())
    if report.skipped and not hasattr(report, "wasxfail") and reads_shared and SHARED.is_dir():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"{item.nodeid} needs {SHARED}, which is there: {reason}"
    return report


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


def tiny_blip() -> BlipForImageTextRetrieval:
    """BLIP with two image and three text layers, for the same images and phrases."""
    vision = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, vocab_size=40)
    no_dropout = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tokens = dict(bos_token_id=1, eos_token_id=2, sep_token_id=2, pad_token_id=0)
    config = BlipConfig(
        vision_config=dict(**vision, image_size=32, patch_size=8),
        text_config=dict(**text, **no_dropout, **tokens, encoder_hidden_size=16, max_position_embeddings=20),
        image_text_hidden_size=8,
    )
    model = BlipForImageTextRetrieval(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # initialised as it is, its second-order gradients would drown in rounding
                parameter.normal_(std=0.3)
    return model


def tiny_batch(
    num_phrases: int = 4, num_tokens: int = 6, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Random images with one phrase each; the first phrase is two tokens shorter than the others."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 40, (num_phrases, num_tokens), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, -2:] = 0
    return {
        "pixel_values": torch.randn(num_phrases, 3, 32, 32, generator=generator).to(dtype),
        "input_ids": input_ids * attention_mask,
        "attention_mask": attention_mask,
    }
