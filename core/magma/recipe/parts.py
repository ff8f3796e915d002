"""The tables of a recipe that name a part. Each is checked by the `Config` of that part."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from ..deprecation import with_current_keys
from ..errors import MISSING_NOUN, PluginError, RecipeError
from ..interfaces import KINDS, Module, PartConfig
from ..plugins.part_of import PartOf, fields_with_parts, framework_keys, map_tables
from ..plugins.registry import installed
from .explain import explain_all
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
    for i, callback in enumerate(array(raw.get("callbacks"))):
        yield f"callbacks.{i}", "callback", callback


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


class PartTable(NamedTuple):
    """A table of a recipe that names a part."""

    path: str
    kind: str
    table: Any
    around: str = ""
    """Path of the part whose config contains it. Empty: it is not inside another part."""

    @property
    def names_a_part(self) -> bool:
        """Whether it is a table with a name; false only in recipes that are not checked yet."""
        return isinstance(self.table, Mapping) and isinstance(self.table.get("use"), str)

    def own_fields(self) -> dict[str, Any]:
        """The keys that the `Config` of the part reads."""
        framework = set(framework_keys(self.kind)) if self.around else {"use"}
        for prefix, keys in _FRAMEWORK_KEYS.items():
            if not self.around and self.path.startswith(prefix) and self.kind != "encoder":
                framework.update(keys)
        return {key: value for key, value in self.table.items() if key not in framework}


def all_part_tables(raw: Mapping[str, Any]) -> Iterator[PartTable]:
    """Every table of a part, each before those of the parts in its config. Raises `PluginError` for unknown names."""
    for path, kind, table in part_tables(raw):
        yield from _with_nested(PartTable(path, kind, table))


def _with_nested(one: PartTable) -> Iterator[PartTable]:
    yield one
    if not one.names_a_part:
        return
    found: list[PartTable] = []
    map_tables(
        installed().find(one.kind, one.table["use"]).part.Config,
        one.own_fields(),
        lambda path, kind, table: found.append(PartTable(f"{one.path}.{path}", kind.kind(), table, one.path)),
    )
    for inner in found:
        yield from _with_nested(inner)


def check_part(one: PartTable, context: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The table with the defaults of its config. Mistakes are added to `problems`."""
    config = _check_config(one, context, problems)
    if config is None:
        return {}
    own = one.own_fields()
    framework = {key: value for key, value in one.table.items() if key not in own}
    return {**framework, **config.model_dump(mode="json", exclude_none=True)}


def _check_config(one: PartTable, context: Mapping[str, Any], problems: list[str]) -> PartConfig | None:
    path, kind, table, around = one
    if not one.names_a_part:
        return None  # the check of the table around it reports it
    own = one.own_fields()
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
        return None
    if context.get("checkpoint"):
        own = {**part.Config.legacy_defaults, **own}
    reported: list[str] = []
    if fields_with_parts(part.Config):
        own = with_current_keys(own, part.Config.renamed_keys, warn=not context.get("checkpoint"))
        own = map_tables(part.Config, own, partial(_check_nested, path, context, problems, reported))
    try:
        return part.Config.model_validate(own, context=context)
    except ValidationError as error:
        mistakes = _without_consequences(error.errors(), reported) if fields_with_parts(part.Config) else error.errors()
        hint = "" if around else path
        problems += explain_all(part.Config, mistakes, path, partial(_other_table, hint))
        return None


def _check_nested(
    around: str,
    context: Mapping[str, Any],
    problems: list[str],
    reported: list[str],
    path: str,
    kind: type[PartOf[Any]],
    table: Any,
) -> Any:
    """The part that a table inside a config names, or the table itself if it has mistakes."""
    before = len(problems)
    config = _check_config(PartTable(f"{around}.{path}", kind.kind(), table, around), context, problems)
    if len(problems) > before:
        reported.append(path)
    if config is None or len(problems) > before:
        return table
    return kind(**{key: table[key] for key in framework_keys(kind.kind()) if key in table}, config=config)


def _without_consequences(errors: Sequence[Any], reported: Sequence[str]) -> list[Any]:
    """The errors that are not in a nested part that is reported already, nor follow from an error inside a list."""
    places = [".".join(map(str, error["loc"])) for error in errors]
    return [
        error
        for error, place in zip(errors, places, strict=True)
        if not any(f"{place}.".startswith(f"{path}.") for path in reported)
        and not any(other.startswith(f"{place}.") for other in (*places, *reported))
    ]


def trained_parts(raw: Mapping[str, Any]) -> dict[str, bool]:
    """Whether each part with weights is trained, by path. A part inside a frozen one is frozen."""
    found: dict[str, bool] = {}
    for one in all_part_tables(raw):
        if not issubclass(KINDS[one.kind], Module):
            continue
        asked = bool(one.table.get("trainable", True))
        if one.around:
            found[one.path] = found.get(one.around, False) and asked
        elif one.kind == "encoder":
            found[one.path] = bool(raw["inputs"][one.path.split(".")[1]].get("trainable", True))
        else:
            found[one.path] = one.kind != "lm" and asked
    return found


def trained_in_frozen(raw: Mapping[str, Any]) -> list[str]:
    """A line for each part that has `trainable = true` inside a frozen part."""
    trained = trained_parts(raw)
    return [
        f"{one.path}.trainable: given true; allowed: false, because {one.around}, which contains it, is frozen"
        for one in all_part_tables(raw)
        if one.around in trained and one.table.get("trainable") and not trained[one.around]
    ]


def _other_table(path: str, error: Any) -> str:
    """Where a key of an encoder's input belongs, if it was put into the encoder's own table at this path."""
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
    checked = check_part(PartTable(name, kind, table), {"folder": Path.cwd()}, problems)
    if problems:
        raise RecipeError(f"{kind} {name}", problems)
    part: Any = installed().find(kind, name).part
    config = part.Config.model_validate({key: value for key, value in checked.items() if key != "use"})
    if needs_files and (missing := part.problems(config)):
        raise RecipeError(f"{kind} {name}", missing, MISSING_NOUN)
    return part(config, *context)
