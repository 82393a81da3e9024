"""Latency of heatmaps: the model with autograd against the exported programs, one image and several phrases.

`python benchmarks/serving.py` exports a base-size model of random weights and prints the table of docs/serving.md.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.timing import median_seconds
from modeling_albef_amc import AlbefConfig, AlbefModel
from modeling_albef_amc.tools.export_albef import (
    IMAGE_ENCODER,
    PHRASE_GROUNDER,
    export_image_encoder,
    export_phrase_grounder,
    largest_differences,
    random_inputs,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phrases", type=int, nargs="+", default=[1, 5, 14])
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AlbefModel(AlbefConfig()).eval().requires_grad_(False)
    model.text_model.set_attn_implementation("eager")  # for the trace, as `load_model` does
    with tempfile.TemporaryDirectory() as scratch:
        folder, start = Path(scratch), time.perf_counter()
        torch.export.save(export_image_encoder(model), folder / IMAGE_ENCODER)
        torch.export.save(export_phrase_grounder(model, model.config.grounding_layer), folder / PHRASE_GROUNDER)
        sizes = {name: (folder / name).stat().st_size / 2**20 for name in (IMAGE_ENCODER, PHRASE_GROUNDER)}
        print(
            f"exported in {time.perf_counter() - start:.0f} s;",
            {name: f"{size:.0f} MiB" for name, size in sizes.items()},
        )
        model.text_model.set_attn_implementation("sdpa")
        differences = largest_differences(folder, model, model.config.grounding_layer)
        print("largest differences:", {name: f"{value:.1e}" for name, value in differences.items()})
        start = time.perf_counter()
        encode_images, ground = (torch.export.load(folder / name).module() for name in sizes)
        print(f"loaded in {time.perf_counter() - start:.1f} s")
    print("| phrases | model | programs | image_encoder | phrase_grounder |\n|---|---|---|---|---|")
    grid = model.config.vision_config.grid
    with torch.inference_mode():
        for num_phrases in options.phrases:
            pixel_values, phrases = random_inputs(model, 1, num_phrases, options.tokens, grid)
            images = encode_images(pixel_values=pixel_values)
            eager, image, phrase = median_seconds(
                options.repeats,
                partial(model, pixel_values, **phrases, output_heatmaps=True),
                partial(encode_images, pixel_values=pixel_values),
                partial(ground, **phrases, **images),
            )
            cells = [f"{1000 * seconds:.0f} ms" for seconds in (eager, image + phrase, image, phrase)]
            print(f"| {num_phrases} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
