"""Errors of the disk that are a matter of the user's: which path of the command line they speak of."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..system.home_paths import expand_home

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Whatever path it is, the disk or its owner says no."""


def of_the_disk(error: OSError, words: list[str]) -> str | None:
    """What keeps a path of the user's from being read or written; None for what may be a mistake of ours.

    `words` are those of the command line, and what stands for one that was not given: the user's paths.
    """
    reason = error.strerror or str(error)
    if not isinstance(error.filename, str | bytes):
        return reason if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    path = os.fsdecode(error.filename)
    named = (_said_of(path, word.rpartition("=")[2], error.errno) for word in words)
    said = next(filter(None, named), path if error.errno in _REFUSED else None)
    return said and f"{said} cannot be read or written: {reason}"


def _said_of(path: str, word: str, number: int | None) -> str | None:
    """How a path is called that a word names, or that is above it, inside it, or beside it to take its place."""
    found, wanted = (Path(os.path.realpath(expand_home(Path(one)))) for one in (path, word))
    if not word:
        return None
    if found.parent == wanted.parent and (found == wanted or found.name.startswith(f".{wanted.name}.")):
        return word
    # Inside it the program itself has to know which files there are.
    inside = wanted in found.parents and number != errno.ENOENT
    return path if inside or found in wanted.parents else None
