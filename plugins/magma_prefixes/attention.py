"""Attention of learned queries to features.

Axes: b batch, n features, q queries, h heads, g heads of keys and values, w width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from magma import Features


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, head_width: int, mask: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention; several heads of queries share a head of keys and values if there are fewer.

    Args:
        queries: [b, q, h * w].
        keys: [b, n, g * w]; g divides h.
        values: [b, n, g * w].
        head_width: w.
        mask: [b, 1, 1, n], False for keys that must not be read. None: all are read.
        dropout: Dropout probability of the attention weights.

    Returns:
        [b, q, h * w].
    """
    q, k, v = (x.view(*x.shape[:2], -1, head_width).transpose(1, 2) for x in (queries, keys, values))
    shared = q.shape[1] // k.shape[1]
    if shared > 1:
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2).flatten(2)


def padding_mask(features: Features, always: int = 0) -> Tensor | None:
    """[b, 1, 1, n + always], True for real features and for the `always` keys after them. None without padding."""
    if features.lengths is None:
        return None
    n, device = features.values.shape[1], features.values.device
    valid = torch.arange(n, device=device) < features.lengths[:, None]
    return torch.cat([valid, valid.new_ones(len(valid), always)], dim=1)[:, None, None]
