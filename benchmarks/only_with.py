"""What `only_with` costs: training and answers with it, against the same model without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from magma import Example, Magma

from . import peers
from .rows import Row, Step, faster, rounds, training_step

TARGET = 1 / 1.03
"""At most 3 % more time on a batch in which every row has a medium."""
ONLY_WITH = ("grid",)


def only_with(count: int) -> list[Row]:
    """d 384, 4 layers: rows with media, rows of which a half have none, and rows of text."""
    models = {"without": peers.build(), "with": peers.build(only_with=ONLY_WITH)}
    data = peers.examples(8, 512)
    text = [Example(one.segments[1:], one.name) for one in peers.examples(8, 512, seed=1, shortest=96, longest=160)]
    batches = {"media": data, "half of the rows with media": [*data[:4], *text[:4]], "text": text}
    rows = []
    for name, examples in batches.items():
        target = TARGET if name == "media" else None
        for what, steps in (("train", _training(models, examples)), ("read", _reading(models, examples))):
            times = rounds(steps, max(count, 15))
            rows.append(faster(f"only_with, {what}, {name} (speed)", times, "without", "with", target))
    return rows


def _training(models: dict[str, Magma], examples: list[Example]) -> dict[str, Step]:
    def loss(model: Magma) -> Callable[[], torch.Tensor]:
        return lambda: peers.ours(model.train(), examples)

    return {
        name: training_step(loss(model), [p for p in model.parameters() if p.requires_grad], fused=True)
        for name, model in models.items()
    }


def _reading(models: dict[str, Magma], examples: list[Example]) -> dict[str, Step]:
    def step(model: Magma) -> Step:
        def run() -> Any:
            with torch.no_grad():
                return peers.ours(model.eval(), examples)

        return run

    return {name: step(model) for name, model in models.items()}
