"""Check that a model with adapters is, bit by bit, its bare language model for text.

Axes: t tokens, m scored positions, v vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .data.sequence import EncodedExample
from .errors import InputError, PartError
from .model import Magma
from .values import BatchLayout

LONGEST = 48
"""Maximum number of tokens of a prompt."""
BATCH = 8
"""Prompts of a batch."""
STEPS = 4
"""Last tokens of a prompt that are read with a cache, one by one."""
CACHED_BESIDE_MEDIA = "with a cache, beside rows with media"
"""A kind of batch. Some recurrent language models compute it row by row, but only if they have adapters at linear
layers, so the removed adapters are not compared."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Logits = list[tuple[Tensor, list[tuple[int, int]]]]
"""Logits [m, v], and for each of the m positions the number of its prompt and its position in it."""


@dataclass
class Comparison:
    """What was compared in one kind of batch."""

    kind: str
    prompts: int = 0
    positions: int = 0
    """Positions whose logits were compared."""
    differing: int = 0
    """Positions with a logit that differs in a bit."""
    first: str = ""
    """Where the first difference is. Empty: there is none."""
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Summed cross-entropy of the prompts' tokens in nats: of the model, and of the bare language model."""
    tokens: int = 0
    """Number of these tokens."""


def random_prompts(model: Magma, count: int, seed: int = 0) -> list[list[int]]:
    """Prompts of random length with random tokens, without control tokens."""
    try:
        excluded = set(model.lm.control_tokens.values())
    except PartError:  # there is no tokenizer
        excluded = set()
    allowed = [token for token in range(model.lm.num_embeddings) if token not in excluded]
    draw = random.Random(seed)
    lengths = [draw.randint(STEPS + 1, _longest(model)) for _ in range(count)]
    return [[*model.lm.beginning, *draw.choices(allowed, k=length)] for length in lengths]


def cut_text(model: Magma, text: str, count: int, seed: int = 0) -> list[list[int]]:
    """Prompts of random length from consecutive tokens of a text. Raises `InputError` for a text that is too short."""
    tokens = model.lm.encode(text)
    draw = random.Random(seed)
    found: list[list[int]] = []
    start = 0
    while len(found) < count:
        length = draw.randint(STEPS + 1, _longest(model))
        if start + length > len(tokens):
            break
        found.append([*model.lm.beginning, *tokens[start : start + length]])
        start += length
    if not found:
        raise InputError(f"the text has {len(tokens)} tokens; allowed: at least {_longest(model)}")
    return found


def _longest(model: Magma) -> int:
    context = LONGEST if model.lm.context is None else model.lm.context
    return min(LONGEST, context // 2 - len(model.lm.beginning))  # packed rows and the rows of media are longer


@torch.no_grad()
def compare_with_bare_lm(
    model: Magma, prompts: Sequence[Sequence[int]], say: Callable[[str], None] = lambda _: None
) -> list[Comparison]:
    """Compare the logits of text with those of the bare language model, in batches of the same shape.

    Batches take turns: padded rows of text, and packed rows if the language model allows them, of text only and beside
    the inputs' media, and both with a cache for the last tokens. The bare language model is the one with disabled
    adapters. At the end the adapters are removed, and the first batch of each kind is computed once more, so `model`
    has none afterwards.

    Args:
        model: The model.
        prompts: Token ids of each prompt: more than `STEPS`, at most `LONGEST` and half of the context.
        say: Called with progress messages.

    Returns:
        One entry for each kind of batch.
    """
    kinds = _kinds(model)
    results = {name: Comparison(name) for name in kinds}
    again: list[tuple[str, int, Logits]] = []
    with model.eval_mode():
        for number, start in enumerate(range(0, len(prompts), BATCH)):
            say(f"prompt {start:,} of {len(prompts):,}")
            name = list(kinds)[number % len(kinds)]
            some = prompts[start : start + BATCH]
            ours = kinds[name](some)
            with model.adapters_disabled():
                bare = kinds[name](some)
            _add(results[name], start, some, ours, bare)
            if number < len(kinds) and name != CACHED_BESIDE_MEDIA:
                again.append((name, start, ours))
        model.lm.remove_adapters()
        for name, start, ours in again:
            some = prompts[start : start + BATCH]
            removed = Comparison(f"{name}, adapters removed")
            _add(removed, start, some, ours, kinds[name](some))
            results[removed.kind] = removed
    return [one for one in results.values() if one.prompts]


def perplexities(results: Sequence[Comparison]) -> tuple[float, float]:
    """Perplexity of the prompts: of the model, and of the bare language model."""
    tokens = sum(one.tokens for one in results)
    ours, bare = (math.exp(sum(one.losses[i] for one in results) / max(1, tokens)) for i in range(2))
    return ours, bare


def _add(result: Comparison, start: int, prompts: Sequence[Sequence[int]], ours: Logits, bare: Logits) -> None:
    """Add one batch, whose first prompt has the number `start`."""
    result.prompts += len(prompts)
    for (one, places), (other, _) in zip(ours, bare, strict=True):
        bits = _INTEGERS[one.element_size()]
        differs = one.contiguous().view(bits) != other.contiguous().view(bits)
        rows = differs.any(-1)
        result.positions += len(places)
        result.differing += int(rows.sum())
        if not result.first and bool(rows.any()):
            at = int(rows.nonzero()[0])
            token = int(differs[at].nonzero()[0])
            row, position = places[at]
            values = f"{float(one[at, token])!r}, and {float(other[at, token])!r} in the bare language model"
            result.first = f"prompt {start + row}, position {position}: the logit of token {token} is {values}"
        followed = [(i, prompts[row][at + 1]) for i, (row, at) in enumerate(places) if at + 1 < len(prompts[row])]
        if followed:
            index, targets = (torch.tensor(list(column), device=one.device) for column in zip(*followed, strict=True))
            for i, logits in enumerate((one, other)):
                result.losses[i] += float(F.cross_entropy(logits[index].float(), targets, reduction="sum"))
            result.tokens += len(followed)


def _kinds(model: Magma) -> dict[str, Callable[[Sequence[Sequence[int]]], Logits]]:
    """What computes the logits of prompts, by the kind of batch."""
    media = [_with_medium(model, name) for name in model.input_modules()]
    found: dict[str, Callable[[Sequence[Sequence[int]]], Logits]] = {
        "rows of text": lambda prompts: _rows(model, [_text(one) for one in prompts]),
        "beside rows with media": lambda prompts: _rows(model, [*media, *(_text(one) for one in prompts)]),
        "rows of text with a cache": lambda prompts: _cached(model, [], prompts),
        CACHED_BESIDE_MEDIA: lambda prompts: _cached(model, media, prompts),
    }
    if model.lm.packing_problem is None:
        found["packed beside media"] = lambda prompts: _rows(model, [*media, *(_text(one) for one in prompts)], True)
    return found


def _text(tokens: Sequence[int]) -> EncodedExample:
    """A prompt as a row. Its name is not shown."""
    return EncodedExample(list(tokens), [False] * len(tokens), [], "")


def _with_medium(model: Magma, name: str) -> EncodedExample:
    """A row with a dummy item of an input, and a few tokens."""
    module = model.input_modules()[name]
    item = module.encoder.dummy_item()
    size = module.prefix.num_embeddings(module.encoder.num_features(item))
    tokens = [0] * (size + STEPS)
    return EncodedExample(tokens, [False] * len(tokens), [(name, item, 0, size)], "")


def _rows(model: Magma, rows: Sequence[EncodedExample], packed: bool = False) -> Logits:
    """Logits at every position of the rows without media."""
    collator = model.collator()
    named = [replace(row, name=str(i)) for i, row in enumerate(rows)]
    batch = collator.pack(named, 2 * max(map(len, named))) if packed else collator.pad(named)
    batch = batch.to(model.device, model.dtype)
    first = len(rows) - sum(not row.media for row in rows)
    index: list[int] = []
    places: list[tuple[int, int]] = []
    numbers = [int(name) for name in batch.names]
    lengths = [len(rows[number]) for number in numbers]
    for number, length, start in zip(numbers, lengths, _starts(batch.layout, lengths), strict=True):
        if number >= first:
            index += range(start, start + length)
            places += [(number - first, at) for at in range(length)]
    embeddings, layout = model.lm_inputs(batch)
    layout = replace(layout, scored=torch.tensor(index, device=model.device), first_scored=0)
    return [(model.lm.lm_head(model.lm(embeddings, layout)), places)]


def _starts(layout: BatchLayout, lengths: Sequence[int]) -> Iterator[int]:
    """Flat index (row * t + column) of the first position of each sequence, in their order."""
    width = layout.positions.shape[1]
    row = column = 0
    rows = layout.lengths.tolist()
    for length in lengths:
        if column == rows[row]:
            row, column = row + 1, 0
        yield row * width + column
        column += length


def _cached(model: Magma, media: Sequence[EncodedExample], prompts: Sequence[Sequence[int]]) -> Logits:
    """Logits before and after each of the last tokens of prompts, beside rows with media."""
    lm, device = model.lm, model.device
    first, rows = len(media), [*media, *(_text(one[:-STEPS]) for one in prompts)]
    batch = model.collator().pad(rows, score_last=True).to(device, model.dtype)
    embeddings, layout = model.lm_inputs(batch)
    cache = lm.new_cache()
    context = None if layout.context is None else layout.context.followed_by_text()
    found = []
    for step in range(STEPS + 1):
        places = [(i, len(prompt) - STEPS - 1 + step) for i, prompt in enumerate(prompts)]
        found.append((lm.lm_head(lm(embeddings, layout, cache))[first:], places))
        if step == STEPS:
            break
        ids = torch.zeros(len(rows), 1, dtype=torch.long)
        ids[first:, 0] = torch.tensor([prompt[len(prompt) - STEPS + step] for prompt in prompts])
        ids = ids.to(device)
        positions = batch.layout.lengths[:, None] + step
        ones, scored = torch.ones_like(batch.layout.lengths), torch.arange(len(rows), device=device)
        layout = BatchLayout(positions, ones, scored, token_ids=ids, context=context)
        embeddings = lm.embed(ids)
    return found
