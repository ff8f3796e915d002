"""A family of recipes: what is run, what is not run again, what the table says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magma import RecipeError, TrainingError
from magma.runs.sweep import run_sweep, sweep_cells, table, write_table

BASE = 'name = "{name}"\n[lm]\nuse = "gptj"\nweights = "bundled:tiny"\n[train]\nsteps = 1\nbatch_size = 1\nlr = 1e-3\n'


@pytest.fixture
def recipes(tmp_path: Path) -> list[str]:
    files = [tmp_path / f"{name}.toml" for name in ("a", "b")]
    for file in files:
        file.write_text(BASE.format(name=file.stem))
    return [str(file) for file in files]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be run; each leaves a report, but for b's first try."""
    seen: list[list[str]] = []

    def run(words: list[str]) -> int:
        seen.append(words)
        out = Path(words[words.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.toml").write_text("")
        seed = int(words[-1].removeprefix("seed="))
        failed = "/b/" in str(out) and "--resume" not in words
        tasks = {
            "0.t": {"model": {"x": 0.5 + seed / 4}},
            "0.t@4": {"model": {"x": 1.0}},
            "2.t": {"model": {"x": 0.1}},
            "2.t@4": {"model": {"x": 0.2}},
        }
        report: dict[str, Any] = {"finished": not failed, "tasks": {} if failed else tasks, "steps": 1}
        report["intervals"] = {"0.t": {"model": {"x": [0.25, 0.75]}}}
        (out / "report.json").write_text(json.dumps(report))
        rows = [
            {"step": 1, "loss": 1.0},
            {"step": 1, "evaluation_loss": 2.0 + seed},
            {"step": 2, "evaluation_loss": 3.5},
        ]
        (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return int(failed)

    monkeypatch.setattr("magma.runs.sweep.run_subprocess", run)
    return seen


def test_every_recipe_runs_with_every_seed_and_finished_ones_once(
    recipes: list[str], commands: list[list[str]], tmp_path: Path
) -> None:
    changes = ["train.lr=2e-3"]
    plan = sweep_cells(recipes, tmp_path / "out", [0, 1], changes)
    said: list[str] = []
    failed = run_sweep(plan, changes, said.append)
    assert [(cell.recipe.name, cell.seed) for cell in failed] == [("b", 0), ("b", 1)]
    assert [words[2] for words in commands] == recipes * 2  # after the first seed there is a table
    assert commands[0][-4:] == ["--set", "train.lr=2e-3", "--set", "seed=0"]
    assert table(plan)["b"] == {}
    commands.clear()
    assert run_sweep(plan, changes, said.append, ["--nproc", "2"]) == []
    assert len(commands) == 2
    assert all("--resume" in words and "--nproc" in words for words in commands)
    assert said[-4] == "1/4 a, seed 0: finished before"
    found = table(plan)
    assert str(found["a"]["t: x"]) == "0.625 (0.500 to 0.750)"
    first = table([cell for cell in plan if cell.seed == 0])
    assert str(first["a"]["t: x"]) == "0.500 [0.250, 0.750]"  # one seed: the interval over the questions
    assert str(first["a"]["t@4: x"]) == "1.000"
    assert str(found["a"]["t@4: x"]) == "1.000 (1.000 to 1.000)"
    assert str(found["a"]["t 2: x"]) == "0.100 (0.100 to 0.100)"  # the recipe's third task, with another configuration
    assert str(found["a"]["t 2@4: x"]) == "0.200 (0.200 to 0.200)"
    assert str(found["a"]["training: evaluation_loss"]) == "2.500 (2.000 to 3.000)"
    write_table(plan, tmp_path / "table.json")
    rows = json.loads((tmp_path / "table.json").read_text())["runs"]
    assert rows[0]["intervals"] == {"0.t": {"model": {"x": [0.25, 0.75]}}}
    assert [(row["recipe"], row["seed"]) for row in rows] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_mistakes_are_found_before_anything_is_run(recipes: list[str], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="recipes with the same name: a"):
        sweep_cells([recipes[0], recipes[0]], tmp_path, [0], [])
    with pytest.raises(RecipeError, match="train.lrr"):
        sweep_cells(recipes, tmp_path, [0], ["train.lrr=1"])
    with pytest.raises(RecipeError, match="mini_adapters_none cannot run"):
        sweep_cells(["mini/adapters/none"], tmp_path, [0], ["lm.weights=/nowhere/at/all"])


def test_a_signal_that_stops_a_run_stops_the_others(
    recipes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    def stopped(words: list[str]) -> int:
        started.append(words)
        return 143

    monkeypatch.setattr("magma.runs.sweep.run_subprocess", stopped)
    with pytest.raises(SystemExit) as ended:
        run_sweep(sweep_cells(recipes, tmp_path / "out", [0], []), [], lambda _: None)
    assert ended.value.code == 143
    assert len(started) == 1
