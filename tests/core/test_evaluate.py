"""The task loop and its baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from toys import RECIPE, ToyTask

import magma
from magma import Media, PartConfig, Prediction, Question, Text

pytestmark = pytest.mark.usefixtures("toys")


class TwoSteps(ToyTask):
    """Asks a second time, behind the first answer."""

    max_tokens = 2

    def examples(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        for i in range(8):
            yield Question(str(i), [i % 4, "is"], str(i), "a")

    def follow_up(self, prediction: Prediction) -> Question | None:
        question = prediction.question
        if question.extra:
            return None
        return Question(question.id, [*question.segments, prediction.text, "?"], "", "a", {"first": prediction.text})


def numbers(predictions: Sequence[Prediction]) -> list[Any]:
    return [s.value for p in predictions for s in p.question.segments if isinstance(s, Media)]


def test_every_question_is_asked_of_every_baseline() -> None:
    model = magma.assemble(RECIPE).eval()
    seen: list[tuple[int, int]] = []
    predictions = magma.evaluate(
        model, TwoSteps(PartConfig(), 0), batch_size=3, progress=lambda done, total: seen.append((done, total))
    )
    by = {b: [p for p in predictions if p.baseline == b] for b in ("", "shuffled", "blind")}
    assert all([p.question.id for p in found] == [str(i) for i in range(8)] for found in by.values())
    assert numbers(by[""]) == [0, 1, 2, 3] * 2
    assert sorted(numbers(by["shuffled"])) == sorted(numbers(by[""]))
    assert numbers(by["shuffled"]) != numbers(by[""])
    assert numbers(by["blind"]) == []
    assert seen[-1] == (24, 24)


def test_a_follow_up_stands_behind_the_answer() -> None:
    model = magma.assemble(RECIPE).eval()
    predictions = magma.evaluate(model, TwoSteps(PartConfig(), 0), baselines=("",))
    for prediction in predictions:
        first = prediction.question.extra["first"]
        number = prediction.question.segments[0]
        assert first == model.generate([number, "is"], max_tokens=2)
        assert prediction.text == model.generate([number, Text("is"), first, "?"], max_tokens=2)


def test_batches_do_not_change_answers() -> None:
    model = magma.assemble(RECIPE).eval()
    one, many = (
        [p.text for p in magma.evaluate(model, TwoSteps(PartConfig(), 0), batch_size=size)] for size in (1, 24)
    )
    assert one == many
