"""Parse TOML and JSON of unknown origin. Every failure is a `ValueError` with a reason."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

DEPTH = 100
"""Maximum nesting of a file: parsers are recursive, and recipes need fewer than ten levels."""


class TooDeep(ValueError):
    """A file is nested in more than `DEPTH` levels."""

    def __init__(self) -> None:
        super().__init__(f"it is nested in more than {DEPTH} levels")


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML. Raises `ValueError` if the text is not TOML, and `TooDeep`."""
    return dict(_parse(tomllib.loads, text))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises `ValueError` if the text is not JSON, and `TooDeep`."""
    return _parse(json.loads, text)


def _parse(parser: Callable[[Any], Any], text: str | bytes) -> Any:
    try:
        found = parser(text)
    except RecursionError:
        raise TooDeep from None
    check_depth(found)
    return found


def check_depth(value: Any) -> None:
    """Raise `TooDeep` for more than `DEPTH` levels of tables and arrays. Dots in a TOML key make levels too."""
    level = [value]
    for _ in range(DEPTH):
        level = [inner for one in level for inner in _inside(one) if isinstance(inner, Mapping | list | tuple)]
        if not level:
            return
    raise TooDeep


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()
