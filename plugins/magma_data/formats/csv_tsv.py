"""CSV and TSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO, Any

from magma import InputError

from .content import decode_text
from .record_format import Record, RecordFormat, _read_lines


class CsvRecords(RecordFormat):
    """Cells separated by commas or tabs, quoted as spreadsheets and pandas do it; the first line names the columns."""

    def __init__(self, delimiter: str) -> None:
        self.delimiter = delimiter
        self.columns: list[str] = []

    def records(self, file: IO[bytes]) -> Iterator[Record]:
        """Rows behind the first; a quoted cell may have line breaks."""
        csv.field_size_limit(2**31 - 1)
        record_lines: list[Record] = []

        def lines() -> Iterator[str]:
            for line in _read_lines(file):
                record_lines.append(line)
                yield line.raw.decode("utf-8", "surrogateescape")

        reader = csv.reader(lines(), delimiter=self.delimiter, strict=True)
        while True:
            record_lines.clear()
            try:
                cells = next(reader, None)
            except csv.Error:  # `fields` says so
                cells = [""]
            if cells is None:
                return
            raw = b"".join(line.raw for line in record_lines)
            if not cells:
                continue
            if self.columns:
                yield Record(record_lines[0].start, record_lines[0].number, raw)
            else:
                self._name(self._cells("its first line", raw))

    def _name(self, columns: list[str]) -> None:
        self.columns = [name.strip() for name in columns]
        shown = ", ".join(map(repr, columns))
        word = "tabs" if self.delimiter == "\t" else "commas"
        if len(columns) == 1 and any(mark in columns[0] for mark in ";\t,|"):
            raise InputError(f"its first line names one column, {shown}; allowed: columns separated by {word}")
        if len(set(self.columns)) < len(columns) or not all(self.columns):
            raise InputError(f"its first line names the columns {shown}; allowed: another name for each column")

    def _cells(self, where: str, raw: bytes) -> list[str]:
        text = decode_text(where, raw)
        try:
            (cells,) = csv.reader(text.splitlines(keepends=True), delimiter=self.delimiter, strict=True)
        except (csv.Error, ValueError) as error:
            raise InputError(f"{where}: its cells cannot be told apart: {error}") from error
        return cells

    def fields(self, where: str, raw: bytes) -> dict[str, Any]:
        """The cells that are not empty, all of them texts."""
        cells = self._cells(where, raw)
        if len(cells) != len(self.columns):
            raise InputError(f"{where}: {len(cells)} cells; allowed: {len(self.columns)}, as in the first line")
        return {name: cell for name, cell in zip(self.columns, cells, strict=True) if cell}
