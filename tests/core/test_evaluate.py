"""The task loop and its baselines."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from toys import RECIPE, ToyEncoder, ToyTask

import magma
from magma import InputError, Media, PartConfig, Prediction, Question, Text
from magma.evaluate import Asker, check_readable

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


# What cannot be read


def torn(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """These numbers cannot be read."""
    plain = ToyEncoder.prepare

    def prepare(self: ToyEncoder, raw: Any, rng: random.Random | None = None) -> torch.Tensor:
        if raw in numbers:
            raise InputError(f"{raw}.num is torn")
        return plain(self, raw, rng)

    monkeypatch.setattr(ToyEncoder, "prepare", prepare)


@pytest.mark.parametrize("batch_size", [1, 3, 24])
def test_a_question_that_cannot_be_read_is_wrong_and_the_others_are_asked(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = magma.assemble(RECIPE).eval()
    whole = magma.evaluate(model, TwoSteps(PartConfig(), 0), baselines=("",))
    torn(monkeypatch, 2)
    found = magma.evaluate(model, TwoSteps(PartConfig(), 0), batch_size=batch_size, max_unreadable=0.3)
    assert [bool(p.problem) for p in found[8:16]] == [bool(p.problem) for p in found[:8]]
    assert [2 not in numbers([p]) for p in found[8:16]] == [not p.problem for p in found[8:16]]
    assert [p.text for p in found[:8]] == [("" if i % 4 == 2 else p.text) for i, p in enumerate(whole)]
    assert {p.question.id: p.problem for p in found[:8] if p.problem} == {
        "2": "question 2: number: 2.num is torn",
        "6": "question 6: number: 2.num is torn",
    }
    assert not any(p.problem for p in found[16:])


def test_a_model_that_classifies_goes_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = magma.assemble({**RECIPE, "head": {"use": "classes", "classes": ["even", "odd"]}}).eval()
    whole = magma.evaluate(model, ToyTask(PartConfig(), 0), baselines=("",))
    torn(monkeypatch, 1)
    found = magma.evaluate(model, ToyTask(PartConfig(), 0), baselines=("",))
    assert [p.text for p in found] == [("" if i == 1 else p.text) for i, p in enumerate(whole)]
    assert [p.problem for p in found] == ["", "question 1: number: 1.num is torn", "", ""]


def test_too_many_of_them_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = magma.assemble(RECIPE).eval()
    torn(monkeypatch, 2)
    with pytest.raises(InputError) as raised:
        magma.evaluate(model, TwoSteps(PartConfig(), 0), baselines=("",))
    assert str(raised.value) == (
        "2 of 8 questions cannot be read, and max_unreadable allows a share of 0.01:"
        "\n  - question 2: number: 2.num is torn\n  - question 6: number: 2.num is torn"
    )


@pytest.mark.parametrize(
    ("count", "asked", "share", "ends"),
    [
        (1, 10, 0.01, False),  # a single one
        (1, 10, 0, True),
        (1, 1, 1, True),  # nothing can be read
        (2, 10, 0.01, True),
        (2, 200, 0.01, False),
        (3, 200, 0.01, True),
        (9, 10, 0.9, False),
        (0, 10, 0, False),
        (0, 0, 0.01, False),
    ],
)
def test_how_many_are_too_many(count: int, asked: int, share: float, ends: bool) -> None:
    problems = [f"question {i}" for i in range(count)]
    if not ends:
        check_readable(problems, asked, share)
        return
    with pytest.raises(InputError, match=f"{count} of {asked} questions cannot be read"):
        check_readable(problems, asked, share)


def test_a_task_knows_what_the_model_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    torn(monkeypatch, 2)
    task = ToyTask(PartConfig(), 0)
    assert task.can_read(Media("number", 2))  # nobody asks yet
    asker = Asker(magma.assemble(RECIPE).eval(), task, 4)
    assert [task.can_read(Media("number", n)) for n in (1, 2)] == [True, False]
    assert asker.not_shown == ["a completed example: number: 2.num is torn"]
    assert task.can_read(Media("smell", 2))  # a mistake in the task, not in the medium
