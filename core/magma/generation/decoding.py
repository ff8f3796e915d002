"""Decoding: greedy and sampled, with a key-value cache, one prompt or many of unequal lengths.

Axes: b batch, t tokens, d language-model width, v vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.tokenization import decode_after
from ..errors import InputError, did_you_mean
from ..interfaces import FrozenLM
from ..values import BatchLayout, Cache


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen, and when generation stops.

    Example:
        >>> model.generate([value, "This is"], max_tokens=16, temperature=0.7, top_p=0.9)
    """

    max_tokens: int = 32
    """The largest number of new tokens."""
    temperature: float = 0.0
    """0: greedy decoding. Otherwise logits are divided by it, and the token is sampled."""
    top_k: int = 0
    """Sample only from this number of most likely tokens; 0: from all."""
    top_p: float = 1.0
    """Sample only from the most likely tokens that together have this probability (nucleus sampling); 1: from all."""
    stop: tuple[str, ...] = ()
    """Generation ends at one of these texts, which is not part of the answer."""
    seed: int | None = None
    """Seed of the sampling; None: the global generator is used."""

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise InputError(f"max_tokens is {self.max_tokens!r}; allowed: 1 or more")
        if not isinstance(self.temperature, int | float) or not 0 <= self.temperature <= sys.float_info.max:
            raise InputError(f"temperature is {self.temperature!r}; allowed: 0 (greedy) or more")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(f"top_k is {self.top_k!r}; allowed: 0 (all tokens) or more")
        if not isinstance(self.top_p, int | float) or not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p!r}; allowed: above 0, at most 1 (all tokens)")
        for stop in self.stop:
            if not isinstance(stop, str) or not stop:
                raise InputError(f"stop holds {stop!r}; allowed: strings that are not empty")
        if self.seed is not None and not (isinstance(self.seed, int) and -(2**63) <= self.seed < 2**64):
            raise InputError(f"seed is {self.seed!r}; allowed: -2**63 to 2**64 - 1, or none")


def choose(logits: Tensor, decoding: Decoding, generator: torch.Generator | None = None) -> Tensor:
    """The next token [b] from logits [b, v].

    Top-p keeps the smallest set of most likely tokens whose probability reaches `top_p`.
    """
    if decoding.temperature == 0:
        return logits.argmax(-1)
    # The maximum is subtracted first: at a tiny temperature it stays 0 and the others become minus infinity.
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / max(decoding.temperature, torch.finfo(torch.float32).tiny)
    if decoding.top_k:
        least = logits.topk(min(decoding.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if decoding.top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        ordered = ordered.masked_fill(before >= decoding.top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter_(-1, order, ordered)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)


@torch.no_grad()
def decode(
    lm: FrozenLM, embeddings: Tensor, layout: BatchLayout, decoding: Decoding, cache: Cache | None = None
) -> Iterator[list[Answer]]:
    """Generate until all rows have ended.

    A row ends at one of `lm.ends`, at a stop string, at `max_tokens`, or when the context is full, if it has a limit.

    Args:
        lm: The language model.
        embeddings: Right-padded prompts [b, t, d], or what follows the positions of `cache`.
        layout: Layout of the embeddings; the last real position of each row is scored.
        decoding: How tokens are chosen. Tokens without a word embedding are never chosen.
        cache: Keys and values of earlier positions; it is extended in place.

    Yields:
        After each token, the answers of all rows so far.
    """
    rows = embeddings.shape[0]
    generator = None
    if decoding.seed is not None:
        generator = torch.Generator(embeddings.device).manual_seed(decoding.seed)
    cache = lm.new_cache() if cache is None else cache
    answers = [Answer(lm, decoding) for _ in range(rows)]
    alive = list(range(rows))
    lengths = layout.positions.gather(1, layout.lengths[:, None] - 1).squeeze(1) + 1  # with those in the cache
    hidden = lm(embeddings, layout, cache)
    context = None if layout.context is None else layout.context.followed_by_text()
    while True:
        tokens = choose(lm.lm_head(hidden)[:, : lm.num_embeddings], decoding, generator)
        full = [lm.context is not None and length >= lm.context for length in lengths.tolist()]
        keep = []
        for i, (row, token) in enumerate(zip(alive, tokens.tolist(), strict=True)):
            if answers[row].add(token) and not full[i]:
                keep.append(i)
        yield answers
        if not keep:
            return
        if len(keep) < len(alive):
            picked = torch.tensor(keep, device=tokens.device)
            cache, tokens, lengths = cache.select(picked), tokens[picked], lengths[picked]
            context = None if context is None else context.select(picked)
            alive = [alive[i] for i in keep]
        ones = torch.ones_like(lengths)
        ids = tokens[:, None]
        scored = torch.arange(len(alive), device=tokens.device)
        step = BatchLayout(lengths[:, None], ones, scored, token_ids=ids, context=context)
        hidden = lm(lm.embed(ids), step, cache)
        lengths = lengths + 1


class Answer:
    """The generated tokens of one row, and their text up to a stop string."""

    def __init__(self, lm: FrozenLM, decoding: Decoding) -> None:
        self.lm, self.decoding = lm, decoding
        self.tokens: list[int] = []
        self.end: int | None = None
        """The position of the stop string in the text."""

    @property
    def text(self) -> str:
        """The tokens decoded, without the stop string that ended them."""
        return decode_after(self.lm, self.tokens)[: self.end]

    def add(self, token: int) -> bool:
        """Take one more token; False when the answer has ended."""
        if token in self.lm.ends:
            return False
        self.tokens.append(token)
        if self.decoding.stop:
            text = decode_after(self.lm, self.tokens)
            ends = [at for stop in self.decoding.stop if (at := text.find(stop)) >= 0]
            if ends:
                self.end = min(ends)
                return False
        return len(self.tokens) < self.decoding.max_tokens


def continuations(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """The new part of a text each time it becomes longer.

    An unfinished character, and an end that may become a stop string, are held back until they are certain.
    """
    shown, text = 0, ""
    for text in pieces:
        complete = text.rstrip("\ufffd")  # the next character may belong to a stop string
        held = max((n for s in stop for n in range(1, len(s)) if complete.endswith(s[:n])), default=0)
        certain = len(complete) - held
        if certain > shown:
            yield text[shown:certain]
            shown = certain
    if len(text) > shown:
        yield text[shown:]


def decoding_from_options(options: Mapping[str, Any]) -> Decoding:
    """The options of `generate`; `stop` may be a single string. Raises `InputError` for an unknown option."""
    known = Decoding.__dataclass_fields__
    for key in options:
        if key not in known:
            raise InputError(f'generate has no option "{key}"; options: {", ".join(known)}.{did_you_mean(key, known)}')
    stop = options.get("stop", ())
    return Decoding(**{**options, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})
