"""The Perceiver resampler of Idefics2 (Laurençon et al. 2024): learned latents attend to the features.

Axes: b batch, n features, e encoder width, k prefix length (latents), h heads, d language-model width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from magma import CheckInputs, Features, PartError, Prefix

from .attention import attend, padding_mask
from .dropout_norm import DropoutNorm, DropoutNormConfig
from .projection import Activation, ProjectionConfig, make_projection


class Resampler(Prefix):
    """Any number of features becomes `length` embeddings: cross-attention of learned latents (Perceiver, as Idefics2).

    Features are first mapped to the width of the language model (`projection`). In each layer, the latents attend to
    the features and to themselves, and an MLP with SwiGLU follows.
    """

    name = "resampler"

    class Config(DropoutNormConfig):
        """Sizes of the resampler; the defaults are those of Idefics2 8B."""

        length: int = Field(64, ge=1)
        """Number of latents, which is the number of embeddings."""
        layers: int = Field(3, ge=1)
        """Number of layers."""
        heads: int = Field(16, ge=1)
        """Attention heads per layer."""
        kv_heads: int | None = Field(None, ge=1)
        """Heads of keys and values; their number divides `heads`. Default: a quarter of `heads`, or `heads`."""
        head_width: int = Field(96, ge=1)
        """Width of an attention head."""
        activation: Activation = "silu"
        """Activation of the MLPs of the layers."""
        norm_eps: float = Field(1e-6, gt=0)
        """Epsilon of the RMSNorms."""
        projection: ProjectionConfig = ProjectionConfig(layers=0)
        """Map of the features to the width of the language model, such as `{ layers = 1, gated = true, bias = false,
        activation = "silu", hidden = 14336 }` in Idefics2. Default: linear."""

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        self.length = config.length
        kv_heads = config.kv_heads or (config.heads if config.heads % 4 else config.heads // 4)
        if config.heads % kv_heads:
            raise PartError(f"prefix kv_heads: given {kv_heads}; allowed: a number that divides heads, {config.heads}")
        self.projection = make_projection(encoder_dim, dim, config.projection)
        self.latents = nn.Parameter(torch.empty(config.length, dim).normal_())
        self.layers = nn.ModuleList(ResamplerLayer(config, kv_heads, dim) for _ in range(config.layers))
        self.norm = nn.RMSNorm(dim, config.norm_eps)
        self.finish = DropoutNorm(dim, config.dropout, config.layernorm)

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A small configuration."""
        return CheckInputs({"length": 4, "layers": 2, "heads": 4, "head_width": 4})

    def forward(self, features: Features) -> Features:
        """[b, n, e] to [b, k, d]."""
        context = self.projection(features.values)
        mask = padding_mask(features, self.length)
        latents = self.latents.expand(len(context), -1, -1)
        for layer in self.layers:
            latents = layer(latents, context, mask)
        return Features(self.finish(self.norm(latents)))


class ResamplerLayer(nn.Module):
    """Attention of the latents to features and latents, then an MLP, each after an RMSNorm."""

    def __init__(self, config: Resampler.Config, kv_heads: int, dim: int) -> None:
        super().__init__()
        self.kv_heads, self.head_width = kv_heads, config.head_width
        inner, shared = config.heads * config.head_width, kv_heads * config.head_width
        self.latents_norm = nn.RMSNorm(dim, config.norm_eps)
        self.context_norm = nn.RMSNorm(dim, config.norm_eps)
        self.query, self.out = nn.Linear(dim, inner, bias=False), nn.Linear(inner, dim, bias=False)
        self.key, self.value = nn.Linear(dim, shared, bias=False), nn.Linear(dim, shared, bias=False)
        self.mlp_norm = nn.RMSNorm(dim, config.norm_eps)
        sizes = ProjectionConfig(layers=1, hidden=4 * dim, activation=config.activation, gated=True, bias=False)
        self.mlp = make_projection(dim, dim, sizes)

    def forward(self, latents: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Latents [b, k, d], features [b, n, d], mask [b, 1, 1, n + k] or None, to latents [b, k, d]."""
        queries = self.latents_norm(latents)
        read = torch.cat([self.context_norm(context), queries], dim=1)
        attended = attend(self.query(queries), self.key(read), self.value(read), self.head_width, mask)
        latents = latents + self.out(attended)
        out: Tensor = latents + self.mlp(self.mlp_norm(latents))
        return out
