"""Run a model on a task's questions, with the two control runs that show how much the media matter."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Collection, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from ..errors import InputError, TooLong, bullet_list
from ..generation.decoding import Decoding
from ..generation.likelihood import Likelihood
from ..interfaces import Task
from ..model import Magma
from ..recipe.schema import MAX_UNREADABLE
from ..values import Media, Prediction, Question, Text
from .prefix_sharing import PrefixCachedGenerator, drop_empty_texts, prompt_error, segment_key, unreadable_error

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
    """Run a model on every question of a task, with greedy decoding, and again for each control run.

    The control runs are "shuffled", in which every question gets the media of another question, and "blind", without
    media. Questions without media are not asked again. A question without any content is answered with an empty text. A
    question that cannot be read has a `problem` and counts as wrong.

    Args:
        model: The model.
        task: The task.
        split: Split of the task's data.
        shots: Number of in-context examples before each question.
        seed: Draws the in-context examples and shuffles the media.
        batch_size: Questions in a batch.
        baselines: The runs; "" is the model itself.
        progress: Called with the number of answers so far and the number of all answers.
        max_unreadable: The largest fraction of questions that may be unreadable.
        fewer_shots: Whether a question that is too long is asked with fewer in-context examples.

    Returns:
        The predictions in the order of the questions, one run after the other. `Task.score` computes scores of those
        of one run.

    Raises:
        InputError: If more questions cannot be read than `max_unreadable` allows.
        TooLong: If a question does not fit, even without in-context examples, or `fewer_shots` is False.

    Example:
        >>> predictions = magma.evaluate(model, task, shots=4)
        >>> task.score([p for p in predictions if p.baseline == ""])
    """
    runner = TaskRunner(model, task, batch_size, fewer_shots)
    questions = list(task.questions(split, shots, seed))
    total, done = len(questions) * len(baselines), 0
    predictions: list[Prediction] = []
    same: dict[int, Prediction] = {}
    for baseline in baselines:
        answered = {i: replace(prediction, baseline=baseline) for i, prediction in same.items()}
        done += len(answered)
        for found in runner.run(questions, baseline, seed, answered=list(answered), max_unreadable=max_unreadable):
            answered |= found
            done += len(found)
            progress(done, total)
        if not baseline:
            same = {i: prediction for i, prediction in answered.items() if not prediction.uses_media}
        predictions += [answered[i] for i in sorted(answered)]
    return predictions


def check_readable(problems: Sequence[str], asked: int, limit: float) -> None:
    """Raise `InputError` if a larger fraction of the `asked` questions than `limit` cannot be read, or all of them.

    A single one is allowed unless `limit` is 0: of a few questions it is a large fraction.
    """
    if problems and (len(problems) == asked or len(problems) > max(limit * asked, 1 if limit else 0)):
        raise InputError(
            f"{len(problems)} of {asked} questions cannot be read, and max_unreadable allows a fraction of {limit:g}:"
            f"{bullet_list(problems)}"
        )


class _Result(NamedTuple):
    """What the model gives for one question."""

    output: str = ""
    problem: str = ""
    """Why the question could not be asked."""
    likelihood: Likelihood | None = None
    """Of the question's continuation, if it has one."""


class TaskRunner:
    """Runs one model on a task's questions. Prefixes that questions share are computed once (`prefix_sharing`).

    The task may show only in-context examples that the model can read.
    """

    def __init__(self, model: Magma, task: Task, batch_size: int, fewer_shots: bool = True) -> None:
        """`fewer_shots`: leave out in-context examples of a question that is too long."""
        self.model, self.task, self.batch_size, self.fewer_shots = model, task, batch_size, fewer_shots
        self.collator = model.collator()
        decoding = Decoding(max_tokens=task.max_tokens, stop=task.stop)
        self.generator = PrefixCachedGenerator(model, decoding, batch_size)
        self.not_shown: list[str] = []
        """Why the task must not show a medium, once for each of them."""
        self._known: set[str] = set()
        self.unreadable: set[Hashable] = set()
        """Media of questions that could not be read. The shuffled run leaves them where they are."""
        task.can_read = self.can_read

    def can_read(self, medium: Media) -> bool:
        """Whether the model can read this medium of an in-context example."""
        if medium.name not in self.collator.inputs:
            return True  # the error about the missing input comes with the question
        problem = unreadable_error(self.collator, [medium], "an in-context example")
        if problem and str(problem) not in self._known:
            self._known.add(str(problem))
            self.not_shown.append(str(problem))
        return problem is None

    def run(
        self,
        questions: Iterable[Question],
        baseline: Baseline,
        seed: int,
        *,
        window: int | None = None,
        answered: Collection[int] = (),
        max_unreadable: float = MAX_UNREADABLE,
    ) -> Iterator[dict[int, Prediction]]:
        """Answer questions, and the follow-up questions that the task asks after an answer.

        Args:
            questions: In order; a question's number is its position.
            baseline: The control run, or "".
            seed: Shuffles the media.
            window: Questions that are held in memory, and whose media are shuffled among each other; None: all.
            answered: Numbers of questions that have a readable answer already and are left out.
            max_unreadable: The largest fraction of questions so far that may be unreadable, after each window.

        Yields:
            Batch by batch, the predictions by the number of the question.

        Raises:
            InputError: If too many questions cannot be read.
            TooLong: If a question does not fit.
        """
        numbered = enumerate(questions)
        done, problems = len(answered), dict[int, str]()
        while chunk := list(itertools.islice(numbered, window)):
            first = chunk[0][0]
            skip = {number - first for number in answered}
            for batch in self._window([question for _, question in chunk], baseline, seed, skip):
                found = {first + i: batch[i] for i in sorted(batch)}
                done += len(found)
                problems |= {number: p.problem for number, p in found.items() if p.problem}
                yield found
            check_readable([problems[number] for number in sorted(problems)], done, max_unreadable)

    def _window(
        self, questions: Sequence[Question], baseline: Baseline, seed: int, skip: Container[int]
    ) -> Iterator[dict[int, Prediction]]:
        """Batch by batch, the predictions of one window by index, without those to `skip`."""
        asked = [self._with_segments(question) for question in questions]
        if baseline:
            asked = _shuffle_media(asked, seed, self.unreadable) if baseline == "shuffled" else _drop_media(asked)
        waiting = {i: question for i, question in enumerate(asked) if i not in skip}
        dropped: dict[int, int] = {}
        with_media: set[int] = set()
        while waiting:
            with_media |= {i for i, q in waiting.items() if any(isinstance(s, Media) for s in q.segments)}
            following: dict[int, Question] = {}
            shortened: dict[int, tuple[Question, int]] = {}
            for batch in self._batches(waiting, shortened):
                final = {}
                for i, result in batch:
                    question, problem, found = waiting[i], result.problem, result.likelihood
                    text = "" if problem or found else self.task.postprocess(question, result.output)
                    prediction = Prediction(question, text, baseline, result.output, problem, dropped.get(i, 0))
                    if found:
                        prediction.log_likelihood, prediction.num_tokens = found.total, found.num_tokens
                    prediction.uses_media = i in with_media
                    follow_up = None if problem else self.task.follow_up(prediction)
                    if follow_up is None:
                        final[i] = prediction
                    else:
                        following[i] = self._with_segments(follow_up)
                if final:
                    yield final
            for i, (shorter, count) in shortened.items():
                following[i] = shorter
                dropped[i] = dropped.get(i, 0) + count
            waiting = following

    def _with_segments(self, question: Question) -> Question:
        return replace(question, segments=[self.collator.segment(value) for value in question.segments])

    def _shortened(self, question: Question, error: TooLong) -> tuple[Question, int]:
        """Keep as many in-context examples of a question as fit, the last ones.

        Returns:
            The shorter question, and the number of examples that were left out.

        Raises:
            TooLong: If leaving out examples is not allowed, or does not help.
        """
        if not self.fewer_shots:
            raise error
        shots = len(question.shot_lengths)

        def error_with(kept: int) -> InputError | None:
            return self._error(_drop_shots(question, shots - kept))

        def too_long(kept: int) -> bool:
            return isinstance(error_with(kept), TooLong)

        shortest = error_with(0) if shots else error
        if isinstance(shortest, TooLong):
            raise shortest
        # Each try reads every medium. Doubling the number first is fast where only few of very many fit.
        too_many = 1
        while too_many < shots and not too_long(too_many):
            too_many *= 2
        kept = bisect.bisect_left(range(too_many // 2 + 1, min(too_many, shots)), True, key=too_long) + too_many // 2
        return _drop_shots(question, shots - kept), shots - kept

    def _batches(
        self, questions: Mapping[int, Question], shortened: dict[int, tuple[Question, int]]
    ) -> Iterator[list[tuple[int, _Result]]]:
        """Batches of (number, result) of each question; an empty question has an empty output.

        A question that is too long is left out, and `shortened` gets what `_shortened` makes of it.
        """
        if empty := [(i, _Result()) for i, q in questions.items() if not drop_empty_texts(q.segments)]:
            yield empty
        remaining = [i for i, q in questions.items() if drop_empty_texts(q.segments)]
        refused: list[tuple[int, _Result]] = []

        def refuse(number: int, error: InputError) -> None:
            if isinstance(error, TooLong):
                shortened[remaining[number]] = self._shortened(questions[remaining[number]], error)
                return
            refused.append((remaining[number], _Result(problem=str(error))))
            media = [s for s in questions[remaining[number]].segments if isinstance(s, Media)]
            self.unreadable |= {
                segment_key(medium) for medium in media if unreadable_error(self.collator, [medium], medium.name)
            }

        for batch in self._results([questions[i] for i in remaining], refuse):
            yield [(remaining[i], result) for i, result in batch]
            if refused:
                yield refused
                refused = []

    def _results(
        self, questions: Sequence[Question], refuse: Callable[[int, InputError], None]
    ) -> Iterator[list[tuple[int, _Result]]]:
        """Batches of (index, result); `refuse` gets the index of a question that cannot be read."""
        measured = [i for i, question in enumerate(questions) if question.continuation is not None]
        answered = [i for i, question in enumerate(questions) if question.continuation is None]
        prompts = [question.segments for question in questions]
        if self.model.head is None:
            asked = [prompts[i] for i in answered]
            names = [f"question {questions[i].id}" for i in answered]
            for batch in self.generator.answers(asked, names, lambda i, error: refuse(answered[i], error)):
                yield [(answered[i], _Result(output)) for i, output in batch]
        else:
            yield from self._in_batches(answered, questions, refuse, self._classify)
        yield from self._in_batches(measured, questions, refuse, self._measure)

    def _in_batches(
        self,
        numbers: Sequence[int],
        questions: Sequence[Question],
        refuse: Callable[[int, InputError], None],
        compute: Callable[[Sequence[Question]], list[_Result]],
    ) -> Iterator[list[tuple[int, _Result]]]:
        """As `_results`, for some of the questions, with what `compute` gives for a batch of them."""
        for at in range(0, len(numbers), self.batch_size):
            batch = numbers[at : at + self.batch_size]
            try:
                results = compute([questions[i] for i in batch])
            except InputError:
                problems = {i: self._error(questions[i]) for i in batch}
                if not any(problems.values()):
                    raise
                for i, problem in problems.items():
                    if problem:
                        refuse(i, problem)
                batch = [i for i in batch if problems[i] is None]
                results = compute([questions[i] for i in batch]) if batch else []
            yield list(zip(batch, results, strict=True))

    def _classify(self, questions: Sequence[Question]) -> list[_Result]:
        """The most probable class of each question."""
        found = self.model.classify([question.segments for question in questions])
        return [_Result(max(scores, key=scores.__getitem__)) for scores in found]

    def _measure(self, questions: Sequence[Question]) -> list[_Result]:
        """The likelihood of each question's continuation."""
        texts = [question.continuation or "" for question in questions]
        found = self.model.likelihoods([drop_empty_texts(question.segments) for question in questions], texts)
        return [_Result(likelihood=one) for one in found]

    def _error(self, question: Question) -> InputError | None:
        """The error of a question that cannot be read or is too long."""
        prompt = drop_empty_texts([*question.segments, Text(question.continuation or "")])
        return prompt_error(self.collator, prompt, f"question {question.id}")


def _shuffle_media(questions: Sequence[Question], seed: int, unreadable: Container[Hashable]) -> list[Question]:
    """Shuffle each input's media: every occurrence of a medium is replaced by the same other medium.

    Those that are `unreadable` stay where they are, so that no other question gets them.
    """
    known: dict[str, dict[Hashable, Media]] = {}
    for question in questions:
        for segment in question.segments:
            if isinstance(segment, Media) and segment_key(segment) not in unreadable:
                known.setdefault(segment.name, {})[segment_key(segment)] = segment
    others: dict[Hashable, Media] = {}
    for name in sorted(known):
        keys = list(known[name])
        random.Random(f"{seed} {name}").shuffle(keys)
        others |= {key: known[name][other] for key, other in zip(keys, (*keys[1:], *keys[:1]), strict=True)}

    def other(segment: Any) -> Any:
        return others.get(segment_key(segment), segment) if isinstance(segment, Media) else segment

    return [replace(question, segments=list(map(other, question.segments))) for question in questions]


def _drop_media(questions: Sequence[Question]) -> list[Question]:
    """Remove all media."""
    blind = []
    for question in questions:
        kept = [not isinstance(segment, Media) for segment in question.segments]
        ends = list(itertools.accumulate(question.shot_lengths, initial=0))
        lengths = [sum(kept[start:end]) for start, end in itertools.pairwise(ends)]
        segments = list(itertools.compress(question.segments, kept))
        blind.append(replace(question, segments=segments, shot_lengths=lengths))
    return blind


def _drop_shots(question: Question, count: int) -> Question:
    """A question without the first `count` of its in-context examples."""
    named = len(question.shots) // len(question.shot_lengths)
    return replace(
        question,
        segments=question.segments[sum(question.shot_lengths[:count]) :],
        shots=question.shots[count * named :],
        shot_lengths=question.shot_lengths[count:],
    )
