"""An MLP on each feature. The paper tried non-linear prefixes, and found them no better than linear (section 3.1).

The paper gives no sizes; the defaults here are those of LLaVA 1.5. Axes: b batch, n features, e encoder width, k prefix
length (= n), h hidden width, d language-model width.
"""

from __future__ import annotations

from pydantic import Field

from magma import Features, Prefix

from .dropout_norm import DropoutNorm, DropoutNormConfig
from .projection import ProjectionConfig, make_projection


class Mlp(Prefix):
    """Each feature becomes one embedding through `layers` hidden layers: k = n.

    The default, one hidden layer with GELU, is that of LLaVA 1.5.
    """

    name = "mlp"

    class Config(DropoutNormConfig, ProjectionConfig):
        """Sizes of the hidden layers, dropout and LayerNorm."""

        layers: int = Field(1, ge=1)
        """Number of hidden layers."""

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.length = encoder_length
        self.projection = make_projection(encoder_dim, dim, config)
        self.finish = DropoutNorm(dim, config.dropout, config.layernorm)

    def num_embeddings(self, features: int) -> int:
        """One embedding per feature."""
        return features

    def forward(self, features: Features) -> Features:
        """[b, n, e] to [b, n, d]."""
        return Features(self.finish(self.projection(features.values)), features.lengths)
