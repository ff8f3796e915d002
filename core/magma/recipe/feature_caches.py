"""The check of `inputs.NAME.cache`: the features of the encoder must be the same each time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..interfaces import Encoder
from ..plugins import registry
from .parts import PartTable


def problems(recipe: Mapping[str, Any]) -> list[str]:
    """One line for each input of a resolved recipe that has a cache and cannot have one."""
    found = []
    for name, table in recipe.get("inputs", {}).items():
        if table.get("cache") is not None and (reason := _reason(name, table, recipe.get("deepspeed", {}))):
            found.append(f"inputs.{name}.cache: {reason}")
    return found


def _reason(name: str, table: Mapping[str, Any], deepspeed: Mapping[str, Any]) -> str:
    path = f"inputs.{name}"
    if table.get("trainable", True):
        return (
            "given for an encoder that is trained, so its features change in every step; allowed: "
            f"{path}.trainable = false, or no cache"
        )
    encoder = PartTable(f"{path}.encoder", "encoder", table["encoder"])
    part = registry.installed().find("encoder", encoder.table["use"]).part
    if issubclass(part, Encoder) and part.augments(part.Config.model_validate(encoder.own_fields())):
        return (
            "given for an encoder that changes media at random in training (augmentation, or a random crop), so its "
            f"features differ each time; allowed: {path}.encoder without it, or no cache"
        )
    if deepspeed.get("zero_optimization", {}).get("stage") == 3:
        return (
            "given with deepspeed.zero_optimization.stage = 3, where all processes have to run the encoder together; "
            "allowed: stages 0 to 2, or no cache"
        )
    return ""
