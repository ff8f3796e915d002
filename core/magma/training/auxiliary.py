"""Auxiliary losses in a step: their weights, and their means over micro-batches and processes.

A part gives the mean over the items of a micro-batch: media of its input, or examples for adapters and heads. The mean
of a step is over all items of the global batch: each micro-batch counts in proportion to its items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..auxiliary import input_of, parts_with_losses
from ..data.sequence import Batch
from ..model import Magma


class AuxiliaryObjective:
    """The auxiliary losses of a model's trained parts. It is false if there are none."""

    def __init__(self, model: Magma, weights: Mapping[str, float]) -> None:
        """`weights` are `train.loss_weights`: by the name of the loss, 1 for those that it does not have."""
        found = parts_with_losses(model.parts())
        pairs = [(path, name) for path, modules in found.items() for name in modules[0].auxiliary_losses]
        self.names = [f"{path}.{name}" for path, name in pairs]
        """Of the losses, as `PATH.NAME`."""
        self.inputs = [input_of(path) for path, _ in pairs]
        self.weights = [weights.get(name, 1.0) for _, name in pairs]

    def __bool__(self) -> bool:
        return bool(self.names)

    def count_items(self, batches: Sequence[Batch]) -> list[int]:
        """The items of some micro-batches, for each loss."""
        return [sum(_items(batch, name) for batch in batches) for name in self.inputs]

    def means(self, losses: Mapping[str, Tensor], batch: Batch, totals: Sequence[float]) -> Tensor:
        """What a micro-batch adds to the mean of each loss, for `totals` items of the global batch; float32."""
        shares = [_items(batch, name) / max(1, total) for name, total in zip(self.inputs, totals, strict=True)]
        values = torch.stack([losses[name] for name in self.names])
        return values * torch.tensor(shares, device=values.device)

    def weighted(self, means: Tensor) -> Tensor:
        """The weighted sum of the losses; a scalar."""
        return means @ torch.tensor(self.weights, device=means.device)

    def by_name(self, means: Sequence[float], totals: Sequence[float]) -> dict[str, float]:
        """The means of a step for the metrics, without those that had no item."""
        return {name: mean for name, mean, total in zip(self.names, means, totals, strict=True) if total}


def _items(batch: Batch, input_name: str) -> int:
    if not input_name:
        return len(batch.names) if len(batch.labels) else 0  # a filler has no target
    slots = batch.slots.get(input_name)
    return int((slots.embedding_index == 0).sum()) if slots else 0
