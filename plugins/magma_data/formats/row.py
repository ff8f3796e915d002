"""A row: its fields, which are checked when they are used, and its medium."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from magma import InputError

from .columns import DEFAULT_COLUMNS, MEDIUM, Columns, list_columns


@dataclass(frozen=True)
class Row:
    """A row: its fields, which are checked when they are used, and its medium."""

    where: str
    """File and line, or shard and key, for error messages."""
    fields: Mapping[str, Any]
    """Column to value."""
    folder: Path | None = None
    """The folder that the path of a medium is relative to."""
    key: str = MEDIUM
    """The column of this path, unless `columns` has another one."""
    data: bytes | None = None
    """The bytes of a medium that is in the row itself."""
    problem: str | None = None
    """Why the row cannot be read. Using a field raises it as `InputError`."""
    seed: str | None = None
    """Seed to draw one of several texts, different in each epoch; None: take the most frequent text."""
    columns: Columns = DEFAULT_COLUMNS
    """The mapping of fields to columns."""

    @property
    def medium(self) -> Path | bytes:
        """The path or the bytes of the medium, which is not read or decoded here. Raises `InputError`."""
        if self.data is not None:
            return self.data
        column = self._medium_column
        given = self._text_of(column)
        if "://" in given:
            raise InputError(f'{self.where}: {column}: given "{given}"; {_DOWNLOAD}')
        path = PurePosixPath(given)
        folder = self.columns.media or self.folder
        if folder is None:
            raise InputError(
                f'{self.where}: {column}: given "{path}"; allowed: the medium itself, or a path inside the folder '
                "that `media` is set to"
            )
        if path.is_absolute() or ".." in path.parts:
            raise InputError(
                f'{self.where}: {column}: given "{path}"; allowed: a path inside {folder}; `media` sets another one'
            )
        return folder / path

    @property
    def file(self) -> PurePosixPath | None:
        """The path of the medium as in the row; None if it has no path."""
        value = None if self.data is not None else self.fields.get(self._medium_column)
        return PurePosixPath(value) if isinstance(value, str) else None

    @property
    def _medium_column(self) -> str:
        given = [column for column, value in self.fields.items() if value is not None]
        return self.columns.medium or self.columns.implied_by_input(given) or self.key

    def value(self, name: str) -> Any:
        """The value of a field; None if it is missing or null."""
        return self.fields.get(self.columns.of(name))

    def text(self, name: str) -> str:
        """The text of a field. Raises `InputError` if it is missing or empty."""
        return self._text_of(self.columns.of(name))

    def _text_of(self, column: str) -> str:
        if self.problem is not None:
            raise InputError(self.problem)
        value = self.fields.get(column)
        if not isinstance(value, str) or not value.strip():
            known = "" if column in self.fields else f"; columns of this row: {self._list_columns()}"
            raise InputError(f"{self.where}: {column}: given {value!r}; allowed: text{known}")
        return value.strip()

    def _list_columns(self) -> str:
        return list_columns([*([self.key] if self.data is not None else []), *self.fields])

    def texts(self, single: str, several: str) -> list[str]:
        """The texts in the list `several`, some of which may be empty, or the text `single`. Raises `InputError`."""
        given = self.columns.given
        name = single if single in given and several not in given else several
        values = self.value(name)
        if self.problem is not None or values is None or (name == single and not isinstance(values, list)):
            return [self.text(single)]
        known = [value for value in values if value is not None] if isinstance(values, list) else []
        texts = [value.strip() for value in known if isinstance(value, str)]
        if len(texts) < len(known) or not any(texts):
            hidden = "; a split without published answers cannot be used here" if values == [] else ""
            raise InputError(
                f"{self.where}: {self.columns.of(name)}: given {values!r}; allowed: a list of texts that are not all "
                f"empty{hidden}"
            )
        return texts

    def one_of(self, single: str, several: str) -> str:
        """One of the non-empty `texts`: a random one, or without `seed` the most frequent. Raises `InputError`."""
        texts = [text for text in self.texts(single, several) if text]
        if self.seed is None or len(texts) == 1:
            return Counter(texts).most_common(1)[0][0]
        return random.Random(self.seed).choice(texts)

    def explode(self, column: str | None) -> list[Row]:
        """One row for each entry of the list in `column`, such as questions; only this row if there is no list."""
        if column is None or self.fields.get(column) is None:
            return [self]
        entries = self.fields[column]
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            problem = f"{self.where}: {column}: given {entries!r}; allowed: a list of objects"
            return [replace(self, problem=problem)]
        common = {name: value for name, value in self.fields.items() if name != column}
        rows = [common | {name: value for name, value in entry.items() if value is not None} for entry in entries]
        return [replace(self, where=f"{self.where} {column} {i}", fields=fields) for i, fields in enumerate(rows)]


_DOWNLOAD = (
    "allowed: the path of a file. Download the files first. img2dataset (https://github.com/rom1504/img2dataset) "
    "writes shards for a list of URLs, which can be read directly; for files in a folder, set `media` to that folder"
)
