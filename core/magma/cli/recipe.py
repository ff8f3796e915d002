"""`magma recipe`: run, list, show and plan recipes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from ..errors import TrainingError
from ..system.signals import exit_status
from .options import RUNS, Overrides

recipes = typer.Typer(help="Run, list and show recipes.", no_args_is_help=True)


@recipes.command("run")
def recipe_run(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a bundled recipe.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME where it is not given.")] = None,
    overrides: Overrides = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes on this machine, one a GPU.")] = 1,
    hostfile: Annotated[Path | None, typer.Option(help="Lines HOST slots=N; processes are started with ssh.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in the folder.")] = False,
) -> None:
    """Train a recipe, evaluate it, and leave everything in a folder."""
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
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Repeat it for several; 0 by default.")] = None,
    overrides: Overrides = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes of each run on this machine, one a GPU.")] = 1,
) -> None:
    """Run a family of recipes, one after another, and print one table. What has finished is not run again."""
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
    write_table(plan, out / TABLE)
    typer.echo(f"all of it: {out / TABLE}")
    if failed:
        raise TrainingError(
            f"{len(failed)} of {len(plan)} runs did not finish, the first is {failed[0].folder}: "
            "the same command goes on"
        )


@recipes.command("plan")
def recipe_plan(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a bundled recipe.")],
    overrides: Overrides = None,
    world: Annotated[int, typer.Option(min=1, help="GPUs that share a global batch.")] = 1,
    micro_batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Examples that a GPU takes at once; repeat it for several.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(min=0, help="Gigabytes of a GPU, which decide an automatic micro batch.")
    ] = None,
    text_tokens: Annotated[int, typer.Option(min=1, help="Assumed length of an example's text.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What a recipe will cost: parameters, FLOPs, memory, steps. Needs neither data nor weights."""
    from ..plan import plan_stages
    from ..recipe.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())
    plans = plan_stages(loaded, world, micro_batch or (), text_tokens)
    if memory is not None:
        from ..training.microbatch import fit_micro_batch

        trains = [stage.train for stage in loaded.in_stages()]
        plans = [
            fit_micro_batch(one, train, int(memory * 1e9)) if train else one
            for one, train in zip(plans, trains, strict=True)
        ]
    if as_json:
        told = [one.to_dict() for one in plans]
        typer.echo(json.dumps({"stages": told} if loaded.stages else told[0], indent=1))
        return
    from .console import print_memory, print_plan

    for one in plans:
        print_plan(one)
        print_memory(one)


@recipes.command("list")
def recipe_list() -> None:
    """The bundled recipes."""
    import tomllib

    found = _bundled()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        description = tomllib.loads(path.read_text(encoding="utf-8")).get("description", "")
        typer.echo(f"{name:{width}}  {description}")


def _bundled() -> dict[str, Path]:
    from ..recipe.loader import bundled

    return bundled()


@recipes.command("show")
def recipe_show(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a bundled recipe.")],
    overrides: Overrides = None,
) -> None:
    """A recipe with everything it inherits and every default."""
    from ..recipe.recipe import Recipe
    from ..schedule import schedule_warnings
    from .console import print_warnings

    loaded = Recipe.load(recipe, overrides or ())
    typer.echo(loaded.to_toml(), nl=False)
    print_warnings(schedule_warnings(loaded))
