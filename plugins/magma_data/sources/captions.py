"""The data source `captions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import field_validator

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
        template: str = "{caption}"
        """The text that is trained. `"A picture of {caption}."` makes sentences of names."""

        @field_validator("template")
        @classmethod
        def _holds_the_caption(cls, template: str) -> str:
            if template.count("{caption}") != 1:
                raise ValueError(f"a text that contains {{caption}} once, not {template!r}")
            return template

    config: Config

    @classmethod
    def file_formats(cls, config: RowSourceConfig) -> Sequence[FileFormat]:
        """All formats of images with texts, and the one of the authors' code."""
        return (*IMAGES, "authors")

    def example(self, row: Row) -> Example:
        """An example whose target is the caption."""
        text = Text.fill(self.config.template, caption=row.one_of("caption", "captions"))
        return Example([self.medium(row), replace(text, target=True)], row.where)
