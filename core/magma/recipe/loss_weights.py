"""The check of `train.loss_weights`: each name has to be an auxiliary loss of a part of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import PluginError, did_you_mean
from ..interfaces import Module
from ..plugins import registry
from .parts import all_part_tables


def problems(raw: Mapping[str, Any]) -> list[str]:
    """One line for each weight of a loss that no part has. A part that a stage freezes counts too."""
    train = raw.get("train")
    weights = train.get("loss_weights") if isinstance(train, Mapping) else None
    if not isinstance(weights, Mapping) or not weights:
        return []
    try:
        declared = _declared(raw)
    except PluginError:  # the check of the parts reports it
        return []
    allowed = ", ".join(declared) or "none, no part of the recipe has an auxiliary loss"
    return [
        f"train.loss_weights.{name}: given {value!r} for an unknown loss.{did_you_mean(str(name), declared)} "
        f"Allowed: {allowed}"
        for name, value in weights.items()
        if name not in declared
    ]


def _declared(raw: Mapping[str, Any]) -> list[str]:
    found: dict[str, None] = {}
    for one in all_part_tables(raw):
        if one.names_a_part:
            part = registry.installed().find(one.kind, one.table["use"]).part
            if issubclass(part, Module):
                found |= dict.fromkeys(part.auxiliary_losses)
    return list(found)
