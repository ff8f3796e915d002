"""The tables of a recipe that name a part. Each is checked by the `Config` of that part."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import MISSING_NOUN, PluginError, RecipeError
from ..interfaces import PartConfig
from ..plugins.registry import installed
from .explain import explain
from .overrides import apply_override
from .schema import AdapterUse, InputTable, LearnerKeys, SourceKeys


def part_tables(raw: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield (path, kind, table) of every table of a recipe that names a part, even if the recipe has mistakes."""

    def table(value: Any) -> Mapping[str, Any]:
        return value if isinstance(value, Mapping) else {}

    def array(value: Any) -> Sequence[Any]:
        return value if isinstance(value, list | tuple) else ()

    if "lm" in raw:
        yield "lm", "lm", raw["lm"]
    for name, entry in table(raw.get("inputs")).items():
        for kind in ("encoder", "prefix"):
            if kind in table(entry):
                yield f"inputs.{name}.{kind}", kind, table(entry)[kind]
    for name, adapter in table(raw.get("adapters")).items():
        yield f"adapters.{name}", "adapter", adapter
    if raw.get("head") is not None:
        yield "head", "head", raw["head"]
    for use in ("train", "evaluation"):
        for i, source in enumerate(array(table(raw.get("data")).get(use))):
            yield f"data.{use}.{i}", "data", source
    for i, task in enumerate(array(raw.get("tasks"))):
        yield f"tasks.{i}", "task", task


PLACEMENT_KEYS = AdapterUse.model_fields.keys() - {"use"}
"""Keys that say where adapters act."""
_FRAMEWORK_KEYS: Mapping[str, Collection[str]] = {
    "adapters": LearnerKeys.model_fields.keys() | PLACEMENT_KEYS,
    "data.train": SourceKeys.model_fields,
    "head": LearnerKeys.model_fields,
    "inputs": LearnerKeys.model_fields,
    "tasks": ("shots",),
}
"""Keys of a part's table that the framework reads, not the part, by the beginning of the table's path."""


def own_fields(path: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a part's table that its `Config` reads."""
    framework = {"use"}
    for prefix, keys in _FRAMEWORK_KEYS.items():
        if path.startswith(prefix) and not path.endswith(".encoder"):
            framework.update(keys)
    return {key: value for key, value in table.items() if key not in framework}


def check_part(path: str, kind: str, table: Any, context: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The table with the defaults of its config. Mistakes are added to `problems`."""
    if not isinstance(table, Mapping) or not isinstance(table.get("use"), str):
        return {}  # the check of the framework's tables reports it
    own = own_fields(path, table)
    for key in table.keys() - own.keys() - {"use", "shots", *PLACEMENT_KEYS}:  # checked with the framework's tables
        value = table[key]
        if key == "trainable":
            if not isinstance(value, bool):
                problems.append(f"{path}.{key}: given {value!r}; allowed: true, false")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            problems.append(f"{path}.{key}: given {value!r}; allowed: a finite number above 0")
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
        problems += [explain(part.Config, one, path) + _other_table(path, one) for one in error.errors()]
        return {}
    framework = {key: value for key, value in table.items() if key not in own}
    return {**framework, **config.model_dump(mode="json", exclude_none=True)}


def _other_table(path: str, error: Any) -> str:
    """Where a key of an encoder's input belongs, if it was put into the encoder's own table."""
    table, _, kind = path.rpartition(".")
    if error["type"] != "extra_forbidden" or kind != "encoder" or error["loc"][-1] not in InputTable.model_fields:
        return ""
    return f". Set {table}.{error['loc'][-1]} instead"


def build_part(
    kind: str, name: str, fields: Mapping[str, Any], overrides: Sequence[str], needs_files: bool, *context: Any
) -> Any:
    """Build one part without a recipe.

    Args:
        kind: The kind of part, such as "task".
        name: What recipes write after `use =`.
        fields: Keys of the part.
        overrides: More keys, as `key=value` in TOML's notation.
        needs_files: Check that the part's files and packages are present.
        context: What the kind is built with after its config.

    Raises:
        RecipeError: With all mistakes, or with everything that this machine lacks.
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
