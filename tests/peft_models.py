"""Language models with low-rank adapters, and the same models in peft."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from causal_checks import copy_of_library
from families import OURS, build, library
from lm_logits import TOKENS, run
from magma_adapters.ia3 import IA3
from magma_adapters.lora import LoRA
from magma_adapters.peft_export import export
from magma_lms.causal import Causal
from magma_lms.transformers_lm import TransformersLM
from torch import Tensor
from torch.nn import functional as F

from magma import AdapterTable, Magma

FAMILIES = ("llama", "gpt2", "gptj", OURS)
SCALED_INPUTS = {"llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "gptj": "mlp.fc_out", OURS: "mlp.fc_out"}
"""The last feed-forward layer of a block, whose input (IA)^3 scales."""


def lora(**fields: Any) -> dict[str, AdapterTable]:
    """LoRA at all linear layers, with random weights."""
    return {"lora": AdapterTable(randomized(lambda site: LoRA.build(site, **fields)), at="linears")}


def ia3(family: str) -> dict[str, AdapterTable]:
    """(IA)^3 at attention's layers and at the input of the last feed-forward layer, with random weights."""
    attention = "self_attn.*" if family == "llama" else "attn.*"
    return {
        "outputs": AdapterTable(randomized(IA3.build), at=attention),
        "inputs": AdapterTable(
            randomized(lambda site: IA3.build(site, scales="input")), at=SCALED_INPUTS[family], blocks="last 1"
        ),
    }


def randomized(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same with weights that are not those of a start."""
    draw = torch.Generator().manual_seed(5)

    def changed(site: Any) -> Any:
        adapter = make(site)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        return adapter

    return changed


def both(family: str, tables: Callable[[], dict[str, AdapterTable]]) -> tuple[Magma, Any]:
    """Our model with these adapters, and the library's model without them."""
    lm = build(family)
    theirs = copy_of_library(lm) if isinstance(lm, Causal) else library(lm)
    return Magma(lm, adapters=tables()).eval(), theirs


def with_weights_of(model: Magma, theirs: Any, config: Any) -> Any:
    """The library's model in peft, with the weights of our adapters."""
    from peft import get_peft_model, set_peft_model_state_dict

    found = get_peft_model(theirs, config).eval()
    result = set_peft_model_state_dict(found, export(model)[1])
    assert not result.unexpected_keys
    return found


def logits(lm: TransformersLM) -> Tensor:
    return run(lm, TOKENS)


def loss(found: Tensor) -> Tensor:
    """Cross-entropy of the next tokens."""
    return F.cross_entropy(found[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())


def difference(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to that of the values."""
    return float((found - expected).detach().norm() / expected.detach().norm())
