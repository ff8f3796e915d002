"""Parses JSON and text, and opens compressed files."""

from __future__ import annotations

import codecs
import json
import zlib
from pathlib import Path
from typing import IO, Any, cast

from magma import InputError

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
DECOMPRESSION_ERRORS = (OSError, EOFError, zlib.error)
"""Exceptions for a damaged or truncated compressed file; `lzma` has another one."""


def parse_json(where: str, raw: bytes) -> dict[str, Any]:
    """The fields of a JSON object. Raises `InputError`."""
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: given a {type(fields).__name__}; allowed: a JSON object")
    return fields


def decode_text(where: str, raw: bytes) -> str:
    r"""UTF-8 text without byte order mark, with `\n` as line break. Raises `InputError`."""
    try:
        text = strip_bom(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8: {error}") from error
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def strip_bom(raw: bytes) -> bytes:
    """Remove the byte order mark of UTF-8. Raises `InputError` for UTF-16."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError("the encoding is UTF-16; allowed: UTF-8; convert it with `iconv -f UTF-16 -t UTF-8`")
    return raw.removeprefix(codecs.BOM_UTF8)


def open_decompressed(file: Path) -> IO[bytes]:
    """Open a file for reading, decompressed. Raises `OSError`."""
    import bz2
    import gzip
    import io
    import lzma

    match file.suffix.lower():
        case ".gz" | ".tgz":
            return cast(IO[bytes], gzip.open(file, "rb"))
        case ".bz2":
            return bz2.open(file, "rb")
        case ".xz":
            return lzma.open(file, "rb")
        case ".zst":
            import pyarrow as pa

            try:
                return io.BufferedReader(pa.input_stream(str(file), compression="zstd"), 2**16)
            except pa.ArrowNotImplementedError as error:
                raise InputError(
                    f"{file}: this build of pyarrow does not support zstd; allowed: the pyarrow of PyPI"
                ) from error
    return file.open("rb")
