"""The trainer's part of a checkpoint: counters, position in the data, finished stages. JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..recipe.notation import parse_json
from ..recipe.recipe import Recipe

TRAINER = "trainer.json"
_JSON_KEYS = {"loss_ema": "average", "loss_scaler": "scale", "early_stopping": "best", "identity": "learnt"}
"""Fields whose keys in the file have other names, which earlier versions chose."""
_FIELDS = {key: name for name, key in _JSON_KEYS.items()}


@dataclass
class FinishedStage:
    """A stage that has ended. JSON."""

    identity: dict[str, Any]
    """What decided its weights, as `stages.training_identity` gives it."""
    checkpoint: int
    """The step of the checkpoint that the next stage starts from."""
    steps: int
    skipped_steps: int
    skipped_examples: int
    unreadable_examples: int


@dataclass
class TrainerState:
    """What a run needs to resume, besides weights, optimizer and random generators. JSON."""

    step: int = 0
    """Of the whole run."""
    first: int = 0
    """The steps of the stages before this one."""
    finished: list[FinishedStage] = field(default_factory=list)
    """The stages before this one. The counters below belong to this one."""
    applied: int = 0
    """Steps that changed the weights; the others were skipped."""
    skipped_in_a_row: int = 0
    """Consecutive skipped steps up to now."""
    empty_in_a_row: int = 0
    """Those among them that had no readable example."""
    loss_ema: float | None = None
    """Exponential moving average of the loss, of steps that were not skipped."""
    skipped_examples: int = 0
    """Examples that did not fit."""
    unreadable_examples: int = 0
    processes: int = 1
    micro_batch: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    """The state of the mixture of data sources."""
    loss_scaler: dict[str, float] = field(default_factory=dict)
    early_stopping: dict[str, Any] | None = None
    """The state of `EarlyStopping`."""

    @property
    def done(self) -> int:
        """The steps of this stage so far."""
        return self.step - self.first

    def state_dict(self) -> dict[str, Any]:
        """The object of the file."""
        state = _rename(asdict(self), _JSON_KEYS)
        return {**state, "finished": [_rename(one, _JSON_KEYS) for one in state["finished"]]}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> TrainerState:
        """The state that `state_dict` gave."""
        finished = [FinishedStage(**_rename(one, _FIELDS)) for one in state.get("finished", [])]
        return cls(**{**_rename(state, _FIELDS), "finished": finished})

    @classmethod
    def read(cls, path: Path) -> TrainerState:
        """Read the file of a checkpoint.

        Raises:
            CheckpointError: If it is missing or damaged.
        """
        try:
            return cls.from_state_dict(parse_json(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path.parents[1]} has no state to resume from: {error}") from error


def _rename(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in given.items()}


@dataclass(frozen=True)
class StageContext:
    """What a stage knows about the run that it belongs to."""

    recipe: Recipe
    """The recipe with all of its stages."""
    number: int | None = None
    """Which stage it is, counted from 0; None: the run has no stages."""
    start: Path | None = None
    """The last checkpoint of the stage before it."""
    finished: tuple[FinishedStage, ...] = ()
    """The stages before it."""
    later_steps: int = 0
    """Steps of the stages after it, by the recipe."""

    @property
    def metrics_fields(self) -> dict[str, str]:
        """The fields of a row of the metrics that name the stage."""
        return {} if self.number is None else {"stage": self.recipe.stage_label(self.number)}
