"""Linear maps from features to word-embedding space (section 3.1 of the paper).

Axes: b batch, n features, e encoder width, k prefix length, d language-model width.
"""

from __future__ import annotations

from torch import nn

from magma import Features, Prefix

from .dropout_norm import DropoutNorm, DropoutNormConfig


class Linear(Prefix):
    """Each feature becomes one embedding: k = n."""

    name = "linear"

    class Config(DropoutNormConfig):
        """Bias, dropout and LayerNorm. The paper trains with dropout 0.1 and with LayerNorm."""

        bias: bool = True
        """Whether the map has a bias."""

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.length = encoder_length
        self.projection = nn.Linear(encoder_dim, dim, config.bias)
        self.finish = DropoutNorm(dim, config.dropout, config.layernorm)

    def num_embeddings(self, features: int) -> int:
        """One embedding per feature."""
        return features

    def forward(self, features: Features) -> Features:
        """[b, n, e] to [b, n, d]."""
        return Features(self.finish(self.projection(features.values)), features.lengths)
