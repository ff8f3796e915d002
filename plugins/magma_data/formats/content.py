"""What bytes say: a JSON object, or text."""

from __future__ import annotations

import json
from typing import Any

from magma import InputError


def parsed(where: str, raw: bytes) -> dict[str, Any]:
    """The fields of a JSON object. Raises `InputError`."""
    try:
        fields = json.loads(raw)
    except ValueError as error:
        raise InputError(f"{where}: no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: given a {type(fields).__name__}; allowed: a JSON object")
    return fields


def decoded(where: str, raw: bytes) -> str:
    """Text in UTF-8. Raises `InputError`."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: no UTF-8: {error}") from error
