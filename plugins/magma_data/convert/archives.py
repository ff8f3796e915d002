"""Reads files from compressed tar archives (`.tgz`), such as packages of npm, without unpacking them."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from magma import InputError

from ..formats import iter_members
from .images import ImageError, ImageSource

_FOLDERS_IN_MEMORY = 8
"""A compressed archive has no index. So a process reads each folder once, from begin to end, and keeps its files."""


@dataclass(frozen=True, slots=True)
class ArchiveImage(ImageSource):
    """A file in a folder of an archive. Each process keeps the files of the folder in memory."""

    archive: str
    folder: str
    name: str

    def read(self, timeout: float) -> bytes:
        try:
            return read_archive_folder(self.archive, self.folder)[self.name]
        except KeyError:
            raise ImageError("missing image") from None


@lru_cache(_FOLDERS_IN_MEMORY)
def read_archive_folder(archive: str, folder: str) -> Mapping[str, bytes]:
    """The files of a folder in an archive, by name, without subfolders. Raises `InputError` for a damaged archive.

    `folder` is relative to the top folder of the archive, whose name does not matter.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(Path(archive), "r:gz") as tar:
            for member in iter_members(tar):
                path = PurePosixPath(member.name)
                if path.parts[1:-1] == PurePosixPath(folder).parts:
                    opened = tar.extractfile(member)
                    assert opened is not None  # `iter_members` yields files only
                    found[path.name] = opened.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{archive}: {error}; perhaps the download was incomplete") from error
    return found
