"""The command `magma data make`. Slow imports happen when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

DataSet = Literal["moving-shapes"]


def make(
    name: Annotated[DataSet, typer.Argument(help="Name of the data set.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    train: Annotated[int, typer.Option(min=1, help="Number of training clips.")] = 2000,
    test: Annotated[
        int, typer.Option(min=1, help="Number of held-out clips; each is written a second time, reversed in time.")
    ] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
) -> None:
    """Make a small data set. moving-shapes: video clips of a shape, and the question which way it moves."""
    from .moving_shapes.make import make as make_clips

    sets: dict[DataSet, Callable[..., None]] = {"moving-shapes": make_clips}
    sets[name](out, train, test, seed, lambda line: typer.echo(line, err=True))
    typer.echo(f"{out} is complete: {train:,} training clips, {test:,} held-out clips, also reversed")
