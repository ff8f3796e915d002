"""A linear map of the pooled feature to several embeddings.

Axes: b batch, n features, e encoder width, k prefix length, d language-model width.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from magma import Features, Prefix

from .dropout_norm import DropoutNorm, DropoutNormConfig


class Pooled(Prefix):
    """One pooled feature becomes k embeddings, as in Frozen: linear to k * d, reshaped.

    Several features are averaged first; padding is excluded.
    """

    name = "pooled"

    class Config(DropoutNormConfig):
        """Number of embeddings, dropout and LayerNorm."""

        length: int = Field(2, ge=1)
        """Number of embeddings per item; Frozen and the paper's NF-ResNet use 2."""

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.length = config.length
        self.dim = dim
        self.projection = nn.Linear(encoder_dim, config.length * dim)
        self.finish = DropoutNorm(dim, config.dropout, config.layernorm)

    def forward(self, features: Features) -> Features:
        """[b, n, e] to [b, k, d]."""
        pooled = _mean_pool(features)
        return Features(self.finish(self.projection(pooled).unflatten(-1, (self.length, self.dim))))


def _mean_pool(features: Features) -> Tensor:
    """[b, n, e] to [b, e]: the mean of the features that are not padding."""
    if features.lengths is None:
        return features.values.mean(1)
    valid = torch.arange(features.values.shape[1], device=features.values.device) < features.lengths[:, None]
    total = (features.values * valid[..., None]).sum(1)
    return total / features.lengths[:, None].to(total.dtype)
