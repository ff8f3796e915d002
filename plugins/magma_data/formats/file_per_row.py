"""Folders with one file per row: the authors' JSON files, and text files."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from magma import InputError

from .content import decode_text, parse_json
from .discovery import IMAGE_DATA, is_hidden
from .order import IndexedRows
from .row import Row


class _FileRows(IndexedRows):
    """Base class: one record per file."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        super().__init__(None)
        self.folder = folder
        # A million Python strings need ten times the memory.
        self.names = np.array([os.fsencode(name) for name in names])

    def counts(self) -> NDArray[np.int64]:
        """One row per file."""
        return np.ones(len(self.names), dtype=np.int64)

    def read(self, record: int) -> Row:
        """The row of a file; errors are reported by the row."""
        file = self.folder / os.fsdecode(self.names[record])
        try:
            return self.row(file, file.read_bytes())
        except InputError as error:
            return Row(str(file), {}, problem=str(error))
        except OSError as error:
            return Row(str(file), {}, problem=f"{file}: {error.strerror}")

    @abstractmethod
    def row(self, file: Path, raw: bytes) -> Row:
        """Parse a file. Raises `InputError`."""


class AuthorsRows(_FileRows):
    """The format of the authors' code: one JSON file per image, with `image_path` and `captions`."""

    def __init__(self, folder: Path) -> None:
        inside = (file.relative_to(folder) for file in (folder / IMAGE_DATA).rglob("*.json"))
        super().__init__(folder, sorted(str(file) for file in inside if not is_hidden(file)))

    def row(self, file: Path, raw: bytes) -> Row:
        """A row with the path of its image, which is relative to the folder of the data set."""
        return Row(str(file), parse_json(str(file), raw), self.folder, "image_path")


class DocumentRows(_FileRows):
    """Text files, each of which is a document."""

    def __init__(self, files: Sequence[str]) -> None:
        super().__init__(Path(), files)

    def row(self, file: Path, raw: bytes) -> Row:
        """A row with the text of the file."""
        return Row(str(file), {"text": decode_text(str(file), raw)})
