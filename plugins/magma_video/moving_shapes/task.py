"""The task `moving_shapes`: which way a shape moves in a held-out clip, and in the same clip reversed in time."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from pydantic import Field

from magma import InputError, Media, PartConfig, Prediction, Question, Task, Text

from .draw import DIRECTIONS
from .make import FORWARD
from .rows import ClipsConfig, ClipsPart


class MovingShapesTask(ClipsPart, Task):
    """Which way a shape moves. The first word of the answer that is a direction is compared.

    `accuracy` is that of the clips as they were made, `reversed_accuracy` that of the same clips reversed in time.
    """

    name = "moving_shapes"
    primary_metric = "accuracy"
    max_tokens = 8
    stop = ("\n", "?")

    class Config(ClipsConfig):
        """Keys of the task."""

        limit: int | None = Field(None, ge=1)
        """Ask only about the first clips."""

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        """Each clip and its reversal, after `shots` training clips that `seed` decides."""
        candidates = self.rows("train") if shots else []
        if shots > len(candidates):
            raise InputError(f"{shots} shots: allowed: at most {len(candidates)}, the number of training clips")
        rows = self.rows(split)
        clips = list(dict.fromkeys(_clip(row["id"]) for row in rows))[: self.config.limit]
        for row in rows:
            if _clip(row["id"]) not in clips:
                continue
            before = random.Random(f"{seed} {shots} {row['id']}").sample(candidates, shots)
            segments: list[Text | Media] = []
            for other in before:
                segments += [*self.prompt(other), Text(f" {other['answer']}\n")]
            yield Question(
                f"{row['id']}/{row['group']}",
                [*segments, *self.prompt(row)],
                row["answer"],
                group=row["group"],
                shots=[other["id"] for other in before],
                shot_lengths=[3] * shots,
            )

    def score_one(self, prediction: Prediction) -> tuple[str, float]:
        """The first direction in the answer, and 1 or 0."""
        word = first_direction(prediction.text)
        return word, float(word == prediction.question.answer)

    def item_scores(self, prediction: Prediction) -> dict[str, float]:
        """`accuracy`, or for reversed clips `reversed_accuracy`."""
        name = "accuracy" if prediction.question.group == FORWARD else f"{prediction.question.group}_accuracy"
        return {name: self.score_one(prediction)[1]}

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        names = dict.fromkeys(name for prediction in predictions for name in self.item_scores(prediction))
        return dict.fromkeys(names, "exact match of a word")


def _clip(identity: str) -> str:
    """The clip that a row is about: "00003" for "00003_reversed"."""
    return identity.partition("_")[0]


def first_direction(text: str) -> str:
    """The first direction in a text; "" if there is none."""
    words = (word.strip(".,!?:;\"'").lower() for word in text.split())
    return next((word for word in words if word in DIRECTIONS), "")
