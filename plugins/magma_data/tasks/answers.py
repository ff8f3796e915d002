"""What tasks share whose answers get a score of their own: open questions and entailment."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence

from magma import Prediction, Question

from .rows import RowsTask


class ScoredAnswersTask(RowsTask):
    """Each answer has a score of its own, in percent."""

    primary_metric = "accuracy"
    score_unit = "percent"
    max_tokens = 12

    @abstractmethod
    def normalizer(self, answers: Sequence[str]) -> Callable[[str], str]:
        """What is done to a question's answers, and to the model's, before they are compared."""

    @abstractmethod
    def score_answer(self, text: str, answers: Sequence[str]) -> float:
        """How right the model's answer is."""

    def postprocess(self, question: Question, output: str) -> str:
        """Normalised, and as many words as the longest right answer has, at least one."""
        answers = reference_answers(question)
        form = self.normalizer(answers)
        normalized = form(super().postprocess(question, output))
        longest = max(1, *(len(form(answer).split()) for answer in answers))
        words = normalized.split()
        return normalized if len(words) <= longest else " ".join(words[:longest])

    def score_one(self, prediction: Prediction) -> tuple[str, float]:
        """The answer as it is compared, and 0 to 100."""
        if prediction.problem:
            return "", 0.0
        answers = reference_answers(prediction.question)
        return self.normalizer(answers)(prediction.text), self.score_answer(prediction.text, answers)

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """`accuracy` in percent, and `accuracy_<group>` for every group."""
        found: dict[str, list[float]] = defaultdict(list)
        for prediction in predictions:
            _, percent = self.score_one(prediction)
            found["accuracy"].append(percent)
            if group := prediction.question.group:
                found[f"accuracy_{group}"].append(percent)
        return {name: sum(percents) / len(percents) for name, percents in found.items()}


def reference_answers(question: Question) -> Sequence[str]:
    """Everything that people answered."""
    return question.answers or (question.answer,)
