"""Faster norms and attention: the library's results, in the library's own models; anything else is left alone."""

from __future__ import annotations

import copy
import importlib
import inspect
from typing import Any

import pytest
import torch
from magma_lms.fast.attention import FastAttention
from magma_lms.fast.attention_probe import speed_up_attention
from magma_lms.fast.decoder import speed_up
from magma_lms.fast.rms_norm import FastRMSNorm, speed_up_rms_norms
from torch import Tensor, nn

SIZES = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
FAST = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "olmo2", "phi", "smollm3", "starcoder2", "qwen3_moe")
"""Grouped heads, biases, norms of heads and of all heads, windows, partial rotation, experts."""
OTHER = {
    "gemma2": "soft-cap of scores",
    "gpt_oss": "sinks",
    "ministral3": "queries are scaled at far positions",
    "phi3": "one projection for queries, keys and values",
    "cohere": "rotation of neighbouring dimensions",
}
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(2, 9, 48, generator=DRAW)


def build(family: str, **fields: Any) -> Any:
    """The decoder of a tiny model; biases and norms are random too."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **{**SIZES, **fields}), dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3 if parameter.ndim == 1 else 0.1)
    return model.requires_grad_(False).eval()


def pair(family: str, **fields: Any) -> tuple[Any, Any]:
    """The same decoder as it is, and faster."""
    plain = build(family, **fields)
    fast = copy.deepcopy(plain)
    speed_up(fast, lambda: fast(inputs_embeds=X[:, :7], use_cache=False).last_hidden_state)
    return plain, fast


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=2e-5 * float(other.abs().max()))


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize("family", FAST)
def test_hidden_states_and_gradients_are_the_librarys(family: str) -> None:
    plain, fast = pair(family, **({"sliding_window": 4} if family in ("mistral", "gemma3_text") else {}))
    assert count(fast, FastAttention) == 2
    assert fast.state_dict().keys() == plain.state_dict().keys()
    mask = torch.ones(2, 9).long()
    mask[0, :3] = 0
    for given in ({}, {"attention_mask": mask}, {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 2)}):
        found = []
        for model in (plain, fast):
            x = X.clone().requires_grad_()
            out = model(inputs_embeds=x, use_cache=False, **given).last_hidden_state[:, 3:]
            (gradient,) = torch.autograd.grad((out * torch.linspace(-1, 1, 48)).sum(), x)
            found.append((out.detach(), gradient[:, 3:]))
        assert all(close(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("family", FAST)
def test_steps_with_a_cache_are_the_librarys(family: str) -> None:
    from transformers import DynamicCache

    plain, fast = pair(family, **({"sliding_window": 4} if family in ("mistral", "gemma3_text") else {}))
    mask = torch.ones(2, 9).long()
    mask[1, :2] = 0
    name = "cache" if "cache" in inspect.signature(plain.forward).parameters else "past_key_values"
    outs = []
    for model in (plain, fast):
        cache, at, found = DynamicCache(config=model.config), 0, []
        for t in (5, 1, 1, 2):  # two at once after the cache need the mask
            out = model(
                inputs_embeds=X[:, at : at + t],
                attention_mask=mask[:, : at + t],
                use_cache=True,
                **{name: cache},
            )
            found.append(out.last_hidden_state[:, -1])
            at += t
        outs.append(torch.stack(found))
    assert close(*outs)


@pytest.mark.parametrize("family", OTHER)
def test_attention_that_computes_something_else_stays(family: str) -> None:
    plain, fast = pair(family)
    assert count(fast, FastAttention) == 0
    assert close(*(model(inputs_embeds=X, use_cache=False).last_hidden_state for model in (fast, plain)))


@pytest.mark.parametrize("what", ["far_positions", "long_cache", "clamp", "not_causal"])
def test_a_difference_that_a_short_text_does_not_show_is_found(what: str) -> None:
    from transformers.models.llama.modeling_llama import LlamaAttention

    class Special(LlamaAttention):  # type: ignore[misc]  # the library is not typed
        def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
            position_ids = kwargs.get("position_ids")
            cache = kwargs.get("cache", kwargs.get("past_key_values"))
            if what == "far_positions" and position_ids is not None:
                hidden_states = hidden_states * (1 + (position_ids > 1000)[..., None])
            if what == "long_cache" and cache is not None and cache.get_seq_length() > 1000:
                hidden_states = hidden_states * 2
            if what == "clamp":
                hidden_states = hidden_states.clamp(-50, 50)
            if what == "not_causal":
                kwargs["is_causal"] = False
            return super().forward(hidden_states, **kwargs)

    model = build("llama")
    for layer in model.layers:
        layer.self_attn.__class__ = Special
    assert speed_up_attention(model, lambda: model(inputs_embeds=X, use_cache=False)) == 0


@pytest.mark.parametrize("path", ["llama.LlamaRMSNorm", "gemma3.Gemma3RMSNorm", "t5.T5LayerNorm"])
def test_norms_are_the_librarys(path: str) -> None:
    family, name = path.split(".")
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    plain = getattr(module, name)(48, eps=1e-3)
    plain.weight.data.normal_()
    plain.requires_grad_(False)
    fast = copy.deepcopy(plain)
    assert speed_up_rms_norms(nn.Sequential(fast)) == 1
    results = []
    for norm in (plain, copy.deepcopy(fast)):
        x = (0.05 * X).requires_grad_()
        out = norm(x)
        (gradient,) = torch.autograd.grad((out * X).sum(), x)
        results.append((out.detach(), gradient))
    assert all(close(one, other) for one, other in zip(*results, strict=True))
    assert type(fast).__name__ == type(plain).__name__


def test_other_norms_stay() -> None:
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

    class Squared(nn.Module):
        """Like a norm of Llama while its weight is one."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(48))
            self.eps = 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return self.weight**2 * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    assert speed_up_rms_norms(nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 48), Squared())) == 0
    gated = Qwen3NextRMSNormGated(48)
    expected = gated(X, gate=X)
    speed_up_rms_norms(nn.Sequential(gated))
    assert torch.equal(gated(X, gate=X), expected)


def test_a_trained_norm_and_other_precisions_use_the_original() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    fast = LlamaRMSNorm(48)
    speed_up_rms_norms(nn.Sequential(fast))
    assert isinstance(fast, FastRMSNorm)
    fast(X).sum().backward()
    assert fast.weight.grad is not None
    half = copy.deepcopy(fast).bfloat16()
    assert torch.equal(half(X.bfloat16()), LlamaRMSNorm(48).bfloat16()(X.bfloat16()))


def test_nothing_happens_outside_float32() -> None:
    model = build("llama").bfloat16()
    speed_up(model, lambda: model(inputs_embeds=X.bfloat16(), use_cache=False).last_hidden_state)
    assert count(model, FastAttention) == count(model, FastRMSNorm) == 0
