"""A run that starts from another run's checkpoint, part by part."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys import RECIPE

import magma
from magma import CheckpointError, Recipe
from magma.manifest import origins, read_manifest
from magma.plan import plan
from magma.training.initialize import load_initial_weights
from magma.training.progress import Callbacks
from magma.training.train import train
from magma.verify import verify

pytestmark = pytest.mark.usefixtures("toys")

FREEZE = {
    "encoder": "inputs.number.trainable=false",
    "prefix": "inputs.number.prefix.trainable=false",
    "adapter": "adapters.mlp.trainable=false",
}
ENCODER, PREFIX, ADAPTER = "inputs.number.encoder.", "inputs.number.prefix.", "lm.mlp.adapter."


def recipe(*overrides: str, **changes: Any) -> Recipe:
    return Recipe.load({**copy.deepcopy(RECIPE), **changes}, ("train.steps=2", *overrides))


def after(folder: Path) -> dict[str, torch.Tensor]:
    """A finished run's model, whole."""
    return {name: t.clone() for name, t in magma.load(folder).state_dict().items()}


def changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], prefix: str) -> bool:
    """Whether something of a part differs."""
    return any(not torch.equal(t, other[name]) for name, t in one.items() if name.startswith(prefix))


def test_a_part_that_was_frozen_is_trained_and_the_reverse(tmp_path: Path) -> None:
    """As LLaVA is trained: what the checkpoint has is loaded, whatever is trained now."""
    said: list[str] = []
    fresh = dict(magma.assemble(recipe()).state_dict())
    train(recipe(FREEZE["encoder"], FREEZE["adapter"]), tmp_path / "1")
    one = after(tmp_path / "1")
    assert [changed(fresh, one, part) for part in (ENCODER, PREFIX, ADAPTER)] == [False, True, False]
    init = {"checkpoint": str(tmp_path / "1")}
    train(recipe(FREEZE["prefix"], init=init), tmp_path / "2", callbacks=Callbacks(say=said.append))
    two = after(tmp_path / "2")
    assert [changed(one, two, part) for part in (ENCODER, PREFIX, ADAPTER)] == [True, False, True]
    assert next(line for line in said if line.startswith("starting from")) == (
        f"starting from {magma.checkpoint.find_checkpoint(tmp_path / '1')}: "
        "checkpoint: inputs.number.prefix, adapters.mlp; own weights: lm, inputs.number.encoder"
    )
    # frozen at last: the encoder's weights are those of the second run, not its own
    init = {"checkpoint": str(tmp_path / "2")}
    train(recipe(FREEZE["encoder"], FREEZE["prefix"], init=init), tmp_path / "3")
    three = after(tmp_path / "3")
    assert [changed(two, three, part) for part in (ENCODER, PREFIX, ADAPTER)] == [False, False, True]
    stored = load_file(magma.checkpoint.find_checkpoint(tmp_path / "3") / "trained.safetensors")
    assert all(torch.equal(t, two[name]) for name, t in stored.items() if name.startswith((ENCODER, PREFIX)))
    assert {name for name in stored if name.startswith(ENCODER)} == {name for name in two if name.startswith(ENCODER)}
    assert not [one.unchecked for one in verify(tmp_path / "3") if one.unchecked]


def test_a_frozen_part_with_a_checkpoints_weights_is_saved_and_loaded_again(tmp_path: Path) -> None:
    train(recipe(), tmp_path / "1")
    train(recipe(FREEZE["encoder"], init={"checkpoint": str(tmp_path / "1")}), tmp_path / "2")
    model = magma.load(tmp_path / "2")
    assert model.input_modules()["number"].encoder.frozen
    again = magma.load(magma.save(model, tmp_path / "again"))
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())
    assert Recipe.load(tmp_path / "again/recipe.toml", model_only=True).inputs["number"].trainable is False


def test_a_run_with_a_frozen_part_from_a_checkpoint_resumes_to_the_byte(tmp_path: Path) -> None:
    train(recipe(), tmp_path / "1")
    changes = ("train.steps=4", "train.checkpoint_every=2", FREEZE["encoder"])
    loaded = recipe(*changes, init={"checkpoint": str(tmp_path / "1")})
    train(loaded, tmp_path / "whole")

    def fail(now: Any) -> None:
        if now.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(loaded, tmp_path / "parts", callbacks=Callbacks(step=fail))
    train(loaded, tmp_path / "parts", resume=True)
    ends = [tmp_path / run / "checkpoints/step-00000004/trained.safetensors" for run in ("whole", "parts")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_from_the_checkpoint_again(tmp_path: Path) -> None:
    train(recipe("train.steps=4", "train.lr=2e-2"), tmp_path / "1")
    loaded = recipe(init={"checkpoint": str(tmp_path / "1")})
    train(loaded, tmp_path / "whole")
    train(loaded, tmp_path / "again", resume=True)
    ends = [tmp_path / run / "checkpoints/step-00000002/trained.safetensors" for run in ("whole", "again")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


@pytest.mark.parametrize(("first", "second"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_the_two_runs_may_have_other_precisions(tmp_path: Path, first: str, second: str) -> None:
    train(recipe(FREEZE["encoder"], f"train.precision={first}"), tmp_path / "1")
    init = {"checkpoint": str(tmp_path / "1")}
    assert train(recipe(f"train.precision={second}", init=init), tmp_path / "2").finished
    stored = magma.load(tmp_path / "1").state_dict()[f"{PREFIX}linear.weight"].float()
    begun = torch.float32 if second == "fp32" else torch.bfloat16
    model = magma.assemble(recipe(f"train.precision={second}"), device=None)
    load_initial_weights(model, magma.checkpoint.find_checkpoint(tmp_path / "1"), begun)
    assert torch.equal(model.state_dict()[f"{PREFIX}linear.weight"], stored.to(begun))


def test_own_weights_that_are_not_those_of_the_run_are_refused(tmp_path: Path) -> None:
    train(recipe(FREEZE["encoder"]), tmp_path / "1")
    init = {"checkpoint": str(tmp_path / "1")}
    with pytest.raises(CheckpointError) as raised:
        train(recipe("seed=1", init=init), tmp_path / "2")
    assert str(raised.value) == (
        f"{magma.checkpoint.find_checkpoint(tmp_path / '1')}: parts that were frozen in its run start "
        "from their own weights, and these differ from those of that run:"
        "\n  - lm: 10 of 10 tensors differ"
        "\n  - inputs.number.encoder: 2 of 7 tensors differ"
        "\nUse the same weights, sizes and seed for these parts"
    )
    assert not (tmp_path / "2/checkpoints").exists()


def test_a_part_that_the_checkpoint_lacks_is_new_and_one_that_the_recipe_lacks_is_named(tmp_path: Path) -> None:
    train(recipe(adapters={}), tmp_path / "1")
    said: list[str] = []
    init = {"checkpoint": str(tmp_path / "1")}
    train(recipe(init=init), tmp_path / "2", callbacks=Callbacks(say=said.append))
    assert any(line.endswith("own weights: lm; new: adapters.mlp") for line in said)
    with pytest.raises(CheckpointError, match=r"lm.mlp.adapter.down.bias is not a tensor of this model"):
        train(recipe(init={"checkpoint": str(tmp_path / "2")}, adapters={}), tmp_path / "3")


def test_the_plan_says_where_parts_start(tmp_path: Path) -> None:
    train(recipe(FREEZE["encoder"], adapters={}), tmp_path / "1")
    found = {part.path: part.start for part in plan(recipe(init={"checkpoint": str(tmp_path / "1")})).parts}
    assert found == {
        "lm": "own weights",
        "inputs.number.encoder": "own weights",
        "inputs.number.prefix": "checkpoint",
        "adapters.mlp": "new",
    }
    gone = plan(recipe(init={"checkpoint": str(tmp_path / "gone")}))
    assert {part.start for part in gone.parts} == {"unknown"}
    assert {part.start for part in plan(recipe()).parts} == {None}


def test_a_checkpoint_of_an_earlier_version_starts_a_run(tmp_path: Path) -> None:
    """It lists trained tensors and frozen ones, and no part is in both."""
    train(recipe(FREEZE["encoder"]), tmp_path / "1")
    folder = magma.checkpoint.find_checkpoint(tmp_path / "1")
    raw = json.loads((folder / "manifest.json").read_text())
    assert "stage" not in raw
    assert not raw["trained"].keys() & raw["frozen"].keys()
    manifest = read_manifest(folder)
    assert set(origins({"lm": ["lm.words.weight"]}, manifest).values()) == {"own weights"}


def test_other_frozen_weights_are_refused_by_resume(tmp_path: Path) -> None:
    train(recipe("train.checkpoint_every=1"), tmp_path)
    with pytest.raises(CheckpointError, match=r"10 of 10 frozen tensors differ from those of .*, the first is lm\."):
        train(recipe("seed=1"), tmp_path, resume=True)
