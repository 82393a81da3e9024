"""Attention Mask Consistency: the loss that asks a heatmap to lie inside the annotated region."""

import torch
from torch.nn import functional as F

from modeling_albef_amc.gradcam import normalize_heatmaps

EPSILON = 1e-6


def attention_mask_consistency_loss(
    heatmaps: torch.Tensor,
    masks: torch.Tensor,
    has_region: torch.Tensor | None = None,
    margin_mean: float = 0.1,
    margin_max: float = 0.5,
    reduction: str = "example",
) -> dict[str, torch.Tensor]:
    """The two margin losses of AMC (Yang et al., CVPR 2023, arXiv 2206.15462, eq. 5 and 6).

    With a heatmap h, normalised to [0, 1] and brought to the size of its mask m (bilinear):

        loss_amc_mean = max(0, mean of h outside m − mean of h inside m + margin_mean)
        loss_amc_max  = max(0, max of (1 − m) · h − max of m · h + margin_max)

    A margin loss does not ask the heat to fill the region, only to be there rather than elsewhere. The mean or maximum
    over nothing (inside an empty mask, outside a full one) counts as 0, so that every mask has a finite loss.

    Args:
        heatmaps: (num_phrases, rows, columns), raw: ReLU and normalisation happen here, in at least float32.
        masks: (num_phrases, height, width) in [0, 1]; soft masks weigh each pixel.
        has_region: (num_phrases,) bool: phrases without a region are left out; default: all have one.
        margin_mean, margin_max: Δ_mean and Δ_max of the paper.
        reduction: over which pixels `loss_amc_mean` takes its two means: those of each "example", as in the paper, or
            of the whole "batch", as in the released code.

    Returns: `{"loss_amc_mean", "loss_amc_max"}`, the mean over the phrases with a region; 0 where there is none, still
        with a gradient (of zero).

    Raises:
        ValueError: shapes that do not fit each other, or an unknown reduction.
    """
    if heatmaps.ndim != 3 or masks.ndim != 3 or len(heatmaps) != len(masks):
        raise ValueError(
            f"heatmaps (num_phrases, rows, columns) and masks (num_phrases, height, width) do not fit: got "
            f"{tuple(heatmaps.shape)} and {tuple(masks.shape)}."
        )
    if reduction not in ("example", "batch"):
        raise ValueError(f"reduction {reduction!r}: choose 'example' (the paper) or 'batch' (the released code).")
    if has_region is None:
        has_region = torch.ones(len(heatmaps), dtype=torch.bool, device=heatmaps.device)
    elif has_region.shape != (len(heatmaps),):
        raise ValueError(f"has_region must be ({len(heatmaps)},), not {tuple(has_region.shape)}.")
    heatmaps = normalize_heatmaps(heatmaps)
    masks, weights = masks.to(heatmaps), has_region.to(heatmaps)
    num_regions = weights.sum().clamp(min=1)
    heatmaps = F.interpolate(heatmaps[:, None], size=masks.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    inside, outside = masks * heatmaps, (1 - masks) * heatmaps

    sums = torch.stack([part.sum(dim=(1, 2)) for part in (inside, masks, outside, 1 - masks)])
    if reduction == "batch":
        sums = (sums * weights).sum(dim=1, keepdim=True).expand_as(sums)
    mean_inside = sums[0] / sums[1].clamp(min=EPSILON)
    mean_outside = sums[2] / sums[3].clamp(min=EPSILON)
    losses = {
        "loss_amc_mean": (mean_outside - mean_inside + margin_mean).relu(),
        "loss_amc_max": (outside.amax(dim=(1, 2)) - inside.amax(dim=(1, 2)) + margin_max).relu(),
    }
    return {name: (loss * weights).sum() / num_regions for name, loss in losses.items()}
