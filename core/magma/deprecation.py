"""Former public names. They work for one version, with a `DeprecationWarning` that names the current one.

A class lists a former method or attribute as `old = RenamedMember("new")`. This covers code that uses the old name. For
third-party classes that override the old name, `Part.__init_subclass__` calls `move_overrides`.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any, TypeVar, cast

T = TypeVar("T", bound=Callable[..., Any])


class RenamedKeyWarning(DeprecationWarning):
    """A recipe uses the former name of a key. The program prints it; Python hides other deprecations from users."""


def warn_renamed(old: str, new: str, stacklevel: int) -> None:
    """Warn at the caller `stacklevel` frames above this function's caller (1: the caller itself)."""
    warnings.warn(f"`{old}` is now called `{new}`", DeprecationWarning, stacklevel=stacklevel + 1)


class RenamedMember:
    """A former name of a method or attribute. Reading it warns and gives the member that is called `new`.

    It defines no `__set__`: a class may use the former name for an attribute of its instances.
    """

    def __init__(self, new: str) -> None:
        self.new = new
        self.old = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.old = name

    def __get__(self, instance: Any, owner: type) -> Any:
        submodules = vars(instance).get("_modules", {}) if instance is not None else {}
        if self.old in submodules:  # torch keeps submodules out of the instance's attributes
            return submodules[self.old]
        warn_renamed(f"{owner.__name__}.{self.old}", self.new, 2)
        target = owner if instance is None else instance
        # Inside an override that `move_overrides` has moved, `super().old()` means the next class, not the override.
        caller = sys._getframe(1).f_code
        for klass in owner.__mro__:
            if _code(vars(klass).get(self.new)) is caller:
                return getattr(super(klass, target), self.new)
        return getattr(target, self.new)


def move_overrides(cls: type, stacklevel: int) -> None:
    """Give what `cls` defines under a former name the current name, with a warning at the class statement.

    A member of another kind (a property where the current one is a method) is not an override and stays as it is.
    """
    renamed = [
        (old, member.new, owner)
        for owner in cls.__mro__
        for old, member in vars(owner).items()
        if isinstance(member, RenamedMember)
    ]
    for old, new, owner in renamed:
        definers = [klass for klass in cls.__mro__ if old in vars(klass) or new in vars(klass)]
        first = definers[0]
        if first is owner or new in vars(first) or not _same_kind(vars(first)[old], _declared(owner, new)):
            continue
        setattr(cls, new, vars(first)[old])  # `first` is another class if a mixin defines the override
        if first is cls:
            delattr(cls, old)
        warn_renamed(f"{cls.__name__}.{old}", new, stacklevel + 1)


def renamed_arguments(**renamed: str) -> Callable[[T], T]:
    """A decorator for functions and classes: the former names of keyword arguments are accepted, with a warning.

    Args:
        renamed: Former and current name of each argument, as `old="new"`. Of a class, the arguments of `__init__`.
    """

    def decorate(target: T) -> T:
        name = target.__qualname__.rpartition("<locals>.")[2]
        if isinstance(target, type):
            construct = vars(target)["__init__"]
            setattr(target, "__init__", _renaming(construct, name, renamed))  # noqa: B010  # mypy allows no assignment
            return target
        return cast(T, _renaming(target, name, renamed))

    return decorate


def _renaming(function: Callable[..., Any], name: str, renamed: Mapping[str, str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def renaming(*args: Any, **kwargs: Any) -> Any:
        for old in renamed.keys() & kwargs.keys():
            warn_renamed(f"{name}({old}=)", renamed[old], 2)
            kwargs[renamed[old]] = kwargs.pop(old)
        return function(*args, **kwargs)

    return renaming


def with_current_keys(given: Mapping[str, Any], renamed: Mapping[str, str], warn: bool = True) -> dict[str, Any]:
    """The same values under the current names; of two names of one key, the one that was given last counts."""
    for key in sorted(given.keys() & renamed.keys()) if warn else ():
        warnings.warn(f"the key `{key}` is now called `{renamed[key]}`", RenamedKeyWarning, stacklevel=3)
    return {renamed.get(key, key): value for key, value in given.items()}


def renamed_export(module: str, name: str, renamed: Mapping[str, str]) -> str:
    """The current name of what a module formerly exported as `name`, with a warning.

    Raises:
        AttributeError: The module never exported that name.
    """
    if name not in renamed:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warn_renamed(f"{module}.{name}", renamed[name], 3)
    return renamed[name]


def _declared(owner: type, name: str) -> Any:
    return next((vars(klass)[name] for klass in owner.__mro__ if name in vars(klass)), None)


def _same_kind(one: Any, other: Any) -> bool:
    """An attribute may be only annotated where it is declared: `other` is None then."""
    return isinstance(one, property) == isinstance(other, property) and _is_method(one) == _is_method(other)


def _is_method(member: Any) -> bool:
    return inspect.isroutine(member) or isinstance(member, classmethod | staticmethod)


def _code(member: Any) -> CodeType | None:
    """The code of a method or property, without its decorators."""
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
