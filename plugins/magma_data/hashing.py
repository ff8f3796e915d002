"""Hashes of media by content, so that a few-shot example never has the medium of the question."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np


def content_hash(value: Any) -> str:
    """A hash of a medium: equal for files and members of shards with the same bytes.

    `value` is a path, bytes, or an array. The hash of a file that cannot be read is its path.
    """
    if isinstance(value, Path):
        try:
            known = value.stat()
            return _hash_file(value, known.st_mtime_ns, known.st_size)
        except OSError:
            return str(value.resolve())
    if isinstance(value, np.ndarray):
        head = f"{value.dtype} {value.shape} ".encode()
        return hashlib.sha256(head + value.tobytes()).hexdigest()
    return hashlib.sha256(value).hexdigest()


@lru_cache(4096)
def _hash_file(path: Path, *_: int) -> str:
    """The other arguments, modification time and size, are part of the cache key."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
