"""Small language models with two inputs, `number` and `other`, for adapters that act only with one of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from magma_lms.causal import Causal
from magma_lms.gptj import GPTJ
from torch import Tensor
from toys import ToyEncoder, ToyPrefix

from magma import AdapterTable, Example, Input, Magma, PartConfig, Tokens
from magma.text_neutral import Comparison, compare_with_bare_lm, random_prompts

SIZES = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 160}
HEADS = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
TWO = {"num_hidden_layers": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, **HEADS, **TWO},
    "gemma3_text": {**SIZES, **HEADS, **TWO, "head_dim": 8, "sliding_window": 8},
    "falcon_h1": {
        **SIZES, **HEADS, **TWO, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8,
        "mamba_n_groups": 1, "mamba_chunk_size": 8,
    },
}  # fmt: skip


def build(family: str, tables: Mapping[str, AdapterTable]) -> Magma:
    torch.manual_seed(0)
    if family == "gptj":
        lm: Any = GPTJ(GPTJ.Config(layers=2, dim=32, heads=4, rotary_dim=4, context=160, vocab=64, eos=1))
    else:
        lm = Causal(Causal.Config(architecture={"model_type": family, **ARCHITECTURES[family]}))
    lm.load_weights()
    encoder, prefix = ToyEncoder(ToyEncoder.Config()), ToyPrefix(PartConfig(), 6, 4, lm.embedding_dim)
    inputs = {name: Input(encoder, copy.deepcopy(prefix)) for name in ("number", "other")}
    return Magma(lm, inputs, tables).eval()


@torch.no_grad()
def logits(model: Magma, prompts: list[list[Any]], packed: bool = False) -> Tensor:
    collator = model.collator()
    rows = [collator.encode_example(Example(prompt), truncate=False) for prompt in prompts]
    batch = collator.pack(rows, 64) if packed else collator.pad(rows)
    embeddings, layout = model.lm_inputs(batch)
    layout = replace(layout, scored=torch.arange(batch.tokens.numel()), first_scored=0)
    return model.lm.lm_head(model.lm(embeddings, layout)).view(*batch.tokens.shape, -1)


def words(*ids: int) -> Tokens:
    return Tokens(torch.tensor(ids))


def check(model: Magma, count: int) -> list[Comparison]:
    results = compare_with_bare_lm(model, random_prompts(model, count))
    assert {one.kind: one.first for one in results if one.differing} == {}
    assert sum(one.prompts for one in results if "removed" not in one.kind) == count
    assert not model.lm.adapters
    return results
