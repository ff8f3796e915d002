"""Reasons to end a training before its last step: its loss no longer improves, or too many steps were skipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import TrainingError, bullet_list
from ..recipe.schema import Train
from .skipped import SkipLog
from .state import TrainerState


@dataclass
class Best:
    """The lowest evaluation loss so far. JSON."""

    loss: float
    step: int
    waited: int = 0
    """Evaluations since then."""


class EarlyStopping:
    """Ends a training whose evaluation loss no longer improves."""

    def __init__(self, patience: int | None) -> None:
        """`patience` is the number of evaluations without a new lowest loss that ends the training; None: never."""
        self.patience = patience
        self.best: Best | None = None

    def update(self, step: int, loss: float) -> bool:
        """Record an evaluation loss; True if it is the lowest so far."""
        if self.best is None or loss < self.best.loss:
            self.best = Best(loss, step)
            return True
        self.best.waited += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether the patience is used up."""
        return self.best is not None and self.best.waited >= (self.patience or math.inf)

    def state_dict(self) -> dict[str, Any] | None:
        """The lowest loss; JSON. None before the first evaluation."""
        return asdict(self.best) if self.best else None

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore what `state_dict` gave."""
        self.best = Best(**state) if state else None


def raise_if_too_many_skipped(state: TrainerState, train: Train, skipped: SkipLog, save: Callable[[], Path]) -> None:
    """Raise `TrainingError`, after saving a checkpoint, if too many steps in a row were skipped or had no example."""
    count = state.skipped_in_a_row
    enough = count >= train.max_skipped_steps
    if state.empty_in_a_row == count and count and (enough or state.done == train.total_steps == count):
        kept = f"the weights from before them are in {save()}; " if state.applied else ""
        raise TrainingError(
            f"step {state.step}: no example of the last {count} steps could be read, so that nothing was learnt; "
            f"{kept}{skipped.log.path} lists all {state.unreadable_examples}:{bullet_list(skipped.reasons)}"
        )
    if enough:
        folder = save()
        empty = f"; of {state.empty_in_a_row} of them no example could be read" if state.empty_in_a_row else ""
        raise TrainingError(
            f"step {state.step}: the last {count} steps were skipped, their loss or gradient not finite or a "
            f"spike (train.max_skipped_steps is {train.max_skipped_steps}); the weights from before them are "
            f"in {folder}{empty}. Lower train.lr or set train.gradient_clipping, and look at the data"
        )
