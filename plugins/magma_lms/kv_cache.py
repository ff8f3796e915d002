"""Keys and values of the positions that were read, and which of them are padding.

Axes: b batch, p columns of the cache.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from magma import Cache


class KVCache(Cache):
    """transformers' cache, and which of its columns are real."""

    def __init__(self, cache: Any, valid: Tensor | None = None) -> None:
        """`valid` [b, p]; None while empty."""
        self.cache = cache
        self.valid = valid

    @classmethod
    def empty(cls) -> Self:
        """Without columns."""
        from . import preallocated

        return cls(preallocated.empty_cache())

    def expand(self, repeats: int) -> KVCache:
        """Each row `repeats` times in a row."""
        count = 0 if self.valid is None else len(self.valid)
        device = None if self.valid is None else self.valid.device
        return self.select(torch.arange(count, device=device).repeat_interleave(repeats))

    def select(self, rows: Tensor) -> KVCache:
        """These rows alone."""
        from . import preallocated

        return KVCache(preallocated.select_rows(self.cache, rows), None if self.valid is None else self.valid[rows])
