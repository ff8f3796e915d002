"""Errors of the file system that a user can correct: which path of the command line they are about."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..system.home_paths import expand_home

_USER_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Errors that are the user's whatever the path is: permissions, a read-only or a full disk."""


def disk_problem(error: OSError, words: list[str]) -> str | None:
    """Why a path of the user cannot be read or written; None for what may be a bug of this program.

    `words` are the words of the command line and the default paths.
    """
    reason = error.strerror or str(error)
    if not isinstance(error.filename, str | bytes):
        return reason if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    path = os.fsdecode(error.filename)
    named = (_name_in_command(path, word.rpartition("=")[2], error.errno) for word in words)
    name = next(filter(None, named), path if error.errno in _USER_ERRORS else None)
    return name and f"{name} cannot be read or written: {reason}"


def _name_in_command(path: str, word: str, number: int | None) -> str | None:
    """The name of a path that a word means, or that is above it, inside it, or a temporary file beside it."""
    found, wanted = (Path(os.path.realpath(expand_home(Path(one)))) for one in (path, word))
    if not word:
        return None
    if found.parent == wanted.parent and (found == wanted or found.name.startswith(f".{wanted.name}.")):
        return word
    # Inside a folder, a missing file is the program's mistake.
    inside = wanted in found.parents and number != errno.ENOENT
    return path if inside or found in wanted.parents else None
