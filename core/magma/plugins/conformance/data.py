"""Checks of a data source."""

from __future__ import annotations

import json
import random
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...values import Example, Text, Tokens
from .subject import MANY, Check, PartUnderTest, require


def _example_text(example: Example) -> str:
    """An example as text, to compare."""
    parts = [
        repr(s) if isinstance(s, Text) else f"{type(s).__name__} {getattr(s, 'name', '')} {_value_text(s)}"
        for s in example.segments
    ]
    return f"{example.name} {example.label} {parts}"


def _value_text(segment: Any) -> str:
    value = segment.ids if isinstance(segment, Tokens) else segment.value
    if isinstance(value, Tensor | np.ndarray):
        return str(np.asarray(value).tobytes())
    return f"{type(value)} {value.tobytes()}" if hasattr(value, "tobytes") else repr(value)


def examples_are_examples(subject: PartUnderTest) -> None:
    """An epoch yields `Example`s with a target or a label, each with a state that is JSON."""
    found = list(islice(subject.make().iterate(), MANY))
    require(bool(found), "an epoch yields no example")
    for example, state in found:
        require(isinstance(example, Example), f"given a {type(example).__name__}; expected: magma.Example")
        require(example.problem is None, f"{example.name} cannot be read: {example.problem}")
        target = example.label is not None or any(getattr(s, "target", False) for s in example.segments)
        require(target, f"{example.name}: no segment is a target, and it has no label")
        try:
            back = json.loads(json.dumps(state))
        except TypeError as error:
            raise AssertionError(f"{example.name}: its state is not JSON: {error}") from error
        require(back == state, f"{example.name}: its state {state} comes back from JSON as {back}")


def order_is_repeatable(subject: PartUnderTest) -> None:
    """The same seed gives the same examples, whatever the state of the global generators."""
    orders = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        orders.append([_example_text(example) for example, _ in islice(subject.make().iterate(), MANY)])
    require(orders[0] == orders[1], "two sources with one seed give different examples")


def resumes_from_state(subject: PartUnderTest) -> None:
    """The state of an example resumes after it; the state of the last example starts the next epoch."""
    found = list(islice(subject.make().iterate(), MANY))
    for i in (0, len(found) // 2, len(found) - 2):
        if 0 <= i < len(found) - 1:
            state = json.loads(json.dumps(found[i][1]))
            following = next(iter(subject.make().iterate(state)), None)
            require(following is not None, f"nothing follows after example {i + 1} of {len(found)}")
            assert following is not None
            same = _example_text(following[0]) == _example_text(found[i + 1][0])
            require(same, f"after example {i + 1} another example follows than in an uninterrupted epoch")
    whole = list(islice(subject.make().iterate(), 5000))
    if len(whole) < 5000:
        again = next(iter(subject.make().iterate(json.loads(json.dumps(whole[-1][1])))), None)
        require(again is not None, "the state of the last example starts no next epoch")


CHECKS: tuple[Check, ...] = (
    examples_are_examples,
    order_is_repeatable,
    resumes_from_state,
)
