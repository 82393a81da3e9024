"""Heatmaps of single attention heads: to compare them, and to ground by a few that were found to point best."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from modeling_albef_amc.families.auto import AutoGrounder
from modeling_albef_amc.families.family import Explain
from modeling_albef_amc.families.registry import explained_layers
from modeling_albef_amc.pipeline import GroundedImage

Head = tuple[int, int]  # its layer, and its number in that


class HeadGrounder(AutoGrounder):
    """An engine whose heatmaps are (num_heads, rows, columns) of a layer; or with `heads` the mean of theirs."""

    heads: Sequence[Head] = ()

    def method_functions(self, method: str, in_captions: bool = False) -> tuple[Callable, Callable]:
        explain, heatmaps_of = super().method_functions(method, in_captions)
        return explain, partial(heatmaps_of, per_head=True)

    def explain_phrases(self, *args: Any, explain: Explain | None = None, **options: Any) -> Sequence[GroundedImage]:
        """As of `PhraseGrounder`, a pass for each of their layers. ValueError: a layer has no such head."""
        if not self.heads or not options.get("output_points", True):
            return super().explain_phrases(*args, explain=explain, **options)
        images, *args = args
        sums: list[list] = [[] for _ in images]
        for layer in dict.fromkeys(layer for layer, _ in self.heads):
            images = super().explain_phrases(images, *args, explain=explain, **options | {"grounding_layer": layer})
            chosen = [head for of, head in self.heads if of == layer]
            for number, image in enumerate(images):
                if image.heatmaps and max(chosen) >= len(image.heatmaps[0]):
                    raise ValueError(f"--heads: layer {layer} has heads 0 to {len(image.heatmaps[0]) - 1}.")
                found = [of_heads[chosen].sum(dim=0) for of_heads in image.heatmaps]
                sums[number] = [a + b for a, b in zip(sums[number], found)] if sums[number] else found
        for image, of_image in zip(images, sums):
            image.heatmaps = [heatmap / len(self.heads) for heatmap in of_image]
        return images


def set_heads(grounder: Any, heads: list[Head], explanation: str | None) -> None:
    """Chooses what a `HeadGrounder` grounds by. ValueError: the model has no such layer."""
    layers = explained_layers(grounder.model, explanation)
    if other := [layer for layer, _ in heads if layer not in layers]:
        raise ValueError(f"--heads: layer {other[0]} explains nothing here, only {', '.join(map(str, layers))} do.")
    grounder.heads = heads
