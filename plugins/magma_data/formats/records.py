"""Files of text that hold many rows: JSONL, JSON arrays, CSV, TSV, and plain text; compressed ones too."""

from __future__ import annotations

import lzma
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from magma import InputError

from .content import COMPRESSIONS, DAMAGED, open_decompressed
from .csv_tsv import CsvRecords
from .discovery import split_suffix
from .jsonl import JsonRecords
from .order import IndexedRows, StreamedRows
from .record_format import Record, RecordFormat, TextRecords
from .row import Row


def format_of_file(file: Path) -> RecordFormat:
    """By the file's name; what has another suffix is taken for JSON."""
    match split_suffix(file.name)[1]:
        case ".csv":
            return CsvRecords(",")
        case ".tsv":
            return CsvRecords("\t")
        case ".json":
            return JsonRecords(array=True)
    return JsonRecords(array=False)


def is_compressed(file: str) -> bool:
    """Has it to be read from its beginning?"""
    return Path(file).suffix.lower() in COMPRESSIONS


class _RecordFile:
    """One file: its format, and what is wrong with the file itself."""

    def __init__(self, file: Path, text: bool) -> None:
        self.file, self.format = file, TextRecords() if text else format_of_file(file)
        self.broken: str | None = None

    def records(self) -> Iterator[Record]:
        """Until it ends or breaks off, which `broken` says afterwards."""
        self.broken = None
        number = 0
        try:
            with open_decompressed(self.file) as file:
                if not file.peek(1):  # type: ignore[attr-defined]  # what `open_decompressed` gives is buffered
                    self.broken = f"{self.file}: the file is empty (0 bytes)"
                for record in self.format.records(file):
                    number = record.number
                    yield record
        except (*DAMAGED, InputError, UnicodeDecodeError, lzma.LZMAError) as error:
            after = f"the rest of the file cannot be read after {self.format.unit} {number}: " if number else ""
            self.broken = f"{self.file}: {after}{error}"

    def row(self, number: int, raw: bytes) -> Row:
        """What a record says."""
        where = f"{self.file} {self.format.unit} {number}"
        try:
            return Row(where, self.format.fields(where, raw), self.file.parent)
        except InputError as error:
            return Row(where, {}, problem=str(error))

    def problem(self) -> Row:
        """That it is broken."""
        return Row(f"{self.file} at its end", {}, problem=self.broken)


class IndexedRecords(IndexedRows):
    """Rows of files that are not compressed, by where each begins, its size and its number: sixteen bytes a row."""

    _BROKEN: ClassVar = 0
    """The number of a record that stands for what cannot be read of a file."""

    def __init__(self, files: Sequence[str], list_field: str | None = None, text: bool = False) -> None:
        super().__init__(list_field)
        self.sources = [_RecordFile(Path(file), text) for file in files]
        found = [self._index(source) for source in self.sources]
        self.starts, self.spans, self._counts = (_concatenate(parts) for parts in zip(*found, strict=True))
        self.file_ends = np.cumsum([len(starts) for starts, _, _ in found])

    def _index(self, source: _RecordFile) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """[n] where each record begins; [n, 2] its bytes and its number; [n] how many rows it is."""
        starts, spans, counts = array("q"), array("I"), array("q")
        nested = f'"{self.list_field}"'.encode()
        for record in source.records():
            starts.append(record.start)
            spans.extend((len(record.raw), record.number))
            several = self.list_field is not None and nested in record.raw
            counts.append(len(source.row(record.number, record.raw).explode(self.list_field)) if several else 1)
        if source.broken is not None:
            starts.append(0)
            spans.extend((0, self._BROKEN))
            counts.append(1)
        numbers = np.frombuffer(spans, np.uint32).reshape(-1, 2)
        return np.frombuffer(starts, np.int64), numbers, np.frombuffer(counts, np.int64)

    def counts(self) -> NDArray[np.int64]:
        """Found with the records."""
        return self._counts

    def read(self, record: int) -> Row:
        """One record."""
        source = self.sources[int(np.searchsorted(self.file_ends, record, side="right"))]
        start, (size, number) = int(self.starts[record]), map(int, self.spans[record])
        if number == self._BROKEN:
            return source.problem()
        with source.file.open("rb") as file:
            file.seek(start)
            return source.row(number, file.read(size))


def _concatenate(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One array, without a copy where there is only one part."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class StreamedRecords(StreamedRows):
    """Rows of files of which some are compressed: each file is a shard."""

    def __init__(self, files: Sequence[str], list_field: str | None, buffer: int, text: bool = False) -> None:
        super().__init__(files, list_field, buffer)
        self.text = text

    def samples(self, shard: str, skip: int) -> Iterator[Row]:
        """The rows of a file."""
        source = _RecordFile(Path(shard), self.text)
        for at, record in enumerate(source.records()):
            if at >= skip:
                yield source.row(record.number, record.raw)
        if source.broken is not None:
            yield source.problem()
