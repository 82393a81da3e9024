"""Batches in which phrases share images, so that an image encoded once serves several of them."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch.utils.data import Sampler


class ImageGroupedSampler(Sampler[int]):
    """Random order in which up to `phrases_per_image` phrases of an image follow each other.

    Every row is drawn once an epoch. The order depends on `seed` and the epoch alone, so that all processes agree and a
    resumed run continues with the same rows.

    Args:
        image_ids: the image of every row.
        phrases_per_image: the longest run of phrases of one image.
    """

    def __init__(self, image_ids: Sequence[Hashable], phrases_per_image: int, seed: int = 0):
        if phrases_per_image < 1:
            raise ValueError(f"phrases_per_image must be at least 1, got {phrases_per_image}.")
        rows: dict[Hashable, list[int]] = defaultdict(list)
        for row, image_id in enumerate(image_ids):
            rows[image_id].append(row)
        self.images = list(rows.values())
        self.num_rows = len(image_ids)
        self.phrases_per_image = phrases_per_image
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        runs = []
        for rows in self.images:
            shuffled = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
            runs += [shuffled[i : i + self.phrases_per_image] for i in range(0, len(rows), self.phrases_per_image)]
        for i in torch.randperm(len(runs), generator=generator).tolist():
            yield from runs[i]
