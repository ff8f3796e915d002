"""LoRA, its variants and (IA)^3 with the weights of peft's: equal logits and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lm_logits import TOKENS
from peft_models import FAMILIES, SCALED_INPUTS, both, difference, ia3, logits, lora, loss, with_weights_of

from magma import AdapterTable, Magma

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # peft's use of transformers
SIZES = {"r": 4, "lora_alpha": 6}
VARIANTS: dict[str, dict[str, bool]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "rslora and dora": {"rslora": True, "dora": True},
}
CLOSE = {torch.float32: (1e-6, 2e-6), torch.float64: (1e-14, 1e-14)}
"""Relative to the norm: of logits, and of the gradient of a parameter.

In float64 both are equal up to its precision of 2e-16: the equations are the same ones. In float32, gradients differ by
more than logits because they pass the frozen model twice.
"""
ROUNDING = {"llama": 1e-5}
"""Gradients in float32 of a family whose frozen modules are faster ones, with operations in another order."""
DTYPES = pytest.mark.parametrize("dtype", CLOSE, ids=str)


@DTYPES
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_lora_equals_peft(family: str, variant: str, dtype: torch.dtype) -> None:
    from peft import LoraConfig

    keys = VARIANTS[variant]
    flags = {f"use_{key}": value for key, value in keys.items()}
    transposed = family == "gpt2"
    config = LoraConfig(**SIZES, target_modules="all-linear", fan_in_fan_out=transposed, task_type="CAUSAL_LM", **flags)
    check(family, *both(family, lambda: lora(rank=4, alpha=6, **keys)), config, dtype)


@DTYPES
@pytest.mark.parametrize("family", FAMILIES)
def test_ia3_equals_peft(family: str, dtype: torch.dtype) -> None:
    from peft import IA3Config

    last = f"1.{SCALED_INPUTS[family]}"
    attention = {"llama": ["q_proj", "k_proj", "v_proj", "o_proj"], "gpt2": ["attn.c_attn", "attn.c_proj"]}.get(
        family, ["q_proj", "k_proj", "v_proj", "out_proj"]
    )
    config = IA3Config(
        target_modules=[*attention, last],
        feedforward_modules=[last],
        fan_in_fan_out=family == "gpt2",
        task_type="CAUSAL_LM",
    )
    check(family, *both(family, lambda: ia3(family)), config, dtype)


def check(family: str, model: Magma, theirs: Any, config: Any, dtype: torch.dtype) -> None:
    """Our model and peft's on the library's, with equal weights: logits, and the gradient of each parameter."""
    model, theirs = model.to(dtype), theirs.to(dtype)
    close, close_gradients = CLOSE[dtype]
    with torch.no_grad():
        bare = theirs(input_ids=TOKENS).logits
    peft_model = with_weights_of(model, theirs, config)
    found, expected = logits(model.lm), peft_model(input_ids=TOKENS).logits
    assert difference(expected, bare) > 1e-2, "the adapters do nothing"
    assert difference(found, expected) <= close
    loss(found).backward()
    loss(expected).backward()
    gradients = {
        name.replace(".default", "").removesuffix(".weight"): parameter.grad
        for name, parameter in peft_model.named_parameters()
        if parameter.requires_grad
    }
    ours = {
        f"base_model.model.{model.lm.exported_path(adapter.site)}.{name}": parameter.grad
        for adapter in model.lm.all_adapters()
        for name, parameter in adapter.named_parameters()
    }
    assert gradients.keys() == ours.keys()
    far = {name: difference(ours[name].view_as(one), one) for name, one in gradients.items()}
    allowed = ROUNDING.get(family, close_gradients) if dtype == torch.float32 else close_gradients
    assert max(far.values()) <= allowed, far


def test_dora_starts_as_the_frozen_layer() -> None:
    from magma_adapters.lora import LoRA

    model, theirs = both("gpt2", lambda: {"lora": AdapterTable(lambda site: LoRA.build(site, dora=True), "linears")})
    with torch.no_grad():
        assert torch.equal(logits(model.lm), theirs(input_ids=TOKENS).logits)
