"""Gated cross-attention from text to media, before blocks (Flamingo, Alayrac et al. 2022).

The layers, their names, sizes and norms are those of `GatedCrossAttentionBlock` of open_flamingo, so its weights can be
loaded. Two things differ. Media also fill positions of the sequence here, as everywhere in MAGMA; these positions are
queries too, and attend to their own medium. With `all_media`, a position before all media gets zeros, as with the last
medium only; open_flamingo lets it attend to all media of the row equally.

Axes: b batch, t tokens, d width of the block, n embeddings of all media of a row, e width of media, h heads, w width of
a head.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from magma import Adapter, Context, PartConfig, PartError, Site


class GatedCrossAttention(Adapter):
    """Before the block: h = x + tanh(a) * attention(x, media), then h + tanh(b) * feedforward(h) (figure 4).

    Both gates start at zero, so that training starts with the language model itself. The feed-forward also acts on text
    without media, as in the paper.
    """

    name = "gated_cross_attention"
    uses_context = True

    class Config(PartConfig):
        """Sizes of the attention and the feed-forward, and which media a position attends to."""

        heads: int = Field(8, ge=1)
        """Attention heads."""
        head_dim: int = Field(64, ge=1)
        """Width of a head."""
        ff_mult: int = Field(4, ge=1)
        """Width of the feed-forward, divided by the width of the block."""
        all_media: bool = False
        """Attend to all media at or before a position. Otherwise only to the last one (section 2.3 of the paper)."""

    config: Config

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        if site.path != "block":
            raise PartError(f'"{self.name}" acts before blocks: given {site.path}; allowed: block')
        if not site.media_features:
            raise PartError(f'"{self.name}": this language model does not state the width of media in its sites')
        dim = site.in_features
        self.attn = MaskedCrossAttention(dim, site.media_features, config.heads, config.head_dim)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        width = config.ff_mult * dim
        self.ff = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, width, bias=False), nn.GELU(), nn.Linear(width, dim, bias=False)
        )
        self.ff_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor], context: Context) -> Tensor:
        """[b, t, d] to [b, t, d]."""
        x = x + self.attn_gate.tanh() * self.attn(x, context.media, context.media_mask(not self.config.all_media))
        return sublayer(x + self.ff_gate.tanh() * self.ff(x))


class MaskedCrossAttention(nn.Module):
    """Attention of positions to the media that they may attend to, with a LayerNorm of the positions."""

    def __init__(self, dim: int, media_features: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(media_features, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)
        self._last: tuple[weakref.ref[Tensor], int, Tensor] | None = None
        """Media, the version of the weights, and their keys and values."""

    def forward(self, x: Tensor, media: Tensor, mask: Tensor) -> Tensor:
        """What positions get from media.

        Args:
            x: Positions, [b, t, d].
            media: Embeddings of media, [b, n, e].
            mask: Which of them each position may attend to, [b, t, n] boolean.

        Returns:
            [b, t, d], zero for positions that may attend to none. Without media (n = 0), a zero that every weight has
            a part in, from no position and one embedding: all processes have to run the same operations.
        """
        is_needed = media.shape[1] > 0
        if not is_needed:
            media = F.pad(media[:1], (0, self.to_kv.in_features - media.shape[2], 0, 1))
            x, mask = x[:1, :0], mask.new_ones(1, 0, 1)
        queries = self._split(self.to_q(self.norm(x)))
        keys, values = map(self._split, self._project(media).chunk(2, dim=-1))
        none = ~mask.any(-1, keepdim=True)
        out = F.scaled_dot_product_attention(queries, keys, values, (mask | none)[:, None])
        projected: Tensor = self.to_out(out.transpose(1, 2).flatten(2).masked_fill(none, 0))
        return projected if is_needed else projected.sum()

    def _project(self, media: Tensor) -> Tensor:
        """Keys and values [b, n, 2 * h * w]. In generation the media are the same for each token: projected once."""
        version = self.to_kv.weight._version
        known = None if torch.is_grad_enabled() else self._last
        if known is not None and known[0]() is media and known[1] == version:
            return known[2]
        projected: Tensor = self.to_kv(media)
        self._last = None if torch.is_grad_enabled() else (weakref.ref(media), version, projected)
        return projected

    def _split(self, x: Tensor) -> Tensor:
        """[b, *, h * w] to [b, h, *, w]."""
        return x.view(*x.shape[:2], self.heads, x.shape[2] // self.heads).transpose(1, 2)
