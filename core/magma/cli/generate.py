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
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to write.")] = 32,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="0: all tokens.")] = 0,
    top_p: Annotated[float, typer.Option(min=0, max=1)] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="End where this appears.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    device: str = "cpu",
    lm: MovedLM = None,
) -> None:
    """Continue a prompt of --text and of the checkpoint's inputs, in the order given.

    Each input of the checkpoint is an option of its own that takes a file:
    magma generate FOLDER --text "Q: " --INPUT FILE --text " A:"
    """
    prompt = _pairs(context.args)
    if not prompt:
        raise InputError('the prompt is empty: give --text "..." or an input of the checkpoint, --INPUT FILE')
    from .console import Screen

    with Screen() as screen:
        screen.say("importing libraries")
        from ..checkpoint import load
        from ..values import Media, Text

        model = load(folder, lm=lm, device=device, say=screen.say)
    _check_names(model, [name for name, _ in prompt])
    segments = [Text(value) if name == "text" else Media(name, expand_home(Path(value))) for name, value in prompt]
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    for piece in model.stream(segments, **options, stop=tuple(stop or ()), seed=seed):
        typer.echo(piece, nl=False)
    typer.echo()


def _pairs(arguments: list[str]) -> list[tuple[str, str]]:
    """`--scan a.txt --text "b" --scan=c.txt` in its order."""
    pairs = []
    left = iter(arguments)
    for word in left:
        if not word.startswith("--"):
            raise InputError(f"given {word!r}; allowed: --text TEXT, or --INPUT FILE for an input of the checkpoint")
        name, equals, value = word[2:].partition("=")
        if not equals:
            found = next(left, None)
            if found is None:
                raise InputError(f"--{name} is the last word; allowed: --{name} VALUE")
            value = found
        pairs.append((name, value))
    return pairs


def _check_names(model: Magma, names: list[str]) -> None:
    allowed = ["text", *model.input_modules()]
    for name in names:
        if name not in allowed:
            raise InputError(f"--{name}: allowed with this checkpoint: {', '.join('--' + a for a in allowed)}")
