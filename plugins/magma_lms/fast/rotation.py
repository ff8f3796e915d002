"""Rotary position embeddings in two halves of a head, as Llama has them (Su et al. 2021).

Axes: b batch, h heads, t tokens, w width of a head, r rotary dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate the first r dimensions of x [b, h, t, w]; dimension i is paired with i + r / 2.

    `cosines` and `sines` [b or 1, 1, t, r] have each angle twice, once in each half. They get no gradient.
    """
    if not x.requires_grad or not torch.is_grad_enabled():
        return _rotate(x, cosines, sines, 1)
    out: Tensor = _Rotation.apply(x, cosines, sines)
    return out


class _Rotation(torch.autograd.Function):
    """A rotation whose backward pass is the inverse rotation: it keeps no activations and sums no slices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _rotate(x, cosines, sines, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _rotate(gradient, cosines, sines, -1), None, None


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor, direction: int) -> Tensor:
    r = cosines.shape[-1]
    half = r // 2
    sines = sines[..., :half]
    first, second = x[..., :half], x[..., half:r]
    if r == x.shape[-1]:
        out = x * cosines
    else:
        out = torch.empty_like(x)
        out[..., r:] = x[..., r:]
        torch.mul(x[..., :r], cosines, out=out[..., :r])
    out[..., :half].addcmul_(second, sines, value=-direction)
    out[..., half:r].addcmul_(first, sines, value=direction)
    return out
