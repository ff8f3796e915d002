"""Checks of every part."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from .subject import Check, PartUnderTest, require


def documented(subject: PartUnderTest) -> None:
    """The class has its own docstring, and its name is one word."""
    part = subject.part
    require(bool((part.__doc__ or "").strip()) and "__doc__" in vars(part), f"{part.__name__} has no docstring")
    name = getattr(part, "name", None)
    require(isinstance(name, str) and name.isidentifier(), f"given the name {name!r}; allowed: one word, as in Python")


def config_is_strict(subject: PartUnderTest) -> None:
    """`Config` is a `PartConfig`: an unknown key is an error."""
    part = subject.part
    subject.config()
    require(issubclass(part.Config, BaseModel), f"Config is {part.Config!r}; expected: a magma.PartConfig")
    try:
        part.Config(**{**subject.inputs_to_check.config, "no_such_key": 1})
    except ValidationError:
        return
    raise AssertionError("`Config` accepts an unknown key: derive it from magma.PartConfig")


def problems_are_listed(subject: PartUnderTest) -> None:
    """`problems` returns sentences, and none for the config of `check_inputs`."""
    found = subject.part.problems(subject.config())
    require(isinstance(found, list), f"`problems` gave a {type(found).__name__}; expected: a list")
    require(not found, f"the config of its `check_inputs` cannot be used here: {'; '.join(map(str, found))}")


CHECKS: tuple[Check, ...] = (
    documented,
    config_is_strict,
    problems_are_listed,
)
