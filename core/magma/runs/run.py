"""One recipe from start to finish: check, train, evaluate, report."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import checkpoint
from ..errors import MISSING_NOUN, InputError, RecipeError, TrainingError
from ..evaluation.results import EVALUATIONS, Evaluation, about, measures_of
from ..interfaces import Task
from ..io import atomic_write, folder_lock
from ..manifest import CHECKPOINTS, RECIPE, combined_sha256, read_manifest
from ..plan import Plan, plan_stages
from ..recipe.recipe import Recipe
from ..system.ranks import ranks
from ..training.progress import Result, Watcher
from .folder import REPORT, draw, recipe_of_run
from .stages import train_stages

LOSS = "loss.png"


@dataclass
class Console(Watcher):
    """A watcher that is also told what the run will cost, and of the evaluation."""

    plan: Callable[[Plan], None] = lambda _: None
    asked: Callable[[str, int], None] = lambda *_: None
    """What is asked, and how many questions have their answer."""
    stopped: Callable[[int], None] = lambda _: None
    """The number of the signal that stopped the run; it is called in every process."""


def run(
    source: Recipe | str | Path | Mapping[str, Any],
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    watcher: Console | None = None,
) -> dict[str, Any]:
    """Train a recipe, ask its tasks' questions of the finished checkpoint, and write everything into `out`.

    `out` gets recipe.toml, metrics.jsonl, loss.png, checkpoints/, report.json and what the tasks draw; skipped.jsonl
    lists what could not be read, where the recipe says to skip that. Returns the report; an interrupted run's has
    `finished` false and no scores. With several processes the first one reports.
    """
    watcher = watcher or Console()
    recipe = source if isinstance(source, Recipe) else Recipe.load(source, overrides)
    check(recipe)
    out = Path(out)
    check_folder(out, resume)
    rank, size = ranks()
    if rank:
        result = train_stages(recipe, out, resume=resume, watcher=watcher)
        if result.stopped_by:
            watcher.stopped(result.stopped_by)
        return {}
    with folder_lock(out, watcher.note, TrainingError):
        watcher.say("planning")
        plans = plan_stages(recipe, size)
        for planned in plans:
            watcher.plan(planned)
        if resume:  # the run keeps its recipe until it is certain that this one goes with its checkpoint
            watcher = replace(watcher, begun=partial(_take_over, recipe, out, watcher.note))
        else:
            _write_recipe(recipe, out)
        result = train_stages(recipe, out, resume=resume, watcher=watcher, plans=plans)
        if result.stopped_by:
            watcher.stopped(result.stopped_by)
        return _report(recipe, out, result, watcher)


def _write_recipe(recipe: Recipe, out: Path) -> None:
    atomic_write(out / RECIPE, recipe.to_toml())


def _take_over(recipe: Recipe, out: Path, note: Callable[[str], None]) -> None:
    """The recipe that a run resumes with becomes the run's."""
    try:
        seed = recipe_of_run(out).get("seed", 0)
    except InputError:  # it cannot be read, and is not needed any more
        seed = recipe.seed
    if seed != recipe.seed:
        note(
            f"seed: the run had {seed} until now, and is resumed with {recipe.seed}: data sources draw in the order of "
            f"seed {recipe.seed} from here, so that examples of this pass may come twice or not at all"
        )
    _write_recipe(recipe, out)


def _report(recipe: Recipe, out: Path, result: Result, watcher: Console) -> dict[str, Any]:
    report = _facts(recipe, result)
    if result.finished:
        draw([out], out / LOSS)
        if recipe.tasks:
            watcher.say(f"loading {result.folder}")
            model = checkpoint.load(result.folder, device=result.device, say=watcher.say)
            scores: dict[str, Any] = {}
            measures: dict[str, dict[str, str]] = {}
            last = recipe.in_stages()[-1].train
            assert last is not None
            for i, table in enumerate(recipe.tasks):
                part, config = recipe.part(f"tasks.{i}")
                task: Task = part(config, recipe.seed)
                earlier = any(other.use == table.use for other in recipe.tasks[:i])
                place = out / EVALUATIONS / (f"{task.name}.{i}" if earlier else task.name)
                named, share = about(task, 0, result.folder), last.max_unreadable
                asked = Evaluation(model, task, place, named, artifacts=out, max_unreadable=share, say=watcher.note)
                found = asked.run(table.shots, progress=watcher.asked, replace=True)
                for shots in table.shots:
                    name = f"{i}.{with_shots(task.name, shots)}"
                    scores[name] = scored = found[str(shots)]
                    if said := measures_of(place).get(str(shots)):
                        measures[name] = said
                    if len(scores) == 1:
                        report[task.primary_metric] = scored["model"][task.primary_metric]
                        report["shuffled_accuracy"] = scored["shuffled"][task.primary_metric]
                        report["blind_accuracy"] = scored["blind"][task.primary_metric]
            report["tasks"] = scores
            if measures:
                report["measures"] = measures
    atomic_write(out / REPORT, json.dumps(report, indent=1) + "\n")
    if result.changed:
        count, name = len(result.changed), result.changed[0]
        raise TrainingError(f"{count} frozen tensors changed in training, the first is {name}: do not trust {out}")
    return report


def with_shots(name: str, shots: int) -> str:
    """How a score is called that was asked for behind so many completed examples: `digits`, `digits@4`."""
    return f"{name}@{shots}" if shots else name


def check(recipe: Recipe) -> None:
    """Raise `RecipeError` with all that this machine lacks to run it."""
    if missing := recipe.problems():
        raise RecipeError(f"{recipe.name} cannot run on this machine", missing, MISSING_NOUN)


def check_folder(out: Path, resume: bool) -> None:
    """Raise `TrainingError` where a run that begins would overwrite another one, or one that goes on has not begun."""
    if not resume and (out / CHECKPOINTS).exists():
        raise TrainingError(f"{out} holds a run already: choose another folder with --out, or go on with --resume")
    if resume and not (out / RECIPE).is_file():
        raise TrainingError(f"{out} holds no run to go on with: start one without --resume")


def _facts(recipe: Recipe, result: Result) -> dict[str, Any]:
    manifest = read_manifest(result.folder)
    return {
        "recipe": recipe.name,
        "finished": result.finished,
        **({"stopped_by": signal.Signals(result.stopped_by).name} if result.stopped_by else {}),
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
