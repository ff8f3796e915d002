"""Encoders of transformers by name, and whole multimodal models of transformers.

Encoders: `towers.py` finds the tower in a configuration, `samples.py` the form of its input, `discovery.py` tries it
and reads off the sizes of its features, `calling.py` runs it. `preparation.py` and `processors.py` turn raw inputs into
arguments, and `loading.py` reads weights.

Whole models: `import_whole.py` takes one apart, and `whole_probe.py` compares the parts with the whole.
`whole_encoder.py` and `whole_projector.py` are the parts that call the library's own modules.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magma import hookimpl

if TYPE_CHECKING:
    from magma import Part, Program


@hookimpl
def magma_parts() -> Iterable[type[Part]]:
    """The parts of this package."""
    from .encoder import HF, HFAudio, HFVideo, HFVision
    from .whole_encoder import WholeAudio, WholeImages
    from .whole_projector import WholeProjector

    return [HF, HFVision, HFAudio, HFVideo, WholeImages, WholeAudio, WholeProjector]


@hookimpl
def magma_commands(cli: Program) -> None:
    """Adds the command. transformers is imported only when it runs."""
    cli.group("import", "Read models of other formats.").command("hf")(import_hf)


def import_hf(
    source: Annotated[
        str, typer.Argument(help="A folder in transformers' format or of LLaVA's own code, or a hub name.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")],
    image_size: Annotated[
        int | None,
        typer.Option(min=8, help="Pixels per side of a square image with the most features. Default: 1024."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.01, help="Length of the longest recording in seconds. Default: 30.")
    ] = None,
    tower: Annotated[
        str | None, typer.Option(help="Vision tower of a checkpoint of LLaVA's own code. Default: the one it names.")
    ] = None,
) -> None:
    """Take a multimodal model of transformers apart: its tower, projector and language model become MAGMA parts.

    The logits of the parts are compared with those of the whole model. If they differ, nothing is written.
    """
    from .import_whole import to_folder

    limits = {"image": image_size, "audio": seconds}
    typer.echo("\n".join(to_folder(source, out, limits, typer.echo, tower)))
    typer.echo(f"the model is in {out}")
