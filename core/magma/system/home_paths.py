"""`~` in paths of recipes and of the command line: a shell expands `--out ~/x`, but not `--out=~/x`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer


def expand_home(value: Any) -> Any:
    """A path, or each of a list of paths, with its `~` or `~user` expanded; anything else unchanged."""
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))  # noqa: PTH111  # Path.expanduser raises for a user that does not exist
    return [expand_home(one) for one in value] if isinstance(value, list) else value


def accept_home(program: typer.Typer) -> None:
    """Expand `~` in every path argument of this program's commands, including those of plugins."""
    for command in program.registered_commands:
        if command.callback is not None and not hasattr(command.callback, "accepts_home"):
            command.callback = _expanding(command.callback)
    for group in program.registered_groups:
        if group.typer_instance is not None:
            accept_home(group.typer_instance)


def _expanding(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def expanded(*args: Any, **options: Any) -> Any:
        return callback(*args, **{name: expand_home(value) for name, value in options.items()})

    expanded.accepts_home = True  # type: ignore[attr-defined]  # so that it is not wrapped twice
    return expanded
