"""What of its learning rates a run will not reach, and values that no optimizer can use."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
from program import magma as program
from toys import RECIPE

from magma import Recipe, RecipeError
from magma.schedule import lr_multiplier, schedule_warnings

pytestmark = pytest.mark.usefixtures("toys")


def recipe(*overrides: str) -> Recipe:
    return Recipe.load(copy.deepcopy(RECIPE), overrides)


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            ("train.steps=60", "train.warmup_steps=100"),
            "train.warmup_steps: given 100, but training has 60 steps: it ends in the warm-up, at 60% of the learning "
            "rate",
        ),
        (
            ("train.steps=60", "train.warmup_steps=60"),
            "train.schedule: given a last learning rate of 10% of the highest, but the warm-up fills 60 of the 60 "
            "steps: training ends at 100%",
        ),
        (
            ("train.steps=60", "train.warmup_steps=59", "train.schedule={use='linear'}"),
            "train.schedule: given a last learning rate of 0% of the highest, but the warm-up fills 59 of the 60 "
            "steps: training ends at 100%",
        ),
        (("train.steps=60", "train.warmup_steps=58"), None),
        (("train.steps=60", "train.warmup_steps=60", "train.schedule={use='constant'}"), None),
        (("train.steps=1",), None),
    ],
)
def test_a_run_that_is_too_short_is_reported(changes: tuple[str, ...], warning: str | None) -> None:
    assert schedule_warnings(recipe(*changes)) == ([warning] if warning else [])


def test_the_reported_share_is_the_one_of_the_last_step() -> None:
    train = recipe("train.steps=60", "train.warmup_steps=100").train
    assert train is not None
    assert max(lr_multiplier(train, step) for step in range(60)) == lr_multiplier(train, 59) == 0.6


def test_show_and_plan_report_it(tmp_path: Path) -> None:
    stages = "stages=[{ train = { steps = 2 } }, {}]"
    (tmp_path / "short.toml").write_text(recipe("train.warmup_steps=3", stages).to_toml())
    shown = program("recipe", "show", tmp_path / "short.toml")
    line = "train.warmup_steps: given 3, but training has 2 steps"
    assert f"warning: stages[0].{line}" in shown.stderr
    assert Recipe.load(tmp_path / "short.toml").name == "toy"
    assert "warning" not in shown.stdout  # a recipe for other programs
    planned = program("recipe", "plan", tmp_path / "short.toml")
    assert planned.stdout.count(f"warning: {line}") == 1
    assert "warning" not in program("recipe", "show", tmp_path / "short.toml", "--set", "train.warmup_steps=0").stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.lr=inf", "train.lr: given inf; allowed: a finite number"),
        ("train.lr=nan", "train.lr: given nan; allowed: a finite number"),
        ("inputs.number.lr=inf", "inputs.number.lr: given inf; allowed: a finite number"),
        ("inputs.number.prefix.lr=inf", "inputs.number.prefix.lr: given inf; allowed: a number above 0, and finite"),
        ("adapters.mlp.lr=nan", "adapters.mlp.lr: given nan; allowed: a number above 0, and finite"),
        ("data.train.0.weight=nan", "data.train.0.weight: given nan; allowed: a number above 0, and finite"),
        ("train.optimizer.betas=[0.9, 1.0]", "train.optimizer.betas.1: given 1.0; allowed: less than 1"),
        (
            "train.optimizer.betas=[-0.1, 0.9]",
            "train.optimizer.betas.0: given -0.1; allowed: greater than or equal to 0",
        ),
        ("train.optimizer.eps=inf", "train.optimizer.eps: given inf; allowed: a finite number"),
        ("train.optimizer.weight_decay=nan", "train.optimizer.weight_decay: given nan; allowed: a finite number"),
        ("train.gradient_clipping=inf", "train.gradient_clipping: given inf; allowed: a finite number"),
        ("train.spike_factor=inf", "train.spike_factor: given inf; allowed: a finite number"),
        ("adapters.mlp.trainable=1", "adapters.mlp.trainable: given 1; allowed: true, false"),
    ],
)
def test_numbers_that_no_optimizer_can_use_are_refused(change: str, message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        recipe(change)
    assert raised.value.problems == [message]
    assert math.isfinite(recipe().train.lr)  # type: ignore[union-attr]
