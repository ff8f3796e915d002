"""What a recipe's keys are: the type, default and meaning of each, as `magma recipe keys` prints them."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ..errors import RecipeError, did_you_mean
from ..interfaces import KINDS
from ..plugins.part_of import NestedKeys, PartOf
from ..plugins.registry import installed
from .recipe import Recipe
from .schema import (
    AdapterUse,
    Constant,
    Cosine,
    Data,
    FeatureCacheTable,
    Init,
    InputTable,
    LearnerKeys,
    Linear,
    Optimizer,
    SourceKeys,
    TaskTable,
    Train,
)
from .stages import InputStage, PartStage, Stage

FRAMEWORK_TABLES: dict[str, type[BaseModel]] = {
    "Top level": Recipe,
    "`[init]`": Init,
    "`[inputs.NAME]`": InputTable,
    "`[inputs.NAME.cache]`": FeatureCacheTable,
    "`inputs.NAME.prefix`, `[adapters.NAME]` and `[head]`": LearnerKeys,
    "Parts with weights inside other parts": NestedKeys,
    "`[adapters.NAME]`": AdapterUse,
    "`[data]`": Data,
    "`[[data.train]]`": SourceKeys,
    "`[[tasks]]`": TaskTable,
    "`[train]`": Train,
    '`train.schedule`, `use = "constant"`': Constant,
    '`train.schedule`, `use = "cosine"`': Cosine,
    '`train.schedule`, `use = "linear"`': Linear,
    "`train.optimizer`": Optimizer,
    "`[[stages]]`": Stage,
    "`inputs.NAME` of a stage": InputStage,
    "`inputs.NAME.prefix`, `adapters.NAME` and `head` of a stage": PartStage,
}
"""Every table that the framework itself reads, by the title that documents give it."""
_LONGEST_DEFAULT = 90
_BOUNDS = {annotated_types.Gt: ">", annotated_types.Ge: ">=", annotated_types.Lt: "<", annotated_types.Le: "<="}
_COUNTABLE = {"string", "integer", "number", "table", "value"}
_TYPES = {str: "string", int: "integer", float: "number", bool: "true, false"}


@dataclass(frozen=True)
class Key:
    """One key of a table."""

    name: str
    type: str
    """As a person who writes TOML thinks of it. Literal values are in backticks."""
    default: str
    """"required", "none", or a value in TOML's notation."""
    description: str
    """A plain sentence; empty if the plugin's author wrote none."""


def keys_of(model: type[BaseModel]) -> list[Key]:
    """The keys of a table, in order."""
    return [
        Key(name, _type(field), _default(field), " ".join((field.description or "").split()))
        for name, field in model.model_fields.items()
    ]


def find_tables(name: str | None = None) -> dict[str, type[BaseModel]]:
    """Title to model of the tables that a name means.

    Args:
        name: A table such as "train" or "train.schedule", the name of a part such as "linear", a kind such as "encoder"
            for all its parts, or both as "prefix linear". None: all tables of the framework and all installed parts.

    Raises:
        RecipeError: There is no such table or part. The message names the closest ones.
    """
    parts = {f"{entry.kind} {entry.name}": entry.part.Config for entry in installed().entries()}
    if name is None:
        return {**FRAMEWORK_TABLES, **parts}
    found = {title: model for title, model in FRAMEWORK_TABLES.items() if name in _short_names(title)}
    found |= {title: model for title, model in parts.items() if name in (title, *title.split())}
    if not found:
        known = dict.fromkeys(word for title in FRAMEWORK_TABLES for word in _short_names(title))
        known |= dict.fromkeys(KINDS) | dict.fromkeys(title.split()[1] for title in parts)
        raise RecipeError(
            "the recipe's keys",
            [f"given {name!r}, not a table or a part.{did_you_mean(name, known)} Allowed: {', '.join(known)}"],
        )
    return found


def _short_names(title: str) -> list[str]:
    """The names by which a table may be asked for: "train.schedule" for '`train.schedule`, `use = "cosine"`'."""
    if title == "Top level":
        return ["recipe"]
    names = [part.strip("`[]").removesuffix(".NAME") for part in title.split("`")[1::2]]
    names = [name for name in names if " = " not in name]
    return ["stages"] if title.endswith("of a stage") else names


def _type(field: FieldInfo) -> str:
    bounds = [text for part in field.metadata for text in _bounds(part)]
    return ", ".join([_named(field.annotation), *bounds])


def _bounds(constraint: Any) -> Iterator[str]:
    for kind, sign in _BOUNDS.items():
        if isinstance(constraint, kind):
            limit = getattr(constraint, kind.__name__.lower())
            if abs(limit) < 2**63:  # that a number fits into 64 bits needs no words
                yield f"{sign} {limit}"


def _named(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        bounds = [text for part in arguments[1:] for text in _bounds(part)]
        return ", ".join([_named(arguments[0]), *bounds])
    if origin is typing.Literal:
        return ", ".join(f"`{_toml(value)}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_named(one) for one in arguments if one is not type(None)))
    if origin in (tuple, list):
        item, comma, limits = _named(arguments[0]).partition(",")
        return f"array of {item}{'s' if item.split()[-1] in _COUNTABLE else ''}{comma}{limits}"
    if isinstance(annotation, type) and issubclass(annotation, PartOf):
        return f"{annotation.kind()} table"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "table"
    return _TYPES.get(annotation, "value")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined or value in ({}, (), []):
        return "none"
    text = _toml(value)
    if isinstance(value, BaseModel):
        given = value.model_dump(exclude_unset=True) or value.model_dump()
        pairs = [f"{key} = {_toml(one)}" for key, one in given.items() if one not in (None, ())]
        if not pairs:
            return "none"
        text = f"{{ {', '.join(pairs)} }}"
    return text if len(text) <= _LONGEST_DEFAULT else f"{text[:_LONGEST_DEFAULT]} ..."


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"{}"'.format(value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"'))
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(one)}' for key, one in value.items())} }}"
    return str(value)
