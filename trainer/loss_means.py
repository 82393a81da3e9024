"""Means of the losses over what each is a mean of, whatever process or micro-batch that is in."""

from collections import defaultdict

import torch
from accelerate import Accelerator

# What each loss is the mean over: the number of true phrases, masked words, absent phrases, phrases with a region.
ITEMS = {
    "loss_itc": "phrases",
    "loss_itm": "phrases",
    "loss_mlm": "mlm_tokens",
    "loss_caption": "phrases",
    "loss_absent": "absent",
    "loss_amc_mean": "regions",
    "loss_amc_max": "regions",
    "loss_klal": "regions",
}


class LossMeans:
    """Weighted sums of the losses since the last `drain`."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, name: str, value: torch.Tensor, count: torch.Tensor) -> None:
        value = value.detach().float()
        sums = torch.stack([value * count, count.to(value)])
        self.sums[name] = self.sums.get(name, 0) + sums

    def drain(self, accelerator: Accelerator) -> dict[str, float]:
        """The mean over all processes, each of which must call this, of every loss that has something to be one of."""
        recorded, self.sums = self.sums, {}
        # All losses there can be: this process may have seen a kind of example that others have not.
        nothing = torch.zeros(2, device=accelerator.device)
        sums = accelerator.reduce(torch.stack([recorded.get(name, nothing) for name in ITEMS])).tolist()
        return {name: total / count for name, (total, count) in zip(ITEMS, sums) if count > 0}


def count_items(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """How many true phrases, absent ones, masked words and phrases with a region these batches have."""
    counts: dict[str, torch.Tensor] = defaultdict(lambda: torch.tensor(0))
    for batch in batches:
        is_absent = batch.get("is_absent", torch.tensor(False))
        counts["absent"] = counts["absent"] + is_absent.sum()
        counts["phrases"] = counts["phrases"] + len(batch["input_ids"]) - is_absent.sum()
        counts["regions"] = counts["regions"] + batch["has_region"].sum()
        if "mlm_labels" in batch:
            counts["mlm_tokens"] = counts["mlm_tokens"] + (batch["mlm_labels"] != -100).sum()
    return counts
