"""A KV cache with spare columns: decoding a token writes one column, and does not copy the others.

Axes: b rows, h heads, p columns, t new columns, w width of a head. This module is imported when the first cache is
created, because importing transformers is slow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE_COLUMNS = 64
"""Number of columns that are allocated in advance."""


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # the library is not typed
    """transformers' `DynamicLayer`, without copying all keys and values for every token."""

    def __init__(self, buffers: list[Tensor] | None = None, columns: int = 0) -> None:
        """`buffers`: keys and values [b, h, at least p, w], of which the first `columns` are used."""
        super().__init__()
        self.buffers = buffers
        if buffers is not None:
            self.lazy_initialization(*buffers)
            self.keys, self.values = (buffer[:, :, :columns] for buffer in buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [b, h, t, w]. Returns all of them, [b, h, p + t, w]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        p, t = self.keys.shape[2], key_states.shape[2]
        if self.buffers is None or self.buffers[0].shape[2] < p + t:
            self.buffers = [_allocate(old, old.shape[0], p + t) for old in (self.keys, self.values)]
            for buffer, old in zip(self.buffers, (self.keys, self.values), strict=True):
                buffer[:, :, :p] = old
        keys, values = self.buffers
        keys.narrow(2, p, t).copy_(key_states)
        values.narrow(2, p, t).copy_(value_states)
        self.keys, self.values = keys.narrow(2, 0, p + t), values.narrow(2, 0, p + t)
        return self.keys, self.values

    def select(self, rows: Tensor) -> PreallocatedLayer:
        """A layer of these rows [b'], which may repeat.

        If there is a single row, the repeated rows are a view of it. They are copied when columns are appended.
        """
        if not self.is_initialized:
            return PreallocatedLayer()
        p = self.keys.shape[2]
        if len(self.keys) == 1:
            return PreallocatedLayer([old.expand(len(rows), -1, -1, -1) for old in (self.keys, self.values)], p)
        buffers = [_allocate(old, len(rows), p) for old in (self.keys, self.values)]
        for buffer, old in zip(buffers, (self.keys, self.values), strict=True):
            torch.index_select(old, 0, rows, out=buffer[:, :, :p])
        return PreallocatedLayer(buffers, p)


def empty_cache() -> Cache:
    """A cache without columns."""
    return Cache(layer_class_to_replicate=PreallocatedLayer)


def select_rows(cache: Cache, rows: Tensor) -> Cache:
    """A new cache of these rows [b'], which may repeat."""
    if not cache.layers:
        return empty_cache()
    return Cache(layers=[layer.select(rows) for layer in cache.layers])


def _allocate(like: Tensor, rows: int, columns: int) -> Tensor:
    _, h, _, w = like.shape
    return like.new_empty(rows, h, columns + SPARE_COLUMNS, w)
