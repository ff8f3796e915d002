"""Are two media the same? By their content, however they are stored: no example is shown that is asked about."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np


def content_hash(value: Any) -> str:
    """A name of a medium's content: equal for a file, the same bytes in a shard, and another file with these bytes.

    `value` is a file, its bytes, or an array. A file that cannot be read is named by its path.
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
    """When it was changed and its size are arguments, too: a file that is written anew is another one."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
