"""A small language model of random weights of every family that the plugin knows."""

from __future__ import annotations

from typing import Any

import torch
from magma_lms.causal import Causal
from magma_lms.gptj import GPTJ
from magma_lms.transformers_lm import TransformersLM

# hidden_size, num_hidden_layers, num_attention_heads and the like are understood by every family
SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 32},
    "gpt_neox": {"intermediate_size": 64},
    "gptj": {"rotary_dim": 4},
    "llama": {"intermediate_size": 64},
    "mistral": {"intermediate_size": 64, "num_key_value_heads": 2, "sliding_window": 32},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi": {"intermediate_size": 64},
    "qwen2": {"intermediate_size": 64, "num_key_value_heads": 2},
    "qwen3": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
}
OURS = "gptj on its own path"
"""The part `gptj`, which runs the library's tensors through code of its own."""
FAMILIES = [*SMALL, OURS]


def architecture(family: str) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    tokens = {"vocab_size": 96, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return {"model_type": family, **sizes, **tokens, **SMALL[family]}


def build(family: str, **fields: Any) -> TransformersLM:
    torch.manual_seed(0)
    if family == OURS:
        sizes = {"layers": 2, "dim": 32, "heads": 4, "rotary_dim": 4, "context": 64, "vocab": 96, "eos": 1}
        lm: TransformersLM = GPTJ.build(**{**sizes, **fields})
    else:
        lm = Causal.build(architecture={**architecture(family), **fields})
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    lm.freeze()
    return lm


def library(lm: TransformersLM) -> Any:
    """The library's own model with the same tensors."""
    if not isinstance(lm, GPTJ):
        return lm.model
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_config(lm.model.config)
    theirs.load_state_dict(lm.model.state_dict())
    return theirs.eval()
