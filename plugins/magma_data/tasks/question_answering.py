"""The paper's evaluations whose answers are right or wrong: open questions (section 4.1.1), entailment (4.1.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field

from magma import LocalPath, Prediction, Text

from ..formats.row import Row
from ..metrics.vqa_accuracy import MIN_ANSWERS, choose_normalizer, exact_match, normalize_exact, vqa_accuracy
from .answers import ScoredAnswersTask, reference_answers
from .rows import RowsConfig


class _OpenQuestionConfig(RowsConfig):
    """`template` is the prompt; a space and the answer follow it in a completed example (figure 3)."""

    names = ("id", "question", "answer", "answers", "questions", "answer_type", "question_type", "group")
    template: str = "Q: {question} A:"
    """The prompt after the medium."""


class _OpenQuestionTask(ScoredAnswersTask):
    """Questions with answers in words."""

    config: _OpenQuestionConfig
    list_field = "questions"

    def prompt(self, row: Row) -> Text:
        return Text.fill(self.config.template, question=row.text("question"))

    def answers(self, row: Row) -> list[str]:
        return row.texts("answer", "answers")


class _VqaAccuracyTask(_OpenQuestionTask):
    """Scored as VQA v2 officially is: by how many of ten people gave the answer.

    With fewer answers than that measure needs to reach 100, a prediction that is one of them is right.
    """

    def normalizer(self, answers: Sequence[str]) -> Callable[[str], str]:
        return choose_normalizer(answers) if len(answers) >= MIN_ANSWERS else normalize_exact

    def score_answer(self, text: str, answers: Sequence[str]) -> float:
        return (vqa_accuracy if len(answers) >= MIN_ANSWERS else exact_match)(text, answers)

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        few = sum(len(reference_answers(prediction.question)) < MIN_ANSWERS for prediction in predictions)
        if not few:
            return {"accuracy": "VQA accuracy"}
        said = f"exact match, fewer than {MIN_ANSWERS} answers a question"
        if few < len(predictions):
            said = (
                f"exact match of {few} questions with fewer than {MIN_ANSWERS} answers, VQA accuracy of the other "
                f"{len(predictions) - few}"
            )
        return {"accuracy": said}


class Vqa2Task(_VqaAccuracyTask):
    """VQA 2.0, scored as its official evaluation does; also by type of answer."""

    name = "vqa2"
    group_field = "answer_type"

    class Config(_OpenQuestionConfig):
        """Validation questions, behind training ones."""

        path: LocalPath = Field("vqa2", validate_default=True)
        """A folder of rows in any layout of data sources, such as `magma data convert` writes."""
        split: str = "val"
        """The split whose questions are asked."""


class OkVqaTask(_VqaAccuracyTask):
    """OK-VQA, scored as VQA 2.0; also by topic."""

    name = "okvqa"
    group_field = "group"

    class Config(_OpenQuestionConfig):
        """Validation questions, behind training ones."""

        path: LocalPath = Field("okvqa", validate_default=True)
        """A folder of rows in any layout of data sources, such as `magma data convert` writes."""
        split: str = "val"
        """The split whose questions are asked."""


class VizWizTask(_VqaAccuracyTask):
    """VizWiz, scored as VQA 2.0; also by type of answer, "unanswerable" among them."""

    name = "vizwiz"
    group_field = "answer_type"

    class Config(_OpenQuestionConfig):
        """Validation questions, behind training ones."""

        path: LocalPath = Field("vizwiz", validate_default=True)
        """A folder of rows in any layout of data sources, such as `magma data convert` writes."""
        split: str = "val"
        """The split whose questions are asked."""


class GqaTask(_OpenQuestionTask):
    """GQA: the one right answer, or not; also by structural type of question."""

    name = "gqa"
    group_field = "question_type"

    class Config(_OpenQuestionConfig):
        """Balanced questions of testdev, behind training ones."""

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
