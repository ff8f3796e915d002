"""The `magma` program: parse, call, print."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, MagmaError, PluginError, TrainingError
from ..plugins import hookspecs
from ..plugins.program import Program
from ..system.home_paths import accept_home, expand_home
from ..system.signals import end_with_launcher, exit_status
from .eval import evals
from .options import MovedLM
from .verify import verify

if TYPE_CHECKING:
    from ..model import Magma

cli = Program(name="magma", no_args_is_help=True, add_completion=False)
recipes = typer.Typer(help="Run, list and show recipes.", no_args_is_help=True)
plugins = typer.Typer(help="What is installed.", no_args_is_help=True)
cli.add_typer(recipes, name="recipe")
cli.add_typer(plugins, name="plugin")
cli.add_typer(evals, name="eval")
cli.command()(verify)
export = cli.group("export", "Write models in other formats.")
runs = cli.group("run", "What the folders of runs tell.")

RUNS = Path("runs")
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one value, such as train.lr=1e-4.")
]


@cli.callback()
def program(
    local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None,  # DeepSpeed's launcher says it
) -> None:
    """Any modality into a frozen language model."""


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
        from ..runs.run import alone, check, check_folder, run
        from ..system.launch import HOSTFILE, launch

        if several:
            check(loaded)
            if hostfile is None:  # other hosts may have other disks
                check_folder(out, resume)
                with alone(out):
                    pass
        else:
            report = run(loaded, out, resume=resume, watcher=screen.watcher())
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
    from ..runs.sweep import TABLE, cells, run_matrix, table, write_table
    from .console import print_columns

    changes = overrides or []
    plan = cells(sources, out, seeds or [0], changes)
    several = ["--nproc", str(nproc)] if nproc > 1 else []
    failed = run_matrix(plan, changes, lambda text: typer.echo(f"== {text}", err=True), several)
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
        from ..training.microbatch import fitted

        trains = [stage.train for stage in loaded.in_stages()]
        plans = [
            fitted(one, train, int(memory * 1e9)) if train else one for one, train in zip(plans, trains, strict=True)
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


@runs.command("show")
def run_show(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, finished or running.")],
    png: Annotated[Path | None, typer.Option(help="Where to draw; FOLDER/curves.png where it is not given.")] = None,
) -> None:
    """Draw a run's curves, and print how far it is, its losses, speed and scores."""
    from ..runs.folder import draw, figures
    from .console import print_columns

    print_columns(["", folder.name], [[name, figure] for name, figure in figures(folder).items()])
    typer.echo(f"curves: {draw([folder], png or folder / 'curves.png', rates=True)}")


@runs.command("compare")
def run_compare(
    one: Annotated[Path, typer.Argument(help="The folder of a run.")],
    other: Annotated[Path, typer.Argument(help="The folder of another.")],
    png: Annotated[Path | None, typer.Option(help="Where to draw both curves; nowhere where it is not given.")] = None,
) -> None:
    """Two runs side by side: where their recipes differ, and their figures."""
    from ..runs.folder import differences, draw, figures
    from .console import print_columns

    left, right = figures(one), figures(other)
    rows = [[key, *values] for key, values in differences(one, other).items()]
    print_columns(["recipe", one.name, other.name], rows)
    typer.echo()
    names = {**left, **right}
    print_columns(["", one.name, other.name], [[n, left.get(n, ""), right.get(n, "")] for n in names])
    if png:
        typer.echo(f"curves: {draw([one, other], png)}")


@plugins.command("list")
def plugin_list(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Every installed part with who brought it, and plugins that are broken."""
    from ..plugins.registry import installed

    registry = installed()
    broken = [plugin for plugin in registry.plugins if plugin.problem]
    if as_json:
        told: dict[str, Any] = {
            "parts": [
                {
                    "kind": e.kind,
                    "name": e.name,
                    "distribution": e.plugin.distribution,
                    "version": e.plugin.version,
                    "status": registry.status(e),
                }
                for e in registry.entries()
            ],
            "broken": [
                {"plugin": p.name, "distribution": p.distribution, "version": p.version, "problem": p.problem}
                for p in broken
            ],
        }
        typer.echo(json.dumps(told, indent=1))
        return
    rows = [("kind", "name", "distribution", "version", "status")]
    rows += [(e.kind, e.name, e.plugin.distribution, e.plugin.version, registry.status(e)) for e in registry.entries()]
    rows += [("-", p.name, p.distribution, p.version, f"broken: {p.problem}") for p in broken]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        typer.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]))


@plugins.command("new")
def plugin_new(
    name: Annotated[str, typer.Argument(help="What recipes will call the part.")],
    kind: Annotated[str, typer.Option(help="encoder, prefix, adapter, lm, head, data or task.")],
    out: Annotated[Path, typer.Option(help="Where the folder magma-NAME is made.")] = Path(),
) -> None:
    """Write a package with one working part and its tests, to begin with."""
    from ..plugins.scaffold import new_plugin

    folder = new_plugin(name, kind, out)
    for file in sorted(folder.iterdir()):
        typer.echo(file)
    typer.echo(f"next: pip install -e '{folder}[test]', then: magma plugin check {name}")


@plugins.command("check")
def plugin_check(
    name: Annotated[str, typer.Argument(help="A part, or a plugin or distribution, whose parts are all checked.")],
    kind: Annotated[str | None, typer.Option(help="Of several parts of one name, the ones of this kind.")] = None,
) -> None:
    """Run the conformance kit over installed parts. Exit status 1 where one breaks a promise."""
    from ..plugins.registry import installed

    found = [entry for entry in installed().called(name) if kind in (None, entry.kind)]
    if not found:
        raise PluginError(f'plugin check: "{name}" is no {kind}')
    from ..plugins.conformance.run import examine

    faults = 0
    for entry in found:
        findings = examine(entry.part)
        broken = [one for one in findings if one.problem]
        faults += len(broken)
        typer.echo(f"{entry.kind} {entry.name} ({entry.plugin}): {len(findings) - len(broken)} of {len(findings)} hold")
        for one in findings:
            typer.echo(f"  {'FAULT' if one.problem else 'ok   '} {one.check}: {one.problem or one.promise}")
    if faults:
        raise typer.Exit(1)


@cli.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
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


@export.command("lm")
def export_lm(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")],
    lm: MovedLM = None,
) -> None:
    """The untouched language model of a checkpoint, in its own library's format."""
    refuse_existing(out)
    from .console import Screen

    with Screen() as screen:
        screen.say("importing libraries")
        from ..checkpoint import load, written_aside

        model = load(folder, lm=lm, say=screen.say)
        model.lm.remove_adapters()
        screen.say(f"writing {out}")
        with written_aside(out) as aside:
            model.lm.export(aside)
    typer.echo(f"the language model is in {out}")


def refuse_existing(out: Path) -> None:
    """Nothing is overwritten."""
    if out.exists():
        raise InputError(f"{out} exists already: choose another --out")


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
    allowed = ["text", *model.ways()]
    for name in names:
        if name not in allowed:
            raise InputError(f"--{name}: allowed with this checkpoint: {', '.join('--' + a for a in allowed)}")


def _add_plugin_commands() -> None:
    """Commands of other packages; a broken one is named and left out."""
    from importlib.metadata import entry_points

    import pluggy

    for point in entry_points(group=hookspecs.COMMANDS_GROUP):
        manager = pluggy.PluginManager("magma")
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(point.load())
            manager.hook.magma_commands(cli=cli)
        except Exception as error:  # whatever a stranger's module does, the program starts
            owner = point.dist.name if point.dist else "unknown"
            typer.echo(f"magma: commands of {owner} left out: {type(error).__name__}: {error}", err=True)
    accept_home(cli)


def main() -> None:
    """Entry point. A user's mistake is a message and exit status 2, never a traceback."""
    # Before torch is loaded: threads that wait by spinning make a CPU run 20 times slower beside any other process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    end_with_launcher()
    _add_plugin_commands()
    try:
        cli()
    except MagmaError as error:
        typer.echo(f"magma: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        problem = _of_the_disk(error, [*sys.argv[1:], str(RUNS)])
        if problem is None:
            raise
        typer.echo(f"magma: {problem}", err=True)
        sys.exit(2)


_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Whatever path it is, the disk or its owner says no."""


def _of_the_disk(error: OSError, words: list[str]) -> str | None:
    """What keeps a path of the user's from being read or written; None for what may be a mistake of ours.

    `words` are those of the command line, and what stands for one that was not given: the user's paths.
    """
    reason = error.strerror or str(error)
    if not isinstance(error.filename, str | bytes):
        return reason if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    path = os.fsdecode(error.filename)
    named = (_said_of(path, word.rpartition("=")[2], error.errno) for word in words)
    said = next(filter(None, named), path if error.errno in _REFUSED else None)
    return said and f"{said} cannot be read or written: {reason}"


def _said_of(path: str, word: str, number: int | None) -> str | None:
    """How a path is called that a word names, or that is above it, inside it, or beside it to take its place."""
    found, wanted = (Path(os.path.realpath(expand_home(Path(one)))) for one in (path, word))
    if not word:
        return None
    if found.parent == wanted.parent and (found == wanted or found.name.startswith(f".{wanted.name}.")):
        return word
    # Inside it the program itself has to know which files there are.
    inside = wanted in found.parents and number != errno.ENOENT
    return path if inside or found in wanted.parents else None
