"""`magma eval`: evaluate a checkpoint on a task, score files of predictions, compare runs with a paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import InputError
from .options import MovedLM

if TYPE_CHECKING:
    from ..interfaces import Task

ASK = "ask"


class _Evals(TyperGroup):
    """`magma eval FOLDER ...` is `magma eval ask FOLDER ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Arguments that do not begin with a command are those of `ask`."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [ASK, *args]
        return super().parse_args(ctx, args)


class _Ask(TyperCommand):
    """`--shots 0 1 2 4` is `--shots 0 --shots 1 ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Numbers after `--shots` belong to it."""
        spread: list[str] = []
        after = False
        for word in args:
            if after and word.isdigit():
                spread += ["--shots", word]
                continue
            after = word == "--shots"
            if not after:
                spread.append(word)
        return super().parse_args(ctx, spread)


evals = typer.Typer(
    cls=_Evals,
    help="Evaluate checkpoints on tasks, score predictions, print tables. "
    f"`magma eval FOLDER --task NAME` is `magma eval {ASK}`, whose --help lists the options.",
)
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the task, such as fixed_shots=true."),
]


@evals.command(ASK, cls=_Ask)
def ask(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    task: Annotated[str, typer.Option(help="Name of the task; `magma plugin list` lists them.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the task's data, as `magma data convert` writes it.")
    ] = None,
    shots: Annotated[
        list[int] | None,
        typer.Option(min=0, metavar="N...", help="Numbers of in-context examples; one evaluation each. Default: 0."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N questions.")] = None,
    overrides: Overrides = None,
    baselines: Annotated[
        bool, typer.Option(help="Also run two controls: shuffled media and no media (3x the time).")
    ] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per batch.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed for the in-context examples and for shuffling media.")] = 0,
    device: Annotated[str | None, typer.Option(help="Device. Default: cuda if available, otherwise cpu.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the answers and scores. Default: FOLDER/eval/TASK.")
    ] = None,
    fewer_shots: Annotated[
        bool,
        typer.Option(
            help="Use fewer in-context examples if a question does not fit with all; otherwise it is an error."
        ),
    ] = True,
    max_unreadable: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Stop if more than this fraction of questions is unreadable. Default: 0.01."),
    ] = None,
    lm: MovedLM = None,
) -> None:
    """Evaluate a checkpoint on a task. After an interruption, the same command resumes."""
    from .console import Screen, print_columns

    with Screen() as screen:
        screen.say("importing libraries")
        from .. import checkpoint
        from ..evaluation.evaluator import BASELINES
        from ..evaluation.results import EVALUATIONS, Evaluation, evaluation_id, load_details
        from ..manifest import find_checkpoint
        from ..recipe.schema import MAX_UNREADABLE
        from ..system.device import check_device, default_device

        chosen = check_device(device or default_device())
        fields = {"path": str(data)} if data else {}
        evaluated = _task(task, seed, {**fields, **({"limit": limit} if limit else {})}, overrides or [])
        where = find_checkpoint(folder)
        model = checkpoint.load(where, lm=lm, device=chosen, say=screen.say)
        place = out or folder / EVALUATIONS / evaluated.name
        limit_unreadable = MAX_UNREADABLE if max_unreadable is None else max_unreadable
        identity = {**evaluation_id(evaluated, seed, where), **({} if fewer_shots else {"fewer_shots": False})}
        evaluation = Evaluation(
            *(model, evaluated, place, identity, seed, batch_size),
            max_unreadable=limit_unreadable,
            fewer_shots=fewer_shots,
            say=screen.note,
        )
        found = evaluation.run(shots or [0], BASELINES if baselines else BASELINES[:1], screen.answered)
    measures = load_details(place).measures
    print_columns(
        [evaluated.name, "model", "shuffled", "blind", "measured as" if any(measures.values()) else ""],
        [
            [
                f"{name} @ {count}",
                *(f"{by[run][name]:.3f}" if run in by else "" for run in ("model", "shuffled", "blind")),
                measures.get(count, {}).get(name, ""),
            ]
            for count, by in sorted(found.items(), key=lambda one: int(one[0]))
            for name in by["model"]
        ],
    )
    typer.echo(f"answers and scores: {place}")


@evals.command("tasks")
def tasks(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a bundled recipe, with [[tasks]].")],
    folder: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    out: Annotated[Path, typer.Option(help="Folder of the answers, the scores, the pictures and report.json.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Set one value of the recipe, such as tasks.0.limit=50."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device. Default: cuda if available, otherwise cpu.")] = None,
) -> None:
    """Evaluate a checkpoint on all tasks of a recipe, as `magma recipe run` does after training.

    After an interruption, the same command resumes.
    """
    from .console import Screen

    with Screen() as screen:
        screen.say("importing libraries")
        from ..io import atomic_write
        from ..manifest import find_checkpoint
        from ..recipe.recipe import Recipe
        from ..runs.folder import REPORT
        from ..runs.run import check_requirements
        from ..runs.tasks import evaluate_tasks
        from ..system.device import check_device, default_device

        chosen = check_device(device or default_device())
        asked, where = Recipe.load(recipe, overrides or ()), find_checkpoint(folder)
        check_requirements(asked)
        found = evaluate_tasks(asked, where, out, str(chosen), screen.callbacks(), replace=False)
        report = {"recipe": asked.name, "checkpoint": str(where), "seed": asked.seed, **found}
        atomic_write(out / REPORT, json.dumps(report, indent=1) + "\n")
        screen.scores(report)
    typer.echo(f"answers and scores: {out}")


@evals.command("score")
def score(
    task: Annotated[str, typer.Argument(help="The task whose metric is used.")],
    file: Annotated[
        Path, typer.Argument(help="JSONL, one prediction a line: `prediction`, and `answers` or `answer`.")
    ],
    out: Annotated[
        Path | None, typer.Option("--json", help="Write the scores, and the score of each line, to this file.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Score a file of predictions with the metric of a task."""
    from ..evaluation.results import score_file
    from ..io import atomic_write

    found = score_file(_task(task, 0, {}, overrides or [], needs_data=False), file)
    items, measures = found.get("per_item", []), found.get("measures", {})
    for name, value in found.items():
        if name not in ("per_item", "measures"):
            typer.echo(f"{name}  {value:.4f}" + (f"  ({measures[name]})" if name in measures else ""))
    if items:
        typer.echo(f"{len(items)} predictions")
    if out:
        atomic_write(out, json.dumps(found, indent=1) + "\n")


@evals.command("report")
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Folders that `magma eval` has evaluated.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print tables of several runs, with a paper's scores in brackets if the recipe lists them."""
    from ..evaluation.report import report as made
    from .console import print_columns

    tables = made(folders)
    if not tables:
        raise InputError(f"{', '.join(map(str, folders))}: no scores and no published scores; run `magma eval` first")
    if as_json:
        typer.echo(json.dumps(tables, indent=1))
        return
    for name, (head, *rows) in tables.items():
        typer.echo(name)
        print_columns(head, rows)
        typer.echo()


def _task(name: str, seed: int, fields: dict[str, Any], overrides: list[str], needs_data: bool = True) -> Task:
    """The task of this name. Raises `RecipeError` for mistakes in its keys and for missing data."""
    from ..recipe.parts import build_part

    made: Task = build_part("task", name, fields, overrides, needs_data, seed)
    return made
