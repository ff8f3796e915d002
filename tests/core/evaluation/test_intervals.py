"""Confidence intervals: of single scores, and in the files and tables of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from toys import RECIPE, ToyTask

import magma
from magma import PartConfig, Prediction
from magma.evaluation import intervals
from magma.evaluation.intervals import bootstrap_interval
from magma.evaluation.report import report
from magma.evaluation.results import Evaluation, load_details


class Judged(ToyTask):
    """Its score is the mean of what each answer contributes."""

    name = "judged"
    primary_metric = "half_length"

    def item_scores(self, prediction: Prediction) -> dict[str, float]:
        number = int(prediction.question.id)
        return {"half_length": len(prediction.text) / 2, **({"odd": float(number)} if number % 2 else {})}

    score = magma.Task.score


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    draw = np.random.default_rng(7)
    samples = draw.random((300, 60)) < 0.3
    found = [bootstrap_interval(sample.tolist()) for sample in samples]
    assert 0.90 <= np.mean([low <= 0.3 <= high for low, high in found]) <= 0.98
    deviations = [np.sqrt(sample.mean() * (1 - sample.mean()) / 60) for sample in samples]
    widths = [(high - low) / (2 * 1.96 * d) for (low, high), d in zip(found, deviations, strict=True)]
    assert np.mean(widths) == pytest.approx(1, abs=0.05)


def test_an_interval_depends_on_seed_and_values_only(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.0, 1.0, 0.25, 0.5, 1.0, 0.0, 0.75]
    found = bootstrap_interval(values)
    assert found == bootstrap_interval(values)
    assert found != bootstrap_interval(values, seed=1)
    monkeypatch.setattr(intervals, "_VALUES_AT_ONCE", 20)  # two rows at once
    assert bootstrap_interval(values) == found
    monkeypatch.setattr(intervals, "_VALUES_AT_ONCE", 1)  # more values than that
    assert bootstrap_interval(values) == found
    assert bootstrap_interval([0.4] * 5) == pytest.approx([0.4, 0.4])


def test_scores_and_their_intervals_are_written_for_every_run(toys: None, tmp_path: Path) -> None:  # noqa: ARG001
    model = magma.assemble(RECIPE).eval()
    task, folder = Judged(PartConfig(), 0), tmp_path / "run/eval/judged"
    scores = Evaluation(model, task, folder, {"task": "judged"}).run([0, 1])
    found = json.loads((folder / "scores.json").read_text())
    assert set(found["intervals"]) == {"0", "1"}
    for run in ("model", "shuffled", "blind"):
        assert set(found["intervals"]["0"][run]) == {"half_length", "odd"}
        lines = (folder / f"0_shot.{run}.jsonl".replace(".model", "")).read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        lengths = [len(row["prediction"]) / 2 for row in rows]
        assert scores["0"][run] == pytest.approx({"half_length": np.mean(lengths), "odd": 2})
        assert found["intervals"]["0"][run]["half_length"] == bootstrap_interval(lengths)
        assert found["intervals"]["0"][run]["odd"] == bootstrap_interval([1.0, 3.0])
    # a second evaluation keeps them, and so does a reader
    before = found["intervals"]
    Evaluation(model, task, folder, {"task": "judged"}).run([2])
    assert {key: load_details(folder).intervals[key] for key in ("0", "1")} == before


def test_a_report_has_the_intervals_of_what_it_shows(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('name = "one"\n[lm]\nuse = "gptj"\n')
    for folder, value in (("vqa2", 0.5), ("vqa2.1", 0.25)):
        (tmp_path / "eval" / folder).mkdir(parents=True)
        scores = {
            "task": "vqa2",
            "primary": "accuracy",
            "unit": "percent",
            "scores": {"0": {"model": {"accuracy": value, "accuracy_other": 9.0}}},
            "intervals": {"0": {"model": {"accuracy": [value / 2, value * 2], "accuracy_other": [8.0, 10.0]}}},
        }
        (tmp_path / "eval" / folder / "scores.json").write_text(json.dumps(scores))
    tables = report([tmp_path])
    assert tables["vqa2"] == [["run", "accuracy @ 0"], ["one", "0.5"]]
    assert tables["vqa2 1"] == [["run", "accuracy @ 0"], ["one", "0.2"]]
    assert tables["95 % intervals"] == [
        ["run", "task", "score", "interval"],
        ["one", "vqa2", "accuracy @ 0", "0.2 to 1.0"],
        ["one", "vqa2 1", "accuracy @ 0", "0.1 to 0.5"],
    ]
