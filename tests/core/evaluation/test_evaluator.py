"""The task loop and its baselines."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from toys import RECIPE, ToyEncoder, ToyTask

import magma
from magma import InputError, Media, PartConfig, Prediction, Question, Text, TooLong
from magma.evaluation.evaluator import TaskRunner, check_readable

pytestmark = pytest.mark.usefixtures("toys")


class TwoSteps(ToyTask):
    """Asks a second time, behind the first answer."""

    max_tokens = 2

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
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


def test_follow_up_questions_are_asked_after_the_answer() -> None:
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


def test_evaluation_of_a_classifier_continues_after_unreadable_questions(monkeypatch: pytest.MonkeyPatch) -> None:
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
        "2 of 8 questions cannot be read, and max_unreadable allows a fraction of 0.01:"
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
    runner = TaskRunner(magma.assemble(RECIPE).eval(), task, 4)
    assert [task.can_read(Media("number", n)) for n in (1, 2)] == [True, False]
    assert runner.not_shown == ["an in-context example: number: 2.num is torn"]
    assert task.can_read(Media("smell", 2))  # a mistake in the task, not in the medium


# What does not fit


class Behind(ToyTask):
    """Questions of many lengths behind shots of 16 positions each; 64 fit."""

    max_tokens = 2
    lengths: Sequence[int] = (2,)

    def questions(self, split: str, shots: int, seed: int) -> Iterator[Question]:
        for i, count in enumerate((4, 30, 4, 40)):
            shown = [part for j in range(shots) for part in (Media("number", 2), f"shot {j} ......")]
            names = [name for j in range(shots) for name in (f"{j}a", f"{j}b")]
            yield Question(
                *(str(i), [*shown, Media("number", 0), "?" * count], "x"),
                shots=names,
                shot_lengths=list(self.lengths) * shots,
            )


class Follows(Behind):
    """Asks again, too long for one more of the shots."""

    def follow_up(self, prediction: Prediction) -> Question | None:
        question = prediction.question
        if question.extra:
            return None
        return replace(question, segments=[*question.segments, "!" * 15], extra={"again": True})


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_question_that_is_too_long_is_asked_with_the_shots_that_fit(batch_size: int) -> None:
    model = magma.assemble(RECIPE).eval()
    found = magma.evaluate(model, Behind(PartConfig(), 0), shots=3, batch_size=batch_size, baselines=("", "shuffled"))
    for answers in (found[:4], found[4:]):
        assert [p.dropped_shots for p in answers] == [0, 1, 0, 2]
        assert [len(p.question.segments) for p in answers] == [8, 6, 8, 4]
        assert answers[1].question.shots == ["1a", "1b", "2a", "2b"]  # the nearest ones stay
    for prediction in found[:4]:
        assert prediction.text == model.generate(prediction.question.segments, max_tokens=2)
    blind = magma.evaluate(model, Behind(PartConfig(), 0), shots=4, baselines=("blind",))[3]
    assert (blind.dropped_shots, len(blind.question.segments)) == (3, 2)  # 3 times 12 and 40; without media


def test_a_follow_up_may_need_fewer_shots_too() -> None:
    model = magma.assemble(RECIPE).eval()
    found = magma.evaluate(model, Follows(PartConfig(), 0), shots=3, baselines=("",))
    assert [p.dropped_shots for p in found] == [1, 2, 1, 3]
    assert [len(p.question.segments) for p in found] == [7, 5, 7, 3]


def test_a_model_that_classifies_gets_fewer_shots_too() -> None:
    model = magma.assemble({**RECIPE, "head": {"use": "classes", "classes": ["even", "odd"]}}).eval()
    found = magma.evaluate(model, Behind(PartConfig(), 0), shots=3, baselines=("",))
    assert [p.dropped_shots for p in found] == [0, 1, 0, 2]
    assert all(p.text in ("even", "odd") for p in found)


def test_it_is_refused_where_that_is_wanted_or_no_shot_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = magma.assemble(RECIPE).eval()
    with pytest.raises(TooLong, match=r"^question 1 needs 79 positions .*and at most 64 fit"):
        magma.evaluate(model, Behind(PartConfig(), 0), shots=3, batch_size=1, fewer_shots=False)
    monkeypatch.setattr(Behind, "lengths", ())  # a task that does not say how long they are
    with pytest.raises(TooLong, match=r"^question 1 needs 79 positions"):
        magma.evaluate(model, Behind(PartConfig(), 0), shots=3, batch_size=1)
    monkeypatch.setattr(Behind, "lengths", (2,))
    short = magma.assemble({**RECIPE, "lm": {"use": "toy", "context": 24}}).eval()
    with pytest.raises(TooLong, match=r"^question 1 needs 31 positions"):
        magma.evaluate(short, Behind(PartConfig(), 0), shots=3)
