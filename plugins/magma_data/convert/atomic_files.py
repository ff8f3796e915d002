"""Files that are written completely or not at all: under a temporary name first, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def partial_path(path: Path) -> Path:
    """The temporary name of a file."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def open_atomically(path: Path) -> Iterator[IO[str]]:
    """A text file to write; it gets its name when the block ends, and is deleted where the block raises."""
    partial = partial_path(path)
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """A JSON file."""
    with open_atomically(path) as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A whole JSON object."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
