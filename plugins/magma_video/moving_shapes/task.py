"""The task `moving_shapes`: which way a shape moves in a held-out clip, and in the same clip reversed in time."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from magma import CheckInputs, InputError, LocalPath, Media, PartConfig, Prediction, Question, Task

from .draw import DIRECTIONS
from .make import FORWARD, REVERSED

COMMAND = "magma data make moving-shapes --out"


class MovingShapesTask(Task):
    """Which way a shape moves. The first word of the answer that is a direction is compared.

    `accuracy` is that of the clips as they were made, `reversed_accuracy` that of the same clips reversed in time.
    """

    name = "moving_shapes"
    primary_metric = "accuracy"
    max_tokens = 8
    stop = ("\n", "Q:")

    class Config(PartConfig):
        """Keys of the task."""

        path: LocalPath = Field("moving_shapes", validate_default=True)
        """Folder that `magma data make moving-shapes` wrote."""
        input: str = "video"
        """Name of the model's input that gets the clips."""
        template: str = "Q: {question} A:"
        """The prompt after the clip."""
        limit: int | None = Field(None, ge=1)
        """Ask only about the first clips."""

    config: Config

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A configuration with rows about four clips, which are read by no check."""
        for split in ("train", "test"):
            rows = [
                {"id": f"{i}", "video": f"{split}/{i}.mp4", "question": "Where to?", "answer": answer, "group": group}
                for i, answer in enumerate(DIRECTIONS)
                for group in ((FORWARD, REVERSED) if split == "test" else (FORWARD,))
            ]
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return CheckInputs({"path": str(folder)})

    @classmethod
    def problems(cls, config: Config) -> list[str]:
        """Missing clips."""
        missing = [name for name in ("train.jsonl", "test.jsonl") if not (Path(config.path) / name).is_file()]
        if not missing:
            return []
        return [
            f"path: given {config.path!r}, which has no {' and no '.join(missing)} beside the recipe, in $MAGMA_DATA "
            f"or in the working directory; `{COMMAND} {Path(config.path).name}` makes the clips"
        ]

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        """Each clip and its reversal, after `shots` training clips that `seed` decides."""
        candidates = self._rows("train") if shots else []
        if shots > len(candidates):
            raise InputError(f"{shots} shots: allowed: at most {len(candidates)}, the number of training clips")
        rows = self._rows(split)
        if self.config.limit is not None:
            chosen = list(dict.fromkeys(row["id"].partition("_")[0] for row in rows))[: self.config.limit]
            rows = [row for row in rows if row["id"].partition("_")[0] in chosen]
        for row in rows:
            draw = random.Random(f"{seed} {shots} {row['id']}")
            before = draw.sample(candidates, shots)
            segments: list[Media | str] = []
            for other in before:
                segments += [self._medium(other), f"{self._prompt(other)} {other['answer']}\n"]
            yield Question(
                f"{row['id']}/{row['group']}",
                [*segments, self._medium(row), self._prompt(row)],
                row["answer"],
                group=row["group"],
                shots=[other["id"] for other in before],
                shot_lengths=[2] * shots,
            )

    def _rows(self, split: str) -> list[dict[str, Any]]:
        file = Path(self.config.path) / f"{split}.jsonl"
        if not file.is_file():
            raise InputError(f"{file}: no such file; allowed splits: train, test")
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]

    def _medium(self, row: dict[str, Any]) -> Media:
        return Media(self.config.input, Path(self.config.path) / row["video"])

    def _prompt(self, row: dict[str, Any]) -> str:
        return self.config.template.replace("{question}", row["question"])

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


def first_direction(text: str) -> str:
    """The first direction in a text; "" if there is none."""
    words = (word.strip(".,!?:;\"'").lower() for word in text.split())
    return next((word for word in words if word in DIRECTIONS), "")
