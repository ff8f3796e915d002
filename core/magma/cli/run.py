"""`magma run`: what the folders of runs hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

runs = typer.Typer(help="What the folders of runs tell.", no_args_is_help=True)


@runs.command("show")
def run_show(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, finished or running.")],
    png: Annotated[Path | None, typer.Option(help="Where to draw; FOLDER/curves.png where it is not given.")] = None,
) -> None:
    """Draw a run's curves, and print how far it is, its losses, speed and scores."""
    from ..runs.folder import plot_losses, run_summary
    from .console import print_columns

    print_columns(["", folder.name], [[name, figure] for name, figure in run_summary(folder).items()])
    typer.echo(f"curves: {plot_losses([folder], png or folder / 'curves.png', rates=True)}")


@runs.command("compare")
def run_compare(
    one: Annotated[Path, typer.Argument(help="The folder of a run.")],
    other: Annotated[Path, typer.Argument(help="The folder of another.")],
    png: Annotated[Path | None, typer.Option(help="Where to draw both curves; nowhere where it is not given.")] = None,
) -> None:
    """Two runs side by side: where their recipes differ, and their figures."""
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
