"""Recipes with [[stages]]: what a stage may change, what a run of them does, and where it resumes."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from program import magma as program
from toys import RECIPE

import magma
from magma import CheckpointError, Recipe, RecipeError, TrainingError
from magma.manifest import read_manifest
from magma.plan import plan_stages
from magma.recipe.schema import Init
from magma.runs.folder import read_metrics, run_summary, stage_starts
from magma.runs.stages import train_stages
from magma.training.progress import Callbacks
from magma.training.train import train

pytestmark = [
    pytest.mark.usefixtures("toys"),
    pytest.mark.filterwarnings("ignore:.*(all_gather_into|reduce_scatter)_tensor:FutureWarning"),  # ZeRO 3
]

STAGES: list[dict[str, Any]] = [
    {
        "name": "prefix",
        "inputs": {"number": {"trainable": False}},
        "adapters": {"mlp": {"trainable": False}},
        "train": {"steps": 3, "lr": 2e-2},
    },
    {"train": {"samples": 16, "schedule": {"use": "constant"}}, "data": {"train": [{"use": "counting", "length": 5}]}},
]
LABELS = ["stage 1: prefix", "stage 2"]


def recipe(*overrides: str, stages: Any = STAGES, **changes: Any) -> Recipe:
    return Recipe.load({**copy.deepcopy(RECIPE), "stages": copy.deepcopy(stages), **changes}, overrides)


def weights(out: Path) -> bytes:
    return (magma.checkpoint.find_checkpoint(out) / "trained.safetensors").read_bytes()


def untimed(out: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in read_metrics(out)]


# Recipes


def test_a_stage_lays_its_tables_over_the_recipes_own() -> None:
    loaded = recipe("train.warmup_steps=2")
    first, second = loaded.in_stages()
    assert first.train is not None
    assert second.train is not None
    assert (first.train.lr, first.train.steps, first.train.samples, first.train.warmup_steps) == (2e-2, 3, None, 2)
    assert (second.train.lr, second.train.steps, second.train.samples) == (1e-2, None, 16)
    assert (first.inputs["number"].trainable, second.inputs["number"].trainable) == (False, True)
    assert [one.data.train[0].fields["length"] for one in (first, second)] == [8, 5]
    assert not first.stages
    assert recipe(stages=[]).in_stages() == [recipe(stages=False)]


def test_what_show_prints_is_the_same_recipe(tmp_path: Path) -> None:
    loaded = recipe("stages.1.train.lr=0.5", "stages.1.train.steps=7")
    (tmp_path / "shown.toml").write_text(loaded.to_toml())
    again = Recipe.load(tmp_path / "shown.toml")
    assert again == loaded
    assert (again.in_stages()[1].train.lr, again.in_stages()[1].train.steps) == (0.5, 7)  # type: ignore[union-attr]
    assert again.stages[1].data["train"][0]["input"] == "number"  # a default of the part
    assert "stages" not in recipe(stages=[]).to_toml()


def test_a_length_may_be_set_only_in_stages() -> None:
    train_table = {key: value for key, value in RECIPE["train"].items() if key != "steps"}
    stages = recipe(train=train_table).in_stages()
    assert [stage.train.total_steps for stage in stages if stage.train] == [3, 4]
    with pytest.raises(RecipeError, match=r"stages\[1\]\.train: .*give either `samples` or `steps`") as raised:
        recipe(train=train_table, stages=[{"train": {"steps": 1}}, {"train": {"steps": 1, "samples": 3}}])
    assert len(raised.value.problems) == 1


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"train": {"lr": -1}}, r"stages\[1\]\.train\.lr: given -1; allowed: greater than 0"),
        ({"train": {"lrr": 1}}, r'stages\[1\]\.train\.lrr: given 1, an unknown key. Did you mean "lr"'),
        ({"data": {"train": [{"use": "cuonting"}]}}, r'stages\[1\]\.data\.train\.0\.use: .*Did you mean "counting"'),
        (
            {"lm": {"use": "toy"}},
            r"stages\[1\]\.lm: .*an unknown key.* Allowed: name, inputs, adapters, head, data, train",
        ),
        ({"seed": 1}, r"stages\[1\]\.seed: given 1, an unknown key"),
        (
            {"inputs": {"number": {"encoder": {"use": "fingers"}}}},
            r"stages\[1\]\.inputs\.number\.encoder: .*an unknown key.* Allowed: trainable, .*, cache, prefix",
        ),
        ({"adapters": {"mlp": {"width": 8}}}, r"stages\[1\]\.adapters\.mlp\.width: .* Allowed: trainable, lr"),
        ({"inputs": {"scan": {"lr": 1.0}}}, r"stages\[1\]\.inputs\.scan: .*allowed: the recipe's inputs: number"),
        ({"adapters": {"attention": {"lr": 1.0}}}, r"stages\[1\]\.adapters\.attention: .*the recipe's adapters: mlp"),
        ({"head": {"lr": 1.0}}, r"stages\[1\]\.head: given a table, but the recipe has no \[head\]"),
        ({"deepspeed": {"bf16": {}}}, r"stages\[1\]\.deepspeed\.bf16: .*\[train\] sets it"),
        (
            {"train": {"early_stopping": 2, "evaluate_every": 1}, "data": {"evaluation": []}},
            r"stages\[1\]: .*early_stopping needs a \[\[data.evaluation\]\]",
        ),
        ("all", r"stages\[1\]: given 'all'; allowed: a table"),
    ],
)
def test_a_mistake_names_its_stage(stage: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as raised:
        recipe(stages=[{}, stage])
    assert len(raised.value.problems) == 1


def test_a_mistake_of_the_recipe_is_said_once() -> None:
    with pytest.raises(RecipeError) as raised:
        recipe("train.lr=0")
    assert raised.value.problems == ["train.lr: given 0; allowed: greater than 0"]
    with pytest.raises(RecipeError, match=r"stages: given 3; allowed: tables"):
        recipe(stages=3)


def test_missing_data_of_a_stage_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from toys import ToySource

    monkeypatch.setattr(
        ToySource, "problems", classmethod(lambda _, config: ["no such file"] if config.length == 5 else [])
    )
    assert recipe().problems() == ["stages[1].data.train.0: no such file"]


# Runs


def test_stages_are_a_chain_of_runs_that_start_from_the_one_before(tmp_path: Path) -> None:
    result = train_stages(recipe(), tmp_path / "staged")
    first, second = recipe().in_stages()
    train(first, tmp_path / "1")
    train(second.model_copy(update={"init": Init(checkpoint=str(tmp_path / "1"))}), tmp_path / "2")
    assert weights(tmp_path / "staged") == weights(tmp_path / "2")
    assert (result.steps, result.finished, result.changed, result.folder.name) == (7, True, [], "step-00000007")
    rows = read_metrics(tmp_path / "staged")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses == [row["loss"] for run in "12" for row in read_metrics(tmp_path / run) if "loss" in row]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6, 7]
    assert stage_starts(rows) == {LABELS[0]: 1, LABELS[1]: 4}
    assert [set(rows[0]["lr"]), len(rows[-2]["lr"])] == [{"inputs.number.prefix"}, 3]
    # each stage's last checkpoint stays
    folders = sorted((tmp_path / "staged/checkpoints").iterdir())
    assert [(folder.name[-1], read_manifest(folder).stage) for folder in folders] == [("3", 0), ("7", 1)]
    assert all(magma.load(folder).generate([2, "is"], max_tokens=1) is not None for folder in folders)
    assert magma.load(folders[0]).input_modules()["number"].encoder.frozen
    assert not magma.load(folders[1]).input_modules()["number"].encoder.frozen


@pytest.mark.parametrize("at", [2, 3, 5])
def test_a_run_of_stages_resumes_where_it_was(tmp_path: Path, at: int) -> None:
    """In the first stage, behind its last step, and in the second one."""
    changes = ("train.checkpoint_every=2", "train.keep_checkpoints=1")
    loaded = recipe(*changes)
    train_stages(loaded, tmp_path / "whole")

    def fail(now: Any) -> None:
        if now.step == at + 1:
            raise KeyboardInterrupt  # as sudden as a kill

    with pytest.raises(KeyboardInterrupt):
        train_stages(loaded, tmp_path / "parts", callbacks=Callbacks(step=fail))
    train_stages(loaded, tmp_path / "parts", resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert untimed(tmp_path / "parts") == untimed(tmp_path / "whole")
    names = [sorted(p.name for p in (tmp_path / run / "checkpoints").iterdir()) for run in ("whole", "parts")]
    assert names[0] == names[1] == ["step-00000003", "step-00000007"]


@pytest.mark.parametrize("at", [2, 3, 5])
def test_a_signal_in_any_stage_is_an_end_to_resume_from(tmp_path: Path, at: int) -> None:
    def stop(now: Any) -> None:
        if now.step == at:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = train_stages(recipe(), tmp_path, callbacks=Callbacks(step=stop))
    assert (stopped.finished, stopped.steps) == (False, at)
    told: list[Any] = []
    result = train_stages(recipe(), tmp_path, resume=True, callbacks=Callbacks(step=told.append))
    assert (result.finished, result.steps) == (True, 7)
    assert [(now.step, now.steps) for now in told] == [(step, 7) for step in range(at + 1, 8)]


def test_a_part_that_a_stage_freezes_keeps_what_it_has_learnt(tmp_path: Path) -> None:
    stages = [{}, {"inputs": {"number": {"trainable": False, "prefix": {"trainable": False}}}}]
    train_stages(recipe(stages=stages, train={**RECIPE["train"], "steps": 2}), tmp_path)
    folders = sorted((tmp_path / "checkpoints").iterdir())
    first, second = (magma.load(folder).state_dict() for folder in folders)
    fresh = magma.assemble(RECIPE).state_dict()
    for name, tensor in first.items():
        if name.startswith("inputs.number."):
            assert torch.equal(tensor, second[name]), name
    assert not torch.equal(first["inputs.number.encoder.linear.weight"], fresh["inputs.number.encoder.linear.weight"])


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_stages_under_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    models: list[magma.Magma] = []

    def assemble(*args: Any, **how: Any) -> magma.Magma:
        models.append(magma.assemble(*args, **how))
        return models[-1]

    train_stages(recipe(), tmp_path / "plain")
    monkeypatch.setattr("magma.training.train.assemble", assemble)
    train_stages(recipe(deepspeed={"zero_optimization": {"stage": stage}}), tmp_path / "zero")
    found = [[row["loss"] for row in read_metrics(tmp_path / run) if "loss" in row] for run in ("plain", "zero")]
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    # two models do not fit where one does: the first stage's has been freed
    held = [sum(t.untyped_storage().nbytes() for t in [*m.parameters(), *m.buffers()]) for m in models]
    assert held[0] == 0 < held[1]


def test_early_stopping_ends_a_stage_with_its_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [3.0, 1.0, 2.0, 1.5, 0.5, 0.4]
    left = iter(values)
    monkeypatch.setattr("magma.training.trainer.Trainer.evaluate_loss", lambda _: next(left))
    early = {"train": {"steps": 20, "evaluate_every": 2, "early_stopping": 2}}
    loaded = recipe(stages=[early, {"train": {"steps": 4, "evaluate_every": 2}}])
    said: list[str] = []
    result = train_stages(loaded, tmp_path, callbacks=Callbacks(say=said.append))
    assert (result.steps, result.finished) == (12, True)
    assert stage_starts(read_metrics(tmp_path)) == {"stage 1": 1, "stage 2": 9}
    assert any(line.startswith(f"starting from {tmp_path}/checkpoints/step-00000004: ") for line in said)


def test_a_finished_stage_cannot_be_changed(tmp_path: Path) -> None:
    def stop(now: Any) -> None:
        if now.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    train_stages(recipe(), tmp_path, callbacks=Callbacks(step=stop))
    with pytest.raises(CheckpointError) as raised:
        train_stages(recipe("stages.0.train.lr=0.5"), tmp_path, resume=True)
    assert str(raised.value) == (
        f"{tmp_path}/checkpoints/step-00000005: stage 1: prefix has ended, and this recipe changes it:"
        "\n  - stages[0]: train.lr: it was 0.02 and is now 0.5"
        "\nResume with the stage as it was, or start another run with --out"
    )
    with pytest.raises(CheckpointError, match=r"step-00000005 is of stage 2, and this recipe has no \[\[stages\]\]"):
        train_stages(recipe(stages=[]), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"adapters\.mlp was trained until now, and is frozen in this recipe"):
        train_stages(recipe("stages.1.adapters.mlp.trainable=false"), tmp_path, resume=True)
    # what decides no weight may change, and so may the stage that runs
    allowed = ("stages.0.train.micro_batch_size=2", "stages.1.train.lr=0.5", "train.workers=0")
    assert train_stages(recipe(*allowed), tmp_path, resume=True).steps == 7


def test_what_cannot_be_trained_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    nothing = {
        "inputs": {"number": {"trainable": False, "prefix": {"trainable": False}}},
        "adapters": {"mlp": {"trainable": False}},
    }
    with pytest.raises(TrainingError, match=r"stages\[1\]: nothing to train"):
        train_stages(recipe(stages=[{}, nothing]), tmp_path)
    with pytest.raises(TrainingError, match=r"stages\[0\]: .*no \[\[data.train\]\]"):
        train_stages(recipe(stages=[{"data": {"train": []}}, {}]), tmp_path)
    assert not list(tmp_path.iterdir())


# What a person sees


def test_the_plan_has_every_stage() -> None:
    first, second = plan_stages(recipe())
    assert [first.stage, second.stage] == LABELS
    assert {part.path for part in first.parts if part.trained} == {"inputs.number.prefix"}
    assert {part.start for part in first.parts} == {None}
    assert {part.path: part.start for part in second.parts} == {
        "lm": "own weights",
        "inputs.number.encoder": "own weights",
        "inputs.number.prefix": LABELS[0],
        "adapters.mlp": LABELS[0],
    }
    assert [one.length.steps for one in (first, second) if one.length] == [3, 4]
    with pytest.raises(TrainingError, match=r"stages\[1\]: train.micro_batch_size: given 3; .*evenly: 1, 2, 4"):
        plan_stages(recipe("stages.1.train.micro_batch_size=3"))


def test_the_commands_and_the_curves(tmp_path: Path) -> None:
    (tmp_path / "staged.toml").write_text(recipe().to_toml())
    done = program("recipe", "plan", tmp_path / "staged.toml")
    assert done.stdout.count("adapters.mlp") == 2
    assert [line for line in done.stdout.splitlines() if line in LABELS] == LABELS
    told = json.loads(program("recipe", "plan", tmp_path / "staged.toml", "--json").stdout)
    assert [one["steps"] for one in told["stages"]] == [3, 4]
    report = magma.run(recipe(), tmp_path / "run")
    assert (report["finished"], report["steps"], "tasks" in report) == (True, 7, True)
    found = run_summary(tmp_path / "run")
    assert (found["steps"], found["stage"]) == ("7 of 7", "stage 2")
    assert (tmp_path / "run/loss.png").is_file()
