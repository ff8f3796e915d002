"""Sites and contexts with which adapters are checked, without a language model.

Axes: b batch, t tokens, n embeddings of all media of a row, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...context import Context
from ...key_values import KeyValueShape, KeyValueSlot
from ...sites import Site

DIM, WIDE, MEDIA = 32, 48, 24
"""Widths of a site, of the output of a linear layer, and of media."""
HEADS = 4
"""Query heads of attention; two share one key-value head."""
ROWS, TOKENS = 2, 6
_NONE = -1
_INPUTS = torch.tensor([[_NONE, 0, 0, _NONE, 1, _NONE], [_NONE, 1, _NONE, _NONE, 0, 0]])
_FIRST = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]])  # the second row has two packed sequences
_LAST = torch.tensor([[_NONE, 0, 0, 0, 1, 1], [_NONE, 0, 0, 0, 1, 1]])
_INDEX = torch.tensor([[0, 0, 1, _NONE], [0, 1, 1, _NONE]])
_MEDIA_INPUTS = torch.tensor([[0, 0, 1, _NONE], [1, 0, 0, _NONE]])


def sample_sites() -> list[Site]:
    """New sites of each kind: two of whole modules, a square and a wide linear layer."""

    def linear(path: str, out: int) -> Site:
        draw = torch.Generator().manual_seed(5)
        module = nn.Linear(DIM, out)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.requires_grad_(False)
                if not parameter.is_meta:
                    parameter.copy_(torch.randn(parameter.shape, generator=draw, device="cpu") * DIM**-0.5)
        return Site(path, 0, DIM, out, module, media_features=MEDIA)

    slot = KeyValueSlot(KeyValueShape(HEADS // 2, DIM // HEADS, DIM // HEADS))
    attention = Site("attention", 0, DIM, DIM, media_features=MEDIA, key_values=slot)
    block = Site("block", 0, DIM, DIM, media_features=MEDIA)
    return [attention, block, linear("self_attn.q_proj", DIM), linear("mlp.up_proj", WIDE)]


def sample_context(like: Tensor) -> Context:
    """Two media in the first row, and in the second row two packed sequences with one medium each, with padding.

    `like` [b, t, d] has the device and precision. In both rows, the first position is before all media; in the second
    one, also the first position of the second sequence is.
    """
    draw = torch.Generator().manual_seed(9)
    media = torch.randn(ROWS, _INDEX.shape[1], MEDIA, generator=draw, device="cpu")
    found = Context(("see", "hear"), _INPUTS, _FIRST, _LAST, media.to(like.dtype), _INDEX, _MEDIA_INPUTS)
    return found.map(lambda x: x.to(like.device))
