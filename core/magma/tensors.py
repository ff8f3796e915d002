"""Read tensors from files of unknown origin: the file is checked first, and no code in it is executed."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError
from .io import error_summary

ALLOWED = "allowed: a .safetensors file, or a torch file of tensors"
_BEFORE_1_6 = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of a file of torch before 1.6: its pickled magic number."""


def read_tensors(path: str | Path, level: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a .safetensors file or of a file of torch.save. No code in the file is executed.

    The bytes of a torch file are compared with its checksums, and the sizes of its tensors with the stored ones;
    safetensors, and torch before 1.6, have only sizes. Files are memory-mapped (those of torch before 1.6 are read).

    Args:
        path: The file.
        level: Key of a dictionary inside the file that contains the tensors, such as "state_dict".

    Returns:
        Tensors by name: dense, contiguous, on the CPU. And the file's whole top level if the tensors are in `level`,
        otherwise an empty dictionary.

    Raises:
        CheckpointError: The file is missing, damaged, or contains something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; {ALLOWED}")
    top: Any = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    if not isinstance(top, dict):
        raise CheckpointError(f"{path} holds a {type(top).__name__}; allowed: a dictionary of tensors")
    inside = bool(level) and isinstance(top.get(level), dict)
    found = {name: _plain(path, name, value) for name, value in (top[level] if inside else top).items()}
    return found, top if inside else {}


def _plain(path: Path, name: Any, value: Any) -> Tensor:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise CheckpointError(f"{path}: {name!r} is a {type(value).__name__}; allowed: tensors by name")
    if value.layout is torch.strided and value.is_cpu and not value.is_quantized and not value.is_complex():
        by_stride = sorted(range(value.ndim), key=value.stride, reverse=True)
        # Each element is stored once: this is true of transposed tensors and false of expanded ones.
        if value.permute(by_stride).is_contiguous():
            return value.detach().contiguous()
    raise CheckpointError(f"{path}: {name} is not a plain dense tensor")


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _torch(path: Path) -> Any:
    if _begins_with(path, _BEFORE_1_6):
        return _loaded(path, map_location="cpu")
    stored = _checked_entries(path)
    storages: list[Any] = []

    def keep(storage: Any, _: str) -> Any:
        storages.append(storage)
        return storage

    found = _loaded(path, map_location=keep, mmap=True)
    # torch maps as many bytes as the pickle asks for, even if its entry is shorter and another's bytes follow
    asked = [storage.nbytes() for storage in sorted(storages, key=lambda storage: storage.data_ptr())]
    if [size for size in asked if size] != [size for size in stored if size]:
        raise CheckpointError(f"{path} is damaged: its tensors do not have the stored sizes")
    return found


def _begins_with(path: Path, wanted: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(wanted)) == wanted
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _checked_entries(path: Path) -> list[int]:
    """Sizes in bytes of the storages in an archive of torch.save, in order, after a check of every byte."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
                raise CheckpointError(f"{path} is a compressed archive; allowed: one that torch.save wrote")
            if len({entry.filename for entry in entries}) < len(entries):
                raise CheckpointError(f"{path} holds two entries of one name; allowed: one that torch.save wrote")
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes raise many kinds of errors in zipfile
        raise CheckpointError(
            f"{path} is not an archive of torch.save, or is incomplete: {type(error).__name__}: {error}"
        ) from error
    if damaged is not None:
        raise CheckpointError(f"{path}: {damaged} was modified after saving, or is damaged")
    return [entry.file_size for entry in entries if entry.filename.partition("/")[2].startswith("data/")]


def _loaded(path: Path, **how: Any) -> Any:
    try:
        return torch.load(path, weights_only=True, **how)
    except Exception as error:  # damaged bytes raise many kinds of errors in the unpickler
        raise CheckpointError(f"{path} is refused: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What is wrong, without torch's advice to load the file anyway."""
    found = re.search(r"GLOBAL (\S+)|function (\S+)|Unsupported (?:class|operand) (\S+)", str(error))
    if found:
        wanted = next(group for group in found.groups() if group)
        return f"it contains {wanted}, not only tensors; nothing was executed"
    return error_summary(error)[:300]
