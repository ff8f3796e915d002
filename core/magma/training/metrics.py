"""metrics.jsonl: a row for each step and each evaluation; the same numbers go to the callbacks."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..data.sequence import Batch
from ..errors import TrainingError
from ..feature_cache.media import count_media
from ..io import atomic_write
from ..plan import Costs
from ..recipe.schema import Train
from ..system.distributed import DistributedContext
from .progress import Callbacks, Progress
from .state import StageContext, TrainerState

METRICS = "metrics.jsonl"
SKIPPED = "skipped.jsonl"
"""The examples that were left out because they could not be read, a line each."""


class StepResult(NamedTuple):
    """What the trainer measured in one step, over all processes."""

    loss: float
    """Mean over the global batch's targets, in nats; NaN if there is none."""
    auxiliary: dict[str, float]
    """Mean of each auxiliary loss over its items in the global batch, without weight."""
    gradient_norm: float
    """Before clipping."""
    applied: bool
    """False if the step was skipped."""
    lr: dict[str, float]
    """Learning rate of each part."""
    samples: int
    sizes: Sequence[float]
    """What `batch_sizes` gives, summed over the processes."""
    began: float
    """`time.perf_counter()` before the batch was requested."""
    waited: float
    """Seconds until the batch was there."""


class MetricsLogger:
    """Writes metrics.jsonl in the first process, and reports each step to the callbacks in every process."""

    def __init__(
        self,
        out: Path,
        stage: StageContext,
        train: Train,
        inputs: Sequence[str],
        costs: Costs | None,
        world: DistributedContext,
        callbacks: Callbacks,
    ) -> None:
        """`inputs` are the names of the model's inputs; `costs` are those of a plan, to compute FLOPs per second."""
        self.log = JsonLinesLog(out / METRICS, enabled=not world.rank)
        self.stage, self.train, self.inputs = stage, train, inputs
        self.costs, self.world, self.callbacks = costs, world, callbacks

    def log_step(self, state: TrainerState, result: StepResult) -> dict[str, Any]:
        """Write the row of a step and report it; the row."""
        row = self._row(state.step, result)
        self.log.write(row)
        self.callbacks.step(
            Progress(
                step=state.step,
                steps=self.total_steps,
                loss=math.nan if row["loss"] is None else row["loss"],
                rates=result.lr,
                samples_per_s=row["samples_per_s"],
                tokens_per_s=row["tokens_per_s"],
                flops_per_s=row.get("flops_per_s"),
                useful_flops_per_s=row.get("useful_flops_per_s"),
                peak_flops_per_s=self.world.peak_flops if self.train.precision != "fp32" else None,
                memory=self.world.memory(),
                skipped=not result.applied,
                auxiliary_losses=result.auxiliary,
            )
        )
        return row

    def log_evaluation(self, step: int, loss: float) -> dict[str, Any]:
        """Write the row of an evaluation and report it; the row."""
        row = {"step": step, **self.stage.metrics_fields, "evaluation_loss": loss}
        self.log.write(row)
        self.callbacks.say(f"step {step}: evaluation loss {loss:.4f}")
        return row

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, by the recipe."""
        return sum(one.steps for one in self.stage.finished) + self.train.total_steps + self.stage.later_steps

    def _row(self, step: int, result: StepResult) -> dict[str, Any]:
        """The row of a step. Numbers that are not finite are null."""
        took = time.perf_counter() - result.began
        return {
            "step": step,
            **self.stage.metrics_fields,
            "loss": _finite(result.loss),
            **({"auxiliary_losses": {k: _finite(v) for k, v in result.auxiliary.items()}} if result.auxiliary else {}),
            "gradient_norm": _finite(result.gradient_norm) if result.applied else None,
            "lr": result.lr,
            "samples": result.samples,
            **({} if result.applied else {"skipped": True}),
            "waited_s": result.waited,
            "samples_per_s": result.samples / took,
            **throughput(self.costs, self.inputs, result.sizes, took, self.world.size),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def batch_sizes(batches: Sequence[Batch], inputs: Sequence[str]) -> list[int]:
    """Positions without padding, all positions, and media of each input, of all micro-batches of a step."""
    return [sum(counts) for counts in zip(*(_sizes(batch, inputs) for batch in batches), strict=True)]


def _sizes(batch: Batch, inputs: Sequence[str]) -> list[int]:
    media = [count_media(batch.media[name]) if name in batch.media else 0 for name in inputs]
    return [int(batch.layout.lengths.sum()), batch.tokens.numel(), *media]


def throughput(
    costs: Costs | None, inputs: Sequence[str], sizes: Sequence[float], seconds: float, processes: int
) -> dict[str, float]:
    """Tokens per second, and FLOPs per second of each process; `sizes` are those of `batch_sizes`."""
    useful, positions, *media = sizes
    found = {"tokens_per_s": useful / seconds}
    if costs:
        for name, tokens in (("flops_per_s", positions), ("useful_flops_per_s", useful)):
            flops = costs.flops(tokens, dict(zip(inputs, media, strict=True)))
            found[name] = flops / seconds / processes
    return found


class JsonLinesLog:
    """A file of JSON lines, each of which belongs to a step. A resumed run appends after the step it resumes from.

    Lines of later steps, from before a sudden end, are removed: those steps are repeated, and written again. A log that
    is not `enabled` has no file, and neither has one that is not open: nothing is written.
    """

    def __init__(self, path: Path, *, enabled: bool) -> None:
        self.path, self.enabled = path, enabled
        self._file: IO[str] | None = None

    @contextmanager
    def open(self, step: int) -> Iterator[None]:
        """Open the file; keep the lines of a resumed run up to `step`."""
        if not self.enabled:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if step and self.path.is_file():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        atomic_write(self.path, "".join(f"{line}\n" for line in kept))
        with self.path.open("a", encoding="utf-8", buffering=1) as self._file:  # readers see only whole lines
            yield

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise TrainingError(
                f"{self.path} could not be written: {error}; free some space, then resume with --resume"
            ) from error

    def sync(self) -> None:
        """Flush everything to disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())


def _step_of(line: str) -> float:
    """The step of a line; infinity for a line that a sudden end has cut."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
