"""An adapter for tests of language models, and the logits of a language model."""

from __future__ import annotations

import torch
from magma_lms.transformers_lm import TransformersLM
from torch import Tensor

from magma import BatchLayout


def layout(lengths: list[int], width: int, scored: Tensor | None = None, start: Tensor | None = None) -> BatchLayout:
    rows = len(lengths)
    positions = torch.arange(width).repeat(rows, 1) + (0 if start is None else start[:, None])
    return BatchLayout(positions, torch.tensor(lengths), torch.arange(rows * width) if scored is None else scored)


def run(lm: TransformersLM, tokens: Tensor, lengths: list[int] | None = None) -> Tensor:
    rows, width = tokens.shape
    found: Tensor = lm.lm_head(lm(lm.embed(tokens), layout(lengths or [width] * rows, width)))
    return found.view(rows, width, -1)


TOKENS = torch.randint(2, 96, (3, 12), generator=torch.Generator().manual_seed(1))
