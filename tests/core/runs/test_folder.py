"""What a run's folder tells, finished or not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magma import InputError, cli
from magma.runs.folder import plot_losses, read_metrics, recipe_differences, run_summary

RECIPE = """name = "{name}"
[lm]
use = "gptj"
[[data.train]]
use = "digits"
questions = {questions}
[train]
steps = 40
batch_size = 8
lr = 1e-3
"""


def made(folder: Path, questions: float = 0.25, steps: int = 20, finished: bool = False) -> Path:
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE.format(name=folder.name, questions=questions))
    rows = [
        {"step": i, "loss": 3.0 / i, "lr": {"adapters.mlp": 1e-3 / i}, "samples": 8, "samples_per_s": 16.0}
        for i in range(1, steps + 1)
    ]
    evaluated = [{"step": 10, "evaluation_loss": 0.5}, {"step": 20, "evaluation_loss": 0.75}]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, *evaluated])
    (folder / "metrics.jsonl").write_text(text + '{"step": 21, "lo')  # being written
    if finished:
        scores = {"0.digits": {"model": {"caption_accuracy": 0.875}}}
        (folder / "report.json").write_text(json.dumps({"finished": True, "tasks": scores}))
    return folder


def test_figures_of_a_running_and_of_a_finished_run(tmp_path: Path) -> None:
    running = run_summary(made(tmp_path / "running"))
    assert running == {
        "recipe": "running",
        "state": "no report yet (running or killed)",
        "steps": "20 of 40",
        "examples": "160",
        "loss": "0.1500",
        "examples a second": "16.0",
        "learning rate, adapters.mlp": "5e-05",
        "evaluation loss": "0.7500",
        "lowest evaluation loss": "0.5000 at step 10",
    }
    finished = run_summary(made(tmp_path / "finished", finished=True))
    assert (finished["state"], finished["digits: caption_accuracy"]) == ("finished", "0.875")
    assert len(read_metrics(tmp_path / "running")) == 22


def test_where_two_recipes_differ(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one"), made(tmp_path / "other", questions=0.5)
    assert recipe_differences(one, other) == {"name": ("one", "other"), "data.train.0.questions": ("0.25", "0.5")}


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one"), made(tmp_path / "other")
    for folders, rates, size in (([one], False, (700, 400)), ([one, other], True, (700, 700))):
        with Image.open(plot_losses(folders, tmp_path / "curves.png", rates)) as image:
            assert image.size == size
            assert len(np.unique(np.asarray(image.convert("L")))) > 50
    assert not list(tmp_path.glob(".*"))


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = made(tmp_path / "one"), made(tmp_path / "other", questions=0.5, finished=True)
    for words, said in (
        (["show", str(one)], ["lowest evaluation loss  0.5000 at step 10", str(one / "curves.png")]),
        (["compare", str(one), str(other), "--png", str(tmp_path / "both.png")], ["data.train.0.questions  0.25  0.5"]),
    ):
        monkeypatch.setattr(sys, "argv", ["magma", "run", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        printed = " ".join(capsys.readouterr().out.split())
        assert all(" ".join(line.split()) in printed for line in said)
    assert (one / "curves.png").is_file()
    assert (tmp_path / "both.png").is_file()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no metrics.jsonl; allowed: the folder of a run that has begun"):
        run_summary(tmp_path)
