"""`magma verify`: is a checkpoint complete and unmodified?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import MovedLM


def verify(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="New place of moved frozen weights, such as lm.weights=PLACE."
        ),
    ] = None,
    lm: MovedLM = None,
) -> None:
    """Check that a checkpoint is complete and unmodified, and that its frozen weights are those it was trained with.

    Exit status 0: everything is as it was written. 1: everything that could be checked is; the rest is listed.
    2: something is missing or modified, or the checkpoint cannot be loaded; the message says what.
    """
    from .console import Screen, print_columns

    with Screen() as screen:
        screen.say("importing")
        from ..checkpoint import moved_lm_overrides
        from ..manifest import find_checkpoint
        from ..verify import verify as examine

        where = find_checkpoint(folder)
        found = examine(where, [*moved_lm_overrides(lm), *(overrides or ())], screen.say)
    print_columns(
        ["file or part", "compared", "result"],
        [[one.what, one.compared, f"NOT CHECKED: {one.unchecked}" if one.unchecked else "ok"] for one in found],
    )
    unchecked = [one for one in found if one.unchecked]
    if unchecked:
        typer.echo(f"{where}: {len(unchecked)} of {len(found)} could not be checked")
        raise typer.Exit(1)
    typer.echo(f"{where} is complete and unmodified")
