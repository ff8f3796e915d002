"""Tables in Arrow's types: what the datasets library saved, and parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magma import InputError

from ..passes import Indexed, Row, Streamed


class Table(Indexed):
    """What the datasets library saved: memory-mapped, a row is copied out when its turn comes, no medium decoded."""

    def __init__(self, folders: Sequence[str], each: str | None) -> None:
        super().__init__(each)
        import datasets

        try:
            saved = [datasets.load_from_disk(folder) for folder in folders]
            self.tables = [table.with_format("arrow") for table in saved]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folders[0]} cannot be read as a saved dataset: {error}") from error
        self.folders = [Path(folder) for folder in folders]
        self.file_ends = np.cumsum([len(table) for table in self.tables])
        self.media = [
            _medium_column(folder, table.data.schema) for folder, table in zip(folders, self.tables, strict=True)
        ]

    def counts(self) -> NDArray[np.int64]:
        """The lengths of the lists."""
        return np.concatenate([self._lengths(table) for table in self.tables])

    def _lengths(self, table: Any) -> NDArray[np.int64]:
        import pyarrow.compute as pc
        import pyarrow.types as types

        ones = np.ones(len(table), dtype=np.int64)
        if self.each not in table.column_names or not types.is_list(table.data.schema.field(self.each).type):
            return ones
        lengths = pc.list_value_length(table.data.column(self.each)).fill_null(1).to_numpy()
        return np.maximum(ones, np.asarray(lengths, dtype=np.int64))  # of an empty list there is a row that says so

    def read(self, record: int) -> Row:
        """One row of one table."""
        number = int(np.searchsorted(self.file_ends, record, side="right"))
        table = self.tables[number]
        at = record - int(self.file_ends[number]) + len(table)
        (fields,) = table[at : at + 1].to_pylist()
        folder = self.folders[number]
        return _arrow_row(f"{folder} row {at}", fields, self.media[number], folder)


def _medium_column(where: str, schema: Any) -> str | None:
    """The column that holds media: bytes, or bytes and path as the datasets library stores them."""
    import pyarrow.types as types

    def holds(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    columns = [field.name for field in schema if holds(field.type)]
    if len(columns) > 1 and "image" not in columns:
        raise InputError(
            f"{where}: several columns hold media ({', '.join(columns)}); allowed: one, or one called image"
        )
    return "image" if "image" in columns else next(iter(columns), None)


def _arrow_row(where: str, fields: dict[str, Any], column: str | None, folder: Path) -> Row:
    """Fields without those that are null; the medium apart."""
    medium = fields.pop(column, None) if column else None
    if isinstance(medium, dict):
        data, path = medium["bytes"], medium.get("path")
    else:
        data, path = medium, None
    said = {name: value for name, value in fields.items() if value is not None}
    return Row(where, said | ({column: path} if column and path else {}), folder, column or "image", data)


class Parquet(Streamed):
    """Row groups of parquet files, which are decoded from their beginning: each is a shard."""

    def __init__(self, files: Sequence[str], each: str | None, buffer: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        groups = []
        for file in files:
            try:
                with pq.ParquetFile(file) as opened:
                    groups += [(file, group) for group in range(opened.num_row_groups)]
                    _medium_column(file, opened.schema_arrow)
            except (OSError, pa.ArrowException) as error:
                raise InputError(f"{file} cannot be read as parquet: {error}") from error
        super().__init__(groups, each, buffer)

    def samples(self, shard: tuple[str, int], skip: int) -> Iterator[Row]:
        """The rows of a row group."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, group = shard
        folder, at = Path(file).parent, 0
        try:
            with pq.ParquetFile(file, memory_map=True) as opened:
                column = _medium_column(file, opened.schema_arrow)
                for batch in opened.iter_batches(64, row_groups=[group], use_threads=False):
                    for i in range(max(0, skip - at), len(batch)):
                        (fields,) = batch.slice(i, 1).to_pylist()
                        yield _arrow_row(f"{file} row group {group} row {at + i}", fields, column, folder)
                    at += len(batch)
        except (OSError, pa.ArrowException) as error:
            if skip <= at:
                where = f"{file} row group {group} row {at}"
                yield Row(where, {}, problem=f"{where}: the rest of the row group cannot be read: {error}")
