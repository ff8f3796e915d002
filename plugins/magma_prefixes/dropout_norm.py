"""The last layers of every prefix."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from magma import PartConfig


class DropoutNormConfig(PartConfig):
    """Dropout and LayerNorm on the embeddings."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability on the embeddings."""
    layernorm: bool = False
    """Apply LayerNorm to the embeddings."""


class DropoutNorm(nn.Sequential):
    """Dropout, then optionally LayerNorm, on the output of a prefix."""

    def __init__(self, dim: int, dropout: float, layernorm: bool) -> None:
        super().__init__(nn.Dropout(dropout), nn.LayerNorm(dim) if layernorm else nn.Identity())
