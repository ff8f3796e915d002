"""Examples that cannot be read: listed in skipped.jsonl and counted. Too many of them end a training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from ..data.loader import Share, Unreadable
from ..errors import TrainingError, first_of
from ..recipe.schema import Train
from ..system.world import World
from .metrics import SKIPPED, Log
from .state import State

_ENOUGH = 100
"""Of fewer examples the share that cannot be read says nothing."""
_KEPT = 3
"""Reasons that are remembered for an error."""


class SkippedExamples:
    """The examples of all processes that are left out because they cannot be read."""

    def __init__(self, out: Path, train: Train, world: World) -> None:
        self.path, self.train, self.world = out / SKIPPED, train, world
        self.log = Log(self.path, False, 0)
        """Opened by the training loop."""
        self.reasons: list[str] = []
        """Why examples could not be read, the first few."""

    def leave_out(self, state: State, share: Share, count: int) -> None:
        """List this step's examples that cannot be read, `count` over all processes; too many of them end the run.

        They end it before the step: nothing is saved, and what was saved before is good.
        """
        step = state.step + 1
        if count:
            found = sorted(itertools.chain(*self.world.gather(share.unreadable)))
            for one in found:
                self.log.write({"step": step, **one._asdict()})
            self.reasons += [one.reason for one in found][: _KEPT - len(self.reasons)]
        state.unreadable_examples += count
        drawn = state.done * self.train.batch_size + share.samples
        if drawn >= _ENOUGH and state.unreadable_examples > self.train.max_unreadable * drawn:
            raise TrainingError(
                f"step {step}: {state.unreadable_examples} of the {drawn} examples so far cannot be read, and "
                f"train.max_unreadable allows a share of {self.train.max_unreadable:g}; {self.path} lists all:"
                f"{first_of(self.reasons)}"
            )

    def check_evaluated(
        self,
        state: State,
        unreadable: Sequence[Unreadable],
        count: int,
        samples: int,
        save: Callable[[State], Path],
        say: Callable[[str], None],
    ) -> None:
        """Say which of the `samples` evaluation examples cannot be read; `count` over all processes."""
        reasons = [one.reason for one in sorted(itertools.chain(*self.world.gather(list(unreadable))))]
        said = f"{count} of the {samples} evaluation examples cannot be read"
        if count == samples or (samples >= _ENOUGH and count > self.train.max_unreadable * samples):
            folder = save(state)
            raise TrainingError(
                f"step {state.step}: {said}, and train.max_unreadable allows a share of "
                f"{self.train.max_unreadable:g}; the weights are in {folder}:{first_of(reasons)}"
            )
        say(f"step {state.step}: {said} and are left out:{first_of(reasons)}")
