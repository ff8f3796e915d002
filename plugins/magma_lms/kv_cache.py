"""The KV cache: keys and values of past positions, with a padding mask.

Axes: b batch, p columns of the cache.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from magma import Cache


class KVCache(Cache):
    """transformers' cache, with a padding mask of its columns."""

    def __init__(self, cache: Any, valid: Tensor | None = None) -> None:
        """`valid` [b, p]: True for columns that are not padding; None for an empty cache."""
        self.cache = cache
        self.valid = valid

    @classmethod
    def empty(cls) -> Self:
        """A cache without columns."""
        from . import preallocated

        return cls(preallocated.empty_cache())

    def expand(self, repeats: int) -> KVCache:
        """A cache with each row repeated `repeats` times, consecutively."""
        count = 0 if self.valid is None else len(self.valid)
        device = None if self.valid is None else self.valid.device
        return self.select(torch.arange(count, device=device).repeat_interleave(repeats))

    def select(self, rows: Tensor) -> KVCache:
        """A cache of only these rows."""
        from . import preallocated

        return KVCache(preallocated.select_rows(self.cache, rows), None if self.valid is None else self.valid[rows])
