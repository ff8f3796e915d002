"""Prefix-tuning: the library's own cache and peft give the same, text beside media has the bits of the bare model."""

from __future__ import annotations

import inspect
from typing import Any

import neutral_models
import pytest
import torch
from families import FAMILIES, OURS, architecture, build, library
from lm_logits import TOKENS, run
from magma_adapters.prefix_tuning import PrefixTuning
from magma_lms.causal import Causal
from magma_lms.decoder import CACHE_ARGUMENTS
from magma_lms.transformers_lm import TransformersLM
from neutral_models import ARCHITECTURES, check, logits, words
from peft_models import difference, loss
from torch import Tensor

from magma import AdapterTable, Magma, Media, PartError, Site

LENGTH = 5
CLOSE = 1e-6
"""Relative to the norm, in float32."""
GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
MORE: dict[str, dict[str, Any]] = {
    "gemma2": {**GROUPED, "sliding_window": 32},
    "gemma3_text": {**GROUPED, "sliding_window": 32},
    "gpt_oss": {**GROUPED, "sliding_window": 32, "num_local_experts": 2, "num_experts_per_tok": 1},
}
SUPPORTED = [family for family in FAMILIES if family != "gpt_neo"]


def build_any(family: str, **fields: Any) -> TransformersLM:
    if family not in MORE:
        return build(family, **fields)
    torch.manual_seed(0)
    sizes = {**architecture("llama"), "model_type": family, **MORE[family], **fields}
    return Causal.build(architecture=sizes)


def add_prefixes(lm: TransformersLM, **options: Any) -> Magma:
    torch.manual_seed(2)
    made = AdapterTable(lambda site: PrefixTuning.build(site, length=LENGTH, std=1.0), "attention", **options)
    return Magma(lm, adapters={"prefix": made}).eval()


def in_cache(adapters: list[Any], rows: int) -> Any:
    """The prefixes as the cache of the library, after which the sequence continues."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, one in enumerate(adapters):
        cache.update(*(part[None].expand(rows, -1, -1, -1) for part in (one.keys, one.values)), layer)
    return cache


@pytest.mark.parametrize("family", [*SUPPORTED, *MORE])
def test_it_is_the_library_after_a_cache_of_these_keys(family: str) -> None:
    """Logits and gradients. Positions of the sequence are counted from 0."""
    lm = build_any(family)
    bare = run(lm, TOKENS)
    model = add_prefixes(lm)
    prefixes: list[Any] = lm.adapters["prefix"]
    found = run(lm, TOKENS)
    assert difference(found, bare) > 0.05, "the prefixes do nothing"
    parameters = [p for one in prefixes for p in one.parameters()]
    ours = torch.autograd.grad(loss(found), parameters)
    if family == OURS:
        lm.remove_adapters()
    theirs, (rows, columns) = library(lm), TOKENS.shape
    known = inspect.signature(theirs.forward).parameters
    cache = {next(name for name in CACHE_ARGUMENTS if name in known): in_cache(prefixes, rows)}
    with model.adapters_disabled(*lm.adapters):
        expected = theirs(
            input_ids=TOKENS,
            position_ids=torch.arange(columns).expand(rows, -1),
            attention_mask=torch.ones(rows, LENGTH + columns),
            **cache,
        ).logits
        gradients = torch.autograd.grad(loss(expected), parameters)
    assert difference(found, expected) <= CLOSE
    assert max(difference(one, other) for one, other in zip(ours, gradients, strict=True)) <= 5 * CLOSE


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.filterwarnings("ignore:.*(is_gradient_checkpointing|past_key_values):FutureWarning")  # peft's use
def test_it_is_prefix_tuning_of_peft(family: str) -> None:
    """peft counts positions from the length of the prefix: it is given those before, which gives the same positions."""
    peft = pytest.importorskip("peft")
    lm = build(family)
    model = add_prefixes(lm)
    found = run(lm, TOKENS)
    prefixes: list[Any] = lm.adapters["prefix"]
    heads, _, width = prefixes[0].keys.shape
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    with model.adapters_disabled():
        theirs = peft.get_peft_model(lm.model, config).eval()
        pairs = torch.stack([part for one in prefixes for part in (one.keys, one.values)])  # [2 * layers, g, l, w]
        weight = theirs.prompt_encoder["default"].embedding.weight
        with torch.no_grad():
            weight.copy_(pairs.permute(2, 0, 1, 3).reshape(LENGTH, len(pairs) * heads * width))
        positions = torch.arange(TOKENS.shape[1]).expand(len(TOKENS), -1) - LENGTH
        expected = theirs(input_ids=TOKENS, position_ids=positions).logits
    assert difference(found, expected) <= CLOSE


def test_a_window_does_not_hide_the_prefix() -> None:
    """In layers with a window, the library's cache loses the prefix; here the last position still attends to it."""
    lm = build_any("gemma3_text", sliding_window=4, layer_types=["sliding_attention"] * 2)
    model = add_prefixes(lm, blocks="last 1")
    found = run(lm, TOKENS)
    with model.adapters_disabled():
        bare = run(lm, TOKENS)
    assert ((found - bare).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gpt_neo", {}),
        ("bloom", {"n_layer": 2, "n_head": 4}),
        ("falcon", {}),
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}),
    ],
)
def test_attention_that_is_out_of_reach_is_refused(family: str, fields: dict[str, Any]) -> None:
    tokens = {"vocab_size": 96, "bos_token_id": 0, "eos_token_id": 1, "hidden_size": 32}
    sizes = architecture(family) if family == "gpt_neo" else {"model_type": family, **tokens, **fields}
    if family == "falcon":
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    if family == "mpt":
        del sizes["hidden_size"]
    lm = Causal.build(architecture=sizes)
    with pytest.raises(PartError, match=r"^adapters\.prefix: given the attention of block 0, into which no"):
        add_prefixes(lm)
    assert not lm.adapters


def test_other_sites_are_refused() -> None:
    with pytest.raises(PartError, match=r'"prefix_tuning": given the site mlp; allowed: attention, with keys'):
        PrefixTuning.build(Site("mlp", 0, 8, 8))


def test_recurrent_blocks_are_named() -> None:
    sizes = {
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "num_experts": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    }
    lm = Causal.build(
        architecture={
            **architecture("llama"), **sizes, "model_type": "jamba", "attn_layer_period": 2, "attn_layer_offset": 1
        }
    )  # fmt: skip
    with pytest.raises(PartError, match=r"given the attention of block 0, .*; allowed: attention in blocks \[1\]"):
        add_prefixes(lm)
    add_prefixes(lm, blocks=[1])
    assert len(lm.adapters["prefix"]) == 1


# only_with


def prefix(name: str) -> AdapterTable:
    return AdapterTable(lambda site: PrefixTuning.build(site, length=3, std=1.0), "attention", only_with=(name,))


def neutral(family: str) -> Magma:
    return neutral_models.build(family, {"one": prefix("number"), "two": prefix("other")})


NEUTRAL = [family for family in ("gptj", *ARCHITECTURES) if family != "falcon_h1"]


@pytest.mark.parametrize("family", NEUTRAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_has_the_bits_of_the_bare_language_model(family: str, dtype: torch.dtype) -> None:
    check(neutral(family).to(dtype), 40)


@pytest.mark.parametrize("family", NEUTRAL)
def test_each_input_has_its_own_prefix(family: str) -> None:
    """In one batch, and packed, rows are as by themselves; with one input, as in a model with only its prefix."""
    model = neutral(family)
    number, other = Media("number", 2), Media("other", 3)
    prompts = [[words(5, 6), number, words(7)], [words(5, 6), other, words(7)], [number, other], [words(*range(8, 14))]]
    mixed, found = logits(model, prompts), []
    for row, prompt in enumerate(prompts):
        single = logits(model, [prompt])[0]
        found.append(single)
        torch.testing.assert_close(mixed[row, : len(single)], single, rtol=1e-4, atol=1e-5)
    with model.adapters_disabled("two"):
        assert torch.equal(logits(model, prompts[:1])[0], found[0])
        assert torch.equal(logits(model, prompts)[0], mixed[0])
        assert not torch.allclose(logits(model, prompts[2:3])[0], found[2], atol=1e-3)
    packed = logits(model, prompts[:2], packed=True)[0]
    pieces = torch.cat(found[:2]) if len(found[0]) >= len(found[1]) else torch.cat(found[1::-1])
    torch.testing.assert_close(packed[: len(pieces)], pieces, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", NEUTRAL)
def test_generated_tokens_are_those_without_a_cache(family: str) -> None:
    model = neutral(family)
    prompts: list[list[Any]] = [[words(5, 6), Media("number", 2), words(7)], [words(8, 9, 10)], [Media("other", 1)]]
    for prompt, tokens in zip(prompts, model.generate_tokens(prompts, max_tokens=5), strict=True):
        text: list[int] = []
        for _ in tokens:
            text.append(int(logits(model, [[*prompt, words(*text)] if text else prompt])[0, -1].argmax()))
        assert tokens == text


def test_there_are_prefixes_of_every_size_in_a_checkpoint() -> None:
    model = add_prefixes(build("qwen3"))
    shapes: dict[str, Tensor] = model.trained_tensors()
    assert {name: list(tensor.shape) for name, tensor in shapes.items()} == {
        f"lm.model.model.layers.{block}.self_attn.adapter_prefix.{name}": [2, LENGTH, 8]
        for block in (0, 1)
        for name in ("keys", "values")
    }
