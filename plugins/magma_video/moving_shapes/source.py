"""The data source `moving_shapes`: a question, a clip, and the answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

from magma import DataSource, Example, PartConfig, SourceState, Text

from .rows import ClipsConfig, ClipsPart


class MovingShapes(ClipsPart, DataSource):
    """The question which way a shape moves, a clip of it, and the direction."""

    name = "moving_shapes"

    class Config(ClipsConfig):
        """Keys of the data source."""

        split: Literal["train", "test"] = "train"
        """Training clips, or the held-out ones, also reversed."""

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.seed = seed

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        """One epoch. The training split is shuffled; the held-out split has a fixed order."""
        state = state or {"epoch": 0, "position": 0}
        epoch, rows = state["epoch"], self.rows(self.config.split)
        if self.config.split == "train":
            random.Random(f"{self.seed} {epoch}").shuffle(rows)
        for position in range(state["position"], len(rows)):
            row, last = rows[position], position + 1 == len(rows)
            answer = Text(f" {row['answer']}", target=True)
            after = {"epoch": epoch + 1, "position": 0} if last else {"epoch": epoch, "position": position + 1}
            yield Example([*self.prompt(row), answer], row["video"]), after
