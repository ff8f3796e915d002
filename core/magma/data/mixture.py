"""Several data sources as one endless stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import TrainingError
from ..interfaces import DataSource
from ..values import Example, SourceState


class Mixture:
    """Examples of several sources by weight, for ever, from any point.

    The next source is the one that is furthest behind its share: no randomness, and the counts are the position.
    """

    def __init__(self, sources: Sequence[DataSource], weights: Sequence[float]) -> None:
        self.sources = sources
        self.weights = weights
        self.counts = [0] * len(sources)
        self.states: list[SourceState | None] = [None] * len(sources)
        self._running: list[Iterator[tuple[Example, SourceState]] | None] = [None] * len(sources)

    def take(self, count: int) -> list[Example]:
        """The next `count` examples."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Example:
        behind = [(done + 1) / weight for done, weight in zip(self.counts, self.weights, strict=True)]
        i = behind.index(min(behind))
        for _ in range(2):  # a pass may have ended: then the next one begins
            running = self._running[i] or self.sources[i].iterate(self.states[i])
            self._running[i] = running
            found = next(running, None)
            if found is not None:
                self.counts[i] += 1
                self.states[i] = found[1]
                return found[0]
            self._running[i] = None
        raise TrainingError(f"data.train.{i} ({self.sources[i].name}) has no examples")

    def state(self) -> dict[str, Any]:
        """JSON from which `restore` goes on."""
        return {"counts": list(self.counts), "states": list(self.states)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.counts, self.states = list(state["counts"]), list(state["states"])
        self._running = [None] * len(self.sources)
