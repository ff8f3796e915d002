"""Likelihood of given texts. Axes: d width, m scored positions, v vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.collator import Collator
from ..data.sequence import EncodedExample
from ..errors import InputError
from ..values import Example, Text

_POSITIONS_AT_ONCE = 1024
"""Positions whose logits are in memory at once."""


class Likelihood(NamedTuple):
    """The likelihood of one text after its prompt."""

    total: float
    """Summed log-probability of the tokens in nats, without end-of-text."""
    is_greedy: bool
    """Whether greedy decoding would generate these tokens."""
    num_tokens: int


def encode_continuation(collator: Collator, prompt: Example, text: str) -> EncodedExample:
    """A prompt followed by a text, which is the target; nothing is truncated.

    Raises:
        InputError: The prompt is empty or cannot be read.
        TooLong: Both together do not fit into the context.
    """
    ending = Text("")  # no end-of-text is added after a segment that is not a target
    whole = Example([*prompt.segments, Text(text, target=True), ending], f"{prompt.name} followed by {text!r}")
    row = collator.encode_example(whole, truncate=False)
    if row.targets[0]:
        raise InputError(f"{prompt.name} is empty; allowed: at least one token before {text!r}")
    return row


def compute_likelihoods(
    lm_head: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, counts: Sequence[int], readable: int
) -> list[Likelihood]:
    """Likelihoods of the texts of a batch.

    Args:
        lm_head: Hidden states [m, d] to logits [m, v].
        hidden: The hidden states [m, d] before each token of the texts.
        labels: The tokens [m].
        counts: Number of tokens of each text.
        readable: Number of token ids that the language model can read: greedy decoding chooses among these.
    """
    log_probs, chosen = [], []
    pieces = (torch.split(tensor, _POSITIONS_AT_ONCE) for tensor in (hidden, labels))
    for some, wanted in zip(*pieces, strict=True):
        logits = lm_head(some).float()
        log_probs.append(logits.log_softmax(-1).gather(1, wanted[:, None]).squeeze(1).cpu())
        chosen.append((logits[:, :readable].argmax(-1) == wanted).cpu())
    rows = (torch.split(torch.cat(found), list(counts)) for found in (log_probs, chosen))
    return [Likelihood(float(row.sum()), bool(hits.all()), len(row)) for row, hits in zip(*rows, strict=True)]
