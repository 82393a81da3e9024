"""Phrases of one image attend to it together, so that its keys and values are read where they are and not copied."""

from typing import NamedTuple

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode


class ImageGroups(NamedTuple):
    """Which phrases belong to each image, in places: as many for every image as the one with the most phrases has.

    - `phrases` (num_images * num_places,): the phrase in each place; places left over repeat phrase 0, unread.
    - `places` (num_phrases,): where each phrase is among them.
    """

    phrases: torch.Tensor
    places: torch.Tensor
    num_images: int

    def join(self, query: torch.Tensor) -> torch.Tensor:
        """(num_phrases, num_heads, num_tokens, size) → (num_images, num_heads, num_places * num_tokens, size)"""
        placed = query.index_select(0, self.phrases).unflatten(0, (self.num_images, -1))
        return placed.transpose(1, 2).flatten(2, 3)

    def part(
        self, context: torch.Tensor, probabilities: torch.Tensor | None, num_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gives every phrase its rows of what attention returned.

        Args:
            context: (num_images, num_places * num_tokens, num_heads, size).
            probabilities: (num_images, num_heads, num_places * num_tokens, num_keys), of attention that has any.

        Returns: (num_phrases, num_tokens, num_heads, size), and (num_phrases, num_heads, num_tokens, num_keys) or None.
        """
        context = context.unflatten(1, (-1, num_tokens)).flatten(0, 1).index_select(0, self.places)
        if probabilities is not None:
            probabilities = probabilities.unflatten(2, (-1, num_tokens)).transpose(1, 2).flatten(0, 1)
            probabilities = probabilities.index_select(0, self.places)
        return context, probabilities


def group_by_image(image_index: torch.Tensor | None, num_images: int) -> ImageGroups | None:
    """Groups phrases by image where that pays: on a CPU, where copying an image's keys takes longer than their use.

    A GPU copies in no time, but would have to be waited for to learn how many phrases an image has; nor is that known
    while a model is exported or compiled.

    Args:
        image_index: (num_phrases,), which image each phrase belongs to.
    """
    if image_index is None or image_index.device.type != "cpu":
        return None
    if torch.compiler.is_compiling() or get_proxy_mode() is not None:
        return None
    image_index = image_index.long()
    order = image_index.argsort(stable=True)
    counts = image_index.bincount(minlength=num_images)
    num_places = int(counts.max())
    in_group = torch.arange(len(image_index)) - (counts.cumsum(0) - counts)[image_index[order]]
    places = torch.empty_like(image_index)
    places[order] = image_index[order] * num_places + in_group
    phrases = torch.zeros(num_images * num_places, dtype=torch.long)
    phrases[places] = torch.arange(len(image_index))
    return ImageGroups(phrases, places, num_images)
