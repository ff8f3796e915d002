"""Ask a model a task's questions, with the two baselines that show what the media are worth."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from .interfaces import Prediction, Question, Task
from .model import Magma
from .segments import Media, Segment

Baseline = Literal["", "shuffled", "blind"]
BASELINES: tuple[Baseline, ...] = ("", "shuffled", "blind")


def evaluate(
    model: Magma,
    task: Task,
    *,
    split: str = "test",
    shots: int = 0,
    seed: int = 0,
    batch_size: int = 64,
    baselines: Sequence[Baseline] = BASELINES,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Prediction]:
    """Greedy answers to every question, for the model itself and for each baseline.

    shuffled: each input's media are permuted at random among the questions. blind: they are taken away; questions
    of which nothing is left are answered with nothing.
    """
    collator = model.collator()
    asked = [
        replace(question, segments=[collator.segment(value) for value in question.segments])
        for question in task.examples(split, shots, seed)
    ]
    ways = {"": lambda: asked, "shuffled": lambda: _shuffled(asked, seed), "blind": lambda: _blind(asked)}
    total, done = len(asked) * len(baselines), 0
    predictions: list[Prediction] = []
    for baseline in baselines:
        questions = ways[baseline]()
        for at in range(0, len(questions), batch_size):
            answered = _answer(model, task, questions[at : at + batch_size], baseline)
            predictions += answered
            done += len(answered)
            progress(done, total)
    return predictions


def _answer(model: Magma, task: Task, questions: Sequence[Question], baseline: Baseline) -> list[Prediction]:
    """A batch's last answers: as long as the task has something to ask behind an answer, it is asked."""
    final: dict[int, Prediction] = {}
    waiting = dict(enumerate(questions))
    while waiting:
        askable = {i: q for i, q in waiting.items() if q.segments}
        texts: list[str] = []
        if askable:
            prompts = [q.segments for q in askable.values()]
            if model.head is not None:
                texts = [max(scores, key=scores.__getitem__) for scores in model.classify(prompts)]
            else:
                texts = model.generate(prompts, max_tokens=task.max_tokens, stop=task.stop)
        answers = dict(zip(askable, texts, strict=True))
        following = {}
        for i, question in waiting.items():
            final[i] = Prediction(question, answers.get(i, ""), baseline)
            behind = task.follow_up(final[i])
            if behind is not None:
                following[i] = behind
        waiting = following
    return [final[i] for i in sorted(final)]


def _shuffled(questions: Sequence[Question], seed: int) -> list[Question]:
    """Each input's media, permuted over all the places where that input has one."""
    pools: dict[str, list[Any]] = {}
    for question in questions:
        for segment in question.segments:
            if isinstance(segment, Media):
                pools.setdefault(segment.name, []).append(segment.value)
    for name in sorted(pools):
        random.Random(f"{seed} {name}").shuffle(pools[name])
    left = {name: iter(pool) for name, pool in pools.items()}

    def other(segment: Segment) -> Segment:
        return Media(segment.name, next(left[segment.name])) if isinstance(segment, Media) else segment

    return [replace(question, segments=[other(segment) for segment in question.segments]) for question in questions]


def _blind(questions: Sequence[Question]) -> list[Question]:
    return [
        replace(question, segments=[s for s in question.segments if not isinstance(s, Media)]) for question in questions
    ]
