"""Checks of a task."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import islice

from ...values import Prediction, collect
from .subject import MANY, Check, PartUnderTest, require


def questions_are_repeatable(subject: PartUnderTest) -> None:
    """Questions have unique ids, and the same seed gives the same questions, also with in-context examples."""
    for shots in (0, 2):
        asked = [list(islice(subject.make().questions("test", shots, 3), MANY)) for _ in range(2)]
        require(bool(asked[0]), "there is no question")
        ids = [question.id for question in asked[0]]
        require(len(set(ids)) == len(ids), "two questions have the same id")
        compared = [[(q.id, q.answer, q.group, len(q.segments)) for q in some] for some in asked]
        require(compared[0] == compared[1], "the same seed gives different questions")
        json.dumps([question.extra for question in asked[0]])


def right_answers_score(subject: PartUnderTest) -> None:
    """`score` returns finite scores, including `primary_metric`, and correct answers score higher than empty ones."""
    task = subject.make()
    questions = list(islice(task.questions("test", 0, 3), MANY))
    scores: list[Mapping[str, float]] = [
        task.score([Prediction(question, question.answer if right else "") for question in questions])
        for right in (True, False)
    ]
    for found in scores:
        require(
            task.primary_metric in found,
            f'`score` gives {", ".join(found)}; `primary_metric` is "{task.primary_metric}"',
        )
        require(all(math.isfinite(value) for value in found.values()), f"`score` gives {dict(found)}")
    most, least = (found[task.primary_metric] for found in scores)
    require(most > least, f"{task.primary_metric}: correct answers score {most:g}, empty answers {least:g}")


def item_scores_are_means(subject: PartUnderTest) -> None:
    """Each score that `item_scores` contributes to is the mean of these contributions in `score`, or is not in it."""
    task = subject.make()
    questions = list(islice(task.questions("test", 0, 3), MANY))
    predictions = [Prediction(question, question.answer if i % 2 else "") for i, question in enumerate(questions)]
    scores = task.score(predictions)
    for name, values in collect(map(task.item_scores, predictions)).items():
        mean = sum(values) / len(values)
        require(
            name not in scores or math.isclose(scores[name], mean, rel_tol=1e-6, abs_tol=1e-9),
            f"`score` gives {scores.get(name)} for {name}, and the mean of `item_scores` is {mean:g}",
        )


CHECKS: tuple[Check, ...] = (
    questions_are_repeatable,
    right_answers_score,
    item_scores_are_means,
)
