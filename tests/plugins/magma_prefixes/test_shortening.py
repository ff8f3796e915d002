"""Prefixes that shorten: what they compute, compared with torch's own layers, and which features they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from magma_prefixes.mlp import Mlp
from magma_prefixes.pixel_shuffle import PixelShuffle
from magma_prefixes.pool import Pool
from magma_prefixes.qformer import QFormer
from magma_prefixes.resampler import Resampler
from magma_prefixes.stack import Stack
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from magma import Features, InputError, PartError


def lengths_of(features: Features) -> list[int]:
    assert features.lengths is not None
    return features.lengths.tolist()


@pytest.mark.parametrize(("remainder", "counts"), [("pad", [3, 2, 1]), ("drop", [2, 1, 1])])
def test_stack_joins_successive_features(remainder: str, counts: list[int]) -> None:
    prefix = Stack.build(2, 7, 8, factor=3, remainder=remainder, layers=0)
    x = torch.randn(3, 7, 2)
    found = prefix(Features(x, torch.tensor([7, 4, 1])))
    assert lengths_of(found) == counts == [prefix.num_embeddings(n) for n in (7, 4, 1)]
    assert prefix.length == counts[0]
    assert torch.allclose(found.values[0, 1], prefix.projection(x[0, 3:6].flatten()), atol=1e-6)
    if remainder == "pad":
        filled = torch.cat([x[1, 3], torch.zeros(4)])
        assert torch.allclose(found.values[1, 1], prefix.projection(filled), atol=1e-6)
    filled = torch.cat([x[2, 0], torch.zeros(4)])
    assert torch.allclose(found.values[2, 0], prefix.projection(filled), atol=1e-6)


@pytest.mark.parametrize(("kernel", "stride"), [(2, None), (3, 2), (2, 3)])
def test_pool_averages_as_torch_does(kernel: int, stride: int | None) -> None:
    prefix = Pool.build(4, 11, 8, kernel=kernel, stride=stride)
    x = torch.randn(2, 11, 4)
    expected = F.avg_pool1d(x.transpose(1, 2), kernel, stride).transpose(1, 2)
    found = prefix(Features(x, torch.tensor([11, 6])))
    assert torch.allclose(found.values[0], prefix.projection(expected[0]), atol=1e-6)
    assert torch.allclose(prefix(Features(x)).values, prefix.projection(expected), atol=1e-6)
    short = F.avg_pool1d(x[1:, :6].transpose(1, 2), kernel, stride).shape[-1]
    assert torch.allclose(found.values[1, :short], prefix.projection(expected[1, :short]), atol=1e-6)
    assert lengths_of(found) == [expected.shape[1], short] == [prefix.num_embeddings(11), prefix.num_embeddings(6)]


def test_pool_of_an_input_shorter_than_its_window() -> None:
    prefix = Pool.build(4, 5, 8, kernel=4)
    x = torch.randn(1, 5, 4)
    found = prefix(Features(x, torch.tensor([2])))
    assert torch.allclose(found.values[0, 0], prefix.projection(x[0, :2].mean(0)), atol=1e-6)
    assert lengths_of(found) == [1]


def test_pool_with_convolution_is_torchs_convolution() -> None:
    prefix = Pool.build(4, 11, 8, mode="convolution", kernel=3, stride=2)
    convolution = nn.Conv1d(4, 4, 3, 2)
    x = torch.randn(2, 11, 4)
    with torch.no_grad():
        weight = prefix.convolution[0].weight.unflatten(1, (3, 4))  # [out, kernel, in]
        convolution.weight.copy_(weight.transpose(1, 2))
        convolution.bias.copy_(prefix.convolution[0].bias)
        expected = prefix.projection(F.gelu(convolution(x.transpose(1, 2)).transpose(1, 2)))
        assert torch.allclose(prefix(Features(x)).values, expected, atol=1e-6)


def test_pool_of_a_grid_is_torchs_pooling() -> None:
    prefix = Pool.build(4, 36, 8, dimensions=2, kernel=3)
    x = torch.randn(2, 36, 4)
    expected = F.avg_pool2d(x.transpose(1, 2).unflatten(2, (6, 6)), 3).flatten(2).transpose(1, 2)
    assert torch.allclose(prefix(Features(x)).values, prefix.projection(expected), atol=1e-6)
    assert prefix.length == 4


def test_pixel_shuffle_of_a_rectangle_is_space_to_depth() -> None:
    prefix = PixelShuffle.build(5, 24, 8, grid=(4, 6))
    x = torch.randn(2, 24, 5)
    depth = F.pixel_unshuffle(x.transpose(1, 2).unflatten(2, (4, 6)), 2)  # [b, (e, row, column), 2, 3]
    blocks = depth.unflatten(1, (5, 4)).transpose(1, 2).flatten(1, 2).flatten(2).transpose(1, 2)
    assert torch.equal(prefix(Features(x)).values, prefix.projection(blocks))
    assert (prefix.length, prefix.num_embeddings(24)) == (6, 6)
    with pytest.raises(InputError, match=r"an input has 16 features; allowed: 24, for grid = \[4, 6\], or another"):
        prefix.num_embeddings(16)


def test_grids_of_several_sizes_in_a_batch() -> None:
    prefix = PixelShuffle.build(3, 36, 8)
    x = torch.randn(3, 36, 3)
    found = prefix(Features(x, torch.tensor([36, 4, 16])))
    assert lengths_of(found) == [9, 1, 4]
    for row, (n, k) in enumerate(((36, 9), (4, 1), (16, 4))):
        single = prefix(Features(x[row : row + 1, :n])).values[0]
        assert torch.allclose(found.values[row, :k], single, atol=1e-6)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (10, r"up to 10 features \(3² patches and special tokens.*\); allowed: a square number, or another `grid`"),
        (15, "up to 15 features; allowed: a square number"),
        (9, "up to 9 features, a grid of 3 x 3; allowed: both multiples of 2, the side of a block"),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"dimensions": 2}], ids=["pixel_shuffle", "pool"])
def test_features_that_are_no_grid_are_refused(features: int, message: str, fields: dict[str, Any]) -> None:
    part = Pool if fields else PixelShuffle
    with pytest.raises(PartError, match=message):
        part.build(4, features, 8, **fields)


def test_keys_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="`grid` only with dimensions = 2"):
        Pool.Config(grid=(2, 2))
    with pytest.raises(ValidationError, match="no `stride` with dimensions = 2"):
        Pool.Config(dimensions=2, kernel=2, stride=1)
    with pytest.raises(PartError, match="kv_heads: given 3; allowed: a number that divides heads, 4"):
        Resampler.build(6, 5, 8, heads=4, kv_heads=3)
    with pytest.raises(PartError, match="heads: given 5; allowed: a number that divides the width, 16"):
        QFormer.build(6, 5, 8, heads=5, width=16)


@pytest.mark.parametrize(
    ("part", "fields"),
    [(Resampler, {"heads": 2, "head_width": 4}), (QFormer, {"layers": 2, "heads": 2, "width": 8})],
)
def test_queries_read_the_features_and_no_padding(part: Any, fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    prefix = part.build(6, 9, 8, length=3, **fields).eval()
    x = torch.randn(2, 9, 6)
    lengths = torch.tensor([9, 4])
    found = prefix(Features(x, lengths))
    assert found.lengths is None
    assert found.values.shape == (2, prefix.length, 8)
    changed = x.clone()
    changed[:, 8] += 5
    other = prefix(Features(changed, lengths)).values
    assert torch.equal(other[1], found.values[1])  # padding
    assert (other[0] - found.values[0]).abs().max() > 1e-4
    first, second = found.values[0, :2]
    assert (first - second).abs().max() > 1e-2  # queries differ from the start, or they would never


def test_windows_of_a_qformer() -> None:
    torch.manual_seed(0)
    prefix = QFormer.build(6, 10, 8, length=2, window=4, layers=2, heads=2, width=8).eval()
    x = torch.randn(2, 10, 6)
    found = prefix(Features(x, torch.tensor([10, 5])))
    assert lengths_of(found) == [6, 4] == [prefix.num_embeddings(10), prefix.num_embeddings(5)]
    single = prefix(Features(x[:1, 4:8])).values[0]
    assert torch.allclose(found.values[0, 2:4], single, atol=1e-6)
    cut = prefix(Features(x[1:, :5])).values[0]
    assert torch.allclose(found.values[1, :4], cut, atol=1e-6)


def test_dropout_inside_the_qformer_acts_in_training_only() -> None:
    torch.manual_seed(0)
    prefix = QFormer.build(6, 4, 8, length=2, layers=2, heads=2, width=8, layer_dropout=0.5, attention_dropout=0.5)
    x = Features(torch.randn(1, 4, 6))
    assert not torch.equal(prefix.train()(x).values, prefix(x).values)
    assert torch.equal(prefix.eval()(x).values, prefix(x).values)


def test_forms_of_the_mlp() -> None:
    x = torch.randn(2, 5, 6)
    gated = Mlp.build(6, 5, 8, hidden=7, gated=True, activation="silu", bias=False, input_norm="rmsnorm")
    first, last = gated.projection.get_submodule("0"), gated.projection.get_submodule("2")
    values, gate = F.linear(F.rms_norm(x, (6,), eps=1e-5), first.weight).chunk(2, -1)
    assert torch.allclose(gated(Features(x)).values, F.linear(F.silu(gate) * values, last.weight), atol=1e-6)
    assert sorted(gated.state_dict()) == ["projection.0.weight", "projection.2.weight", "projection.norm.weight"]
    quick = Mlp.build(6, 5, 8, activation="quick_gelu")
    h = quick.projection[0](x)
    assert torch.allclose(quick(Features(x)).values, quick.projection[2](h * torch.sigmoid(1.702 * h)), atol=1e-6)
