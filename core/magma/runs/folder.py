"""What the folder of a finished or running run contains: curves, scores, and the comparison of two runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError
from ..io import atomic_write
from ..manifest import RECIPE
from ..recipe.notation import parse_toml
from ..recipe.stages import overlay
from ..recipe.tables import flat
from ..training.metrics import METRICS

T = TypeVar("T")
REPORT = "report.json"
RECENT = 50
"""Steps over which a speed is averaged."""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without a row that is just being written."""
    path = folder / METRICS
    if not path.is_file():
        raise InputError(f"{folder} has no {METRICS}; allowed: the folder of a run that has begun")
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def run_summary(folder: Path) -> dict[str, str]:
    """Progress, losses, speed and scores, by name, as texts for a table."""
    rows = read_metrics(folder)
    recipe = recipe_of_run(folder)
    stages = recipe.get("stages", [])
    steps = [row for row in rows if "loss" in row]
    evaluated = [row for row in rows if "evaluation_loss" in row]
    tables = [overlay(recipe, number, stage) for number, stage in enumerate(stages)] or [recipe]
    total = sum(_length(table.get("train", {})) for table in tables)
    report_path = folder / REPORT
    report = json.loads(report_path.read_text(encoding="utf-8")) if report_path.is_file() else {}
    found = {
        "recipe": str(recipe.get("name", "")),
        "state": "finished" if report.get("finished") else "stopped" if report else "no report yet (running or killed)",
        "steps": f"{steps[-1]['step'] if steps else 0:,} of {total:,}",
        "examples": f"{sum(row.get('samples', 0) for row in steps):,}",
    }
    if steps and "stage" in steps[-1]:
        found["stage"] = steps[-1]["stage"]
    if steps:
        recent = steps[-RECENT:]
        seconds = sum(row["samples"] / row["samples_per_s"] for row in recent if row["samples_per_s"])
        found["loss"] = "not finite" if steps[-1]["loss"] is None else f"{steps[-1]['loss']:.4f}"
        for name, value in steps[-1].get("auxiliary_losses", {}).items():
            found[f"auxiliary loss, {name}"] = "not finite" if value is None else f"{value:.4f}"
        if seconds:
            found["examples a second"] = f"{sum(row['samples'] for row in recent) / seconds:.1f}"
        for key, what, unit in (("tokens_per_s", "useful tokens a second", 1), ("flops_per_s", "TFLOP/s", 1e12)):
            if values := [row[key] for row in recent if key in row]:
                found[what] = f"{sum(values) / len(values) / unit:,.4g}"
        if (waited := sum(row.get("waited_s", 0.0) for row in recent)) and seconds:
            found["waiting for input"] = f"{waited / seconds:.1%}"
        if skipped := sum("skipped" in row for row in steps):
            found["skipped steps"] = f"{skipped:,}"
        found |= {f"learning rate, {part}": f"{rate:.3g}" for part, rate in steps[-1].get("lr", {}).items()}
    if evaluated:
        best = min(evaluated, key=lambda row: row["evaluation_loss"])
        found["evaluation loss"] = f"{evaluated[-1]['evaluation_loss']:.4f}"
        found["lowest evaluation loss"] = f"{best['evaluation_loss']:.4f} at step {best['step']:,}"
    for task, scores in name_tasks(report.get("tasks", {})).items():
        found |= {f"{task}: {name}": f"{value:.3f}" for name, value in scores["model"].items()}
    return found


def name_tasks(tasks: Mapping[str, T]) -> dict[str, T]:
    """Entries of a report's `tasks` or `intervals`, by the name of the task and the shots: `digits`, `digits@4`.

    A task that the recipe has several times gets the number of its table from the second time: `digits 1`.
    """
    first: dict[str, str] = {}
    found = {}
    for key, entry in tasks.items():
        number, _, name = key.partition(".")
        task, at, shots = name.partition("@")
        is_repeated = first.setdefault(task, number) != number
        found[f"{task} {number}{at}{shots}" if is_repeated else name] = entry
    return found


def _length(train: Mapping[str, Any]) -> int:
    """The steps of a [train] table."""
    steps: int = train.get("steps") or -(-train.get("samples", 0) // max(1, train.get("batch_size", 1)))
    return steps


def recipe_differences(one: Path, other: Path) -> dict[str, tuple[str, str]]:
    """Dotted keys of the two recipes whose values differ, with both values; "" for a missing key."""
    found = [dict(flat(recipe_of_run(folder))) for folder in (one, other)]
    keys = [key for key in {**found[0], **found[1]} if found[0].get(key) != found[1].get(key)]
    return {key: (str(found[0].get(key, "")), str(found[1].get(key, ""))) for key in keys}


def recipe_of_run(folder: Path) -> dict[str, Any]:
    """The tables of recipe.toml. Raises `InputError` if it is missing or cannot be read."""
    path = folder / RECIPE
    if not path.is_file():
        raise InputError(f"{folder} has no {RECIPE}; allowed: the folder of a run")
    try:
        return parse_toml(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def stage_starts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The first step of each stage; empty for a run without stages."""
    found: dict[str, int] = {}
    for row in rows:
        if "stage" in row:
            found.setdefault(row["stage"], row["step"])
    return found


def _mark_stages(ax: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw a line and a name at the start of each stage."""
    for name, step in stage_starts(rows).items():
        ax.axvline(step - 0.5, color="0.6", linewidth=1, linestyle="--")
        place = ax.get_xaxis_transform()  # x in steps, y from the bottom of the axes to the top
        ax.text(step, 0.98, name, transform=place, fontsize=8, color="0.4", rotation=90, va="top", parse_math=False)


def plot_losses(folders: Sequence[Path], path: Path, rates: bool = False) -> Path:
    """Write a PNG with the losses of every step and every evaluation; with `rates`, with the learning rates too."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1 + rates, figsize=(7, 4 + 3 * rates), squeeze=False, sharex=True)
    losses, *below = axes[:, 0]
    for i, folder in enumerate(folders):
        rows = read_metrics(folder)
        name = folder.name.replace("$", r"\$")  # matplotlib takes text between two of them for mathematics
        prefix = f"{name}: " if len(folders) > 1 else ""
        for key, style in (("loss", "-"), ("evaluation_loss", "o-")):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                label = prefix + key.replace("_", " ")
                color = None if len(folders) == 1 else f"C{i}"
                alpha = 0.4 if len(folders) > 1 and key == "loss" else 1.0
                losses.plot(
                    *zip(*points, strict=True), style, label=label, color=color, alpha=alpha, linewidth=1, markersize=4
                )
        if len(folders) == 1:
            for ax in axes[:, 0]:
                _mark_stages(ax, rows)
        for ax in below:
            for part in dict.fromkeys(part for row in rows for part in row.get("lr", {})):
                points = [(row["step"], row["lr"].get(part, math.nan)) for row in rows if "lr" in row]
                ax.plot(*zip(*points, strict=True), label=prefix + part, linewidth=1)
    losses.set(ylabel="cross-entropy per target token (nats)", yscale="log")
    for ax in below:
        ax.set(ylabel="learning rate", yscale="log")
    for ax in axes[:, 0]:
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    axes[-1, 0].set_xlabel("step")
    axes[-1, 0].xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    atomic_write(path, lambda partial: figure.savefig(partial, dpi=100, format="png"))
    plt.close(figure)
    return path
