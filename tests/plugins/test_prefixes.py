"""Prefixes: what they compute, and what follows it."""

from __future__ import annotations

import pytest
import torch
from magma_prefixes.linear import Linear, Pooled
from torch.nn import functional as F

from magma import Features


def test_linear_maps_each_feature() -> None:
    prefix = Linear.build(6, 5, 8)
    x = torch.randn(2, 5, 6)
    expected = F.linear(x, prefix.projection.weight, prefix.projection.bias)
    out = prefix(Features(x, torch.tensor([5, 3])))
    assert torch.allclose(out.values, expected)
    assert out.lengths is not None
    assert out.lengths.tolist() == [5, 3]
    assert (prefix.length, prefix.size(3)) == (5, 3)


def test_pooled_makes_k_embeddings_of_one() -> None:
    prefix = Pooled.build(6, 1, 8, length=3)
    x = torch.randn(2, 1, 6)
    out = prefix(Features(x)).values
    assert out.shape == (2, 3, 8)
    assert torch.allclose(out.reshape(2, 24), F.linear(x[:, 0], prefix.projection.weight, prefix.projection.bias))
    assert (prefix.length, prefix.size(1)) == (3, 3)


def test_pooled_averages_the_real_features_alone() -> None:
    prefix = Pooled.build(6, 5, 8)
    x = torch.randn(2, 5, 6)
    found = prefix(Features(x, torch.tensor([5, 2]))).values
    assert torch.allclose(found[0], prefix(Features(x[:1])).values[0], atol=1e-6)
    assert torch.allclose(found[1], prefix(Features(x[1:, :2])).values[0], atol=1e-6)


@pytest.mark.parametrize("part", [Linear, Pooled])
def test_dropout_comes_before_layernorm(part: type[Linear] | type[Pooled]) -> None:
    torch.manual_seed(0)
    prefix = part.build(6, 1, 512, dropout=0.5, layernorm=True).train()
    out = prefix(Features(torch.randn(2, 1, 6))).values
    # after a LayerNorm, what was dropped is no longer zero and every embedding has mean 0 and variance 1
    assert (out == 0).sum() == 0
    assert torch.allclose(out.mean(-1), torch.zeros(out.shape[:2]), atol=1e-5)
    assert torch.allclose(out.var(-1, unbiased=False), torch.ones(out.shape[:2]), atol=1e-2)
    dropped = out.flatten(0, 1)[0]
    _, counts = dropped.unique(return_counts=True)
    assert counts.max() > 200  # the dropped ones share one value
    assert torch.equal(
        prefix.eval()(Features(torch.ones(1, 1, 6))).values, prefix(Features(torch.ones(1, 1, 6))).values
    )


def test_the_papers_prefix_has_its_parameters() -> None:
    with torch.device("meta"):
        prefix = Linear(Linear.Config(dropout=0.1, layernorm=True), 3072, 144, 4096)
    assert sum(p.numel() for p in prefix.parameters()) == 12_595_200
