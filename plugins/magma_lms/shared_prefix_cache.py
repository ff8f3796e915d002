"""A KV cache for rows that share a prefix: its keys and values are stored once, and not copied to each row.

A row attends to its shared prefix and to its suffix (the keys and values that only this row has) in two softmaxes. They
are combined by their log-sum-exps, which gives the softmax over both.

Axes: b rows, g prefixes, n rows of the largest group, h heads, t new positions, c columns of a prefix, p columns of the
suffix, w width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention_masks import to_additive_mask
from .kv_cache import KVCache


class SharedPrefix:
    """Keys and values of the shared prefixes, and the prefix of each row."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], valid: Tensor, prefix_index: Tensor) -> None:
        """`layers`: keys and values [g, h, c, w]; `valid` [g, c]: padding mask; `prefix_index` [b]: prefix of a row."""
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
        """[b]: the place of each row in a batch of g * n rows, grouped by prefix."""
        self.bias = None if bool(valid.all()) else to_additive_mask(valid, layers[0][0].dtype)[:, None, None]

    def select(self, rows: Tensor) -> SharedPrefix:
        """Only these rows [b']. Unused prefixes are freed if at least half of the prefixes are unused."""
        prefix_index = self.prefix_index[rows]
        used, new_index = torch.unique(prefix_index, return_inverse=True)
        if 2 * len(used) > len(self.valid):
            return SharedPrefix(self.layers, self.valid, prefix_index)
        return SharedPrefix([(keys[used], values[used]) for keys, values in self.layers], self.valid[used], new_index)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, layer: int) -> Tensor:
        """Attention [b, h, t, w] of the queries [b, h, t, w] to their prefixes and to the suffix keys and values.

        `bias` [b, 1, t, p] is the additive attention mask of the suffix.
        """
        suffix_out, suffix_lse = attention_with_lse(queries, keys, values, bias)
        prefix_out, prefix_lse = self._attend_prefix(queries, layer)
        prefix_weight = (prefix_lse - suffix_lse).sigmoid()
        return suffix_out.lerp(prefix_out, prefix_weight[..., None].to(suffix_out.dtype))

    def _attend_prefix(self, queries: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Attention [b, h, t, w] of the queries [b, h, t, w] to their prefixes, and its log-sum-exp [b, h, t]."""
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
    """A KV cache of the suffixes, and optionally the prefixes that rows share."""

    def __init__(self, cache: Any, valid: Tensor | None = None, shared_prefix: SharedPrefix | None = None) -> None:
        super().__init__(cache, valid)
        self.shared_prefix = shared_prefix

    def select(self, rows: Tensor) -> SharedPrefixCache:
        """A cache of only these rows. A row that is selected several times becomes a shared prefix."""
        if self.valid is not None and self.shared_prefix is None and self._worth_sharing(rows):
            layers = [(layer.keys, layer.values) for layer in self.cache.layers]
            shared = SharedPrefixCache.empty()
            shared.valid, shared.shared_prefix = (
                self.valid.new_zeros(len(rows), 0),
                SharedPrefix(layers, self.valid, rows),
            )
            return shared
        suffix = super().select(rows)
        return SharedPrefixCache(suffix.cache, suffix.valid, self.shared_prefix and self.shared_prefix.select(rows))

    def _worth_sharing(self, rows: Tensor) -> bool:
        """Whether sharing saves memory: not if the groups are so unequal that most of the padded places are empty."""
        assert self.valid is not None
        counts = rows.bincount(minlength=len(self.valid))
        return len(self.valid) < len(rows) and len(counts) * int(counts.max()) <= 2 * len(rows)


def attention_with_lse(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax attention [b, h, t, w] and the log-sum-exp of its scores [b, h, t], in float32.

    `bias` is added to the scores. On a CPU the fused kernel returns both. Kernels of other devices restrict the shape
    of biases; there the scores of one block are materialised temporarily.
    """
    if queries.device.type == "cpu":
        found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, attn_mask=bias
        )
        return found
    return attention_reference(queries, keys, values, bias)


def attention_reference(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same without a fused kernel."""
    scores = (queries @ keys.transpose(-1, -2)).float() * queries.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(values.dtype) @ values, lse
