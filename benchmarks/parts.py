"""Where the time of one evaluation batch goes: its parts, timed by hooks that are gone afterwards."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.timing import seconds_of, synchronize
from benchmarks.workloads import Batch, precision
from modeling_albef_amc import AlbefModel, explain_function, gradcam, heatmap_points


def seconds_of_parts(model: AlbefModel, batch: Batch, bf16: bool = False) -> dict[str, float]:
    """Seconds of each part of `workloads.evaluate`, and of the `rest`; their sum is the whole.

    Raises:
        RuntimeError: a part never ran where it is looked for: the model's code has moved on, this file has not.
    """
    names = "pixel_values", "input_ids", "attention_mask", "image_index"
    inputs = [batch[name] for name in names]
    results = {}

    def explain() -> None:
        results["explained"] = explain_function(model)(model, *inputs)

    def differentiate() -> None:
        results["heatmaps"] = gradcam(results["explained"])

    with torch.no_grad(), precision(model.device, bf16), timed_parts(model) as parts:
        forward = seconds_of(explain)
        parts["rest"] = forward - sum(parts.values())
        parts["explanation"] = seconds_of(differentiate)
        parts["points"] = seconds_of(lambda: heatmap_points(results["heatmaps"], batch["target_sizes"]))
    return dict(parts)


@contextmanager
def timed_parts(model: AlbefModel) -> Iterator[dict[str, float]]:
    text_model, fusion_layer = model.text_model, model.config.text_config.fusion_layer
    parts: dict[str, float] = defaultdict(float)
    modules = [(model.vision_model, "image_encoder")]
    modules += [
        (layer, "fusion_layers" if index >= fusion_layer else "text_layers")
        for index, layer in enumerate(text_model.layers)
    ]
    with ExitStack() as stack:
        for module, part in modules:
            stack.enter_context(timed_module(module, part, parts))
        project = timed_function(text_model.project_images, "projections", parts)
        stack.enter_context(patch.object(text_model, "project_images", project))
        yield parts
    missing = {"image_encoder", "projections", "text_layers", "fusion_layers"} - parts.keys()
    if missing:
        raise RuntimeError(f"Never called where benchmarks/parts.py looks for it: {', '.join(sorted(missing))}.")


@contextmanager
def timed_module(module: nn.Module, part: str, parts: dict[str, float]) -> Iterator[None]:
    started = []

    def before(module, inputs) -> None:
        synchronize()
        started.append(time.perf_counter())

    def after(module, inputs, output) -> None:
        synchronize()
        parts[part] += time.perf_counter() - started.pop()

    handles = module.register_forward_pre_hook(before), module.register_forward_hook(after)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def timed_function(function: Callable, part: str, parts: dict[str, float]) -> Callable:
    def timed(*args, **kwargs):
        result = []
        parts[part] += seconds_of(lambda: result.append(function(*args, **kwargs)))
        return result[0]

    return timed
