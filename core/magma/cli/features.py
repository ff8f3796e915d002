"""`magma features`: features and prefix embeddings of media in files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .options import Overrides

if TYPE_CHECKING:
    from ..interfaces import DataSource
    from ..model import Magma
    from ..runs.features import NamedMedium

USES = ("train", "evaluation")


def features(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_RECIPE", help="A run, a checkpoint, or a recipe.")],
    data: Annotated[
        str,
        typer.Argument(
            help='A folder of media files, one file, "train" or "evaluation" (the data of the recipe), or with --use, '
            "rows of data."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write. One that was begun is completed.")],
    input_name: Annotated[
        str | None, typer.Option("--input", help="The input of the model. Default: the only one.")
    ] = None,
    use: Annotated[str | None, typer.Option(help="Data source that reads DATA, such as captions.")] = None,
    data_keys: Annotated[
        list[str] | None, typer.Option("--data-set", metavar="KEY=VALUE", help="With --use: a key of the data source.")
    ] = None,
    overrides: Overrides = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Media that are computed at once.")] = 32,
    shard_size: Annotated[int, typer.Option(min=1, help="Media of one file.")] = 1000,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out media that cannot be read.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Device. Default: cuda if available, otherwise cpu.")] = None,
) -> None:
    """Write the features of an encoder and the embeddings of its prefix as safetensors, with an index.

    A command that was interrupted resumes: shards that are complete are kept.
    """
    if data_keys and not use:
        raise InputError("--data-set: given without --use; allowed: keys of the data source that --use names")
    from .console import Screen

    with Screen() as screen:
        screen.say("importing libraries")
        from ..runs.features import write_features
        from ..system.device import default_device

        model = _load(source, overrides or [], device or default_device(), screen.say)
        name = _input(model, input_name)
        media = _media(model, source, data, name, use, data_keys or [], overrides or [])
        done = write_features(
            model,
            media,
            out,
            name=name,
            shard_size=shard_size,
            batch_size=batch_size,
            skip_unreadable=skip_unreadable,
            say=screen.say,
        )
    for problem in done.skipped:
        typer.echo(f"left out: {problem}", err=True)
    kept = f", {done.kept} of them were there already" if done.kept else ""
    typer.echo(f"features and embeddings of {done.media} media are in {out}: {done.shards} shards{kept}")


def _load(source: str, overrides: list[str], device: str, say: Callable[[str], None]) -> Magma:
    """The model of a run or a checkpoint, or a new one of a recipe, in eval mode."""
    from ..checkpoint import load
    from ..recipe.assemble import assemble

    if Path(source).is_dir():
        return load(source, overrides=_of_the_model(overrides), device=device, say=say)
    return assemble(source, overrides, device=device, say=say).eval()


def _of_the_model(overrides: list[str]) -> list[str]:
    """Those that change the model; `load` does not read the data of a checkpoint's recipe."""
    return [one for one in overrides if not one.startswith("data.")]


def _input(model: Magma, given: str | None) -> str:
    names = list(model.input_modules())
    if given is None and len(names) == 1:
        return names[0]
    if given not in names:
        what = "not given" if given is None else f"given {given!r}"
        raise InputError(f"--input: {what}; allowed: {', '.join(names) or 'the model has no inputs'}")
    return given


def _media(
    model: Magma, source: str, data: str, name: str, use: str | None, data_keys: list[str], overrides: list[str]
) -> Iterable[NamedMedium]:
    from ..runs.features import media_in_folder, media_of_sources

    if use is not None:
        return media_of_sources([_data_source(use, data, data_keys)], name)
    if data in USES and not Path(data).exists():
        return media_of_sources(_recipe_sources(source, data, overrides), name)
    if not Path(data).exists():
        raise InputError(f'DATA: given {data!r}; allowed: a folder or file that exists, "train" or "evaluation"')
    return media_in_folder(model, Path(data), name)


def _data_source(use: str, path: str, keys: list[str]) -> DataSource:
    from ..recipe.parts import build_part

    found: DataSource = build_part("data", use, {"path": path}, keys, True, 0)
    return found


def _recipe_sources(source: str, use: str, overrides: list[str]) -> list[DataSource]:
    """The data sources of the recipe."""
    from ..manifest import RECIPE, find_checkpoint
    from ..recipe.recipe import Recipe
    from ..training.data import build_sources

    recipe = Recipe.load(find_checkpoint(source) / RECIPE if Path(source).is_dir() else source, overrides)
    sources, _ = build_sources(recipe, use)
    if not sources:
        raise InputError(f"DATA: given {use!r}, but the recipe has no [[data.{use}]]; allowed: a folder of media files")
    return sources
