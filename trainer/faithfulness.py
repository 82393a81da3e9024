"""Whether a heatmap shows what a score rests on: deletion and insertion (RISE, Petsiuk et al., arXiv 1806.07421).

An image is covered where its heat is highest, more and more of it, and asked again: the sooner its score falls, the
more the heat is of what the model looked at. Uncovered in that order from a blurred one, its score should soon rise.
"""

import math

import torch
from torch.nn import functional as F

from modeling_albef_amc.gradcam import upsample_heatmaps
from modeling_albef_amc.pipeline import GroundedImage, PhraseGrounder

STEPS = 10  # equal parts of the image, hottest first


def deletion_and_insertion(
    grounder: PhraseGrounder, image: GroundedImage, number: int, batch_size: int, explanation: str | None = None
) -> tuple[float, float]:
    """The mean probabilities of phrase `number` while its image is covered, and uncovered, in [0, 1].

    Areas under the curves over the share of the image, by trapezoids. The lower the first, and the higher the second,
    the better; they tell heatmaps of one model apart, since models differ in how sure they are.

    Args:
        image: with its heatmaps. batch_size: images a pass; there are 2 · (STEPS + 1). explanation: which score.
    """
    tokens = image.tokens[number : number + 1]
    shown = covered_and_uncovered(image.pixel_values, image.heatmaps[number])
    asked = [GroundedImage(each, image.size, tokens) for each in shown.split(1)]
    for first in range(0, len(asked), batch_size):
        grounder.explain_phrases(
            asked[first : first + batch_size], batch_size, output_points=False, explanation=explanation
        )
    scores = torch.tensor([each.scores[0] for each in asked]).view(2, STEPS + 1)
    deletion, insertion = (torch.trapezoid(scores) / STEPS).tolist()
    return deletion, insertion


def covered_and_uncovered(pixel_values: torch.Tensor, heatmap: torch.Tensor) -> torch.Tensor:
    """(2 · (STEPS + 1), 3, height, width): with ever more of its hottest pixels in the mean colour, and then all of it
    blurred but ever more of its hottest pixels.

    Args:
        pixel_values: (1, 3, height, width), normalised: the mean colour is 0. heatmap: (rows, columns).
    """
    size = pixel_values.shape[-2:]
    coldness = -upsample_heatmaps(heatmap[None], size).flatten()
    rank = coldness.argsort(stable=True).argsort().view(size)
    shares = torch.arange(STEPS + 1).view(-1, 1, 1, 1) / STEPS
    is_hot = rank < shares * rank.numel()
    return torch.cat([pixel_values.where(~is_hot, 0), pixel_values.where(is_hot, blurred(pixel_values))])


def blurred(pixel_values: torch.Tensor) -> torch.Tensor:
    """By a Gaussian whose deviation is a 45th of the width: RISE's 5 pixels of 224."""
    deviation = pixel_values.shape[-1] / 45
    radius = math.ceil(2 * deviation)
    kernel = torch.exp(-((torch.arange(-radius, radius + 1) / deviation) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(pixel_values, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.mT, groups=3)
