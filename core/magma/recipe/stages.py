"""`[[stages]]` of a recipe: tables that are laid over the recipe's own, one training run after another.

A stage changes how parts learn, the data and the training, never what the parts are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from ..interfaces import Sublayer
from .tables import flat, merge_recipes


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PartStage(_Table):
    """How a part learns in a stage."""

    trainable: bool | None = None
    lr: PositiveFloat | None = None


class InputStage(PartStage):
    """How an encoder and its prefix learn in a stage."""

    batchnorm: Literal["train", "frozen"] | None = None
    prefix: PartStage | None = None


class Stage(_Table):
    """What a stage may change."""

    name: str | None = Field(None, min_length=1)
    """Shown behind its number in logs, plans and curves."""
    inputs: dict[str, InputStage] = {}
    adapters: dict[Sublayer, PartStage] = {}
    head: PartStage | None = None
    data: dict[str, Any] = {}
    train: dict[str, Any] = {}
    deepspeed: dict[str, Any] = {}


def label(stages: Sequence[Stage], number: int) -> str:
    """How a stage, counted from 0, is called: "stage 1", or "stage 1: NAME"."""
    name = stages[number].name
    return f"stage {number + 1}: {name}" if name else f"stage {number + 1}"


def overlay(recipe: Mapping[str, Any], number: int, stage: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's tables in a stage, counted from 0. Only the first stage starts from [init]."""
    base = {key: value for key, value in recipe.items() if key != "stages" and (key != "init" or not number)}
    return merge_recipes(base, {key: value for key, value in stage.items() if key != "name"})


def with_length(recipe: dict[str, Any], stages: Sequence[Any]) -> dict[str, Any]:
    """The recipe's own tables; where the stages only give a length, [train] has that of the first one."""
    base = {key: value for key, value in recipe.items() if key != "stages"}
    lengths = ("samples", "steps")
    first = stages[0].get("train") if stages and isinstance(stages[0], Mapping) else None
    train = base.get("train")
    if isinstance(train, Mapping) and isinstance(first, Mapping) and not any(key in train for key in lengths):
        base["train"] = {**train, **{key: first[key] for key in lengths if key in first}}
    return base


def unknown_parts(recipe: Mapping[str, Any], stage: Stage) -> list[str]:
    """Parts that a stage speaks of and the recipe does not have."""

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
    if stage.head is not None and recipe.get("head") is None:
        found.append("head: given a table, but the recipe has no [head]")
    return found


def settle(resolved: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's own keys, with their values in the `resolved` recipe of this stage: paths found, defaults of parts."""
    settled = {}
    for key, value in stage.items():
        if key in resolved:
            inside = isinstance(value, Mapping) and isinstance(resolved[key], Mapping) and "use" not in value
            settled[key] = settle(resolved[key], value) if inside else resolved[key]
    return settled


# Finished stages

_NO_INFLUENCE = {
    *("micro_batch_size", "workers", "compile", "activation_checkpointing", "checkpoint_every", "keep_checkpoints"),
    *("evaluate_samples", "max_unreadable", "max_skipped_steps"),
}
"""Keys of [train] that change neither what is learnt nor when a stage ends."""


def training_identity(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a stage's recipe that decide what it learns, by dotted key; of paths the last component.

    Data may move between two jobs, and so may the folder of a language model.
    """
    kept = {key: recipe.get(key, {}) for key in ("inputs", "adapters", "head", "data", "train")}
    kept["data"] = {"train": kept["data"].get("train", [])}
    kept["train"] = {key: value for key, value in kept["train"].items() if key not in _NO_INFLUENCE}
    return {key: PurePath(value).name if isinstance(value, str) else value for key, value in flat(kept)}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each value of a finished stage that is another one now."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [f"{key}: it was {before.get(key, 'not given')}, and is {now.get(key, 'not given')} now" for key in keys]
