"""Latency of heatmaps: the model with autograd against the exported programs, one image and several phrases."""

import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import Row, median_seconds
from benchmarks.workloads import Scale, save_albef
from modeling_albef_amc import AlbefModel
from modeling_albef_amc.tools.export_albef import IMAGE_ENCODER, PHRASE_GROUNDER, export, random_inputs


def export_and_time(scale: Scale, repeats: int) -> list[Row]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, programs = f"{scratch}/albef", Path(scratch) / "serving"
        save_albef(scale, checkpoint)
        model, start = AlbefModel.from_pretrained(checkpoint).requires_grad_(False), time.perf_counter()
        print(f"largest differences: {export(checkpoint, programs)}")
        sizes = [f"{(programs / name).stat().st_size / 2**20:.0f} MiB" for name in (IMAGE_ENCODER, PHRASE_GROUNDER)]
        print(f"exported in {time.perf_counter() - start:.0f} s: {sizes}")
        return latencies(model, programs, repeats)


def latencies(model: AlbefModel, programs: Path, repeats: int, num_tokens: int = 8) -> list[Row]:
    """Milliseconds by the number of phrases about one image; phrases have `num_tokens` at most."""
    encode_images, ground = (torch.export.load(programs / name).module() for name in (IMAGE_ENCODER, PHRASE_GROUNDER))
    rows = []
    with torch.inference_mode():
        for num_phrases in (1, 5, 14):
            pixel_values, phrases = random_inputs(model, 1, num_phrases, num_tokens, model.config.vision_config.grid)
            images = encode_images(pixel_values=pixel_values)
            functions = {
                "model": partial(model, pixel_values, **phrases, output_heatmaps=True),
                "image_encoder": partial(encode_images, pixel_values=pixel_values),
                "phrase_grounder": partial(ground, **phrases, **images),
            }
            seconds = median_seconds(repeats, functions)
            rows.append({"phrases": num_phrases} | {f"{name}, ms": 1000 * value for name, value in seconds.items()})
    return rows
