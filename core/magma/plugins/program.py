"""The `magma` program, which the hook for commands receives."""

from __future__ import annotations

import typer

from ..deprecation import renamed_arguments


class Program(typer.Typer):
    """The `magma` program, to which plugins add commands."""

    @renamed_arguments(about="help")
    def group(self, name: str, help: str = "") -> typer.Typer:  # noqa: A002  # as in typer
        """The group of commands with one name, such as `magma import ...`; it is created if it does not exist.

        Args:
            name: The word after `magma`.
            help: Help text of the group, unless another plugin has given one.
        """
        for known in self.registered_groups:
            if known.name == name and known.typer_instance is not None:
                known.typer_instance.info.help = known.typer_instance.info.help or help
                return known.typer_instance
        made = typer.Typer(help=help, no_args_is_help=True)
        self.add_typer(made, name=name)
        return made
