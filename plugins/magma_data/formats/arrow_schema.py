"""The Arrow schema of a table: which column has the media, and which columns have class labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magma import InputError

from .columns import MEDIUM, Columns
from .row import Row


class ArrowSchema:
    """Converts rows of a table according to its schema: media and class labels."""

    def __init__(self, where: str, schema: Any, list_field: str | None, wanted: Columns) -> None:
        self.medium, self.list_field = _find_medium_column(where, schema, wanted), list_field
        features = _read_features(schema)
        self.classes = {name: spec for name, spec in features.items() if '"ClassLabel"' in json.dumps(spec)}

    def row(self, where: str, fields: dict[str, Any], folder: Path) -> Row:
        """A row of the fields that are not null, with its medium."""
        medium = fields.pop(self.medium, None) if self.medium else None
        if isinstance(medium, dict):
            data, path = medium.get("bytes"), medium.get("path")
        else:
            data, path = (medium, None) if isinstance(medium, bytes) else (None, medium)
        try:
            converted = {name: self.value(name, value) for name, value in fields.items()}
        except InputError as error:
            return Row(where, {}, problem=f"{where}: {error}")
        present = {name: value for name, value in converted.items() if value is not None}
        if self.medium and path:
            present[self.medium] = path
        return Row(where, present, folder, self.medium or MEDIUM, data)

    def value(self, name: str, value: Any) -> Any:
        """The value of a cell, with class names instead of numbers; that of `list_field` as a list of objects."""
        if name in self.classes:
            value = _replace_class_numbers(value, self.classes[name], name)
        return _to_list_of_objects(value) if name == self.list_field else value


def _read_features(schema: Any) -> Mapping[str, Any]:
    """The features that the datasets library stores in the metadata of the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _replace_class_numbers(value: Any, spec: Any, column: str) -> Any:
    """Replace class numbers in a cell by names, at any depth; -1 means no class and becomes None."""
    if value is None:
        return None
    if isinstance(spec, list):  # a list in old versions
        return [_replace_class_numbers(one, spec[0], column) for one in value]
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
        if isinstance(value, dict):  # `Sequence({...})` in old versions: an object of lists
            return {
                name: [_replace_class_numbers(one, inner.get(name), column) for one in many]
                for name, many in value.items()
            }
        return [_replace_class_numbers(one, inner, column) for one in value]
    if isinstance(value, dict):
        return {name: _replace_class_numbers(one, spec.get(name), column) for name, one in value.items()}
    return value


def _to_list_of_objects(value: Any) -> Any:
    """An object of lists, which the datasets library stored for `Sequence({...})`, to a list of objects."""
    if not isinstance(value, dict) or not value or not all(isinstance(many, list) for many in value.values()):
        return value
    if len(set(map(len, value.values()))) != 1:
        return value
    return [dict(zip(value, entry, strict=True)) for entry in zip(*value.values(), strict=True)]


def _find_medium_column(where: str, schema: Any, wanted: Columns) -> str | None:
    """The column of the media: bytes, or bytes and path as in the datasets library. Raises `InputError`."""
    if found := wanted.check_given(where, schema.names) or wanted.implied_by_input(schema.names):
        return found
    import pyarrow.types as types

    def has_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))

    columns = [field.name for field in schema if has_bytes(field.type)]
    if len(columns) > 1 and MEDIUM not in columns:
        raise InputError(
            f"{where}: several columns contain media ({', '.join(columns)}); allowed: one column, one called {MEDIUM}, "
            f"or one that is selected with `columns = {{ {wanted.input} = ... }}`"
        )
    return MEDIUM if MEDIUM in columns else next(iter(columns), None)
