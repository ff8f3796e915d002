"""Embeddings before and after each medium, such as those of the tokens that mark its beginning and its end.

Axes: b batch, n features, k prefix length of the inner prefix, d language-model width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import nn

from magma import CheckInputs, Features, PartConfig, PartOf, Prefix


class Framed(Prefix):
    """Another prefix, with learned embeddings before and after those of each medium."""

    name = "framed"

    class Config(PartConfig):
        """The prefix, and how many embeddings are around its own."""

        of: PartOf[Prefix]
        """The prefix."""
        before: int = Field(0, ge=0)
        """Number of embeddings before those of a medium."""
        after: int = Field(0, ge=0)
        """Number of embeddings after those of a medium."""

    config: Config

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.of = config.of.build(encoder_dim, encoder_length, dim)
        self.length = self.of.length + config.before + config.after
        self.before = nn.Parameter(0.02 * torch.randn(config.before, dim))
        self.after = nn.Parameter(0.02 * torch.randn(config.after, dim))

    def num_embeddings(self, features: int) -> int:
        """Those of the prefix, and those around them."""
        return self.of.num_embeddings(features) + self.config.before + self.config.after

    def forward(self, features: Features) -> Features:
        """[b, n, e] to [b, before + k + after, d]; padding comes after everything."""
        inner: Features = self.of(features)
        b, _, d = inner.values.shape
        before = self.before.to(inner.values.dtype).expand(b, -1, -1)
        after = self.after.to(inner.values.dtype).expand(b, -1, -1)
        if inner.lengths is None:
            return Features(torch.cat([before, inner.values, after], dim=1))
        values = torch.cat([before, inner.values, torch.zeros_like(after)], dim=1)
        places = torch.arange(after.shape[1], device=values.device) + (inner.lengths + before.shape[1])[:, None]
        values = values.scatter(1, places[..., None].expand(-1, -1, d), after)
        return Features(values, inner.lengths + before.shape[1] + after.shape[1])

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """One embedding on each side."""
        return CheckInputs({"of": {"use": "linear"}, "before": 1, "after": 1})
