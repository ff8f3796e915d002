"""One row: its fields, checked as they are asked for, and its medium."""

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
    """One row: its fields, checked as they are asked for, and what is seen or heard beside them."""

    where: str
    """For errors: file and line, or shard and key."""
    fields: Mapping[str, Any]
    """By column."""
    folder: Path | None = None
    """What the path of a medium in a file of its own is relative to."""
    key: str = MEDIUM
    """The column that holds this path, unless `columns` says otherwise."""
    data: bytes | None = None
    """A medium that stands in the row itself, encoded."""
    problem: str | None = None
    """Why there is nothing to read: asking for anything raises it."""
    seed: str | None = None
    """For whoever draws among the row's texts: another one each pass; None: nothing is drawn."""
    columns: Columns = DEFAULT_COLUMNS
    """Which column holds which field."""

    @property
    def medium(self) -> Path | bytes:
        """A file, or the bytes of one, neither of them read or decoded here."""
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
                "that `media` names"
            )
        if path.is_absolute() or ".." in path.parts:
            raise InputError(
                f'{self.where}: {column}: given "{path}"; allowed: a path inside {folder}; `media` names another folder'
            )
        return folder / path

    @property
    def file(self) -> PurePosixPath | None:
        """The path of its medium as the row has it; None where the row has none."""
        value = None if self.data is not None else self.fields.get(self._medium_column)
        return PurePosixPath(value) if isinstance(value, str) else None

    @property
    def _medium_column(self) -> str:
        given = [column for column, value in self.fields.items() if value is not None]
        return self.columns.medium or self.columns.implied_by_input(given) or self.key

    def value(self, name: str) -> Any:
        """What the row says in a field; None where it has none, or null."""
        return self.fields.get(self.columns.of(name))

    def text(self, name: str) -> str:
        """A text that is not empty."""
        return self._text_of(self.columns.of(name))

    def _text_of(self, column: str) -> str:
        if self.problem is not None:
            raise InputError(self.problem)
        value = self.fields.get(column)
        if not isinstance(value, str) or not value.strip():
            known = "" if column in self.fields else f"; columns of this row: {self._listed()}"
            raise InputError(f"{self.where}: {column}: given {value!r}; allowed: text{known}")
        return value.strip()

    def _listed(self) -> str:
        return list_columns([*([self.key] if self.data is not None else []), *self.fields])

    def texts(self, single: str, several: str) -> list[str]:
        """The texts of the list `several`, some of which may be empty, or the one text `single`."""
        given = self.columns.given
        name = single if single in given and several not in given else several
        values = self.value(name)
        if self.problem is not None or values is None or (name == single and not isinstance(values, list)):
            return [self.text(single)]
        known = [value for value in values if value is not None] if isinstance(values, list) else []
        texts = [value.strip() for value in known if isinstance(value, str)]
        if len(texts) < len(known) or not any(texts):
            hidden = "; a split whose answers are kept from the public has no use here" if values == [] else ""
            raise InputError(
                f"{self.where}: {self.columns.of(name)}: given {values!r}; allowed: a list of texts that are not all "
                f"empty{hidden}"
            )
        return texts

    def one_of(self, single: str, several: str) -> str:
        """One of `texts` that is not empty: a drawn one, or the first of the most frequent ones."""
        texts = [text for text in self.texts(single, several) if text]
        if self.seed is None or len(texts) == 1:
            return Counter(texts).most_common(1)[0][0]
        return random.Random(self.seed).choice(texts)

    def explode(self, column: str | None) -> list[Row]:
        """A row for each entry of the list in `column` (one image, many questions); this row where it has none."""
        if column is None or self.fields.get(column) is None:
            return [self]
        entries = self.fields[column]
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            problem = f"{self.where}: {column}: given {entries!r}; allowed: a list of objects"
            return [replace(self, problem=problem)]
        outer = {name: value for name, value in self.fields.items() if name != column}
        rows = [outer | {name: value for name, value in entry.items() if value is not None} for entry in entries]
        return [replace(self, where=f"{self.where} {column} {i}", fields=fields) for i, fields in enumerate(rows)]


_DOWNLOAD = (
    "allowed: a path of a file. Download the files first: img2dataset (https://github.com/rom1504/img2dataset) makes "
    "shards of a list of urls, which are read as they are; files in a folder are found with `media` set to that folder"
)
