"""What an encoder promises."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from .subject import Check, Subject, features_of, need, same


def reads_its_inputs(subject: Subject) -> None:
    """`accepts` says yes to what `prepare` takes, and no to what it has never seen."""
    encoder = subject.make()
    for raw in subject.good:
        need(encoder.accepts(raw) is True, f"`accepts` says no to {raw!r:.60}")
        item = encoder.prepare(raw)
        need(isinstance(item, Tensor), f"`prepare` gave a {type(item).__name__}; expected: a tensor")
        need(bool(item.isfinite().all()), f"`prepare` gave values that are not finite for {raw!r:.60}")
    need(encoder.accepts(object()) is False, "`accepts` says yes to an object of no known type")


def bad_input_is_refused(subject: Subject) -> None:
    """`prepare` raises `InputError`, and nothing else, for what it cannot read."""
    encoder = subject.make()
    need(bool(subject.trial.bad), "its `trial` gives no `bad` inputs")
    for raw in [*subject.trial.bad, object()]:
        try:
            encoder.prepare(raw)
        except InputError as error:
            need(bool(str(error)), f"the InputError for {raw!r:.60} says nothing")
        except Exception as error:
            raise AssertionError(f"`prepare` of {raw!r:.60} raised {type(error).__name__}: {error}") from error
        else:
            raise AssertionError(f"`prepare` takes {raw!r:.60}; it must raise magma.InputError")


def preparation_is_repeatable(subject: Subject) -> None:
    """`prepare` draws from the `rng` that it is given alone: the same one gives the same item."""
    encoder = subject.make()
    for raw in subject.good:
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
        for rng in (lambda: None, lambda: random.Random(5)):
            same(encoder.prepare(raw, rng()), encoder.prepare(raw, rng()), "one input, prepared twice")
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
        need(before[:2] == after[:2] and torch.equal(before[2], after[2]), "`prepare` draws from a global generator")


def features_have_their_sizes(subject: Subject) -> None:
    """Features are [b, n, dim] with n up to `length`, each item has `size` of them, `largest` has `length`."""
    encoder = subject.make()
    need(isinstance(getattr(encoder, "modality", None), str), "`modality` is not set")
    items = [encoder.prepare(raw) for raw in subject.good]
    largest = encoder.largest()
    for batch in (items, [largest], [encoder.blank()]):
        found = features_of(encoder(encoder.stack(batch)))
        rows, n, width = found.values.shape
        need(rows == len(batch), f"{len(batch)} items gave {rows} rows")
        need(width == encoder.dim, f"features have width {width}; `dim` says {encoder.dim}")
        need(n <= encoder.length, f"an input has {n} features; `length` says at most {encoder.length}")
        lengths = [n] * rows if found.lengths is None else found.lengths.tolist()
        sizes = [encoder.size(item) for item in batch]
        need(lengths == sizes, f"inputs have {lengths} features; `size` says {sizes}")
    need(encoder.size(largest) == encoder.length, f"`largest` has {encoder.size(largest)} of {encoder.length} features")


def blank_stands_in(subject: Subject) -> None:
    """Where a batch lacks the modality, `blank` takes its place: finite forth and back, and it stacks with any item."""
    encoder = subject.make()
    item = encoder.prepare(subject.good[0])
    alone = subject.call(encoder, encoder.stack([item]))[0]
    beside = subject.call(encoder, encoder.stack([item, encoder.blank()]))[0]
    n = encoder.size(item)
    same(beside[:n], alone[:n], "an item beside a blank and alone", 1e-4)
    encoder.train()
    # two, as BatchNorm cannot average one
    found = subject.call(encoder, encoder.stack([encoder.blank()] * 2))
    need(bool(found.isfinite().all()), "a blank gives features that are not finite")
    if found.requires_grad:
        (found.float().sum() * 0).backward()  # type: ignore[no-untyped-call]
        bad = [name for name, p in encoder.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        need(not bad, f"a blank gives gradients that are not finite: {', '.join(bad[:3])}")


CHECKS: tuple[Check, ...] = (
    reads_its_inputs,
    bad_input_is_refused,
    preparation_is_repeatable,
    features_have_their_sizes,
    blank_stands_in,
)
