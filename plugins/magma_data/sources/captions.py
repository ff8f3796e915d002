"""The source `captions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from magma import Example, Text

from ..formats import IMAGES, Layout
from ..formats.row import Row
from .rows import _Config, _Pairs, _Rows


class Captions(_Pairs):
    """An image, and its caption: `{"image": ..., "caption": ...}`, or `captions`, of which each pass draws one."""

    name = "captions"

    class Config(_Config):
        """No prompt stands between image and caption, as in the paper (equation 3)."""

        names = ("caption", "captions")
        aliases: ClassVar = {"text": "caption"}

    @classmethod
    def layouts(cls, config: _Rows) -> Sequence[Layout]:
        """That of the authors' code too."""
        return (*IMAGES, "authors")

    def example(self, row: Row) -> Example:
        """The caption is the target."""
        caption = row.one_of("caption", "captions")
        return Example([self.medium(row), Text(caption, target=True)], row.where)
