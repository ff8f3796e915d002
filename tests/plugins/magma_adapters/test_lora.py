"""LoRA, DoRA and (IA)^3 by themselves: their equations, how they start, and where they act."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from magma_adapters.ia3 import IA3
from magma_adapters.lora import LoRA
from torch import Tensor, nn
from torch.nn import functional as F

from magma import PartError, Recipe, RecipeError, Site

X = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))


def linear_site(out: int = 20, *, transposed: bool = False, dtype: torch.dtype = torch.float32) -> Site:
    """A frozen linear layer from 12 to `out`."""
    torch.manual_seed(1)
    layer = nn.Linear(12, out).to(dtype).requires_grad_(False)
    if transposed:
        layer.weight = nn.Parameter(layer.weight.T.contiguous(), requires_grad=False)
    return Site("proj", 0, 12, out, layer, transposed)


def frozen(site: Site) -> Any:
    return lambda x: F.linear(x, site.weight, site.bias)


def randomized(adapter: Any) -> Any:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    return adapter


def effective_weight(adapter: LoRA, scale: float) -> Tensor:
    """Equation 5 of DoRA, or W + s B A."""
    whole: Tensor = adapter.site.weight + scale * adapter.lora_B @ adapter.lora_A
    if adapter.lora_magnitude_vector is None:
        return whole
    return adapter.lora_magnitude_vector[:, None] * whole / whole.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / 4), (True, 6 / 2)])
def test_lora_is_its_equation(transposed: bool, dora: bool, rslora: bool, scale: float) -> None:
    site = linear_site(transposed=transposed)
    adapter = randomized(LoRA.build(site, rank=4, alpha=6, rslora=rslora, dora=dora))
    expected = F.linear(X, effective_weight(adapter, scale), site.bias)
    assert torch.allclose(adapter(X, frozen(site)), expected, atol=1e-5)
    weight, bias = adapter.merged(site.weight, site.bias)
    assert torch.allclose(F.linear(X, weight, bias), expected, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_lora_starts_as_the_frozen_layer_with_the_uniform_weights_of_peft(dora: bool) -> None:
    site = linear_site()
    adapter = LoRA.build(site, rank=4, dora=dora)
    assert torch.equal(adapter(X, frozen(site)), frozen(site)(X))
    assert adapter.lora_A.abs().max() <= 1 / math.sqrt(12)
    assert float(adapter.lora_A.detach().std()) == pytest.approx(1 / 6, rel=0.2)  # of a uniform one up to 1 / sqrt(12)
    assert not adapter.lora_B.any()


def test_the_norm_of_dora_gets_no_gradient() -> None:
    site = linear_site()
    adapter = randomized(LoRA.build(site, rank=4, alpha=4, dora=True))
    adapter(X, frozen(site)).square().sum().backward()
    assert adapter.lora_magnitude_vector is not None
    whole = site.weight + adapter.lora_B @ adapter.lora_A
    factor = adapter.lora_magnitude_vector / whole.detach().norm(dim=1)
    expected = F.linear(X, factor[:, None] * whole, site.bias).square().sum()
    for parameter, gradient in zip(
        adapter.parameters(), torch.autograd.grad(expected, list(adapter.parameters())), strict=True
    ):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_acts_on_the_update_in_training(dora: bool) -> None:
    site = linear_site()
    adapter = randomized(LoRA.build(site, dropout=0.5, dora=dora))
    assert not torch.equal(adapter.train()(X, frozen(site)), adapter(X, frozen(site)))
    assert torch.equal(adapter.eval()(X, frozen(site)), adapter(X, frozen(site)))
    with torch.no_grad():
        adapter.lora_B.zero_()
    first = adapter.train()(X, frozen(site))
    assert torch.equal(first, adapter(X, frozen(site))), "the frozen product has dropout"


def test_dora_in_half_precision_is_close_to_float32() -> None:
    site, half = linear_site(), linear_site(dtype=torch.bfloat16)
    exact = randomized(LoRA.build(site, rank=4, alpha=4, dora=True))
    rounded = LoRA.build(half, rank=4, alpha=4, dora=True).bfloat16()
    rounded.load_state_dict(exact.state_dict())
    found, expected = rounded(X.bfloat16(), frozen(half)), exact(X, frozen(site))
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() <= 0.02 * expected.norm()


def test_ia3_scales_the_output_or_the_input() -> None:
    site = linear_site()
    for scales, width in (("output", 20), ("input", 12)):
        adapter = IA3.build(site, scales=scales)
        assert adapter.ia3_l.tolist() == [1.0] * width
        assert torch.equal(adapter(X, frozen(site)), frozen(site)(X))
        vector = randomized(adapter).ia3_l
        expected = frozen(site)(X * vector) if scales == "input" else frozen(site)(X) * vector
        assert torch.allclose(adapter(X, frozen(site)), expected)
        weight, bias = adapter.merged(site.weight, site.bias)
        assert torch.allclose(F.linear(X, weight, bias), expected, atol=1e-5)


@pytest.mark.parametrize("part", [LoRA, IA3])
def test_they_act_at_linear_layers_only(part: Any) -> None:
    with pytest.raises(PartError, match='given the site mlp; allowed: linear layers, such as at = "linears"'):
        part.build(Site.of_width(16))


def test_dora_refuses_a_quantized_weight_and_lora_does_not() -> None:
    site = linear_site()
    assert site.linear is not None
    site.linear.weight = nn.Parameter(torch.zeros(20, 12, dtype=torch.int8), requires_grad=False)
    LoRA.build(site)
    with pytest.raises(PartError, match=r"proj of block 0: given a quantized or partitioned weight \[20, 12\] of int8"):
        LoRA.build(site, dora=True)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_options_are_finite(value: float) -> None:
    """Of every part: the base class of all configs refuses other numbers."""
    with pytest.raises(RecipeError, match=r"adapters\.linears\.alpha: given (inf|nan); allowed: a finite number"):
        Recipe.load("quickstart", (f"adapters.linears={{ use = 'lora', alpha = {value} }}",))
