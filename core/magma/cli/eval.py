"""`magma eval`: ask a checkpoint a task's questions, score files of predictions, put runs into a paper's table."""

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
        """What is no command's name begins the arguments of the first one."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [ASK, *args]
        return super().parse_args(ctx, args)


class _Ask(TyperCommand):
    """`--shots 0 1 2 4` is `--shots 0 --shots 1 ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Numbers behind `--shots` belong to it."""
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


evals = typer.Typer(cls=_Evals, help="Ask a checkpoint a task's questions; tables of what came out.")
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A field of the task, such as fixed_shots=true.")
]


@evals.command(ASK, cls=_Ask)
def ask(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, or the folder of a run.")],
    task: Annotated[str, typer.Option(help="Its name; `magma plugin list` has them all.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the task's data, as `magma data convert` makes it.")
    ] = None,
    shots: Annotated[
        list[int] | None, typer.Option(min=0, metavar="N...", help="Completed examples before each question; several.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask so many questions alone.")] = None,
    overrides: Overrides = None,
    baselines: Annotated[bool, typer.Option(help="Ask with media shuffled, and without them, too.")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 64,
    seed: Annotated[int, typer.Option(help="Draws the completed examples, and shuffles media.")] = 0,
    device: Annotated[str | None, typer.Option(help="cuda where there is one, else cpu.")] = None,
    out: Annotated[Path | None, typer.Option(help="FOLDER/eval/TASK where it is not given.")] = None,
    fewer_shots: Annotated[
        bool,
        typer.Option(help="Ask a question that does not fit with all completed examples with fewer; else an error."),
    ] = True,
    max_unreadable: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="A larger share of questions that cannot be read is an error; default 0.01."),
    ] = None,
    lm: MovedLM = None,
) -> None:
    """Ask a checkpoint a task's questions and score the answers; the same command goes on after an interruption."""
    from .console import Screen, print_columns

    with Screen() as screen:
        screen.say("importing libraries")
        from .. import checkpoint
        from ..evaluation.evaluator import BASELINES
        from ..evaluation.results import EVALUATIONS, Evaluation, evaluation_id, load_measures
        from ..manifest import find
        from ..recipe.schema import MAX_UNREADABLE
        from ..system.device import check_device, default_device

        chosen = check_device(device or default_device())
        fields = {"path": str(data)} if data else {}
        asked = _task(task, seed, {**fields, **({"limit": limit} if limit else {})}, overrides or [])
        where = find(folder)
        model = checkpoint.load(where, lm=lm, device=chosen, say=screen.say)
        place = out or folder / EVALUATIONS / asked.name
        share = MAX_UNREADABLE if max_unreadable is None else max_unreadable
        named = {**evaluation_id(asked, seed, where), **({} if fewer_shots else {"fewer_shots": False})}
        evaluation = Evaluation(
            *(model, asked, place, named, seed, batch_size),
            max_unreadable=share,
            fewer_shots=fewer_shots,
            say=screen.note,
        )
        found = evaluation.run(shots or [0], BASELINES if baselines else BASELINES[:1], screen.answered)
    measures = load_measures(place)
    print_columns(
        [asked.name, "model", "shuffled", "blind", "measured as" if any(measures.values()) else ""],
        [
            [
                f"{name} @ {count}",
                *(f"{by[way][name]:.3f}" if way in by else "" for way in ("model", "shuffled", "blind")),
                measures.get(count, {}).get(name, ""),
            ]
            for count, by in sorted(found.items(), key=lambda one: int(one[0]))
            for name in by["model"]
        ],
    )
    typer.echo(f"answers and scores: {place}")


@evals.command("score")
def score(
    task: Annotated[str, typer.Argument(help="The task whose metric is used.")],
    file: Annotated[Path, typer.Argument(help="JSONL, a line a prediction: `prediction`, and `answers` or `answer`.")],
    out: Annotated[Path | None, typer.Option("--json", help="Write scores, and each line's, to this file.")] = None,
    overrides: Overrides = None,
) -> None:
    """Score anyone's predictions by a task's metric."""
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
    folders: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Folders that `magma eval` has asked.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Tables of several runs, a paper's figures in brackets beside ours where a run's recipe has them."""
    from ..evaluation.report import report as made
    from .console import print_columns

    tables = made(folders)
    if not tables:
        raise InputError(f"{', '.join(map(str, folders))}: no scores and no published figures; run `magma eval` first")
    if as_json:
        typer.echo(json.dumps(tables, indent=1))
        return
    for name, (head, *rows) in tables.items():
        typer.echo(name)
        print_columns(head, rows)
        typer.echo()


def _task(name: str, seed: int, fields: dict[str, Any], overrides: list[str], needs_data: bool = True) -> Task:
    """The task of this name. Raises `RecipeError` for every mistake in its fields, and for what is missing here."""
    from ..recipe.parts import build_part

    made: Task = build_part("task", name, fields, overrides, needs_data, seed)
    return made
