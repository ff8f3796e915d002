"""Opens the rows of a split, whatever their format is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from magma import InputError

from .columns import AS_NAMED, Columns
from .discovery import IMAGES, Found, Layout, find
from .file_per_row import Authors, Documents
from .order import Rows
from .parquet import Parquet
from .records import Records, RecordStream, is_compressed
from .saved_dataset import Table
from .tar import Tars

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
