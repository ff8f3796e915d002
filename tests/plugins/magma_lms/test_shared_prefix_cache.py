"""GPT-J's cache: what rows begin with alike is kept once, and logits are those of reading each row whole."""

from __future__ import annotations

import pytest
import torch
from families import OURS, build
from magma_lms.shared_prefix_cache import SharedPrefixCache, attention_reference, attention_with_lse
from magma_lms.transformers_lm import TransformersLM
from torch import Tensor

from magma import BatchLayout

BEGINNINGS = [list(range(2, 9)), list(range(20, 24)), list(range(40, 46))]


@pytest.fixture
def lm() -> TransformersLM:
    return build(OURS)


@torch.no_grad()
def read(lm: TransformersLM, rows: list[list[int]], cache: SharedPrefixCache, start: list[int]) -> Tensor:
    """Logits behind the last token of each row."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    positions = torch.arange(width) + torch.tensor(start)[:, None]
    layout = BatchLayout(positions, lengths, torch.arange(len(rows)) * width + lengths - 1)
    return lm.lm_head(lm(lm.embed(tokens), layout, cache))


def begun(lm: TransformersLM, count: int) -> SharedPrefixCache:
    cache = lm.new_cache()
    assert isinstance(cache, SharedPrefixCache)
    read(lm, BEGINNINGS[:count], cache, [0] * count)
    return cache


def alone(lm: TransformersLM, row: list[int]) -> Tensor:
    cache = lm.new_cache()
    assert isinstance(cache, SharedPrefixCache)
    return read(lm, [row], cache, [0])[0]


@pytest.mark.parametrize(
    ("owner", "shared"),
    [
        ([0] * 4, True),
        ([0, 0, 1, 1], True),
        ([2, 0, 1, 0, 2, 2, 1], True),  # in any order, unequally often
        ([1, 1, 1, 1], True),  # the others are not asked about
        ([2, 0, 1], False),  # each once: nothing to share
        ([0] * 9 + [1, 2], False),  # so unequal that most places would be empty
    ],
)
def test_logits_match_reading_without_a_cache(lm: TransformersLM, owner: list[int], shared: bool) -> None:
    count = max(owner) + 1
    cache = begun(lm, count)
    before = [layer.keys.clone() for layer in cache.cache.layers]
    rows = cache.select(torch.tensor(owner))
    assert (rows.shared_prefix is not None) == shared
    behind = [[50 + i, *range(60, 60 + i % 3)] for i in range(len(owner))]
    whole = [[*BEGINNINGS[which], *tail] for which, tail in zip(owner, behind, strict=True)]
    found = read(lm, behind, rows, [len(BEGINNINGS[which]) for which in owner])
    for row, logits in zip(whole, found, strict=True):
        torch.testing.assert_close(logits, alone(lm, row), atol=1e-5, rtol=1e-5)
    # some have ended; the others are decoded on, and leave what they share as it was
    left = list(range(len(owner)))[::2]
    rest = rows.select(torch.tensor(left))
    for step in range(3):
        whole = [[*row, 70 + i + step] for i, row in enumerate(whole)]
        found = read(lm, [whole[i][-1:] for i in left], rest, [len(whole[i]) - 1 for i in left])
        for i, logits in zip(left, found, strict=True):
            torch.testing.assert_close(logits, alone(lm, whole[i]), atol=1e-5, rtol=1e-5)
    for layer, keys in zip(cache.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_examples_then_images_then_questions(lm: TransformersLM) -> None:
    """As an evaluation reads: examples that all share, an image each, two questions about one of the images."""
    cache = begun(lm, 1)
    images = cache.expand(2)
    read(lm, [[31, 32, 33], [34, 35]], images, [7, 7])
    questions = images.select(torch.tensor([0, 0, 1]))
    assert questions.shared_prefix is not None
    found = read(lm, [[51], [52, 53], [54]], questions, [10, 10, 9])
    for tail, logits in zip([[31, 32, 33, 51], [31, 32, 33, 52, 53], [34, 35, 54]], found, strict=True):
        torch.testing.assert_close(logits, alone(lm, [*BEGINNINGS[0], *tail]), atol=1e-5, rtol=1e-5)


def test_prefix_is_not_copied_and_unused_prefixes_are_freed(lm: TransformersLM) -> None:
    cache = begun(lm, 3)
    rows = cache.select(torch.tensor([0, 0, 1, 1, 2, 2]))
    assert rows.shared_prefix is not None
    for (keys, values), layer in zip(rows.shared_prefix.layers, cache.cache.layers, strict=True):
        assert keys.data_ptr() == layer.keys.data_ptr()
        assert values.data_ptr() == layer.values.data_ptr()
    read(lm, [[50 + i] for i in range(6)], rows, [7, 7, 4, 4, 6, 6])
    rest = rows.select(torch.tensor([5]))
    assert rest.shared_prefix is not None
    assert len(rest.shared_prefix.valid) == 1
    found = read(lm, [[60]], rest, [7])
    torch.testing.assert_close(found[0], alone(lm, [*BEGINNINGS[2], 55, 60]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_kernel_and_the_operations_agree(biased: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, t, 16).to(dtype) for t in (5, 9, 9))
    bias = None
    if biased:
        bias = torch.zeros(2, 1, 5, 9, dtype=dtype).masked_fill_(torch.rand(2, 1, 5, 9) < 0.4, torch.finfo(dtype).min)
    fused, written = attention_with_lse(queries, keys, values, bias), attention_reference(queries, keys, values, bias)
    exact = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for one, other in zip(fused, written, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=exact, rtol=exact)
