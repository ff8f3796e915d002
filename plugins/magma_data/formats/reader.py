"""Opens the rows of a split, in any format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from magma import InputError

from .columns import DEFAULT_COLUMNS, Columns
from .discovery import IMAGES, FileFormat, FoundFiles, find
from .file_per_row import AuthorsRows, DocumentRows
from .order import Rows
from .parquet import ParquetRows
from .records import IndexedRecords, StreamedRecords, is_compressed
from .saved_dataset import ArrowRows
from .tar import TarRows

DEFAULT_BUFFER = 1000


def open_rows(
    path: str,
    split: str | None = None,
    list_field: str | None = None,
    *,
    file_formats: Sequence[FileFormat] = IMAGES,
    buffer: int = DEFAULT_BUFFER,
    columns: Columns = DEFAULT_COLUMNS,
) -> Rows:
    """The rows of a split, or all rows; `columns` maps fields to columns.

    If the field `list_field` of a record is a list of objects ("questions"), each object is a row with the medium of
    the record. `buffer` is the size of the blocks of sequential data. Raises `InputError` if there are no rows.
    """
    found = find(path, split, file_formats)
    if isinstance(found, list):
        raise InputError("; ".join(found))
    rows = _open_format(found, list_field and columns.of(list_field), buffer, columns)
    rows.columns = columns
    return rows


def _open_format(found: FoundFiles, list_field: str | None, buffer: int, columns: Columns) -> Rows:
    match found.file_format:
        case "tar":
            return TarRows(found.files, list_field, buffer)
        case "parquet":
            return ParquetRows(found.files, list_field, buffer, columns)
        case "datasets":
            return ArrowRows(found.files, list_field, columns)
        case "authors":
            return AuthorsRows(Path(found.files[0]))
        case "documents":
            return DocumentRows(found.files)
    text = found.file_format == "lines"
    if any(map(is_compressed, found.files)):
        return StreamedRecords(found.files, list_field, buffer, text)
    return IndexedRecords(found.files, list_field, text)
