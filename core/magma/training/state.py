"""What a resume needs beside weights, optimizer and random generators: counts, the place in the data, stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..recipe.notation import parse_json
from ..recipe.recipe import Recipe

TRAINER = "trainer.json"


@dataclass
class Best:
    """The lowest evaluation loss of a run that stops early."""

    loss: float
    step: int
    waited: int = 0
    """Evaluations since then."""


@dataclass
class Finished:
    """A stage that has ended. JSON."""

    learnt: dict[str, Any]
    """What decided its weights, as `stages.training_identity` gives it."""
    checkpoint: int
    """The step of the checkpoint that the next stage starts from."""
    steps: int
    skipped_steps: int
    skipped_examples: int
    unreadable_examples: int


@dataclass
class State:
    """Where a run stands, weights, optimizer and generators apart. JSON."""

    step: int = 0
    """Of the whole run."""
    first: int = 0
    """The steps of the stages before this one."""
    finished: list[Finished] = field(default_factory=list)
    """The stages before this one. The counts below are those of this one."""
    applied: int = 0
    """Steps that changed the weights; the others were skipped."""
    skipped_in_a_row: int = 0
    empty_in_a_row: int = 0
    """Those of them of whose examples none could be read."""
    average: float | None = None
    """The loss of late."""
    skipped_examples: int = 0
    """Those that did not fit."""
    unreadable_examples: int = 0
    processes: int = 1
    micro_batch: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    best: Best | None = None

    @property
    def done(self) -> int:
        """The steps of this stage so far."""
        return self.step - self.first

    @classmethod
    def read(cls, path: Path) -> State:
        """From the file of a checkpoint. Raises `CheckpointError`."""
        try:
            found = parse_json(path.read_text(encoding="utf-8"))
            finished = [Finished(**one) for one in found.get("finished", [])]
            return cls(**{**found, "best": found["best"] and Best(**found["best"]), "finished": finished})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path.parents[1]} has no state to go on from: {error}") from error


@dataclass(frozen=True)
class Place:
    """A stage's place in its run."""

    whole: Recipe
    """The recipe with all of its stages."""
    number: int | None = None
    """Which stage it is, counted from 0; None: the run has no stages."""
    start: Path | None = None
    """The last checkpoint of the stage before it."""
    finished: tuple[Finished, ...] = ()
    later: int = 0
    """Steps of the stages after it, by the recipe."""

    @property
    def mark(self) -> dict[str, str]:
        """What a row of the metrics says of the stage."""
        return {} if self.number is None else {"stage": self.whole.stage_label(self.number)}
