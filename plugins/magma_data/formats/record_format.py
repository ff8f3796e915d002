"""Base class of formats that divide a text file into records, and the format with one text per line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from .content import decode_text, strip_bom


class Record(NamedTuple):
    """The bytes of a record, and their position."""

    start: int
    """Byte offset in the decompressed file."""
    number: int
    """Number of the first line, or of the item of an array, from 1."""
    raw: bytes


class RecordFormat(ABC):
    """Divides a file into records, and parses a record."""

    unit: str = "line"
    """The unit of `Record.number`."""

    @abstractmethod
    def records(self, file: IO[bytes]) -> Iterator[Record]:
        """All records of a file. Raises `InputError` if the file does not have this format."""

    @abstractmethod
    def fields(self, where: str, raw: bytes) -> dict[str, Any]:
        """Parse a record to fields. Raises `InputError`."""


def read_lines(file: IO[bytes]) -> Iterator[Record]:
    """Every line, without a byte order mark."""
    at = 0
    for number, line in enumerate(file, 1):
        text = strip_bom(line) if number == 1 else line
        yield Record(at + len(line) - len(text), number, text)
        at += len(line)


class TextRecords(RecordFormat):
    """One document per line."""

    def records(self, file: IO[bytes]) -> Iterator[Record]:
        """All lines that are not blank."""
        return (line for line in read_lines(file) if line.raw.strip())

    def fields(self, where: str, raw: bytes) -> dict[str, Any]:
        """The text of the line."""
        return {"text": decode_text(where, raw)}
