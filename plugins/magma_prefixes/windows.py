"""Windows of features: runs of a sequence, or square blocks of a grid.

Axes: b batch, n features, e encoder width, k windows, w features of a window.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from magma import Features, InputError, PartError


class Windows(NamedTuple):
    """Windows of a batch."""

    values: Tensor
    """[b, k, w, e], zeros where `valid` is False."""
    valid: Tensor
    """[b or 1, k, w], False for positions after the last feature of an item."""


def sequence_windows(features: Features, count: int, kernel: int, stride: int) -> Windows:
    """The first `count` windows of `kernel` successive features, `stride` features apart."""
    values = features.values
    starts = torch.arange(count, device=values.device) * stride
    indices = starts[:, None] + torch.arange(kernel, device=values.device)
    ends = values.shape[1] if features.lengths is None else features.lengths[:, None, None]
    return _take(values, indices[None], indices[None] < ends)


class Grid:
    """A grid of features, row by row: of one given shape, or square and of any size."""

    def __init__(self, factor: int, shape: tuple[int, int] | None) -> None:
        """Both axes of the grid have to be multiples of `factor`, the side of a block."""
        self.factor, self.shape = factor, shape

    def check(self, features: int) -> None:
        """Raise `PartError` for an encoder whose longest output cannot be divided into blocks."""
        if problem := self._problem(features):
            raise PartError(f"the encoder gives up to {problem}")

    def num_blocks(self, features: int) -> int:
        """Number of blocks of this number of features. Raises `InputError` if they cannot be divided."""
        if problem := self._problem(features):
            raise InputError(f"an input has {problem}")
        return features // self.factor**2

    def _problem(self, features: int) -> str | None:
        """What does not fit. Square roots are exact."""
        side = math.isqrt(features)
        rows, columns = self.shape or (side, side)
        given = f"{features} features"
        if rows * columns != features or not features:
            allowed = "a square number" if self.shape is None else f"{rows * columns}, for grid = [{rows}, {columns}]"
            special = side**2 < features <= side**2 + 5 and self.shape is None
            hint = f" ({side}² patches and special tokens? They have to be removed by the encoder)" if special else ""
            return f"{given}{hint}; allowed: {allowed}, or another `grid`"
        if rows % self.factor or columns % self.factor:
            return (
                f"{given}, a grid of {rows} x {columns}; allowed: both multiples of {self.factor}, the side of a block"
            )
        return None

    def blocks(self, features: Features) -> tuple[Windows, Tensor | None]:
        """All blocks, row by row, and their number for each item (None: all). In a block, features are row by row."""
        values, lengths = features
        n, factor = values.shape[1], self.factor
        if self.shape is not None or lengths is None:
            columns = torch.tensor([(self.shape or (0, math.isqrt(n)))[1]])
            count, lengths = self.num_blocks(n), None
        else:
            columns = lengths.double().sqrt().round().long()
            count, lengths = (math.isqrt(n) // factor) ** 2, lengths // factor**2
        columns = columns.to(values.device)[:, None, None]
        block = torch.arange(count, device=values.device)[None, :, None]
        inside = torch.arange(factor**2, device=values.device)[None, None]
        across = (columns // factor).clamp(min=1)  # blocks in a row of blocks
        rows = block // across * factor + inside // factor
        indices = rows * columns + block % across * factor + inside % factor
        ends = n if lengths is None else lengths[:, None, None] * factor**2
        return _take(values, indices, indices < ends), lengths


def _take(values: Tensor, indices: Tensor, valid: Tensor) -> Windows:
    """Features [b, n, e] at `indices` [b or 1, k, w]."""
    b, n, e = values.shape
    _, k, w = indices.shape
    flat = indices.clamp(max=n - 1).flatten(1)
    rows = flat.expand(b, -1)
    found = values.gather(1, rows[..., None].expand(-1, -1, e))
    return Windows(found.view(b, k, w, e).masked_fill(~valid[..., None], 0), valid)
