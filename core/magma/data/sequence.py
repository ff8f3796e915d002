"""Token rows and batches of them: what goes into a language model, as numbers.

Axes: b batch, t tokens (media positions included), m scored positions, s media positions of one input in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..values import BatchLayout


@dataclass(frozen=True)
class Slots:
    """Which positions of a batch the embeddings of one input fill."""

    positions: Tensor
    """[s] flat indices (row * t + column) into the batch."""
    media: Tensor
    """[s] which of that input's media in the batch fills the position."""
    steps: Tensor
    """[s] which of that medium's embeddings."""


@dataclass
class Encoded:
    """One example as numbers, before it is padded."""

    tokens: list[int]
    """[t], 0 where a medium stands."""
    targets: list[bool]
    """[t], True where the token is to be predicted."""
    media: list[tuple[str, Tensor, int, int]]
    """(input, prepared item, first position, how many positions)."""
    name: str
    label: int | None = None
    """Index of its class; None: the model is to say its targets."""

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass
class Batch:
    """What `Magma.forward` takes."""

    tokens: Tensor
    """[b, t], 0 where a medium or padding stands."""
    layout: BatchLayout
    labels: Tensor
    """[m] what the scored positions are to predict: tokens, or classes."""
    media: dict[str, Tensor]
    """input -> its model input [b', ...]; inputs that have none here are absent."""
    slots: dict[str, Slots]
    names: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """On another device; floating media in `dtype`."""
        return self._each(lambda x: x.to(device, dtype if x.is_floating_point() else None, non_blocking=True))

    def pin_memory(self) -> Batch:
        """In memory that a GPU can copy from while it computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> Batch:
        layout = self.layout
        return replace(
            self,
            tokens=move(self.tokens),
            labels=move(self.labels),
            layout=BatchLayout(
                positions=move(layout.positions),
                lengths=move(layout.lengths),
                scored=move(layout.scored),
                first_scored=layout.first_scored,
                sequence_ids=None if layout.sequence_ids is None else move(layout.sequence_ids),
            ),
            media={name: move(x) for name, x in self.media.items()},
            slots={name: Slots(move(s.positions), move(s.media), move(s.steps)) for name, s in self.slots.items()},
        )
