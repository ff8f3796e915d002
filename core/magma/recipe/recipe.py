"""The whole recipe: read from TOML or a dict, checked at once, and resolved: every default is filled in.

This package checks its own tables; a table with `use` is checked by the `Config` of the part that it names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..errors import RecipeError
from ..interfaces import Part
from ..plugins.registry import installed
from . import deepspeed_table, feature_caches, loss_weights
from .explain import NEEDS, explain_all, shown
from .loader import find_recipe, read_tables, remove_switched_off
from .notation import TooDeep, check_depth
from .overrides import apply_override, locate
from .parts import PartTable, all_part_tables, check_part, part_tables, trained_in_frozen, trained_parts
from .paths import relative
from .schema import AdapterName, AdapterUse, Data, Init, InputName, InputTable, Table, TaskTable, Train, Use
from .stages import Stage, label, overlay, resolve_keys, unknown_parts, with_length

_TRAINING_TABLES = ("data", "tasks", "train", "deepspeed", "callbacks", "stages")
"""Tables that a model does not need."""


def _stage_of(origin: str, raw: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """The table of the stage that a manifest names."""
    stages = raw.get("stages")
    if not isinstance(stages, list) or number >= len(stages) or not isinstance(stages[number], Mapping):
        raise RecipeError(
            origin, [f"stages: the recipe has no stage {number + 1}, which the checkpoint's manifest.json names"]
        )
    found: Mapping[str, Any] = stages[number]
    return found


def _class_and_config(one: PartTable) -> tuple[type[Any], Any]:
    part = installed().find(one.kind, one.table["use"]).part
    return part, part.Config.model_validate(one.own_fields())


class Recipe(Table):
    """A checked and resolved recipe. Use `Recipe.load` to get one."""

    name: str
    """Name of the experiment. The run is written to `runs/NAME` unless `--out` names another folder."""
    description: str = ""
    """One line, shown by `magma recipe list`."""
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    """Seed of the initial weights, the order of the data and dropout. The same seed gives the same run."""
    lm: Use
    """The frozen language model: `use` and the keys of that part."""
    init: Init = Init()
    """Where trained parts start from, if not from their own weights."""
    inputs: dict[InputName, InputTable] = Field({})
    """The inputs of the model, one table for each name."""
    adapters: dict[AdapterName, AdapterUse] = Field({})
    """Adapters, one table for each name. By default they act on the sublayer that the table is called after
    (`attention`, `mlp`) in every block that has it. At the same place, each table wraps those before it. `false`
    removes an inherited one."""
    head: Use | None = None
    """A classification head in place of the language model's head; examples then need a label."""
    data: Data = Data()
    """What the model is trained on, and what the evaluation loss is computed on."""
    tasks: tuple[TaskTable, ...] = ()
    """Evaluations of the final checkpoint."""
    published: dict[str, dict[str, dict[str, float]]] = Field({})
    """Scores that a paper reports for this experiment, as `TASK = { SCORE.SHOTS = 60.0 }`. `magma eval report` shows
    them beside the run's own. Not inherited through `extends`."""
    train: Train | None = None
    """Optimizer, length, batch size and everything else about training."""
    deepspeed: dict[str, Any] = Field({})
    """Passed on to DeepSpeed unchanged. Keys that `[train]` sets are refused."""
    callbacks: tuple[Use, ...] = ()
    """Callbacks that watch the training, called in this order."""
    stages: tuple[Stage, ...] = ()
    """Tables that override the others, for training in several stages."""

    @model_validator(mode="after")
    def _something_to_watch(self) -> Self:
        if self.train and self.train.early_stopping and not self.data.evaluation:
            raise PydanticCustomError(NEEDS, "train.early_stopping needs a [[data.evaluation]]")
        return self

    @model_validator(mode="after")
    def _adapters_of_inputs(self) -> Self:
        for name, table in self.adapters.items():
            for one in table.only_with or ():
                if one not in self.inputs:
                    known = ", ".join(self.inputs) or "it has none"
                    raise PydanticCustomError(
                        NEEDS, f'adapters.{name}.only_with: given "{one}"; allowed: the inputs of the recipe: {known}'
                    )
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
        """Read and check a recipe. No weights or data are loaded or downloaded.

        Args:
            source: A TOML file, the name of a bundled recipe, or the tables as a dict.
            overrides: Changes such as "train.lr=1e-4", with the value in TOML's notation.
            folder: Folder that relative paths are looked up in. Default: that of the file, or the working folder.
            model_only: For the recipe of a checkpoint. Data, tasks and training are left out, so their plugins need not
                be installed, and keys that did not exist yet get their `legacy_defaults`.
            stage: The stage that wrote the checkpoint, counted from 0.

        Raises:
            RecipeError: With all mistakes in the recipe.
        """
        if isinstance(source, Mapping):
            origin, folder = "the recipe", folder or Path.cwd()
            try:
                check_depth(source)
            except TooDeep as error:
                raise RecipeError(origin, [str(error)]) from error
            raw = copy.deepcopy(dict(source))
        else:
            path = find_recipe(source)
            origin, raw, folder = str(path), read_tables(path), folder or path.parent
        if model_only:
            if stage is not None:
                raw = overlay(raw, stage, _stage_of(origin, raw, stage))
            raw = {key: value for key, value in raw.items() if key not in _TRAINING_TABLES}
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
        resolved = cls._resolve(base, context, problems)
        if stages is not given:
            problems.append(f"stages: given {shown(given)}; allowed: tables, [[stages]]")
        of_base = set(problems)
        kept = []
        for number, stage in enumerate(stages):
            found: list[str] = []
            kept.append(cls._resolve_stage(base, number, stage, context, found))
            new = [f".{problem}" for problem in found if problem not in of_base]
            problems += [f"stages[{number}]{problem.replace('.recipe: ', ': ', 1)}" for problem in new]
        if problems or resolved is None:
            raise RecipeError(origin, problems)
        return cls.model_validate({**resolved, "stages": kept}, context=context)

    @classmethod
    def _resolve(cls, raw: dict[str, Any], context: dict[str, Any], problems: list[str]) -> dict[str, Any] | None:
        """The tables with the defaults of every part. None if there are mistakes, which are added to `problems`."""
        before = len(problems)
        recipe = None
        try:
            recipe = cls.model_validate(raw, context=context)
        except ValidationError as error:
            problems += explain_all(cls, error.errors())
        part_fields: dict[str, dict[str, Any]] = {}
        for path, kind, table in part_tables(raw):
            part_fields[path] = check_part(PartTable(path, kind, table), context, problems)
        if isinstance(table := raw.get("deepspeed"), dict):
            problems += deepspeed_table.problems(table)
        problems += loss_weights.problems(raw)
        if recipe is None or len(problems) > before:
            return None
        resolved = recipe.model_dump(mode="json", exclude_none=True)
        for path, fields in part_fields.items():
            holder, key = locate(resolved, path)
            holder[key] = fields
        problems += trained_in_frozen(resolved)
        problems += feature_caches.problems(resolved)
        return resolved

    @classmethod
    def _resolve_stage(
        cls, base: dict[str, Any], number: int, stage: Any, context: dict[str, Any], problems: list[str]
    ) -> dict[str, Any]:
        """One of [[stages]], counted from 0, as `_resolve` does it."""
        try:
            checked = Stage.model_validate(stage)
        except ValidationError as error:
            problems += explain_all(Stage, error.errors())
            return {}
        problems += unknown_parts(base, checked)
        resolved = None if problems else cls._resolve(overlay(base, number, stage), context, problems)
        return {**resolve_keys(stage, resolved or {}), **({"name": checked.name} if checked.name else {})}

    def in_stages(self) -> list[Recipe]:
        """The recipe of every stage, in order. Without [[stages]], only this recipe."""
        if not self.stages:
            return [self]
        base = self.model_dump(mode="json", exclude_none=True)
        tables = [stage.model_dump(mode="json", exclude_defaults=True) for stage in self.stages]
        return [type(self).model_validate(overlay(base, number, table)) for number, table in enumerate(tables)]

    def stage_label(self, number: int) -> str:
        """Label of a stage (counted from 0) in logs, plans and curves. Empty without [[stages]]."""
        return label(self.stages, number) if self.stages else ""

    def part(self, path: str) -> tuple[type[Any], Any]:
        """The class and the config of the part at a path such as `inputs.NAME.encoder` or `data.train.0`.

        Parts inside other parts have paths too, such as `inputs.NAME.encoder.of.0`.

        Raises:
            KeyError: There is no part at this path.
        """
        for one in all_part_tables(self.model_dump()):
            if one.path == path:
                return _class_and_config(one)
        raise KeyError(path)

    def parts(self) -> list[tuple[str, type[Part], Any]]:
        """Every part of the recipe, also inside other parts, with its path, class and config."""
        return [(one.path, *_class_and_config(one)) for one in all_part_tables(self.model_dump())]

    def trained_parts(self) -> dict[str, bool]:
        """Whether each part with weights is trained, by path."""
        return trained_parts(self.model_dump())

    def problems(self) -> list[str]:
        """Files, packages and data that this machine lacks to run the recipe, one line each. Nothing is loaded."""
        if self.stages:
            lacking = [(number, stage.problems()) for number, stage in enumerate(self.in_stages())]
            shared = [one for one in lacking[0][1] if all(one in found for _, found in lacking)]
            own = [f"stages[{number}].{one}" for number, found in lacking for one in found if one not in shared]
            return [*shared, *own]
        found = [f"{path}: {problem}" for path, part, config in self.parts() for problem in part.problems(config)]
        checkpoint = self.init.checkpoint
        if checkpoint is not None and not Path(checkpoint).is_dir():
            found.append(
                f"init.checkpoint: given {checkpoint!r}, which is not a folder; allowed: a checkpoint or a run's folder"
            )
        return found

    def to_toml(self, folder: Path | None = None) -> str:
        """The resolved recipe with all inherited values and defaults, as TOML.

        Args:
            folder: Paths inside this folder are written relative to it.
        """
        tables = self.model_dump(mode="json", exclude_none=True)
        if self.stages:
            tables["stages"] = [stage.model_dump(mode="json", exclude_defaults=True) for stage in self.stages]
        else:
            del tables["stages"]  # earlier versions do not know the key
        if not self.callbacks:
            del tables["callbacks"]  # likewise
        return tomli_w.dumps(relative(tables, folder))
