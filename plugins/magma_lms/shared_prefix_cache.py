"""Keys and values of a beginning that many rows share: kept once, attended once, never copied to each row.

Attention over what is shared and over a row's own are two softmaxes over parts of one; their log-sum-exps say how much
each part counts. Axes: b rows, g beginnings, n rows of the largest group, h heads, t new positions, c columns of a
beginning, p of a row's own, w a head's width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention_masks import to_additive_mask
from .kv_cache import KVCache


class SharedPrefix:
    """The beginnings, and which row has which."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], valid: Tensor, prefix_index: Tensor) -> None:
        """`layers`: keys and values [g, h, c, w]; `valid` [g, c]: real columns; `owner` [b]: each row's beginning."""
        self.layers, self.valid, self.prefix_index = layers, valid, prefix_index
        counts = prefix_index.bincount(minlength=len(valid))
        order = prefix_index.argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = (
            torch.arange(len(prefix_index), device=prefix_index.device)
            - (counts.cumsum(0) - counts)[prefix_index[order]]
        )
        self.max_group = int(counts.max())
        self.slots = prefix_index * self.max_group + rank
        """[b] into g * n."""
        self.bias = None if bool(valid.all()) else to_additive_mask(valid, layers[0][0].dtype)[:, None, None]

    def select(self, rows: Tensor) -> SharedPrefix:
        """Of these rows [b'] alone; beginnings that none of them has are let go when they are most."""
        prefix_index = self.prefix_index[rows]
        used, renamed = torch.unique(prefix_index, return_inverse=True)
        if 2 * len(used) > len(self.valid):
            return SharedPrefix(self.layers, self.valid, prefix_index)
        return SharedPrefix([(keys[used], values[used]) for keys, values in self.layers], self.valid[used], renamed)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, layer: int) -> Tensor:
        """[b, h, t, w] to the same: what queries gather from their beginnings and from the rows' own keys and values.

        `bias` [b, 1, t, p] says who sees whom of the rows' own.
        """
        own, own_sum = attention_with_lse(queries, keys, values, bias)
        began, began_sum = self._attend_prefix(queries, layer)
        share = (began_sum - own_sum).sigmoid()
        return own.lerp(began, share[..., None].to(own.dtype))

    def _attend_prefix(self, queries: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """[b, h, t, w] to what they gather from their beginnings, alike, and its log-sum-exp [b, h, t]."""
        _, h, t, w = queries.shape
        g, n = len(self.valid), self.max_group
        rows = queries.transpose(1, 2)
        if g > 1:
            rows = rows.new_zeros(g * n, t, h, w).index_copy_(0, self.slots, rows)
        out, lse = attention_with_lse(rows.reshape(g, n * t, h, w).transpose(1, 2), *self.layers[layer], self.bias)
        out, lse = (x.transpose(1, 2).reshape(g * n, t, *x.shape[1:2], *x.shape[3:]) for x in (out, lse))
        if g > 1:
            out, lse = out[self.slots], lse[self.slots]
        return out.transpose(1, 2), lse.transpose(1, 2)


class SharedPrefixCache(KVCache):
    """A cache of rows' own keys and values behind the beginnings that they share, where they do."""

    def __init__(self, cache: Any, valid: Tensor | None = None, shared_prefix: SharedPrefix | None = None) -> None:
        super().__init__(cache, valid)
        self.shared_prefix = shared_prefix

    def select(self, rows: Tensor) -> SharedPrefixCache:
        """These rows alone; what several of them begin with is shared from now on."""
        if self.valid is not None and self.shared_prefix is None and self._worth_sharing(rows):
            layers = [(layer.keys, layer.values) for layer in self.cache.layers]
            made = SharedPrefixCache.empty()
            made.valid, made.shared_prefix = self.valid.new_zeros(len(rows), 0), SharedPrefix(layers, self.valid, rows)
            return made
        own = super().select(rows)
        return SharedPrefixCache(own.cache, own.valid, self.shared_prefix and self.shared_prefix.select(rows))

    def _worth_sharing(self, rows: Tensor) -> bool:
        """Not where groups are so unequal that most of the places for them would be empty."""
        assert self.valid is not None
        counts = rows.bincount(minlength=len(self.valid))
        return len(self.valid) < len(rows) and len(counts) * int(counts.max()) <= 2 * len(rows)


def attention_with_lse(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax attention [b, h, t, w] and the log-sum-exp of its scores [b, h, t], in float32.

    `bias` is added to the scores. On a CPU the fused kernel tells both; other kernels have rules of their own for
    biases, and there the scores of one block are in memory for a moment.
    """
    if queries.device.type == "cpu":
        found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, attn_mask=bias
        )
        return found
    return attention_reference(queries, keys, values, bias)


def attention_reference(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same, operation by operation."""
    scores = (queries @ keys.transpose(-1, -2)).float() * queries.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(values.dtype) @ values, lse
