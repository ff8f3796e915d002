"""The rows of a table, and how they are measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Row:
    """One measurement of a table."""

    name: str
    value: float
    unit: str
    target: float | None
    low: float
    """Of the rounds."""
    high: float


Step = Callable[[], object]


def rounds(steps: dict[str, Step], count: int) -> dict[str, list[float]]:
    """Seconds of each step in each round. The steps take turns, and a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(count + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if i:
                times[name].append(time.perf_counter() - began)
    return times


def faster(name: str, times: dict[str, list[float]], slow: str, fast: str, target: float | None) -> Row:
    """The ratio of the times, round by round."""
    ratios = [a / b for a, b in zip(times[slow], times[fast], strict=True)]
    return Row(name, statistics.median(ratios), "x", target, min(ratios), max(ratios))


def training_step(loss: Callable[[], Tensor], parameters: list[nn.Parameter], fused: bool = False) -> Step:
    """Forward, backward, Adam: torch's default implementation, or the fused one, as in the trainer."""
    optimizer = torch.optim.Adam(parameters, lr=1e-5, foreach=not fused, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step
