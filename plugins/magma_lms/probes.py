"""Finds out by small computations how a model of transformers behaves: its decoding, its positions, packing.

Axes: b batch, t tokens, p columns of a cache, e width of the word embeddings, d width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from magma import BatchLayout, error_summary

from .decoder import Decoder
from .decoding import DecodingMode, LibraryCache

PROMPTS = (9, 5, 3)
"""Lengths of the rows with which decoding is tried: with the steps, longer than a window of 8."""
STEPS = 3
"""Tokens after each prompt."""
SEGMENTS = ((5, 4), (3, 6))
"""Lengths of the packed sequences of each row."""


class Probe:
    """Random rows of token ids, and what a model makes of them."""

    def __init__(self, decoder: Decoder, ids: Tensor) -> None:
        """`ids` [3, t]: distinct ids without special tokens."""
        self.decoder, self.ids = decoder, ids
        self.embeddings: Tensor = decoder.table(ids)
        self.hidden = decoder(self.embeddings, ids)
        """[3, t, d], the hidden states without a cache. If the model is causal, they are true for shorter rows too."""

    def alone(self, row: int, columns: slice) -> Tensor:
        """Hidden states [t, d] of these positions of a row by themselves."""
        return self.decoder(self.embeddings[row : row + 1, columns], self.ids[row : row + 1, columns])[0]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether hidden states are equal but for rounding."""
    scale = float(b.abs().max())
    return a.shape == b.shape and bool(((a - b).abs() <= 1e-3 * scale).all())


def is_causal(probe: Probe) -> bool:
    """Whether a row by itself has the same hidden states as before other tokens and beside other rows."""
    return all(same(probe.hidden[row, :n], probe.alone(row, slice(0, n))) for row, n in enumerate(PROMPTS))


def gradient_problem(probe: Probe) -> str | None:
    """Why no gradient reaches the embeddings in eval mode, in which a frozen model is; None: it does."""
    embeddings = probe.embeddings.detach().requires_grad_()
    try:
        with torch.enable_grad():
            torch.autograd.grad(probe.decoder(embeddings, probe.ids).sum(), embeddings)
    except Exception as error:  # libraries raise errors of many types
        return error_summary(error)
    return None


def find_offset(probe: Probe, candidates: Sequence[int]) -> int | None:
    """The position of the first token, if positions can be given."""
    if not probe.decoder.takes_positions:
        return None
    count = torch.arange(probe.ids.shape[1], device=probe.ids.device).expand(probe.ids.shape)
    for offset in candidates:
        found = _attempt(lambda offset=offset: probe.decoder(probe.embeddings, probe.ids, positions=count + offset))  # type: ignore[misc]
        if found is not None and same(found, probe.hidden):
            return offset
    return None


def packs(probe: Probe, offset: int | None) -> bool:
    """Whether positions that start again separate packed sequences."""
    if offset is None:
        return False
    positions = torch.tensor([[i for n in row for i in range(n)] for row in SEGMENTS], device=probe.ids.device) + offset
    t = positions.shape[1]
    found = _attempt(lambda: probe.decoder(probe.embeddings[:2, :t], probe.ids[:2, :t], positions=positions))
    if found is None:
        return False
    for row, lengths in enumerate(SEGMENTS):
        start = 0
        for n in lengths:
            if not same(found[row, start : start + n], probe.alone(row, slice(start, start + n))):
                return False
            start += n
    return True


def find_mode(probe: Probe, offset: int | None) -> DecodingMode:
    """The fastest way to decode that is exact."""
    base = DecodingMode(offset=offset)
    for mode in _candidates(probe.decoder, base):
        if decodes(probe, mode):
            continued = replace(mode, continues=True)
            return continued if mode.rows == "batched" and continues(probe, continued) else mode
    return replace(base, rows="recomputed")


def gradient_reaches(probe: Probe, modules: Sequence[nn.Module]) -> list[bool]:
    """Whether the output of each module has an influence that a gradient shows; that of a choice of positions has none.

    Args:
        probe: Of the model.
        modules: Modules that return one tensor.
    """
    marks = [torch.zeros((), device=probe.ids.device, requires_grad=True) for _ in modules]
    handles = [
        module.register_forward_hook(lambda _, __, out, mark=mark: out + mark)
        for module, mark in zip(modules, marks, strict=True)
    ]
    try:
        with torch.enable_grad():
            total = probe.decoder(probe.embeddings, probe.ids).sum()
            found = torch.autograd.grad(total, marks, allow_unused=True) if marks else ()
    finally:
        for handle in handles:
            handle.remove()
    return [one is not None for one in found]


def find_linear_mode(probe: Probe, mode: DecodingMode, linears: Sequence[nn.Module]) -> DecodingMode:
    """The fastest way to decode that is exact when adapters add something to the outputs of linear layers.

    Recurrent layers rely on zeros at padding, which adapters inside them change.

    Args:
        probe: Of the model itself.
        mode: How the model itself decodes.
        linears: The linear layers where adapters can act.
    """
    handles = [module.register_forward_hook(lambda _, __, out: out + 0.1) for module in linears]
    try:
        changed = Probe(probe.decoder, probe.ids)
        same_way = decodes(changed, mode) and (not mode.continues or continues(changed, mode))
        return mode if same_way else find_mode(changed, mode.offset)
    finally:
        for handle in handles:
            handle.remove()


def _candidates(decoder: Decoder, base: DecodingMode) -> Iterator[DecodingMode]:
    if decoder.cache_argument is None:
        return
    kinds = ("preallocated", "own", "dynamic")
    for rows, kind, masks_steps in itertools.product(("batched", "single"), kinds, (True, False)):
        yield replace(base, rows=rows, cache=kind, masks_steps=masks_steps)  # type: ignore[arg-type]


def decodes(probe: Probe, mode: DecodingMode) -> bool:
    """Whether prompts of unequal length and the tokens after them have the hidden states of the rows by themselves."""

    def attempt() -> bool:
        cache: Any = LibraryCache.of(probe.decoder, mode)
        t = max(PROMPTS)
        hidden = cache.forward(probe.embeddings[:, :t], _layout(probe.ids[:, :t], PROMPTS))
        order = list(range(len(PROMPTS)))
        if not all(same(hidden[row, :n], probe.hidden[row, :n]) for row, n in enumerate(PROMPTS)):
            return False
        for step in range(STEPS):
            if step == 1:  # rows end, and others are repeated
                order = [2, 0, 0, 1]
                cache = cache.select(torch.tensor(order))
            lengths = [PROMPTS[row] + step for row in order]
            ids = torch.stack([probe.ids[row, n : n + 1] for row, n in zip(order, lengths, strict=True)])
            layout = _layout(ids, [1] * len(order), lengths)
            hidden = cache.forward(probe.decoder.table(ids), layout)
            for i, (row, n) in enumerate(zip(order, lengths, strict=True)):
                if not same(hidden[i, :1], probe.hidden[row, n : n + 1]):
                    return False
        return True

    return bool(_attempt(attempt))


def continues(probe: Probe, mode: DecodingMode) -> bool:
    """Whether several tokens at once, of unequal number, may follow a cache of rows of unequal length."""

    def attempt() -> bool:
        cache: Any = LibraryCache.of(probe.decoder, mode)
        prompts, more = (3, 5, 4), (4, 1, 2)
        cache.forward(probe.embeddings[:, :5], _layout(probe.ids[:, :5], prompts))
        ids = torch.zeros(3, 4, dtype=torch.long, device=probe.ids.device)
        for row, (n, m) in enumerate(zip(prompts, more, strict=True)):
            ids[row, :m] = probe.ids[row, n : n + m]
            ids[row, m:] = probe.ids[row, -1]
        hidden = cache.forward(probe.decoder.table(ids), _layout(ids, more, prompts))
        for row, (n, m) in enumerate(zip(prompts, more, strict=True)):
            if not same(hidden[row, :m], probe.hidden[row, n : n + m]):
                return False
        lengths = [n + m for n, m in zip(prompts, more, strict=True)]
        ids = torch.stack([probe.ids[row, n : n + 1] for row, n in enumerate(lengths)])
        hidden = cache.forward(probe.decoder.table(ids), _layout(ids, [1, 1, 1], lengths))
        return all(same(hidden[row, :1], probe.hidden[row, n : n + 1]) for row, n in enumerate(lengths))

    return bool(_attempt(attempt))


def _layout(ids: Tensor, lengths: Sequence[int], before: Sequence[int] | None = None) -> BatchLayout:
    start = torch.tensor(before or [0] * len(lengths), device=ids.device)[:, None]
    positions = start + torch.arange(ids.shape[1], device=ids.device)
    return BatchLayout(positions, torch.tensor(lengths, device=ids.device), ids.new_zeros(0), token_ids=ids)


def _attempt(run: Callable[[], Any]) -> Any:
    """The result, or None if the model cannot do it: libraries raise errors of many types then."""
    try:
        return run()
    except Exception:
        return None
