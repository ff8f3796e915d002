"""Keys and values with room behind them: a token that is decoded is written, and what was there is not copied.

Axes: b rows, h heads, p columns, t new ones, w a head's width. Imported when a cache is first made, for the library is
slow to import.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE_COLUMNS = 64
"""Columns that are made ready ahead."""


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # the library is not typed
    """transformers' layer of a dynamic cache, but for the copy of everything that it makes for every token."""

    def __init__(self, buffers: list[Tensor] | None = None, columns: int = 0) -> None:
        """`buffers`: keys and values [b, h, p or more, w], of which the first `columns` count."""
        super().__init__()
        self.buffers = buffers
        if buffers is not None:
            self.lazy_initialization(*buffers)
            self.keys, self.values = (whole[:, :, :columns] for whole in buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put new ones [b, h, t, w] behind the others; all of them [b, h, p + t, w]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        p, t = self.keys.shape[2], key_states.shape[2]
        if self.buffers is None or self.buffers[0].shape[2] < p + t:
            self.buffers = [_allocate(old, old.shape[0], p + t) for old in (self.keys, self.values)]
            for whole, old in zip(self.buffers, (self.keys, self.values), strict=True):
                whole[:, :, :p] = old
        for whole, new in zip(self.buffers, (key_states, value_states), strict=True):
            whole[:, :, p : p + t] = new
        self.keys, self.values = (whole[:, :, : p + t] for whole in self.buffers)
        return self.keys, self.values


def empty_cache() -> Cache:
    """A cache without columns."""
    return Cache(layer_class_to_replicate=PreallocatedLayer)


def select_rows(cache: Cache, rows: Tensor) -> Cache:
    """A cache of its own of these rows [b'], some of them several times.

    A single row that is repeated is copied when there is something to put behind it, and it is known how much.
    """
    if not cache.layers:
        return empty_cache()
    layers = []
    for layer in cache.layers:
        p = layer.keys.shape[2]
        if len(layer.keys) == 1:
            layers.append(
                PreallocatedLayer([old.expand(len(rows), -1, -1, -1) for old in (layer.keys, layer.values)], p)
            )
            continue
        buffers = [_allocate(old, len(rows), p) for old in (layer.keys, layer.values)]
        for whole, old in zip(buffers, (layer.keys, layer.values), strict=True):
            torch.index_select(old, 0, rows, out=whole[:, :, :p])
        layers.append(PreallocatedLayer(buffers, p))
    return Cache(layers=layers)


def _allocate(like: Tensor, rows: int, columns: int) -> Tensor:
    _, h, _, w = like.shape
    return like.new_empty(rows, h, columns + SPARE_COLUMNS, w)
