"""Checks of an encoder."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...feature_cache.media import WatchedRandom
from ...values import tensors_in
from .subject import Check, PartUnderTest, features_of, require, same, same_items


def reads_its_inputs(subject: PartUnderTest) -> None:
    """`accepts` is True for what `prepare` reads, and False for an unknown object."""
    encoder = subject.make()
    for raw in subject.good:
        require(encoder.accepts(raw) is True, f"`accepts` is False for {raw!r:.60}")
        item = encoder.prepare(raw)
        for x in tensors_in(item):
            require(isinstance(x, Tensor), f"`prepare` gave a {type(x).__name__}; expected: a tensor")
            require(bool(x.isfinite().all()), f"`prepare` gave values that are not finite for {raw!r:.60}")
    require(encoder.accepts(object()) is False, "`accepts` is True for an object of unknown type")


def bad_input_is_refused(subject: PartUnderTest) -> None:
    """`prepare` raises only `InputError` for what it cannot read."""
    encoder = subject.make()
    require(bool(subject.inputs_to_check.bad), "its `check_inputs` has no `bad` inputs")
    for raw in [*subject.inputs_to_check.bad, object()]:
        try:
            encoder.prepare(raw)
        except InputError as error:
            require(bool(str(error)), f"the InputError for {raw!r:.60} has no message")
        except Exception as error:
            raise AssertionError(f"`prepare` of {raw!r:.60} raised {type(error).__name__}: {error}") from error
        else:
            raise AssertionError(f"`prepare` accepts {raw!r:.60}; expected: magma.InputError")


def preparation_is_repeatable(subject: PartUnderTest) -> None:
    """`prepare` uses only the given `rng`: the same `rng` gives the same item. If it draws, `augments` is True."""
    encoder = subject.make()
    for raw in subject.good:
        before = _generator_states()
        for rng in (lambda: None, lambda: random.Random(5)):
            same_items(encoder.prepare(raw, rng()), encoder.prepare(raw, rng()), "one input, prepared twice")
        watched = WatchedRandom(5)
        encoder.prepare(raw, watched)
        declared = not watched.used or type(encoder).augments(encoder.config)
        require(declared, "`prepare` draws from `rng`, and `augments` is False for this config")
        require(before == _generator_states(), "`prepare` uses a global generator")


def _generator_states() -> tuple[Any, ...]:
    """The states of the global generators of Python, NumPy and torch."""
    numpy_state: Any = np.random.get_state()  # the one that `prepare` must not use
    return random.getstate(), numpy_state[1].tolist(), torch.get_rng_state().tolist()


def features_have_their_sizes(subject: PartUnderTest) -> None:
    """Features are [b, n, dim], n at most `length`; `num_features` gives an item's n; `max_size_item` has `length`."""
    encoder = subject.make()
    require(isinstance(getattr(encoder, "modality", None), str), "`modality` is not set")
    items = [encoder.prepare(raw) for raw in subject.good]
    largest = encoder.max_size_item()
    for batch in (items, [largest], [encoder.dummy_item()]):
        found = features_of(encoder(encoder.stack(batch)))
        rows, n, width = found.values.shape
        require(rows == len(batch), f"{len(batch)} items gave {rows} rows")
        require(width == encoder.dim, f"features have width {width}; `dim` is {encoder.dim}")
        require(n <= encoder.length, f"an input has {n} features; `length` is {encoder.length}")
        lengths = [n] * rows if found.lengths is None else found.lengths.tolist()
        sizes = [encoder.num_features(item) for item in batch]
        require(lengths == sizes, f"inputs have {lengths} features; `num_features` gives {sizes}")
    require(
        encoder.num_features(largest) == encoder.length,
        f"`max_size_item` has {encoder.num_features(largest)} of {encoder.length} features",
    )


def dummy_item_is_usable(subject: PartUnderTest) -> None:
    """`dummy_item` has finite features and gradients, and it stacks with any item."""
    encoder = subject.make()
    item = encoder.prepare(subject.good[0])
    single = subject.call(encoder, encoder.stack([item]))[0]
    batched = subject.call(encoder, encoder.stack([item, encoder.dummy_item()]))[0]
    n = encoder.num_features(item)
    same(batched[:n], single[:n], "an item with and without a dummy item", 1e-4)
    encoder.train()
    # two, as BatchNorm cannot average one
    found = subject.call(encoder, encoder.stack([encoder.dummy_item()] * 2))
    require(bool(found.isfinite().all()), "`dummy_item` gives features that are not finite")
    if found.requires_grad:
        (found.float().sum() * 0).backward()  # type: ignore[no-untyped-call]  # torch's
        bad = [name for name, p in encoder.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        require(not bad, f"`dummy_item` gives gradients that are not finite: {', '.join(bad[:3])}")


CHECKS: tuple[Check, ...] = (
    reads_its_inputs,
    bad_input_is_refused,
    preparation_is_repeatable,
    features_have_their_sizes,
    dummy_item_is_usable,
)
