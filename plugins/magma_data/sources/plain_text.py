"""The data source `text`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from magma import Example, Text

from ..formats import FileFormat
from ..formats.row import Row
from .rows import RowSource, RowSourceConfig


class PlainText(RowSource):
    """Text without media, all of it a target: `{"text": ...}`, or .txt files. Long texts are truncated."""

    name = "text"

    class Config(RowSourceConfig):
        """Keys of the data source."""

        names = ("text",)
        documents: Literal["line", "file"] = "line"
        """What a document is in a .txt file: a line, or the whole file."""

    config: Config

    @classmethod
    def file_formats(cls, config: RowSourceConfig) -> Sequence[FileFormat]:
        """Text files, then the others."""
        assert isinstance(config, cls.Config)
        return ("lines" if config.documents == "line" else "documents", "datasets", "jsonl", "parquet", "csv", "json")

    def example(self, row: Row) -> Example:
        """An example whose target is the text."""
        return Example([Text(row.text("text"), target=True)], row.where)
