"""A transformer encoder over the features, which the paper tried and found no better than a linear map (section 3.1).

The paper gives no sizes; the defaults here are common ones. Axes: b batch, n features, e encoder width, k prefix
length (= n), d language-model width.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from magma import Features, PartError, Prefix

from .dropout_norm import DropoutNorm, DropoutNormConfig


class Transformer(Prefix):
    """Self-attention over the features, before each becomes one embedding: k = n.

    Linear from e to `width`, learned positions, a pre-norm transformer encoder with a padding mask, linear to d.
    """

    name = "transformer"

    class Config(DropoutNormConfig):
        """Sizes of the transformer encoder, dropout and LayerNorm."""

        layers: int = Field(2, ge=1)
        """Number of transformer layers."""
        heads: int = Field(8, ge=1)
        """Attention heads per layer; their number must divide the width."""
        width: int | None = Field(None, ge=1)
        """Width of the layers; their feed-forward is four times as wide. Default: the width of the features."""

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.length = encoder_length
        width = config.width or encoder_dim
        if width % config.heads:
            raise PartError(f"prefix heads: given {config.heads}; allowed: a number that divides the width, {width}")
        self.reduce = nn.Linear(encoder_dim, width) if width != encoder_dim else nn.Identity()
        self.positions = nn.Parameter(torch.empty(encoder_length, width).normal_(std=0.02))
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.projection = nn.Linear(width, dim)
        self.finish = DropoutNorm(dim, config.dropout, config.layernorm)

    def num_embeddings(self, features: int) -> int:
        """One embedding per feature."""
        return features

    def forward(self, features: Features) -> Features:
        """[b, n, e] to [b, n, d]."""
        n = features.values.shape[1]
        padding = None
        if features.lengths is not None:
            padding = torch.arange(n, device=features.values.device) >= features.lengths[:, None]
        x = self.reduce(features.values) + self.positions[:n]
        x = self.encoder(x, src_key_padding_mask=padding)
        return Features(self.finish(self.projection(x)), features.lengths)
