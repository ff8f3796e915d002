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
"""Version of the plugin API. The module of a plugin may state the version that it was written for as MAGMA_API."""

hookspec = pluggy.HookspecMarker("magma")
hookimpl = pluggy.HookimplMarker("magma")


@hookspec
def magma_parts() -> Iterable[type[Part]]:  # type: ignore[empty-body]  # a specification has no body
    """The parts of this package: subclasses of Encoder, Prefix, Adapter, FrozenLM, Head, DataSource, Task or Callback.

    Entry-point group `magma`. Called at the first lookup of any part. The module may import torch, and should import
    heavier libraries only where they are used.
    """


@hookspec
def magma_commands(cli: Program) -> None:
    """Add commands to the `magma` program.

    Entry-point group `magma.commands`. Called at every start of the program, so the module must import quickly.

    Args:
        cli: The program, a typer application. `cli.group("import")` is the group for `magma import ...`.
    """
