"""Attention masks and padding masks. Axes: b batch, t tokens, p columns of the cache, d width."""

from __future__ import annotations

import torch
from torch import Tensor

from magma import BatchLayout


def padding_mask(embeddings: Tensor, layout: BatchLayout, past: Tensor | None) -> Tensor:
    """[b, p + t]: True for columns that are not padding."""
    valid = torch.arange(embeddings.shape[1], device=embeddings.device) < layout.lengths[:, None]
    return valid if past is None else torch.cat([past, valid], dim=-1)


def attention_mask(embeddings: Tensor, layout: BatchLayout, past: Tensor | None) -> Tensor:
    """[b, t, p + t]: True for columns that a position attends to: causal, not padding, in the same packed sequence.

    Padding attends to itself, so that no row of the mask is empty.
    """
    t = embeddings.shape[1]
    columns = torch.arange(t, device=embeddings.device)
    attended = (columns <= columns[:, None]) & (columns < layout.lengths[:, None])[:, None]
    if layout.sequence_ids is not None:
        attended = attended & (layout.sequence_ids[:, :, None] == layout.sequence_ids[:, None])
    attended = attended | (columns == columns[:, None])
    return attended if past is None else torch.cat([past[:, None].expand(-1, t, -1), attended], dim=-1)


def to_additive_mask(attended: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as a bias that is added to attention scores: 0 for True, the most negative number for False."""
    return torch.zeros_like(attended, dtype=dtype).masked_fill_(~attended, torch.finfo(dtype).min)


def causal_mask(t: int, keys: Tensor) -> Tensor | None:
    """[1, 1, t, p]: the last query attends to all keys [b, g, p, w]. None: as the kernels do it without a mask."""
    p = keys.shape[2]
    return torch.ones(1, 1, t, p, dtype=torch.bool, device=keys.device).tril(p - t) if 1 < t < p else None
