"""The two hooks. A package implements them with `@magma.hookimpl` and names its module in an entry-point group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from ..interfaces import Part
    from .program import Program

PARTS_GROUP = "magma"
COMMANDS_GROUP = "magma.commands"

API_VERSION = 1
"""Of the interfaces that a plugin sees. A plugin's module may state the one that it was written for as MAGMA_API."""

hookspec = pluggy.HookspecMarker("magma")
hookimpl = pluggy.HookimplMarker("magma")


@hookspec
def magma_parts() -> Iterable[type[Part]]:  # type: ignore[empty-body]  # a specification has no body
    """The parts this package brings: concrete subclasses of Encoder, Prefix, Adapter, FrozenLM, DataSource or Task.

    Entry-point group `magma`. Called at the first lookup of any part, so the module may import torch, but should
    leave heavier libraries to the moment they are used.
    """


@hookspec
def magma_commands(cli: Program) -> None:
    """Add commands to the `magma` program.

    Entry-point group `magma.commands`. Called at every start of the program, so the module must import quickly.

    cli: the program, a typer application; `cli.group("import")` is what to add `magma import ...` to.
    """
