"""Errors that a user can correct, one class for each kind. Bugs of this package are `assert`s, never a `MagmaError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class MagmaError(Exception):
    """Base of all errors that a user can correct. The message says where, what was given and what is allowed."""


MISSING_NOUN = ("thing is missing", "things are missing")
"""Singular and plural of what a `RecipeError` counts if the recipe is correct and this machine lacks something."""


class RecipeError(MagmaError):
    """All mistakes in a recipe, or everything that it needs and this machine lacks."""

    def __init__(self, origin: str, problems: Iterable[str], what: tuple[str, str] = ("mistake", "mistakes")) -> None:
        """Join the problems into one message.

        Args:
            origin: The recipe's file or name, which begins the message.
            problems: One line for each problem.
            what: Singular and plural of the noun that the message counts.
        """
        self.problems = list(problems)
        count = len(self.problems)
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        super().__init__(f"{origin}: {count} {what[count != 1]}\n{lines}")


class PluginError(MagmaError):
    """A part is unknown, broken, or registered twice."""


class InputError(MagmaError):
    """A value in a prompt or an example that no input accepts, or that cannot be read."""


class TooLong(InputError):
    """An example that does not fit into the language model's context."""


class PartError(MagmaError):
    """Parts that do not fit together, or a part that breaks its interface."""


class CheckpointError(MagmaError):
    """A folder that is not a checkpoint, or whose tensors do not match the model."""


class TrainingError(MagmaError):
    """A run that cannot be started or resumed."""


class OutOfMemory(MagmaError):
    """A single example or prompt that needs more memory than the device has."""


def bullet_list(lines: Sequence[str], limit: int = 3) -> str:
    """The first lines as a list, and the number of the others. The text begins with a line break."""
    others = len(lines) - limit
    more = [f"and {others} {'other' if others == 1 else 'others'}"] if others > 0 else []
    return "".join(f"\n  - {line}" for line in [*lines[:limit], *more])


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` Did you mean "linear"?` for the closest of `known`, or nothing."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""
