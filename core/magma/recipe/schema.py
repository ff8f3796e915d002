"""A recipe: TOML in, a checked and frozen description of a model and its training out.

Core knows the frame; each table with a `use` is checked by the `Config` of the part that it names.
"""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from ..errors import LACKING, PluginError, RecipeError, did_you_mean
from ..interfaces import Part, PartConfig, Place
from ..names import name_problem
from ..plugins.registry import installed
from ..system.home_paths import expand_home
from . import deepspeed_table
from .notation import DEPTH, TooDeep, check_depth, parse_toml
from .stages import Stage, label, overlay, settle, strangers, with_length
from .tables import merge_recipes, set_length

SUFFIX = ".toml"
MAX_UNREADABLE = 0.01
"""The share of examples, or of an evaluation's questions, that need not be readable."""
Precision = Literal["bf16", "fp16", "fp32"]


# Paths in configs


def _resolve(value: str, info: ValidationInfo) -> str:
    """A relative path, where it exists: beside the recipe, in $MAGMA_DATA, in the working folder. Else as given."""
    if (expanded := expand_home(Path(value))).is_absolute():
        return str(expanded)
    folder = (info.context or {}).get("folder")
    places = [folder, os.environ.get("MAGMA_DATA"), Path.cwd()]
    for place in places:
        if place is not None and (Path(place) / value).exists():
            return str((Path(place) / value).resolve())
    return value


def _relative(value: Any, folder: Path | None) -> Any:
    """The same tables, with paths inside `folder` as seen from there."""
    if folder is None:
        return value
    if isinstance(value, dict):
        return {key: _relative(one, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [_relative(one, folder) for one in value]
    inside = isinstance(value, str) and value.startswith(f"{folder.resolve()}{os.sep}")
    return str(Path(value).relative_to(folder.resolve())) if inside else value


LocalPath = Annotated[str, AfterValidator(_resolve)]
"""A config field that is a file or folder; a relative one is made absolute where it is found."""
Weights = LocalPath
"""A config field that is a hub name or a file or folder: what is not found on disk stays as it is."""


# The frame


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Use(BaseModel):
    """A table that names a part; the other keys are for its `Config`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    use: str

    @property
    def fields(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TaskTable(Use):
    """An evaluation of the finished checkpoint."""

    shots: tuple[NonNegativeInt, ...] = Field((0,), min_length=1)
    """How many completed examples stand before each question; the task is asked once for each."""


class Init(_Table):
    """Where the trained weights start."""

    checkpoint: LocalPath | None = None
    """A MAGMA folder to start the trained weights from."""


def _input_name(name: str, info: ValidationInfo) -> str:
    """A checkpoint of an earlier version keeps the names that it has."""
    problem = name_problem(name)
    if problem and not (info.context or {}).get("checkpoint"):
        raise ValueError(problem)
    return name


InputName = Annotated[str, AfterValidator(_input_name)]


class InputTable(_Table):
    """One way into the language model."""

    encoder: Use
    prefix: Use
    trainable: bool = True
    """Of the encoder only; the prefix's table has a `trainable`, too."""
    lr: PositiveFloat | None = None
    """The encoder's learning rate; [train].lr where it is not given."""
    batchnorm: Literal["train", "frozen"] = "train"
    """A trained encoder's BatchNorm: batch statistics, averaged for later, or the pretrained ones throughout."""


class Data(_Table):
    """What is trained on, and what the loss is watched on."""

    train: tuple[Use, ...] = ()
    """Each may have a `weight`: how often it is drawn from, relative to the others."""
    evaluation: tuple[Use, ...] = ()


class Constant(_Table):
    """The highest learning rate, always."""

    use: Literal["constant"]


class Cosine(_Table):
    """Half a cosine from the highest learning rate down to a fraction of it."""

    use: Literal["cosine"]
    final: float = Field(0.1, ge=0, le=1)
    """The last step's learning rate, as a fraction of the highest."""


class Linear(_Table):
    """A straight line from the highest learning rate down to a fraction of it."""

    use: Literal["linear"]
    final: float = Field(0.0, ge=0, le=1)


_Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(_Table):
    """As torch.optim has it."""

    use: Literal["adam", "adamw"] = "adam"
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(0.0, ge=0)


def _check_micro_batch(value: Any) -> Any:
    """One message, where pydantic has one for each type."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError('"auto", or a whole number above 0')


class Train(_Table):
    """How to train."""

    lr: PositiveFloat
    batch_size: PositiveInt
    """Examples a step, over all processes."""
    samples: PositiveInt | None = None
    steps: PositiveInt | None = None
    micro_batch_size: Annotated[int | Literal["auto"], BeforeValidator(_check_micro_batch)] = "auto"
    """Examples that one process takes at once. auto: as many of its share as fit into memory by the plan's estimate."""
    warmup_steps: int = Field(0, ge=0)
    schedule: Constant | Cosine | Linear = Field(Cosine(use="cosine"), discriminator="use")
    optimizer: Optimizer = Optimizer()
    precision: Precision = "bf16"
    gradient_clipping: float = Field(0.0, ge=0)
    """Largest norm of the gradient; 0: not clipped."""
    loss: Literal["token_mean", "micro_batch_mean"] = "token_mean"
    """token_mean: over the targets of the global batch. micro_batch_mean: the authors' code's mean of means."""
    max_length: PositiveInt | None = None
    """Longest example in positions; the language model's context where it is not given."""
    packing: PositiveInt | None = None
    """Positions of a row that several examples share, each seeing itself alone; one example a row without it."""
    too_long: Literal["error", "skip"] = "error"
    """What to do with an example that does not fit even when its text is cut."""
    unreadable: Literal["error", "skip"] = "error"
    """What to do with an example whose row or medium cannot be read; skipped ones are listed in skipped.jsonl."""
    max_unreadable: float = Field(MAX_UNREADABLE, ge=0, le=1)
    """More than this share of the examples drawn so far, of at least 100, cannot be read: the run ends."""
    evaluate_every: int = Field(0, ge=0)
    """Steps between evaluations of the loss; 0: at the end alone."""
    early_stopping: PositiveInt | None = None
    """End after so many evaluations without a new lowest loss, and keep the checkpoint of the lowest one."""
    evaluate_samples: PositiveInt | None = None
    """Most examples of each evaluation set; all where it is not given."""
    checkpoint_every: int = Field(0, ge=0)
    """Steps between checkpoints; 0: at the end alone."""
    keep_checkpoints: PositiveInt = 2
    spike_factor: float | None = Field(None, gt=1)
    """A step whose loss is more than so many times that of late is skipped; without it, one that is not finite."""
    max_skipped_steps: PositiveInt = 20
    """So many skipped steps in a row end the run, with a checkpoint."""
    activation_checkpointing: Literal["none", "encoder", "lm", "all"] = "none"
    """Parts that run a second time in the backward pass instead of keeping their activations."""
    compile: bool = False
    """Compile the language model's blocks with torch.compile: minutes at the start."""
    workers: int | None = Field(None, ge=0)
    """Processes that decode and collate ahead of each training process; where there is a GPU, up to 8 by default."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.samples is None) == (self.steps is None):
            raise ValueError("give either `samples` or `steps`")
        if self.early_stopping and not self.evaluate_every:
            raise ValueError("early_stopping with evaluate_every: the loss has to be watched")
        return self

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run; a last partial batch counts as one."""
        if self.steps is not None:
            return self.steps
        assert self.samples is not None
        return -(-self.samples // self.batch_size)


def _stage_of(origin: str, raw: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """A stage's table, where a manifest names the stage."""
    stages = raw.get("stages")
    if not isinstance(stages, list) or number >= len(stages) or not isinstance(stages[number], Mapping):
        raise RecipeError(
            origin, [f"stages: the checkpoint's manifest.json has stage {number + 1}, and the recipe not"]
        )
    found: Mapping[str, Any] = stages[number]
    return found


_OF_THE_RUN = ("data", "tasks", "train", "deepspeed", "stages")


class Recipe(_Table):
    """The whole of it. `Recipe.load` is how to get one."""

    name: str
    description: str = ""
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    lm: Use
    init: Init = Init()
    inputs: dict[InputName, InputTable] = {}
    adapters: dict[Place, Use] = {}
    head: Use | None = None
    data: Data = Data()
    tasks: tuple[TaskTable, ...] = ()
    published: dict[str, dict[str, dict[str, float]]] = {}
    """What a paper reports of this very experiment, task to score to shots to figure: `magma eval report` shows it."""
    train: Train | None = None
    deepspeed: dict[str, Any] = {}
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
            origin, raw, folder = str(path), _read(path), folder or path.parent
        if model_only:
            if stage is not None:
                raw = overlay(raw, stage, _stage_of(origin, raw, stage))
            raw = {key: value for key, value in raw.items() if key not in _OF_THE_RUN}
        problems: list[str] = []
        for override in overrides:
            _override(raw, override, problems)
        _remove_switched_off(raw)
        return cls._check(origin, raw, {"folder": folder, "checkpoint": model_only}, problems)

    @classmethod
    def _check(cls, origin: str, raw: dict[str, Any], context: dict[str, Any], problems: list[str]) -> Recipe:
        given = raw.get("stages", [])
        stages = given if isinstance(given, list) else []
        base = with_length(raw, stages)
        settled = cls._settle(base, context, problems)
        if stages is not given:
            problems.append(f"stages: given {_shown(given)}; allowed: tables, [[stages]]")
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
            resolved[path] = _check_part(path, kind, table, context, problems)
        if isinstance(table := raw.get("deepspeed"), dict):
            problems += deepspeed_table.problems(table)
        if recipe is None or len(problems) > before:
            return None
        settled = recipe.model_dump(mode="json", exclude_none=True)
        for path, fields in resolved.items():
            holder, key = _place(settled, path)
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
        problems += strangers(base, checked)
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
                return part, part.Config.model_validate(_own_fields(path, table))
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
        return tomli_w.dumps(_relative(tables, folder))


def learns(table: Use) -> bool:
    """Whether a prefix, an adapter or a head is trained: by default it is."""
    return bool(table.fields.get("trainable", True))


def part_tables(raw: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(path, kind, table) of every table of a recipe that names a part, whatever its other mistakes."""

    def table(value: Any) -> Mapping[str, Any]:
        return value if isinstance(value, Mapping) else {}

    def array(value: Any) -> Sequence[Any]:
        return value if isinstance(value, list | tuple) else ()

    if "lm" in raw:
        yield "lm", "lm", raw["lm"]
    for name, way in table(raw.get("inputs")).items():
        for kind in ("encoder", "prefix"):
            if kind in table(way):
                yield f"inputs.{name}.{kind}", kind, table(way)[kind]
    for place, adapter in table(raw.get("adapters")).items():
        yield f"adapters.{place}", "adapter", adapter
    if raw.get("head") is not None:
        yield "head", "head", raw["head"]
    for use in ("train", "evaluation"):
        for i, source in enumerate(array(table(raw.get("data")).get(use))):
            yield f"data.{use}.{i}", "data", source
    for i, task in enumerate(array(raw.get("tasks"))):
        yield f"tasks.{i}", "task", task


# Keys of a part's table that the frame reads, not the part.
_FRAME_KEYS = {
    "adapters": ("lr", "trainable"),
    "data.train": ("weight",),
    "head": ("lr", "trainable"),
    "inputs": ("lr", "trainable"),
    "tasks": ("shots",),
}


def _own_fields(path: str, table: Mapping[str, Any]) -> dict[str, Any]:
    frame: tuple[str, ...] = ("use",)
    for prefix, keys in _FRAME_KEYS.items():
        if path.startswith(prefix) and not path.endswith(".encoder"):
            frame += keys
    return {key: value for key, value in table.items() if key not in frame}


def _check_part(path: str, kind: str, table: Any, context: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The table with its config's defaults filled in; mistakes are added to `problems`."""
    if not isinstance(table, Mapping) or not isinstance(table.get("use"), str):
        return {}  # the frame has said so
    own = _own_fields(path, table)
    for key in table.keys() - own.keys() - {"use", "shots"}:
        value = table[key]
        if key == "trainable":
            if not isinstance(value, bool):
                problems.append(f"{path}.{key}: given {value!r}; allowed: true, false")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            problems.append(f"{path}.{key}: given {value!r}; allowed: a number above 0, and finite")
    try:
        part = installed().find(kind, table["use"]).part
    except PluginError as error:
        problems.append(f"{path}.use: given {table['use']!r}; {error}")
        return {}
    if context.get("checkpoint"):
        own = {**part.Config.legacy_defaults, **own}
    try:
        config: PartConfig = part.Config.model_validate(own, context=context)
    except ValidationError as error:
        problems += [explain(part.Config, one, path) for one in error.errors()]
        return {}
    frame = {key: value for key, value in table.items() if key not in own}
    return {**frame, **config.model_dump(mode="json", exclude_none=True)}


def build_part(
    kind: str, name: str, fields: Mapping[str, Any], overrides: Sequence[str], needs_files: bool, *context: Any
) -> Any:
    """One part by itself, from its fields and `key=value` in TOML's notation; `context` is what its kind is built with.

    Raises `RecipeError` with every mistake, and with what this machine lacks where the part `needs_files`.
    """
    problems: list[str] = []
    table = {"use": name, **fields}
    for override in overrides:
        _override(table, override, problems)
    checked = _check_part(name, kind, table, {"folder": Path.cwd()}, problems)
    if problems:
        raise RecipeError(f"{kind} {name}", problems)
    part: Any = installed().find(kind, name).part
    config = part.Config.model_validate({key: value for key, value in checked.items() if key != "use"})
    if needs_files and (missing := part.problems(config)):
        raise RecipeError(f"{kind} {name}", missing, LACKING)
    return part(config, *context)


# Reading


def find(source: str | Path) -> Path:
    """A recipe's file: a path, or the name of a bundled one ("quickstart", "paper/frozen")."""
    path = Path(source)
    if path.is_file():
        return path
    known = bundled()
    if str(source) in known:
        return known[str(source)]
    hint = did_you_mean(str(source), known)
    raise RecipeError(
        str(source), [f"no such file, and no bundled recipe has this name.{hint} Bundled: {', '.join(known)}"]
    )


def bundled() -> dict[str, Path]:
    """Name to file of the recipes that come with the package."""
    here = Path(__file__).parents[1]
    # in a wheel inside the package; in a checkout at its top
    folder = next((f for f in (here / "recipes", here.parents[1] / "recipes") if f.is_dir()), here)
    return {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.rglob(f"*{SUFFIX}"))}


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's tables, laid over those of the file that it extends."""
    path = path.resolve()
    if path in seen:
        raise RecipeError(str(seen[0]), [f"extends itself: {' -> '.join(str(p) for p in (*seen, path))}"])
    try:
        raw = parse_toml(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except (OSError, ValueError) as error:
        raise RecipeError(str(path), [str(error)]) from error
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise RecipeError(str(path), [f"extends: given {base!r}; allowed: the path of another recipe"])
    parent = path.parent / base
    if not parent.is_file():
        raise RecipeError(str(path), [f"extends: given {base!r}; {parent} does not exist"])
    inherited = _read(parent, (*seen, path))
    inherited.pop("published", None)  # it speaks of that recipe alone
    return merge_recipes(inherited, raw)


def _remove_switched_off(raw: dict[str, Any]) -> None:
    """`attention = false` takes out an adapter that the extended recipe has; so do an input, the head, the stages."""
    for key in ("inputs", "adapters"):
        if isinstance(raw.get(key), Mapping):
            raw[key] = {name: table for name, table in raw[key].items() if table is not False}
    for key in ("head", "stages"):
        if raw.get(key) is False:
            del raw[key]


def _override(raw: dict[str, Any], text: str, problems: list[str]) -> None:
    """`a.b.0.c=value`: the value in TOML's notation, or a bare string."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        problems.append(f"--set {text}: allowed: path=value, such as train.lr=1e-4")
        return
    try:
        if path.count(".") >= DEPTH:
            raise TooDeep
        parsed = parse_toml(f"value = {value}")["value"]
    except TooDeep as error:
        problems.append(f"--set {path[:40]}: {error}")
        return
    except ValueError:
        parsed = value
    try:
        holder, key = _place(raw, path)
        holder[key] = parsed
        if re.fullmatch(r"(stages\.\d+\.)?train\.\w+", path):
            set_length(holder, str(key))
    except (AttributeError, IndexError, ValueError, TypeError):
        problems.append(f"--set {text}: there is no {path} to set")


def _place(raw: dict[str, Any], path: str) -> tuple[Any, str | int]:
    """The table or array that holds a dotted path's value, and the key there. Tables on the way are made."""
    *parents, last = path.split(".")
    here: Any = raw
    for key in parents:
        here = here[_index(key)] if isinstance(here, list) else here.setdefault(key, {})
    return here, _index(last) if isinstance(here, list) else last


def _index(key: str) -> int:
    """A place in an array, counted from 0. Raises `IndexError` for one that is counted from the end."""
    if key.startswith("-"):
        raise IndexError(key)
    return int(key)


# Explaining mistakes


def explain(model: type[BaseModel], error: Any, prefix: str = "") -> str:
    """What pydantic found, in one line: dotted path, what was given, what is allowed."""
    location = [str(part) for part in error["loc"] if part != "[key]"]
    path = ".".join([prefix, *location] if prefix else location) or prefix or "recipe"
    if error["type"] == "missing":
        return f"{path}: missing; it has no default"
    if error["type"] == "extra_forbidden":
        allowed = _fields_at(model, error["loc"][:-1])
        hint = did_you_mean(location[-1], allowed)
        return f"{path}: given {_shown(error['input'])}, an unknown key.{hint} Allowed: {', '.join(allowed)}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    given = error["input"]
    shown = _cut(f"a table with {', '.join(map(str, given))}") if isinstance(given, Mapping) else _shown(given)
    return f"{path}: given {shown}; allowed: {message}"


def _shown(given: Any) -> str:
    return _cut(repr(given))


def _cut(text: str) -> str:
    """A line of a terminal or two, however much was given."""
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _fields_at(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """The keys that a table inside a config may have."""
    here = [model]
    for part in location:
        inside = [m.model_fields[part].annotation for m in here if part in m.model_fields]
        if inside:
            here = [m for annotation in inside for m in _models_in(annotation)]
        else:  # an index, a key of a dict, or the tag of a union
            here = [m for m in here if "use" in m.model_fields and part in _tags(m)] or here
    return [field for m in here[:1] for field in m.model_fields]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    return getattr(model.model_fields["use"].annotation, "__args__", ())


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
