"""Visual entailment (section 4.1.3 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field

from magma import LocalPath, Prediction, Text

from ..formats.row import Row
from .answers import ScoredAnswersTask
from .rows import RowsConfig


class SnliVeTask(ScoredAnswersTask):
    """SNLI-VE, for a model with a head: accuracy of the class, also by label."""

    name = "snli_ve"
    list_field = "statements"
    group_field = "label"

    class Config(RowsConfig):
        """Keys of the task. `template` has to be the one of the data source `labelled` in training."""

        path: LocalPath = Field("snli_ve", validate_default=True)
        """A folder of rows in any layout of data sources, such as `magma data convert` writes."""
        split: str = "test"
        """The split whose questions are asked."""
        names = ("id", "text", "label", "statements")
        template: str = "{text}"
        """The prompt after the medium."""

    config: Config

    def prompt(self, row: Row) -> Text:
        return Text.fill(self.config.template, text=row.text("text"))

    def answers(self, row: Row) -> list[str]:
        return [row.text("label")]

    def normalizer(self, answers: Sequence[str]) -> Callable[[str], str]:
        return _normalize_label

    def score_answer(self, text: str, answers: Sequence[str]) -> float:
        return 100.0 * (_normalize_label(text) in map(_normalize_label, answers))

    def measures(self, predictions: Sequence[Prediction]) -> dict[str, str]:
        return {"accuracy": "fraction of correct classes"}


def _normalize_label(text: str) -> str:
    return text.strip().lower()
