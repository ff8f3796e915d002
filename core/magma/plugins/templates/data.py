"""The data source newname."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from pydantic import Field

import magma

MAGMA_API = 1
"""The version of MAGMA's plugin API that this was written for."""
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


class NewPart(magma.DataSource):
    """Eight numbers, and which of them is the largest: in an order of its own each pass."""

    name = "newname"

    class Config(magma.PartConfig):
        """`size` examples for the model's input called `input`."""

        input: str = "newname"
        size: int = Field(1000, ge=1)

    config: Config

    def __init__(self, config: magma.PartConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.seed = seed

    def iterate(self, state: magma.SourceState | None = None) -> Iterator[tuple[magma.Example, magma.SourceState]]:
        """One pass; the state says which pass, and which example is next."""
        state = state or {"epoch": 0, "next": 0}
        order = list(range(self.config.size))
        random.Random(f"{self.seed} {state['epoch']}").shuffle(order)
        for position in range(state["next"], len(order)):
            last = position + 1 == len(order)
            after = {"epoch": state["epoch"] + last, "next": 0 if last else position + 1}
            yield self._example(order[position]), after

    def _example(self, i: int) -> magma.Example:
        draw = random.Random(f"{self.seed} example {i}")
        numbers = [draw.random() for _ in PLACES]
        place = draw.randrange(len(PLACES))
        numbers[place] += 1
        said = magma.Text(f"The {PLACES[place]} is the largest.", target=True)
        return magma.Example([magma.Media(self.config.input, numbers), said], f"newname {i}")


@magma.hookimpl
def magma_parts() -> Iterable[type[magma.Part]]:
    """The parts of this package."""
    return [NewPart]
