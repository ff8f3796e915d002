"""CSV and TSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO, Any

from magma import InputError

from .content import decode_text
from .record_format import Record, RecordFormat, read_lines


class CsvRecords(RecordFormat):
    """Cells separated by commas or tabs, with the quoting of spreadsheets and pandas; the first line is the header."""

    def __init__(self, delimiter: str) -> None:
        self.delimiter = delimiter
        self.columns: list[str] = []

    def records(self, file: IO[bytes]) -> Iterator[Record]:
        """All rows after the header; a quoted cell may contain line breaks."""
        csv.field_size_limit(2**31 - 1)
        record_lines: list[Record] = []

        def lines() -> Iterator[str]:
            for line in read_lines(file):
                record_lines.append(line)
                yield line.raw.decode("utf-8", "surrogateescape")

        reader = csv.reader(lines(), delimiter=self.delimiter, strict=True)
        while True:
            record_lines.clear()
            try:
                cells = next(reader, None)
            except csv.Error:  # `fields` reports it
                cells = [""]
            if cells is None:
                return
            raw = b"".join(line.raw for line in record_lines)
            if not cells:
                continue
            if self.columns:
                yield Record(record_lines[0].start, record_lines[0].number, raw)
            else:
                self._set_columns(self._parse_cells("the first line", raw))

    def _set_columns(self, columns: list[str]) -> None:
        self.columns = [name.strip() for name in columns]
        shown = ", ".join(map(repr, columns))
        word = "tabs" if self.delimiter == "\t" else "commas"
        if len(columns) == 1 and any(mark in columns[0] for mark in ";\t,|"):
            raise InputError(f"the first line has one column, {shown}; allowed: columns separated by {word}")
        if len(set(self.columns)) < len(columns) or not all(self.columns):
            raise InputError(f"the first line has the columns {shown}; allowed: a different name for each column")

    def _parse_cells(self, where: str, raw: bytes) -> list[str]:
        text = decode_text(where, raw)
        try:
            (cells,) = csv.reader(text.splitlines(keepends=True), delimiter=self.delimiter, strict=True)
        except (csv.Error, ValueError) as error:
            raise InputError(f"{where}: the cells cannot be parsed: {error}") from error
        return cells

    def fields(self, where: str, raw: bytes) -> dict[str, Any]:
        """Column to cell, without empty cells; all values are strings."""
        cells = self._parse_cells(where, raw)
        if len(cells) != len(self.columns):
            raise InputError(f"{where}: {len(cells)} cells; allowed: {len(self.columns)}, as in the first line")
        return {name: cell for name, cell in zip(self.columns, cells, strict=True) if cell}
