"""`[[stages]]` of a recipe: tables that override the recipe's own for successive training runs.

A stage changes how parts are trained, the data and the training, but not which parts there are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field, PositiveFloat

from .schema import Table
from .tables import flat, merge_recipes


class PartStage(Table):
    """How a part is trained in a stage."""

    trainable: bool | None = None
    """Train the part in this stage."""
    lr: PositiveFloat | None = None
    """Learning rate of the part in this stage."""


class InputStage(PartStage):
    """How an encoder and its prefix are trained in a stage."""

    trainable: bool | None = None
    """Train the encoder in this stage."""
    lr: PositiveFloat | None = None
    """Learning rate of the encoder in this stage."""
    batchnorm: Literal["train", "frozen"] | None = None
    """BatchNorm of the encoder in this stage."""
    cache: bool | None = None
    """`false`: no feature cache in this stage. `true`: one with the default settings."""
    prefix: PartStage | None = None
    """How the prefix is trained in this stage."""


class Stage(Table):
    """The tables that a stage may override."""

    name: str | None = Field(None, min_length=1)
    """Shown after the stage's number in logs, plans and curves."""
    inputs: dict[str, InputStage] = Field({})
    """How encoders and prefixes are trained in this stage."""
    adapters: dict[str, PartStage] = Field({})
    """How adapters are trained in this stage."""
    head: PartStage | None = None
    """How the head is trained in this stage."""
    data: dict[str, Any] = Field({})
    """Keys of `[data]` for this stage."""
    train: dict[str, Any] = Field({})
    """Keys of `[train]` for this stage."""
    deepspeed: dict[str, Any] = Field({})
    """Keys of `[deepspeed]` for this stage."""
    parts: dict[str, PartStage] = Field({})
    """How parts inside other parts are trained in this stage, by path, such as `"inputs.NAME.encoder.of.0"`."""


def label(stages: Sequence[Stage], number: int) -> str:
    """Label of a stage (counted from 0): "stage 1", or "stage 1: NAME"."""
    name = stages[number].name
    return f"stage {number + 1}: {name}" if name else f"stage {number + 1}"


def overlay(recipe: Mapping[str, Any], number: int, stage: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's tables in a stage (counted from 0). Only the first stage starts from [init]."""
    base = {key: value for key, value in recipe.items() if key != "stages" and (key != "init" or not number)}
    merged = merge_recipes(base, {key: value for key, value in stage.items() if key not in ("name", "parts")})
    if not stage.get("parts"):
        return merged
    merged = copy.deepcopy(merged)
    for path, keys in stage["parts"].items():
        if (table := _nested_table(merged, path)) is not None:  # `unknown_parts` reports the others
            table.update(keys)
    return merged


def _nested_table(recipe: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """The table of a part inside another part; None if there is none at this path."""
    here: Any = recipe
    outer = False
    for key in path.split("."):
        outer = outer or (isinstance(here, Mapping) and "use" in here)
        try:
            here = here[int(key)] if isinstance(here, list) else here[key]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return here if outer and isinstance(here, dict) and "use" in here else None


def with_length(recipe: dict[str, Any], stages: Sequence[Any]) -> dict[str, Any]:
    """The recipe's own tables. If only the stages have a length, [train] gets that of the first stage."""
    base = {key: value for key, value in recipe.items() if key != "stages"}
    lengths = ("samples", "steps")
    first = stages[0].get("train") if stages and isinstance(stages[0], Mapping) else None
    train = base.get("train")
    if isinstance(train, Mapping) and isinstance(first, Mapping) and not any(key in train for key in lengths):
        base["train"] = {**train, **{key: first[key] for key in lengths if key in first}}
    return base


def unknown_parts(recipe: Mapping[str, Any], stage: Stage) -> list[str]:
    """One line for each part that a stage names and the recipe does not have."""

    def allowed(table: str) -> str:
        held = recipe.get(table)
        names = list(held) if isinstance(held, Mapping) else []
        return f"the recipe's {table}: {', '.join(map(str, names)) or 'it has none'}"

    found = [
        f"{table}.{name}: given a table for a part that the recipe does not have; allowed: {allowed(table)}"
        for table, given in (("inputs", stage.inputs), ("adapters", stage.adapters))
        for name in given
        if name not in (recipe.get(table) or {})
    ]
    found += [
        f"parts.{path}: given a table for a part that the recipe does not have; allowed: the path of a part inside "
        "another part"
        for path in stage.parts
        if _nested_table(recipe, path) is None
    ]
    if stage.head is not None and recipe.get("head") is None:
        found.append("head: given a table, but the recipe has no [head]")
    return found


def resolve_keys(stage: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's own keys with their values in the `resolved` recipe: absolute paths and the defaults of parts."""
    found: dict[str, Any] = {"parts": stage["parts"]} if stage.get("parts") else {}
    for key, value in stage.items():
        if key in resolved:
            inside = isinstance(value, Mapping) and isinstance(resolved[key], Mapping) and "use" not in value
            found[key] = resolve_keys(value, resolved[key]) if inside else resolved[key]
        elif value is False:  # it switches off what the recipe has
            found[key] = False
    return found


# Finished stages

_NO_INFLUENCE = {
    *("micro_batch_size", "workers", "compile", "activation_checkpointing", "checkpoint_every", "keep_checkpoints"),
    *("evaluate_samples", "max_unreadable", "max_skipped_steps"),
}
"""Keys of [train] that change neither the weights nor the end of a stage."""


def training_identity(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a stage's recipe that decide its weights, by dotted key.

    Only the last component of a path counts: data and the language model may be moved between two jobs.
    """
    kept = {key: recipe.get(key, {}) for key in ("inputs", "adapters", "head", "data", "train")}
    kept["inputs"] = {
        name: {key: value for key, value in table.items() if key != "cache"} for name, table in kept["inputs"].items()
    }
    kept["data"] = {"train": kept["data"].get("train", [])}
    kept["train"] = {key: value for key, value in kept["train"].items() if key not in _NO_INFLUENCE}
    return {key: PurePath(value).name if isinstance(value, str) else value for key, value in flat(kept)}


_RENAMED = {"train.schedule.final": "train.schedule.final_lr_ratio"}
"""Former to current name of keys, for runs of earlier versions."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each value of a finished stage that has changed since."""
    before = {_RENAMED.get(key, key): value for key, value in before.items()}
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [f"{key}: it was {before.get(key, 'not given')} and is now {now.get(key, 'not given')}" for key in keys]
