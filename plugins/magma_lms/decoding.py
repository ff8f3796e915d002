"""Decoding with a cache, in the way that is exact for a model (see `probes.py`).

Library caches know columns, not rows of unequal length. So the columns of a batch are aligned on the right: prompts are
padded on the left, and a later token is one more column for all rows.

Axes: b batch, t tokens, p columns of the cache, e width of the word embeddings, d width, m scored positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from magma import BatchLayout, Cache

from .cache import CacheKind, new_cache, select_rows
from .decoder import Decoder


@dataclass(frozen=True)
class DecodingMode:
    """How a model decodes exactly."""

    rows: Literal["batched", "single", "recomputed"] = "batched"
    """All rows in one batch with a cache; each row by itself with a cache; no cache: everything again for each token."""
    cache: CacheKind = "own"
    """How its cache is made."""
    masks_steps: bool = True
    """Whether a decoding step needs the mask of the padding. Recurrent models do not accept one."""
    continues: bool = False
    """Whether several tokens may follow a cache at once, with padding in between. Otherwise all is computed again."""
    offset: int | None = 0
    """The position of the first token; None: positions cannot be given."""


@dataclass
class History:
    """Embeddings of all positions so far, to compute them again."""

    embeddings: list[Tensor]
    """[t_i, e] of each row."""
    ids: list[Tensor] | None

    @classmethod
    def empty(cls) -> History:
        """No positions, and no rows."""
        return cls([], None)

    def extend(self, embeddings: Tensor, layout: BatchLayout) -> None:
        """Add right-padded positions [b, t, e]."""
        self.embeddings = self._join(self.embeddings, embeddings, layout.lengths)
        if layout.token_ids is not None:
            self.ids = self._join(self.ids or [], layout.token_ids, layout.lengths)

    def select(self, rows: Tensor) -> History:
        """Only these rows."""
        picked = rows.tolist()
        return History([self.embeddings[i] for i in picked], None if self.ids is None else [self.ids[i] for i in picked])

    @property
    def lengths(self) -> Tensor:
        """[b]."""
        return torch.tensor([len(row) for row in self.embeddings], device=self.embeddings[0].device)

    def padded(self) -> tuple[Tensor, Tensor | None]:
        """All positions, padded on the right."""
        ids = None if self.ids is None else pad_sequence(self.ids, batch_first=True)
        return pad_sequence(self.embeddings, batch_first=True), ids

    @staticmethod
    def _join(old: Sequence[Tensor], new: Tensor, lengths: Tensor) -> list[Tensor]:
        rows = [row[:n] for row, n in zip(new, lengths.tolist(), strict=True)]
        return [torch.cat(pair) for pair in zip(old, rows, strict=True)] if old else rows


class LibraryCache(Cache):
    """Base class of the caches of `Causal`."""

    def __init__(self, decoder: Decoder, mode: DecodingMode) -> None:
        self.decoder, self.mode = decoder, mode

    @classmethod
    def of(cls, decoder: Decoder, mode: DecodingMode) -> LibraryCache:
        """An empty cache that decodes in a certain way."""
        kinds = {"batched": BatchedCache, "single": SingleRowCaches, "recomputed": NoCache}
        return kinds[mode.rows](decoder, mode)

    def forward(self, embeddings: Tensor, layout: BatchLayout) -> Tensor:
        """Hidden states [b, t, d], right-padded, of positions [b, t, e] that follow those of the cache."""
        raise NotImplementedError

    @property
    def batch(self) -> int:
        """The number of rows; 0 for an empty cache."""
        raise NotImplementedError

    def expand(self, repeats: int) -> Cache:
        """A cache with each row repeated `repeats` times, consecutively."""
        return self.select(torch.arange(self.batch).repeat_interleave(repeats))


class BatchedCache(LibraryCache):
    """One cache of the library for all rows."""

    def __init__(self, decoder: Decoder, mode: DecodingMode) -> None:
        super().__init__(decoder, mode)
        self.states: Any = None
        self.valid: Tensor | None = None
        """[b, p]: False for columns of padding."""
        self.padded = False
        """Whether a column is padding."""
        self.history = None if mode.continues else History.empty()

    @property
    def batch(self) -> int:
        return 0 if self.valid is None else len(self.valid)

    def select(self, rows: Tensor) -> BatchedCache:
        new = BatchedCache(self.decoder, self.mode)
        if self.valid is None:
            return new
        rows = rows.to(self.valid.device)
        new.states, new.valid, new.padded = select_rows(self.states, rows, self.batch), self.valid[rows], self.padded
        new.history = None if self.history is None else self.history.select(rows)
        return new

    def forward(self, embeddings: Tensor, layout: BatchLayout) -> Tensor:
        t = embeddings.shape[1]
        if self.history is not None:
            self.history.extend(embeddings, layout)
        if self.valid is None:
            return self._start(embeddings, layout.lengths, layout.token_ids)
        if t == 1 and bool((layout.lengths == 1).all()):
            return self._continue(embeddings, layout)
        if self.history is None:
            return self._continue(embeddings, layout)
        everything, ids = self.history.padded()
        lengths = self.history.lengths
        hidden = self._start(everything, lengths, ids)
        columns = (lengths - layout.lengths)[:, None] + torch.arange(t, device=lengths.device)
        columns = columns.clamp(max=hidden.shape[1] - 1)  # padding
        return hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[2]))

    def _start(self, embeddings: Tensor, lengths: Tensor, ids: Tensor | None) -> Tensor:
        """The first positions, padded on the right."""
        t = embeddings.shape[1]
        columns = torch.arange(t, device=embeddings.device)
        padding = (t - lengths)[:, None]
        self.valid = columns >= padding
        self.padded = bool((padding > 0).any())
        self.states = None if self.mode.cache == "own" else new_cache(self.mode.cache, self.decoder.config)
        if not self.padded:
            hidden, self.states = self.decoder.extend(self.states, embeddings, ids)
            return hidden
        to_left = (columns - padding) % t  # [b, t]: the column of the right-padded rows that comes here
        rows = torch.arange(len(embeddings), device=embeddings.device)[:, None]
        positions = self._positions((columns - padding).clamp(min=0))
        hidden, self.states = self.decoder.extend(
            self.states, embeddings[rows, to_left], None if ids is None else ids[rows, to_left], self.valid, positions
        )
        return hidden[rows, (columns + padding) % t]

    def _continue(self, embeddings: Tensor, layout: BatchLayout) -> Tensor:
        """Positions after those of the cache, padded on the right."""
        assert self.valid is not None
        new = torch.arange(embeddings.shape[1], device=embeddings.device) < layout.lengths[:, None]
        self.valid = torch.cat([self.valid, new], dim=1)
        mask = self.valid if self.padded and self.mode.masks_steps else None
        if embeddings.shape[1] > 1 and not bool(new.all()):
            self.padded, mask = True, self.valid
        positions = self._positions(layout.positions)
        hidden, self.states = self.decoder.extend(self.states, embeddings, layout.token_ids, mask, positions)
        return hidden

    def _positions(self, count: Tensor) -> Tensor | None:
        return None if self.mode.offset is None else count + self.mode.offset


class SingleRowCaches(LibraryCache):
    """A cache for each row. Several tokens that follow a cache are read one by one."""

    def __init__(self, decoder: Decoder, mode: DecodingMode, rows: Sequence[BatchedCache] = ()) -> None:
        super().__init__(decoder, mode)
        self.rows = list(rows)

    @property
    def batch(self) -> int:
        return len(self.rows)

    def select(self, rows: Tensor) -> SingleRowCaches:
        first = torch.zeros(1, dtype=torch.long)
        return SingleRowCaches(self.decoder, self.mode, [self.rows[i].select(first) for i in rows.tolist()])

    def forward(self, embeddings: Tensor, layout: BatchLayout) -> Tensor:
        if not self.rows:
            self.rows = [BatchedCache(self.decoder, self.mode) for _ in embeddings]
        outs = []
        for i, (row, length) in enumerate(zip(self.rows, layout.lengths.tolist(), strict=True)):
            outs.append(self._forward_row(row, embeddings[i : i + 1, :length], layout, i)[0])
        missing = embeddings.shape[1] - max(map(len, outs))
        return torch.nn.functional.pad(pad_sequence(outs, batch_first=True), (0, 0, 0, missing))

    @staticmethod
    def _forward_row(row: BatchedCache, embeddings: Tensor, layout: BatchLayout, i: int) -> Tensor:
        length = embeddings.shape[1]
        pieces = [slice(0, length)] if not row.batch else [slice(column, column + 1) for column in range(length)]
        outs = []
        for piece in pieces:
            part = embeddings[:, piece]
            outs.append(
                row.forward(
                    part,
                    BatchLayout(
                        layout.positions[i : i + 1, piece],
                        torch.tensor([part.shape[1]], device=part.device),
                        layout.scored[:0],
                        token_ids=None if layout.token_ids is None else layout.token_ids[i : i + 1, piece],
                    ),
                )
            )
        return torch.cat(outs, dim=1)


class NoCache(LibraryCache):
    """For a model whose caches are not exact: all positions are computed again for each token."""

    def __init__(self, decoder: Decoder, mode: DecodingMode, history: History | None = None) -> None:
        super().__init__(decoder, mode)
        self.history = history or History.empty()

    @property
    def batch(self) -> int:
        return len(self.history.embeddings)

    def select(self, rows: Tensor) -> NoCache:
        return NoCache(self.decoder, self.mode, self.history.select(rows))

    def forward(self, embeddings: Tensor, layout: BatchLayout) -> Tensor:
        self.history.extend(embeddings, layout)
        everything, ids = self.history.padded()
        hidden = self.decoder(everything, ids)
        columns = (self.history.lengths - layout.lengths)[:, None]
        columns = columns + torch.arange(embeddings.shape[1], device=columns.device)
        columns = columns.clamp(max=hidden.shape[1] - 1)  # padding
        return hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[2]))
