"""`magma generate`: continue a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..system.home_paths import expand_home
from .options import MovedLM

if TYPE_CHECKING:
    from ..model import Magma


def generate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens to generate.")] = 32,
    temperature: Annotated[float, typer.Option(min=0, help="Softmax temperature; 0: greedy decoding.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample only from the K likeliest tokens; 0: from all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Nucleus sampling; 1.0: off.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this string.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    device: Annotated[str | None, typer.Option(help="Device. Default: cuda if available, otherwise cpu.")] = None,
    lm: MovedLM = None,
) -> None:
    """Continue a prompt of --text and of the checkpoint's inputs, in the order given.

    Each input of the checkpoint is an option that takes a file:
    magma generate FOLDER --text "Q: " --INPUT FILE --text " A:"
    """
    prompt = _pairs(context.args)
    if not prompt:
        raise InputError('the prompt is empty: give --text "..." or an input of the checkpoint, --INPUT FILE')
    from .console import Screen

    with Screen() as screen:
        screen.say("importing libraries")
        from ..checkpoint import load
        from ..system.device import default_device
        from ..values import Media, Text

        model = load(folder, lm=lm, device=device or default_device(), say=screen.say)
    _check_names(model, [name for name, _ in prompt])
    segments = [Text(value) if name == "text" else Media(name, expand_home(Path(value))) for name, value in prompt]
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    for piece in model.stream(segments, **options, stop=tuple(stop or ()), seed=seed):
        typer.echo(piece, nl=False)
    typer.echo()


def _pairs(arguments: list[str]) -> list[tuple[str, str]]:
    """The pairs of `--scan a.txt --text "b" --scan=c.txt`, in order."""
    pairs = []
    left = iter(arguments)
    for word in left:
        if not word.startswith("--"):
            raise InputError(f"given {word!r}; allowed: --text TEXT, or --INPUT FILE for an input of the checkpoint")
        name, equals, value = word[2:].partition("=")
        if not equals:
            found = next(left, None)
            if found is None:
                raise InputError(f"--{name} needs a value: --{name} VALUE")
            value = found
        pairs.append((name, value))
    return pairs


def _check_names(model: Magma, names: list[str]) -> None:
    allowed = ["text", *model.input_modules()]
    for name in names:
        if name not in allowed:
            raise InputError(f"--{name}: allowed with this checkpoint: {', '.join('--' + a for a in allowed)}")
