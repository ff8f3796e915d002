"""The data source `captions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from magma import Example, Text

from ..formats import IMAGES, FileFormat
from ..formats.row import Row
from .rows import MediaRowSource, MediaRowSourceConfig, RowSourceConfig


class Captions(MediaRowSource):
    """An image and its caption: `{"image": ..., "caption": ...}`, or `captions`, of which each epoch draws one."""

    name = "captions"

    class Config(MediaRowSourceConfig):
        """Keys of the data source. As in the paper (equation 3), there is no prompt between image and caption."""

        names = ("caption", "captions")
        aliases: ClassVar = {"text": "caption"}

    @classmethod
    def file_formats(cls, config: RowSourceConfig) -> Sequence[FileFormat]:
        """All formats of images with texts, and the one of the authors' code."""
        return (*IMAGES, "authors")

    def example(self, row: Row) -> Example:
        """An example whose target is the caption."""
        caption = row.one_of("caption", "captions")
        return Example([self.medium(row), Text(caption, target=True)], row.where)
