"""Auxiliary losses: their values, weights and normalisation, at every stage of ZeRO and in several processes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import install_parts
from parity_runs import install_toys, train_all
from parity_runs import recipe as parity_recipe
from test_parity import far, launch
from toys import RECIPE, ToySource

import magma
from magma import PartError, Recipe, RecipeError
from magma.auxiliary import Losses
from magma.data.mixture import Mixture
from magma.training.train import train

pytestmark = [
    pytest.mark.usefixtures("extra_toys"),
    pytest.mark.filterwarnings("ignore:.*(all_gather_into|reduce_scatter)_tensor:FutureWarning"),  # DeepSpeed 0.19.8
]
DISTANCE, SIZE = "inputs.number.prefix.distance", "adapters.mlp.size"


def recipe(overrides: tuple[str, ...] = (), **changes: Any) -> Recipe:
    """Two parts with a loss each. The encoder is frozen, so that BatchNorm does not see the micro-batches."""
    raw = {**copy.deepcopy(RECIPE), "adapters": {"mlp": {"use": "quiet"}}, "tasks": [], **changes}
    raw["inputs"]["number"] |= {"prefix": {"use": "near"}, "trainable": False}
    return Recipe.load(raw, ("train.schedule={ use = 'constant' }", *overrides))


def rows(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if "loss" in row]


def values(out: Path, name: str) -> list[float]:
    return [row["auxiliary_losses"][name] for row in rows(out)]


def test_the_sum_of_all_losses_is_trained(tmp_path: Path) -> None:
    """The same weights as a plain loop; a mean over media does not depend on the micro-batches."""
    weights = ("train.steps=3", "train.loss_weights.distance=0.5", "adapters.mlp.trainable=false")
    train(recipe(weights), tmp_path / "whole")
    train(recipe((*weights, "train.micro_batch_size=1")), tmp_path / "split")
    model = magma.assemble(recipe(weights)).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    mixture = Mixture([ToySource(ToySource.Config(), 0)], [1.0])
    expected = []
    for _ in range(3):
        batch = model.collator().batch(mixture.take(4))
        losses = model(batch, auxiliary=True)
        assert isinstance(losses, Losses)
        assert losses.auxiliary.keys() == {DISTANCE}  # a frozen part has none
        assert torch.equal(losses.lm, model(batch))
        expected.append(float(losses.auxiliary[DISTANCE].detach()))
        optimizer.zero_grad()
        (losses.lm / len(batch.labels) + 0.5 * losses.auxiliary[DISTANCE]).backward()
        optimizer.step()
    assert expected[-1] < expected[0]
    for run in ("whole", "split"):
        assert values(tmp_path / run, DISTANCE) == pytest.approx(expected, rel=1e-4)
        trained = magma.load(tmp_path / run).trained_tensors()
        for name, tensor in model.trained_tensors().items():
            assert torch.allclose(tensor, trained[name], atol=1e-5), name


def test_weights(tmp_path: Path) -> None:
    """The default is 1. With weight 0 the loss is only logged: the weights are those of a run without the loss."""
    changes = ("train.steps=3", "inputs.number.prefix.trainable=false")
    train(recipe((*changes, "train.loss_weights.size=1")), tmp_path / "one")
    train(recipe(changes), tmp_path / "default")
    train(recipe((*changes, "train.loss_weights.size=0")), tmp_path / "zero")
    train(recipe((*changes, "adapters.mlp.use=add")), tmp_path / "none")
    losses = {run: [row["loss"] for row in rows(tmp_path / run)] for run in ("one", "default", "zero", "none")}
    assert losses["one"] == losses["default"] != losses["zero"] == losses["none"]
    assert values(tmp_path / "zero", SIZE)[0] == values(tmp_path / "one", SIZE)[0]
    assert all("auxiliary_losses" not in row for row in rows(tmp_path / "none"))


def test_a_part_inside_another_part_has_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_parts(monkeypatch, "toys", "extra_toys", "nested_toys")
    prefix = "inputs.number.prefix={ use = 'scaled', inner = { use = 'near' } }"
    train(recipe((prefix, "train.steps=3", "train.loss_weights.distance=0.5")), tmp_path)
    assert len(values(tmp_path, "inputs.number.prefix.inner.distance")) == 3


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("distanse=1", r'distanse: given 1 for an unknown loss\. Did you mean "distance"\? Allowed: distance, size'),
        ("distance=-1", r"distance: given -1; allowed: greater than or equal to 0"),
        ("distance=nan", r"distance: given nan; allowed: a finite number"),
    ],
)
def test_bad_weights_are_found_in_the_recipe(override: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=rf"train\.loss_weights\.{problem}"):
        recipe((f"train.loss_weights.{override}",))


def test_weights_without_a_loss_are_refused() -> None:
    with pytest.raises(RecipeError, match="Allowed: none, no part of the recipe has an auxiliary loss"):
        Recipe.load(RECIPE, ("train.loss_weights.distance=1",))


@pytest.mark.parametrize(
    ("fault", "given"),
    [
        ("list", "gave list; allowed: the names in `auxiliary_losses`: one, two"),
        ("missing", "gave one; allowed: the names in `auxiliary_losses`: one, two"),
        ("vector", r"gave a tensor \[16\] for two; allowed: a scalar tensor"),
        ("number", "gave a float for two; allowed: a scalar tensor"),
    ],
)
def test_what_a_part_may_return(fault: str, given: str) -> None:
    model = magma.assemble(recipe(("inputs.number.prefix.use=wrong", f"inputs.number.prefix.fault={fault}")))
    batch = model.collator().batch(Mixture([ToySource(ToySource.Config(), 0)], [1.0]).take(2))
    with pytest.raises(PartError, match=rf"^inputs\.number\.prefix \(wrong\): `auxiliary_loss` {given}"):
        model(batch, auxiliary=True)


def test_a_head_has_losses_and_no_captions(tmp_path: Path) -> None:
    data = {"train": [{"use": "counting", "labelled": True}]}
    head = {"use": "small_weights", "classes": ["even", "odd"]}
    changes = ("inputs.number.prefix.use=plain", "train.steps=2")
    train(recipe(changes, head=head, data=data), tmp_path)
    assert rows(tmp_path)[1]["auxiliary_losses"].keys() == {SIZE, "head.norm"}
    with pytest.raises(PartError, match="given a model with a head; allowed: targets that are tokens"):
        train(recipe(("train.steps=2",), head=head, data=data), tmp_path / "near")


def test_captions_are_those_of_the_mediums_sequence() -> None:
    """Packed rows give the same captions as rows of their own; an absent input has one dummy item."""
    model = magma.assemble(recipe()).eval()
    collator, seen = model.collator(), []
    plain = type(model.input_modules()["number"].prefix).auxiliary_loss
    examples = Mixture([ToySource(ToySource.Config(), 0)], [1.0]).take(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(model.input_modules()["number"].prefix),
            "auxiliary_loss",
            lambda self, context: (seen.append(context), plain(self, context))[1],
        )
        encoded = [collator.encode_example(example) for example in examples]
        batches = [collator.pad(encoded), collator.pack(encoded, 40)]
        losses = [model(batch, auxiliary=True).auxiliary for batch in batches]
        text = [magma.Example([magma.Text("is"), magma.Text(" one", target=True)])]
        with torch.enable_grad():
            model(collator.batch(text), auxiliary=True)
    whole, packed, absent = seen
    ids = [[*model.lm.encode(f" {word}"), model.lm.eos] for word in ("zero", "one", "two", "three")]
    expected = torch.stack([model.lm.embed(torch.tensor([one]))[0].mean(0) for one in ids])
    assert torch.allclose(whole.caption_embeddings(), expected, atol=1e-6)
    assert len(batches[1].tokens) < 4
    order = [name.rpartition(" ")[2] for name in batches[1].names]
    assert torch.allclose(packed.caption_embeddings(), expected[[int(i) for i in order]], atol=1e-6)
    assert torch.allclose(losses[0][DISTANCE], losses[1][DISTANCE], atol=1e-5)
    assert absent.features["number"].values.shape[0] == len(absent.media_sequences["number"]) == 1


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_a_dummy_item_changes_neither_buffers_nor_modes(mode: str) -> None:
    tables = {"number": {"encoder": {"use": "spread"}, "prefix": {"use": "plain"}, "batchnorm": mode}}
    model = magma.assemble({**RECIPE, "inputs": tables}).train()
    before = [module.training for module in model.modules()]
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    text = magma.Example([magma.Text("is"), magma.Text(" one", target=True)])
    model(model.collator().batch([text]), auxiliary=True)
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.named_buffers())
    with torch.no_grad():
        assert model(model.collator().batch([text]), auxiliary=True).auxiliary == {}


def test_an_encoder_whose_activations_are_recomputed(tmp_path: Path) -> None:
    """Its own forward pass is restored after each call of `auxiliary_loss`."""
    tables = {"number": {"encoder": {"use": "spread"}, "prefix": {"use": "near"}}}
    for which in ("none", "encoder"):
        changes = ("train.steps=3", f"train.activation_checkpointing={which}")
        train(Recipe.load({**RECIPE, "inputs": tables, "tasks": []}, changes), tmp_path / which)
    assert rows(tmp_path / "none")[2]["auxiliary_losses"].keys() == {"inputs.number.encoder.variance", DISTANCE}
    for one, other in zip(rows(tmp_path / "none"), rows(tmp_path / "encoder"), strict=True):
        assert one["auxiliary_losses"] == pytest.approx(other["auxiliary_losses"], rel=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_zero_stage_gives_the_same_losses(tmp_path: Path, stage: int) -> None:
    changes = ("train.steps=3", "train.micro_batch_size=2")
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    train(recipe(changes), tmp_path / "plain")
    train(recipe(changes, deepspeed={"zero_optimization": zero}), tmp_path / "zero")
    for name in (DISTANCE, SIZE):
        assert values(tmp_path / "zero", name) == pytest.approx(values(tmp_path / "plain", name), rel=1e-4)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes have media of different inputs at a time. Half precision and recomputed activations, too."""

    def job(stage: int, **changes: Any) -> dict[str, Any]:
        found = parity_recipe(stage, **changes)
        for table in found["inputs"].values():
            table["prefix"] = {"use": "near"}
        found["adapters"]["mlp"] = {"use": "quiet"}
        return found

    one = [{"out": "one", "recipe": job(0)}]
    two = [{"out": f"stage{stage}", "recipe": job(stage)} for stage in (2, 3)]
    two += [{"out": "fast3", "recipe": job(3, activation_checkpointing="all")}]
    two += [{"out": "half3", "recipe": job(3, precision="bf16")}]
    install_toys(monkeypatch.setattr)
    train_all(tmp_path, one)
    launch(tmp_path, 2, two)
    losses = {run["out"]: [row["loss"] for row in rows(tmp_path / run["out"])] for run in (*one, *two)}
    assert rows(tmp_path / "one")[0]["auxiliary_losses"].keys() >= {"inputs.seen.prefix.distance", SIZE}
    for name, found in losses.items():
        assert far(found, losses["one"]) < (0.02 if name.startswith("half") else 1e-4), name
        for row, expected in zip(rows(tmp_path / name), rows(tmp_path / "one"), strict=True):
            exact = 0.05 if name.startswith("half") else 1e-3
            assert row["auxiliary_losses"] == pytest.approx(expected["auxiliary_losses"], rel=exact), name
