"""`magma run`: inspect and compare the folders of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

runs = typer.Typer(help="Inspect and compare runs.", no_args_is_help=True)


@runs.command("show")
def run_show(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, finished or running.")],
    png: Annotated[Path | None, typer.Option(help="File of the plot. Default: FOLDER/curves.png.")] = None,
) -> None:
    """Plot a run's curves, and print its progress, losses, speed and scores."""
    from ..runs.folder import plot_losses, run_summary
    from .console import print_columns

    print_columns(["", folder.name], [[name, value] for name, value in run_summary(folder).items()])
    typer.echo(f"curves: {plot_losses([folder], png or folder / 'curves.png', rates=True)}")


@runs.command("compare")
def run_compare(
    one: Annotated[Path, typer.Argument(help="The folder of a run.")],
    other: Annotated[Path, typer.Argument(help="The folder of another run.")],
    png: Annotated[Path | None, typer.Option(help="File for a plot of both runs. Default: no plot.")] = None,
) -> None:
    """Compare two runs: where their recipes differ, and their results."""
    from ..runs.folder import plot_losses, recipe_differences, run_summary
    from .console import print_columns

    left, right = run_summary(one), run_summary(other)
    rows = [[key, *values] for key, values in recipe_differences(one, other).items()]
    print_columns(["recipe", one.name, other.name], rows)
    typer.echo()
    names = {**left, **right}
    print_columns(["", one.name, other.name], [[n, left.get(n, ""), right.get(n, "")] for n in names])
    if png:
        typer.echo(f"curves: {plot_losses([one, other], png)}")
