"""Bottleneck adapters: equations 1 and 2, and how they start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from magma_adapters.bottleneck import Parallel, Sequential
from torch import Tensor
from torch.nn import functional as F

from magma import PartError


def sublayer(x: Tensor) -> Tensor:
    return x.sin() * 2


def f(adapter: Any, h: Tensor) -> Tensor:
    return F.linear(F.relu(F.linear(h, adapter.down.weight, adapter.down.bias)), adapter.up.weight, adapter.up.bias)


def test_sequential_and_parallel_are_equation_2() -> None:
    x = torch.randn(2, 5, 16)
    for part, expected in (
        (Sequential, lambda a: sublayer(x) + f(a, sublayer(x))),
        (Parallel, lambda a: sublayer(x) + f(a, x)),
    ):
        adapter = part.build(16, downsample=4)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.normal_()
        assert torch.allclose(adapter(x, sublayer), expected(adapter), atol=1e-6)


def test_the_learned_scale_starts_at_one_scales_and_learns() -> None:
    x = torch.randn(2, 5, 16)
    adapter = Parallel.build(16, scale="learned")
    assert adapter.scale is not None
    assert adapter.scale.tolist() == [1.0]
    with torch.no_grad():
        adapter.scale.fill_(3.0)
    assert torch.allclose(adapter(x, sublayer), sublayer(x) + 3 * f(adapter, x), atol=1e-6)
    adapter(x, sublayer).square().sum().backward()
    assert adapter.scale.grad is not None
    assert adapter.scale.grad.abs() > 0
    assert Parallel.build(16).scale is None


def test_layernorm_stands_before_the_bottleneck() -> None:
    x = torch.randn(2, 5, 16)
    adapter = Sequential.build(16, layernorm=True)
    h = sublayer(x)
    assert torch.allclose(adapter(x, sublayer), h + f(adapter, F.layer_norm(h, (16,))), atol=1e-6)


def test_weights_start_at_a_thousandth_clamped_at_two_sigma() -> None:
    torch.manual_seed(0)
    adapter = Sequential.build(512, downsample=2)
    weights = torch.cat([adapter.down.weight.flatten(), adapter.up.weight.flatten()])
    assert weights.abs().max() <= 2e-3
    assert (weights.abs() == 2e-3).float().mean() == pytest.approx(0.0455, abs=2e-3)  # both tails of a normal
    assert float(weights.detach().std()) == pytest.approx(0.959e-3, rel=0.02)  # of a normal clamped at two sigma
    assert adapter.up.bias.abs().max() > 0


def test_the_papers_adapter_has_its_parameters() -> None:
    with torch.device("meta"):
        adapter = Sequential(Sequential.Config(downsample=8), 4096)
    assert sum(p.numel() for p in adapter.parameters()) == 4_198_912


def test_a_bottleneck_needs_a_channel() -> None:
    with pytest.raises(PartError, match="given 64; allowed for width 16: 1 to 16"):
        Sequential.build(16, downsample=64)
