"""Rotary position embeddings in two halves of a head, as Llama has them (Su et al. 2021).

Axes: b batch, h heads, t tokens, w width of a head, r rotary dimension.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Angles(NamedTuple):
    """The angles of all positions."""

    cosines: Tensor
    """[b or 1, 1, t, r], each angle twice, once in each half."""
    sines: Tensor
    """Likewise; negative in the first half, because there the rotation subtracts."""

    @classmethod
    def of(cls, cosines: Tensor, sines: Tensor) -> Angles:
        """From the library's cosines and sines, [b or 1, t, r]."""
        first, second = sines.unsqueeze(1).chunk(2, -1)
        return cls(cosines.unsqueeze(1), torch.cat((-first, second), -1))

    def from_column(self, first: int) -> Angles:
        """Those of the positions from a column on."""
        return Angles(self.cosines[:, :, first:], self.sines[:, :, first:]) if first else self


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Rotate the first r dimensions of x [b, h, t, w]; dimension i is paired with i + r / 2. Angles get no gradient."""
    if not x.requires_grad or not torch.is_grad_enabled():
        return _rotate(x, *angles)
    out: Tensor = _Rotation.apply(x, *angles)
    return out


class _Rotation(torch.autograd.Function):
    """A rotation whose backward pass is the inverse rotation: it keeps no activations and sums no slices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _rotate(x, cosines, sines)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _rotate(gradient, cosines, -sines), None, None


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    r = cosines.shape[-1]
    if r < x.shape[-1]:
        return torch.cat([_rotate(x[..., :r], cosines, sines), x[..., r:]], dim=-1)
    return (x * cosines).addcmul_(x.roll(r // 2, -1), sines)
