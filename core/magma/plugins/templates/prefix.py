"""The prefix newname. Axes: b batch, n features, e encoder width, k embeddings, d language-model width."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field
from torch import nn

import magma

MAGMA_API = 1
"""The version of MAGMA's plugin API that this was written for."""


class NewPart(magma.Prefix):
    """Each feature through two layers to one embedding."""

    name = "newname"

    class Config(magma.PartConfig):
        """`hidden` is the width between the layers."""

        hidden: int = Field(64, ge=1)

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.length = encoder_length
        self.layers = nn.Sequential(nn.Linear(encoder_dim, config.hidden), nn.GELU(), nn.Linear(config.hidden, dim))

    def num_embeddings(self, features: int) -> int:
        """As many embeddings as features."""
        return features

    def forward(self, features: magma.Features) -> magma.Features:
        """[b, n, e] to [b, n, d]."""
        return magma.Features(self.layers(features.values), features.lengths)


@magma.hookimpl
def magma_parts() -> Iterable[type[magma.Part]]:
    """The parts of this package."""
    return [NewPart]
