"""Root-mean-square norms (Zhang and Sennrich 2019) with few passes over the data. Axes: w normalised width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .mixin import mix_in

PROBE_SCALES = (1.0, 1e-3, 1e-6)
"""Scales of the inputs that a norm is tried with: its epsilon matters for the small ones."""


def rms_norm(x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * scale for x [..., w] and a frozen scale [w]."""
    if not x.requires_grad or not torch.is_grad_enabled():
        return (x * _inverse(x, epsilon)).mul_(scale)
    out: Tensor = _RMSNorm.apply(x, scale, epsilon)
    return out


def _inverse(x: Tensor, epsilon: float) -> Tensor:
    """1 / sqrt(mean(x^2) + epsilon), [..., 1]."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    out: Tensor = norm.square_().mul_(1 / x.shape[-1]).add_(epsilon).rsqrt_()
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, epsilon: float) -> Tensor:
        inverse = _inverse(x, epsilon)
        ctx.save_for_backward(x, scale, inverse)
        return (x * inverse).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, scale, inverse = ctx.saved_tensors
        gradient = gradient * scale
        projection = (gradient * x).sum(-1, keepdim=True).mul_(inverse.square()).div_(-x.shape[-1])
        return gradient.addcmul_(x, projection).mul_(inverse), None, None


class FastRMSNorm(nn.Module):
    """Mixed into the class of a norm; uses the original forward pass where the fast one does not apply."""

    fast_weight: str
    """Name of the norm's parameter [w]."""
    fast_offset: float
    """Added to the parameter: 0 or 1."""
    fast_epsilon: float

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """[..., w] to [..., w]."""
        weight = self._parameters[self.fast_weight]
        assert weight is not None
        plain = not args and not kwargs and not torch.compiler.is_compiling()
        frozen = not weight.requires_grad or not torch.is_grad_enabled()
        if not plain or not frozen or not x.dtype == weight.dtype == torch.float32:
            return super().forward(x, *args, **kwargs)
        return rms_norm(x, weight + self.fast_offset if self.fast_offset else weight, self.fast_epsilon)


def speed_up_rms_norms(model: nn.Module) -> int:
    """Give every root-mean-square norm a faster forward pass with the same results. Returns their number.

    The class of the module becomes a subclass with the same name; its tensors and their names do not change.
    """
    count = 0
    for module in model.modules():
        found = _recognise(module)
        if found is not None:
            name, offset, epsilon = found
            mix_in(module, FastRMSNorm, fast_weight=name, fast_offset=offset, fast_epsilon=epsilon)
            count += 1
    return count


@torch.no_grad()
def _recognise(module: nn.Module) -> tuple[str, float, float] | None:
    """Name of the parameter, offset and epsilon, if this is a root-mean-square norm, else None.

    The module has one parameter [w] and nothing else. It is tried with random weights, so that the result does not
    depend on its own ones.
    """
    parameters = list(module.named_parameters(remove_duplicate=False))
    if isinstance(module, FastRMSNorm) or len(parameters) != 1 or any(True for _ in module.children()):
        return None
    name, weight = parameters[0]
    if weight.ndim != 1 or weight.is_meta or any(True for _ in module.buffers()):
        return None
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(len(PROBE_SCALES), len(weight), generator=draw) * torch.tensor(PROBE_SCALES)[:, None]
    x, tried = x.to(weight.device), torch.rand(len(weight), generator=draw).to(weight.device) + 0.5
    try:
        expected = functional_call(module, {name: tried}, (x,))
    except (TypeError, ValueError, RuntimeError, AttributeError):  # it takes other arguments
        return None
    if not isinstance(expected, Tensor) or expected.shape != x.shape or expected.dtype != x.dtype:
        return None
    epsilons = {value for value in vars(module).values() if isinstance(value, float)}
    for epsilon in sorted(epsilons):
        for offset in (0.0, 1.0):
            if torch.allclose(rms_norm(x, tried + offset, epsilon), expected, rtol=1e-5, atol=0):
                return name, offset, epsilon
    return None
