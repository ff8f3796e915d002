"""What the Arrow schema of a table says about its columns: which one holds media, and which ones hold class labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magma import InputError

from .columns import MEDIUM, Columns
from .row import Row


class ArrowSchema:
    """What a table's schema says about its columns: which holds media, and which hold classes by number."""

    def __init__(self, where: str, schema: Any, list_field: str | None, wanted: Columns) -> None:
        self.medium, self.list_field = _medium_column(where, schema, wanted), list_field
        features = _features(schema)
        self.classes = {name: spec for name, spec in features.items() if '"ClassLabel"' in json.dumps(spec)}

    def row(self, where: str, fields: dict[str, Any], folder: Path) -> Row:
        """Fields without those that are null; the medium apart."""
        medium = fields.pop(self.medium, None) if self.medium else None
        if isinstance(medium, dict):
            data, path = medium.get("bytes"), medium.get("path")
        else:
            data, path = (medium, None) if isinstance(medium, bytes) else (None, medium)
        try:
            known = {name: self.value(name, value) for name, value in fields.items()}
        except InputError as error:
            return Row(where, {}, problem=f"{where}: {error}")
        said = {name: value for name, value in known.items() if value is not None}
        if self.medium and path:
            said[self.medium] = path
        return Row(where, said, folder, self.medium or MEDIUM, data)

    def value(self, name: str, value: Any) -> Any:
        """A cell with the names of its classes; the column `each` as a list of objects."""
        if name in self.classes:
            value = _with_names(value, self.classes[name], name)
        return _objects(value) if name == self.list_field else value


def _features(schema: Any) -> Mapping[str, Any]:
    """What the datasets library writes about the columns beside Arrow's types."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _with_names(value: Any, spec: Any, column: str) -> Any:
    """The names of the classes in a cell, at any depth; -1, which stands for no class, becomes None."""
    if value is None:
        return None
    if isinstance(spec, list):  # as old versions write a list
        return [_with_names(one, spec[0], column) for one in value]
    if not isinstance(spec, dict):
        return value
    kind = spec.get("_type")
    if kind == "ClassLabel":
        names = spec.get("names") or []
        if not isinstance(value, int) or not -1 <= value < len(names):
            raise InputError(f"{column}: given the class {value!r}; allowed: 0 to {len(names) - 1}")
        return names[value] if value >= 0 else None
    if "feature" in spec and isinstance(kind, str):
        inner = spec["feature"]
        if isinstance(value, dict):  # `Sequence({...})` of old versions: an object of lists
            return {name: [_with_names(one, inner.get(name), column) for one in many] for name, many in value.items()}
        return [_with_names(one, inner, column) for one in value]
    if isinstance(value, dict):
        return {name: _with_names(one, spec.get(name), column) for name, one in value.items()}
    return value


def _objects(value: Any) -> Any:
    """An object of lists, as the datasets library stored `Sequence({...})`, as a list of objects."""
    if not isinstance(value, dict) or not value or not all(isinstance(many, list) for many in value.values()):
        return value
    if len(set(map(len, value.values()))) != 1:
        return value
    return [dict(zip(value, entry, strict=True)) for entry in zip(*value.values(), strict=True)]


def _medium_column(where: str, schema: Any, wanted: Columns) -> str | None:
    """The column that holds media: bytes, or bytes and path as the datasets library stores them."""
    if found := wanted.check_given(where, schema.names) or wanted.implied_by_input(schema.names):
        return found
    import pyarrow.types as types

    def holds(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))

    columns = [field.name for field in schema if holds(field.type)]
    if len(columns) > 1 and MEDIUM not in columns:
        raise InputError(
            f"{where}: several columns hold media ({', '.join(columns)}); allowed: one, one called {MEDIUM}, or the "
            f"one that `columns = {{ {wanted.input} = ... }}` names"
        )
    return MEDIUM if MEDIUM in columns else next(iter(columns), None)
