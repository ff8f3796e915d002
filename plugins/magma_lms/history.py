"""The positions that a cache was filled with, to compute them again.

Axes: b rows, t tokens, e width of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from magma import BatchLayout


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

    def padded(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Embeddings [b, t, e] and token ids [b, t] of all positions, padded on the right, and the lengths [b]."""
        embeddings, ids = self._rows()
        lengths = torch.tensor([len(row) for row in embeddings], device=embeddings[0].device)
        return pad_sequence(embeddings, batch_first=True), pad_sequence(ids, batch_first=True) if ids else None, lengths

    def _rows(self) -> tuple[list[Tensor], list[Tensor]]:
        """Embeddings [t_i, e] and token ids [t_i] of each row; no ids if they are unknown."""
        embeddings: list[list[Tensor]] = []
        ids: list[list[Tensor]] = []
        if self.before is not None:
            earlier, rows = self.before
            old_embeddings, old_ids = earlier._rows()
            embeddings = [[old_embeddings[i]] for i in rows.tolist()]
            ids = [[old_ids[i]] for i in rows.tolist()] if old_ids else []
        for piece, layout in self.pieces:
            _append(embeddings, piece, layout.lengths)
            if layout.token_ids is not None:
                _append(ids, layout.token_ids, layout.lengths)
        return [torch.cat(row) for row in embeddings], [torch.cat(row) for row in ids]


def _append(rows: list[list[Tensor]], new: Tensor, lengths: Tensor) -> None:
    if not rows:
        rows += [[] for _ in new]
    for row, values, length in zip(rows, new, lengths.tolist(), strict=True):
        row.append(values[:length])
