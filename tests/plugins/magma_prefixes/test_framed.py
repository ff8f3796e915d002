"""Embeddings before and after each medium, and no prefix at all."""

from __future__ import annotations

import pytest
import torch
from magma_prefixes.framed import Framed
from magma_prefixes.identity import Identity

from magma import Features, PartError


def test_frames_are_around_the_features_of_each_item() -> None:
    prefix = Framed.build(4, 3, 4, of={"use": "identity"}, before=1, after=2)
    assert prefix.length == 6
    assert prefix.num_embeddings(2) == 5
    values = torch.arange(24.0).view(2, 3, 4)
    out = prefix(Features(values, torch.tensor([3, 1])))
    assert out.lengths is not None
    assert out.lengths.tolist() == [6, 4]
    for row, count in enumerate((3, 1)):
        expected = torch.cat([prefix.before, values[row, :count], prefix.after])
        assert torch.equal(out.values[row, : count + 3], expected)
    single = prefix(Features(values))
    assert single.lengths is None
    assert torch.equal(single.values[0], out.values[0])


def test_without_a_prefix_the_widths_have_to_be_equal() -> None:
    features = Features(torch.randn(2, 3, 4), torch.tensor([3, 2]))
    assert Identity.build(4, 3, 4)(features) is features
    with pytest.raises(PartError, match=r"identity: the encoder's features have the width 4; allowed: 5"):
        Identity.build(4, 3, 5)
