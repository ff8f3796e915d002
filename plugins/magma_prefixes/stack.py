"""Frame stacking: successive features become one embedding.

Axes: b batch, n features, e encoder width, k prefix length, f features per embedding, d language-model width.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from magma import Features, Prefix

from .dropout_norm import DropoutNorm, DropoutNormConfig
from .projection import ProjectionConfig, make_projection
from .windows import sequence_windows


class Stack(Prefix):
    """Each `factor` successive features are joined along channels and mapped to one embedding by an MLP.

    It is the projector of SLAM-LLM (Ma et al. 2024), Voxtral and, with `gated` and `input_norm = "rmsnorm"`, similar to
    that of Ultravox.
    """

    name = "stack"

    class Config(DropoutNormConfig, ProjectionConfig):
        """How many features are joined, and the map to the embeddings."""

        factor: int = Field(4, ge=1)
        """Number of successive features that become one embedding."""
        remainder: Literal["pad", "drop"] = "pad"
        """What happens if the last embedding would have fewer features: zeros are appended, or they are left out. An
        input with fewer features than one embedding needs is always padded."""

    config: Config

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.length = self.num_embeddings(encoder_length)
        self.projection = make_projection(encoder_dim * config.factor, dim, config)
        self.finish = DropoutNorm(dim, config.dropout, config.layernorm)

    def num_embeddings(self, features: int) -> int:
        """n / f, rounded up with `remainder = "pad"` and down with `"drop"`, at least 1."""
        added = self.config.factor - 1 if self.config.remainder == "pad" else 0
        return max(1, (features + added) // self.config.factor)

    def forward(self, features: Features) -> Features:
        """[b, n, e] to [b, k, d]."""
        factor, lengths = self.config.factor, features.lengths
        windows = sequence_windows(features, self.num_embeddings(features.values.shape[1]), factor, factor)
        if lengths is not None:
            added = factor - 1 if self.config.remainder == "pad" else 0
            lengths = ((lengths + added) // factor).clamp(min=1)
        return Features(self.finish(self.projection(windows.values.flatten(2))), lengths)
