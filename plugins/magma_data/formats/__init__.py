"""Rows on disk or behind urls, in every layout that the sources and evaluations of this package read.

`find(path, split)` says what is there, `open_rows(path, split)` reads it: see `passes.Rows` for what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from magma import InputError

from .columns import AS_NAMED, Columns
from .discovery import IMAGES, Found, Layout, find, is_hidden, is_url
from .file_per_row import Authors, Documents
from .order import Rows
from .records import Records, RecordStream, is_compressed
from .tables import Parquet, Table
from .tar import Tars, members, split_member

__all__ = ["BUFFER", "IMAGES", "Found", "Layout", "find", "is_hidden", "is_url", "members", "open_rows", "split_member"]

BUFFER = 1000


def open_rows(
    path: str,
    split: str | None = None,
    each: str | None = None,
    *,
    layouts: Sequence[Layout] = IMAGES,
    buffer: int = BUFFER,
    columns: Columns = AS_NAMED,
) -> Rows:
    """The rows of a split, or of all; `columns` says where a row's fields are.

    A record whose field `each` is a list of objects ("questions") is a row for each of them, all with its medium.
    `buffer` is the size of a block of what can only be read in sequence. Raises `InputError` where nothing is found.
    """
    found = find(path, split, layouts)
    if isinstance(found, list):
        raise InputError("; ".join(found))
    rows = _open_layout(found, each and columns.of(each), buffer, columns)
    rows.columns = columns
    return rows


def _open_layout(found: Found, each: str | None, buffer: int, columns: Columns) -> Rows:
    match found.layout:
        case "tar":
            return Tars(found.files, each, buffer)
        case "parquet":
            return Parquet(found.files, each, buffer, columns)
        case "datasets":
            return Table(found.files, each, columns)
        case "authors":
            return Authors(Path(found.files[0]))
        case "documents":
            return Documents(found.files)
    text = found.layout == "lines"
    if any(map(is_compressed, found.files)):
        return RecordStream(found.files, each, buffer, text)
    return Records(found.files, each, text)
