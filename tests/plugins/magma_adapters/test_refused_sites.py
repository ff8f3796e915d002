"""Adapters at sites where they cannot act: the message has the table, what was given, and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

import magma
from magma import PartError


def build(**table: Any) -> None:
    magma.assemble({"name": "refused", "lm": {"use": "gptj", "weights": "bundled:tiny"}, "adapters": {"one": table}})


def test_a_pattern_is_named_beside_the_site_that_it_means() -> None:
    message = (
        r"adapters\.one: .*given attn\.q_proj; allowed: block\. "
        r'The table has at = "linears", which means attn\.q_proj and others'
    )
    with pytest.raises(PartError, match=message):
        build(use="gated_cross_attention", at="linears")
    with pytest.raises(PartError, match=r"acts before blocks: given attention; allowed: block$"):
        build(use="gated_cross_attention", at="attention")


def test_a_rank_above_the_width_of_a_layer_is_refused() -> None:
    with pytest.raises(
        PartError, match=r"adapters\.one: rank: given 4000 at attn\..* of block 0; allowed: at most \d+"
    ):
        build(use="lora", at="linears", rank=4000)
