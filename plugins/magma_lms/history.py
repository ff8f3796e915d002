"""The positions that a cache was filled with, to compute them again.

Axes: b rows, t tokens, e width of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from magma import BatchLayout

from .companions import Companions


@dataclass
class History:
    """Embeddings of all positions so far. Adding positions copies nothing."""

    pieces: list[tuple[Tensor, BatchLayout]] = field(default_factory=list)
    """Right-padded positions [b, t, e], in order."""
    before: tuple[History, Tensor] | None = None
    """What comes before, and which of its rows each row continues."""

    @property
    def batch(self) -> int:
        """The number of rows; 0 for an empty history."""
        if self.before is not None:
            return len(self.before[1])
        return len(self.pieces[0][0]) if self.pieces else 0

    def extend(self, embeddings: Tensor, layout: BatchLayout) -> None:
        """Add right-padded positions [b, t, e]."""
        self.pieces.append((embeddings, layout))

    def select(self, rows: Tensor) -> History:
        """The history of these rows [b'], which may repeat."""
        return History(before=(History(list(self.pieces), self.before), rows))

    def padded(self) -> tuple[Tensor, Companions, Tensor]:
        """Embeddings [b, t, e] of all positions, padded on the right, what belongs to them, and the lengths [b]."""
        embeddings, numbers = self._rows()
        lengths = torch.tensor([len(row) for row in embeddings], device=embeddings[0].device)
        newest = Companions.of(self._newest())
        if numbers:
            newest = newest.with_numbers(pad_sequence(numbers, batch_first=True))
        return pad_sequence(embeddings, batch_first=True), newest, lengths

    def _newest(self) -> BatchLayout:
        """The last layout: its context has all media."""
        if self.pieces:
            return self.pieces[-1][1]
        assert self.before is not None
        return self.before[0]._newest()

    def _rows(self) -> tuple[list[Tensor], list[Tensor]]:
        """Embeddings [t_i, e] and numbers [t_i, c] of each row; no numbers if there are none."""
        embeddings: list[list[Tensor]] = []
        numbers: list[list[Tensor]] = []
        if self.before is not None:
            earlier, rows = self.before
            old_embeddings, old_numbers = earlier._rows()
            embeddings = [[old_embeddings[i]] for i in rows.tolist()]
            numbers = [[old_numbers[i]] for i in rows.tolist()] if old_numbers else []
        for piece, layout in self.pieces:
            _append(embeddings, piece, layout.lengths)
            if (found := Companions.of(layout).numbers()) is not None:
                _append(numbers, found, layout.lengths)
        return [torch.cat(row) for row in embeddings], [torch.cat(row) for row in numbers]


def _append(rows: list[list[Tensor]], new: Tensor, lengths: Tensor) -> None:
    if not rows:
        rows += [[] for _ in new]
    for row, values, length in zip(rows, new, lengths.tolist(), strict=True):
        row.append(values[:length])
