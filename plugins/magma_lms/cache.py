"""Caches of transformers of any kind: keys and values, windows of them, states of recurrent layers.

Axes: b rows, p columns, t new columns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

CacheKind = Literal["preallocated", "own", "dynamic"]
"""How a cache is made: the library's `DynamicCache` with spare columns, one that the model makes, a `DynamicCache`."""


def new_cache(kind: CacheKind, config: Any) -> Any:
    """An empty cache of transformers for a decoder with this configuration."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    from .preallocated import PreallocatedLayer

    cache = DynamicCache(config=config)
    if kind == "preallocated":
        cache.layers = [PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        if cache.layer_class_to_replicate is DynamicLayer:
            cache.layer_class_to_replicate = PreallocatedLayer
    return cache


def select_rows(cache: Any, rows: Tensor, batch: int) -> Any:
    """A new cache of some rows [b'], which may repeat, of a cache of `batch` rows."""
    return _map(cache, lambda tensor: _select(tensor, rows, batch), rows)


def _map(value: Any, change: Callable[[Tensor], Tensor], rows: Tensor) -> Any:
    from .preallocated import PreallocatedLayer

    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, PreallocatedLayer):
        return value.select(rows)
    if isinstance(value, Mapping):
        new = copy.copy(value)
        for key, one in value.items():
            new[key] = _map(one, change, rows)  # type: ignore[index]  # a dictionary
        return new
    if isinstance(value, Sequence) and not isinstance(value, str):
        items = [_map(one, change, rows) for one in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # type: ignore[call-arg]
    if _is_part_of_a_cache(value):
        new = copy.copy(value)
        new.__dict__.update({name: _map(one, change, rows) for name, one in vars(value).items()})
        return new
    return value


def _is_part_of_a_cache(value: Any) -> bool:
    from transformers import PreTrainedConfig

    ours = type(value).__module__.split(".")[0] in {"transformers", __name__.split(".")[0]}
    return ours and hasattr(value, "__dict__") and not isinstance(value, type | PreTrainedConfig | nn.Module)


def _select(tensor: Tensor, rows: Tensor, batch: int) -> Tensor:
    axis = next((axis for axis, size in enumerate(tensor.shape) if size == batch), None)
    return tensor if axis is None else tensor.index_select(axis, rows)
