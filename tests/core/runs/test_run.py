"""From recipe to report, in Python."""

from __future__ import annotations

import copy
import errno
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import stored_toy
from toys import RECIPE, ToyTask
from typer.testing import CliRunner

import magma
from magma import InputError, RecipeError, TrainingError
from magma.cli.app import cli
from magma.io import folder_lock
from magma.recipe.parts import build_part
from magma.runs.tasks import RunCallbacks

pytestmark = pytest.mark.usefixtures("stored_toys")


def test_the_report_is_what_the_run_did(tmp_path: Path) -> None:
    report = magma.run(RECIPE, tmp_path / "run")
    assert report == json.loads((tmp_path / "run/report.json").read_text())
    task = ToyTask(magma.PartConfig(), 0)
    predictions = magma.evaluate(magma.load(tmp_path / "run"), task)
    for key, baseline in (("count_accuracy", ""), ("shuffled_score", "shuffled"), ("blind_score", "blind")):
        assert report[key] == task.score([p for p in predictions if p.baseline == baseline])["count_accuracy"]
    assert report["shuffled_accuracy"] == report["shuffled_score"]  # the former name
    assert report["blind_accuracy"] == report["blind_score"]
    assert (report["steps"], report["finished"], report["frozen_tensors"]) == (6, True, 10)
    assert report["parts"]["lm"] == {"name": "toy", "from": "unknown 0", "parameters": 7296, "trained": 0}


def test_the_tasks_of_a_recipe_are_asked_again(tmp_path: Path) -> None:
    report = magma.run(RECIPE, tmp_path / "run")
    recipe = str(tmp_path / "run/recipe.toml")
    words = ["eval", "tasks", recipe, str(tmp_path / "run"), "--out", str(tmp_path / "again")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    again = json.loads((tmp_path / "again/report.json").read_text())
    assert (again["tasks"], again["count_accuracy"]) == (report["tasks"], report["count_accuracy"])
    assert "count_accuracy" in done.output
    none = CliRunner().invoke(cli, [*words, "--set", "tasks=[]"])
    assert isinstance(none.exception, InputError)
    assert "toy has no tasks; allowed: a recipe with [[tasks]]" in str(none.exception)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    magma.run(RECIPE, tmp_path)
    with pytest.raises(TrainingError, match="holds a run already"):
        magma.run(RECIPE, tmp_path)


def test_what_is_missing_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {**copy.deepcopy(RECIPE), "init": {"checkpoint": str(tmp_path / "gone")}}
    with pytest.raises(RecipeError, match="toy cannot run on this machine: 1 thing is missing\n"):
        magma.run(recipe, tmp_path / "run")
    monkeypatch.setattr(ToyTask, "problems", classmethod(lambda *_: ["one", "another"]))
    with pytest.raises(RecipeError, match="3 things are missing\n  - .*one\n  - .*another\n  - init.checkpoint: given"):
        magma.run(recipe, tmp_path / "run")
    with pytest.raises(RecipeError, match="task counting: 2 things are missing\n  - one\n"):
        build_part("task", "counting", {}, (), True, 0)
    assert not (tmp_path / "run").exists()


def test_a_frozen_tensor_that_changes_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something as bad as an in-place update of a weight, once a step."""

    def meddled(*args: Any, **how: Any) -> magma.Magma:
        model = assemble(*args, **how)
        model.lm.register_forward_hook(add)
        return model

    def add(lm: Any, *_: object) -> None:
        lm.get_parameter("places.weight").data.add_(1.0)

    assemble = magma.assemble
    monkeypatch.setattr("magma.training.train.assemble", meddled)
    with pytest.raises(TrainingError, match=r"frozen tensors changed in training, the first is lm\.places\.weight"):
        magma.run(RECIPE, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["frozen_unchanged"] is False


def test_a_folder_is_written_by_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path / "run", error=TrainingError),
        pytest.raises(TrainingError, match="is being written by another process"),
    ):
        magma.run(RECIPE, tmp_path / "run")
    magma.run(RECIPE, tmp_path / "run")
    assert not (tmp_path / "run/.lock").exists()


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no run to resume"):
        magma.run(RECIPE, tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()
    whole = magma.run(RECIPE, tmp_path / "whole")
    (tmp_path / "run/checkpoints/.step-00000003.shared").mkdir(parents=True)
    (tmp_path / "run/recipe.toml").write_text((tmp_path / "whole/recipe.toml").read_text())
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1, "lo')
    report = magma.run(RECIPE, tmp_path / "run", resume=True)
    assert report["steps"] == whole["steps"]
    ends = [tmp_path / run / "checkpoints/step-00000006/trained.safetensors" for run in ("whole", "run")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000006"]


def test_a_refused_resume_leaves_the_recipe_of_the_run(tmp_path: Path) -> None:
    magma.run(RECIPE, tmp_path)
    before = (tmp_path / "recipe.toml").read_text()
    wider = ["adapters.mlp.width=5"]
    with pytest.raises(magma.CheckpointError, match="does not fit the model"):
        magma.run(RECIPE, tmp_path, wider, resume=True)
    assert (tmp_path / "recipe.toml").read_text() == before
    magma.run(RECIPE, tmp_path, ["train.steps=7"], resume=True)
    assert "steps = 7" in (tmp_path / "recipe.toml").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["steps"] == 7


def test_another_seed_is_reported_by_resume(tmp_path: Path) -> None:
    """It is no mistake: where no weight is drawn from it, only the data's order changes."""
    stored_toy.bring(tmp_path)
    raw = {**copy.deepcopy(RECIPE), "lm": {"use": "stored", "weights": str(tmp_path / "lm")}}
    noted: list[str] = []
    callbacks = RunCallbacks(note=lambda line: noted.append(line) if "seed" in line else None)
    magma.run(raw, tmp_path / "run", callbacks=callbacks)
    magma.run(raw, tmp_path / "run", resume=True, callbacks=callbacks)
    assert noted == []
    magma.run(raw, tmp_path / "run", ["seed=1", "train.steps=7"], resume=True, callbacks=callbacks)
    assert [line.partition(":")[0] for line in noted] == ["seed"]
    assert "the run had 0 until now, and resumes with 1" in noted[0]
    assert "seed = 1" in (tmp_path / "run/recipe.toml").read_text()


def test_a_finished_run_is_resumed_without_writing_its_checkpoint_again(tmp_path: Path) -> None:
    magma.run(RECIPE, tmp_path)
    file = tmp_path / "checkpoints/step-00000006/trained.safetensors"
    before = file.stat().st_mtime_ns
    rows = (tmp_path / "metrics.jsonl").read_text()
    with (tmp_path / "metrics.jsonl").open("a") as torn:
        torn.write('{"step": 7, "los')
    report = magma.run(RECIPE, tmp_path, resume=True)
    assert report["finished"]
    assert file.stat().st_mtime_ns == before
    assert (tmp_path / "metrics.jsonl").read_text() == rows


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_a_run_which_saves_and_resumes_to_the_same_bytes(number: int, tmp_path: Path) -> None:
    """In the middle, and in the last step: then what is left is to ask the tasks' questions."""
    magma.run(RECIPE, tmp_path / "whole")
    ends = []
    for step in (2, 6):
        stopped: list[int] = []

        def signalled(now: Any, step: int = step) -> None:
            if now.step == step:
                os.kill(os.getpid(), number)

        out = tmp_path / f"stopped{step}"
        report = magma.run(RECIPE, out, callbacks=RunCallbacks(step=signalled, stopped=stopped.append))
        assert (report["finished"], report["stopped_by"]) == (False, signal.Signals(number).name)
        assert report["steps"] == step
        assert "tasks" not in report
        assert stopped == [number]
        assert [p.name for p in (out / "checkpoints").iterdir()] == [f"step-0000000{step}"]
        report = magma.run(RECIPE, out, resume=True)
        assert report["finished"]
        assert "stopped_by" not in report
        assert report["tasks"] == json.loads((tmp_path / "whole/report.json").read_text())["tasks"]
        ends.append((out / "checkpoints/step-00000006/trained.safetensors").read_bytes())
    assert set(ends) == {(tmp_path / "whole/checkpoints/step-00000006/trained.safetensors").read_bytes()}


def test_a_run_in_a_thread(tmp_path: Path) -> None:
    """As notebooks and servers start one; only the main thread may handle signals."""
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(magma.run, RECIPE, tmp_path / "thread").result()
    assert report["finished"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_noted(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    notes: list[str] = []
    with folder_lock(tmp_path / "run", notes.append):
        pass
    said = f"{tmp_path}/run/.lock cannot be locked: {os.strerror(number)}; do not start a second process that writes to"
    assert notes == [f"{said} {tmp_path}/run"]


def test_the_former_name_of_callbacks_is_accepted_with_a_warning(tmp_path: Path) -> None:
    notes: list[str] = []
    with pytest.warns(DeprecationWarning, match=r"`run\(watcher=\)` is now called `callbacks`"):
        magma.run(RECIPE, tmp_path / "run", watcher=RunCallbacks(say=notes.append))  # type: ignore[call-arg]
    assert "planning" in notes
