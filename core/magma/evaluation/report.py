"""Tables of what `magma eval` load_run_scores, with the numbers of a paper beside ours."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..manifest import RECIPE, find
from ..recipe.recipe import Recipe
from .results import EVALUATIONS, SCORES


@dataclass(frozen=True)
class RunScores:
    """What is known of one run: scores, and what a paper reports of its recipe. Keys are TASK.SCORE@SHOTS."""

    name: str
    scores: Mapping[str, float]
    published: Mapping[str, float]
    primary: frozenset[str]
    """Keys of the scores that their tasks name first."""
    measures: Mapping[str, str] = field(default_factory=dict)
    """How scores were load_run_scores."""


def load_run_scores(run: Path) -> RunScores:
    """Everything that `magma eval` left in the folder of a run or checkpoint."""
    own = run / RECIPE
    recipe = Recipe.load(own if own.is_file() else find(run) / RECIPE, model_only=True)
    scores: dict[str, float] = {}
    primary: set[str] = set()
    measures: dict[str, str] = {}
    for path in sorted(run.glob(f"{EVALUATIONS}/*/{SCORES}")):
        told = json.loads(path.read_text(encoding="utf-8"))
        for shots, by in told["scores"].items():
            scores |= {f"{told['task']}.{name}@{shots}": value for name, value in by.get("model", {}).items()}
            primary.add(f"{told['task']}.{told['primary']}@{shots}")
            by_score = told.get("measures", {}).get(shots, {})
            measures |= {f"{told['task']}.{name}@{shots}": said for name, said in by_score.items()}
    published = {
        f"{task}.{name}@{shots}": figure
        for task, by in recipe.published.items()
        for name, figures in by.items()
        for shots, figure in figures.items()
    }
    return RunScores(recipe.name, scores, published, frozenset(primary), measures)


def report(runs: Sequence[Path]) -> dict[str, list[list[str]]]:
    """Task to table, the first row its head: a row a run, a column for each score and number of shots.

    A figure that a paper reports stands in brackets beside ours. The last table is the mean over all columns of one
    score, as the paper's "Avg."; "measures" says how figures were load_run_scores, where that is known.
    """
    found = [load_run_scores(run) for run in runs]
    keys = dict.fromkeys(
        key for one in found for key in (*sorted(one.published), *sorted(one.scores)) if _wanted(key, found)
    )
    tasks: dict[str, list[str]] = {}
    for key in keys:
        tasks.setdefault(key.partition(".")[0], []).append(key)
    tables = {}
    for task, columns in sorted(tasks.items()):
        columns.sort(key=lambda key: (key.partition("@")[0], int(key.partition("@")[2] or 0)))
        head = [key.partition(".")[2].replace("@", " @ ") for key in columns]
        tables[task] = [["run", *head], *([one.name, *(_cell(one, key) for key in columns)] for one in found)]
    tables |= _averages(found)
    if said := [row for one in found for row in _measures(one, keys)]:
        tables["measures"] = [["run", "task", "score", "load_run_scores as"], *said]
    return tables


def _measures(one: RunScores, keys: Iterable[str]) -> list[list[str]]:
    """A row for each score of a task that was load_run_scores alike for all numbers of shots."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for key in keys:
        if key in one.measures:
            task, _, score = key.partition(".")
            name, _, shots = score.partition("@")
            rows.setdefault((task, name, one.measures[key]), []).append(shots)
    return [[one.name, task, f"{name} @ {', '.join(shots)}", said] for (task, name, said), shots in rows.items()]


def _wanted(key: str, found: Sequence[RunScores]) -> bool:
    """Primary scores, and what a paper reports."""
    return any(key in one.published or key in one.primary for one in found)


def _cell(one: RunScores, key: str) -> str:
    return _format_with_reference(one.scores.get(key), one.published.get(key))


def _format_with_reference(ours: float | None, theirs: float | None) -> str:
    shown = "-" if ours is None else f"{ours:.3f}" if abs(ours) <= 1 else f"{ours:.1f}"
    return shown if theirs is None else f"{shown} ({theirs:.1f})"


def _averages(found: Sequence[RunScores]) -> dict[str, list[list[str]]]:
    """Over the columns of one score that at least two tasks have."""
    names = {key.partition(".")[2].partition("@")[0] for one in found for key in (*one.scores, *one.published)}
    tables = {}
    for name in sorted(names):
        rows, tasks = [], set()
        for one in found:
            means = []
            for values in (one.scores, one.published):
                chosen = {k: v for k, v in values.items() if k.partition(".")[2].partition("@")[0] == name}
                tasks |= {key.partition(".")[0] for key in chosen}
                means.append(statistics.fmean(chosen.values()) if chosen else None)
            rows.append([one.name, _format_with_reference(*means)])
        if len(tasks) > 1:
            tables[f"average {name}"] = [["run", "average"], *rows]
    return tables
