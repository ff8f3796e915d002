"""Base classes of data sources: a row of a file becomes an example.

`formats` finds the rows and their order; a subclass converts a row to prompt and target.
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

from ..formats import DEFAULT_BUFFER, IMAGES, FileFormat, find, is_url, open_rows
from ..formats.columns import ColumnsConfig, MediaConfig
from ..formats.order import Rows
from ..formats.row import Row


class RowSourceConfig(ColumnsConfig):
    """Keys of all data sources of rows."""

    renamed_keys = MappingProxyType({"about": "source_url"})

    path: LocalPath
    """A folder of rows, one file, or the URL of tar shards."""
    split: str | None = None
    """Read only this split (`SPLIT.jsonl`, `SPLIT-*.tar`, ...). Default: all rows."""
    shuffle: bool = True
    """Use a new order in every epoch."""
    limit: int | None = Field(None, ge=1)
    """Use only the first rows."""
    buffer: int = Field(DEFAULT_BUFFER, ge=1)
    """For data that is read sequentially (tar, parquet, compressed text): number of neighbouring samples that are
    shuffled among themselves."""
    source_url: str = ""
    """Where the data set comes from. It is shown when the data is missing."""


class MediaRowSourceConfig(RowSourceConfig, MediaConfig):
    """Keys of all data sources of rows with a medium."""


class RowSource(DataSource):
    """Base class of data sources of rows."""

    config: RowSourceConfig
    list_field: ClassVar[str | None] = None
    """The field with a list, each entry of which is a row."""

    def __init__(self, config: PartConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.seed = seed

    @classmethod
    def check_inputs(cls, folder: Path) -> CheckInputs:
        """A configuration with six rows about three images."""
        from PIL import Image

        for i in range(3):
            Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(folder / f"{i}.png")
        texts = {"caption": "red", "question": "How red?", "answer": "very", "text": "It is red.", "label": "true"}
        rows = [{"image": f"{i % 3}.png", **{key: f"{text} {i}" for key, text in texts.items()}} for i in range(6)]
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return CheckInputs({"path": str(folder)})

    @classmethod
    def problems(cls, config: RowSourceConfig) -> list[str]:
        """A missing path, or a folder without rows."""
        if not is_url(config.path) and not Path(config.path).exists():
            source = f"; download it from {config.source_url}" if config.source_url else ""
            return [
                f"path: given {config.path!r}, which is neither beside the recipe nor in $MAGMA_DATA nor in the "
                f"working directory{source}. Allowed: a folder of rows (docs/guides/data.md); set `path` to it, or "
                "MAGMA_DATA to the folder that contains it"
            ]
        found = find(config.path, config.split, cls.file_formats(config))
        return [*(found if isinstance(found, list) else []), *config.missing()]

    @classmethod
    def file_formats(cls, config: RowSourceConfig) -> Sequence[FileFormat]:
        """The file formats that this data source reads, in order of preference."""
        return IMAGES

    @cached_property
    def rows(self) -> Rows:
        """All rows; the files are opened at the first use. Raises `InputError`."""
        if problems := self.problems(self.config):
            raise InputError("; ".join(problems))
        config = self.config
        file_formats = self.file_formats(config)
        columns = config.resolve_columns()
        return open_rows(
            config.path, config.split, self.list_field, file_formats=file_formats, buffer=config.buffer, columns=columns
        )

    def iterate(self, state: SourceState | None = None) -> Iterator[tuple[Example, SourceState]]:
        """One epoch, in a new order for each epoch if `shuffle` is on."""
        config = self.config
        for row, after in self.rows.iterate(state, self.seed, config.shuffle, config.limit):
            try:
                example = self.example(row)
            except InputError as error:
                example = Example([], row.where, problem=str(error))
            yield example, after

    @abstractmethod
    def example(self, row: Row) -> Example:
        """Convert a row to an example. Raises `InputError`."""


class MediaRowSource(RowSource):
    """Base class of data sources of rows with a medium."""

    config: MediaRowSourceConfig

    def medium(self, row: Row) -> Media:
        """The medium of a row. Raises `InputError`."""
        return Media(self.config.input, row.medium)
