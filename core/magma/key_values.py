"""Further keys and values of an attention sublayer, which adapters put before those of the sequence.

Axes: b batch, t queries, p keys, l further keys, h query heads, g key-value heads, w width of a head's keys, u of its
values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Attention of fixed queries [b, h, t, w] to keys [b, g, p, w] and values [b, g, p, u], with a mask: [b, h, t, u]."""


@dataclass(frozen=True)
class KeyValueShape:
    """Sizes of the keys and values of an attention sublayer."""

    heads: int
    """g."""
    key_width: int
    """w."""
    value_width: int
    """u."""


class _Further(NamedTuple):
    keys: Tensor
    """[g, l, w]."""
    values: Tensor
    """[g, l, u]."""
    acts_on: Tensor | None
    """[b, t], or the same positions in another shape: queries that attend to them. None: all."""


class KeyValueSlot:
    """Where adapters hand further keys and values to one attention sublayer, of which `attend` is a part.

    Every query attends to them, wherever it is: they are before the sequence, also before each packed sequence, and
    they have no position. Keys are those after position embeddings.
    """

    def __init__(self, shape: KeyValueShape) -> None:
        self._shape = shape
        self._further: tuple[_Further, ...] = ()

    @property
    def shape(self) -> KeyValueShape:
        """Sizes of the keys and values.

        Raises:
            PartError: This attention has no place for further keys. Its `attend` is not called then.
        """
        return self._shape

    @contextmanager
    def prepend(self, keys: Tensor, values: Tensor, acts_on: Tensor | None = None) -> Iterator[None]:
        """A context manager: the sublayer, if it runs inside, also attends to these keys and values.

        Args:
            keys: [g, l, w].
            values: [g, l, u].
            acts_on: Which positions of the sublayer's input attend to them, [b, t] boolean. All others are computed as
                without them, bit by bit. None: all positions.
        """
        before = self._further
        self._further = (_Further(keys, values, acts_on), *before)
        try:
            yield
        finally:
            self._further = before

    def attend(self, run: Attend, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """The attention of a language model with the further keys and values; without any, it is `run` itself.

        Args:
            run: The attention of the queries.
            keys: [b, g, p, w], those of a cache included.
            values: [b, g, p, u].
            mask: [b or 1, h or 1, t, p], boolean or added to the scores. None: causal, with the last query at the last
                key. A further key is visible to every query.

        Returns:
            [b, h, t, u].
        """
        return self._attend(run, keys, values, mask, self._further, ())

    def _attend(
        self,
        run: Attend,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        undecided: tuple[_Further, ...],
        chosen: tuple[_Further, ...],
    ) -> Tensor:
        """With some further keys, and with the undecided ones for those queries that attend to them.

        Each combination is computed as if all queries had it, so that the bits of a row do not depend on other rows.
        """
        if not undecided:
            return run(*_extend(keys, values, mask, chosen))
        first, *others = undecided
        rest = tuple(others)
        changed = self._attend(run, keys, values, mask, rest, (*chosen, first))
        if first.acts_on is None:
            return changed
        kept = self._attend(run, keys, values, mask, rest, chosen)
        acts_on = first.acts_on.view(len(kept), -1)[:, -kept.shape[2] :]  # the first columns may be left out
        return torch.where(acts_on[:, None, :, None], changed, kept)


class _Columns(NamedTuple):
    keys: Tensor
    values: Tensor
    mask: Tensor | None


def _extend(keys: Tensor, values: Tensor, mask: Tensor | None, further: tuple[_Further, ...]) -> _Columns:
    """Keys, values and mask with those of `further` before them."""
    if not further:
        return _Columns(keys, values, mask)
    b = len(keys)
    new_keys = torch.cat([*(_rows(one.keys, b, keys) for one in further), keys], dim=2)
    new_values = torch.cat([*(_rows(one.values, b, values) for one in further), values], dim=2)
    if mask is None:
        return _Columns(new_keys, new_values, None)
    count = new_keys.shape[2] - keys.shape[2]
    return _Columns(new_keys, new_values, F.pad(mask, (count, 0), value=float(mask.dtype == torch.bool)))


def _rows(one: Tensor, b: int, like: Tensor) -> Tensor:
    """[g, l, w] as [b, g, l, w], in the precision of the other keys."""
    return one.to(like.dtype).expand(b, *one.shape)
