"""The whole recipe: read from TOML or a dict, checked at once, and resolved to everything that it leaves to defaults.

Core knows the frame; each table with a `use` is checked by the `Config` of the part that it names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from ..errors import RecipeError
from ..interfaces import Part, Sublayer
from ..plugins.registry import installed
from . import deepspeed_table
from .explain import explain, shown
from .loader import find, read_tables, remove_switched_off
from .notation import TooDeep, check_depth
from .overrides import apply_override, locate
from .parts import check_part, own_fields, part_tables
from .paths import relative
from .schema import Data, Init, InputName, InputTable, Table, TaskTable, Train, Use
from .stages import Stage, label, overlay, settle, unknown_parts, with_length

_OF_THE_RUN = ("data", "tasks", "train", "deepspeed", "stages")


def _stage_of(origin: str, raw: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """A stage's table, where a manifest names the stage."""
    stages = raw.get("stages")
    if not isinstance(stages, list) or number >= len(stages) or not isinstance(stages[number], Mapping):
        raise RecipeError(
            origin, [f"stages: the checkpoint's manifest.json has stage {number + 1}, and the recipe not"]
        )
    found: Mapping[str, Any] = stages[number]
    return found


class Recipe(Table):
    """The whole of it. `Recipe.load` is how to get one."""

    name: str
    description: str = ""
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    lm: Use
    init: Init = Init()
    inputs: dict[InputName, InputTable] = Field({})
    adapters: dict[Sublayer, Use] = Field({})
    head: Use | None = None
    data: Data = Data()
    tasks: tuple[TaskTable, ...] = ()
    published: dict[str, dict[str, dict[str, float]]] = Field({})
    """What a paper reports of this very experiment, task to score to shots to figure: `magma eval report` shows it."""
    train: Train | None = None
    deepspeed: dict[str, Any] = Field({})
    stages: tuple[Stage, ...] = ()

    @model_validator(mode="after")
    def _something_to_watch(self) -> Self:
        if self.train and self.train.early_stopping and not self.data.evaluation:
            raise ValueError("train.early_stopping with [[data.evaluation]]: a loss to watch")
        return self

    @classmethod
    def load(
        cls,
        source: str | Path | Mapping[str, Any],
        overrides: Sequence[str] = (),
        folder: Path | None = None,
        *,
        model_only: bool = False,
        stage: int | None = None,
    ) -> Recipe:
        """From a file, the name of a bundled recipe, or a dict; `overrides` are `a.b=value` in TOML's notation.

        `model_only` is for the recipe of a checkpoint: it leaves out what it was trained on and asked, whose plugins
        then need not be installed, and gives keys that did not exist yet their `legacy_defaults`. `stage` is the one
        that wrote the checkpoint, counted from 0. Raises `RecipeError` with every mistake in it. Nothing is loaded or
        downloaded.
        """
        if isinstance(source, Mapping):
            origin, folder = "the recipe", folder or Path.cwd()
            try:
                check_depth(source)
            except TooDeep as error:
                raise RecipeError(origin, [str(error)]) from error
            raw = copy.deepcopy(dict(source))
        else:
            path = find(source)
            origin, raw, folder = str(path), read_tables(path), folder or path.parent
        if model_only:
            if stage is not None:
                raw = overlay(raw, stage, _stage_of(origin, raw, stage))
            raw = {key: value for key, value in raw.items() if key not in _OF_THE_RUN}
        problems: list[str] = []
        for override in overrides:
            apply_override(raw, override, problems)
        remove_switched_off(raw)
        return cls._check(origin, raw, {"folder": folder, "checkpoint": model_only}, problems)

    @classmethod
    def _check(cls, origin: str, raw: dict[str, Any], context: dict[str, Any], problems: list[str]) -> Recipe:
        given = raw.get("stages", [])
        stages = given if isinstance(given, list) else []
        base = with_length(raw, stages)
        settled = cls._settle(base, context, problems)
        if stages is not given:
            problems.append(f"stages: given {shown(given)}; allowed: tables, [[stages]]")
        of_base = set(problems)
        kept = []
        for number, stage in enumerate(stages):
            found: list[str] = []
            kept.append(cls._settle_stage(base, number, stage, context, found))
            new = [f".{problem}" for problem in found if problem not in of_base]
            problems += [f"stages[{number}]{problem.replace('.recipe: ', ': ', 1)}" for problem in new]
        if problems or settled is None:
            raise RecipeError(origin, problems)
        return cls.model_validate({**settled, "stages": kept}, context=context)

    @classmethod
    def _settle(cls, raw: dict[str, Any], context: dict[str, Any], problems: list[str]) -> dict[str, Any] | None:
        """The tables with the defaults of every part filled in; None, and more `problems`, where there are mistakes."""
        before = len(problems)
        recipe = None
        try:
            recipe = cls.model_validate(raw, context=context)
        except ValidationError as error:
            problems += [explain(cls, one) for one in error.errors()]
        resolved: dict[str, dict[str, Any]] = {}
        for path, kind, table in part_tables(raw):
            resolved[path] = check_part(path, kind, table, context, problems)
        if isinstance(table := raw.get("deepspeed"), dict):
            problems += deepspeed_table.problems(table)
        if recipe is None or len(problems) > before:
            return None
        settled = recipe.model_dump(mode="json", exclude_none=True)
        for path, fields in resolved.items():
            holder, key = locate(settled, path)
            holder[key] = fields
        return settled

    @classmethod
    def _settle_stage(
        cls, base: dict[str, Any], number: int, stage: Any, context: dict[str, Any], problems: list[str]
    ) -> dict[str, Any]:
        """One of [[stages]], counted from 0, as `_settle` does it."""
        try:
            checked = Stage.model_validate(stage)
        except ValidationError as error:
            problems += [explain(Stage, one) for one in error.errors()]
            return {}
        problems += unknown_parts(base, checked)
        settled = None if problems else cls._settle(overlay(base, number, stage), context, problems)
        return {**settle(settled or {}, stage), **({"name": checked.name} if checked.name else {})}

    def in_stages(self) -> list[Recipe]:
        """The recipe of every stage, in order; only this one where it has no [[stages]]."""
        if not self.stages:
            return [self]
        base = self.model_dump(mode="json", exclude_none=True)
        tables = [stage.model_dump(mode="json", exclude_defaults=True) for stage in self.stages]
        return [type(self).model_validate(overlay(base, number, table)) for number, table in enumerate(tables)]

    def stage_label(self, number: int) -> str:
        """How logs, plans and curves call a stage, counted from 0; nothing where there are no stages."""
        return label(self.stages, number) if self.stages else ""

    def part(self, path: str) -> tuple[type[Any], Any]:
        """The class and the config of the part at a path such as `inputs.NAME.encoder` or `data.train.0`."""
        for found, kind, table in part_tables(self.model_dump()):
            if found == path:
                part = installed().find(kind, table["use"]).part
                return part, part.Config.model_validate(own_fields(path, table))
        raise KeyError(path)

    def parts(self) -> list[tuple[str, type[Part], Any]]:
        """Every part of the recipe with its path, class and config."""
        return [(path, *self.part(path)) for path, _, _ in part_tables(self.model_dump())]

    def problems(self) -> list[str]:
        """What this machine lacks to run it: missing files, packages, data. Nothing is loaded."""
        if self.stages:
            lacking = [(number, stage.problems()) for number, stage in enumerate(self.in_stages())]
            shared = [one for one in lacking[0][1] if all(one in found for _, found in lacking)]
            own = [f"stages[{number}].{one}" for number, found in lacking for one in found if one not in shared]
            return [*shared, *own]
        found = [f"{path}: {problem}" for path, part, config in self.parts() for problem in part.problems(config)]
        checkpoint = self.init.checkpoint
        if checkpoint is not None and not Path(checkpoint).is_dir():
            found.append(f"init.checkpoint: given {checkpoint!r}, which is no folder; allowed: a MAGMA folder")
        return found

    def to_toml(self, folder: Path | None = None) -> str:
        """The resolved recipe: everything that was inherited or left to defaults stands in it.

        Paths inside `folder` are written relative to it.
        """
        tables = self.model_dump(mode="json", exclude_none=True)
        if self.stages:
            tables["stages"] = [stage.model_dump(mode="json", exclude_defaults=True) for stage in self.stages]
        else:
            del tables["stages"]  # earlier versions do not know the key
        return tomli_w.dumps(relative(tables, folder))
