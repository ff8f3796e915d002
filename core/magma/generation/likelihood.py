"""Likelihood of given texts. Axes: m scored positions, v vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.collator import Collator
from ..data.sequence import EncodedExample
from ..errors import InputError
from ..values import Example, Text


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


def likelihoods(logits: Tensor, labels: Tensor, counts: Sequence[int], readable: int) -> list[Likelihood]:
    """Likelihoods of the texts of a batch.

    Args:
        logits: Logits [m, v] before each token of the texts.
        labels: The tokens [m].
        counts: Number of tokens of each text.
        readable: Number of token ids that the language model can read: greedy decoding chooses among these.
    """
    logits = logits.float()
    log_probs = logits.log_softmax(-1).gather(1, labels[:, None]).squeeze(1).cpu()
    chosen = (logits[:, :readable].argmax(-1) == labels).cpu()
    pieces = zip(torch.split(log_probs, list(counts)), torch.split(chosen, list(counts)), strict=True)
    return [Likelihood(float(row.sum()), bool(hits.all()), len(row)) for row, hits in pieces]
