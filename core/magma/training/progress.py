"""What a training reports while it runs, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Progress:
    """What a step tells whoever watches."""

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
    """Of one process, padding included; None where a plan could not count them."""
    useful_flops_per_s: float | None
    """Without padding."""
    peak_flops_per_s: float | None
    """What this process's GPU could do in half precision; None where that is not known, or not what it computes in."""
    memory: int
    """The most bytes this process has held."""
    skipped: bool


@dataclass
class Watcher:
    """Who is told what happens; all do nothing by default."""

    say: Callable[[str], None] = lambda _: None
    step: Callable[[Progress], None] = lambda _: None
    note: Callable[[str], None] = lambda _: None
    """What a person has to know, and what stays on the screen."""
    begun: Callable[[], None] = lambda: None
    """Weights and state are loaded: nothing of the run was refused."""


@dataclass
class Result:
    """How a run ended."""

    folder: Path
    """The last checkpoint."""
    steps: int
    seconds: float
    """Wall-clock seconds of the training loop of this process, evaluations and checkpoints included."""
    finished: bool
    """False where a signal stopped it."""
    stopped_by: int
    """The number of that signal, the same in all processes; 0: none."""
    frozen: dict[str, str]
    """Fingerprints of the frozen tensors before training."""
    changed: list[str]
    """Frozen tensors whose fingerprints are others after it: none, or something is badly wrong."""
    skipped: int
    """Examples that did not fit."""
    unreadable: int
    """Examples that could not be read."""
    skipped_steps: int
    """Steps whose loss or gradient was not finite, whose loss was a spike, or none of whose examples could be read."""
    memory: int
    """The most bytes this process has held."""
    device: str
    """Where this process trained."""
