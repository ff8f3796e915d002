"""The source `labelled`."""

from __future__ import annotations

from magma import Example, Text

from ..formats.row import Row
from .rows import MediaRowSource, MediaRowSourceConfig


class Labelled(MediaRowSource):
    """An image, a text, and the label of the two: `{"image": ..., "text": ..., "label": ...}`.

    Or all texts about an image in a list: `{"image": ..., "statements": [{"text": ..., "label": ...}, ...]}`.
    """

    name = "labelled"

    class Config(MediaRowSourceConfig):
        """`template` is what the model reads behind the image."""

        names = ("text", "label", "statements")
        template: str = "{text}"
        """The text after the medium; `{text}` is the row's text."""

    config: Config
    list_field = "statements"

    def example(self, row: Row) -> Example:
        """For a model with a head."""
        text = Text.fill(self.config.template, text=row.text("text"))
        return Example([self.medium(row), text], row.where, label=row.text("label"))
