"""JSON objects: one per line (JSONL), or all in one array (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from magma import InputError

from .content import parse_json, strip_bom
from .record_format import Record, RecordFormat, _read_lines


class JsonRecords(RecordFormat):
    """JSON objects: one a line, or all in an array."""

    def __init__(self, array: bool) -> None:
        """`array`: may it be an array? In JSONL, a line that begins with a bracket is a mistake of that line."""
        self.array = array

    def records(self, file: IO[bytes]) -> Iterator[Record]:
        """Of what may be an array, the first character decides."""
        head = strip_bom(file.peek(4096)).lstrip()  # type: ignore[attr-defined]  # what `open_decompressed` gives can
        if self.array and head.startswith(b"["):
            self.unit = "item"
            yield from self._items(file)
            return
        lines = (line for line in _read_lines(file) if line.raw.strip())
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
        body = strip_bom(raw)
        text = body.decode("utf-8")
        scan, space = json.JSONDecoder().raw_decode, " \t\r\n"
        at, number = text.index("[") + 1, 0
        byte = len(raw) - len(body) + at  # only blanks, of one byte, stand before the bracket
        while True:
            end = _skip_characters(text, at, space + "," if number else space)
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
        return parse_json(where, raw)


def _skip_characters(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at
