"""Several recipes, each with several seeds, one run after another. Finished runs are not repeated.

Each run has a folder, and there is one table at the end.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TrainingError
from ..evaluation.intervals import Interval
from ..io import atomic_write
from ..manifest import RECIPE
from ..recipe.recipe import Recipe
from ..system.launch import run_subprocess
from ..system.signals import STOP_SIGNALS, exit_status
from .folder import REPORT, name_tasks, read_metrics
from .run import check_requirements

TABLE = "matrix.json"


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    recipe: Recipe
    source: str
    seed: int
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        """The report of the run; empty if it has not finished."""
        path = self.folder / REPORT
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return found if found.get("finished") else {}


def sweep_cells(sources: Sequence[str], out: Path, seeds: Sequence[int], overrides: Sequence[str]) -> list[Cell]:
    """The runs, seed by seed: after the first seed the table has every recipe. Raises `RecipeError`."""
    recipes = [(source, Recipe.load(source, overrides)) for source in sources]
    names = [recipe.name for _, recipe in recipes]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise TrainingError(f"recipes with the same name: {', '.join(duplicates)}; their runs would share a folder")
    for _, recipe in recipes:
        check_requirements(recipe)
    return [
        Cell(recipe, source, seed, out / recipe.name / f"seed_{seed}") for seed in seeds for source, recipe in recipes
    ]


def run_sweep(
    plan: Sequence[Cell], overrides: Sequence[str], say: Callable[[str], None], arguments: Sequence[str] = ()
) -> list[Cell]:
    """Run what has not finished, each run in a separate process, and continue after a failed one.

    Returns:
        The runs that failed.

    Raises:
        SystemExit: With the run's status, if a signal stops a run.
    """
    failed = []
    for i, cell in enumerate(plan, 1):
        where = f"{i}/{len(plan)} {cell.recipe.name}, seed {cell.seed}"
        if cell.report:
            say(f"{where}: finished before")
            continue
        say(where)
        begun = (cell.folder / RECIPE).is_file()
        words = ["recipe", "run", cell.source, "--out", str(cell.folder), *arguments, *(["--resume"] if begun else [])]
        words += [word for change in (*overrides, f"seed={cell.seed}") for word in ("--set", change)]
        status = run_subprocess(words)
        if status in map(exit_status, STOP_SIGNALS):
            say(f"{where}: stopped; the same command resumes it")
            raise SystemExit(status)
        if status or not cell.report:
            failed.append(cell)
    return failed


@dataclass(frozen=True)
class SeedScores:
    """One score of one recipe over its seeds."""

    mean: float
    low: float
    high: float
    values: list[float]
    interval: Interval | None = None
    """The confidence interval over the questions, for a single seed."""

    def __str__(self) -> str:
        spread = f" ({self.low:.3f} to {self.high:.3f})" if len(self.values) > 1 else ""
        if self.interval:
            spread = f" [{self.interval[0]:.3f}, {self.interval[1]:.3f}]"
        return f"{self.mean:.3f}{spread}"


def table(plan: Sequence[Cell]) -> dict[str, dict[str, SeedScores]]:
    """The scores of the finished runs by recipe and name, which is TASK: SCORE.

    The lowest evaluation loss of a run, if it has one, comes first, as `training: evaluation_loss`.
    """
    found: dict[str, dict[str, list[float]]] = {}
    intervals: dict[tuple[str, str], Interval] = {}
    for cell in plan:
        scores = found.setdefault(cell.recipe.name, {})
        if cell.report and (
            losses := [r["evaluation_loss"] for r in read_metrics(cell.folder) if "evaluation_loss" in r]
        ):
            scores.setdefault("training: evaluation_loss", []).append(min(losses))
        for task, by in name_tasks(cell.report.get("tasks", {})).items():
            for name, value in by["model"].items():
                scores.setdefault(f"{task}: {name}", []).append(value)
        for task, by in name_tasks(cell.report.get("intervals", {})).items():
            intervals |= {(cell.recipe.name, f"{task}: {name}"): ends for name, ends in by["model"].items()}

    def summarize(recipe: str, name: str, values: list[float]) -> SeedScores:
        interval = intervals.get((recipe, name)) if len(values) == 1 else None
        return SeedScores(statistics.fmean(values), min(values), max(values), values, interval)

    return {
        recipe: {name: summarize(recipe, name, values) for name, values in scores.items()}
        for recipe, scores in found.items()
    }


def write_table(plan: Sequence[Cell], path: Path) -> None:
    """Write the scores of every run as JSON, including those of the control runs."""
    runs = [{"recipe": c.recipe.name, "seed": c.seed, **c.report} for c in plan if c.report]
    kept = ("recipe", "seed", "steps", "seconds", "tasks", "intervals", "frozen_unchanged")
    rows = [{key: run[key] for key in kept if key in run} for run in runs]
    atomic_write(path, json.dumps({"runs": rows}, indent=1) + "\n")
