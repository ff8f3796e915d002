"""The data source `labelled`."""

from __future__ import annotations

from magma import Example, Text

from ..formats.row import Row
from .rows import MediaRowSource, MediaRowSourceConfig


class Labelled(MediaRowSource):
    """An image, a text, and their label: `{"image": ..., "text": ..., "label": ...}`.

    Or a list of all texts about an image: `{"image": ..., "statements": [{"text": ..., "label": ...}, ...]}`.
    """

    name = "labelled"

    class Config(MediaRowSourceConfig):
        """Keys of the data source."""

        names = ("text", "label", "statements")
        template: str = "{text}"
        """The text after the medium; `{text}` is the row's text."""

    config: Config
    list_field = "statements"

    def example(self, row: Row) -> Example:
        """An example with a label, for a model with a head."""
        text = Text.fill(self.config.template, text=row.text("text"))
        return Example([self.medium(row), text], row.where, label=row.text("label"))
