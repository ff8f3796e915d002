"""What belongs to each position besides its embedding: the token id, and the context of adapters.

Axes: b batch, t tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from magma import BatchLayout, Context


@dataclass(frozen=True)
class Companions:
    """What goes with embeddings [b, t, e] wherever they are reordered, cut or repeated."""

    ids: Tensor | None = None
    """Token ids [b, t]. None: unknown."""
    context: Context | None = None
    """For adapters. None: there are no media."""

    @classmethod
    def of(cls, layout: BatchLayout) -> Companions:
        """Those of a batch."""
        return cls(layout.token_ids, layout.context)

    def map_positions(self, change: Callable[[Tensor], Tensor]) -> Companions:
        """The same with the tensors [b, t] changed."""
        context = None if self.context is None else self.context.map_positions(change)
        return Companions(None if self.ids is None else change(self.ids), context)

    def columns(self, columns: slice) -> Companions:
        """Those of some columns."""
        return self.map_positions(lambda x: x[:, columns])

    def row(self, i: int) -> Companions:
        """Those of one row, [1, t]."""
        only = slice(i, i + 1)
        context = None if self.context is None else self.context.map(lambda x: x[only])
        return Companions(None if self.ids is None else self.ids[only], context)

    def of_sequences(self, columns: Tensor) -> Companions:
        """Those of packed sequences as rows of their own; `columns` [s, t'] are flat indices of their positions."""
        context = None if self.context is None else self.context.of_sequences(columns)
        return Companions(None if self.ids is None else self.ids.flatten()[columns], context)

    def numbers(self) -> Tensor | None:
        """All numbers of the positions, [b, t, c]. None: there are none."""
        found = [] if self.ids is None else [self.ids]
        if self.context is not None:
            found += [self.context.inputs, self.context.first_medium, self.context.last_medium]
        return torch.stack(found, dim=-1) if found else None

    def with_numbers(self, numbers: Tensor) -> Companions:
        """The same media with other positions, whose `numbers` these are."""
        columns = list(numbers.unbind(-1))
        ids = None if self.ids is None else columns.pop(0)
        if self.context is None:
            return Companions(ids)
        inputs, first, last = columns
        return Companions(ids, replace(self.context, inputs=inputs, first_medium=first, last_medium=last))
