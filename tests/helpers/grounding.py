"""Visual-grounding pipelines of tiny models, and what counts as the same answers."""

import numpy as np
import pytest
from transformers import pipeline

from modeling_albef_amc import VisualGroundingPipeline
from tests.helpers.data import blip_processor, tiny_albef, tiny_processor
from tests.helpers.models import tiny_blip


def build(family: str) -> VisualGroundingPipeline:
    model, processor = {
        "albef": lambda: (tiny_albef().albef, tiny_processor()),
        "albef_pretraining": lambda: (tiny_albef(), tiny_processor()),
        "blip": lambda: (tiny_blip(), blip_processor()),
    }[family]()
    return pipeline("visual-grounding", model=model, processor=processor, device="cpu")


def same(actual: list[dict], expected: list[dict]) -> None:
    """Equal answers; what is computed in another order may differ in the last digits."""
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        np.testing.assert_allclose(one["heatmap"], other["heatmap"], rtol=1e-4, atol=1e-4 * other["heatmap"].max())
        assert [one[name] for name in ("phrase", "point", "box")] == [
            other[name] for name in ("phrase", "point", "box")
        ]
