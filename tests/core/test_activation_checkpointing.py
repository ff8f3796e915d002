"""What is recomputed or compiled gives the same losses, gradients and averages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import magma
from magma import Example, Magma, Media, PartError, Text
from magma.activation_checkpointing import Which, checkpoint_activations, lm_blocks
from magma.plan import plan
from magma.training.train import train

RECIPE: dict[str, Any] = {
    "name": "small",
    "lm": {"use": "gptj", "weights": "bundled:tiny"},
    "inputs": {
        "image": {
            "encoder": {"use": "clip", "layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
            "prefix": {"use": "linear", "dropout": 0.1, "layernorm": True},
        }
    },
    "adapters": {"attention": {"use": "sequential", "downsample": 8}, "mlp": {"use": "sequential", "downsample": 8}},
    "data": {"train": [{"use": "digits"}]},
    "train": {"steps": 1, "batch_size": 4, "lr": 1e-3, "precision": "fp32"},
}


COMPILED = (
    *("lm.weights=false", "lm.tokenizer=bundled:tiny", "lm.layers=2", "lm.dim=64", "lm.heads=4", "lm.rotary_dim=8"),
    *("lm.context=128", "lm.vocab=768", "lm.eos=0"),
)
"""Two blocks, which are compiled one by one: the last one is asked for fewer positions than the others."""


def examples() -> list[Example]:
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    return [Example([Media("image", image / (1 + i)), Text(f"A picture of {i}", target=True)]) for i in range(3)]


def stepped(model: Magma) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a training batch, and after it every gradient and every buffer that training changes."""
    torch.manual_seed(0)  # dropout
    loss = model.train().loss(model.collator().batch(examples()))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    buffers = {name: t for name, t in model.trained_tensors().items() if name not in gradients}
    assert len(gradients) > 20
    assert len(buffers) > 10
    return loss.detach(), {**gradients, **buffers}


@pytest.mark.parametrize("which", ["encoder", "lm", "all"])
def test_recomputing_changes_no_number(which: Which) -> None:
    plain, recomputed = magma.assemble(RECIPE), magma.assemble(RECIPE)
    assert len(checkpoint_activations(recomputed, which)) == {"encoder": 1, "lm": 4, "all": 5}[which]
    losses, found = zip(*(stepped(model) for model in (plain, recomputed)), strict=True)
    assert torch.equal(*losses)
    for name, tensor in found[0].items():
        assert torch.allclose(tensor, found[1][name], rtol=1e-6, atol=1e-7), name
        assert tensor.is_floating_point() or torch.equal(tensor, found[1][name]), name  # batches that BatchNorm saw
    assert plain.state_dict().keys() == recomputed.state_dict().keys()
    assert plain.eval().generate(["A"]) == recomputed.eval().generate(["A"])


def test_a_plan_knows_what_recomputing_saves_and_costs() -> None:
    plans = {
        which: plan(magma.Recipe.load(RECIPE, (f"train.activation_checkpointing='{which}'",)))
        for which in ("none", "encoder", "lm", "all")
    }
    kept = {which: one.activation_bytes_per_sample or 0 for which, one in plans.items()}
    work = {which: one.flops_per_sample or 0 for which, one in plans.items()}
    assert kept["all"] < min(kept["encoder"], kept["lm"]) <= max(kept["encoder"], kept["lm"]) < kept["none"]
    assert work["none"] < min(work["encoder"], work["lm"]) <= max(work["encoder"], work["lm"]) < work["all"]
    assert kept["all"] > 0


@pytest.mark.filterwarnings("ignore")  # dynamo looks at what it should not
@pytest.mark.slow
def test_compiled_blocks_give_the_same() -> None:
    """The backend is torch's for debugging: what is traced is what inductor gets, without its minutes."""
    plain, compiled = (magma.assemble(RECIPE, COMPILED) for _ in range(2))
    for block in lm_blocks(compiled, "train.compile"):
        block.compile(dynamic=True, backend="aot_eager")
    losses, found = zip(*(stepped(model) for model in (plain, compiled)), strict=True)
    assert torch.allclose(*losses, rtol=1e-6)
    assert all(torch.allclose(t, found[1][n], rtol=1e-4, atol=1e-5) for n, t in found[0].items())
    assert plain.state_dict().keys() == compiled.state_dict().keys()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor wants a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_a_run_with_compiled_blocks_has_the_same_losses(tmp_path: Path) -> None:
    from torch._inductor import config

    losses = []
    for compiled in ("false", "true"):
        recipe = magma.Recipe.load(RECIPE, (*COMPILED, "train.steps=3", f"train.compile={compiled}"))
        with config.patch({"cpp.simdlen": 1, "compile_threads": 1}):  # vectorization is torch's own
            train(recipe, tmp_path / compiled)
        rows = [json.loads(line) for line in (tmp_path / compiled / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.usefixtures("toys")
def test_a_language_model_that_names_no_blocks_is_refused() -> None:
    from toys import RECIPE as TOYS

    with pytest.raises(PartError, match=r'train\.compile: the language model "toy" does not name its blocks'):
        lm_blocks(magma.assemble(TOYS), "train.compile")
