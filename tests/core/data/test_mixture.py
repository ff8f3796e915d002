"""Weights, order and position of a mixture."""

from __future__ import annotations

import json

import pytest
from toys import ToySource

from magma import TrainingError
from magma.data.mixture import Mixture


def test_mixture_keeps_weights_and_position() -> None:
    def make() -> Mixture:
        sources = [ToySource(ToySource.Config(length=5), 0), ToySource(ToySource.Config(length=3, text_only=True), 0)]
        return Mixture(sources, [3.0, 1.0])

    whole, half = make(), make()
    taken = whole.take(40)
    assert sum(len(example.segments) == 2 for example in taken) == 10
    first = half.take(17)
    state = json.loads(json.dumps(half.state_dict()))
    again = make()
    again.load_state_dict(state)
    assert first + again.take(23) == taken


def test_a_source_without_examples_is_named() -> None:
    empty = Mixture([ToySource(ToySource.Config(length=0), 0)], [1.0])
    with pytest.raises(TrainingError, match=r"data.train.0 \(counting\) has no examples"):
        empty.take(1)
