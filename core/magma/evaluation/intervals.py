"""Bootstrap confidence intervals of scores that are means over answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..interfaces import Task
from ..values import Prediction, collect

LEVEL = 0.95
RESAMPLES = 1000
_VALUES_AT_ONCE = 2**22
"""Values that are drawn at once, which limits memory."""
Interval = list[float]
"""The lower and the upper end, as JSON has them."""


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The percentile interval of a mean (Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3).

    Values are drawn with replacement, as many as there are, `RESAMPLES` times; the interval has `LEVEL` of the means.
    It covers the choice of the questions, not the randomness of training: that needs several seeds.

    Args:
        values: At least one value.
        seed: Draws the values. The interval depends on the seed, the values and their order only.
    """
    given = np.asarray(values, dtype=np.float64)
    draw = np.random.default_rng(seed)
    means: list[NDArray[np.float64]] = []
    rows = max(1, _VALUES_AT_ONCE // len(given))
    for at in range(0, RESAMPLES, rows):
        chosen = draw.integers(0, len(given), (min(rows, RESAMPLES - at), len(given)))
        means.append(given[chosen].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def score_intervals(task: Task, predictions: Sequence[Prediction]) -> dict[str, Interval]:
    """The intervals of the scores to which single answers contribute (`Task.item_scores`)."""
    found = collect(map(task.item_scores, predictions))
    return {name: bootstrap_interval(values) for name, values in found.items()}
