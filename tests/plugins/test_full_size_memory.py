"""Weights of hundreds of millions of parameters: read shard by shard, in their own precision, little beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from magma_vision.clip import Clip
from safetensors.torch import save_file

MEASURE = """
import json, os, resource, sys
import open_clip, torch, transformers
from transformers import GPTJForCausalLM
import magma
from magma_lms.gptj import GPTJ
from magma_vision.clip import Clip
half = torch.zeros(64, 64, dtype=torch.bfloat16)
half @ half  # torch's own first-use memory
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def measure(build):
    before, names = peak(), {}
    exec(build, globals(), names)
    model = names["model"]
    tensors = [*model.parameters(), *model.buffers()]
    touched = sum(float(t.double().sum()) if t.numel() < 1 << 20 else float(t.sum()) for t in tensors)
    print(json.dumps({
        "peak": peak() - before,
        "bytes": sum(t.numel() * t.element_size() for t in tensors),
        "parameters": sum(p.numel() for p in model.parameters()),
        "types": sorted({str(p.dtype) for p in model.parameters()}),
    }), flush=True)
for build in json.load(sys.stdin):
    if (child := os.fork()) == 0:
        measure(build)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""
DTYPES = ["bfloat16", "float16", "float32"]
SUFFIXES = [".safetensors", ".pt"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-J of 319 M parameters in half precision, in shards of 100 MB."""
    from transformers import GPTJConfig, GPTJForCausalLM

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
    with torch.device("meta"):
        model = GPTJForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(0.01)
    model.save_pretrained(folder, max_shard_size="100MB")
    assert len(list(folder.glob("*.safetensors"))) > 4
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """RN50x16, the paper's, at its full size, in both formats."""
    with torch.device("meta"):
        empty = Clip(Clip.Config(model="RN50x16"))
    state = {n: torch.full(t.shape, 0.01).to(_half(t.dtype)) for n, t in empty.network.state_dict().items()}
    safe, pickled = (tmp_path_factory.mktemp("encoders") / f"tower{suffix}" for suffix in SUFFIXES)
    save_file(state, safe)
    torch.save(state, pickled)
    return [safe, pickled]


@pytest.fixture(scope="module")
def measured(lm: Path, encoders: list[Path]) -> dict[str, dict[str, Any]]:
    """Each in a process of its own, forked from one that has imported everything; every weight read once."""
    recipe = {"name": "big", "lm": {"use": "gptj", "weights": str(lm)}}
    builds = [f"model = magma.assemble({recipe!r}, dtype=torch.{dtype})" for dtype in DTYPES]
    builds += [f"model = Clip.build(model='RN50x16', weights={str(file)!r})" for file in encoders]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # a thread would be lost in a fork
        input=json.dumps(builds),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"peak"')]
    return dict(zip([*DTYPES, *SUFFIXES], found, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_language_model_is_read_shard_by_shard(measured: dict[str, dict[str, Any]], dtype: str) -> None:
    found = measured[dtype]
    assert found["parameters"] > 300e6
    assert found["types"] == [f"torch.{dtype}"]
    assert found["bytes"] == pytest.approx(found["parameters"] * (4 if dtype == "float32" else 2), rel=0.01)
    assert 0.5 * found["bytes"] < found["peak"] < 1.3 * found["bytes"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_encoder_is_read_in_its_own_precision(measured: dict[str, dict[str, Any]], suffix: str) -> None:
    found = measured[suffix]
    assert found["parameters"] == 136_202_640
    assert found["types"] == ["torch.float16"]
    assert 0.5 * found["bytes"] < found["peak"] < 1.3 * found["bytes"]


def _half(dtype: torch.dtype) -> torch.dtype:
    return torch.float16 if dtype.is_floating_point else dtype
