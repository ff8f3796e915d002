"""`magma compose`: one model from several, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError


def compose(
    folders: Annotated[list[Path], typer.Argument(help="Checkpoints or folders of runs: A, B, ... in --rename.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")],
    rename: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A.INPUT=NAME",
            help="New name of an input of the first model (A), of the second (B), ..., such as B.scan=second_scan. "
            "Repeat the option for several.",
        ),
    ] = None,
    text_neutral: Annotated[
        bool,
        typer.Option(
            "--text-neutral",
            help="Adapters without only_with get it, with the inputs of their model: prompts without media are then "
            "answered by the bare language model. One model is enough.",
        ),
    ] = False,
) -> None:
    """Combine models that were trained separately on the same frozen language model, without training.

    All their adapters must have only_with, or get it by --text-neutral. The new model handles the inputs of all of
    them. For prompts with inputs of one model it computes what this model computes, bit by bit; prompts may mix inputs.
    """
    renamed: dict[str, str] = {}
    for given in rename or ():
        former, equals, name = given.partition("=")
        if not equals:
            raise InputError(f"--rename {given}: allowed: A.INPUT=NAME, such as B.scan=second_scan")
        if former in renamed:
            raise InputError(f"--rename {former}: given {renamed[former]} and {name}; allowed: one new name")
        renamed[former] = name
    from .console import Screen

    with Screen() as screen:
        screen.say("importing libraries")
        from ..compose import compose as combine

        recipe = combine(folders, out, renamed, screen.say, text_neutral=text_neutral)
    typer.echo(f"{out}: inputs {', '.join(recipe.inputs)}; adapters {', '.join(recipe.adapters)}")
