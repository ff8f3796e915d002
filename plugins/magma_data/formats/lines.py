"""Files of which each line is a row: JSONL and text."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magma import InputError

from ..passes import Indexed, Row
from .content import decoded, parsed


class Lines(Indexed):
    """The lines of JSONL files, by where they begin and which they are: sixteen bytes a line."""

    def __init__(self, files: Sequence[str], each: str | None = None) -> None:
        super().__init__(each)
        self.files = [Path(file) for file in files]
        found = [self._index(file) for file in self.files]
        self.starts: NDArray[np.int64] = np.concatenate([starts for starts, _ in found])
        self.file_ends = np.cumsum([len(starts) for starts, _ in found])
        self._counts: NDArray[np.int64] = np.concatenate([counts for _, counts in found])

    def _index(self, file: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[n, 2] where each line that is not blank begins, and its number; [n] how many rows it is."""
        starts, counts = array("q"), array("q")
        nested = f'"{self.each}"'.encode()
        at = 0
        with file.open("rb") as opened:
            for number, line in enumerate(opened, 1):
                if line.strip():
                    starts.extend((at, number))
                    several = self.each is not None and nested in line
                    counts.append(len(self._row(file, number, line).each(self.each)) if several else 1)
                at += len(line)
        return np.array(starts, dtype=np.int64).reshape(-1, 2), np.array(counts, dtype=np.int64)

    def counts(self) -> NDArray[np.int64]:
        """Found with the lines."""
        return self._counts

    def read(self, record: int) -> Row:
        """One line."""
        file = self.files[int(np.searchsorted(self.file_ends, record, side="right"))]
        start, number = map(int, self.starts[record])
        with file.open("rb") as opened:
            opened.seek(start)
            return self._row(file, number, opened.readline())

    def _row(self, file: Path, number: int, line: bytes) -> Row:
        where = f"{file} line {number}"
        try:
            return Row(where, self.fields(where, line), file.parent)
        except InputError as error:
            return Row(where, {}, problem=str(error))

    @staticmethod
    def fields(where: str, line: bytes) -> dict[str, Any]:
        """What a line says."""
        return parsed(where, line)


class TextLines(Lines):
    """The lines of text files: each is a document."""

    @staticmethod
    def fields(where: str, line: bytes) -> dict[str, Any]:
        """Its text."""
        return {"text": decoded(where, line)}
