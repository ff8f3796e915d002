"""Rotary position embeddings of GPT-J (Su et al. 2021).

Axes: b batch, t tokens, h heads, r rotary dimension, d width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rope_table(positions: int, r: int, device: torch.device) -> Tensor:
    """Sines and cosines of all positions, [positions, r], r / 2 of each, in float32."""
    frequencies = 1.0 / 10000 ** (torch.arange(0, r, 2, device=device) / r)
    angles = torch.arange(positions, device=device).float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def apply_rope(x: Tensor, sines: Tensor, cosines: Tensor, r: int) -> Tensor:
    """Rotate the first r dimensions of each head of x [b, t, h, d / h], in pairs of neighbouring dimensions."""
    if torch.compiler.is_compiling():  # the compiler fuses these operations itself
        even, odd = x[..., 0:r:2], x[..., 1:r:2]
        pairs = torch.stack((even * cosines - odd * sines, odd * cosines + even * sines), dim=-1)
        return torch.cat([pairs.flatten(-2), x[..., r:]], dim=-1)
    out: Tensor = _Rotation.apply(x, sines, cosines, r)
    return out


class _Rotation(torch.autograd.Function):
    """A rotation whose backward pass is the inverse rotation: saves no activations and sums no slices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sines: Tensor, cosines: Tensor, r: int) -> Tensor:
        ctx.save_for_backward(sines, cosines)
        ctx.r = r
        return _rotate(x, sines, cosines, r)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        sines, cosines = ctx.saved_tensors
        return _rotate(gradient, -sines, cosines, ctx.r), None, None, None


def _rotate(x: Tensor, sines: Tensor, cosines: Tensor, r: int) -> Tensor:
    out = torch.empty_like(x)
    out[..., r:] = x[..., r:]
    if x.dtype == torch.float32 and x.is_contiguous() and x.shape[-1] % 2 == 0:
        # As complex numbers: one kernel instead of four. torch has it only in single and double precision.
        torch.mul(_as_complex(x, r), torch.complex(cosines, sines), out=_as_complex(out, r))
        return out
    even, odd = x[..., 0:r:2], x[..., 1:r:2]
    torch.mul(even, cosines, out=out[..., 0:r:2]).addcmul_(odd, sines, value=-1)
    torch.mul(odd, cosines, out=out[..., 1:r:2]).addcmul_(even, sines)
    return out


def _as_complex(x: Tensor, r: int) -> Tensor:
    """A complex view [b, t, h, r / 2] of neighbouring pairs of the first r dimensions, without a copy."""
    return torch.view_as_complex(x[..., :r].view(*x.shape[:-1], r // 2, 2))
