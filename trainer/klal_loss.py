"""KL attention loss: asks the attention itself, without its gradient, to be spread over the annotated region."""

import torch
from torch.nn import functional as F

EPSILON = 1e-6


def kl_attention_loss(
    attention_maps: torch.Tensor, masks: torch.Tensor, has_region: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """KLAL (Esmaeilkhani and Latecki, arXiv 2511.12738).

    With the share p of the region in each cell of the grid, and the share q of its attention to the image that a head
    gives that cell, averaged over the heads:

        loss_klal = Σ p · log(p / q)

    Unlike a margin loss it asks the region to be filled evenly, and has an optimum that no map of a network reaches.
    The paper takes q from the last token of the answer, in every layer; here it is what is explained: the mean over the
    phrase's tokens, in the explained layer.

    Args:
        attention_maps: (num_phrases, num_heads, rows, columns), not negative; each head's is normalised here.
        masks: (num_phrases, height, width) in [0, 1], averaged over the cells.
        has_region: (num_phrases,) bool: phrases without a region are left out; default: all have one. An empty mask
            adds 0 to the mean.

    Returns: `{"loss_klal"}`, the mean over the phrases with a region; 0 where there is none, still with a gradient (of
        zero).

    Raises ValueError: shapes that do not fit each other.
    """
    if attention_maps.ndim != 4 or masks.ndim != 3 or len(attention_maps) != len(masks):
        raise ValueError(
            f"attention_maps (num_phrases, num_heads, rows, columns) and masks (num_phrases, height, width) do not "
            f"fit: got {tuple(attention_maps.shape)} and {tuple(masks.shape)}."
        )
    weights = attention_maps.new_ones(len(masks)) if has_region is None else has_region.to(attention_maps)
    if weights.shape != (len(masks),):
        raise ValueError(f"has_region must be ({len(masks)},), not {tuple(weights.shape)}.")
    shares = attention_maps / attention_maps.sum(dim=(2, 3), keepdim=True).clamp(min=EPSILON)
    region = F.adaptive_avg_pool2d(masks.to(attention_maps), attention_maps.shape[2:])
    region = region / region.sum(dim=(1, 2), keepdim=True).clamp(min=EPSILON)
    log_shares = shares.mean(dim=1).clamp(min=EPSILON).log()
    loss = (torch.special.xlogy(region, region) - region * log_shares).sum(dim=(1, 2))
    return {"loss_klal": (loss * weights).sum() / weights.sum().clamp(min=1)}
