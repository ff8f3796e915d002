"""Visual question answering tasks of the paper (section 4.1.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field

from magma import LocalPath, Prediction, Text

from ..formats.row import Row
from ..metrics.vqa_accuracy import MIN_ANSWERS, choose_normalizer, exact_match, normalize_exact, vqa_accuracy
from .answers import ScoredAnswersTask, reference_answers
from .rows import RowsConfig


class _OpenQuestionConfig(RowsConfig):
    """Keys of question answering tasks. The prompt is the one of the paper (figure 3)."""

    names = ("id", "question", "answer", "answers", "questions", "answer_type", "question_type", "group")
    template: str = "Q: {question} A:"
    """The prompt after the medium."""


class _OpenQuestionTask(ScoredAnswersTask):
    """Base class of question answering tasks."""

    config: _OpenQuestionConfig
    list_field = "questions"

    def prompt(self, row: Row) -> Text:
        return Text.fill(self.config.template, question=row.text("question"))

    def answers(self, row: Row) -> list[str]:
        return row.texts("answer", "answers")


class _VqaAccuracyTask(_OpenQuestionTask):
    """Base class of tasks with VQA accuracy, the official score of VQA v2 for ten reference answers.

    With fewer than `MIN_ANSWERS` reference answers, which is too few for VQA accuracy, the score is exact match.
    """

    def normalizer(self, answers: Sequence[str]) -> Callable[[str], str]:
        return choose_normalizer(answers) if len(answers) >= MIN_ANSWERS else normalize_exact

    def score_answer(self, text: str, answers: Sequence[str]) -> float:
        return (vqa_accuracy if len(answers) >= MIN_ANSWERS else exact_match)(text, answers)

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        few = sum(len(reference_answers(prediction.question)) < MIN_ANSWERS for prediction in predictions)
        if not few:
            return {"accuracy": "VQA accuracy"}
        measure = f"exact match, fewer than {MIN_ANSWERS} answers per question"
        if few < len(predictions):
            measure = (
                f"exact match of {few} questions with fewer than {MIN_ANSWERS} answers, VQA accuracy of the other "
                f"{len(predictions) - few}"
            )
        return {"accuracy": measure}


class Vqa2Task(_VqaAccuracyTask):
    """VQA 2.0 with the official VQA accuracy, also by answer type."""

    name = "vqa2"
    group_field = "answer_type"

    class Config(_OpenQuestionConfig):
        """Keys of the task. Questions are from `val`, few-shot examples from `train`."""

        path: LocalPath = Field("vqa2", validate_default=True)
        """A folder of rows in any layout of data sources, such as `magma data convert` writes."""
        split: str = "val"
        """The split whose questions are asked."""


class OkVqaTask(_VqaAccuracyTask):
    """OK-VQA with VQA accuracy, also by topic."""

    name = "okvqa"
    group_field = "group"

    class Config(_OpenQuestionConfig):
        """Keys of the task. Questions are from `val`, few-shot examples from `train`."""

        path: LocalPath = Field("okvqa", validate_default=True)
        """A folder of rows in any layout of data sources, such as `magma data convert` writes."""
        split: str = "val"
        """The split whose questions are asked."""


class VizWizTask(_VqaAccuracyTask):
    """VizWiz with VQA accuracy, also by answer type, including "unanswerable"."""

    name = "vizwiz"
    group_field = "answer_type"

    class Config(_OpenQuestionConfig):
        """Keys of the task. Questions are from `val`, few-shot examples from `train`."""

        path: LocalPath = Field("vizwiz", validate_default=True)
        """A folder of rows in any layout of data sources, such as `magma data convert` writes."""
        split: str = "val"
        """The split whose questions are asked."""


class GqaTask(_OpenQuestionTask):
    """GQA with exact match, also by structural type of the question."""

    name = "gqa"
    group_field = "question_type"

    class Config(_OpenQuestionConfig):
        """Keys of the task. Questions are balanced ones of `testdev`, few-shot examples from `train`."""

        path: LocalPath = Field("gqa", validate_default=True)
        """A folder of rows in any layout of data sources, such as `magma data convert` writes."""
        split: str = "testdev"
        """The split whose questions are asked."""

    def normalizer(self, answers: Sequence[str]) -> Callable[[str], str]:
        return normalize_exact

    def score_answer(self, text: str, answers: Sequence[str]) -> float:
        return exact_match(text, answers)

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        return {"accuracy": "exact match"}
