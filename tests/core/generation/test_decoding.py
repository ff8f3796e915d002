"""Decoding: against recomputation, in batches, with stops, streamed, sampled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toys import RECIPE, by_recomputation

import magma
from magma import Decoding, InputError, Magma, TooLong
from magma.generation.decoding import choose, continuations

pytestmark = pytest.mark.usefixtures("toys")

PROMPTS: list[list[Any]] = [[1, "a"], ["some longer text"], [3, "b", 0, "cd"], ["x"]]


@pytest.fixture
def model() -> Magma:
    """Random weights, large enough that answers differ, and no byte that breaks UTF-8."""
    model = magma.assemble(RECIPE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        model.lm.words.weight[128:256] = 0  # type: ignore[union-attr]
    return model


def test_cached_batched_greedy_equals_recomputation(model: Magma) -> None:
    expected = [by_recomputation(model, prompt, 12) for prompt in PROMPTS]
    assert len(set(expected)) > 1
    assert model.generate(PROMPTS, max_tokens=12) == expected
    assert [model.generate(prompt, max_tokens=12) for prompt in PROMPTS] == expected


def test_stop_strings_are_cut_off(model: Magma) -> None:
    whole = model.generate(PROMPTS[1], max_tokens=12)
    stop = whole[4:6]
    assert model.generate(PROMPTS[1], max_tokens=12, stop=stop) == whole[: whole.index(stop)]


def test_stream_adds_up(model: Magma) -> None:
    pieces = list(model.stream(PROMPTS[1], max_tokens=12))
    assert len(pieces) > 1
    assert "".join(pieces) == model.generate(PROMPTS[1], max_tokens=12)


def test_stream_holds_back_what_may_become_a_stop() -> None:
    grown = ["a", "ab", "abS", "abST", "abSTx"]
    assert list(continuations(iter(grown), ["STOP"])) == ["a", "b", "STx"]
    assert list(continuations(iter(["a\ufffd", "aé"]), [])) == ["a", "é"]


def test_the_context_is_never_exceeded(model: Magma) -> None:
    text = model.generate(["z" * 60], max_tokens=50)
    assert len(text) <= 5


def test_generation_restores_training_mode(model: Magma) -> None:
    model.train()
    model.generate(PROMPTS[0], max_tokens=2)
    assert model.training


def test_seeded_sampling_repeats(model: Magma) -> None:
    first = model.generate(PROMPTS, temperature=1.0, seed=3, max_tokens=12)
    assert model.generate(PROMPTS, temperature=1.0, seed=3, max_tokens=12) == first
    assert model.generate(PROMPTS, temperature=1.0, seed=4, max_tokens=12) != first


def test_top_p_keeps_the_head_of_the_distribution() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = choose(logits, Decoding(temperature=1.0, top_p=0.7), generator)
    assert set(drawn.tolist()) == {0, 1}
    assert abs((drawn == 0).float().mean() - 0.5 / 0.8) < 0.03
    alone = choose(logits, Decoding(temperature=1.0, top_p=0.01), generator)
    assert set(alone.tolist()) == {0}


def test_top_k_and_temperature() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    assert set(choose(logits, Decoding(temperature=1.0, top_k=3), generator).tolist()) == {0, 1, 2}
    cold = choose(logits, Decoding(temperature=0.1), generator)
    assert (cold == 0).float().mean() > 0.98


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-38, 1e-30])
def test_the_coldest_temperatures_are_greedy(temperature: float) -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)) * 100
    assert torch.equal(choose(logits, Decoding(temperature=temperature)), logits.argmax(-1))
    warm = choose(logits, Decoding(temperature=1e300), torch.Generator().manual_seed(0))
    assert len(set(warm.tolist())) == 9  # all alike


def test_the_largest_seeds_are_taken(model: Magma) -> None:
    for seed in (2**64 - 1, -(2**63)):
        assert isinstance(model.generate(PROMPTS[0], temperature=1.0, seed=seed, max_tokens=2), str)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; allowed: 1 or more"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"max_tokens": "3"}, "max_tokens is '3'"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"seed": 2**64}, r"seed is 18446744073709551616; allowed: -2\*\*63 to 2\*\*64 - 1"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"stop": ""}, "stop holds ''; allowed: strings that are not empty"),
        ({"temprature": 1.0}, 'no option "temprature".*Did you mean "temperature"'),
    ],
)
def test_wrong_options_are_explained(model: Magma, option: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.generate(PROMPTS[0], **option)


def test_a_prompt_is_a_list(model: Magma) -> None:
    with pytest.raises(InputError, match="a prompt is a list"):
        model.generate("just text")
    with pytest.raises(InputError, match="a prompt is a list.*not a Tensor"):
        model.generate_tokens(torch.tensor([1, 2]))


def test_a_prompt_is_never_cut(model: Magma) -> None:
    """What stands at its end is what the answer is to follow."""
    assert len(model.logits(["z" * 64])) == 64
    for ask in (model.logits, model.generate):
        with pytest.raises(TooLong, match="the prompt needs 65 positions .*and at most 64 fit"):
            ask(["z" * 65])
    with pytest.raises(TooLong, match="prompt 1 needs 70 positions"):
        model.generate([["a"], ["z" * 70]])
