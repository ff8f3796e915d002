"""Packed rows as one row for each sequence.

Axes: b batch, t tokens, s packed sequences, n tokens of the longest one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from magma import BatchLayout


class Unpacked(NamedTuple):
    """Where the positions of packed rows are among rows with one sequence each, padded on the right."""

    columns: Tensor
    """[s, n]: flat index (row * t + column) of each position in the packed batch; padding repeats the last position."""
    back: Tensor
    """[b * t]: flat index of each packed position among the s * n; 0 for padding."""


def unpack(layout: BatchLayout) -> Unpacked:
    """The sequences of a packed batch."""
    assert layout.sequence_ids is not None
    b, t = layout.sequence_ids.shape
    columns = torch.arange(t, device=layout.lengths.device)
    real = columns < layout.lengths[:, None]
    starts = torch.ones_like(real)
    starts[:, 1:] = layout.sequence_ids[:, 1:] != layout.sequence_ids[:, :-1]
    first = (starts & real).flatten().nonzero().squeeze(1)  # [s]
    number = (starts & real).flatten().cumsum(0) - 1  # [b * t]: the sequence of each position
    counts = torch.bincount(number[real.flatten()], minlength=len(first))  # [s]
    n = int(counts.max())
    within = torch.arange(n, device=columns.device).minimum(counts[:, None] - 1)
    position = torch.arange(b * t, device=columns.device) - first[number.clamp(min=0)]
    back = torch.where(real.flatten(), number * n + position, 0)
    return Unpacked(first[:, None] + within, back)
