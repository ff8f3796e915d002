"""The tables of a recipe that name a part: each is checked by the `Config` of that part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import MISSING_NOUN, PluginError, RecipeError
from ..interfaces import PartConfig
from ..plugins.registry import installed
from .explain import explain
from .overrides import apply_override


def part_tables(raw: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(path, kind, table) of every table of a recipe that names a part, whatever its other mistakes."""

    def table(value: Any) -> Mapping[str, Any]:
        return value if isinstance(value, Mapping) else {}

    def array(value: Any) -> Sequence[Any]:
        return value if isinstance(value, list | tuple) else ()

    if "lm" in raw:
        yield "lm", "lm", raw["lm"]
    for name, way in table(raw.get("inputs")).items():
        for kind in ("encoder", "prefix"):
            if kind in table(way):
                yield f"inputs.{name}.{kind}", kind, table(way)[kind]
    for place, adapter in table(raw.get("adapters")).items():
        yield f"adapters.{place}", "adapter", adapter
    if raw.get("head") is not None:
        yield "head", "head", raw["head"]
    for use in ("train", "evaluation"):
        for i, source in enumerate(array(table(raw.get("data")).get(use))):
            yield f"data.{use}.{i}", "data", source
    for i, task in enumerate(array(raw.get("tasks"))):
        yield f"tasks.{i}", "task", task


# Keys of a part's table that the frame reads, not the part.
_FRAME_KEYS = {
    "adapters": ("lr", "trainable"),
    "data.train": ("weight",),
    "head": ("lr", "trainable"),
    "inputs": ("lr", "trainable"),
    "tasks": ("shots",),
}


def own_fields(path: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a part's table that its `Config` reads."""
    frame: tuple[str, ...] = ("use",)
    for prefix, keys in _FRAME_KEYS.items():
        if path.startswith(prefix) and not path.endswith(".encoder"):
            frame += keys
    return {key: value for key, value in table.items() if key not in frame}


def check_part(path: str, kind: str, table: Any, context: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The table with its config's defaults filled in; mistakes are added to `problems`."""
    if not isinstance(table, Mapping) or not isinstance(table.get("use"), str):
        return {}  # the frame has said so
    own = own_fields(path, table)
    for key in table.keys() - own.keys() - {"use", "shots"}:
        value = table[key]
        if key == "trainable":
            if not isinstance(value, bool):
                problems.append(f"{path}.{key}: given {value!r}; allowed: true, false")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            problems.append(f"{path}.{key}: given {value!r}; allowed: a number above 0, and finite")
    try:
        part = installed().find(kind, table["use"]).part
    except PluginError as error:
        problems.append(f"{path}.use: given {table['use']!r}; {error}")
        return {}
    if context.get("checkpoint"):
        own = {**part.Config.legacy_defaults, **own}
    try:
        config: PartConfig = part.Config.model_validate(own, context=context)
    except ValidationError as error:
        problems += [explain(part.Config, one, path) for one in error.errors()]
        return {}
    frame = {key: value for key, value in table.items() if key not in own}
    return {**frame, **config.model_dump(mode="json", exclude_none=True)}


def build_part(
    kind: str, name: str, fields: Mapping[str, Any], overrides: Sequence[str], needs_files: bool, *context: Any
) -> Any:
    """One part by itself, from its fields and `key=value` in TOML's notation; `context` is what its kind is built with.

    Raises `RecipeError` with every mistake, and with what this machine lacks where the part `needs_files`.
    """
    problems: list[str] = []
    table = {"use": name, **fields}
    for override in overrides:
        apply_override(table, override, problems)
    checked = check_part(name, kind, table, {"folder": Path.cwd()}, problems)
    if problems:
        raise RecipeError(f"{kind} {name}", problems)
    part: Any = installed().find(kind, name).part
    config = part.Config.model_validate({key: value for key, value in checked.items() if key != "use"})
    if needs_files and (missing := part.problems(config)):
        raise RecipeError(f"{kind} {name}", missing, MISSING_NOUN)
    return part(config, *context)
