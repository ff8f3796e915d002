"""Callbacks: the order of their hooks, their requests, their state, and what happens when one fails."""

from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_parity import launch
from toys import RECIPE
from typer.testing import CliRunner

import magma
from magma import Recipe, RecipeError, TrainingError
from magma.runs.tasks import RunCallbacks
from magma.training.progress import Callbacks, Progress
from magma.training.train import train

pytestmark = pytest.mark.usefixtures("extra_toys")


def recipe(*callbacks: dict[str, Any], **changes: Any) -> Recipe:
    raw = {**copy.deepcopy(RECIPE), "callbacks": list(callbacks), "tasks": []}
    raw["train"] |= changes
    return Recipe.load(raw)


def diary(out: Path, rank: int = 0) -> list[str]:
    return (out / f"diary-{rank}.txt").read_text().splitlines()


def end(out: Path, step: int = 6) -> dict[str, bytes]:
    """Every file of the last checkpoint."""
    folder = out / f"checkpoints/step-{step:08d}"
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs without callbacks."""
    return tmp_path_factory.mktemp("plain")


def test_hooks_are_called_in_the_order_of_the_recipe(tmp_path: Path, plain: Path) -> None:
    changes = {"steps": 3, "evaluate_every": 2, "checkpoint_every": 2}
    two = recipe({"use": "diary", "key": "a"}, {"use": "diary", "key": "b"}, **changes)
    train(two, tmp_path)
    first = [
        *("begin 0 0 3 0", "step 1 0 0", "stepped 1 4 True", "step 2 4 0", "stepped 2 8 True", "evaluated 2 8"),
        *("saved 2 8 step-00000002 True", "step 3 8 0", "stepped 3 12 True", "evaluated 3 12"),
        *("saved 3 12 step-00000003 True", "end 3 12 step-00000003"),
    ]
    assert diary(tmp_path) == [f"{key} {line}" for line in first for key in "ab"]
    train(recipe(**changes), plain / "three")
    without = {name: content for name, content in end(tmp_path, 3).items() if not name.startswith("callbacks.")}
    for name in ("trained.safetensors", "optimizer.safetensors", "random.safetensors", "trainer.json"):
        assert without[name] == end(plain / "three", 3)[name], name
    assert without.keys() == end(plain / "three", 3).keys()
    assert b"callbacks" not in end(plain / "three", 3)["recipe.toml"]
    states = json.loads(end(tmp_path, 3)["callbacks.json"])
    assert states.keys() == {"diary", "diary.1"}
    assert states["diary.1"]["seen"] == {"key": ["b"]}


def test_a_killed_and_resumed_run_has_the_same_bytes(tmp_path: Path) -> None:
    """The files of the last checkpoint, the callbacks' state among them."""
    one = recipe({"use": "diary"}, evaluate_every=2, checkpoint_every=2)
    train(one, tmp_path / "whole")

    def die(now: Progress) -> None:
        if now.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(one, tmp_path / "killed", callbacks=Callbacks(step=die))
    train(one, tmp_path / "killed", resume=True)
    assert diary(tmp_path / "killed")[-1] == diary(tmp_path / "whole")[-1]
    assert "a begin 4 16 6 0" in diary(tmp_path / "killed")
    assert end(tmp_path / "killed") == end(tmp_path / "whole")


@pytest.mark.parametrize("hook", ["on_step_begin", "on_step_end"])
def test_a_request_stops_a_run_as_a_signal_does(tmp_path: Path, hook: str) -> None:
    one = recipe({"use": "asks", "what": "stop", "hook": hook}, {"use": "diary"})
    stopped: list[int] = []
    report = magma.run(one, tmp_path, callbacks=RunCallbacks(stopped=stopped.append))
    assert stopped == [signal.SIGTERM]
    assert (report["finished"], report["steps"]) == (False, 3)
    assert (report["stopped_by"], report["stop_reason"]) == ("callback asks", "seen enough")
    assert diary(tmp_path)[-2:] == ["a saved 3 12 step-00000003 True", "a end 3 12 step-00000003"]
    report = magma.run(one, tmp_path, resume=True)
    assert (report["finished"], report["steps"]) == (True, 6)
    assert "stopped_by" not in report


def test_the_program_prints_the_reason_of_a_stop(tmp_path: Path) -> None:
    import tomli_w

    from magma.cli.app import cli

    raw = {**RECIPE, "tasks": [], "callbacks": [{"use": "asks", "what": "stop"}]}
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(raw))
    words = ["recipe", "run", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 128 + signal.SIGTERM
    assert "callback asks stopped the run at step 3 (seen enough). A checkpoint is saved. Resume:" in result.output


def test_a_stop_at_the_last_step_changes_nothing(tmp_path: Path) -> None:
    report = magma.run(recipe({"use": "asks", "what": "stop", "step": 6}), tmp_path)
    assert report["finished"]


def test_an_extra_checkpoint(tmp_path: Path) -> None:
    train(recipe({"use": "asks", "what": "checkpoint"}, {"use": "diary"}), tmp_path)
    assert [path.name[-1] for path in sorted((tmp_path / "checkpoints").iterdir())] == ["3", "6"]
    assert next(line for line in diary(tmp_path) if "saved" in line) == "a saved 3 12 step-00000003 True"


@pytest.mark.parametrize("hook", ["on_train_begin", "on_step_begin", "on_step_end", "on_evaluate", "on_save"])
def test_a_callback_that_raises_is_named(tmp_path: Path, hook: str, plain: Path) -> None:
    """The run is then resumed without it, and ends with the same bytes."""
    step = {"on_train_begin": 0, "on_evaluate": 4, "on_save": 4}.get(hook, 5)
    changes = {"evaluate_every": 2, "checkpoint_every": 2}
    start = "from the start, because there is no checkpoint yet" if hook == "on_train_begin" else r"from .*step-0000000"
    with pytest.raises(
        TrainingError,
        match=rf"^callback asks \(unknown 0\): {hook} failed at step {step}: ZeroDivisionError: the callback divides "
        rf"\(extra_toys.py, line \d+\)\. Correct it or remove it; --resume then continues {start}",
    ) as caught:
        train(recipe({"use": "asks", "what": "error", "hook": hook, "step": step}, **changes), tmp_path)
    assert "Traceback" not in str(caught.value)
    train(recipe(**changes), tmp_path, resume=True)
    if not (plain / "six").is_dir():
        train(recipe(**changes), plain / "six")
    assert end(tmp_path)["trained.safetensors"] == end(plain / "six")["trained.safetensors"]


@pytest.mark.parametrize("kind", ["set", "tuple", "nan", "list", "keys"])
def test_a_state_that_cannot_be_saved_is_found_before_the_first_step(tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        TrainingError, match=r"callback unsaved \(unknown 0\): state_dict failed at step 0: TypeError: "
    ):
        train(recipe({"use": "unsaved", "kind": kind}), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_callbacks_may_change_when_a_run_is_resumed(tmp_path: Path) -> None:
    stop = {"use": "asks", "what": "stop"}
    train(recipe(stop, {"use": "diary"}), tmp_path)
    notes: list[str] = []
    shutil.copytree(tmp_path, tmp_path.with_name("other"))
    train(recipe({"use": "diary", "key": "b"}, stop, {"use": "diary"}), tmp_path, resume=True)
    states = json.loads(end(tmp_path)["callbacks.json"])
    assert states["diary"]["total"] > states["diary.1"]["total"]
    other = tmp_path.with_name("other")
    train(recipe(), other, resume=True, callbacks=Callbacks(note=notes.append))
    assert "callback diary: the recipe has it no longer; its state is not loaded" in notes


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"use": "dairy"}, r'callbacks\.0\.use: given \'dairy\'; no callback is called "dairy"\. Did you mean "diary"'),
        ({"use": "diary", "kez": 1}, r'callbacks\.0\.kez: given 1, an unknown key\. Did you mean "key"'),
    ],
)
def test_mistakes_in_a_recipe(table: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        recipe(table)


def test_a_checkpoint_is_loaded_without_the_plugins_of_its_callbacks(tmp_path: Path) -> None:
    train(Recipe.load({**RECIPE, "tasks": []}, ("train.steps=1",)), tmp_path)
    folder = tmp_path / "checkpoints/step-00000001"
    text = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(f'{text}\n[[callbacks]]\nuse = "absent"\n')
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["recipe.toml"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert magma.load(folder)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Every hook runs in both. A request or an error of the second process is one of both, at every stage of ZeRO."""
    zero = {"deepspeed": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}}
    raw = {**copy.deepcopy(RECIPE), "tasks": [], **zero}
    raw["inputs"]["number"]["batchnorm"] = "frozen"
    jobs = [
        {"out": "diary", "recipe": {**raw, "callbacks": [{"use": "diary"}]}},
        {"out": "stop", "recipe": {**raw, "callbacks": [{"use": "asks", "what": "stop", "rank": 1}]}},
        {"out": "saved", "recipe": {**raw, "callbacks": [{"use": "asks", "what": "checkpoint", "rank": 1}]}},
    ]
    launch(tmp_path, 2, jobs)
    assert diary(tmp_path / "diary") == diary(tmp_path / "diary", 1)
    stopped = json.loads((tmp_path / "stop/result.json").read_text())
    assert (stopped["finished"], stopped["steps"], stopped["stop_request"]) == (False, 3, ["asks", "seen enough"])
    assert [path.name[-1] for path in sorted((tmp_path / "saved/checkpoints").iterdir())] == ["3", "6"]
    error = [{"out": "error", "recipe": {**raw, "callbacks": [{"use": "asks", "what": "error", "rank": 1}]}}]
    (tmp_path / "jobs.json").write_text(json.dumps(error))
    script = Path(__file__).parents[2] / "parity_runs.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode != 0
    assert done.stderr.count("callback asks (unknown 0): on_step_end failed at step 3: ZeroDivisionError") >= 2


def test_nothing_of_a_training_is_left(tmp_path: Path) -> None:
    """Without a cycle of references, the worker processes of a stopped training end with it."""
    gc.collect()
    gc.disable()
    try:
        train(recipe({"use": "asks", "what": "stop"}, workers=1), tmp_path)
        assert multiprocessing.active_children() == []
    finally:
        gc.enable()


def test_tensors_of_a_state_are_kept(tmp_path: Path) -> None:
    train(recipe({"use": "diary"}, steps=2), tmp_path)
    (mean,) = load_file(tmp_path / "checkpoints/step-00000002/state/callbacks.safetensors").values()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()[:2]]
    assert torch.allclose(mean, torch.tensor([0.25 * losses[0] + 0.5 * losses[1]]))
