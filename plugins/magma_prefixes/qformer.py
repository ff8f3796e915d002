"""The Q-Former of BLIP-2 (Li et al. 2023): learned queries read the features through cross-attention.

Axes: b batch, n features, e encoder width, q queries, k prefix length, w width of the Q-Former, d language-model width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from magma import CheckInputs, Features, PartError, Prefix

from .attention import attend, padding_mask
from .dropout_norm import DropoutNorm, DropoutNormConfig
from .projection import ACTIVATIONS, Activation
from .windows import sequence_windows


class QFormer(Prefix):
    """Any number of features becomes `length` embeddings (BLIP-2), or each window of features does (SALMONN).

    The queries attend to each other in each layer, and to the features in every second one; layers are post-norm, as in
    BERT. A linear map to the width of the language model follows.
    """

    name = "qformer"

    class Config(DropoutNormConfig):
        """Sizes of the Q-Former; the defaults are those of BLIP-2."""

        length: int = Field(32, ge=1)
        """Number of queries, which is the number of embeddings of an input, or of a window."""
        window: int | None = Field(None, ge=1)
        """Features of a window, of which each is read separately; zeros fill the last one. Default: all features are
        one window, of any length."""
        layers: int = Field(12, ge=1)
        """Number of layers."""
        heads: int = Field(12, ge=1)
        """Attention heads per layer; their number must divide the width."""
        width: int = Field(768, ge=1)
        """Width of the queries and of the layers."""
        hidden: int | None = Field(None, ge=1)
        """Width of the feed-forward layers. Default: four times `width`."""
        cross_attention_every: int = Field(2, ge=1)
        """Distance between layers with cross-attention, from the first layer on."""
        activation: Activation = "gelu"
        """Activation of the feed-forward layers."""
        norm_eps: float = Field(1e-12, gt=0)
        """Epsilon of the LayerNorms."""
        layer_dropout: float = Field(0.0, ge=0, lt=1)
        """Dropout probability of hidden states inside the layers."""
        attention_dropout: float = Field(0.0, ge=0, lt=1)
        """Dropout probability of attention weights."""

    config: Config

    def __init__(self, config: Config, encoder_dim: int, encoder_length: int, dim: int) -> None:
        super().__init__(config, encoder_dim, encoder_length, dim)
        if config.width % config.heads:
            raise PartError(
                f"prefix heads: given {config.heads}; allowed: a number that divides the width, {config.width}"
            )
        self.length = self.num_embeddings(encoder_length)
        self.queries = nn.Parameter(torch.empty(1, config.length, config.width).normal_(std=0.02))
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.dropout = nn.Dropout(config.layer_dropout)
        self.layers = nn.ModuleList(
            QFormerLayer(config, encoder_dim if i % config.cross_attention_every == 0 else None)
            for i in range(config.layers)
        )
        self.projection = nn.Linear(config.width, dim)
        self.finish = DropoutNorm(dim, config.dropout, config.layernorm)

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A small configuration."""
        return CheckInputs({"length": 4, "layers": 3, "heads": 2, "width": 16})

    def num_embeddings(self, features: int) -> int:
        """Number of queries times number of windows."""
        if self.config.window is None:
            return self.config.length
        return self.config.length * -(-features // self.config.window)

    def forward(self, features: Features) -> Features:
        """[b, n, e] to [b, k, d]."""
        window, lengths = self.config.window, None
        values, mask = features.values, padding_mask(features)
        if window is not None:
            values = sequence_windows(features, -(-values.shape[1] // window), window, window).values.flatten(0, 1)
            mask = None
            if features.lengths is not None:
                lengths = (features.lengths + window - 1) // window * self.config.length
        x = self.dropout(self.norm(self.queries)).expand(len(values), -1, -1)
        for layer in self.layers:
            x = layer(x, values, mask)
        x = x.reshape(len(features.values), -1, x.shape[-1])
        return Features(self.finish(self.projection(x)), lengths)


class QFormerLayer(nn.Module):
    """Self-attention, cross-attention if `encoder_dim` is given, and a feed-forward layer, each before a LayerNorm."""

    def __init__(self, config: QFormer.Config, encoder_dim: int | None) -> None:
        super().__init__()
        width = config.width
        hidden = config.hidden or 4 * width
        self.self_attention = QFormerAttention(config, width)
        self.cross_attention = None if encoder_dim is None else QFormerAttention(config, encoder_dim)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            ACTIVATIONS[config.activation](),
            nn.Linear(hidden, width),
            nn.Dropout(config.layer_dropout),
        )
        self.norm = nn.LayerNorm(width, config.norm_eps)

    def forward(self, x: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
        """Hidden states [b, q, w], features [b, n, e], mask [b, 1, 1, n] or None, to hidden states [b, q, w]."""
        x = self.self_attention(x, x, None)
        if self.cross_attention is not None:
            x = self.cross_attention(x, features, mask)
        out: Tensor = self.norm(x + self.mlp(x))
        return out


class QFormerAttention(nn.Module):
    """Attention to `source_dim` wide states, a residual connection and a LayerNorm."""

    def __init__(self, config: QFormer.Config, source_dim: int) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.attention_dropout = config.attention_dropout
        self.query = nn.Linear(config.width, config.width)
        self.key, self.value = nn.Linear(source_dim, config.width), nn.Linear(source_dim, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.layer_dropout)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """[b, q, w] and [b, n, source_dim] to [b, q, w]."""
        dropout = self.attention_dropout if self.training else 0.0
        attended = attend(self.query(x), self.key(source), self.value(source), self.head_width, mask, dropout)
        out: Tensor = self.norm(x + self.dropout(self.out(attended)))
        return out
