"""Files and folders that are written completely or not at all, a lock for a folder, and the summary of an error."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError, MagmaError

_LOCK = ".lock"


def atomic_write(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file under a temporary name beside it, flush it to disk, then rename it.

    A reader sees the old file or the new one, never a part of it. A failed write leaves the old file as it was.

    Args:
        path: The file to write. Its folder must exist.
        content: Text (stored as UTF-8, line ends unchanged), bytes, or a function that is called with the temporary
            path and writes the file there, for libraries that want a path. The temporary path has another suffix.

    Raises:
        OSError: If the file cannot be written. Whatever `content` raises is passed on.

    Example:
        >>> atomic_write(Path("weights.safetensors"), lambda partial: save_file(tensors, partial))
    """
    partial = _partial(path)
    try:
        if callable(content):
            partial.touch()  # fails before any work if the folder cannot be written
            mode = stat.S_IMODE(partial.stat().st_mode)
            content(partial)
            _allow(partial, mode)
        else:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill. It replaces `folder` when the block ends, and is deleted if the block raises.

    Args:
        folder: The folder to write. Its parents are created. What it holds is replaced as a whole.

    Yields:
        The temporary folder beside it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _apply_umask(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)


def _partial(path: Path) -> Path:
    """The temporary name of a file or folder."""
    return path.with_name(f".{path.name}.partial")


def _apply_umask(folder: Path) -> None:
    """Give each file the mode that the umask gives a new one: safetensors lets only the owner read its files."""
    new = folder / ".new"
    new.touch()
    mode = stat.S_IMODE(new.stat().st_mode)
    new.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            _allow(path, mode)


def _allow(path: Path, mode: int) -> None:
    """Add the permissions of `mode` to a file."""
    present = stat.S_IMODE(path.stat().st_mode)
    if mode & ~present:
        path.chmod(present | mode)


@contextmanager
def folder_lock(
    folder: Path, warn: Callable[[str], None] | None = None, error: type[MagmaError] = InputError
) -> Iterator[None]:
    """Let one process at a time write to a folder, which is created if it does not exist.

    The lock ends with the process, however it ends. Children that it forks do not hold it.

    Args:
        folder: The folder to lock, with a file `.lock` in it.
        warn: Receives a message if the file system has no locks; nothing is locked then. Default: a log message.
        error: The class of the error to raise.

    Raises:
        error: If another process holds the lock.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    with path.open("w") as lock:
        os.register_at_fork(after_in_child=lock.close)  # a worker that outlives its parent does not hold the lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            raise error(f"{folder} is being written by another process: wait for it, or end it first") from held
        except OSError as unsupported:
            reason = f"{path} cannot be locked: {unsupported.strerror}"
            report = warn or logging.getLogger(__name__).warning
            report(f"{reason}; do not start a second process that writes to {folder}")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def error_summary(error: BaseException) -> str:
    """The first line of an error's message, and the second one if the first ends with a colon.

    The name of its class if it has no message. Errors of files are said in words, without number and path.
    """
    if isinstance(error, OSError) and error.strerror:
        known = {FileNotFoundError: "it does not exist", IsADirectoryError: "it is a folder"}
        return known.get(type(error), error.strerror)
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {others[0].strip()}" if others and first.endswith(":") else first
