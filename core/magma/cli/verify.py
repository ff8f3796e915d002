"""`magma verify`: is a checkpoint complete and unmodified?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from ..io import error_summary
from .options import MovedLM

PROMPTS = 1000
"""Prompts of `--text-neutral`, if the user gives no number."""


def verify(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="New place of moved frozen weights, such as lm.weights=PLACE."
        ),
    ] = None,
    lm: MovedLM = None,
    text_neutral: Annotated[
        bool,
        typer.Option(
            "--text-neutral", help="Compare the logits of text with those of the bare language model, bit by bit."
        ),
    ] = False,
    prompts: Annotated[
        int | None, typer.Option(min=1, help="With --text-neutral: number of prompts. Default: 1000.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="With --text-neutral: a file whose text is cut into prompts. Default: random tokens."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="With --text-neutral: bf16, fp16 or fp32. Default: that of training.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="With --text-neutral: the device. Default: cuda if available, otherwise cpu.")
    ] = None,
) -> None:
    """Check that a checkpoint is complete and unmodified, and that its frozen weights are those it was trained with.

    Exit status 0: everything is as it was written. 1: everything that could be checked is; the rest is listed.
    2: something is missing or modified, or the checkpoint cannot be loaded; the message says what.

    With --text-neutral, 1 means that a logit differs in a bit. The message says where the first one is.
    """
    if text_neutral:
        _text_neutral(folder, [*(overrides or ())], lm, prompts or PROMPTS, text, dtype, device)
        return
    options = {"--prompts": prompts, "--text": text, "--dtype": dtype, "--device": device}
    if given := [f"{name} {value}" for name, value in options.items() if value is not None]:
        raise InputError(f"given {', '.join(given)}; allowed only with --text-neutral")
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


def _text_neutral(
    folder: Path,
    overrides: list[str],
    lm: str | None,
    count: int,
    text: Path | None,
    dtype: str | None,
    device: str | None,
) -> None:
    from .console import Screen, print_columns

    with Screen() as screen:
        screen.say("importing")
        from ..checkpoint import load
        from ..recipe.assemble import DTYPES
        from ..system.device import default_device
        from ..text_neutral import compare_with_bare_lm, cut_text, perplexities, random_prompts

        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"--dtype: given {dtype!r}; allowed: {', '.join(DTYPES)}")
        precision = None if dtype is None else DTYPES[dtype]
        words = None if text is None else _read(text)
        model = load(
            folder, lm=lm, overrides=overrides, device=device or default_device(), dtype=precision, say=screen.say
        )
        prompts = random_prompts(model, count) if words is None else cut_text(model, words, count)
        always = [name for name, table in model.adapter_tables.items() if not table.only_with]
        results = compare_with_bare_lm(model, prompts, screen.say)
    print_columns(
        ["batches", "prompts", "positions", "positions that differ"],
        [[one.kind, f"{one.prompts:,}", f"{one.positions:,}", f"{one.differing:,}"] for one in results],
    )
    ours, bare = perplexities(results)
    typer.echo(f"perplexity of the prompts: {ours:.6g}; of the bare language model: {bare:.6g}")
    if different := [one for one in results if one.differing]:
        typer.echo(f"{folder}: text is not as in the bare language model: {different[0].kind}: {different[0].first}")
        if always:
            typer.echo(f"adapters without only_with act on text: {', '.join(always)}")
        raise typer.Exit(1)
    typer.echo(f"{folder}: text is bit by bit as in the bare language model")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"--text: {path} cannot be read: {error_summary(error)}") from error
