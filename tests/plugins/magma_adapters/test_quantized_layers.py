"""Low-rank adapters at linear layers in 4 and 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from lm_logits import TOKENS, run
from magma_adapters.lora import LoRA
from magma_lms.causal import Causal
from peft_models import ia3, lora

from magma import AdapterTable, Magma, PartError

pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # those of bitsandbytes and what it imports


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_lora_and_ia3_learn_around_quantized_weights(quantize: str, tmp_path: Path) -> None:
    vocabulary: dict[str, Any] = {"vocab_size": 768, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    build("llama", hidden_size=64, intermediate_size=128, num_key_value_heads=2, **vocabulary).export(tmp_path / "lm")

    def quantized() -> Causal:
        return Causal.build(weights=str(tmp_path / "lm"), quantize=quantize)

    lm = quantized()
    with torch.no_grad():
        bare = run(lm, TOKENS)
    model = Magma(lm, adapters={**lora(rank=4), **ia3("llama")}).eval()
    found = run(lm, TOKENS)
    assert not torch.equal(found, bare)
    found.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for a in lm.all_adapters() for p in a.parameters())
    with model.adapters_disabled(), torch.no_grad():
        assert torch.equal(run(lm, TOKENS), bare)
    with pytest.raises(PartError, match="adapters.lora: self_attn.q_proj of block 0: given a quantized"):
        lm.merge_adapters()
    with pytest.raises(PartError, match="adapters.dora: self_attn.q_proj of block 0: given a quantized"):
        Magma(quantized(), adapters={"dora": AdapterTable(lambda site: LoRA.build(site, dora=True), "linears")})
