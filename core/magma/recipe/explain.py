"""Mistakes that pydantic finds, one line each: the key, what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ..errors import did_you_mean
from .wording import allowed, annotation_at, fields_at, is_list_of_tables

NEEDS = "needs"
"""Type of an error whose message is a whole sentence: one key needs another one."""


def explain_all(
    model: type[BaseModel], errors: Sequence[Any], prefix: str = "", hint: Callable[[Any], str] = lambda _: ""
) -> list[str]:
    """All mistakes, one line each, with what `hint` adds to an error.

    A list that is too short because its entries have mistakes is not reported. A value that fits none of several types
    is one mistake.
    """
    places = [tuple(one["loc"]) for one in errors]
    kept = [
        one
        for one, place in zip(errors, places, strict=True)
        if one["type"] != "too_short" or not any(other[: len(place)] == place != other for other in places)
    ]
    return list(dict.fromkeys(explain(model, one, prefix) + hint(one) for one in _joined(kept)))


def _joined(errors: Sequence[Any]) -> list[Any]:
    """Errors without those of other types of one value; the first of them has the words of all in `either`."""
    groups: dict[Any, list[Any]] = {}
    for number, one in enumerate(errors):
        label = next((i for i, part in enumerate(one["loc"]) if _is_type(part)), None)
        groups.setdefault(number if label is None else tuple(one["loc"][:label]), []).append(one)
    found = []
    for place, group in groups.items():
        if isinstance(place, int):
            found += group
            continue
        whole = next((one for one in group if len(one["loc"]) == len(place) + 1), group[0])
        found.append({**whole, "loc": place, "either": group})
    return found


def _is_type(part: Any) -> bool:
    """Whether an element of a location names one of several types of a value, such as `int` or `tuple[int, int]`."""
    return isinstance(part, str) and (
        part in ("int", "float", "bool", "str", "nullable") or part.startswith(("tuple[", "list[", "dict[", "literal["))
    )


def explain(model: type[BaseModel], error: Any, prefix: str = "") -> str:
    """A mistake in one line: dotted path, what was given, what is allowed."""
    error = _without_index(error)
    location = [str(part) for part in error["loc"] if part != "[key]"]
    path = ".".join([prefix, *location] if prefix else location) or prefix or "recipe"
    if error["type"] == "missing":
        return f"{path}: missing; it has no default"
    if error["type"] == "extra_forbidden":
        known = fields_at(model, error["loc"][:-1])
        hint = did_you_mean(location[-1], known)
        return f"{path}: given {shown(error['input'])}, an unknown key.{hint} Allowed: {', '.join(known)}"
    if error["type"] == NEEDS:
        return f"{path}: {error['msg']}"
    annotation, given = annotation_at(model, error["loc"]), error["input"]
    if error["type"] == "union_tag_invalid":
        path, given = f"{path}.use", given["use"]
    if error["type"] in ("tuple_type", "list_type") and is_list_of_tables(annotation):
        return f"{path}: given {_described(given)}; allowed: tables, [[{path}]]"
    each = [_without_index(one) for one in error.get("either", [error])]
    words = " or ".join(dict.fromkeys(allowed(one, annotation) for one in each))
    return f"{path}: given {_described(given)}; allowed: {words}"


def _without_index(error: Any) -> Any:
    """A missing entry of a list of fixed length as a mistake of the list."""
    if error["type"] != "missing" or not error["loc"] or not isinstance(error["loc"][-1], int):
        return error
    return {**error, "loc": error["loc"][:-1], "type": "too_short", "ctx": {"min_length": error["loc"][-1] + 1}}


def _described(given: Any) -> str:
    if not isinstance(given, Mapping):
        return shown(given)
    return _cut(f"a table with {', '.join(map(str, given))}") if given else "a table without keys"


def shown(given: Any) -> str:
    """A value as an error shows it, truncated if it is long."""
    return _cut(repr(given))


def _cut(text: str) -> str:
    """At most 200 characters, about two lines of a terminal."""
    return text if len(text) <= 200 else f"{text[:200]} ..."
