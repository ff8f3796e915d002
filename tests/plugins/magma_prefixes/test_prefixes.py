"""Prefixes: what they compute, and what follows it."""

from __future__ import annotations

import pytest
import torch
from magma_prefixes.linear import Linear
from magma_prefixes.mlp import Mlp
from magma_prefixes.pooled import Pooled
from magma_prefixes.transformer import Transformer
from torch.nn import functional as F

from magma import Features, PartError, Prefix


def test_linear_maps_each_feature() -> None:
    prefix = Linear.build(6, 5, 8)
    x = torch.randn(2, 5, 6)
    expected = F.linear(x, prefix.projection.weight, prefix.projection.bias)
    out = prefix(Features(x, torch.tensor([5, 3])))
    assert torch.allclose(out.values, expected)
    assert out.lengths is not None
    assert out.lengths.tolist() == [5, 3]
    assert (prefix.length, prefix.num_embeddings(3)) == (5, 3)


def test_pooled_makes_k_embeddings_of_one() -> None:
    prefix = Pooled.build(6, 1, 8, length=3)
    x = torch.randn(2, 1, 6)
    out = prefix(Features(x)).values
    assert out.shape == (2, 3, 8)
    assert torch.allclose(out.reshape(2, 24), F.linear(x[:, 0], prefix.projection.weight, prefix.projection.bias))
    assert (prefix.length, prefix.num_embeddings(1)) == (3, 3)


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


def test_mlp_is_linear_gelu_linear() -> None:
    prefix = Mlp.build(6, 5, 8, hidden=7)
    x = torch.randn(2, 5, 6)
    first, _, last = prefix.projection
    expected = last(F.gelu(first(x)))
    out = prefix(Features(x, torch.tensor([5, 3])))
    assert torch.allclose(out.values, expected)
    assert out.lengths is not None
    assert (prefix.length, prefix.num_embeddings(3)) == (5, 3)
    assert len(Mlp.build(6, 5, 8, layers=3).projection) == 7


def test_transformers_features_see_each_other_and_no_padding() -> None:
    torch.manual_seed(0)
    prefix = Transformer.build(6, 5, 8, heads=2, layers=2).eval()
    x = torch.randn(2, 5, 6)
    out = prefix(Features(x, torch.tensor([5, 3]))).values
    alone = prefix(Features(x[1:, :3])).values
    assert torch.allclose(out[1, :3], alone[0], atol=1e-6)
    moved = x.clone()
    moved[0, 4, 0] += 3
    moved[1, 4, 0] += 3  # padding
    other = prefix(Features(moved, torch.tensor([5, 3]))).values
    assert (other[0, 0] - out[0, 0]).abs().max() > 1e-4
    assert torch.equal(other[1, :3], out[1, :3])
    assert prefix.num_embeddings(3) == 3
    with pytest.raises(PartError, match="heads: given 4; allowed: a number that divides the width, 6"):
        Transformer.build(6, 5, 8, heads=4)


@pytest.mark.parametrize("part", [Mlp, Transformer])
def test_nonlinear_prefixes_end_with_dropout_and_layernorm(part: type[Prefix]) -> None:
    fields = {"heads": 2} if part is Transformer else {}
    prefix = part.build(6, 5, 8, dropout=0.5, layernorm=True, **fields)
    x = Features(torch.randn(4, 5, 6))
    quiet = prefix.eval()(x).values
    assert torch.allclose(quiet.mean(-1), torch.zeros(4, 5), atol=1e-5)
    assert not torch.equal(prefix.train()(x).values, quiet)
    assert torch.equal(prefix.eval()(x).values, quiet)
