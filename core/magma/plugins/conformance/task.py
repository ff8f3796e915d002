"""What a task promises."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import islice

from ...values import Prediction
from .subject import MANY, Check, Subject, need


def questions_are_repeatable(subject: Subject) -> None:
    """Questions have ids of their own, and the same seed asks the same, with examples before them too."""
    for shots in (0, 2):
        asked = [list(islice(subject.make().examples("test", shots, 3), MANY)) for _ in range(2)]
        need(bool(asked[0]), "there is no question")
        ids = [question.id for question in asked[0]]
        need(len(set(ids)) == len(ids), "two questions have one id")
        told = [[(q.id, q.answer, q.group, len(q.segments)) for q in some] for some in asked]
        need(told[0] == told[1], "twice the same seed asks other questions")
        json.dumps([question.extra for question in asked[0]])


def right_answers_score(subject: Subject) -> None:
    """`score` names finite figures, `primary` among them, and right answers score higher than none."""
    task = subject.make()
    questions = list(islice(task.examples("test", 0, 3), MANY))
    figures: list[Mapping[str, float]] = [
        task.score([Prediction(question, question.answer if right else "") for question in questions])
        for right in (True, False)
    ]
    for found in figures:
        need(task.primary in found, f'`score` gives {", ".join(found)}; `primary` says "{task.primary}"')
        need(all(math.isfinite(value) for value in found.values()), f"`score` gives {dict(found)}")
    most, least = (found[task.primary] for found in figures)
    need(most > least, f"{task.primary}: right answers score {most:g}, no answers {least:g}")


CHECKS: tuple[Check, ...] = (
    questions_are_repeatable,
    right_answers_score,
)
