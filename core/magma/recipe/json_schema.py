"""A JSON schema of recipes for editors (taplo, Even Better TOML): completion, help texts and a check of the keys.

It describes one file. A file with `extends` may leave out what it inherits, so no key is required.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from ..interfaces import KINDS, PartConfig
from ..plugins.registry import installed
from .recipe import Recipe
from .schema import AdapterUse, InputTable, LearnerKeys, SourceKeys, TaskTable

_UNSET: dict[str, Any] = {"const": False, "description": "Removes the inherited or default value."}


class _ForToml(GenerateJsonSchema):
    """TOML has no null: `false` means None."""

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return {"anyOf": [self.generate_inner(schema["schema"]), _UNSET]}


def json_schema() -> dict[str, Any]:
    """The schema of a recipe's file, with the keys of every installed part (JSON schema, draft 2020-12)."""
    schema = _of(Recipe)
    definitions = schema.pop("$defs")
    for kind in KINDS:
        definitions[kind] = {"anyOf": []}
    for entry in installed().entries():
        name = f"{entry.kind}.{entry.name}"
        table, more = _part(entry.kind, entry.name, entry.part.Config, entry.part.__doc__ or "")
        definitions |= {**more, name: table}
        definitions[entry.kind]["anyOf"].append(_reference(name))
    properties = schema["properties"]
    properties["extends"] = {"type": "string", "description": "Path of a recipe that this one inherits from."}
    properties["lm"] = _reference("lm")
    properties["head"] = {"anyOf": [_reference("head"), _UNSET]}
    properties["stages"] = {"anyOf": [properties["stages"], _UNSET]}
    properties["tasks"] = {"type": "array", "items": _reference("task"), **_help(properties["tasks"])}
    for key, kind in (("inputs", "InputTable"), ("adapters", "adapter")):
        properties[key]["additionalProperties"] = {"anyOf": [_reference(kind), _UNSET]}
        properties[key].pop("propertyNames", None)
    inputs, data = definitions[InputTable.__name__]["properties"], definitions["Data"]["properties"]
    for kind in ("encoder", "prefix"):
        inputs[kind] = {**_reference(kind), **_help(inputs[kind])}
    for key in ("train", "evaluation"):
        data[key] = {"type": "array", "items": _reference("data"), **_help(data[key])}
    for name in ("Cosine", "Linear"):
        definitions[name]["properties"]["final"] = {"type": "number", "deprecated": True}
    used = {"Use", AdapterUse.__name__, TaskTable.__name__}  # the parts have taken their place
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "MAGMA recipe",
        "$defs": {name: one for name, one in sorted(definitions.items()) if name not in used},
    }


def _part(kind: str, name: str, config: type[PartConfig], docstring: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table of one part, and the definitions that it refers to."""
    schema = _of(config)
    more = {f"{kind}.{name}.{key}": one for key, one in schema.pop("$defs", {}).items()}
    schema = _moved(schema, f"{kind}.{name}.", more)
    more = {key: _moved(one, f"{kind}.{name}.", more) for key, one in more.items()}
    properties = schema.get("properties", {})
    for former, current in config.renamed_keys.items():
        if current in properties:
            properties[former] = {**properties[current], "deprecated": True}
    framework: dict[str, Any] = {"use": {"const": name, "description": " ".join(docstring.split("\n\n")[0].split())}}
    if kind in ("prefix", "adapter", "head"):
        framework |= _of(LearnerKeys)["properties"]
    if kind == "adapter":
        framework |= {key: one for key, one in _of(AdapterUse)["properties"].items() if key != "use"}
    if kind == "data":
        framework |= _of(SourceKeys)["properties"]
    if kind == "task":
        framework["shots"] = _of(TaskTable)["properties"]["shots"]
    table = {"type": "object", "properties": {**framework, **properties}, "additionalProperties": False}
    return table, more


def _of(model: Any) -> dict[str, Any]:
    schema: dict[str, Any] = model.model_json_schema(schema_generator=_ForToml)
    for table in (schema, *schema.get("$defs", {}).values()):
        table.pop("required", None)
    return schema


def _moved(schema: Any, prefix: str, names: Iterable[str]) -> Any:
    """The same schema with references to definitions under their new names."""
    if isinstance(schema, dict):
        moved = {key: _moved(value, prefix, names) for key, value in schema.items()}
        target = str(schema.get("$ref", "")).removeprefix("#/$defs/")
        return {**moved, **_reference(prefix + target)} if prefix + target in names else moved
    return [_moved(one, prefix, names) for one in schema] if isinstance(schema, list) else schema


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def _help(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": schema["description"]} if "description" in schema else {}
