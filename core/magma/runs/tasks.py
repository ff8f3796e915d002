"""The tasks of a recipe, asked of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import checkpoint
from ..errors import InputError
from ..evaluation.results import EVALUATIONS, Evaluation, evaluation_id, load_details, primary_score
from ..interfaces import Task
from ..plan import Plan
from ..recipe.recipe import Recipe
from ..recipe.schema import MAX_UNREADABLE
from ..training.progress import Callbacks


@dataclass
class RunCallbacks(Callbacks):
    """Functions that are also called for the plan of a run, and for its evaluation."""

    plan: Callable[[Plan], None] = lambda _: None
    answered: Callable[[str, int], None] = lambda *_: None
    """The evaluation that runs, and the number of questions that have an answer."""
    stopped: Callable[[int], None] = lambda _: None
    """The number of the signal that stopped the run. It is called in every process."""


def evaluate_tasks(
    recipe: Recipe, folder: Path, out: Path, device: str, callbacks: RunCallbacks, *, replace: bool = True
) -> dict[str, Any]:
    """Evaluate a checkpoint on all tasks of a recipe.

    Args:
        recipe: The recipe with the tasks. Its seed chooses in-context examples and shuffles media.
        folder: The checkpoint.
        out: The folder of answers, scores and pictures.
        device: The device of the model.
        callbacks: Functions that are called during the evaluation.
        replace: Replace answers of another evaluation in `out`; otherwise they are an error.

    Returns:
        The main score of the first task, with those of the control runs; `tasks`, `measures` and `intervals` of all.

    Raises:
        InputError: The recipe has no tasks.
    """
    if not recipe.tasks:
        raise InputError(f"{recipe.name} has no tasks; allowed: a recipe with [[tasks]]")
    callbacks.say(f"loading {folder}")
    model = checkpoint.load(folder, device=device, say=callbacks.say)
    train = recipe.in_stages()[-1].train
    main: dict[str, float] = {}
    scores: dict[str, Any] = {}
    measures: dict[str, dict[str, str]] = {}
    intervals: dict[str, Any] = {}
    for i, table in enumerate(recipe.tasks):
        part, config = recipe.part(f"tasks.{i}")
        task: Task = part(config, recipe.seed)
        is_repeated = any(other.use == table.use for other in recipe.tasks[:i])
        place = out / EVALUATIONS / (f"{task.name}.{i}" if is_repeated else task.name)
        evaluation = Evaluation(
            *(model, task, place, evaluation_id(task, 0, folder)),
            artifacts=out,
            max_unreadable=train.max_unreadable if train else MAX_UNREADABLE,
            say=callbacks.note,
        )
        found = evaluation.run(table.shots, progress=callbacks.answered, replace=replace)
        for shots in table.shots:
            name = f"{i}.{score_name(task.name, shots)}"
            scores[name] = found[str(shots)]
            main = main or _main_scores(task, scores[name])
            details = load_details(place)
            if measured := details.measures.get(str(shots)):
                measures[name] = measured
            if known := details.intervals.get(str(shots)):
                intervals[name] = known
    about = {"measures": measures, "intervals": intervals}
    return {**main, "tasks": scores, **{key: value for key, value in about.items() if value}}


def _main_scores(task: Task, scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The main score of a task, and the same score of the control runs."""
    primary = primary_score(task, scores["model"])
    main = {primary: scores["model"][primary]}
    for baseline in ("shuffled", "blind"):
        # The second name is the former one, kept for one version: programs read report.json.
        main |= dict.fromkeys((f"{baseline}_score", f"{baseline}_accuracy"), scores[baseline][primary])
    return main


def score_name(name: str, shots: int) -> str:
    """The name of a task's scores with this number of in-context examples: `digits`, `digits@4`."""
    return f"{name}@{shots}" if shots else name
