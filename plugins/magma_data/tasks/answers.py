"""Base class of tasks in which each answer has a score: question answering and entailment."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

from magma import Prediction, Question

from .rows import RowsTask


class ScoredAnswersTask(RowsTask):
    """A task in which each answer has a score in percent; accuracy is the mean."""

    primary_metric = "accuracy"
    score_unit = "percent"
    max_tokens = 12

    @abstractmethod
    def normalizer(self, answers: Sequence[str]) -> Callable[[str], str]:
        """The normalisation of reference answers and prediction, before they are compared."""

    @abstractmethod
    def score_answer(self, text: str, answers: Sequence[str]) -> float:
        """The score of an answer, 0 to 100."""

    def postprocess(self, question: Question, output: str) -> str:
        """Normalise, and truncate to the number of words of the longest reference answer, at least one."""
        answers = reference_answers(question)
        normalize = self.normalizer(answers)
        normalized = normalize(super().postprocess(question, output))
        longest = max(1, *(len(normalize(answer).split()) for answer in answers))
        words = normalized.split()
        return normalized if len(words) <= longest else " ".join(words[:longest])

    def score_one(self, prediction: Prediction) -> tuple[str, float]:
        """The normalised answer, and its score, 0 to 100."""
        if prediction.problem:
            return "", 0.0
        answers = reference_answers(prediction.question)
        return self.normalizer(answers)(prediction.text), self.score_answer(prediction.text, answers)

    def item_scores(self, prediction: Prediction) -> dict[str, float]:
        """`accuracy` in percent, and `accuracy_<group>` for each group."""
        group = prediction.question.group
        names = ("accuracy", *([f"accuracy_{group}"] if group else []))
        return dict.fromkeys(names, self.score_one(prediction)[1])


def reference_answers(question: Question) -> Sequence[str]:
    """All reference answers of a question."""
    return question.answers or (question.answer,)
