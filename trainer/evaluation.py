"""Where a model points, over a data set, on any number of processes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling_albef_amc.families import Explain
from modeling_albef_amc.gradcam import gradcam, heatmap_points

PADDING = -100


def batch_heatmaps(model: PreTrainedModel, explain: Explain, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(num_phrases, rows, columns): the heatmaps of a batch of `GroundingCollator`. No parameter gets a gradient."""
    with torch.no_grad():
        return gradcam(
            explain(model, batch["pixel_values"], batch["input_ids"], batch["attention_mask"], batch["image_index"])
        )


def point_at(
    model: PreTrainedModel,
    explain: Explain,
    dataset: Any,
    collator: Callable,
    batch_size: int,
    accelerator: Accelerator,
    num_workers: int = 0,
    description: str | None = None,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Grounds every phrase of a data set; rows of one image that follow each other share its encoding.

    Args:
        dataset: records as `GroundingCollator` takes them.
        description: what the progress bar says; none for no bar.

    Returns: points (num_phrases, 2), (x, y) in pixels of the original image, and the true boxes of each phrase
        (num_boxes, 4), both in the order of the data set, the same on every process.
    """
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=collator, num_workers=num_workers)
    model, loader = accelerator.prepare_model(model, evaluation_mode=True), accelerator.prepare(loader)
    model.eval()
    points, boxes = [], []
    bar = tqdm(
        total=len(dataset),
        desc=description,
        unit="phrase",
        disable=description is None or not accelerator.is_main_process,
    )
    for batch in loader:
        with accelerator.autocast():
            heatmaps = batch_heatmaps(model, explain, batch)
        answers = heatmap_points(heatmaps, batch["image_sizes"])
        padded = accelerator.pad_across_processes(batch["boxes"], dim=1, pad_index=PADDING)
        gathered = accelerator.gather_for_metrics((answers, padded))
        points.append(gathered[0].cpu().numpy())
        boxes += [rows[(rows != PADDING).any(axis=1)] for rows in gathered[1].cpu().numpy()]
        bar.update(len(gathered[0]))
    bar.close()
    return np.concatenate(points), boxes
