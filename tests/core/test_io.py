"""Files that are written completely or not at all, the lock of a folder, the summary of an error."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

import magma
from magma import InputError, TrainingError


@pytest.mark.parametrize(
    ("content", "expected"),
    [("ä\r\n", "ä\r\n".encode()), (b"\x00\xff", b"\x00\xff"), (lambda path: path.write_text("by path"), b"by path")],
)
def test_atomic_write_of_text_bytes_and_by_path(content: object, expected: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for _ in range(2):  # the second time it replaces a file
        magma.atomic_write(path, content)  # type: ignore[arg-type]
        assert path.read_bytes() == expected
        assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    magma.atomic_write(path, "old")

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        magma.atomic_write(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_gives_the_mode_of_a_new_file(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    expected = stat.S_IMODE((tmp_path / "new").stat().st_mode)

    def private(partial: Path) -> None:  # as safetensors does
        partial.unlink()
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))

    magma.atomic_write(tmp_path / "file", private)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == expected


def test_folder_lock_excludes_a_second_process_and_leaves_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "new/folder"
    for error in (InputError, TrainingError):
        with magma.folder_lock(folder):
            with (
                pytest.raises(error, match="is being written by another process"),
                magma.folder_lock(folder, error=error),
            ):
                pass
            assert (folder / ".lock").exists()
        assert list(folder.iterdir()) == []


def test_folder_lock_warns_in_the_log_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with caplog.at_level(logging.WARNING), magma.folder_lock(tmp_path):
        pass
    assert caplog.messages == [
        f"{tmp_path}/.lock cannot be locked: Operation not supported; do not start a second process that writes to "
        f"{tmp_path}"
    ]


def test_error_summary() -> None:
    assert magma.error_summary(ValueError("\n first\nsecond")) == "first"
    assert magma.error_summary(ValueError("field:\n    wrong type\nthird")) == "field: wrong type"
    assert magma.error_summary(KeyboardInterrupt()) == "KeyboardInterrupt"
