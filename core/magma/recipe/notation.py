"""TOML and JSON that somebody else wrote: what they hold, or the reason why they cannot be read."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

DEPTH = 100
"""Most levels of nesting that a file may have: none of ours has ten, and parsers recurse."""


class TooDeep(ValueError):
    """Nested in more than `DEPTH` levels."""

    def __init__(self) -> None:
        super().__init__(f"it is nested in more than {DEPTH} levels")


def parse_toml(text: str) -> dict[str, Any]:
    """Raises `ValueError` for all that is not TOML, and `TooDeep`."""
    return dict(_parse(tomllib.loads, text))


def parse_json(text: str | bytes) -> Any:
    """Raises `ValueError` for all that is not JSON, and `TooDeep`."""
    return _parse(json.loads, text)


def _parse(parser: Callable[[Any], Any], text: str | bytes) -> Any:
    try:
        found = parser(text)
    except RecursionError:
        raise TooDeep from None
    check_depth(found)
    return found


def check_depth(value: Any) -> None:
    """Raise `TooDeep` for tables and arrays in more than `DEPTH` levels; dots in a TOML key make levels, too."""
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
