"""Tables of the scores of `magma eval`, with the numbers of a paper beside them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, get_args

from ..errors import PluginError
from ..interfaces import Task
from ..manifest import RECIPE, find_checkpoint
from ..plugins.registry import installed
from ..recipe.recipe import Recipe
from ..values import ScoreUnit
from .intervals import Interval
from .results import EVALUATIONS, SCORES, ScoreDetails

UNITS = get_args(ScoreUnit)


@dataclass(frozen=True)
class RunScores:
    """The scores of one run, and those that a paper reports for its recipe. Keys are TASK.SCORE@SHOTS."""

    name: str
    scores: Mapping[str, float]
    published: Mapping[str, float]
    primary: frozenset[str]
    """Keys of the main scores of their tasks."""
    measures: Mapping[str, str] = field(default_factory=dict)
    """How scores were measured."""
    units: Mapping[str, ScoreUnit | None] = field(default_factory=dict)
    """The unit of each task's scores; None if it is not known."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Confidence intervals of scores."""


def load_run_scores(run: Path) -> RunScores:
    """Load the scores of all evaluations in the folder of a run or checkpoint."""
    own = run / RECIPE
    recipe = Recipe.load(own if own.is_file() else find_checkpoint(run) / RECIPE, model_only=True)
    scores: dict[str, float] = {}
    primary: set[str] = set()
    measures: dict[str, str] = {}
    units: dict[str, ScoreUnit | None] = {}
    intervals: dict[str, Interval] = {}
    for path in sorted(run.glob(f"{EVALUATIONS}/*/{SCORES}")):
        found = json.loads(path.read_text(encoding="utf-8"))
        details, task = ScoreDetails.of(found), _task_label(found["task"], path.parent.name)
        units[task] = found["unit"] if found.get("unit") in UNITS else _unit_of(found["task"])
        for shots, by in found["scores"].items():
            scores |= {f"{task}.{name}@{shots}": value for name, value in by.get("model", {}).items()}
            primary.add(f"{task}.{found['primary']}@{shots}")
            by_score = details.measures.get(shots, {})
            measures |= {f"{task}.{name}@{shots}": measured for name, measured in by_score.items()}
            known = details.intervals.get(shots, {}).get("model", {})
            intervals |= {f"{task}.{name}@{shots}": interval for name, interval in known.items()}
    published = {
        f"{task}.{name}@{shots}": value
        for task, by in recipe.published.items()
        for name, values in by.items()
        for shots, value in values.items()
    }
    return RunScores(recipe.name, scores, published, frozenset(primary), measures, units, intervals)


def _task_label(task: str, folder: str) -> str:
    """The name of a task; with the number of its table, as in `digits 1`, if the recipe has the task several times."""
    number = folder.removeprefix(f"{task}.")
    return f"{task} {number}" if number != folder and number.isdigit() else task


def _unit_of(task: str) -> ScoreUnit | None:
    """The unit of an installed task's scores: files of earlier versions do not say it."""
    try:
        part = installed().find("task", task).part
    except PluginError:
        return None
    return cast(type[Task], part).score_unit


def report(runs: Sequence[Path]) -> dict[str, list[list[str]]]:
    """Tables of several runs: a table for each task, with a row for each run and a column for each score and shots.

    A score that a paper reports is in brackets beside the run's own. Percentages have one decimal, fractions three. A
    table of averages has the mean over all columns of one score, as the paper's "Avg."; the table "measures" says how
    scores were measured, if that is known, and "95 % intervals" has confidence intervals over the questions.

    Args:
        runs: Folders of runs or checkpoints.

    Returns:
        Rows of texts by the table's name. The first row is the header.
    """
    found = [load_run_scores(run) for run in runs]
    keys = dict.fromkeys(
        key for one in found for key in (*sorted(one.published), *sorted(one.scores)) if _is_shown(key, found)
    )
    tasks: dict[str, list[str]] = {}
    for key in keys:
        tasks.setdefault(key.partition(".")[0], []).append(key)
    tables = {}
    for task, columns in sorted(tasks.items()):
        columns.sort(key=lambda key: (key.partition("@")[0], int(key.partition("@")[2] or 0)))
        header = [key.partition(".")[2].replace("@", " @ ") for key in columns]
        tables[task] = [["run", *header], *([one.name, *(_cell(one, key) for key in columns)] for one in found)]
    tables |= _averages(found)
    if measures := [row for one in found for row in _measures(one, keys)]:
        tables["measures"] = [["run", "task", "score", "measured as"], *measures]
    ordered = [key for _, columns in sorted(tasks.items()) for key in columns]
    if intervals := [row for one in found for row in _intervals(one, ordered)]:
        tables["95 % intervals"] = [["run", "task", "score", "interval"], *intervals]
    return tables


def _intervals(one: RunScores, keys: Iterable[str]) -> list[list[str]]:
    """A row for each score with an interval."""
    rows = []
    for key in keys:
        if key in one.intervals:
            task, _, score = key.partition(".")
            ends = (_format_with_reference(end, one.units.get(task), None) for end in one.intervals[key])
            rows.append([one.name, task, score.replace("@", " @ "), " to ".join(ends)])
    return rows


def _measures(one: RunScores, keys: Iterable[str]) -> list[list[str]]:
    """A row for each score of a task, with the numbers of shots for which it was measured in the same way."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for key in keys:
        if key in one.measures:
            task, _, score = key.partition(".")
            name, _, shots = score.partition("@")
            rows.setdefault((task, name, one.measures[key]), []).append(shots)
    return [
        [one.name, task, f"{name} @ {', '.join(shots)}", measured] for (task, name, measured), shots in rows.items()
    ]


def _is_shown(key: str, found: Sequence[RunScores]) -> bool:
    """Whether it is a main score, or one that a paper reports."""
    return any(key in one.published or key in one.primary for one in found)


def _cell(one: RunScores, key: str) -> str:
    unit = one.units.get(key.partition(".")[0])
    return _format_with_reference(one.scores.get(key), unit, one.published.get(key))


def _format_with_reference(score: float | None, unit: ScoreUnit | None, published: float | None) -> str:
    """A score with the decimals of its unit, and a paper's score, which is in percent, in brackets."""
    decimals = {"percent": ".1f", "fraction": ".3f", None: ".4g"}[unit]
    shown = "-" if score is None else f"{score:{decimals}}"
    return shown if published is None else f"{shown} ({published:.1f})"


def _averages(found: Sequence[RunScores]) -> dict[str, list[list[str]]]:
    """Over the columns of one score that at least two tasks have."""
    names = {key.partition(".")[2].partition("@")[0] for one in found for key in (*one.scores, *one.published)}
    tables = {}
    for name in sorted(names):
        rows, tasks = [], set()
        for one in found:
            means = []
            units: set[ScoreUnit | None] = set()
            for values in (one.scores, one.published):
                chosen = {k: v for k, v in values.items() if k.partition(".")[2].partition("@")[0] == name}
                tasks |= {key.partition(".")[0] for key in chosen}
                if values is one.scores:
                    units = {one.units.get(key.partition(".")[0]) for key in chosen}
                    if units == {"percent", "fraction"}:
                        chosen = {key: _percent(one, key) for key in chosen}
                means.append(statistics.fmean(chosen.values()) if chosen else None)
            unit: ScoreUnit | None = None if None in units else "percent" if "percent" in units else "fraction"
            rows.append([one.name, _format_with_reference(means[0], unit, means[1])])
        if len(tasks) > 1:
            tables[f"average {name}"] = [["run", "average"], *rows]
    return tables


def _percent(one: RunScores, key: str) -> float:
    """A score of a known unit in percent."""
    return one.scores[key] * (100 if one.units[key.partition(".")[0]] == "fraction" else 1)
