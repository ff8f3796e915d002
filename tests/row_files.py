"""Small files of rows: tars, lines, and the examples that are read from them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from magma_data.formats import open_rows
from magma_data.formats.row import Row

from magma import InputError

RowsOf = list[dict[str, Any]]

TWO: RowsOf = [{"image": "0.png", "caption": "a dog"}, {"image": "1.png", "caption": "a cat"}]


def archive(file: Path, *names: str, mode: str = "w", content: Callable[[str], bytes] = str.encode) -> Path:
    """A tar whose members hold their own names, JSON files as a caption."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as opened:  # type: ignore[call-overload]
        for name in names:
            data = json.dumps({"caption": name}).encode() if name.lower().endswith(".json") else content(name)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return file


def rows(path: Path | str, split: str | None = None, list_field: str | None = None) -> list[Row]:
    return list(open_rows(str(path), split, list_field).iter_in_stored_order())


def captions(path: Path | str, split: str | None = None) -> list[str]:
    return [row.text("caption") for row in rows(path, split)]


def good(found: list[Row]) -> tuple[list[str], list[str]]:
    """The captions of the rows that have them and a medium, and what is wrong with the others."""
    said, problems = [], []
    for row in found:
        try:
            row.medium  # noqa: B018 - it raises
            said.append(row.text("caption"))
        except InputError as error:
            problems.append(str(error))
    return said, problems


def lines(*given: dict[str, Any]) -> str:
    return "\n".join(map(json.dumps, given))
