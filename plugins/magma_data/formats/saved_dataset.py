"""Reads folders that `save_to_disk` of the datasets library wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magma import InputError

from .arrow_schema import ArrowSchema
from .columns import Columns
from .order import IndexedRows
from .row import Row


class ArrowRows(IndexedRows):
    """Rows of a saved dataset, which is memory-mapped. A row is copied when it is used; media are not decoded."""

    def __init__(self, folders: Sequence[str], list_field: str | None, columns: Columns) -> None:
        super().__init__(list_field)
        import datasets

        try:
            saved = [datasets.load_from_disk(folder) for folder in folders]
            self.tables = [table.with_format("arrow") for table in saved]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folders[0]} cannot be read as a saved dataset: {error}") from error
        self.folders = [Path(folder) for folder in folders]
        self.file_ends = np.cumsum([len(table) for table in self.tables])
        self.schemas = [
            ArrowSchema(folder, table.data.schema, list_field, columns)
            for folder, table in zip(folders, self.tables, strict=True)
        ]

    def counts(self) -> NDArray[np.int64]:
        """[records]: number of rows of each record: the length of its list, at least one."""
        both = zip(self.tables, self.schemas, strict=True)
        return np.concatenate([self._lengths(table, schema) for table, schema in both])

    def _lengths(self, table: Any, schema: ArrowSchema) -> NDArray[np.int64]:
        import pyarrow.compute as pc

        ones = np.ones(len(table), dtype=np.int64)
        if self.list_field is None or self.list_field not in table.column_names:
            return ones
        column = table.data.column(self.list_field)
        if _is_list_of_objects(column.type) and not pc.list_flatten(column).null_count:
            lengths = pc.list_value_length(column).fill_null(1).to_numpy()
            return np.maximum(ones, np.asarray(lengths, dtype=np.int64))  # an empty list is one row, which reports it
        lengths = [
            len(schema.row("", {self.list_field: value.as_py()}, Path()).explode(self.list_field)) for value in column
        ]
        return np.array(lengths, dtype=np.int64)

    def read(self, record: int) -> Row:
        """Read one record."""
        number = int(np.searchsorted(self.file_ends, record, side="right"))
        table = self.tables[number]
        at = record - int(self.file_ends[number]) + len(table)
        (fields,) = table[at : at + 1].to_pylist()
        folder = self.folders[number]
        return self.schemas[number].row(f"{folder} row {at}", fields, folder)


def _is_list_of_objects(kind: Any) -> bool:
    """Whether it is any list type of Arrow with structs as entries."""
    import pyarrow.types as types

    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(is_kind(kind) for is_kind in lists) and types.is_struct(kind.value_type)
