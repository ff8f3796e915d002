"""The `magma` program as plugins see it: what the command hook gets."""

from __future__ import annotations

import typer


class Program(typer.Typer):
    """The `magma` program, to which plugins add commands."""

    def group(self, name: str, about: str = "") -> typer.Typer:
        """The commands under one word, such as `magma import ...`; it is made where it does not exist yet."""
        for known in self.registered_groups:
            if known.name == name and known.typer_instance is not None:
                return known.typer_instance
        made = typer.Typer(help=about, no_args_is_help=True)
        self.add_typer(made, name=name)
        return made
