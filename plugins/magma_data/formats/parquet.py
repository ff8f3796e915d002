"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from magma import InputError

from .arrow_schema import ArrowSchema
from .columns import Columns
from .order import StreamedRows
from .row import Row


class ParquetRows(StreamedRows):
    """Row groups of parquet files, each of which is a shard that is decoded sequentially."""

    def __init__(self, files: Sequence[str], list_field: str | None, buffer: int, columns: Columns) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        groups: list[tuple[str, int]] = []
        self.broken: dict[str, str] = {}
        for file in files:
            try:
                with pq.ParquetFile(file) as opened:
                    groups += [(file, group) for group in range(opened.num_row_groups)]
                    ArrowSchema(file, opened.schema_arrow, list_field, columns)
            except (OSError, pa.ArrowException) as error:
                self.broken[file] = f"{file} cannot be read as parquet: {error}"
                if len(self.broken) == len(files) or getattr(error, "errno", None):
                    raise InputError(self.broken[file]) from error
                groups.append((file, 0))
        super().__init__(groups, list_field, buffer)

    def samples(self, shard: tuple[str, int], skip: int) -> Iterator[Row]:
        """The rows of a row group; for a file that cannot be read, one row that reports it."""
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
                schema = ArrowSchema(file, opened.schema_arrow, self.list_field, self.columns)
                for batch in opened.iter_batches(64, row_groups=[group], use_threads=False):
                    for i in range(max(0, skip - at), len(batch)):
                        (fields,) = batch.slice(i, 1).to_pylist()
                        yield schema.row(f"{file} row group {group} row {at + i}", fields, folder)
                    at += len(batch)
        except (OSError, pa.ArrowException) as error:
            if skip <= at:
                where = f"{file} row group {group} row {at}"
                yield Row(where, {}, problem=f"{where}: the rest of the row group cannot be read: {error}")
