"""Text files with many rows: JSONL, JSON arrays, CSV, TSV and plain text, possibly compressed."""

from __future__ import annotations

import lzma
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from magma import InputError

from .content import COMPRESSIONS, DECOMPRESSION_ERRORS, open_decompressed
from .csv_tsv import CsvRecords
from .discovery import split_suffix
from .jsonl import JsonRecords
from .order import IndexedRows, StreamedRows
from .record_format import Record, RecordFormat, TextRecords
from .row import Row


def format_of_file(file: Path) -> RecordFormat:
    """The format of a file, by its suffix. Default: JSON lines."""
    match split_suffix(file.name)[1]:
        case ".csv":
            return CsvRecords(",")
        case ".tsv":
            return CsvRecords("\t")
        case ".json":
            return JsonRecords(array=True)
    return JsonRecords(array=False)


def is_compressed(file: str) -> bool:
    """Whether it is compressed, and has to be read sequentially."""
    return Path(file).suffix.lower() in COMPRESSIONS


class _RecordFile:
    """One file with its format; `broken` is the error of the file, if any."""

    def __init__(self, file: Path, text: bool) -> None:
        self.file, self.format = file, TextRecords() if text else format_of_file(file)
        self.broken: str | None = None

    def records(self) -> Iterator[Record]:
        """All records, up to the end or an error, which sets `broken`."""
        self.broken = None
        number = 0
        try:
            with open_decompressed(self.file) as file:
                if not file.peek(1):  # type: ignore[attr-defined]  # `open_decompressed` returns a buffered file
                    self.broken = f"{self.file}: the file is empty (0 bytes)"
                for record in self.format.records(file):
                    number = record.number
                    yield record
        except (*DECOMPRESSION_ERRORS, InputError, UnicodeDecodeError, lzma.LZMAError) as error:
            after = f"the rest of the file cannot be read after {self.format.unit} {number}: " if number else ""
            self.broken = f"{self.file}: {after}{error}"

    def row(self, number: int, raw: bytes) -> Row:
        """The row of a record; errors are reported by the row."""
        where = f"{self.file} {self.format.unit} {number}"
        try:
            return Row(where, self.format.fields(where, raw), self.file.parent)
        except InputError as error:
            return Row(where, {}, problem=str(error))

    def error_row(self) -> Row:
        """A row that reports the error of the file."""
        return Row(f"{self.file} at its end", {}, problem=self.broken)


class IndexedRecords(IndexedRows):
    """Rows of uncompressed files, with an index of 16 bytes per row: offset, size and number."""

    _ERROR_NUMBER: ClassVar = 0
    """The number of the record that reports the error of a file."""

    def __init__(self, files: Sequence[str], list_field: str | None = None, text: bool = False) -> None:
        super().__init__(list_field)
        self.sources = [_RecordFile(Path(file), text) for file in files]
        found = [self._build_index(source) for source in self.sources]
        self.starts, self.spans, self._counts = (_concatenate(parts) for parts in zip(*found, strict=True))
        self.file_ends = np.cumsum([len(starts) for starts, _, _ in found])

    def _build_index(self, source: _RecordFile) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """For n records: offsets [n], sizes and numbers [n, 2], and numbers of rows [n]."""
        starts, spans, counts = array("q"), array("I"), array("q")
        nested = f'"{self.list_field}"'.encode()
        for record in source.records():
            starts.append(record.start)
            spans.extend((len(record.raw), record.number))
            several = self.list_field is not None and nested in record.raw
            counts.append(len(source.row(record.number, record.raw).explode(self.list_field)) if several else 1)
        if source.broken is not None:
            starts.append(0)
            spans.extend((0, self._ERROR_NUMBER))
            counts.append(1)
        numbers = np.frombuffer(spans, np.uint32).reshape(-1, 2)
        return np.frombuffer(starts, np.int64), numbers, np.frombuffer(counts, np.int64)

    def counts(self) -> NDArray[np.int64]:
        """[records]: number of rows of each record, from the index."""
        return self._counts

    def read(self, record: int) -> Row:
        """Read one record."""
        source = self.sources[int(np.searchsorted(self.file_ends, record, side="right"))]
        start, (size, number) = int(self.starts[record]), map(int, self.spans[record])
        if number == self._ERROR_NUMBER:
            return source.error_row()
        with source.file.open("rb") as file:
            file.seek(start)
            return source.row(number, file.read(size))


def _concatenate(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate arrays, without a copy if there is only one."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class StreamedRecords(StreamedRows):
    """Rows of files, some of which are compressed. Each file is a shard."""

    def __init__(self, files: Sequence[str], list_field: str | None, buffer: int, text: bool = False) -> None:
        super().__init__(files, list_field, buffer)
        self.text = text

    def samples(self, shard: str, skip: int) -> Iterator[Row]:
        """The rows of a file after the first `skip` ones."""
        source = _RecordFile(Path(shard), self.text)
        for at, record in enumerate(source.records()):
            if at >= skip:
                yield source.row(record.number, record.raw)
        if source.broken is not None:
            yield source.error_row()
