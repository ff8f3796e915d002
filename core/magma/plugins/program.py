"""The `magma` program, as the hook for commands gets it."""

from __future__ import annotations

import typer


class Program(typer.Typer):
    """The `magma` program, to which plugins add commands."""

    def group(self, name: str, about: str = "") -> typer.Typer:
        """The group of commands with one name, such as `magma import ...`; it is created if it does not exist.

        Args:
            name: The word after `magma`.
            about: Help text of a new group.
        """
        for known in self.registered_groups:
            if known.name == name and known.typer_instance is not None:
                return known.typer_instance
        made = typer.Typer(help=about, no_args_is_help=True)
        self.add_typer(made, name=name)
        return made
