"""Entries in a folder of limited size, which several processes may share.

An entry is written under a temporary name and then renamed, so a reader sees all of it or nothing. No lock is needed:
equal keys have equal entries. A file that cannot be read, or is damaged, counts as absent.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .entry import HEADER, Entry, from_bytes, payload_length, to_bytes

DEFAULT_MAX_BYTES = 10_000_000_000
"""Default of the largest size of a cache."""
_PARTIAL = ".partial"
_ABANDONED = 3600.0
"""Seconds after which a temporary file belongs to no running process."""
_CHECK_EVERY = 0.05
"""The size is measured again after this fraction of the limit was written."""
_KEPT = 0.9
"""Fraction of the limit that remains when the oldest entries are removed."""

_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """$MAGMA_CACHE, or `magma` in the cache folder of the platform; in it, `features`."""
    if given := os.environ.get("MAGMA_CACHE"):
        return Path(given).expanduser() / "features"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "magma" / "features"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magma" / "features"


class _File(NamedTuple):
    modified: float
    size: int
    path: Path


class EntryStore:
    """The entries of one folder, by key."""

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Nothing is created before the first entry is written.

        Args:
            folder: The folder.
            max_bytes: The largest size of all entries. The oldest ones are removed when it is exceeded.
        """
        self.folder, self.max_bytes = folder, max_bytes
        self._written = 0
        self._measured = False
        self._began = time.time()
        self._reported: set[str] = set()

    def path(self, key: str) -> Path:
        """The file of an entry."""
        return self.folder / key[:2] / key

    def read(self, key: str) -> Entry | None:
        """The entry of a key; None if there is none, or if its file is damaged."""
        try:
            # A pipe or a device in its place would block, or never end.
            handle = os.open(self.path(key), os.O_RDONLY | os.O_NONBLOCK)
            with os.fdopen(handle, "rb") as file:
                found = os.fstat(handle)
                if not stat.S_ISREG(found.st_mode):
                    return None
                header = file.read(HEADER)
                if payload_length(header) != found.st_size - HEADER:
                    return None
                return from_bytes(key, header, file.read())
        except OSError:
            return None

    def write(self, key: str, entry: Entry) -> None:
        """Write an entry. If the folder cannot be written, a warning says so once, and the run continues without it."""
        path, content = self.path(key), to_bytes(key, entry)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._replace(path, content)
        except OSError as error:
            self._warn(f"the features in {self.folder} cannot be written: {error.strerror or error}")
            return
        self._written += len(content)
        if not self._measured or self._written > _CHECK_EVERY * self.max_bytes:
            self._limit_size()

    def _replace(self, path: Path, content: bytes) -> None:
        """Put a file in place of whatever is there."""
        handle, name = tempfile.mkstemp(_PARTIAL, ".", path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise

    def _limit_size(self) -> None:
        """Remove the oldest entries if all of them together exceed the limit."""
        self._written, self._measured = 0, True
        files = sorted(self._files())
        total = sum(file.size for file in files)
        if total <= self.max_bytes:
            return
        for file in files:
            if total <= _KEPT * self.max_bytes:
                break
            if file.modified >= self._began:
                self._warn(
                    f"the features of this run need more than the {self.max_bytes:,} bytes that the cache in "
                    f"{self.folder} may have: set a larger max_bytes"
                )
            with suppress(OSError):
                file.path.unlink()
            total -= file.size

    def _files(self) -> Iterator[_File]:
        """The files of all entries. Temporary files of processes that were killed are removed."""
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            try:
                found = path.lstat()
            except OSError:  # another process removed it
                continue
            if not stat.S_ISREG(found.st_mode):
                continue
            if path.suffix == _PARTIAL and found.st_mtime < time.time() - _ABANDONED:
                path.unlink(missing_ok=True)
            else:
                yield _File(found.st_mtime, found.st_size, path)

    def _warn(self, message: str) -> None:
        if message not in self._reported:
            self._reported.add(message)
            _log.warning("feature cache: %s", message)
