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
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from magma import BatchLayout, Cache

from .cache import CacheKind, new_cache, select_rows
from .companions import Companions
from .decoder import Decoder
from .history import History


@dataclass(frozen=True)
class DecodingMode:
    """How a model decodes exactly."""

    rows: Literal["batched", "single", "recomputed"] = "batched"
    """All rows in one batch with a cache; each row by itself with a cache; everything again for each token."""
    cache: CacheKind = "own"
    """How its cache is made."""
    masks_steps: bool = True
    """Whether a decoding step needs the mask of the padding. Recurrent models do not accept one."""
    continues: bool = False
    """Whether several tokens may follow a cache at once, with padding in between. Otherwise all is computed again."""
    offset: int | None = 0
    """The position of the first token; None: positions cannot be given."""


class LibraryCache(Cache):
    """Base class of the caches of `Causal`."""

    def __init__(self, decoder: Decoder, mode: DecodingMode, context: int | None = None) -> None:
        """An empty cache for a decoder with up to `context` positions; None: without a limit."""
        self.decoder, self.mode, self.context = decoder, mode, context

    @staticmethod
    def of(decoder: Decoder, mode: DecodingMode, context: int | None = None) -> LibraryCache:
        """An empty cache that decodes in a certain way."""
        kinds: dict[str, type[LibraryCache]] = {
            "batched": BatchedCache,
            "single": SingleRowCaches,
            "recomputed": NoCache,
        }
        return kinds[mode.rows](decoder, mode, context)

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

    def __init__(self, decoder: Decoder, mode: DecodingMode, context: int | None = None) -> None:
        super().__init__(decoder, mode, context)
        self.states: Any = None
        self.valid: Tensor | None = None
        """[b, p]: False for columns of padding."""
        self.padded = False
        """Whether a column is padding."""
        self.history = History()

    @property
    def batch(self) -> int:
        return 0 if self.valid is None else len(self.valid)

    def select(self, rows: Tensor) -> BatchedCache:
        new = BatchedCache(self.decoder, self.mode, self.context)
        if self.valid is not None:
            rows = rows.to(self.valid.device)
            new.states, new.padded = select_rows(self.states, rows, self.batch), self.padded
            new.valid, new.history = self.valid[rows], self.history.select(rows)
        return new

    def forward(self, embeddings: Tensor, layout: BatchLayout) -> Tensor:
        self.history.extend(embeddings, layout)
        if self.valid is None:
            return self._start(embeddings, Companions.of(layout), layout.lengths)
        columns = self.valid.shape[1] + embeddings.shape[1]
        if (embeddings.shape[1] == 1 or self.mode.continues) and (self.context is None or columns <= self.context):
            return self._continue(embeddings, layout)
        everything, companions, lengths = self.history.padded()
        return _last(self._start(everything, companions, lengths), lengths, layout)

    def _start(self, embeddings: Tensor, companions: Companions, lengths: Tensor) -> Tensor:
        """The first positions, padded on the right."""
        width, t = embeddings.shape[1], min(embeddings.shape[1], self.context or embeddings.shape[1])
        embeddings, companions = embeddings[:, :t], companions.columns(slice(0, t))  # padding beyond it
        columns = torch.arange(t, device=embeddings.device)
        padding = (t - lengths)[:, None]
        self.valid = columns >= padding
        self.padded = bool((padding > 0).any())
        self.states = None if self.mode.cache == "own" else new_cache(self.mode.cache, self.decoder.config)
        if not self.padded:
            hidden, self.states = self.decoder.extend(
                self.states, embeddings, companions.ids, context=companions.context
            )
            return F.pad(hidden, (0, 0, 0, width - t))
        to_left = (columns - padding) % t  # [b, t]: the column of the right-padded rows that comes here
        rows = torch.arange(len(embeddings), device=embeddings.device)[:, None]
        positions = self._positions((columns - padding).clamp(min=0))
        companions = companions.map_positions(lambda x: x[rows, to_left])
        hidden, self.states = self.decoder.extend(
            self.states, embeddings[rows, to_left], companions.ids, self.valid, positions, companions.context
        )
        return F.pad(hidden[rows, (columns + padding) % t], (0, 0, 0, width - t))

    def _continue(self, embeddings: Tensor, layout: BatchLayout) -> Tensor:
        """Positions after those of the cache, padded on the right."""
        assert self.valid is not None
        new = torch.arange(embeddings.shape[1], device=embeddings.device) < layout.lengths[:, None]
        self.valid = torch.cat([self.valid, new], dim=1)
        mask = self.valid if self.padded and self.mode.masks_steps else None
        if embeddings.shape[1] > 1 and not bool(new.all()):
            self.padded, mask = True, self.valid
        positions = self._positions(layout.positions)
        hidden, self.states = self.decoder.extend(
            self.states, embeddings, layout.token_ids, mask, positions, layout.context
        )
        return hidden

    def _positions(self, count: Tensor) -> Tensor | None:
        if self.mode.offset is None:
            return None
        if self.context is not None:
            count = count.clamp(max=self.context - 1)  # padding may lie beyond it
        return count + self.mode.offset


class SingleRowCaches(LibraryCache):
    """A cache for each row. Several tokens that follow a cache are read one by one."""

    def __init__(
        self, decoder: Decoder, mode: DecodingMode, context: int | None = None, rows: Sequence[BatchedCache] = ()
    ) -> None:
        super().__init__(decoder, mode, context)
        self.rows = list(rows)

    @property
    def batch(self) -> int:
        return len(self.rows)

    def select(self, rows: Tensor) -> SingleRowCaches:
        first = torch.zeros(1, dtype=torch.long)
        chosen = [self.rows[i].select(first) for i in rows.tolist()]
        return SingleRowCaches(self.decoder, self.mode, self.context, chosen)

    def forward(self, embeddings: Tensor, layout: BatchLayout) -> Tensor:
        if not self.rows:
            self.rows = [BatchedCache(self.decoder, self.mode, self.context) for _ in embeddings]
        outs = []
        for i, (row, length) in enumerate(zip(self.rows, layout.lengths.tolist(), strict=True)):
            outs.append(self._forward_row(row, embeddings[i : i + 1, :length], layout, i)[0])
        missing = embeddings.shape[1] - max(map(len, outs))
        return F.pad(pad_sequence(outs, batch_first=True), (0, 0, 0, missing))

    @staticmethod
    def _forward_row(row: BatchedCache, embeddings: Tensor, layout: BatchLayout, i: int) -> Tensor:
        length = embeddings.shape[1]
        pieces = [slice(0, length)] if not row.batch else [slice(column, column + 1) for column in range(length)]
        outs = []
        here = Companions.of(layout).row(i)
        for piece in pieces:
            part, companions = embeddings[:, piece], here.columns(piece)
            lengths = torch.tensor([part.shape[1]], device=part.device)
            positions = layout.positions[i : i + 1, piece]
            ids, context = companions.ids, companions.context
            given = BatchLayout(positions, lengths, layout.scored[:0], token_ids=ids, context=context)
            outs.append(row.forward(part, given))
        return torch.cat(outs, dim=1)


class NoCache(LibraryCache):
    """For a model whose caches are not exact: all positions are computed again for each token."""

    def __init__(
        self, decoder: Decoder, mode: DecodingMode, context: int | None = None, history: History | None = None
    ) -> None:
        super().__init__(decoder, mode, context)
        self.history = history or History()

    @property
    def batch(self) -> int:
        return self.history.batch

    def select(self, rows: Tensor) -> NoCache:
        return NoCache(self.decoder, self.mode, self.context, self.history.select(rows))

    def forward(self, embeddings: Tensor, layout: BatchLayout) -> Tensor:
        self.history.extend(embeddings, layout)
        everything, companions, lengths = self.history.padded()
        return _last(self.decoder(everything, companions.ids, context=companions.context), lengths, layout)


def _last(hidden: Tensor, lengths: Tensor, layout: BatchLayout) -> Tensor:
    """Of hidden states of all positions, those of the last positions [b, t]; `lengths` [b] counts all positions."""
    columns = torch.arange(layout.positions.shape[1], device=hidden.device) + (lengths - layout.lengths)[:, None]
    columns = columns.clamp(max=hidden.shape[1] - 1)  # padding
    return hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[2]))
