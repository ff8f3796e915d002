"""Something said about images, or said alone: captions, questions and answers, labels, plain text.

Where rows come from and in which order is the matter of `formats`; here is what a model sees of one, and says.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from pydantic import Field

from magma import CheckInputs, DataSource, Example, InputError, LocalPath, Media, PartConfig, SourceState

from ..formats import BUFFER, IMAGES, FileFormat, find, is_url, open_rows
from ..formats.columns import ColumnsConfig, MediaConfig
from ..formats.order import Rows
from ..formats.row import Row


class RowSourceConfig(ColumnsConfig):
    """Where the rows are, and in which order they come."""

    renamed_keys = MappingProxyType({"about": "source_url"})

    path: LocalPath
    """A folder, one file, or the url of tar shards."""
    split: str | None = None
    """Reads the split of this name alone (`SPLIT.jsonl`, `SPLIT-*.tar`); all rows where it is not given."""
    shuffle: bool = True
    """A new order every pass."""
    limit: int | None = Field(None, ge=1)
    """The first rows alone."""
    buffer: int = Field(BUFFER, ge=1)
    """Of what is read in sequence (tar, parquet): so many neighbours on disk are shuffled among themselves."""
    source_url: str = ""
    """Where the data set comes from: said where it is missing."""


class MediaRowSourceConfig(RowSourceConfig, MediaConfig):
    """Rows with a medium."""


class RowSource(DataSource):
    """Rows as examples."""

    config: RowSourceConfig
    list_field: ClassVar[str | None] = None
    """The list of a record that is a row for each of its entries."""

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.seed = seed

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """Six rows about three images."""
        from PIL import Image

        for i in range(3):
            Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(folder / f"{i}.png")
        said = {"caption": "red", "question": "How red?", "answer": "very", "text": "It is red.", "label": "true"}
        rows = [{"image": f"{i % 3}.png", **{key: f"{text} {i}" for key, text in said.items()}} for i in range(6)]
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return CheckInputs({"path": str(folder)})

    @classmethod
    def problems(cls, config: RowSourceConfig) -> list[str]:
        """A path that is not there, or a folder without rows."""
        if not is_url(config.path) and not Path(config.path).exists():
            source = f"; get it from {config.source_url}" if config.source_url else ""
            return [
                f"path: given {config.path!r}, which is neither beside the recipe nor in $MAGMA_DATA nor in the "
                f"working folder{source}. It is a folder of rows in one of several layouts (docs/recipes.md); set "
                "`path` to it, or MAGMA_DATA to the folder that holds it"
            ]
        found = find(config.path, config.split, cls.file_formats(config))
        return [*(found if isinstance(found, list) else []), *config.missing()]

    @classmethod
    def file_formats(cls, config: RowSourceConfig) -> Sequence[FileFormat]:
        """Those that it looks for."""
        return IMAGES

    @cached_property
    def rows(self) -> Rows:
        """Every row, found at the first use."""
        if problems := self.problems(self.config):
            raise InputError("; ".join(problems))
        config = self.config
        file_formats = self.file_formats(config)
        columns = config.resolve_columns()
        return open_rows(
            config.path, config.split, self.list_field, file_formats=file_formats, buffer=config.buffer, columns=columns
        )

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        """One pass, shuffled by seed and pass unless the config says otherwise."""
        config = self.config
        for row, after in self.rows.iterate(state, self.seed, config.shuffle, config.limit):
            try:
                example = self.example(row)
            except InputError as error:
                example = Example([], row.where, problem=str(error))
            yield example, after

    @abstractmethod
    def example(self, row: Row) -> Example:
        """What a row says. Raises `InputError`."""


class MediaRowSource(RowSource):
    """Rows with a medium."""

    config: MediaRowSourceConfig

    def medium(self, row: Row) -> Media:
        """What is seen or heard."""
        return Media(self.config.input, row.medium)
