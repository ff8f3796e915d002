"""LoRA, DoRA and (IA)^3 in training: every stage of ZeRO, resuming, and half precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_runs import STEPS, install_toys
from safetensors.torch import load_file
from test_parity import launch
from torch import Tensor

import magma
from magma import Recipe
from magma.manifest import TRAINED, find_checkpoint
from magma.training.train import train

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(all_gather_into|reduce_scatter)_tensor:FutureWarning"
)  # DeepSpeed 0.19.8 (ZeRO 3)
SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 768}
GPT2 = {"model_type": "gpt2", **SIZES, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}


def recipe(stage: int, **changes: Any) -> dict[str, Any]:
    """DoRA, LoRA and (IA)^3 in a GPT-2, whose weights are transposed; some layers have two adapters."""
    way = {"encoder": {"use": "fingers"}, "prefix": {"use": "linear"}, "batchnorm": "frozen"}
    return {
        "name": "low_rank",
        "lm": {"use": "causal", "architecture": GPT2, "tokenizer": "bundled:tiny"},
        "inputs": {"number": way},
        "adapters": {
            "dora": {"use": "lora", "at": "linears", "rank": 4, "dora": True},
            "lora": {"use": "lora", "at": "attn.*", "rank": 2, "blocks": [1], "lr": 5e-3},
            "ia3": {"use": "ia3", "at": "mlp.c_proj", "scales": "input"},
        },
        "data": {"train": [{"use": "counting"}]},
        "train": {
            "steps": STEPS,
            "batch_size": 4,
            "lr": 1e-2,
            "precision": "fp32",
            "schedule": {"use": "constant"},
            **changes,
        },
        # a threshold of 0: also what is small is partitioned
        "deepspeed": {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}},
    }


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install_toys(monkeypatch.setattr)


def tensors(out: Path) -> dict[str, Tensor]:
    return load_file(find_checkpoint(out) / TRAINED)


def test_stage_3_gives_the_losses_of_stage_0(tmp_path: Path) -> None:
    train(Recipe.load(recipe(0)), tmp_path / "plain")
    train(Recipe.load(recipe(3)), tmp_path / "stage3")
    found = losses(tmp_path / "plain")
    assert found[-1] < 0.95 * found[0]
    assert losses(tmp_path / "stage3") == pytest.approx(found, rel=1e-5)
    stored = {name: tensor.shape for name, tensor in tensors(tmp_path / "stage3").items()}
    assert stored == {name: tensor.shape for name, tensor in magma.load(tmp_path / "stage3").stored_tensors().items()}


@pytest.mark.slow
def test_two_processes_give_the_same_losses_at_every_stage_and_resume_with_the_same_bits(tmp_path: Path) -> None:
    train(Recipe.load(recipe(0)), tmp_path / "one")
    jobs: list[dict[str, Any]] = [{"out": f"stage{stage}", "recipe": recipe(stage)} for stage in (1, 2, 3)]
    jobs += [
        {"out": "half", "recipe": recipe(3), "stop": True},
        {"out": "resumed", "recipe": recipe(3), "copy": "half"},
    ]
    jobs += [{"out": "bf16", "recipe": recipe(3, precision="bf16")}]
    launch(tmp_path, 2, jobs)
    expected = losses(tmp_path / "one")
    for stage in (1, 2, 3):
        assert losses(tmp_path / f"stage{stage}") == pytest.approx(expected, rel=1e-4), stage
    assert losses(tmp_path / "resumed") == losses(tmp_path / "stage3")
    one, two = tensors(tmp_path / "resumed"), tensors(tmp_path / "stage3")
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert losses(tmp_path / "bf16") == pytest.approx(expected, rel=0.05)
