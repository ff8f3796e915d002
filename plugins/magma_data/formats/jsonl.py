"""JSON objects: one per line (JSONL), or all in one array (JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from magma import InputError

from .content import parse_json, strip_bom
from .record_format import Record, RecordFormat, read_lines


class JsonRecords(RecordFormat):
    """JSON objects, one per line or in one array."""

    def __init__(self, array: bool) -> None:
        """`array`: whether the file may be an array. In JSONL, a line that starts with a bracket is an invalid row."""
        self.array = array

    def records(self, file: IO[bytes]) -> Iterator[Record]:
        """All objects. If the file may be an array, its first character decides. Raises `InputError`."""
        head = strip_bom(file.peek(4096)).lstrip()  # type: ignore[attr-defined]  # `open_decompressed` returns a buffered file
        if self.array and head.startswith(b"["):
            self.unit = "item"
            yield from self._read_items(file)
            return
        lines = (line for line in read_lines(file) if line.raw.strip())
        for line in lines:
            if line.raw.strip() == b"{":
                raise InputError(
                    "a JSON object over several lines; allowed: an array of objects, or one object per line"
                )
            yield line
            break
        yield from lines

    @staticmethod
    def _read_items(file: IO[bytes]) -> Iterator[Record]:
        """The items of an array. The whole file is in memory while they are read."""
        raw = file.read()
        body = strip_bom(raw)
        text = body.decode("utf-8")
        scan, space = json.JSONDecoder().raw_decode, " \t\r\n"
        at, number = text.index("[") + 1, 0
        byte = len(raw) - len(body) + at  # only whitespace, one byte each, is before the bracket
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
        """The fields of an object. Raises `InputError`."""
        return parse_json(where, raw)


def _skip_characters(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at
