"""Ask a model a task's questions, with the two baselines that show what the media are worth."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from .generate import Decoding
from .interfaces import Prediction, Question, Task
from .model import Magma
from .reuse import Reader, identity, not_empty
from .segments import Media

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

    shuffled: each input's media change places at random. blind: they are taken away; questions of which nothing is
    left are answered with nothing.
    """
    questions = list(task.examples(split, shots, seed))
    ask = Asker(model, task, batch_size)
    total, done = len(questions) * len(baselines), 0
    predictions: list[Prediction] = []
    for baseline in baselines:
        answered: dict[int, Prediction] = {}
        for found in ask(questions, baseline, seed):
            answered |= found
            done += len(found)
            progress(done, total)
        predictions += [answered[i] for i in sorted(answered)]
    return predictions


class Asker:
    """Asks one model a task's questions. Media and examples that questions share are read once (`reuse`)."""

    def __init__(self, model: Magma, task: Task, batch_size: int) -> None:
        self.model, self.task, self.batch_size = model, task, batch_size
        self.collator = model.collator()
        self.reader = Reader(model, Decoding(max_tokens=task.max_tokens, stop=task.stop), batch_size)

    def __call__(
        self, questions: Sequence[Question], baseline: Baseline, seed: int, wanted: Container[int] | None = None
    ) -> Iterator[dict[int, Prediction]]:
        """Batch by batch, number of a question to its prediction; of the `wanted` ones alone, by default of all.

        As long as the task has something to ask behind an answer, it is asked.
        """
        asked = [self._segmented(question) for question in questions]
        if baseline:
            asked = _shuffled(asked, seed) if baseline == "shuffled" else _blind(asked)
        waiting = {i: question for i, question in enumerate(asked) if wanted is None or i in wanted}
        while waiting:
            following = {}
            for batch in self._batches(waiting):
                final = {}
                for i, output in batch:
                    question = waiting[i]
                    prediction = Prediction(question, self.task.extract(question, output), baseline, output)
                    behind = self.task.follow_up(prediction)
                    if behind is None:
                        final[i] = prediction
                    else:
                        following[i] = self._segmented(behind)
                if final:
                    yield final
            waiting = following

    def _segmented(self, question: Question) -> Question:
        return replace(question, segments=[self.collator.segment(value) for value in question.segments])

    def _batches(self, questions: Mapping[int, Question]) -> Iterator[list[tuple[int, str]]]:
        """(Number, all that the model says) of each question; "" where a question is empty."""
        if empty := [(i, "") for i, q in questions.items() if not not_empty(q.segments)]:
            yield empty
        left = [i for i, q in questions.items() if not_empty(q.segments)]
        prompts = [questions[i].segments for i in left]
        if self.model.head is not None:
            for at in range(0, len(left), self.batch_size):
                chances = self.model.classify(prompts[at : at + self.batch_size])
                texts = [max(scores, key=scores.__getitem__) for scores in chances]
                yield list(zip(left[at : at + self.batch_size], texts, strict=True))
            return
        for batch in self.reader.answers(prompts, [f"question {questions[i].id}" for i in left]):
            yield [(left[i], text) for i, text in batch]


def _shuffled(questions: Sequence[Question], seed: int) -> list[Question]:
    """Each input's media change places: a medium is everywhere replaced by one and the same other medium."""
    known: dict[str, dict[Hashable, Media]] = {}
    for question in questions:
        for segment in question.segments:
            if isinstance(segment, Media):
                known.setdefault(segment.name, {})[identity(segment)] = segment
    others: dict[Hashable, Media] = {}
    for name in sorted(known):
        keys = list(known[name])
        random.Random(f"{seed} {name}").shuffle(keys)
        others |= {key: known[name][other] for key, other in zip(keys, (*keys[1:], *keys[:1]), strict=True)}

    def other(segment: Any) -> Any:
        return others[identity(segment)] if isinstance(segment, Media) else segment

    return [replace(question, segments=list(map(other, question.segments))) for question in questions]


def _blind(questions: Sequence[Question]) -> list[Question]:
    return [
        replace(question, segments=[s for s in question.segments if not isinstance(s, Media)]) for question in questions
    ]
