"""`magma recipe`: run, plan, list and show recipes; explain their keys."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import TrainingError
from ..system.signals import exit_status
from .options import RUNS, Overrides

recipes = typer.Typer(help="Run, plan, list and show recipes; explain their keys.", no_args_is_help=True)


@recipes.command("run")
def recipe_run(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a bundled recipe.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/NAME.")] = None,
    overrides: Overrides = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine, one a GPU.")] = 1,
    hostfile: Annotated[Path | None, typer.Option(help="DeepSpeed hostfile: one `HOST slots=N` a line.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the newest checkpoint in the folder.")] = False,
) -> None:
    """Train a recipe, evaluate the result, and write everything to one folder."""
    several = (nproc > 1 or hostfile is not None) and "RANK" not in os.environ
    from .console import Screen

    with Screen() as screen:
        screen.say("reading the recipe")
        from ..recipe.recipe import Recipe

        loaded = Recipe.load(recipe, overrides or ())
        out = out or RUNS / loaded.name
        words = ["recipe", "run", recipe, "--out", str(out)]
        words += [word for override in overrides or () for word in ("--set", override)]
        screen.say("importing libraries")
        from ..io import folder_lock
        from ..runs.run import check_requirements, check_run_folder, run
        from ..system.launch import HOSTFILE, launch

        if several:
            check_requirements(loaded)
            if hostfile is None:  # other hosts may have other disks
                check_run_folder(out, resume)
                with folder_lock(out, error=TrainingError):
                    pass
        else:
            report = run(loaded, out, resume=resume, callbacks=screen.callbacks())
            if report:
                processes = report["processes"]
                how = ["--nproc", str(processes)] if processes > 1 else []
                if HOSTFILE in os.environ:
                    how = ["--hostfile", os.environ[HOSTFILE]]
                again = [*words, *how, "--resume"]
                screen.report(report, out, ["magma", *again])
    if screen.stopped_by:
        raise typer.Exit(exit_status(screen.stopped_by))
    if several:
        raise typer.Exit(launch([*words, *(["--resume"] if resume else [])], nproc, hostfile))


@recipes.command("matrix")
def recipe_matrix(
    sources: Annotated[list[str], typer.Argument(metavar="RECIPES...", help="TOML files, or names of bundled ones.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = RUNS / "matrix",
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Seed of a run; repeat the option for several. Default: 0.")
    ] = None,
    overrides: Overrides = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes of each run on this machine, one a GPU.")] = 1,
) -> None:
    """Run several recipes one after another and print one table. Finished runs are not repeated."""
    from ..runs.sweep import TABLE, run_sweep, sweep_cells, table, write_table
    from .console import print_columns

    changes = overrides or []
    plan = sweep_cells(sources, out, seeds or [0], changes)
    several = ["--nproc", str(nproc)] if nproc > 1 else []
    failed = run_sweep(plan, changes, lambda text: typer.echo(f"== {text}", err=True), several)
    found = table(plan)
    tasks = dict.fromkeys(name.partition(": ")[0] for scores in found.values() for name in scores)
    for task in tasks:
        names = dict.fromkeys(n for scores in found.values() for n in scores if n.partition(": ")[0] == task)
        rows = [[recipe, *(str(scores.get(name, "-")) for name in names)] for recipe, scores in found.items()]
        print_columns([task, *(name.partition(": ")[2] for name in names)], rows)
        typer.echo()
    if any(score.interval for scores in found.values() for score in scores.values()):
        typer.echo("in brackets: 95 percent bootstrap intervals over the questions")
    write_table(plan, out / TABLE)
    typer.echo(f"all scores: {out / TABLE}")
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(plan)} runs did not finish, the first is {failed[0].folder}: "
            "the same command resumes"
        )


@recipes.command("plan")
def recipe_plan(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a bundled recipe.")],
    overrides: Overrides = None,
    nproc: Annotated[int, typer.Option(min=1, help="GPUs that share a global batch.")] = 1,
    world: Annotated[int | None, typer.Option(min=1, hidden=True)] = None,
    micro_batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Examples that one GPU computes at once; repeat the option for several."),
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0, help="Gigabytes of one GPU; they decide an automatic micro-batch size.")
    ] = None,
    text_tokens: Annotated[int, typer.Option(min=1, help="Assumed length of an example's text.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a recipe will cost: parameters, FLOPs, memory, steps. It needs neither data nor weights."""
    from ..plan import plan_stages
    from ..recipe.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())
    if world is not None:
        typer.echo("warning: the option --world is now called --nproc", err=True)
    plans = plan_stages(loaded, world or nproc, micro_batch or (), text_tokens)
    if memory is not None:
        from ..training.microbatch import fit_micro_batch

        trains = [stage.train for stage in loaded.in_stages()]
        plans = [
            fit_micro_batch(one, train, int(memory * 1e9)) if train else one
            for one, train in zip(plans, trains, strict=True)
        ]
    if as_json:
        plain = [one.to_dict() for one in plans]
        typer.echo(json.dumps({"stages": plain} if loaded.stages else plain[0], indent=1))
        return
    from .console import print_memory, print_plan

    for one in plans:
        print_plan(one)
        print_memory(one)


@recipes.command("list")
def recipe_list() -> None:
    """List the bundled recipes."""
    import tomllib

    from ..recipe.loader import bundled

    found = bundled()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        description = tomllib.loads(path.read_text(encoding="utf-8")).get("description", "")
        typer.echo(f"{name:{width}}  {description}")


@recipes.command("show")
def recipe_show(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a bundled recipe.")],
    overrides: Overrides = None,
) -> None:
    """Print a recipe with everything that it inherits and every default."""
    from ..recipe.recipe import Recipe
    from ..schedule import schedule_warnings
    from .console import print_warnings

    loaded = Recipe.load(recipe, overrides or ())
    typer.echo(loaded.to_toml(), nl=False)
    print_warnings(schedule_warnings(loaded))


@recipes.command("keys")
def recipe_keys(
    part: Annotated[
        str | None,
        typer.Argument(help="Only a table (train), a part (linear) or a kind of parts (encoder). Default: all."),
    ] = None,
) -> None:
    """Print the keys of recipes: type, default and meaning of each."""
    import shutil
    import textwrap

    from ..recipe.keys import find_tables, keys_of

    width = min(shutil.get_terminal_size().columns, 120)
    for title, model in find_tables(part).items():
        typer.echo(f"{title.replace('`', '')}\n")
        for key in keys_of(model):
            default = key.default if key.default == "required" else f"default: {key.default}"
            typer.echo(f"  {key.name}: {key.type.replace('`', '')} ({default})")
            if key.description:
                typer.echo(textwrap.fill(key.description, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
        typer.echo("" if model.model_fields else "  no keys\n")


@recipes.command("schema")
def recipe_schema(
    file: Annotated[Path | None, typer.Argument(help="The file to write. Default: print the schema.")] = None,
) -> None:
    """Write a JSON schema of recipes for editors (taplo, Even Better TOML).

    Put `#:schema ./recipe.schema.json` on the first line of a recipe to use it.
    """
    from ..io import atomic_write
    from ..recipe.json_schema import json_schema

    text = json.dumps(json_schema(), indent=1) + "\n"
    if file is None:
        typer.echo(text, nl=False)
    else:
        atomic_write(file, text)
        typer.echo(f"schema: {file}", err=True)
