"""Weights of hundreds of millions of parameters: read shard by shard, in their own precision, little beside them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from magma_vision.clip import Clip
from safetensors.torch import save_file

MEASURE = """
import json, resource, sys
import open_clip, torch, transformers
from transformers import GPTJForCausalLM
import magma
from magma_lms.gptj import GPTJ
from magma_vision.clip import Clip
half = torch.zeros(64, 64, dtype=torch.bfloat16)
half @ half  # torch's own first-use memory
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
{build}
tensors = [*model.parameters(), *model.buffers()]
touched = sum(float(t.double().sum()) if t.numel() < 1 << 20 else float(t.sum()) for t in tensors)
print(json.dumps({{
    "peak": peak() - before,
    "bytes": sum(t.numel() * t.element_size() for t in tensors),
    "parameters": sum(p.numel() for p in model.parameters()),
    "types": sorted({{str(p.dtype) for p in model.parameters()}}),
}}))
"""


def measured(build: str) -> dict[str, Any]:
    """In a process of its own, every weight read once."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(build=build)], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-J of 319 M parameters in half precision, in shards of 100 MB."""
    from transformers import AutoModelForCausalLM, GPTJConfig

    config = GPTJConfig(
        vocab_size=8192,
        n_positions=128,
        n_embd=1024,
        n_layer=24,
        n_head=16,
        rotary_dim=32,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("full_size") / "lm"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="100MB")
    assert len(list(folder.glob("*.safetensors"))) > 4
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_language_model_is_read_shard_by_shard(lm: Path, dtype: str) -> None:
    recipe = {"name": "big", "lm": {"use": "gptj", "weights": str(lm)}}
    found = measured(f"model = magma.assemble({recipe!r}, dtype=torch.{dtype})")
    assert found["parameters"] > 300e6
    assert found["types"] == [f"torch.{dtype}"]
    assert found["bytes"] == pytest.approx(found["parameters"] * (4 if dtype == "float32" else 2), rel=0.01)
    assert found["peak"] < 1.3 * found["bytes"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_encoder_is_read_in_its_own_precision(suffix: str, tmp_path: Path) -> None:
    """RN50x16, the paper's, at its full size."""
    with torch.device("meta"):
        empty = Clip(Clip.Config(model="RN50x16"))
    state = {n: torch.full(t.shape, 0.01).to(_half(t.dtype)) for n, t in empty.network.state_dict().items()}
    file = tmp_path / f"tower{suffix}"
    if suffix == ".pt":
        torch.save(state, file)
    else:
        save_file(state, file)
    found = measured(f"model = Clip.build(model='RN50x16', pretrained={str(file)!r})")
    assert found["parameters"] == 136_202_640
    assert found["types"] == ["torch.float16"]
    assert found["peak"] < 1.3 * found["bytes"]


def _half(dtype: torch.dtype) -> torch.dtype:
    return torch.float16 if dtype.is_floating_point else dtype
