"""The source `captions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from magma import Example, Text

from ..formats import IMAGES, FileFormat
from ..formats.row import Row
from .rows import MediaRowSource, MediaRowSourceConfig, RowSourceConfig


class Captions(MediaRowSource):
    """An image, and its caption: `{"image": ..., "caption": ...}`, or `captions`, of which each pass draws one."""

    name = "captions"

    class Config(MediaRowSourceConfig):
        """No prompt stands between image and caption, as in the paper (equation 3)."""

        names = ("caption", "captions")
        aliases: ClassVar = {"text": "caption"}

    @classmethod
    def file_formats(cls, config: RowSourceConfig) -> Sequence[FileFormat]:
        """That of the authors' code too."""
        return (*IMAGES, "authors")

    def example(self, row: Row) -> Example:
        """The caption is the target."""
        caption = row.one_of("caption", "captions")
        return Example([self.medium(row), Text(caption, target=True)], row.where)
