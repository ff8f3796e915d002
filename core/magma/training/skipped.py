"""Examples that cannot be read: they are listed in skipped.jsonl and counted. Too many of them end a training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from ..data.loader import RankBatch, SkippedExample
from ..errors import TrainingError, bullet_list
from ..recipe.schema import Train
from ..system.distributed import DistributedContext
from .metrics import SKIPPED, JsonLinesLog
from .state import TrainerState

_MIN_EXAMPLES = 100
"""With fewer examples, the fraction that cannot be read means little."""
_MAX_REASONS = 3
"""Reasons that are kept for an error."""


class SkipLog:
    """Lists and counts the examples of all processes that are left out because they cannot be read."""

    def __init__(self, out: Path, train: Train, world: DistributedContext) -> None:
        # Without `skip`, an example that cannot be read ends the run, and there is nothing to list.
        self.log = JsonLinesLog(out / SKIPPED, enabled=not world.rank and train.unreadable == "skip")
        self.train, self.world = train, world
        self.reasons: list[str] = []
        """Why examples could not be read, the first few."""

    def record(self, state: TrainerState, batch: RankBatch, count: int) -> None:
        """List the examples of this step that cannot be read, `count` over all processes.

        Raises:
            TrainingError: If they are too many. This is before the step: nothing is saved, and the last checkpoint is
                good.
        """
        step = state.step + 1
        if count:
            found = sorted(itertools.chain(*self.world.gather(batch.unreadable)))
            for one in found:
                self.log.write({"step": step, **one._asdict()})
            self.reasons += [one.reason for one in found][: _MAX_REASONS - len(self.reasons)]
        state.unreadable_examples += count
        drawn = state.done * self.train.batch_size + batch.samples
        if drawn >= _MIN_EXAMPLES and state.unreadable_examples > self.train.max_unreadable * drawn:
            raise TrainingError(
                f"step {step}: {state.unreadable_examples} of the {drawn} examples so far cannot be read, and "
                f"train.max_unreadable allows a fraction of {self.train.max_unreadable:g}; {self.log.path} lists all:"
                f"{bullet_list(self.reasons)}"
            )

    def check_evaluation(
        self,
        step: int,
        unreadable: Sequence[SkippedExample],
        count: int,
        samples: int,
        save: Callable[[], Path],
        say: Callable[[str], None],
    ) -> None:
        """Report which of the `samples` evaluation examples cannot be read; `count` over all processes.

        Raises:
            TrainingError: If they are too many, after saving a checkpoint.
        """
        reasons = [one.reason for one in sorted(itertools.chain(*self.world.gather(list(unreadable))))]
        summary = f"{count} of the {samples} evaluation examples cannot be read"
        if count == samples or (samples >= _MIN_EXAMPLES and count > self.train.max_unreadable * samples):
            folder = save()
            raise TrainingError(
                f"step {step}: {summary}, and train.max_unreadable allows a fraction of "
                f"{self.train.max_unreadable:g}; the weights are in {folder}:{bullet_list(reasons)}"
            )
        say(f"step {step}: {summary} and are left out:{bullet_list(reasons)}")
