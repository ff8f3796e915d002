"""The commands for files of peft. torch is imported only when one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Precision = Literal["fp32", "bf16", "fp16"]


def export_peft(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")],
    adapters_only: Annotated[
        bool, typer.Option("--adapters-only", help="Leave out inputs and the head, which peft cannot hold.")
    ] = False,
    lm: Annotated[
        str | None,
        typer.Option("--lm", metavar="PLACE", help="New place of a language model that has moved."),
    ] = None,
) -> None:
    """Write LoRA or (IA)^3 adapters for peft: `PeftModel.from_pretrained(model, OUT)` loads them."""
    from .peft_export import to_folder

    typer.echo("\n".join(to_folder(folder, out, adapters_only, lm)))
    typer.echo(f"the adapters are in {out}")


def import_peft(
    folder: Annotated[Path, typer.Argument(help="Folder with adapter_config.json and adapter_model.safetensors.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")],
    lm: Annotated[
        str | None,
        typer.Option("--lm", help="Hub name or folder of the language model. Default: as adapter_config.json says."),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Precision of the checkpoint.")] = "fp32",
) -> None:
    """Make a checkpoint of a language model with LoRA or (IA)^3 adapters of peft, for use or for `[init]`."""
    from .peft_import import to_checkpoint

    typer.echo("\n".join(to_checkpoint(folder, out, lm, precision)))
    typer.echo(f"the checkpoint is in {out}")
