"""The learning rate of each step, and warnings about a schedule that a run does not complete."""

from __future__ import annotations

import math

from .recipe.recipe import Recipe
from .recipe.schema import Constant, Train


def lr_multiplier(train: Train, step: int) -> float:
    """The learning rate of a step (counted from 0), as a fraction of the peak."""
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    if isinstance(train.schedule, Constant):
        return 1.0
    done = (step - train.warmup_steps) / max(1, train.total_steps - 1 - train.warmup_steps)
    done = min(1.0, done)
    final = train.schedule.final_lr_ratio
    shape = (1 + math.cos(math.pi * done)) / 2 if train.schedule.use == "cosine" else 1 - done
    return final + (1 - final) * shape


def schedule_warnings(recipe: Recipe) -> list[str]:
    """A line for each stage that ends before its warm-up or its schedule."""
    return [
        f"{place}{line}"
        for number, stage in enumerate(recipe.in_stages())
        for place in (f"stages[{number}]." if recipe.stages else "",)
        for line in _train_warnings(stage.train)
    ]


def _train_warnings(train: Train | None) -> list[str]:
    if train is None:
        return []
    steps, warmup = train.total_steps, train.warmup_steps
    last = lr_multiplier(train, steps - 1)
    if warmup > steps:
        return [
            f"train.warmup_steps: given {warmup}, but training has {steps} steps: it ends during the warm-up, at "
            f"{last:.0%} of the learning rate"
        ]
    final = 1.0 if isinstance(train.schedule, Constant) else train.schedule.final_lr_ratio
    if steps > 1 and not math.isclose(last, final, abs_tol=1e-9):
        return [
            f"train.schedule: given a last learning rate of {final:.0%} of the peak, but the warm-up takes {warmup} "
            f"of the {steps} steps: training ends at {last:.0%}"
        ]
    return []
