"""Pictures of heatmaps: one row a phrase, one column a model, the annotated boxes drawn in."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from modeling_albef_amc.gradcam import heatmap_points, upsample_heatmaps
from modeling_albef_amc.images import open_image

COLORMAP = "inferno"  # perceptually even


def overlay(image: Image.Image, heatmap: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """A heatmap laid over its image.

    Args:
        heatmap: (height, width), of the image's size, any range; shown from its minimum to its maximum.
        opacity: of the hottest pixel; the coldest one shows the plain image.

    Returns: (height, width, 3) uint8.
    """
    heat = heatmap - heatmap.min()
    heat = heat / max(heat.max(), 1e-12)
    colors = colormaps[COLORMAP](heat)[..., :3]
    weight = opacity * heat[..., None]
    photo = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    # Cold parts are dimmed a little, so that the heat stands out on bright photos too.
    blended = photo * (1 - weight) * (0.75 + 0.25 * heat[..., None]) + colors * weight
    return (blended * 255).round().astype(np.uint8)


def heatmap_grid(
    images: Sequence[Image.Image],
    phrases: Sequence[str],
    boxes: Sequence[Sequence[Sequence[float]]],
    columns: dict[str, Sequence[tuple[np.ndarray, tuple[int, int]]]],
) -> Image.Image:
    """Draws a grid: the image with its true region, then one column for each model.

    Args:
        images, phrases: one a row.
        boxes: the true boxes of each row, xyxy in pixels of its image.
        columns: title → for each row the heatmap (height, width) at its image's size and its maximum (x, y) in pixels.
    """
    titles = ["annotated region", *columns]
    # Without the 1e-6, Matplotlib before 3.11.2 makes 459 pixels of 4.6 inches.
    size = 2.3 * len(titles) + 1e-6, 2.55 * len(images) + 0.35 + 1e-6
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(images), len(titles), squeeze=False)
    for row, (image, phrase) in enumerate(zip(images, phrases)):
        axes[row, 0].imshow(image)
        # Matplotlib's own wrapping knows the figure's edge only, not the next column.
        axes[row, 0].set_title(textwrap.fill(f"“{phrase}”", 38), fontsize=9, loc="left")
        for axis, (title, results) in zip(axes[row, 1:], columns.items()):
            heatmap, (x, y) = results[row]
            hit = any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in boxes[row])
            axis.imshow(overlay(image, heatmap))
            axis.plot(
                x, y, marker="+" if hit else "x", color="lime" if hit else "red", markersize=11, markeredgewidth=2.5
            )
            axis.set_title(f"{title}: {'hit' if hit else 'miss'}", fontsize=9, color="green" if hit else "firebrick")
        for axis in axes[row]:
            for x1, y1, x2, y2 in boxes[row]:
                axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="cyan", linewidth=1.5))
            axis.set_axis_off()
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def grid_of_batch(records: Sequence[dict[str, Any]], columns: dict[str, torch.Tensor]) -> Image.Image:
    """A grid for records of a data set.

    Args:
        records: with `image` (PIL, or the undecoded {"bytes", "path"}), `phrase` and `boxes`.
        columns: title → heatmaps (num_records, rows, columns) as the model gives them.
    """
    images = [open_image(record["image"]) for record in records]
    drawn = {}
    for title, heatmaps in columns.items():
        heatmaps = heatmaps.float().cpu()
        points = heatmap_points(heatmaps, torch.tensor([(image.height, image.width) for image in images])).tolist()
        maps = [
            upsample_heatmaps(heatmap[None], (image.height, image.width))[0].numpy()
            for heatmap, image in zip(heatmaps, images)
        ]
        drawn[title] = list(zip(maps, points))
    phrases = [record["phrase"] for record in records]
    return heatmap_grid(images, phrases, [record.get("boxes") or [] for record in records], drawn)
