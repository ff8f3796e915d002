"""Which columns each position attends to. Axes: b batch, t tokens, p columns that a cache holds, d width."""

from __future__ import annotations

import torch
from torch import Tensor

from magma import BatchLayout


def padding_mask(embeddings: Tensor, layout: BatchLayout, past: Tensor | None) -> Tensor:
    """Which columns are no padding [b, p + t]."""
    valid = torch.arange(embeddings.shape[1], device=embeddings.device) < layout.lengths[:, None]
    return valid if past is None else torch.cat([past, valid], dim=-1)


def attention_mask(embeddings: Tensor, layout: BatchLayout, past: Tensor | None) -> Tensor:
    """Which columns each position sees [b, t, p + t]: causal, no padding, own segment alone.

    Padding sees itself, so that no row is empty.
    """
    t = embeddings.shape[1]
    columns = torch.arange(t, device=embeddings.device)
    seen = (columns <= columns[:, None]) & (columns < layout.lengths[:, None])[:, None]
    if layout.sequence_ids is not None:
        seen = seen & (layout.sequence_ids[:, :, None] == layout.sequence_ids[:, None])
    seen = seen | (columns == columns[:, None])
    return seen if past is None else torch.cat([past[:, None].expand(-1, t, -1), seen], dim=-1)


def to_additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention's scores: nothing where a column is seen."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
