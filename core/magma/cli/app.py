"""The `magma` program: groups of commands, the commands of plugins, and error messages instead of tracebacks."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, TextIO

import typer

from ..deprecation import RenamedKeyWarning
from ..errors import MagmaError
from ..plugins import hookspecs
from ..plugins.program import Program
from ..system.home_paths import accept_home
from ..system.ranks import is_first
from ..system.signals import end_with_launcher
from .compose import compose
from .disk_errors import disk_problem
from .eval import evals
from .export import exports
from .features import features
from .generate import generate
from .options import RUNS
from .plugin import plugins
from .recipe import recipes
from .run import runs
from .verify import verify

cli = Program(name="magma", no_args_is_help=True, add_completion=False)
cli.add_typer(recipes, name="recipe")
cli.add_typer(plugins, name="plugin")
cli.add_typer(evals, name="eval")
cli.add_typer(exports, name="export")
cli.add_typer(runs, name="run")
cli.command()(verify)
cli.command()(compose)
cli.command()(features)
cli.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(generate)


@cli.callback()
def program(
    local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None,  # of DeepSpeed's launcher
) -> None:
    """Any modality into a frozen language model."""


def _add_plugin_commands() -> None:
    """Add the commands of plugins; a plugin that fails is reported and left out."""
    from importlib.metadata import entry_points

    import pluggy

    for point in entry_points(group=hookspecs.COMMANDS_GROUP):
        manager = pluggy.PluginManager("magma")
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(point.load())
            manager.hook.magma_commands(cli=cli)
        except Exception as error:  # the program starts whatever a plugin's module does
            owner = point.dist.name if point.dist else "unknown"
            typer.echo(f"magma: commands of {owner} left out: {type(error).__name__}: {error}", err=True)
    accept_home(cli)


def _show_renamed_keys() -> None:
    """Print the warnings for former names of keys, which Python hides. In the first process of a run only."""
    show = warnings.showwarning

    def show_or_print(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, RenamedKeyWarning):
            typer.echo(f"warning: {message}", err=True)
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = show_or_print
    warnings.simplefilter("once" if is_first() else "ignore", RenamedKeyWarning)


def main() -> None:
    """Entry point. A `MagmaError` becomes a message and exit status 2, without a traceback."""
    # Before torch is loaded: threads that wait by spinning make a CPU run 20 times slower beside any other process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    end_with_launcher()
    _show_renamed_keys()
    _add_plugin_commands()
    try:
        cli()
    except MagmaError as error:
        typer.echo(f"magma: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        problem = disk_problem(error, [*sys.argv[1:], str(RUNS)])
        if problem is None:
            raise
        typer.echo(f"magma: {problem}", err=True)
        sys.exit(2)
