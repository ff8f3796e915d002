"""metrics.jsonl and skipped.jsonl: files with a line per step, and the speeds that the lines have."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ..data.sequence import Batch
from ..errors import TrainingError
from ..io import atomic_write
from ..plan import Costs

METRICS = "metrics.jsonl"
SKIPPED = "skipped.jsonl"
"""The examples that were left out because they could not be read, a line each."""


def sizes_of(batches: Sequence[Batch], inputs: Sequence[str]) -> list[int]:
    """Positions without padding, all positions, and media of each input, of all micro-batches of a step."""
    return [sum(counts) for counts in zip(*(_sizes(batch, inputs) for batch in batches), strict=True)]


def _sizes(batch: Batch, inputs: Sequence[str]) -> list[int]:
    media = [len(batch.media[name]) if name in batch.media else 0 for name in inputs]
    return [int(batch.layout.lengths.sum()), batch.tokens.numel(), *media]


def speeds(
    costs: Costs | None, inputs: Sequence[str], sizes: Sequence[float], took: float, processes: int
) -> dict[str, float]:
    """Tokens, and FLOPs of each process, a second; `sizes` are those of `sizes_of`."""
    useful, positions, *media = sizes
    found = {"tokens_per_s": useful / took}
    if costs:
        for name, tokens in (("flops_per_s", positions), ("useful_flops_per_s", useful)):
            counted = costs.flops(tokens, dict(zip(inputs, media, strict=True)))
            found[name] = counted / took / processes
    return found


class Log:
    """A file whose lines are of a step each; a resumed run goes on behind the step it starts from.

    What later steps wrote before a sudden end goes: those steps come again, and write it again.
    """

    def __init__(self, path: Path, active: bool, step: int) -> None:
        self.file: IO[str] | None = None
        if not active:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if step and path.is_file():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        atomic_write(path, "".join(f"{line}\n" for line in kept))
        self.file = path.open("a", encoding="utf-8", buffering=1)  # whoever watches sees whole lines

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file:
            self.file.close()

    def write(self, row: dict[str, Any]) -> None:
        """One line."""
        if self.file:
            try:
                self.file.write(json.dumps(row) + "\n")
            except OSError as error:
                raise TrainingError(
                    f"{self.file.name} could not be written: {error}; make room, then go on with --resume"
                ) from error

    def sync(self) -> None:
        """Everything so far is on disk."""
        if self.file:
            os.fsync(self.file.fileno())


def _step_of(line: str) -> float:
    """The step of a row; a line that a sudden end cut short belongs to none."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
