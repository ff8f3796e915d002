"""What a training reports while it runs, and its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


@dataclass
class Progress:
    """What a step reports."""

    step: int
    steps: int
    loss: float
    """Mean over the global batch's targets, in nats."""
    rates: dict[str, float]
    """Learning rate of each part."""
    samples_per_s: float
    tokens_per_s: float
    """Without padding."""
    flops_per_s: float | None
    """FLOPs per second of one process, padding included; None if a plan could not count them."""
    useful_flops_per_s: float | None
    """The same without padding."""
    peak_flops_per_s: float | None
    """The peak of this process's GPU in half precision; None if it is not known, or training is in float32."""
    memory: int
    """Peak memory of this process in bytes."""
    skipped: bool
    auxiliary_losses: dict[str, float] = field(default_factory=dict)
    """Mean of each auxiliary loss, without weight, by `PATH.NAME`."""


@dataclass
class Callbacks:
    """Functions that are called while a training runs; by default they do nothing."""

    say: Callable[[str], None] = lambda _: None
    """What the run is doing now."""
    step: Callable[[Progress], None] = lambda _: None
    """The end of a step."""
    note: Callable[[str], None] = lambda _: None
    """A message that the user has to know; it stays on the screen."""
    begun: Callable[[], None] = lambda: None
    """Called when weights and state are loaded and the run was accepted, before the first step."""


class StopRequest(NamedTuple):
    """A callback that has requested a stop, and why."""

    callback: str
    reason: str


@dataclass
class Result:
    """The result of a training."""

    folder: Path
    """The last checkpoint."""
    steps: int
    seconds: float
    """Wall-clock seconds of the training loop of this process, evaluations and checkpoints included."""
    finished: bool
    """False if a signal or a callback stopped it."""
    stopped_by: int
    """The number of that signal, the same in all processes; SIGTERM for a callback; 0: none."""
    stop_request: StopRequest | None
    """The request of the callback that stopped it."""
    frozen: dict[str, str]
    """Fingerprints of the frozen tensors before training."""
    changed: list[str]
    """Frozen tensors whose fingerprints have changed; not empty only if something is badly wrong."""
    skipped: int
    """Examples that did not fit."""
    unreadable: int
    """Examples that could not be read."""
    skipped_steps: int
    """Steps whose loss or gradient was not finite, whose loss was a spike, or none of whose examples could be read."""
    memory: int
    """Peak memory of this process in bytes."""
    device: str
    """The device of this process."""
