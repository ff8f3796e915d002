"""The callbacks of a recipe in a training: their hooks, their requests and their states."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..callbacks import Callback, CallbackContext, Requests, copy_state
from ..errors import TrainingError
from ..plugins import registry
from ..recipe.recipe import Recipe
from ..system.distributed import DistributedContext
from .callback_states import States
from .checkpoints import CheckpointManager
from .progress import StopRequest
from .rng import get_rng_states, set_rng_states


class _Entry(NamedTuple):
    callback: Callback
    label: str
    """Its name; a callback that the recipe has several times gets its number from the second time on."""
    origin: str
    """Its distribution and version."""


class CallbackHandler:
    """The callbacks of a training, in one of its processes. It is false if there are none."""

    def __init__(self, recipe: Recipe, world: DistributedContext, checkpoints: CheckpointManager) -> None:
        """Build the callbacks of a recipe. Errors name the last one of the `checkpoints`.

        Raises:
            TrainingError: In all processes, if one cannot be built.
        """
        self.world, self.checkpoints = world, checkpoints
        self.stop: StopRequest | None = None
        """The first request of a stop in this process."""
        self.checkpoint = False
        """Whether a checkpoint was requested in this process since the last one."""
        self.entries: list[_Entry] = []
        for number in range(len(recipe.callbacks)):
            part, config = recipe.part(f"callbacks.{number}")
            plugin = str(registry.installed().find("callback", part.name).plugin)
            before = sum(entry.callback.name == part.name for entry in self.entries)
            label = f"{part.name}.{before}" if before else part.name
            made = self._guard(label, plugin, "__init__", 0, partial(_build, part, config))
            self.entries.append(_Entry(made, label, plugin))

    def __bool__(self) -> bool:
        return bool(self.entries)

    def call(self, hook: str, context: CallbackContext) -> None:
        """Call a hook of all callbacks that override it. All processes call it together.

        Raises:
            TrainingError: In all processes, if a callback raises.
        """
        for entry in self.entries:
            if getattr(type(entry.callback), hook) is getattr(Callback, hook):
                continue
            own = replace(context, requests=Requests())
            run = partial(getattr(entry.callback, hook), own)
            self._guard(entry.label, entry.origin, hook, context.step, run)
            self.checkpoint |= own.requests.checkpoint
            if own.requests.stop and self.stop is None:
                self.stop = StopRequest(entry.label, own.requests.stop)

    def agreed_stop(self) -> StopRequest | None:
        """The request of a stop of the first process that has one. All processes call it together."""
        return next((found for found in self.world.gather(self.stop) if found), None)

    def state_dicts(self, step: int) -> States:
        """The states of all callbacks. All processes call it together.

        Raises:
            TrainingError: In all processes, if a callback raises, or its state is neither tensors nor JSON.
        """
        return {
            entry.label: self._guard(entry.label, entry.origin, "state_dict", step, partial(copy_state, entry.callback))
            for entry in self.entries
        }

    def load_state_dicts(self, states: States, step: int) -> list[str]:
        """Load the states of a checkpoint. A callback that it does not have starts without a state.

        Returns:
            The callbacks of the checkpoint that the recipe does not have.
        """
        for entry in self.entries:
            if state := states.get(entry.label):
                run = partial(entry.callback.load_state_dict, state)
                self._guard(entry.label, entry.origin, "load_state_dict", step, run)
        return sorted(states.keys() - {entry.label for entry in self.entries})

    def _guard(self, label: str, origin: str, method: str, step: int, run: Callable[[], Any]) -> Any:
        """The result of a method of a callback. Its exception, in one process, is an error in all of them."""
        generators, cause, result = get_rng_states(self.world), None, None
        try:
            result = run()
        except (Exception, SystemExit) as error:  # whatever a plugin does, the run stays resumable
            cause = error
        set_rng_states(generators)
        (failed,) = self.world.sum(bool(cause))
        if failed:
            reason = next(filter(None, self.world.gather(_describe(cause) if cause else "")))
            last = self.checkpoints.last
            start = f"from {last}" if last else "from the start, because there is no checkpoint yet"
            raise TrainingError(
                f"callback {label} ({origin}): {method} failed at step {step}: {reason}. Correct it or "
                f"remove it; --resume then continues {start}"
            ) from cause
        return result


def _build(part: type[Any], config: Any) -> Callback:
    made: Callback = part(config)
    return made


def _describe(error: BaseException) -> str:
    """The error, and the last line of code that it passed."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
