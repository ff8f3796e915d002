"""Rows of lists of web images: filters, and reading parquet files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magma import InputError

from .base_set import Options

SIZE_COLUMNS = ("original_width", "original_height", "width", "height")


def find_reason_to_drop(row: Mapping[str, Any], options: Options, where: str) -> str:
    """Why a row is dropped before its image is read; "" if it is not. Raises `InputError`."""
    if options.min_similarity is not None:
        if "similarity" not in row:
            raise InputError(
                f"{where} are {', '.join(row)}; --min-similarity needs `similarity`, which img2dataset keeps with "
                "--save_additional_columns '[\"similarity\"]'"
            )
        similarity = to_number(row, "similarity")
        if similarity is None or similarity < options.min_similarity:
            return f"similarity below {options.min_similarity:g}"
    if options.min_size:
        sides = [to_number(row, f"original_{side}") or to_number(row, side) for side in ("width", "height")]
        if any(side is not None and side < options.min_size for side in sides):
            return f"smaller than {options.min_size} pixels"
    return ""


def to_number(row: Mapping[str, Any], key: str) -> float | None:
    """The number in a field; None if it is missing, not a number, or not finite."""
    try:
        value = float(row[key])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def read_parquet(path: Path, wanted: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows with only the wanted columns, whose names are compared and returned in lower case. Raises `InputError`."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        columns = [name for name in table.schema_arrow.names if name.lower() in wanted]
        for batch in table.iter_batches(4096, columns=columns):
            for row in batch.to_pylist():
                yield {name.lower(): value for name, value in row.items()}
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a parquet file, or a damaged one: {error}") from error
