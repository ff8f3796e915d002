"""Several data sources as one endless stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import TrainingError
from ..interfaces import DataSource
from ..values import Example, SourceState


class Mixture:
    """An endless stream of examples of several sources, drawn by weight; it can start at any position.

    The next example comes from the source that is furthest below its weight. There is no randomness: the numbers of
    examples drawn so far are the position.
    """

    def __init__(self, sources: Sequence[DataSource], weights: Sequence[float]) -> None:
        self.sources = sources
        self.weights = weights
        self.counts = [0] * len(sources)
        self.states: list[SourceState | None] = [None] * len(sources)
        self._iterators: list[Iterator[tuple[Example, SourceState]] | None] = [None] * len(sources)

    def take(self, count: int) -> list[Example]:
        """The next `count` examples."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Example:
        drawn = [(count + 1) / weight for count, weight in zip(self.counts, self.weights, strict=True)]
        i = drawn.index(min(drawn))
        for _ in range(2):  # a pass may have ended; then the next pass begins
            iterator = self._iterators[i] or self.sources[i].iterate(self.states[i])
            self._iterators[i] = iterator
            found = next(iterator, None)
            if found is not None:
                self.counts[i] += 1
                self.states[i] = found[1]
                return found[0]
            self._iterators[i] = None
        raise TrainingError(f"data.train.{i} ({self.sources[i].name}) has no examples")

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream; JSON."""
        return {"counts": list(self.counts), "states": list(self.states)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a position that `state_dict` gave."""
        self.counts, self.states = list(state["counts"]), list(state["states"])
        self._iterators = [None] * len(self.sources)
