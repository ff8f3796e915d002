"""One recipe from start to finish: check, train, evaluate, report."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..deprecation import renamed_arguments
from ..errors import MISSING_NOUN, InputError, RecipeError, TrainingError
from ..io import atomic_write, folder_lock
from ..manifest import CHECKPOINTS, RECIPE, combined_sha256, read_manifest
from ..plan import plan_stages
from ..recipe.recipe import Recipe
from ..system.ranks import ranks
from ..training.progress import Result
from .folder import REPORT, plot_losses, recipe_of_run
from .stages import train_stages
from .tasks import RunCallbacks, evaluate_tasks

LOSS = "loss.png"


@renamed_arguments(watcher="callbacks")
def run(
    source: Recipe | str | Path | Mapping[str, Any],
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    callbacks: RunCallbacks | None = None,
) -> dict[str, Any]:
    """Train a recipe, evaluate the finished checkpoint on its tasks, and write everything into a folder.

    The folder gets recipe.toml, metrics.jsonl, loss.png, checkpoints/, report.json and what the tasks draw. If the
    recipe skips examples that cannot be read, skipped.jsonl lists them.

    Args:
        source: A recipe, the path of a TOML file, the name of a bundled recipe, or tables.
        out: The folder of the run.
        overrides: Changes of the recipe, such as `"train.steps=100"`. Only for a `source` that is not a `Recipe`.
        resume: Continue a run that was interrupted, from its newest checkpoint.
        callbacks: Functions that are called during the run.

    Returns:
        The report, as in report.json. That of an interrupted run has `finished` False and no scores. With several
        processes, the first one returns the report and the others return an empty dictionary.

    Raises:
        RecipeError: If the recipe has mistakes, or this machine lacks something that it needs.
        TrainingError: If the folder holds another run, or the run cannot continue.
        MagmaError: Whatever a part, a data source or a task raises of this kind.

    Example:
        >>> report = magma.run("quickstart", "runs/first", ["train.steps=100"])
    """
    callbacks = callbacks or RunCallbacks()
    recipe = source if isinstance(source, Recipe) else Recipe.load(source, overrides)
    check_requirements(recipe)
    out = Path(out)
    check_run_folder(out, resume)
    rank, size = ranks()
    if rank:
        result = train_stages(recipe, out, resume=resume, callbacks=callbacks)
        if result.stopped_by:
            callbacks.stopped(result.stopped_by)
        return {}
    with folder_lock(out, callbacks.note, TrainingError):
        callbacks.say("planning")
        plans = plan_stages(recipe, size)
        for planned in plans:
            callbacks.plan(planned)
        if resume:  # the run keeps its recipe until this one has been accepted
            callbacks = replace(callbacks, begun=partial(_replace_recipe, recipe, out, callbacks.note))
        else:
            _write_recipe(recipe, out)
        result = train_stages(recipe, out, resume=resume, callbacks=callbacks, plans=plans)
        if result.stopped_by:
            callbacks.stopped(result.stopped_by)
        return _report(recipe, out, result, callbacks)


def _write_recipe(recipe: Recipe, out: Path) -> None:
    atomic_write(out / RECIPE, recipe.to_toml())


def _replace_recipe(recipe: Recipe, out: Path, note: Callable[[str], None]) -> None:
    """Replace the run's recipe by the one that it resumes with."""
    try:
        seed = recipe_of_run(out).get("seed", 0)
    except InputError:  # it cannot be read, and is replaced
        seed = recipe.seed
    if seed != recipe.seed:
        note(
            f"seed: the run had {seed} until now, and resumes with {recipe.seed}: data sources use the order of seed "
            f"{recipe.seed} from here, so examples of this pass may be used twice or not at all"
        )
    _write_recipe(recipe, out)


def _report(recipe: Recipe, out: Path, result: Result, callbacks: RunCallbacks) -> dict[str, Any]:
    """Write report.json and the curves of a finished run; the report."""
    report = _run_facts(recipe, result)
    if result.finished:
        plot_losses([out], out / LOSS)
        if recipe.tasks:
            report |= evaluate_tasks(recipe, result.folder, out, result.device, callbacks)
    atomic_write(out / REPORT, json.dumps(report, indent=1) + "\n")
    if result.changed:
        count, name = len(result.changed), result.changed[0]
        raise TrainingError(f"{count} frozen tensors changed in training, the first is {name}: do not trust {out}")
    return report


def check_requirements(recipe: Recipe) -> None:
    """Raise `RecipeError` with everything that this machine lacks to run the recipe."""
    if missing := recipe.problems():
        raise RecipeError(f"{recipe.name} cannot run on this machine", missing, MISSING_NOUN)


def check_run_folder(out: Path, resume: bool) -> None:
    """Raise `TrainingError` if a new run would overwrite another one, or a resumed one has not begun."""
    if not resume and (out / CHECKPOINTS).exists():
        raise TrainingError(f"{out} holds a run already: choose another folder with --out, or resume with --resume")
    if resume and not (out / RECIPE).is_file():
        raise TrainingError(f"{out} holds no run to resume: start one without --resume")


def _stop_facts(result: Result) -> dict[str, str]:
    """Which signal or callback stopped a run, and why; empty for a finished one."""
    if result.stop_request:
        return {"stopped_by": f"callback {result.stop_request.callback}", "stop_reason": result.stop_request.reason}
    return {"stopped_by": signal.Signals(result.stopped_by).name} if result.stopped_by else {}


def _run_facts(recipe: Recipe, result: Result) -> dict[str, Any]:
    manifest = read_manifest(result.folder)
    return {
        "recipe": recipe.name,
        "finished": result.finished,
        **_stop_facts(result),
        "steps": result.steps,
        "seconds": round(result.seconds, 2),
        "processes": ranks().size,
        "frozen_unchanged": not result.changed,
        "frozen_tensors": len(result.frozen),
        "frozen_fingerprint": combined_sha256(result.frozen),
        "skipped_examples": result.skipped,
        "unreadable_examples": result.unreadable,
        "skipped_steps": result.skipped_steps,
        "peak_memory_bytes": result.memory,
        "parts": {path: entry.model_dump(by_alias=True) for path, entry in manifest.parts.items()},
        "checkpoint": str(result.folder),
    }
