"""Reasons to end a training before its last step: its loss no longer improves, or nothing is learnt."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from ..errors import TrainingError, first_of
from ..recipe.schema import Train
from .skipped import SkippedExamples
from .state import Best, State


class EarlyStopping:
    """Ends a training whose evaluation loss no longer improves, and keeps the checkpoint of the lowest one."""

    def __init__(self, patience: int | None, save: Callable[[State], Path]) -> None:
        """`patience` is how many evaluations without a new lowest loss end the training; None: none of them does."""
        self.patience, self.save = patience, save

    def improves(self, state: State, loss: float) -> bool:
        """Keep book of the evaluation loss, and save what is better than all before; False where it is time to end."""
        best = state.best
        if best is None or loss < best.loss:
            state.best = Best(loss, state.step)
            self.save(state)
            return True
        best.waited += 1
        return best.waited < (self.patience or math.inf)


def check_learning(state: State, train: Train, skipped: SkippedExamples, save: Callable[[State], Path]) -> None:
    """Raise `TrainingError`, after a checkpoint, where too many steps in a row were skipped or had no example."""
    count = state.skipped_in_a_row
    enough = count >= train.max_skipped_steps
    if state.empty_in_a_row == count and count and (enough or state.done == train.total_steps == count):
        kept = f"the weights from before them are in {save(state)}; " if state.applied else ""
        raise TrainingError(
            f"step {state.step}: no example of the last {count} steps could be read, so that nothing was learnt; "
            f"{kept}{skipped.path} lists all {state.unreadable_examples}:{first_of(skipped.reasons)}"
        )
    if enough:
        folder = save(state)
        empty = f"; of {state.empty_in_a_row} of them no example could be read" if state.empty_in_a_row else ""
        raise TrainingError(
            f"step {state.step}: the last {count} steps were skipped, their loss or gradient not finite or a "
            f"spike (train.max_skipped_steps is {train.max_skipped_steps}); the weights from before them are "
            f"in {folder}{empty}. Lower train.lr or set train.gradient_clipping, and look at the data"
        )
