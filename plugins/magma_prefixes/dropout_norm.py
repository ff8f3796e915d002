"""The last layers of every prefix."""

from __future__ import annotations

from torch import nn


class DropoutNorm(nn.Sequential):
    """Dropout, then optionally LayerNorm, on the output of a prefix."""

    def __init__(self, dim: int, dropout: float, layernorm: bool) -> None:
        super().__init__(nn.Dropout(dropout), nn.LayerNorm(dim) if layernorm else nn.Identity())
