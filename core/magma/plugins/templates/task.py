"""The task newname."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from pydantic import Field

import magma

MAGMA_API = 1
"""The version of MAGMA's plugin API that this was written for."""
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


class NewPart(magma.Task):
    """Which of eight numbers is the largest; the first place that the answer names counts."""

    name = "newname"
    primary_metric = "accuracy"
    max_tokens = 8

    class Config(magma.PartConfig):
        """`limit` questions to the model's input called `input`."""

        input: str = "newname"
        limit: int = Field(100, ge=1)

    config: Config

    def __init__(self, config: magma.PartConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.seed = seed

    def questions(self, split: str, shots: int, seed: int) -> Iterator[magma.Question]:
        """The questions of a split, each behind `shots` answered ones."""
        for i in range(self.config.limit):
            draw = random.Random(f"{self.seed} {split} {shots} {seed} {i}")
            segments: list[magma.Media | str] = []
            for _ in range(shots):
                numbers, place = self._draw(draw)
                segments += [magma.Media(self.config.input, numbers), f"The {place} is the largest.\n"]
            numbers, place = self._draw(draw)
            segments += [magma.Media(self.config.input, numbers), "The"]
            yield magma.Question(f"{split} {i}", segments, place, shot_lengths=[2] * shots)

    def _draw(self, draw: random.Random) -> tuple[list[float], str]:
        numbers, place = [draw.random() for _ in PLACES], draw.randrange(len(PLACES))
        numbers[place] += 1
        return numbers, PLACES[place]

    def score(self, predictions: Sequence[magma.Prediction]) -> dict[str, float]:
        """`accuracy`, 0 to 1."""
        right = sum(self._place(p.text) == p.question.answer for p in predictions)
        return {"accuracy": right / len(predictions)}

    def _place(self, text: str) -> str:
        return next((word for word in text.lower().split() if word in PLACES), "")


@magma.hookimpl
def magma_parts() -> Iterable[type[magma.Part]]:
    """The parts of this package."""
    return [NewPart]
