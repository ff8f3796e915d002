"""The examples are short, keep what their parts promise, and do in a training what they say."""

from __future__ import annotations

import copy
import json
import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import install_parts
from torch.nn import functional as F
from toys import RECIPE, ToyAdapter

from magma import Features, LossContext, Recipe, testing
from magma.training.train import train

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry has the toys and the examples."""
    for folder in EXAMPLES.iterdir():
        monkeypatch.syspath_prepend(str(folder))
    install_parts(monkeypatch, "toys", "magma_loss_spike", "magma_contrastive")


def recipe(**changes: Any) -> Recipe:
    raw = {**copy.deepcopy(RECIPE), "tasks": [], **changes}
    raw["train"]["steps"] = 20
    return Recipe.load(raw)


def losses(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][:20]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/magma_*.py")), ids=lambda path: path.stem)
def test_examples_are_short_and_sound(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    for part in import_module(path.stem).magma_parts():
        assert [f"{one.check}: {one.problem}" for one in testing.run_checks(part) if one.problem] == []


def test_a_loss_spike_is_reported_and_stops_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two forward passes give other values: steps 8 and 11."""
    calls, plain = iter(range(1, 10**6)), ToyAdapter.forward

    def forward(self: ToyAdapter, x: torch.Tensor, sublayer: Any) -> torch.Tensor:
        y = plain(self, x, sublayer)
        return 1000 * y if self.training and next(calls) in (8, 11) else y

    monkeypatch.setattr(ToyAdapter, "forward", forward)
    watched = recipe(callbacks=[{"use": "loss_spike", "patience": 2}])
    with caplog.at_level(logging.WARNING, "magma_loss_spike"):
        result = train(watched, tmp_path)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["step 8", "step 11"]
    assert (result.finished, result.steps) == (False, 11)
    assert result.stop_request is not None
    assert result.stop_request.reason.endswith("on average (spikes at steps [8, 11])")
    assert train(watched, tmp_path, resume=True).steps == 20


def test_the_contrastive_loss_is_that_of_open_clip() -> None:
    """Values and gradients, with padding in the embeddings."""
    from open_clip.loss import ClipLoss

    part = sys.modules["magma_contrastive"].ContrastiveLinear.build(6, 4, 8)
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(5, 4, 6, generator=draw)
    words = torch.randn(10, 8, generator=draw)
    lengths = torch.tensor([4, 1, 3, 2, 4])
    sequences = torch.arange(5)
    context = LossContext(
        input="number",
        features={},
        embeddings={"number": part(Features(features, lengths))},
        media_sequences={"number": sequences},
        hidden=words,
        labels=torch.zeros(10, dtype=torch.long),
        target_sequences=sequences.repeat_interleave(2),
        target_embeddings=words,
    )
    found = part.auxiliary_loss(context)["contrast"]
    found.backward()
    gradient = part.projection.weight.grad.clone()
    part.zero_grad()
    embeddings = part(Features(features)).values
    media = torch.stack([embeddings[i, :n].mean(0) for i, n in enumerate(lengths)])
    captions = words.view(5, 2, 8).mean(1)
    expected = ClipLoss()(F.normalize(media, dim=-1), F.normalize(captions, dim=-1), part.log_scale.exp())
    expected.backward()
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(gradient, part.projection.weight.grad, atol=1e-6)


def test_contrastive_training_matches_media_and_captions(tmp_path: Path) -> None:
    tables = copy.deepcopy(RECIPE["inputs"])
    tables["number"]["prefix"] = {"use": "contrastive_linear"}
    train(recipe(inputs=tables), tmp_path)
    found = [row["auxiliary_losses"]["inputs.number.prefix.contrast"] for row in losses(tmp_path)]
    assert found[-1] < 0.7 * found[0]
