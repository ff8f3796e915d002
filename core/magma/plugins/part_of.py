"""`PartOf`, the type of a config field that is a part, and how such fields are found in configs and in tables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    PositiveFloat,
    SerializationInfo,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..errors import PartError, PluginError
from ..interfaces import KINDS, Module, Part
from ..part import PartConfig
from . import registry

P = TypeVar("P", bound=Part)
KIND_IN_SCHEMA = "x-magma-kind"
"""Key of a JSON schema that stands for the table of any part of this kind."""


class NestedKeys(BaseModel):
    """Keys of the framework in the table of a part with weights that is inside another part."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
    trainable: bool | None = None
    """Train the part. Default: it is trained if the part around it is. The parts in a frozen part are frozen."""
    lr: PositiveFloat | None = None
    """Learning rate of the part. Default: that of the part around it."""


class PartOf(NestedKeys, Generic[P]):
    """Type of a config field that is a part: `inner: PartOf[Prefix]`, `of: tuple[PartOf[Encoder], ...]`.

    A recipe gives a table with `use`, the keys of that part and `NestedKeys`. The part around it calls `build` in its
    `__init__` and keeps the result in the attribute that has the name of the field; several in an `nn.ModuleList`, or
    an `nn.ModuleDict` for a dictionary. The framework then loads, freezes, trains and saves it by its path, such as
    `inputs.NAME.encoder.of.0`.
    """

    use: str
    """Name of the part."""
    config: PartConfig
    """Its config."""

    @classmethod
    def kind(cls) -> str:
        """The kind of part: "encoder" for `PartOf[Encoder]`."""
        (base,) = cls.__pydantic_generic_metadata__["args"] or (None,)
        assert isinstance(base, type), "PartOf needs a class, as in PartOf[Encoder]"
        assert issubclass(base, Part), "PartOf needs the class of a kind of parts"
        return base.kind

    @property
    def part(self) -> type[P]:
        """The class of the part."""
        return cast(type[P], registry.installed().find(self.kind(), self.use).part)

    def build(self, *context: Any) -> P:
        """Build the part, without its weights.

        Args:
            context: What its kind is built with after the config, such as the three sizes of a prefix.

        Raises:
            PartError: The part cannot be built with this config.
        """
        try:
            built: Any = construct(self.part, self.config, *context)
        except PartError as error:
            raise NestedPartError(self, str(error)) from error
        if isinstance(built, Module):
            built.nested = True
            if self.trainable is False:
                built.freeze()
        return cast(P, built)

    def __reduce__(self) -> Any:
        """For pickle, which does not find the class `PartOf[...]` by its name."""
        (base,) = type(self).__pydantic_generic_metadata__["args"]
        return _restore, (base, self.use, self.config, self.trainable, self.lr)

    @model_validator(mode="before")
    @classmethod
    def _check_table(cls, given: Any, info: ValidationInfo) -> Any:
        """Check the keys of a table by the `Config` of the part."""
        if isinstance(given, cls) or (isinstance(given, Mapping) and isinstance(given.get("config"), PartConfig)):
            return given
        if not isinstance(given, Mapping) or not isinstance(given.get("use"), str):
            raise PydanticCustomError("part_table", "a table with `use`, the name of a part")
        framework = {key: given[key] for key in framework_keys(cls.kind()) if key in given}
        own = {key: value for key, value in given.items() if key not in framework}
        try:
            config: type[PartConfig] = registry.installed().find(cls.kind(), given["use"]).part.Config
        except PluginError as error:
            raise PydanticCustomError("part_unknown", "{problem}", {"problem": str(error)}) from error
        if (info.context or {}).get("checkpoint"):
            own = {**config.legacy_defaults, **own}
        return {**framework, "config": config.model_validate(own, context=info.context)}

    @model_serializer(mode="plain")
    def _table(self, info: SerializationInfo) -> dict[str, Any]:
        """The table of a recipe."""
        given = {key: value for key in NestedKeys.model_fields if (value := getattr(self, key)) is not None}
        fields = self.config.model_dump(
            mode=info.mode,
            exclude_none=info.exclude_none,
            exclude_unset=info.exclude_unset,
            exclude_defaults=info.exclude_defaults,
        )
        return {"use": self.use, **given, **fields}

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {KIND_IN_SCHEMA: cls.kind()}


def _restore(base: type[Any], use: str, config: PartConfig, trainable: bool | None, lr: float | None) -> PartOf[Any]:
    return PartOf[base](use=use, config=config, trainable=trainable, lr=lr)  # type: ignore[valid-type]  # a value


class NestedPartError(PartError):
    """A part that another part contains cannot be built."""

    def __init__(self, part_of: PartOf[Any], problem: str) -> None:
        super().__init__(problem)
        self.part_of = part_of


def construct(part: type[Any], config: PartConfig, *context: Any) -> Any:
    """Build a part, without its weights. Raises `PartError`, which names the part inside it that cannot be built."""
    try:
        return part(config, *context)
    except NestedPartError as error:
        where = "".join(f"{path}: " for path, one in parts_in(config) if one is error.part_of)
        raise PartError(f"{where}{error}") from error


def framework_keys(kind: str) -> list[str]:
    """The keys of a nested part's table that its `Config` does not read."""
    return ["use", *(NestedKeys.model_fields if issubclass(KINDS[kind], Module) else ())]


def map_tables(model: type[BaseModel], table: Mapping[str, Any], change: Callable[[str, type[Any], Any], Any]) -> Any:
    """The table of a config with every nested part's table changed.

    Args:
        model: The config.
        table: Its keys, under their current names; they may have mistakes.
        change: Called with the path inside the table, such as "of.0", the `PartOf` class and the value.
    """
    fields = fields_with_parts(model)
    return {key: _map(fields[key], value, key, change) if key in fields else value for key, value in table.items()}


def _map(annotation: Any, value: Any, path: str, change: Callable[[str, type[Any], Any], Any]) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, PartOf):
        return change(path, annotation, value)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        deeper = lambda inner, kind, one: change(f"{path}.{inner}", kind, one)  # noqa: E731  # one line, next to its use
        return map_tables(annotation, value, deeper) if isinstance(value, Mapping) else value
    arguments = [one for one in get_args(annotation) if _has_parts(one)]
    if not arguments:
        return value
    inner = arguments[-1]  # of a dictionary, the values
    origin = get_origin(annotation)
    if not (isinstance(origin, type) and issubclass(origin, Collection)):  # Annotated, or a union
        return _map(inner, value, path, change)
    if isinstance(value, Mapping):
        return {key: _map(inner, one, f"{path}.{key}", change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_map(inner, one, f"{path}.{i}", change) for i, one in enumerate(value)]
    return value


@functools.cache
def fields_with_parts(model: type[BaseModel]) -> dict[str, Any]:
    """The annotations of the fields of a config that contain a `PartOf`."""
    found = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: annotation for name, annotation in found.items() if _has_parts(annotation)}


def _has_parts(annotation: Any, around: tuple[Any, ...] = ()) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if issubclass(annotation, PartOf):
            return True
        inside = [] if annotation in around else [field.annotation for field in annotation.model_fields.values()]
    else:
        inside = list(get_args(annotation))
    return any(_has_parts(one, (*around, annotation)) for one in inside)


def parts_in(value: Any, path: str = "") -> Iterator[tuple[str, PartOf[Any]]]:
    """The nested parts of a config with their paths, such as "of.0". Not those inside them."""
    if isinstance(value, PartOf):
        yield path, value
        return
    pairs: Any = ()
    if isinstance(value, BaseModel):
        pairs = ((name, getattr(value, name)) for name in type(value).model_fields)
    elif isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    for key, one in pairs:
        yield from parts_in(one, f"{path}.{key}" if path else str(key))


def check_nested_parts(part: Module) -> None:
    """Check that a part keeps the parts of its config under the names of their fields.

    Raises:
        PartError: A submodule is missing, or has another name.
    """
    for name, inner in part.all_parts().items():
        declared = [path for path, one in parts_in(inner.config) if issubclass(KINDS[one.kind()], Module)]
        kept = list(inner.nested_parts())
        if sorted(declared) != sorted(kept):
            where = f"{name}: " if name else ""
            raise PartError(
                f"{where}{inner.name} keeps the parts of its config as {', '.join(kept) or 'none'}; allowed: "
                f"{', '.join(declared) or 'none'}, the submodules with the names of the fields, each made with `build`"
            )
