"""How a text file is divided into records; here, the simplest format: one text per line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from .content import decode_text, strip_bom


class Record(NamedTuple):
    """A row's bytes, and where they are."""

    start: int
    """Byte of the decompressed file."""
    number: int
    """The line that it begins in, or the item of an array, from 1."""
    raw: bytes


class RecordFormat(ABC):
    """How one file is divided into records, and what a record says."""

    unit: str = "line"
    """What `Record.number` counts."""

    @abstractmethod
    def records(self, file: IO[bytes]) -> Iterator[Record]:
        """From the beginning of a file. Raises `InputError` for what is no such file."""

    @abstractmethod
    def fields(self, where: str, raw: bytes) -> dict[str, Any]:
        """What a record says. Raises `InputError`."""


def _read_lines(file: IO[bytes]) -> Iterator[Record]:
    """Every line, without a byte order mark."""
    at = 0
    for number, line in enumerate(file, 1):
        text = strip_bom(line) if number == 1 else line
        yield Record(at + len(line) - len(text), number, text)
        at += len(line)


class TextRecords(RecordFormat):
    """A document a line."""

    def records(self, file: IO[bytes]) -> Iterator[Record]:
        """Lines that are not blank."""
        return (line for line in _read_lines(file) if line.raw.strip())

    def fields(self, where: str, raw: bytes) -> dict[str, Any]:
        """Its text."""
        return {"text": decode_text(where, raw)}
