"""What bytes say: a JSON object, or text; and how a file that may be compressed is opened."""

from __future__ import annotations

import codecs
import json
import zlib
from pathlib import Path
from typing import IO, Any, cast

from magma import InputError

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
DAMAGED = (OSError, EOFError, zlib.error)
"""What reading a compressed file raises where it is damaged or cut off; `lzma` has an error in addition."""


def parse_json(where: str, raw: bytes) -> dict[str, Any]:
    """The fields of a JSON object. Raises `InputError`."""
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: given a {type(fields).__name__}; allowed: a JSON object")
    return fields


def decode_text(where: str, raw: bytes) -> str:
    r"""Text in UTF-8, without a byte order mark, its lines separated by `\n`. Raises `InputError`."""
    try:
        text = strip_bom(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: no UTF-8: {error}") from error
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def strip_bom(raw: bytes) -> bytes:
    """The beginning of a file without UTF-8's byte order mark. Raises `InputError` for UTF-16."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError("it is in UTF-16; allowed: UTF-8, into which `iconv -f UTF-16 -t UTF-8` converts it")
    return raw.removeprefix(codecs.BOM_UTF8)


def open_decompressed(file: Path) -> IO[bytes]:
    """The bytes of a file, decompressed. Raises `OSError`."""
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
                    f"{file}: this build of pyarrow reads no zstd; allowed: the pyarrow of PyPI"
                ) from error
    return file.open("rb")
