"""What is allowed where pydantic finds a mistake, in the words of a recipe: tables, lists, whole numbers."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true, false",
    "string": "a string",
    "dict": "a table",
    "mapping": "a table",
    "model": "a table",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
}
"""By the beginning of the type of an error, such as `int_parsing`."""
_ENTRIES = {"too_short": ("at least", "min_length"), "too_long": ("at most", "max_length")}


def allowed(error: Any, annotation: Any) -> str:
    """What is allowed in place of the value that an error is about.

    Args:
        error: One of `ValidationError.errors()`.
        annotation: The type of the key. None: unknown.
    """
    kind, context = error["type"], error.get("ctx", {})
    if kind in _ENTRIES:
        if (length := _fixed_length(annotation)) is not None:
            return f"a list of {length} entries"
        which, key = _ENTRIES[kind]
        return f"{which} {context[key]} {'entry' if context[key] == 1 else 'entries'}"
    if kind == "string_too_short":
        return f"at least {context['min_length']} character{'s' * (context['min_length'] != 1)}"
    if kind == "union_tag_invalid":
        return str(context["expected_tags"])
    if kind in ("union_tag_not_found", "model_attributes_type"):
        return "a table with `use`"
    first = kind.partition("_")[0]
    if kind.endswith(("_type", "_parsing", "_from_float")) and first in _WORDS:
        uses = [one.model_fields["use"] for one in models_in(annotation) if "use" in one.model_fields]
        needs_use = first == "model" and any(use.is_required() for use in uses)
        return "a table with `use`, the name of a part" if needs_use else _WORDS[first]
    message: str = error["msg"]
    return message.removeprefix("Value error, ").removeprefix("Input should be ")


def is_list_of_tables(annotation: Any) -> bool:
    """Whether a key holds several tables, which TOML writes as [[key]]."""
    return _sequence(annotation) and any(True for _ in models_in(annotation))


def _sequence(annotation: Any) -> bool:
    return get_origin(_plain(annotation)) in (tuple, list)


def _fixed_length(annotation: Any) -> int | None:
    """The number of entries of a list that has a fixed number of them."""
    arguments = get_args(_plain(annotation)) if _sequence(annotation) else ()
    return len(arguments) if arguments and ... not in arguments and get_origin(_plain(annotation)) is tuple else None


def _plain(annotation: Any) -> Any:
    """A type without `Annotated` and `None`, and the only list of several types."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        inside = [one for one in get_args(annotation) if one is not type(None)]
        lists = [one for one in inside if _sequence(one)]
        return _plain(lists[0] if len(lists) == 1 else inside[0])
    return annotation


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The tables that a type contains."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    if get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            yield from models_in(argument)


def annotation_at(model: type[BaseModel], location: Sequence[Any]) -> Any:
    """The type of the key at a location of an error; None if it is not known."""
    here: list[Any] = [model]
    found: Any = None
    for part in location:
        models = [one for one in here if part in one.model_fields]
        if models:
            found = models[0].model_fields[part].annotation
            here = list(models_in(found))
        else:  # an index, a key of a dict, or the name of a type
            found = _inside(found, part)
            tagged = [one for one in here if "use" in one.model_fields and part in _tags(one)]
            here = tagged or here
    return found


def _inside(annotation: Any, part: Any) -> Any:
    arguments = get_args(_plain(annotation))
    if get_origin(_plain(annotation)) is dict:
        return arguments[-1]
    if isinstance(part, int) and arguments:
        return arguments[part] if _fixed_length(annotation) and part < len(arguments) else arguments[0]
    return annotation


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["use"].annotation)


def fields_at(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """The keys that a table inside a config may have."""
    found = list(models_in(annotation_at(model, location))) if location else [model]
    tagged = [one for one in found if location and "use" in one.model_fields and location[-1] in _tags(one)]
    return [field for one in (tagged or found)[:1] for field in one.model_fields]
