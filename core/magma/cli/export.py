"""`magma export`: models in other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .options import MovedLM

exports = typer.Typer(help="Write models in other formats.", no_args_is_help=True)


@exports.command("lm")
def export_lm(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Fold the adapters into its weights. All of them have to be foldable.")
    ] = False,
    lm: MovedLM = None,
) -> None:
    """Write the language model of a checkpoint in the format of its own library, by default without adapters."""
    refuse_existing(out)
    from .console import Screen

    with Screen() as screen:
        screen.say("importing libraries")
        from ..checkpoint import load
        from ..io import atomic_folder

        model = load(folder, lm=lm, say=screen.say)
        if merge:
            screen.say("folding the adapters into the weights")
            model.lm.merge_adapters()
        else:
            model.lm.remove_adapters()
        screen.say(f"writing {out}")
        with atomic_folder(out) as aside:
            model.lm.export(aside)
    typer.echo(f"the language model{', with its adapters folded in,' if merge else ''} is in {out}")


def refuse_existing(out: Path) -> None:
    """Raise `InputError` if the folder exists: nothing is overwritten."""
    if out.exists():
        raise InputError(f"{out} exists already: choose another --out")
