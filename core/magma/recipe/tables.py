"""Merge and flatten tables of TOML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OTHER_LENGTH = {"samples": "steps", "steps": "samples"}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge tables key by key. Other values, and tables that name another part, are replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = value
        if isinstance(old, Mapping) and isinstance(value, Mapping) and _same_part(old, value):
            merged[key] = merge(old, value)
    return merged


def _same_part(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return bool(new.get("use", old.get("use")) == old.get("use"))


def merge_recipes(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """As `merge`, but a length in steps replaces a length in samples, and vice versa."""
    merged = merge(base, over)
    own = over.get("train")
    if isinstance(own, Mapping) and isinstance(merged["train"], Mapping):
        replaced = {_OTHER_LENGTH[key] for key in own if key in _OTHER_LENGTH} - own.keys()
        merged["train"] = {key: value for key, value in merged["train"].items() if key not in replaced}
    return merged


def set_length(train: dict[str, Any], key: str) -> None:
    """Remove the other length after `key` was set in a [train] table."""
    train.pop(_OTHER_LENGTH.get(key, ""), None)


def flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Pairs of dotted key and value."""
    if isinstance(value, Mapping):
        return [pair for key, one in value.items() for pair in flat(one, f"{path}.{key}" if path else str(key))]
    if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        return [pair for i, one in enumerate(value) for pair in flat(one, f"{path}.{i}")]
    return [(path, value)]
