"""Mistakes that pydantic finds, one line each: the key, what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ..errors import did_you_mean

NEEDS = "needs"
"""Type of an error whose message is a whole sentence: one key needs another one."""


def explain(model: type[BaseModel], error: Any, prefix: str = "") -> str:
    """A mistake in one line: dotted path, what was given, what is allowed."""
    location = [str(part) for part in error["loc"] if part != "[key]"]
    path = ".".join([prefix, *location] if prefix else location) or prefix or "recipe"
    if error["type"] == "missing":
        return f"{path}: missing; it has no default"
    if error["type"] == "extra_forbidden":
        allowed = _fields_at(model, error["loc"][:-1])
        hint = did_you_mean(location[-1], allowed)
        return f"{path}: given {shown(error['input'])}, an unknown key.{hint} Allowed: {', '.join(allowed)}"
    if error["type"] == NEEDS:
        return f"{path}: {error['msg']}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    given = error["input"]
    what = _cut(f"a table with {', '.join(map(str, given))}") if isinstance(given, Mapping) else shown(given)
    return f"{path}: given {what}; allowed: {message}"


def shown(given: Any) -> str:
    """A value as an error shows it, truncated if it is long."""
    return _cut(repr(given))


def _cut(text: str) -> str:
    """At most 200 characters, about two lines of a terminal."""
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _fields_at(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """The keys that a table inside a config may have."""
    here = [model]
    for part in location:
        inside = [m.model_fields[part].annotation for m in here if part in m.model_fields]
        if inside:
            here = [m for annotation in inside for m in _models_in(annotation)]
        else:  # an index, a key of a dict, or the tag of a union
            here = [m for m in here if "use" in m.model_fields and part in _tags(m)] or here
    return [field for m in here[:1] for field in m.model_fields]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    return getattr(model.model_fields["use"].annotation, "__args__", ())


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
