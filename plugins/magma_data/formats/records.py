"""Files of text that hold many rows: JSONL, JSON arrays, CSV, TSV, and plain text; compressed ones too."""

from __future__ import annotations

import csv
import json
import lzma
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from magma import InputError

from .content import COMPRESSIONS, DAMAGED, decoded, opened, parsed, without_mark
from .discovery import split_suffix
from .order import Indexed, Row, Streamed


class Record(NamedTuple):
    """A row's bytes, and where they are."""

    start: int
    """Byte of the decompressed file."""
    number: int
    """The line that it begins in, or the item of an array, from 1."""
    raw: bytes


class Format(ABC):
    """How one file is divided into records, and what a record says."""

    unit: str = "line"
    """What `Record.number` counts."""

    @abstractmethod
    def records(self, file: IO[bytes]) -> Iterator[Record]:
        """From the beginning of a file. Raises `InputError` for what is no such file."""

    @abstractmethod
    def fields(self, where: str, raw: bytes) -> dict[str, Any]:
        """What a record says. Raises `InputError`."""


def _lines(file: IO[bytes]) -> Iterator[Record]:
    """Every line, without a byte order mark."""
    at = 0
    for number, line in enumerate(file, 1):
        text = without_mark(line) if number == 1 else line
        yield Record(at + len(line) - len(text), number, text)
        at += len(line)


class Text(Format):
    """A document a line."""

    def records(self, file: IO[bytes]) -> Iterator[Record]:
        """Lines that are not blank."""
        return (line for line in _lines(file) if line.raw.strip())

    def fields(self, where: str, raw: bytes) -> dict[str, Any]:
        """Its text."""
        return {"text": decoded(where, raw)}


class Json(Format):
    """JSON objects: one a line, or all in an array."""

    def __init__(self, array: bool) -> None:
        """`array`: may it be an array? In JSONL, a line that begins with a bracket is a mistake of that line."""
        self.array = array

    def records(self, file: IO[bytes]) -> Iterator[Record]:
        """Of what may be an array, the first character decides."""
        head = without_mark(file.peek(4096)).lstrip()  # type: ignore[attr-defined]  # all that `opened` gives can
        if self.array and head.startswith(b"["):
            self.unit = "item"
            yield from self._items(file)
            return
        lines = (line for line in _lines(file) if line.raw.strip())
        for line in lines:
            if line.raw.strip() == b"{":
                raise InputError("a JSON object over several lines; allowed: an array of objects, or an object a line")
            yield line
            break
        yield from lines

    @staticmethod
    def _items(file: IO[bytes]) -> Iterator[Record]:
        """The items of an array. The text of the whole file is held as long as they are read."""
        raw = file.read()
        body = without_mark(raw)
        text = body.decode("utf-8")
        scan, space = json.JSONDecoder().raw_decode, " \t\r\n"
        at, number = text.index("[") + 1, 0
        byte = len(raw) - len(body) + at  # only blanks, of one byte, stand before the bracket
        while True:
            end = _past(text, at, space + "," if number else space)
            byte, at = byte + end - at, end
            if text[at : at + 1] == "]":
                return
            try:
                _, end = scan(text, at)
            except (ValueError, RecursionError) as error:
                raise InputError(f"the array cannot be read after item {number}: {error}") from error
            number += 1
            item = text[at:end].encode()
            yield Record(byte, number, item)
            byte, at = byte + len(item), end

    def fields(self, where: str, raw: bytes) -> dict[str, Any]:
        """An object."""
        return parsed(where, raw)


def _past(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


class Csv(Format):
    """Cells separated by commas or tabs, quoted as spreadsheets and pandas do it; the first line names the columns."""

    def __init__(self, delimiter: str) -> None:
        self.delimiter = delimiter
        self.columns: list[str] = []

    def records(self, file: IO[bytes]) -> Iterator[Record]:
        """Rows behind the first; a quoted cell may have line breaks."""
        csv.field_size_limit(2**31 - 1)
        taken: list[Record] = []

        def lines() -> Iterator[str]:
            for line in _lines(file):
                taken.append(line)
                yield line.raw.decode("utf-8", "surrogateescape")

        reader = csv.reader(lines(), delimiter=self.delimiter, strict=True)
        while True:
            taken.clear()
            try:
                cells = next(reader, None)
            except csv.Error:  # `fields` says so
                cells = [""]
            if cells is None:
                return
            raw = b"".join(line.raw for line in taken)
            if not cells:
                continue
            if self.columns:
                yield Record(taken[0].start, taken[0].number, raw)
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
        text = decoded(where, raw)
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


def format_of(file: Path) -> Format:
    """By the file's name; what has another suffix is taken for JSON."""
    match split_suffix(file.name)[1]:
        case ".csv":
            return Csv(",")
        case ".tsv":
            return Csv("\t")
        case ".json":
            return Json(array=True)
    return Json(array=False)


def is_compressed(file: str) -> bool:
    """Has it to be read from its beginning?"""
    return Path(file).suffix.lower() in COMPRESSIONS


class _Source:
    """One file: its format, and what is wrong with the file itself."""

    def __init__(self, file: Path, text: bool) -> None:
        self.file, self.format = file, Text() if text else format_of(file)
        self.broken: str | None = None

    def records(self) -> Iterator[Record]:
        """Until it ends or breaks off, which `broken` says afterwards."""
        self.broken = None
        number = 0
        try:
            with opened(self.file) as file:
                if not file.peek(1):  # type: ignore[attr-defined]  # all that `opened` gives are buffered
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


class Records(Indexed):
    """Rows of files that are not compressed, by where each begins, its size and its number: sixteen bytes a row."""

    _BROKEN: ClassVar = 0
    """The number of a record that stands for what cannot be read of a file."""

    def __init__(self, files: Sequence[str], each: str | None = None, text: bool = False) -> None:
        super().__init__(each)
        self.sources = [_Source(Path(file), text) for file in files]
        found = [self._index(source) for source in self.sources]
        self.starts, self.spans, self._counts = (_joined(parts) for parts in zip(*found, strict=True))
        self.file_ends = np.cumsum([len(starts) for starts, _, _ in found])

    def _index(self, source: _Source) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """[n] where each record begins; [n, 2] its bytes and its number; [n] how many rows it is."""
        starts, spans, counts = array("q"), array("I"), array("q")
        nested = f'"{self.each}"'.encode()
        for record in source.records():
            starts.append(record.start)
            spans.extend((len(record.raw), record.number))
            several = self.each is not None and nested in record.raw
            counts.append(len(source.row(record.number, record.raw).each(self.each)) if several else 1)
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


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One array, without a copy where there is only one part."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class RecordStream(Streamed):
    """Rows of files of which some are compressed: each file is a shard."""

    def __init__(self, files: Sequence[str], each: str | None, buffer: int, text: bool = False) -> None:
        super().__init__(files, each, buffer)
        self.text = text

    def samples(self, shard: str, skip: int) -> Iterator[Row]:
        """The rows of a file."""
        source = _Source(Path(shard), self.text)
        for at, record in enumerate(source.records()):
            if at >= skip:
                yield source.row(record.number, record.raw)
        if source.broken is not None:
            yield source.problem()
