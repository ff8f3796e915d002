"""Ask a model a task's questions, with the two baselines that show what the media are worth."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from ..errors import InputError, TooLong, first_of
from ..generation.decoding import Decoding
from ..interfaces import Task
from ..model import Magma
from ..recipe.schema import MAX_UNREADABLE
from ..values import Media, Prediction, Question
from .prefix_sharing import PrefixCachedGenerator, identity, not_empty, refusal, unreadable

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
    max_unreadable: float = MAX_UNREADABLE,
    fewer_shots: bool = True,
) -> list[Prediction]:
    """Greedy answers to every question, for the model itself and for each baseline.

    shuffled: each input's media change places at random. blind: they are taken away; questions of which nothing is
    left are answered with nothing. A question that cannot be read has a `problem` and counts as wrong; raises
    `InputError` where `max_unreadable` allows no such share of them (`check_readable`). A question that is too long is
    asked with `fewer_shots`, which its prediction counts; otherwise, or where it does not fit alone, raises `TooLong`.
    """
    ask = TaskRunner(model, task, batch_size, fewer_shots)
    questions = list(task.examples(split, shots, seed))
    total, done = len(questions) * len(baselines), 0
    predictions: list[Prediction] = []
    for baseline in baselines:
        answered: dict[int, Prediction] = {}
        for found in ask(questions, baseline, seed):
            answered |= found
            done += len(found)
            progress(done, total)
        check_readable([p.problem for p in answered.values() if p.problem], len(answered), max_unreadable)
        predictions += [answered[i] for i in sorted(answered)]
    return predictions


def check_readable(problems: Sequence[str], asked: int, share: float) -> None:
    """Raise `InputError` where more of the `asked` questions cannot be read than `share` allows, or all of them.

    A single one is allowed wherever `share` is not 0: of a few questions it is a large share.
    """
    if problems and (len(problems) == asked or len(problems) > max(share * asked, 1 if share else 0)):
        raise InputError(
            f"{len(problems)} of {asked} questions cannot be read, and max_unreadable allows a share of {share:g}:"
            f"{first_of(problems)}"
        )


class TaskRunner:
    """Asks one model a task's questions. Media and examples that questions share are read once (`reuse`).

    What the model can read is what the task may show.
    """

    def __init__(self, model: Magma, task: Task, batch_size: int, fewer_shots: bool = True) -> None:
        """`fewer_shots`: leave out completed examples of a question that is too long."""
        self.model, self.task, self.batch_size, self.fewer_shots = model, task, batch_size, fewer_shots
        self.collator = model.collator()
        self.reader = PrefixCachedGenerator(model, Decoding(max_tokens=task.max_tokens, stop=task.stop), batch_size)
        self.not_shown: list[str] = []
        """Why the task was told not to show a medium, once for each of them."""
        self._known: set[str] = set()
        self.torn: set[Hashable] = set()
        """Media of questions that could not be read: they do not change places."""
        task.can_read = self.can_read

    def can_read(self, medium: Media) -> bool:
        """Can the model read this medium of a completed example?"""
        if medium.name not in self.collator.inputs:
            return True  # no matter of the medium: whoever asks is told that there is no such input
        problem = unreadable(self.collator, [medium], "a completed example")
        if problem and str(problem) not in self._known:
            self._known.add(str(problem))
            self.not_shown.append(str(problem))
        return problem is None

    def __call__(
        self, questions: Sequence[Question], baseline: Baseline, seed: int, wanted: Container[int] | None = None
    ) -> Iterator[dict[int, Prediction]]:
        """Batch by batch, number of a question to its prediction; of the `wanted` ones alone, by default of all.

        As long as the task has something to ask behind an answer, it is asked.
        """
        asked = [self._segmented(question) for question in questions]
        if baseline:
            asked = _shuffled(asked, seed, self.torn) if baseline == "shuffled" else _blind(asked)
        waiting = {i: question for i, question in enumerate(asked) if wanted is None or i in wanted}
        dropped: dict[int, int] = {}
        while waiting:
            following: dict[int, Question] = {}
            shortened: dict[int, tuple[Question, int]] = {}
            for batch in self._batches(waiting, shortened):
                final = {}
                for i, output, problem in batch:
                    question = waiting[i]
                    text = "" if problem else self.task.extract(question, output)
                    prediction = Prediction(question, text, baseline, output, problem, dropped.get(i, 0))
                    behind = None if problem else self.task.follow_up(prediction)
                    if behind is None:
                        final[i] = prediction
                    else:
                        following[i] = self._segmented(behind)
                if final:
                    yield final
            for i, (shorter, count) in shortened.items():
                following[i] = shorter
                dropped[i] = dropped.get(i, 0) + count
            waiting = following

    def _segmented(self, question: Question) -> Question:
        return replace(question, segments=[self.collator.segment(value) for value in question.segments])

    def _shortened(self, question: Question, error: TooLong) -> tuple[Question, int]:
        """A question with as many of its completed examples as fit, the nearest ones, and how many are left out.

        Raises the error that says that it is too long where that is not allowed or not possible.
        """
        if not self.fewer_shots:
            raise error
        shots = len(question.shot_lengths)

        def problem(kept: int) -> InputError | None:
            segments = _without(question, shots - kept).segments
            return refusal(self.collator, not_empty(segments), f"question {question.id}")

        def too_long(kept: int) -> bool:
            return isinstance(problem(kept), TooLong)

        shortest = problem(0) if shots else error
        if isinstance(shortest, TooLong):
            raise shortest
        # Each try reads every medium: the number is doubled until it is too large, as few of very many may fit.
        beyond = 1
        while beyond < shots and not too_long(beyond):
            beyond *= 2
        kept = bisect.bisect_left(range(beyond // 2 + 1, min(beyond, shots)), True, key=too_long) + beyond // 2
        return _without(question, shots - kept), shots - kept

    def _batches(
        self, questions: Mapping[int, Question], shortened: dict[int, tuple[Question, int]]
    ) -> Iterator[list[tuple[int, str, str]]]:
        """(Number, all that the model says, why it cannot be read) of each question; "" where a question is empty.

        Those that are too long are left out; `shortened` gets what `_shortened` makes of them.
        """
        if empty := [(i, "", "") for i, q in questions.items() if not not_empty(q.segments)]:
            yield empty
        left = [i for i, q in questions.items() if not_empty(q.segments)]
        refused: list[tuple[int, str, str]] = []

        def refuse(number: int, error: InputError) -> None:
            if isinstance(error, TooLong):
                shortened[left[number]] = self._shortened(questions[left[number]], error)
                return
            refused.append((left[number], "", str(error)))
            media = [s for s in questions[left[number]].segments if isinstance(s, Media)]
            self.torn |= {identity(medium) for medium in media if unreadable(self.collator, [medium], medium.name)}

        for batch in self._outputs([questions[i] for i in left], refuse):
            yield [(left[i], output, "") for i, output in batch]
            if refused:
                yield refused
                refused = []

    def _outputs(
        self, questions: Sequence[Question], refuse: Callable[[int, InputError], None]
    ) -> Iterator[list[tuple[int, str]]]:
        """Batch by batch, (place in the list, output); `refuse` gets the place of what cannot be read."""
        prompts, names = [q.segments for q in questions], [f"question {q.id}" for q in questions]
        if self.model.head is None:
            yield from self.reader.answers(prompts, names, refuse)
            return
        for at in range(0, len(prompts), self.batch_size):
            batch = list(range(at, min(at + self.batch_size, len(prompts))))
            try:
                chances = self.model.classify([prompts[i] for i in batch])
            except InputError:
                problems = {i: refusal(self.collator, not_empty(prompts[i]), names[i]) for i in batch}
                if not any(problems.values()):
                    raise
                for i, problem in problems.items():
                    if problem:
                        refuse(i, problem)
                batch = [i for i in batch if problems[i] is None]
                chances = self.model.classify([prompts[i] for i in batch]) if batch else []
            yield [(i, max(scores, key=scores.__getitem__)) for i, scores in zip(batch, chances, strict=True)]


def _shuffled(questions: Sequence[Question], seed: int, torn: Container[Hashable]) -> list[Question]:
    """Each input's media change places: a medium is everywhere replaced by one and the same other medium.

    Those that are `torn` stay where they are, so that no other question gets them.
    """
    known: dict[str, dict[Hashable, Media]] = {}
    for question in questions:
        for segment in question.segments:
            if isinstance(segment, Media) and identity(segment) not in torn:
                known.setdefault(segment.name, {})[identity(segment)] = segment
    others: dict[Hashable, Media] = {}
    for name in sorted(known):
        keys = list(known[name])
        random.Random(f"{seed} {name}").shuffle(keys)
        others |= {key: known[name][other] for key, other in zip(keys, (*keys[1:], *keys[:1]), strict=True)}

    def other(segment: Any) -> Any:
        return others.get(identity(segment), segment) if isinstance(segment, Media) else segment

    return [replace(question, segments=list(map(other, question.segments))) for question in questions]


def _blind(questions: Sequence[Question]) -> list[Question]:
    blind = []
    for question in questions:
        kept = [not isinstance(segment, Media) for segment in question.segments]
        ends = list(itertools.accumulate(question.shot_lengths, initial=0))
        lengths = [sum(kept[start:end]) for start, end in itertools.pairwise(ends)]
        segments = list(itertools.compress(question.segments, kept))
        blind.append(replace(question, segments=segments, shot_lengths=lengths))
    return blind


def _without(question: Question, count: int) -> Question:
    """A question without the first `count` of its completed examples."""
    named = len(question.shots) // len(question.shot_lengths)
    return replace(
        question,
        segments=question.segments[sum(question.shot_lengths[:count]) :],
        shots=question.shots[count * named :],
        shot_lengths=question.shot_lengths[count:],
    )
