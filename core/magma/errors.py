"""What a user can do wrong, one class per kind of mistake. Bugs of ours are `assert`s, never a `MagmaError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class MagmaError(Exception):
    """Something the user can put right. The message says where, what was given and what is allowed."""


MISSING_NOUN = ("thing is missing", "things are missing")
"""What a `RecipeError` counts where nothing is wrong with the recipe itself."""


class RecipeError(MagmaError):
    """One or more mistakes in a recipe, or things that it asks for and this machine lacks; all of them at once."""

    def __init__(self, origin: str, problems: Iterable[str], what: tuple[str, str] = ("mistake", "mistakes")) -> None:
        """`what` says what one problem is, and what several are."""
        self.problems = list(problems)
        count = len(self.problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{origin}: {count} {what[count != 1]}\n{lines}")


class PluginError(MagmaError):
    """A part is unknown, broken, or registered twice."""


class InputError(MagmaError):
    """A value in a prompt or an example that no input takes, or that cannot be read."""


class TooLong(InputError):
    """An example that does not fit into the language model's context."""


class PartError(MagmaError):
    """Parts that do not fit together, or a part that breaks its interface."""


class CheckpointError(MagmaError):
    """A folder that is no checkpoint, or one whose tensors do not match the model."""


class TrainingError(MagmaError):
    """A run that cannot be started or continued."""


class OutOfMemory(MagmaError):
    """A single example or prompt that needs more memory than the device has."""


_SHOWN = 3
"""Reasons that an error lists."""


def first_of(reasons: Sequence[str]) -> str:
    """The first of several reasons, a line each, and how many there are besides."""
    more = [f"and {len(reasons) - _SHOWN} others"] if len(reasons) > _SHOWN else []
    return "".join(f"\n  - {line}" for line in [*reasons[:_SHOWN], *more])


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` Did you mean "linear"?` for the closest of `known`, or nothing."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""
