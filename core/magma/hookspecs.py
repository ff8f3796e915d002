"""The two hooks. A package implements them with `@magma.hookimpl` and names its module in an entry-point group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer

    from .interfaces import Part

PARTS_GROUP = "magma"
COMMANDS_GROUP = "magma.commands"

hookspec = pluggy.HookspecMarker("magma")
hookimpl = pluggy.HookimplMarker("magma")


@hookspec
def magma_parts() -> Iterable[type[Part]]:  # type: ignore[empty-body]  # a specification has no body
    """The parts this package brings: concrete subclasses of Encoder, Prefix, Adapter, FrozenLM, DataSource or Task.

    Entry-point group `magma`. Called at the first lookup of any part, so the module may import torch, but should
    leave heavier libraries to the moment they are used.
    """


@hookspec
def magma_commands(cli: typer.Typer) -> None:
    """Add commands to the `magma` program.

    Entry-point group `magma.commands`. Called at every start of the program, so the module must import quickly.

    cli: the program; `cli.command()` and `cli.add_typer()` as typer has them.
    """
