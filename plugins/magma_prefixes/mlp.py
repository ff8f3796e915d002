"""The non-linear prefixes that the paper tried, and found no better than a linear map (section 3.1).

The paper gives no sizes; these are the field's usual ones. Axes: b batch, n features, e encoder width, k prefix
length (= n), h hidden width, d language-model width.
"""

from __future__ import annotations

import itertools

from pydantic import Field
from torch import nn

from magma import Features, PartConfig, Prefix

from .dropout_norm import DropoutNorm


class Mlp(Prefix):
    """Each feature becomes one embedding through `layers` hidden layers with GELU: k = n."""

    name = "mlp"

    class Config(PartConfig):
        """`hidden` is h, d where it is not given."""

        layers: int = Field(1, ge=1)
        hidden: int | None = Field(None, ge=1)
        dropout: float = Field(0.0, ge=0, lt=1)
        layernorm: bool = False

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.length = encoder_length
        hidden = config.hidden or dim
        widths = [encoder_dim, *[hidden] * config.layers]
        steps: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            steps += [nn.Linear(before, after), nn.GELU()]
        self.projection = nn.Sequential(*steps, nn.Linear(hidden, dim))
        self.finish = DropoutNorm(dim, config.dropout, config.layernorm)

    def num_embeddings(self, features: int) -> int:
        """As many as there are features."""
        return features

    def forward(self, features: Features) -> Features:
        """[b, n, e] to [b, n, d]."""
        return Features(self.finish(self.projection(features.values)), features.lengths)
