"""What every part promises."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from .subject import Check, PartUnderTest, require


def documented(subject: PartUnderTest) -> None:
    """The class says in a docstring of its own what it does, and its name is one word."""
    part = subject.part
    require(bool((part.__doc__ or "").strip()) and "__doc__" in vars(part), f"{part.__name__} has no docstring")
    name = getattr(part, "name", None)
    require(isinstance(name, str) and name.isidentifier(), f"given the name {name!r}; allowed: one word, as in Python")


def config_is_strict(subject: PartUnderTest) -> None:
    """`Config` is a frozen `PartConfig`: a key that it does not know is an error."""
    part = subject.part
    subject.config()
    require(issubclass(part.Config, BaseModel), f"Config is {part.Config!r}; expected: a magma.PartConfig")
    try:
        part.Config(**{**subject.inputs_to_check.config, "no_such_key": 1})
    except ValidationError:
        return
    raise AssertionError("`Config` takes a key that it does not know: derive it from magma.PartConfig")


def problems_are_told(subject: PartUnderTest) -> None:
    """`problems` gives sentences, and none for the trial."""
    found = subject.part.problems(subject.config())
    require(isinstance(found, list), f"`problems` gave a {type(found).__name__}; expected: a list")
    require(not found, f"its trial cannot be used here: {'; '.join(map(str, found))}")


CHECKS: tuple[Check, ...] = (
    documented,
    config_is_strict,
    problems_are_told,
)
