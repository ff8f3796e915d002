"""Base class of encoders that give an input to another encoder in pieces: moments of it, or parts of its area.

Axes: b batch, p pieces, n features of a piece, e encoder width.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .interfaces import Encoder
from .values import Features, Prepared, map_tensors


class PiecewiseEncoder(Encoder):
    """An encoder that gives each input to another one in pieces. The features of the pieces follow each other.

    A subclass builds the other encoder in its `__init__`, keeps it under the name of its field (such as
    `self.of = config.of.build()`), and calls `set_sizes`. Its `prepare` returns what `prepare_pieces` gives. A prepared
    item is a tuple with one entry for each piece; a batch has the pieces [b, p, ...] and which of them are real [b, p].
    """

    max_pieces: int
    """Maximum p; set by `set_sizes`."""

    @classmethod
    def augments(cls, config: Any) -> bool:
        """Whether the encoder of the pieces does. Default: the part in the field `of`."""
        return bool(config.of.part.augments(config.of.config))

    @property
    def piece_encoder(self) -> Encoder:
        """The encoder of the pieces. Default: the part in the field `of`."""
        encoder = self.get_submodule("of")
        assert isinstance(encoder, Encoder)
        return encoder

    def set_sizes(self, max_pieces: int) -> None:
        """Set `dim` and `length` for at most this number of pieces."""
        self.max_pieces = max_pieces
        self.dim, self.length = self.piece_encoder.dim, max_pieces * self.piece_encoder.length

    def prepare_pieces(self, pieces: Iterable[Any], rng: random.Random | None = None) -> tuple[Prepared, ...]:
        """Prepare raw pieces. Each starts with the same state of `rng`, so that they are augmented in the same way.

        Raises:
            InputError: A piece cannot be read.
        """
        state = None if rng is None else rng.getstate()
        items = []
        for piece in pieces:
            if rng is not None and state is not None:
                rng.setstate(state)
            items.append(self.piece_encoder.prepare(piece, rng))
        return tuple(items)

    def dummy_item(self) -> tuple[Prepared, ...]:
        """One piece: the dummy item of its encoder."""
        return (self.piece_encoder.dummy_item(),)

    def max_size_item(self) -> tuple[Prepared, ...]:
        """The maximum number of pieces of the largest size."""
        return (self.piece_encoder.max_size_item(),) * self.max_pieces

    def num_features(self, prepared: tuple[Prepared, ...]) -> int:
        """The sum over the pieces."""
        return sum(map(self.piece_encoder.num_features, prepared))

    def stack(self, items: Sequence[tuple[Prepared, ...]]) -> tuple[Prepared, Tensor]:
        """Pieces [b, p, ...], padded with dummy items, and which of them are real [b, p]: 1, or 0."""
        b, p = len(items), max(map(len, items))
        padding = self.piece_encoder.dummy_item() if any(len(item) < p for item in items) else None
        padded = ((*item, *[padding] * (p - len(item))) for item in items)
        pieces = self.piece_encoder.stack(list(chain.from_iterable(padded)))
        real = torch.tensor([[i < len(item) for i in range(p)] for item in items], dtype=torch.float32)
        return map_tensors(lambda x: x.reshape(b, p, *x.shape[1:]), pieces), real

    def encode_pieces(self, x: tuple[Prepared, Tensor]) -> tuple[Tensor, Tensor | None]:
        """A batch to the features of its pieces [b, p, n, e] and their numbers [b, p]. None: there is no padding.

        Only real pieces are encoded.
        """
        pieces, real = x
        is_real = real.flatten() > 0.5
        flat = map_tensors(lambda piece: piece.flatten(0, 1), pieces)
        if bool(is_real.all()):
            found: Features = self.piece_encoder(flat)
            values = found.values.reshape(*real.shape, *found.values.shape[1:])
            return values, None if found.lengths is None else found.lengths.view(real.shape)
        where = is_real.nonzero().squeeze(1)
        found = self.piece_encoder(map_tensors(lambda piece: piece.index_select(0, where), flat))
        _, n, e = found.values.shape
        counts = torch.full_like(where, n) if found.lengths is None else found.lengths.to(where)
        values = found.values.new_zeros(len(is_real), n, e).index_copy(0, where, found.values)
        lengths = counts.new_zeros(len(is_real)).index_copy(0, where, counts)
        return values.view(*real.shape, n, e), lengths.view(real.shape)

    def add_positions(self, values: Tensor) -> Tensor:
        """Mark the features of each piece [b, p, n, e] with its place. Default: they are unchanged."""
        return values

    def forward(self, x: tuple[Prepared, Tensor]) -> Features:
        """A batch to features [b, p * n, e], with all padding at the end."""
        values, lengths = self.encode_pieces(x)
        values = self.add_positions(values)
        if lengths is None:
            return Features(values.flatten(1, 2))
        n = values.shape[2]
        is_padding = torch.arange(n, device=values.device) >= lengths[..., None]
        order = is_padding.flatten(1).long().argsort(dim=1, stable=True)
        flat = values.flatten(1, 2)
        return Features(flat.gather(1, order[..., None].expand_as(flat)), lengths.sum(1))
