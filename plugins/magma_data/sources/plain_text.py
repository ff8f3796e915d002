"""The source `text`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from magma import Example, Text

from ..formats import FileFormat
from ..formats.row import Row
from .rows import RowSource, RowSourceConfig


class PlainText(RowSource):
    """Text alone, all of it target: `{"text": ...}`, or .txt files. The collator cuts what is too long."""

    name = "text"

    class Config(RowSourceConfig):
        """`documents` says what a document of a .txt file is."""

        names = ("text",)
        documents: Literal["line", "file"] = "line"
        """What a document is in a .txt file: a line, or the whole file."""

    config: Config

    @classmethod
    def file_formats(cls, config: RowSourceConfig) -> Sequence[FileFormat]:
        """Text files first."""
        assert isinstance(config, cls.Config)
        return ("lines" if config.documents == "line" else "documents", "datasets", "jsonl", "parquet", "csv", "json")

    def example(self, row: Row) -> Example:
        """The text is the target."""
        return Example([Text(row.text("text"), target=True)], row.where)
