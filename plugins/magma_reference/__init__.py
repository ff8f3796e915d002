"""Import and export of the authors' checkpoint format: `magma import reference`, `magma export reference`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magma import hookimpl

if TYPE_CHECKING:
    from magma import Program


@hookimpl
def magma_commands(cli: Program) -> None:
    """Adds the two commands. torch is imported only when one of them runs."""
    cli.group("import", "Read models of other formats.").command("reference")(import_reference)
    cli.group("export").command("reference")(export_reference)


def import_reference(
    file: Annotated[Path, typer.Argument(help="mp_rank_00_model_states.pt, or a state dict in .safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Hub name or folder. Default: gpt2, if it is available.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=32, help="Pixels per side, for an encoder with other sizes than OpenAI's CLIP ResNets."),
    ] = None,
) -> None:
    """Convert a checkpoint of the authors' code to a MAGMA folder. All sizes are read from the file."""
    from .convert import to_folder

    typer.echo("\n".join(to_folder(file, out, tokenizer, image_size)))
    typer.echo(f"the model is in {out}")


def export_reference(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    out: Annotated[Path, typer.Option(help="File to write, .pt or .safetensors; it must not exist yet.")],
) -> None:
    """Write a checkpoint in the format of the authors' code."""
    from .convert import to_file

    typer.echo("\n".join(to_file(folder, out)))
    typer.echo(f"the checkpoint is {out}")
