"""`--set PATH=VALUE`: change one value of a recipe before it is checked."""

from __future__ import annotations

import re
from typing import Any

from .notation import DEPTH, TooDeep, parse_toml
from .tables import set_length


def apply_override(raw: dict[str, Any], text: str, problems: list[str]) -> None:
    """Apply `a.b.0.c=value`; the value is in TOML's notation, or a bare string. Mistakes are added to `problems`."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        problems.append(f"--set {text}: allowed: path=value, such as train.lr=1e-4")
        return
    try:
        if path.count(".") >= DEPTH:
            raise TooDeep
        parsed = parse_toml(f"value = {value}")["value"]
    except TooDeep as error:
        problems.append(f"--set {path[:40]}: {error}")
        return
    except ValueError:
        parsed = value
    try:
        holder, key = locate(raw, path)
        holder[key] = parsed
        if re.fullmatch(r"(stages\.\d+\.)?train\.\w+", path):
            set_length(holder, str(key))
    except (AttributeError, IndexError, ValueError, TypeError):
        problems.append(f"--set {text}: there is no {path} to set")


def locate(raw: dict[str, Any], path: str) -> tuple[Any, str | int]:
    """The table or array that contains the value of a dotted path, and its key. Missing tables are created."""
    *parents, last = path.split(".")
    here: Any = raw
    for key in parents:
        here = here[_index(key)] if isinstance(here, list) else here.setdefault(key, {})
    return here, _index(last) if isinstance(here, list) else last


def _index(key: str) -> int:
    """An index of an array. Raises `IndexError` for a negative one."""
    if key.startswith("-"):
        raise IndexError(key)
    return int(key)
