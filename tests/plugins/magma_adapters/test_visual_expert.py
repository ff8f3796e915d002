"""The visual expert: CogVLM's equations, its start, and which positions it acts on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from magma_adapters.visual_expert import VisualExpert
from media_models import LMS, TINY, build_model, causal, number_input, randomize
from torch import Tensor, nn
from torch.nn import functional as F

import magma
from magma import AdapterTable, FrozenLM, Magma, Media, PartError, Site

PROMPT: list[Any] = ["one", 2, "and", 0, "are"]


def frozen_weight(linear: nn.Module) -> Tensor:
    """[out, in], also of GPT-2's layers."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    return weight if isinstance(linear, nn.Linear) else weight.T


@pytest.mark.parametrize("family", LMS)
def test_it_starts_as_a_copy_of_every_linear_layer(family: str) -> None:
    model = build_model(family, "visual_expert", randomized=False)
    sites = [site for site in model.lm.sites() if site.linear is not None]
    experts: list[Any] = model.lm.all_adapters()
    assert len(experts) == len(sites) >= 8
    for site, adapter in zip(sites, experts, strict=True):
        assert site.linear is not None
        weight, bias = adapter.expert.weight, adapter.expert.bias
        assert torch.equal(weight, frozen_weight(site.linear))
        assert weight.is_contiguous()
        assert weight.untyped_storage().data_ptr() != site.weight.untyped_storage().data_ptr()
        assert (bias is None) == (site.linear.bias is None)
        assert bias is None or torch.equal(bias, site.linear.bias)  # type: ignore[arg-type]
        assert weight.requires_grad
        assert not site.weight.requires_grad


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_positions_of_media_have_projections_of_their_own(family: str) -> None:
    """Equations 2 to 4: all projections of the model itself, chosen by position."""
    model = build_model(family, "visual_expert")
    batch = model._prompts(model.collator().examples([PROMPT]))
    embeddings, layout = model.lm_inputs(batch)
    assert layout.context is not None
    media = (layout.context.inputs >= 0)[..., None]  # [1, t, 1]
    assert media.sum() == 3 + 1
    found = model.logits(PROMPT)
    sites = [site for site in model.lm.sites() if site.linear is not None]
    experts: list[Any] = model.lm.all_adapters()
    weights = [(a.expert.weight.detach().clone(), a.expert.bias) for a in experts]
    model.lm.remove_adapters()

    def chosen(weight: Tensor, bias: Tensor | None) -> Callable[..., Tensor]:
        return lambda _, args, out: torch.where(media, F.linear(args[0], weight, bias), out)

    for site, (weight, bias) in zip(sites, weights, strict=True):
        assert site.linear is not None
        site.linear.register_forward_hook(chosen(weight, bias))
    lm: Any = model.lm
    with torch.no_grad():
        expected = lm.model(inputs_embeds=embeddings).logits[0]
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("family", LMS)
def test_text_before_media_has_the_same_bits(family: str) -> None:
    bare, model = build_model(family, None), build_model(family, "visual_expert")
    (count,) = {len(one.lm.encode("one")) for one in (bare, model)}
    a, b = bare.logits(PROMPT), model.logits(PROMPT)
    assert torch.equal(a[:count], b[:count])
    assert not torch.allclose(a[count:], b[count:], atol=1e-3)
    assert torch.equal(bare.logits(["only text"]), model.logits(["only text"]))


def both(lm: FrozenLM, **options: Any) -> Magma:
    torch.manual_seed(3)
    inputs = {"number": number_input(lm), "other": number_input(lm)}
    tables = {"expert": AdapterTable(lambda site: VisualExpert.build(site, **options), at="linears")}
    model = Magma(lm, inputs, tables).eval()
    for one in model.lm.all_adapters():
        randomize(one)
    return model


def test_it_may_act_on_some_inputs_only() -> None:
    model = both(LMS["llama"](), inputs=("other",))
    results = {}
    for name in ("number", "other"):
        prompt = ["one", Media(name, 2), "is"]
        found = model.logits(prompt)
        with model.adapters_disabled():
            results[name] = torch.equal(found, model.logits(prompt))
    assert results == {"number": True, "other": False}


def test_an_input_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PartError, match=r"adapters\.expert: given 'othr'; allowed: the inputs, number, other"):
        both(LMS["llama"](), inputs=("othr",))


def test_it_needs_a_linear_layer_that_can_be_copied() -> None:
    with pytest.raises(PartError, match=r"acts at linear layers: given block; allowed: linears, or one of them"):
        VisualExpert.build(Site("block", 0, 8, 8, media_features=8))
    packed = nn.Linear(8, 8)
    packed.weight = nn.Parameter(torch.zeros(32, 1, dtype=torch.uint8), requires_grad=False)  # as bitsandbytes has it
    with pytest.raises(PartError, match=r"a quantized or partitioned weight \[32, 1\]"):
        VisualExpert.build(Site("mlp.up_proj", 0, 8, 8, packed, media_features=8))


def test_a_checkpoint_has_the_expert_and_not_the_frozen_layer() -> None:
    model = Magma(
        causal("llama", **TINY, intermediate_size=48),
        {},
        {"linears": AdapterTable(lambda site: VisualExpert.build(site), blocks="last 1")},
    )
    assert model.trained_tensors().keys() == {
        f"lm.model.model.layers.1.{path}.adapter_linears.expert.weight"
        for path in (
            *(f"self_attn.{name}_proj" for name in "qkvo"),
            *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        )
    }


def test_on_meta_and_without_pretrained_weights_nothing_is_copied() -> None:
    recipe = {
        "name": "expert",
        "lm": {"use": "gptj", "weights": "bundled:tiny"},
        "inputs": {
            "image": {
                "encoder": {"use": "clip", "layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
                "prefix": {"use": "linear"},
            }
        },
        "adapters": {"expert": {"use": "visual_expert", "at": "*.fc_in"}},
    }
    assert all(p.is_meta for p in magma.assemble(recipe, device="meta").parameters())
    model = magma.assemble(recipe, frozen_weights_only=True)
    for adapter, site in zip(model.lm.adapters["expert"], model.lm.adapter_sites["expert"], strict=True):
        weight = adapter.get_parameter("expert.weight")
        assert not weight.is_meta
        assert weight.shape == site.weight.shape
