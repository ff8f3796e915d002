"""Callbacks: parts that are called while a recipe is trained, and what they are called with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .part import Part, PartConfig


@dataclass
class Requests:
    """What a callback has requested in one hook."""

    stop: str = ""
    """The reason for a stop. Empty: no stop is requested."""
    checkpoint: bool = False


@dataclass(frozen=True)
class CallbackContext:
    """The state of a training when a hook is called. A callback may read everything, and changes nothing of it."""

    model: nn.Module
    """The `Magma` that is trained. Under ZeRO-3 its parameters are partitioned: their values are not there."""
    run_folder: Path
    step: int
    """Steps of the whole run that are done. In `on_step_begin` and `on_step_end`, the number of this step, from 1."""
    total_steps: int
    """Steps of the whole run."""
    samples: int
    """Examples that were drawn so far, over all processes. Each stage counts its own."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """In `on_step_end` and `on_evaluate`, the row of metrics.jsonl. Values that are not finite are None."""
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rate of each trained part in this step, or in the last one; empty before the first step."""
    checkpoint: Path | None = None
    """In `on_save`, the checkpoint that was written; in `on_train_end`, the result of the training."""
    rank: int = 0
    """Number of this process. 0: it writes the metrics and the checkpoints."""
    world_size: int = 1
    """Number of processes."""
    requests: Requests = field(default_factory=Requests, repr=False)

    def request_stop(self, reason: str) -> None:
        """Stop the training after this step: it saves a checkpoint, from which it can be resumed.

        A request in one process stops all of them. The last step ends a training in any case.

        Args:
            reason: Why, in a few words: it is printed and is in report.json.
        """
        self.requests.stop = self.requests.stop or reason or "no reason given"

    def request_checkpoint(self) -> None:
        """Save a checkpoint after this step, in addition to those of `train.checkpoint_every`."""
        self.requests.checkpoint = True


class Callback(Part):
    """Is called while a recipe is trained, to watch it. Built as `Callback(config)`.

    A callback overrides the hooks that it needs. Every process calls every hook, with the same step: callbacks may use
    collective operations, but not in one process only. The callbacks of a recipe are called in the order of its
    [[callbacks]], in all hooks. A hook must change neither the model nor its mode. It may draw random numbers from
    torch's generators: their states are restored.
    """

    kind = "callback"

    def __init__(self, config: PartConfig) -> None:
        self.config = config

    def on_train_begin(self, context: CallbackContext) -> None:
        """Before the first step, and again at every resume: the model is assembled, weights and state are loaded."""

    def on_step_begin(self, context: CallbackContext) -> None:
        """Before the forward pass of a step."""

    def on_step_end(self, context: CallbackContext) -> None:
        """After the optimizer step. If the step was skipped, `metrics` has `skipped`."""

    def on_evaluate(self, context: CallbackContext) -> None:
        """After an evaluation of the loss."""

    def on_save(self, context: CallbackContext) -> None:
        """After a checkpoint was written. What changes `state_dict` here is not in it."""

    def on_train_end(self, context: CallbackContext) -> None:
        """After the last checkpoint of a training, finished or stopped. With stages, each stage is a training."""

    def state_dict(self) -> dict[str, Any]:
        """The state that is saved in every checkpoint. Default: none.

        Returns:
            Values by name: tensors, or JSON (finite numbers, texts, lists, dictionaries with texts as keys). Those of
            the first process are saved.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, in every process, when a run is resumed. Tensors are on the CPU.

        With it, a resumed callback has to do what it would have done without an interruption.
        """


def copy_state(callback: Callback) -> dict[str, Any]:
    """A copy of the state of a callback. Raises `TypeError` if it is neither tensors nor JSON."""
    state = callback.state_dict()
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise TypeError(f"given {state!r:.80}; allowed: a dictionary with texts as keys")
    return {name: _copy(name, value) for name, value in state.items()}


def _copy(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    try:
        copy = json.loads(json.dumps(value, allow_nan=False))
        if copy == value:  # JSON has no tuples, and only texts as keys
            return copy
    except (TypeError, ValueError):
        pass
    raise TypeError(f"given {value!r:.80} for {name}; allowed: a tensor, or JSON without NaN")
