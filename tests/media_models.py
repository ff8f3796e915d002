"""Small models with adapters, most of which use media: what the tests of these adapters share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from magma_adapters.gated_cross_attention import GatedCrossAttention
from magma_adapters.prefix_tuning import PrefixTuning
from magma_adapters.visual_expert import VisualExpert
from magma_lms.causal import Causal
from magma_lms.gptj import GPTJ
from torch import nn
from toys import ToyEncoder, ToyPrefix

from magma import AdapterTable, FrozenLM, Input, Magma, PartConfig, Site

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
TOKENS = {"vocab_size": 768, "bos_token_id": 0, "eos_token_id": 0}


def causal(family: str, **sizes: Any) -> Causal:
    return Causal.build(architecture={"model_type": family, **TOKENS, **sizes}, tokenizer="bundled:tiny")


LMS: dict[str, Callable[[], FrozenLM]] = {
    "llama": lambda: causal("llama", **TINY, intermediate_size=48, num_key_value_heads=2),
    "gpt2": lambda: causal("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gptj": lambda: GPTJ.build(
        layers=2, dim=32, heads=4, rotary_dim=4, context=64, vocab=768, eos=0, tokenizer="bundled:tiny"
    ),
}
TABLES = {
    "gated_cross_attention": ("block", lambda site, **o: GatedCrossAttention.build(site, heads=2, head_dim=8, **o)),
    "visual_expert": ("linears", lambda site, **options: VisualExpert.build(site, **options)),
    "prefix_tuning": ("attention", lambda site, **options: PrefixTuning.build(site, length=3, **options)),
}
MEDIA_ADAPTERS = ["gated_cross_attention", "visual_expert"]
"""Those that use media."""


def number_input(lm: FrozenLM) -> Input:
    """Numbers up to 3, each as one to four embeddings."""
    encoder = ToyEncoder.build()
    return Input(encoder, ToyPrefix(PartConfig(), encoder.dim, encoder.length, lm.embedding_dim), trainable=True)


def build_model(
    family: str, adapter: str | None, randomized: bool = True, only_with: tuple[str, ...] = (), **options: Any
) -> Magma:
    """A model in evaluation mode that reads numbers; with `randomized` adapters, which change something."""
    torch.manual_seed(0)
    lm = LMS[family]()
    torch.manual_seed(1)
    inputs = {"number": number_input(lm)}
    tables = {}
    if adapter is not None:
        at, make = TABLES[adapter]

        def make_one(site: Site) -> Any:
            return make(site, **options)

        tables["media"] = AdapterTable(make_one, at=at, only_with=only_with)
    model = Magma(lm, inputs, tables).eval()
    if randomized:
        for one in model.lm.all_adapters():
            randomize(one)
    return model


def randomize(module: nn.Module) -> None:
    """Add noise to every parameter."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
