"""The data source `vqa`."""

from __future__ import annotations

from magma import Example, Text

from ..formats.row import Row
from .rows import MediaRowSource, MediaRowSourceConfig


class Vqa(MediaRowSource):
    """An image, a question and its answer: `{"image": ..., "question": ..., "answer": ...}`, or `answers`.

    Or a list of all questions about an image: `{"image": ..., "questions": [{"question": ..., "answers": ...}, ...]}`.
    """

    name = "vqa"

    class Config(MediaRowSourceConfig):
        """Keys of the data source. The prompt is the one of the paper (section 4.1.1)."""

        names = ("question", "answer", "answers", "questions")
        template: str = "Q: {question} A:"
        """The prompt after the medium; a space and the answer follow it."""

    config: Config
    list_field = "questions"

    def example(self, row: Row) -> Example:
        """An example whose target is the answer."""
        prompt = Text.fill(self.config.template, question=row.text("question"))
        answer = row.one_of("answer", "answers")
        return Example([self.medium(row), prompt, Text(f" {answer}", target=True)], row.where)
