"""Tables in Arrow's types: what the datasets library saved, and parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magma import InputError

from .columns import MEDIUM, Columns
from .order import Indexed, Row, Streamed


class Schema:
    """What a table's schema says about its columns: which holds media, and which hold classes by number."""

    def __init__(self, where: str, schema: Any, each: str | None, wanted: Columns) -> None:
        self.medium, self.each = _medium_column(where, schema, wanted), each
        features = _features(schema)
        self.classes = {name: spec for name, spec in features.items() if '"ClassLabel"' in json.dumps(spec)}

    def row(self, where: str, fields: dict[str, Any], folder: Path) -> Row:
        """Fields without those that are null; the medium apart."""
        medium = fields.pop(self.medium, None) if self.medium else None
        if isinstance(medium, dict):
            data, path = medium.get("bytes"), medium.get("path")
        else:
            data, path = (medium, None) if isinstance(medium, bytes) else (None, medium)
        try:
            known = {name: self.value(name, value) for name, value in fields.items()}
        except InputError as error:
            return Row(where, {}, problem=f"{where}: {error}")
        said = {name: value for name, value in known.items() if value is not None}
        if self.medium and path:
            said[self.medium] = path
        return Row(where, said, folder, self.medium or MEDIUM, data)

    def value(self, name: str, value: Any) -> Any:
        """A cell with the names of its classes; the column `each` as a list of objects."""
        if name in self.classes:
            value = _with_names(value, self.classes[name], name)
        return _objects(value) if name == self.each else value


def _features(schema: Any) -> Mapping[str, Any]:
    """What the datasets library writes about the columns beside Arrow's types."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _with_names(value: Any, spec: Any, column: str) -> Any:
    """The names of the classes in a cell, at any depth; -1, which stands for no class, becomes None."""
    if value is None:
        return None
    if isinstance(spec, list):  # as old versions write a list
        return [_with_names(one, spec[0], column) for one in value]
    if not isinstance(spec, dict):
        return value
    kind = spec.get("_type")
    if kind == "ClassLabel":
        names = spec.get("names") or []
        if not isinstance(value, int) or not -1 <= value < len(names):
            raise InputError(f"{column}: given the class {value!r}; allowed: 0 to {len(names) - 1}")
        return names[value] if value >= 0 else None
    if "feature" in spec and isinstance(kind, str):
        inner = spec["feature"]
        if isinstance(value, dict):  # `Sequence({...})` of old versions: an object of lists
            return {name: [_with_names(one, inner.get(name), column) for one in many] for name, many in value.items()}
        return [_with_names(one, inner, column) for one in value]
    if isinstance(value, dict):
        return {name: _with_names(one, spec.get(name), column) for name, one in value.items()}
    return value


def _objects(value: Any) -> Any:
    """An object of lists, as the datasets library stored `Sequence({...})`, as a list of objects."""
    if not isinstance(value, dict) or not value or not all(isinstance(many, list) for many in value.values()):
        return value
    if len(set(map(len, value.values()))) != 1:
        return value
    return [dict(zip(value, entry, strict=True)) for entry in zip(*value.values(), strict=True)]


def _medium_column(where: str, schema: Any, wanted: Columns) -> str | None:
    """The column that holds media: bytes, or bytes and path as the datasets library stores them."""
    if found := wanted.given_among(where, schema.names) or wanted.implied(schema.names):
        return found
    import pyarrow.types as types

    def holds(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))

    columns = [field.name for field in schema if holds(field.type)]
    if len(columns) > 1 and MEDIUM not in columns:
        raise InputError(
            f"{where}: several columns hold media ({', '.join(columns)}); allowed: one, one called {MEDIUM}, or the "
            f"one that `columns = {{ {wanted.input} = ... }}` names"
        )
    return MEDIUM if MEDIUM in columns else next(iter(columns), None)


class Table(Indexed):
    """What the datasets library saved: memory-mapped, a row is copied out when its turn comes, no medium decoded."""

    def __init__(self, folders: Sequence[str], each: str | None, columns: Columns) -> None:
        super().__init__(each)
        import datasets

        try:
            saved = [datasets.load_from_disk(folder) for folder in folders]
            self.tables = [table.with_format("arrow") for table in saved]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folders[0]} cannot be read as a saved dataset: {error}") from error
        self.folders = [Path(folder) for folder in folders]
        self.file_ends = np.cumsum([len(table) for table in self.tables])
        self.schemas = [
            Schema(folder, table.data.schema, each, columns) for folder, table in zip(folders, self.tables, strict=True)
        ]

    def counts(self) -> NDArray[np.int64]:
        """The lengths of the lists."""
        both = zip(self.tables, self.schemas, strict=True)
        return np.concatenate([self._lengths(table, schema) for table, schema in both])

    def _lengths(self, table: Any, schema: Schema) -> NDArray[np.int64]:
        import pyarrow.compute as pc

        ones = np.ones(len(table), dtype=np.int64)
        if self.each is None or self.each not in table.column_names:
            return ones
        column = table.data.column(self.each)
        if _is_list_of_objects(column.type) and not pc.list_flatten(column).null_count:
            lengths = pc.list_value_length(column).fill_null(1).to_numpy()
            return np.maximum(ones, np.asarray(lengths, dtype=np.int64))  # an empty list is a row that reports it
        lengths = [len(schema.row("", {self.each: value.as_py()}, Path()).each(self.each)) for value in column]
        return np.array(lengths, dtype=np.int64)

    def read(self, record: int) -> Row:
        """One row of one table."""
        number = int(np.searchsorted(self.file_ends, record, side="right"))
        table = self.tables[number]
        at = record - int(self.file_ends[number]) + len(table)
        (fields,) = table[at : at + 1].to_pylist()
        folder = self.folders[number]
        return self.schemas[number].row(f"{folder} row {at}", fields, folder)


def _is_list_of_objects(kind: Any) -> bool:
    """Any of Arrow's types of lists, with structs in it."""
    import pyarrow.types as types

    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(is_kind(kind) for is_kind in lists) and types.is_struct(kind.value_type)


class Parquet(Streamed):
    """Row groups of parquet files, which are decoded from their beginning: each is a shard."""

    def __init__(self, files: Sequence[str], each: str | None, buffer: int, columns: Columns) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        groups: list[tuple[str, int]] = []
        self.broken: dict[str, str] = {}
        for file in files:
            try:
                with pq.ParquetFile(file) as opened:
                    groups += [(file, group) for group in range(opened.num_row_groups)]
                    Schema(file, opened.schema_arrow, each, columns)
            except (OSError, pa.ArrowException) as error:
                self.broken[file] = f"{file} cannot be read as parquet: {error}"
                if len(self.broken) == len(files) or getattr(error, "errno", None):
                    raise InputError(self.broken[file]) from error
                groups.append((file, 0))
        super().__init__(groups, each, buffer)

    def samples(self, shard: tuple[str, int], skip: int) -> Iterator[Row]:
        """The rows of a row group; of a file that is damaged as a whole, one that says so."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, group = shard
        if file in self.broken:
            if not skip:
                yield Row(file, {}, problem=self.broken[file])
            return
        folder, at = Path(file).parent, 0
        try:
            with pq.ParquetFile(file, memory_map=True) as opened:
                schema = Schema(file, opened.schema_arrow, self.each, self.columns)
                for batch in opened.iter_batches(64, row_groups=[group], use_threads=False):
                    for i in range(max(0, skip - at), len(batch)):
                        (fields,) = batch.slice(i, 1).to_pylist()
                        yield schema.row(f"{file} row group {group} row {at + i}", fields, folder)
                    at += len(batch)
        except (OSError, pa.ArrowException) as error:
            if skip <= at:
                where = f"{file} row group {group} row {at}"
                yield Row(where, {}, problem=f"{where}: the rest of the row group cannot be read: {error}")
