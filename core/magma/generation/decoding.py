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
from ..values import Cache, Layout


@dataclass(frozen=True)
class Decoding:
    """How to choose the next token. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 leave all tokens in."""

    max_tokens: int = 32
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

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


def choose(logits: Tensor, how: Decoding, generator: torch.Generator | None = None) -> Tensor:
    """The next token [b] from logits [b, v].

    Top-p keeps the smallest set of most likely tokens whose probability reaches `top_p`.
    """
    if how.temperature == 0:
        return logits.argmax(-1)
    # Below the highest, so that the coldest temperature leaves that one at 0 and sends the others to minus infinity.
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / max(how.temperature, torch.finfo(torch.float32).tiny)
    if how.top_k:
        least = logits.topk(min(how.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if how.top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        ordered = ordered.masked_fill(before >= how.top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter_(-1, order, ordered)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)


@torch.no_grad()
def decode(
    lm: FrozenLM, embeddings: Tensor, layout: Layout, how: Decoding, cache: Cache | None = None
) -> Iterator[list[Answer]]:
    """Every row's answer so far, after each token, until all rows have ended.

    `embeddings` [b, t, d] are right-padded prompts, or what follows behind a `cache`, which is filled on; `layout`
    scores the last real position of each row. A row ends at one of `lm.ends`, at a stop string (which is not part of
    its text), at `max_tokens` or where the context is full. Tokens that the model can score but not read (lm.readable
    and above) are never chosen.
    """
    rows = embeddings.shape[0]
    generator = None
    if how.seed is not None:
        generator = torch.Generator(embeddings.device).manual_seed(how.seed)
    cache = lm.new_cache() if cache is None else cache
    answers = [Answer(lm, how) for _ in range(rows)]
    alive = list(range(rows))
    lengths = layout.positions.gather(1, layout.lengths[:, None] - 1).squeeze(1) + 1  # with what the cache holds
    hidden = lm(embeddings, layout, cache)
    while True:
        tokens = choose(lm.head(hidden)[:, : lm.readable], how, generator)
        full = (lengths >= lm.context).tolist()
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
            alive = [alive[i] for i in keep]
        ones = torch.ones_like(lengths)
        step = Layout(lengths[:, None], ones, torch.arange(len(alive), device=tokens.device))
        hidden = lm(lm.embed(tokens[:, None]), step, cache)
        lengths = lengths + 1


class Answer:
    """One row's tokens, and the text they make up to a stop string."""

    def __init__(self, lm: FrozenLM, how: Decoding) -> None:
        self.lm, self.how = lm, how
        self.tokens: list[int] = []
        self.end: int | None = None
        """Where in the text a stop string begins."""

    @property
    def text(self) -> str:
        """The tokens decoded, without the stop string that ended them."""
        return decode_after(self.lm, self.tokens)[: self.end]

    def add(self, token: int) -> bool:
        """Take one more token; False when the answer has ended."""
        if token in self.lm.ends:
            return False
        self.tokens.append(token)
        if self.how.stop:
            text = decode_after(self.lm, self.tokens)
            ends = [at for stop in self.how.stop if (at := text.find(stop)) >= 0]
            if ends:
                self.end = min(ends)
                return False
        return len(self.tokens) < self.how.max_tokens


def continuations(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """What a growing text adds each time.

    Held back until it is certain: an unfinished character, and an ending that may become a stop string.
    """
    shown, text = 0, ""
    for text in pieces:
        whole = text.rstrip("\ufffd")  # the character that follows may be one of a stop string
        held = max((n for s in stop for n in range(1, len(s)) if whole.endswith(s[:n])), default=0)
        certain = len(whole) - held
        if certain > shown:
            yield text[shown:certain]
            shown = certain
    if len(text) > shown:
        yield text[shown:]


def decoding_from_options(how: Mapping[str, Any]) -> Decoding:
    """Options as a caller gives them; `stop` may be one string. Raises `InputError` for an unknown one."""
    known = Decoding.__dataclass_fields__
    for key in how:
        if key not in known:
            raise InputError(f'generate has no option "{key}"; options: {", ".join(known)}.{did_you_mean(key, known)}')
    stop = how.get("stop", ())
    return Decoding(**{**how, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})
