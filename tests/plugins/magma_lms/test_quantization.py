"""Frozen language models in 4 and 8 bits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import vision_language
from families import build
from lm_logits import TOKENS, layout, run
from magma_adapters.bottleneck import Sequential
from magma_lms.causal import Causal
from magma_lms.loading import load_model, read_architecture
from magma_lms.weights import Source
from PIL import Image

import magma

ROOT = Path(__file__).parents[3]
VOCABULARY = {"vocab_size": 768, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
BITS = {"nf4": 4, "int8": 8}
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # those of bitsandbytes and what it imports


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model: Any = build("llama", hidden_size=64, intermediate_size=128, num_key_value_heads=2, **VOCABULARY).model
    model.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def matrices(lm: Causal) -> list[Any]:
    return [module for block in lm.blocks for module in block.modules() if isinstance(module, torch.nn.Linear)]


@pytest.mark.parametrize("quantize", BITS)
def test_the_matrices_of_the_blocks_are_quantized(folder: Path, quantize: str) -> None:
    import bitsandbytes

    exact, quantized = Causal.build(weights=str(folder)), Causal.build(weights=str(folder), quantize=quantize)
    exact.freeze(), quantized.freeze()
    assert torch.equal(exact.model.lm_head.weight, quantized.model.lm_head.weight)
    pairs = list(zip(matrices(exact), matrices(quantized), strict=True))
    assert len(pairs) == 14
    original = run(exact, TOKENS)
    for before, after in pairs:
        assert after.weight.nbytes * 8 == before.weight.numel() * BITS[quantize]
        if quantize == "nf4":
            weight = bitsandbytes.functional.dequantize_4bit(after.weight, after.weight.quant_state)
        else:
            scales = after.state.SCB if after.weight.SCB is None else after.weight.SCB  # after the first product
            weight = after.weight.float() * scales[:, None] / 127
        before.weight.data.copy_(weight)
    expected, logits = run(exact, TOKENS), run(quantized, TOKENS)
    assert (expected - original).norm() > 0.01 * original.norm()
    # 8-bit products round their inputs to 8 bits, too.
    assert (logits - expected).norm() < {"nf4": 1e-5, "int8": 0.05}[quantize] * expected.norm()


@pytest.mark.parametrize("quantize", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_learn_in_their_own_precision(folder: Path, quantize: str, dtype: torch.dtype) -> None:
    lm = Causal.build(weights=str(folder), quantize=quantize)
    lm.add_adapters("mlp", lambda: Sequential.build(lm.dim, downsample=8))
    lm.freeze()
    lm.to(dtype=dtype)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items() if tensor.ndim}
    embeddings = lm.embed(TOKENS).requires_grad_()
    loss = lm.lm_head(lm(embeddings, layout([12, 12, 12], 12))).float().logsumexp(-1).mean()
    loss.backward()
    adapters = [p for adapter in lm.all_adapters() for p in adapter.parameters()]
    assert {p.dtype for p in adapters} == {dtype}
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in adapters)
    assert embeddings.grad is not None
    assert embeddings.grad.norm() > 0
    assert all(p.grad is None for p in lm.blocks[0].parameters() if not p.requires_grad)
    after = lm.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("quantize", BITS)
def test_the_whole_model_is_cast_before_and_after_its_first_use(folder: Path, quantize: str) -> None:
    lm = Causal.build(weights=str(folder), quantize=quantize)
    lm.freeze()
    expected = run(lm, TOKENS)
    assert (run(lm.to(dtype=torch.bfloat16), TOKENS) - expected).norm() < 0.05 * expected.norm()
    moved = copy.deepcopy(lm).to(device="cpu", dtype=torch.float32)
    assert (run(moved, TOKENS) - expected).norm() < 0.05 * expected.norm()
    for module in matrices(moved):
        if quantize == "int8":
            assert module.state.SCB is not None


@pytest.mark.parametrize("quantize", BITS)
def test_a_quantized_checkpoint_is_read_as_it_is(folder: Path, quantize: str, tmp_path: Path) -> None:
    lm = Causal.build(weights=str(folder), quantize=quantize)
    lm.export(tmp_path / "quantized")
    again = Causal.build(weights=str(tmp_path / "quantized"))
    lm.freeze(), again.freeze()
    assert torch.equal(run(again, TOKENS), run(lm, TOKENS))


@pytest.mark.parametrize("quantize", BITS)
def test_a_run_is_trained_loaded_and_resumed(folder: Path, quantize: str, tmp_path: Path) -> None:
    table = f"lm={{use='causal', weights='{folder}', tokenizer='bundled:tiny', quantize='{quantize}'}}"
    small = ["train.batch_size=8", "train.evaluate_samples=8", "tasks.0.limit=2", "train.precision=bf16"]
    overrides = [table, *small, "train.evaluate_every=0"]
    report = magma.run("quickstart", out=tmp_path / "run", overrides=[*overrides, "train.samples=32"])
    assert report["steps"] == 4
    model = magma.load(tmp_path / "run")
    image = Image.open(ROOT / "docs" / "seven.png")
    assert isinstance(model.generate([image, "A picture of"], max_tokens=2), str)
    report = magma.run("quickstart", out=tmp_path / "run", overrides=[*overrides, "train.samples=48"], resume=True)
    assert report["steps"] == 6


def test_the_text_model_of_a_larger_checkpoint_is_quantized_too(tmp_path: Path) -> None:
    whole = vision_language.build("llava")
    whole.save_pretrained(tmp_path)
    source = Source(str(tmp_path), quantize="int8")
    model = load_model(source, read_architecture(source))
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    expected = whole(input_ids=TOKENS).logits
    assert (model(input_ids=TOKENS).logits - expected).norm() < 0.05 * expected.norm()
